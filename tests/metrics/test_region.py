"""Where image metrics look."""

import jax.numpy as jnp
import numpy as np

from geodiff_jax.metrics import region
from tests.avatar import toy_head

SIZE = 96


def with_shoulders(head):
    """The ball on a wide, upright square that begins at its lower ring."""
    rest = np.asarray(head.template)
    top = rest[np.asarray(head.regions["boundary"]), 1].max()
    x, y = np.meshgrid([-0.2, 0.2], [top - 0.1, top])
    square = np.stack([x.ravel(), y.ravel(), np.zeros(4)], axis=1)
    faces = len(rest) + np.array([[0, 1, 3], [0, 3, 2]])
    regions = {
        name: jnp.concatenate([mask, jnp.full(4, name in ("neck", "boundary"))])
        for name, mask in head.regions.items()
    }
    grown = {
        name: jnp.concatenate([getattr(head, name), jnp.zeros((count, 4, 3))], axis=1)
        for name, count in (
            ("identity_basis", 1),
            ("expression_basis", 1),
            ("eyelid_basis", 2),
        )
    }
    weights = head.skinning_weights
    return head.replace(
        template=jnp.asarray(np.concatenate([rest, square]), jnp.float32),
        faces=jnp.concatenate([head.faces, jnp.asarray(faces, jnp.int32)]),
        skinning_weights=jnp.concatenate([weights, weights[:4]]),
        regions=regions,
        **grown,
    )


def test_shoulders_change_nothing():
    head = toy_head.load()
    params, camera = toy_head.params(head), toy_head.camera(SIZE)
    matte = np.ones((SIZE, SIZE))
    alone = region.head_region(head, params, camera, matte, edge=0)
    worn = with_shoulders(head)
    np.testing.assert_array_equal(
        region.cover(worn, params, camera), region.cover(head, params, camera)
    )
    np.testing.assert_array_equal(
        region.head_region(worn, params, camera, matte, edge=0), alone
    )
    assert 0.3 < alone.mean() < 0.9
