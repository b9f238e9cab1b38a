"""Colour that depends on the direction of view, in 3DGS's real spherical harmonics.

Signs carry the Condon-Shortley phase, as in 3DGS and gsplat. A Gaussian's colour is
0.5 + evaluate(...), cut at 0: `evaluate` leaves the half to its caller.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from geodiff_jax import numerics

COEFFICIENTS = (1, 4, 9, 16)
"""Number of coefficients by degree."""

_CONSTANT = math.sqrt(1 / (4 * math.pi))


def evaluate(
    sh: Float[Array, "n k 3"], directions: Float[Array, "n 3"]
) -> Float[Array, "n 3"]:
    """Sum of the harmonics seen along `directions` (camera to Gaussian, any length).

    Zero for grey: add 0.5 for the colour. The degree follows from k.
    """
    if sh.shape[1] not in COEFFICIENTS:
        raise ValueError(
            f"Expected 1, 4, 9 or 16 coefficients, got {sh.shape[1]}; "
            "pad the missing ones with zeros."
        )
    if sh.shape[1] == 1:
        return _CONSTANT * sh[:, 0]
    functions = basis(directions, degree=COEFFICIENTS.index(sh.shape[1]))
    return jnp.sum(functions[..., None] * sh, axis=1)


def basis(directions: Float[Array, "n 3"], *, degree: int) -> Float[Array, "n k"]:
    """The real harmonics up to `degree` <= 3, ordered by degree, then by order m."""
    x, y, z = jnp.moveaxis(numerics.normalize(directions), -1, 0)
    functions = [jnp.full_like(x, _CONSTANT)]
    if degree >= 1:
        scale = math.sqrt(3 / (4 * math.pi))
        functions += [-scale * y, scale * z, -scale * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        scale = math.sqrt(15 / (4 * math.pi))
        functions += [
            scale * x * y,
            -scale * y * z,
            math.sqrt(5 / (16 * math.pi)) * (2 * zz - xx - yy),
            -scale * x * z,
            scale / 2 * (xx - yy),
        ]
    if degree >= 3:
        outer = math.sqrt(35 / (32 * math.pi))
        middle = math.sqrt(105 / (4 * math.pi))
        inner = math.sqrt(21 / (32 * math.pi))
        functions += [
            -outer * y * (3 * xx - yy),
            middle * x * y * z,
            -inner * y * (4 * zz - xx - yy),
            math.sqrt(7 / (16 * math.pi)) * z * (2 * zz - 3 * xx - 3 * yy),
            -inner * x * (4 * zz - xx - yy),
            middle / 2 * z * (xx - yy),
            -outer * x * (xx - 3 * yy),
        ]
    return jnp.stack(functions, axis=-1)


def from_color(color: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """The constant coefficient that shows `color` from everywhere."""
    return (color - 0.5) / _CONSTANT
