"""The built-in head: no licence, no download, numbers and formulas only.

Built in numpy from `procedural_anatomy` (mesh), `procedural_rig` (joints, marks),
`procedural_identity` and `procedural_expressions` (bases); lengths there are
millimetres, metres here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from geodiff_jax.head import model as head_model
from geodiff_jax.head import (
    procedural_anatomy,
    procedural_expressions,
    procedural_identity,
    procedural_rig,
)

VERSION = "procedural-1"
METRES = 1e-3


@functools.cache
def load() -> head_model.HeadModel:
    """The procedural head, float32; built once per process."""
    anatomy = procedural_anatomy.build()
    weights = procedural_rig.skinning_weights(anatomy)
    moves = [
        procedural_identity.displacement(anatomy, direction)
        for direction in procedural_identity.DIRECTIONS.values()
    ]
    expressions = procedural_expressions.basis(anatomy, weights)
    names = tuple(procedural_expressions.EXPRESSIONS)
    blinks = [names.index("eyeBlink_L"), names.index("eyeBlink_R")]
    model = head_model.HeadModel(
        template=_metres(anatomy.points),
        identity_basis=_metres(np.stack([vertices for vertices, _ in moves])),
        expression_basis=_metres(expressions),
        eyelid_basis=_metres(expressions[blinks]),
        joint_template=_metres(procedural_rig.JOINTS),
        joint_identity_basis=_metres(np.stack([joints for _, joints in moves])),
        joint_drivers=procedural_expressions.joint_drivers().astype(np.float32),
        skinning_weights=weights.astype(np.float32),
        faces=anatomy.faces.astype(np.int32),
        uv=anatomy.uv.astype(np.float32),
        uv_faces=anatomy.uv_faces.astype(np.int32),
        landmarks=procedural_rig.landmark_embedding(anatomy),
        irises=procedural_rig.iris_embedding(anatomy),
        regions=procedural_rig.regions(anatomy),
        identity_names=tuple(procedural_identity.DIRECTIONS),
        expression_names=names,
        version=VERSION,
    )
    return jax.tree.map(jnp.asarray, model)


def _metres(millimetres: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(millimetres * METRES, np.float32)


def sample_identity(
    key: Key[Array, ""], model: head_model.HeadModel, *, limit: float = 2.5
) -> Float[Array, " i"]:
    """A random person: independent normal coefficients, clipped at `limit` (ours)."""
    drawn = jax.random.normal(key, (len(model.identity_names),))
    return jnp.clip(drawn, -limit, limit)


def sample_expression(
    key: Key[Array, ""], model: head_model.HeadModel, *, count: int = 4
) -> Float[Array, " e"]:
    """A random plausible face: about `count` muscles at work, most on both sides alike.

    Strengths are uniform in [0, 1] before half of the right side's are drawn towards
    their own (ours). Names that end in _L and _R are pairs; whatever opposes or
    presupposes another (mouthClose without jawOpen) is toned down.
    """
    names = model.expression_names
    active, strength, lopsided = jax.random.split(key, 3)
    drawn = jax.random.uniform(strength, (len(names),))
    partner = np.array(
        [
            names.index(n[:-1] + "L") if n.endswith("_R") else i
            for i, n in enumerate(names)
        ]
    )
    pairs = len(set(partner.tolist()))
    works = jax.random.uniform(active, (len(names),)) < count / pairs
    own = jax.random.uniform(lopsided, (len(names),))
    mixed = jnp.where(
        partner == np.arange(len(names)), drawn, drawn[partner] * (0.7 + 0.3 * own)
    )
    mixed = jnp.where(works[partner], mixed, 0.0)
    jaw_open = mixed[names.index("jawOpen")] if "jawOpen" in names else 1.0
    closing = np.array([name == "mouthClose" for name in names])
    return jnp.where(closing, jnp.minimum(mixed, jaw_open), mixed)
