"""Eye poses from iris centres, in closed form."""

import numpy as np
from jaxtyping import Float


def eyes(
    joints: Float[np.ndarray, "2 3"],
    irises: Float[np.ndarray, "2 3"],
    rays: Float[np.ndarray, "2 3"],
    camera_from_head: Float[np.ndarray, "3 3"],
    *,
    max_degrees: float = 40.0,
    vergence: float = 0.3,
) -> Float[np.ndarray, "2 3"]:
    """Axis-angles in the head frame that turn the irises onto their pixels' rays.

    Joints and irises at rest, rays from the origin, all in the camera frame; the left
    eye first. Each eyeball turns without torsion. Only the share `vergence` of the two
    eyes' difference is kept (ours): what lies beyond is the detector's noise.
    """
    arms = irises - joints
    directions = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    turns = np.stack(
        [
            _turn(arm, _meet(-joint, direction, arm))
            for arm, joint, direction in zip(arms, joints, directions, strict=True)
        ]
    )
    mean = turns.mean(axis=0)
    turns = mean + vergence * (turns - mean)
    angle = np.linalg.norm(turns, axis=1, keepdims=True)
    bounded = np.minimum(1.0, np.radians(max_degrees) / np.maximum(angle, 1e-9))
    return (turns * bounded) @ camera_from_head


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
