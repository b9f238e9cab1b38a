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
        joint_drivers=jnp.asarray(
            procedural_expressions.joint_drivers().astype(np.float32)
        ),
        skinning_weights=jnp.asarray(weights.astype(np.float32)),
        faces=jnp.asarray(anatomy.faces.astype(np.int32)),
        uv=jnp.asarray(anatomy.uv.astype(np.float32)),
        uv_faces=jnp.asarray(anatomy.uv_faces.astype(np.int32)),
        landmarks=procedural_rig.landmark_embedding(anatomy),
        irises=procedural_rig.iris_embedding(anatomy),
        regions=procedural_rig.regions(anatomy),
        identity_names=tuple(procedural_identity.DIRECTIONS),
        expression_names=names,
        version=VERSION,
    )


def _metres(millimetres: np.ndarray) -> Float[Array, "..."]:
    return jnp.asarray(np.asarray(millimetres * METRES, np.float32))


def sample_identity(
    key: Key[Array, ""], model: head_model.HeadModel, *, limit: float = 2.5
) -> Float[Array, " i"]:
    """A random person: independent normal coefficients, clipped at `limit` (ours)."""
    drawn = jax.random.normal(key, (len(model.identity_names),))
    return jnp.clip(drawn, -limit, limit)
