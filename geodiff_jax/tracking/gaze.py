"""Eye poses from iris centres, in closed form."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import transform

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model


def eyes(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    irises: Float[np.ndarray, "2 2"],
    *,
    max_degrees: float = 40.0,
    vergence: float = 0.3,
) -> Float[Array, "2 3"]:
    """Axis-angles of the eyes whose irises project to `irises`, left then right.

    Each eyeball is turned without torsion until the iris meets the pixel's ray. Only
    the share `vergence` of the two eyes' difference is kept (ours): what lies beyond
    is the detector's noise.
    """
    rest = params.replace(eyes=jnp.zeros_like(params.eyes))
    joints = _eye_joints(head, params)
    vertices = head_model.head_vertices(head, rest)
    marks = np.asarray(landmarks.iris_positions(head, vertices), np.float64)
    rotation = transform.Rotation.from_rotvec(np.array(params.rotation, np.float64))
    rays = np.asarray(camera.unproject(jnp.asarray(irises), jnp.ones(2)), np.float64)
    eye = rotation.inv().apply(-np.asarray(params.translation, np.float64))
    directions = rotation.inv().apply(rays / np.linalg.norm(rays, axis=1)[:, None])
    turns = np.stack(
        [
            _turn(mark - joint, _meet(eye - joint, direction, mark - joint))
            for mark, joint, direction in zip(marks, joints, directions, strict=True)
        ]
    )
    mean = turns.mean(axis=0)
    turns = mean + vergence * (turns - mean)
    angle = np.linalg.norm(turns, axis=1, keepdims=True)
    limit = np.radians(max_degrees)
    return jnp.asarray(
        turns * np.minimum(1.0, limit / np.maximum(angle, 1e-9)), jnp.float32
    )


def _eye_joints(
    head: head_model.HeadModel, params: head_model.HeadParams
) -> Float[np.ndarray, "2 3"]:
    """Left, right; head frame. The neck is at rest in a fit."""
    joints = head.joint_template + jnp.einsum(
        "i,ijk->jk", params.identity, head.joint_identity_basis
    )
    left = head_model.JOINTS.index("left_eye")
    return np.asarray(joints[left : left + 2], np.float64)


def _meet(
    origin: Float[np.ndarray, "3"],
    direction: Float[np.ndarray, "3"],
    mark: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "3"]:
    """Where a ray first meets the sphere round 0 through `mark`, or passes nearest."""
    along = -origin @ direction
    nearest = origin + along * direction
    squared = mark @ mark - nearest @ nearest
    return nearest - np.sqrt(max(squared, 0.0)) * direction


def _turn(
    start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """Axis-angle of the smallest rotation between two directions."""
    axis = np.cross(start, end)
    sine = np.linalg.norm(axis)
    return axis / max(sine, 1e-12) * np.arctan2(sine, start @ end)
