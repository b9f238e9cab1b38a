"""A head of random numbers: it looks like nothing and obeys every law."""

import jax.numpy as jnp
import numpy as np

from geodiff_jax.head import model as head_model

NUM_VERTICES, NUM_IDENTITIES, NUM_EXPRESSIONS = 30, 4, 3


def load(seed: int = 0) -> head_model.HeadModel:
    """Thirty vertices, every basis and driver in use."""
    rng = np.random.default_rng(seed)
    v, i, e = NUM_VERTICES, NUM_IDENTITIES, NUM_EXPRESSIONS

    def normal(*shape: int, scale: float = 0.01):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    def marks(count: int) -> head_model.LandmarkEmbedding:
        barycentrics = rng.dirichlet(np.ones(3), count)
        return head_model.LandmarkEmbedding(
            jnp.asarray(rng.integers(0, 40, count)),
            jnp.asarray(barycentrics, jnp.float32),
        )

    faces = np.stack([rng.permutation(v)[:3] for _ in range(40)])
    return head_model.HeadModel(
        template=normal(v, 3, scale=0.1),
        identity_basis=normal(i, v, 3),
        expression_basis=normal(e, v, 3),
        eyelid_basis=normal(2, v, 3),
        joint_template=normal(5, 3, scale=0.05),
        joint_identity_basis=normal(i, 5, 3),
        joint_drivers=normal(e, 5, 3, scale=0.1),
        skinning_weights=jnp.asarray(rng.dirichlet(np.ones(5), v), jnp.float32),
        faces=jnp.asarray(faces),
        uv=jnp.asarray(rng.random((v, 2)), jnp.float32),
        uv_faces=jnp.asarray(faces),
        landmarks=marks(68),
        irises=marks(2),
        regions={name: jnp.asarray(rng.random(v) < 0.5) for name in head_model.REGIONS},
        identity_names=tuple(f"identity{k}" for k in range(i)),
        expression_names=tuple(f"expression{k}" for k in range(e)),
        version="random-1",
        joint_expression_basis=normal(e, 5, 3),
        pose_basis=normal(36, v, 3),
    )


def params(seed: int = 0, batch: tuple[int, ...] = ()) -> head_model.HeadParams:
    """Any person in any pose."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.5):
        return jnp.asarray(scale * rng.normal(size=batch + shape), jnp.float32)

    return head_model.HeadParams(
        identity=normal(NUM_IDENTITIES),
        expression=normal(NUM_EXPRESSIONS),
        eyelids=normal(2),
        neck=normal(3),
        jaw=normal(3),
        eyes=normal(2, 3),
        rotation=normal(3),
        translation=normal(3),
    )
