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
    return head_model.HeadModel(
        template=_metres(anatomy.points),
        identity_basis=_metres(np.stack([vertices for vertices, _ in moves])),
        expression_basis=_metres(expressions),
        eyelid_basis=_metres(expressions[blinks]),
        joint_template=_metres(procedural_rig.JOINTS),
        joint_identity_basis=_metres(np.stack([joints for _, joints in moves])),
        joint_drivers=_float32(procedural_expressions.joint_drivers()),
        skinning_weights=_float32(weights),
        faces=jnp.asarray(anatomy.faces.astype(np.int32)),
        uv=_float32(anatomy.uv),
        uv_faces=jnp.asarray(anatomy.uv_faces.astype(np.int32)),
        landmarks=procedural_rig.landmark_embedding(anatomy),
        irises=procedural_rig.iris_embedding(anatomy),
        regions={
            name: jnp.asarray(mask)
            for name, mask in procedural_rig.regions(anatomy).items()
        },
        identity_names=tuple(procedural_identity.DIRECTIONS),
        expression_names=names,
        version=VERSION,
    )


def _metres(millimetres: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    return _float32(millimetres * METRES)


def _float32(values: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    # Cast in numpy: jax would compile a cast for every shape.
    return jnp.asarray(values.astype(np.float32))


def sample_identity(
    key: Key[Array, ""], model: head_model.HeadModel, *, limit: float = 2.5
) -> Float[Array, " i"]:
    """A random person: independent normal coefficients, clipped at `limit` (ours)."""
    drawn = jax.random.normal(key, (len(model.identity_names),))
    return jnp.clip(drawn, -limit, limit)


def sample_expression(
    key: Key[Array, ""], model: head_model.HeadModel, *, count: int = 4
) -> Float[Array, " e"]:
    """A random face: on average `count` muscles or pairs of them at work (ours).

    Strengths are uniform in [0, 1]; the right one of a pair (_L, _R) has 0.7 to 1 of
    the left one's. mouthClose never exceeds jawOpen, without which it means nothing.
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
