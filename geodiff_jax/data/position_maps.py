"""GeoFace's geometry as a picture: the posed head's chart, for an autoencoder.

Paper 003 says that geometry is a canonical UV position map, and of its axes and scale
nothing: these are ours. Positions are about the head's origin, in the axes of the
picture's own camera. So a map tells the turn of the head beside its expression, in the
axes of Plücker rays where this picture is the first reference, and stays within bounds
wherever a dataset has its world. In numpy, as all that workers run.
"""

import numpy as np
from jaxtyping import Bool, Float

from geodiff_jax.data import rays

EXTENT = 0.3
"""Metres from the head's origin that are 1: FLAME's neck ends closer than that."""

Positions = Float[np.ndarray, "*b h w 3"]


def pixels_from_positions(
    positions: Positions,
    camera_from_world: Float[np.ndarray, "7"],
    origin: Float[np.ndarray, "3"],
) -> Positions:
    """Values in [-1, 1]: x right, y down, z away; zero where positions are, which is
    outside the chart.

    `positions` and the head's `origin`, its translation, are metres in the world; of
    the camera (wxyz, metres) only the turn counts. Clipped beyond `EXTENT`.
    """
    turn = _turn(camera_from_world)
    local = (positions - np.asarray(origin, np.float32)) @ turn.T / EXTENT
    covered = np.any(positions != 0.0, axis=-1, keepdims=True)
    return np.where(covered, np.clip(local, -1.0, 1.0), 0.0).astype(np.float32)


def positions_from_pixels(
    pixels: Positions,
    covered: Bool[np.ndarray, "h w"],
    camera_from_world: Float[np.ndarray, "7"],
    origin: Float[np.ndarray, "3"],
) -> Positions:
    """Inverts `pixels_from_positions` where the chart is `covered`; zero elsewhere."""
    turn = _turn(camera_from_world)
    positions = pixels * EXTENT @ turn + np.asarray(origin, np.float32)
    return np.where(covered[..., None], positions, 0.0).astype(np.float32)


def resize(positions: Positions, *, size: int) -> Float[np.ndarray, "*b size size 3"]:
    """Another number of texels, each the one nearest to its centre: means of what lies
    on both sides of a seam would be inside the head."""
    nearest = (np.arange(size) + 0.5) * positions.shape[-2] / size
    texels = nearest.astype(int)
    return positions[..., texels[:, None], texels, :]


def _turn(camera_from_world: Float[np.ndarray, "7"]) -> Float[np.ndarray, "3 3"]:
    pose = np.asarray(camera_from_world, np.float64)
    return rays.rotation(pose[:4]).astype(np.float32)
