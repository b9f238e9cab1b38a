"""Colour correction by polynomials in linear light (Cheung et al., "A comparative study
of the characterisation of colour cameras by means of neural networks and polynomial
transforms", 2004), as NeRSemble v2 hands out its matrices.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from geodiff_jax.appearance import lighting

_LINEAR = "r g b"
_MIXED = "rg rb gb"
_SQUARES = "rr gg bb"
_CUBES = "rrr ggg bbb"
_CYCLIC = "rrg ggb bbr"
_ANTICYCLIC = "rrb ggr bbg"
_QUARTIC = "rrgb rggb rgbb"
TERMS = {
    3: _LINEAR,
    4: f"{_LINEAR} 1",
    5: f"{_LINEAR} rgb 1",
    7: f"{_LINEAR} {_MIXED} 1",
    8: f"{_LINEAR} {_MIXED} rgb 1",
    10: f"{_LINEAR} {_MIXED} {_SQUARES} 1",
    11: f"{_LINEAR} {_MIXED} {_SQUARES} rgb 1",
    14: f"{_LINEAR} {_MIXED} {_SQUARES} rgb {_CUBES} 1",
    16: f"{_LINEAR} {_MIXED} {_SQUARES} rgb {_CYCLIC} {_CUBES}",
    17: f"{_LINEAR} {_MIXED} {_SQUARES} rgb {_CYCLIC} {_CUBES} 1",
    19: f"{_LINEAR} {_MIXED} {_SQUARES} rgb {_CYCLIC} {_ANTICYCLIC} {_CUBES}",
    20: f"{_LINEAR} {_MIXED} {_SQUARES} rgb {_CYCLIC} {_ANTICYCLIC} {_CUBES} 1",
    22: f"{_LINEAR} {_MIXED} {_SQUARES} rgb {_CYCLIC} {_ANTICYCLIC} {_CUBES} "
    f"{_QUARTIC}",
}
"""Monomials by their number, in the order of the colour-science package."""


def correct(
    image: Float[np.ndarray, "h w 3"], matrix: Float[np.ndarray, "3 t"]
) -> Float[np.ndarray, "h w 3"]:
    """sRGB in [0, 1] to sRGB in [0, 1]: decoded, expanded, multiplied, encoded.

    Raises ValueError for a matrix of a number of terms that is not among `TERMS`.
    """
    count = matrix.shape[-1]
    if count not in TERMS:
        raise ValueError(
            f"Expected a colour matrix of {', '.join(map(str, TERMS))} terms, got "
            f"{count}."
        )
    linear = np.asarray(lighting.linear_from_srgb(jnp.asarray(image)))
    channels = dict(zip("rgb", np.moveaxis(linear, -1, 0), strict=True))
    corrected = np.zeros_like(linear)
    for monomial, weights in zip(TERMS[count].split(), matrix.T, strict=True):
        value = np.ones(image.shape[:2], np.float32)
        for letter in monomial.strip("1"):
            value = value * channels[letter]
        corrected += value[..., None] * weights.astype(np.float32)
    return np.asarray(lighting.srgb_from_linear(jnp.asarray(corrected.clip(0, 1))))
