"""Cameras from which a head is to be seen anew, as CAP4D draws them (supplement)."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Key

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import condition_maps

FACING = np.diag([1.0, -1.0, -1.0])
"""A camera's axes from those of the head that looks into it."""


def frontal(
    model: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> Camera:
    """The camera moved in front of the face, the head's centre in its place.

    The centre keeps its pixel and its depth. One frame; its neck is not looked at.
    """
    pivot = centre(model, params)
    turn = jaxlie.SO3.from_matrix(jnp.asarray(FACING, pivot.dtype))
    rotation = turn @ jaxlie.SO3.exp(params.rotation).inverse()
    shift = camera.camera_from_world @ pivot - rotation @ pivot
    pose = jaxlie.SE3.from_rotation_and_translation(rotation, shift)
    return camera.replace(camera_from_world=pose)


def draw(
    key: Key[Array, ""],
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    count: int,
    yaw_radians: float = np.radians(55.0),
    pitch_radians: float = np.radians(20.0),
) -> Camera:
    """`count` cameras round a head as far away as `camera`, along a leading axis.

    Uniform in the ellipse of these half axes about the face's front; the values are
    those of CAP4D's code.
    """
    radius_key, angle_key = jax.random.split(key)
    radius = jnp.sqrt(jax.random.uniform(radius_key, (count,)))
    angle = 2.0 * jnp.pi * jax.random.uniform(angle_key, (count,))
    front, pivot = frontal(model, params, camera), centre(model, params)

    def one(yaw: Array, pitch: Array) -> Camera:
        return cameras.orbit(front, pivot, yaw_radians=yaw, pitch_radians=pitch)

    yaws = yaw_radians * radius * jnp.cos(angle)
    return jax.vmap(one)(yaws, pitch_radians * radius * jnp.sin(angle))


def centre(model: head_model.HeadModel, params: head_model.HeadParams) -> Array:
    """The mean of the head's vertices without its lower neck, world (ours)."""
    counted = condition_maps.head_vertices(model)[:, None]
    points = head_model.vertices(model, params)
    return jnp.sum(points * counted, axis=-2) / jnp.sum(counted)
