"""Three-dimensional noise for textures: the same point always gets the same value."""

import numpy as np
import scipy.ndimage
from jaxtyping import Float

LATTICE = 32


def value_noise(
    points: Float[np.ndarray, "n 3"], *, wavelength: float, seed: int
) -> Float[np.ndarray, " n"]:
    """Smooth noise in about [-1, 1], decorrelated beyond `wavelength` metres.

    Trilinear value noise with smoothstep weights on a periodic lattice.
    """
    generator = np.random.default_rng(seed)
    lattice = generator.uniform(-1.0, 1.0, (LATTICE,) * 3).astype(np.float32)
    scaled = points / wavelength + generator.uniform(0.0, LATTICE, 3)
    cell = np.floor(scaled)
    fraction = scaled - cell
    fraction = fraction * fraction * (3.0 - 2.0 * fraction)
    coordinates = np.ascontiguousarray(np.mod(cell + fraction, LATTICE).T)
    return scipy.ndimage.map_coordinates(
        lattice, coordinates, order=1, mode="grid-wrap", output=np.float32
    )


def fractal(
    points: Float[np.ndarray, "n 3"], *, wavelength: float, octaves: int, seed: int
) -> Float[np.ndarray, " n"]:
    """Octaves of noise, each half as long and 0.55 as strong; about [-1, 1]."""
    total = np.zeros(len(points), np.float32)
    amplitude, sum_squares = 1.0, 0.0
    for octave in range(octaves):
        total += amplitude * value_noise(
            points, wavelength=wavelength / 2**octave, seed=seed + octave
        )
        sum_squares += amplitude**2
        amplitude *= 0.55
    return total / np.sqrt(sum_squares)


def smoothstep(
    low: float | np.floating | np.ndarray,
    high: float | np.floating | np.ndarray,
    x: Float[np.ndarray, "*b"],
) -> Float[np.ndarray, "*b"]:
    """0 at `low`, 1 at `high` (either order), smooth between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))
