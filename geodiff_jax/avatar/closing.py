"""No camera sees through a face: what a fit left thin is closed."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.metrics import region as metric_region


def close_face(
    avatar: Avatar,
    cameras: Sequence[Camera],
    *,
    longest: float,
    opaque: float = 0.985,
    growth: float = 1.15,
    rounds: int = 8,
    backend: str | None = None,
) -> Avatar:
    """The avatar with thin spots of its face closed, as the cameras see them.

    Where the face lets more than 1 - `opaque` through, the closing Gaussians (each
    triangle's first, see `start`) of the triangles seen there grow by `growth` a round,
    until a standard deviation has `longest` metres. Few pixels of a few triangles:
    colours stay as they are. Values are ours.
    """
    draw = jax.jit(functools.partial(avatar_model.render, backend=backend))
    seen = [
        metric_region.face_triangles(avatar.head, avatar.params, camera)
        for camera in cameras
    ]
    bound = np.asarray(avatar.binding.face)
    closing = np.zeros(len(bound), bool)
    closing[np.unique(bound, return_index=True)[1]] = True
    for _ in range(rounds):
        thin = np.zeros(len(avatar.head.faces), bool)
        for camera, face in zip(cameras, seen, strict=True):
            alpha = np.asarray(draw(avatar, avatar.params, camera).alpha)
            thin[face[(face >= 0) & (alpha < opaque)]] = True
        if not thin.any():
            break
        avatar = _grown(avatar, closing & thin[bound], growth, longest)
    return avatar


def _grown(
    avatar: Avatar, chosen: Bool[np.ndarray, " n"], growth: float, longest: float
) -> Avatar:
    world = avatar_model.pose(avatar, avatar.params).log_scales
    step = jnp.minimum(np.log(growth), np.log(longest) - world)
    step = jnp.where(chosen[:, None], jnp.maximum(step, 0.0), 0.0)
    gaussians = avatar.gaussians
    return avatar.replace(
        gaussians=gaussians.replace(log_scales=gaussians.log_scales + step)
    )
