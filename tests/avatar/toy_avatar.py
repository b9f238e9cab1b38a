"""An avatar on the ball: its photo has a different colour in every quarter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.avatar import losses, start
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.metrics import region as metric_region
from tests.avatar import toy_head

SIZE = 96


def photo(size: int = SIZE) -> np.ndarray:
    """Red above, blue below, green to the right; smooth, so a small avatar fits it."""
    axis = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    return np.stack([1 - y, 0.2 + 0.6 * x, y], axis=-1)


def matte(size: int = SIZE) -> np.ndarray:
    """The ball's own outline."""
    sine = toy_head.RADIUS / toy_head.DISTANCE
    radius = float(toy_head.camera(size).intrinsics[0]) * sine / np.sqrt(1 - sine**2)
    return toy_head.disc(size, radius).astype(float)


@functools.cache
def load() -> Avatar:
    """Started from the photo, not optimised."""
    head = toy_head.load()
    params = toy_head.params(head)
    camera = toy_head.camera(SIZE)
    region = metric_region.head_region(head, params, camera, matte(), edge=0)
    return start.start_avatar(
        jax.random.key(0),
        head,
        params,
        camera,
        photo(),
        matte(),
        region,
        np.full((head.num_vertices, 3), 0.5),
        config=start.StartConfig(skin_count=3000, hair_count=500, outline_count=200),
    )


def view(size: int) -> losses.View:
    """The photo as a target at any size."""
    head = toy_head.load()
    params = toy_head.params(head)
    camera = toy_head.camera(size)
    region = metric_region.head_region(head, params, camera, matte(size), edge=0)
    return losses.View(
        camera=camera,
        image=jnp.asarray(photo(size), jnp.float32),
        matte=jnp.asarray(matte(size), jnp.float32),
        region=jnp.asarray(region),
        empty=jnp.asarray(matte(size) < 0.5),
    )
