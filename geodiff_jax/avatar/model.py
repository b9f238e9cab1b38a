"""The avatar: Gaussians that ride on the triangles of a personal head."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from geodiff_jax import numerics
from geodiff_jax.gaussians import binding as gaussian_binding
from geodiff_jax.gaussians import spherical_harmonics
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import splatting

SKIN, HAIR = 0, 1
"""Layers: skin stays on the surface, hair may leave it."""


@flax.struct.dataclass
class Avatar:
    """A person: the head, the pose in which it was seen, and its Gaussians."""

    head: head_model.HeadModel
    """The personal head: vertex offsets are part of its template."""
    params: head_model.HeadParams
    """Identity, and the pose and expression of the source frame."""
    gaussians: Gaussians
    """In the frames of their triangles (GaussianAvatars, Sec 3.2)."""
    binding: gaussian_binding.Binding
    layer: Int[Array, " n"]
    """`SKIN` or `HAIR`."""


def pose(avatar: Avatar, params: head_model.HeadParams) -> Gaussians:
    """The avatar's Gaussians in the world, under any parameters of its head."""
    posed = head_model.vertices(avatar.head, params)
    return gaussian_binding.to_world(
        avatar.gaussians, avatar.binding, posed, avatar.head.faces
    )


def render(
    avatar: Avatar,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    background: Float[Array, "3"] | None = None,
    backend: str | None = None,
) -> splatting.Splat:
    """Colour and opacity of the posed avatar; white background unless given."""
    world = pose(avatar, params)
    white = jnp.ones(3, world.means.dtype) if background is None else background
    return splatting.splat(
        world, colors(world, camera), camera, background=white, backend=backend
    )


def colors(gaussians: Gaussians, camera: Camera) -> Float[Array, "n 3"]:
    """What each world-space Gaussian shows to the camera, at least 0."""
    directions = gaussians.means - camera.position
    return jnp.maximum(
        spherical_harmonics.evaluate(gaussians.sh, directions) + 0.5, 0.0
    )


def normals(
    avatar: Avatar,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    backend: str | None = None,
) -> Float[Array, "h w 3"]:
    """Normal map of the posed avatar: camera-aligned, y up, z towards the viewer.

    Unit where the avatar covers more than half a pixel, zero elsewhere (001 §3.3 takes
    the shortest axis of each Gaussian as its normal, turned to face the camera).
    """
    world = pose(avatar, params)
    axis = world.shortest_axis()
    towards = camera.position - world.means
    facing = jnp.sum(axis * towards, axis=-1, keepdims=True)
    axis = jnp.where(facing < 0, -axis, axis)
    rotation = camera.camera_from_world.rotation().as_matrix()
    local = axis @ rotation.T * jnp.asarray([1.0, -1.0, -1.0], axis.dtype)
    view = splatting.splat(world, local, camera, backend=backend)
    return jnp.where(view.alpha[..., None] > 0.5, numerics.normalize(view.image), 0.0)
