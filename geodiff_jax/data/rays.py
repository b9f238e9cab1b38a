"""Ray maps of stored cameras, in numpy: workers that read data leave JAX alone.

The twins of `condition_maps.ray_map` and `plucker_map`, which say what they mean.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

Record = Mapping[str, Any]
"""With `camera_from_world` (wxyz, metres) and `intrinsics`, as `schema` stores them."""


def ray_map(
    record: Record, reference: Record, *, size: int, pixels: int
) -> Float[np.ndarray, "size size 3"]:
    """Unit directions in the reference camera's axes, on CAP4D's grid.

    `pixels` is the side of the picture that the intrinsics are of.
    """
    turn, _ = _reference_from_camera(record, reference)
    return _turned(record, turn, size=size, pixels=pixels, offset=0.0)


def plucker_map(
    record: Record, reference: Record, *, size: int, pixels: int
) -> Float[np.ndarray, "size size 6"]:
    """Plücker coordinates of rays in the reference camera's frame (GeoFace)."""
    turn, origin = _reference_from_camera(record, reference)
    directions = _turned(record, turn, size=size, pixels=pixels, offset=0.5)
    moments = np.cross(np.broadcast_to(origin, directions.shape), directions)
    return np.concatenate([directions, moments], axis=-1).astype(np.float32)


def in_camera(
    positions: Float[np.ndarray, "*b 3"], camera_from_world: Float[np.ndarray, "7"]
) -> Float[np.ndarray, "*b 3"]:
    """Positions of the world in the camera's axes; zeros, which are none, stay zero."""
    pose = np.asarray(camera_from_world, np.float64)
    seen = positions @ np.float32(rotation(pose[:4]).T) + np.float32(pose[4:])
    return np.where(np.any(positions != 0.0, axis=-1, keepdims=True), seen, 0.0)


def rotation(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """The matrix of a unit quaternion wxyz."""
    w, (x, y, z) = quaternion[0], quaternion[1:]
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + 2.0 * w * cross + 2.0 * cross @ cross


def _turned(
    record: Record,
    turn: Float[np.ndarray, "3 3"],
    *,
    size: int,
    pixels: int,
    offset: float,
) -> Float[np.ndarray, "size size 3"]:
    fx, fy, cx, cy = np.asarray(record["intrinsics"], np.float64) * size / pixels
    grid = np.arange(size) + offset
    x, y = np.meshgrid((grid - cx) / fx, (grid - cy) / fy)
    directions = np.stack([x, y, np.ones_like(x)], axis=-1) @ turn.T
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    return (directions / length).astype(np.float32)


def _reference_from_camera(
    record: Record, reference: Record
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    own, other = (
        (rotation(pose[:4]), pose[4:])
        for pose in (
            np.asarray(record["camera_from_world"], np.float64),
            np.asarray(reference["camera_from_world"], np.float64),
        )
    )
    turn = other[0] @ own[0].T
    return turn, other[1] - turn @ own[1]
