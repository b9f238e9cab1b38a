"""PSNR, SSIM and L1 of images in [0, 1], over the whole frame or inside a mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from geodiff_jax import numerics

Mask = Bool[Array, "h w"] | Float[Array, "h w"]

_RADIUS = 5
_SIGMA = 1.5
_WEIGHTS = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
_WINDOW = tuple(float(weight) for weight in _WEIGHTS / _WEIGHTS.sum())
_LEAST_MSE = 1e-10


def l1(
    image: Float[Array, "h w c"],
    truth: Float[Array, "h w c"],
    *,
    mask: Mask | None = None,
) -> Float[Array, ""]:
    """Mean absolute difference."""
    return _mean(jnp.abs(image - truth), mask)


def psnr(
    image: Float[Array, "h w c"],
    truth: Float[Array, "h w c"],
    *,
    mask: Mask | None = None,
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB; 100 for equal images."""
    mse = _mean((image - truth) ** 2, mask)
    return -10.0 * jnp.log10(jnp.maximum(mse, _LEAST_MSE))


def ssim(
    image: Float[Array, "h w c"],
    truth: Float[Array, "h w c"],
    *,
    mask: Mask | None = None,
) -> Float[Array, ""]:
    """Mean structural similarity, of the pixels whose whole window is in the frame.

    The mask chooses pixels of the map; their windows may look beyond the mask.
    """
    inner = None if mask is None else mask[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    return _mean(ssim_map(image, truth), inner)


def ssim_map(
    image: Float[Array, "h w c"], truth: Float[Array, "h w c"]
) -> Float[Array, "h-10 w-10 c"]:
    """Structural similarity per pixel and channel (Wang et al. 2004, Eq. 13).

    Gaussian window of 11 pixels, sigma 1.5, and variances of the population. Only
    pixels with a whole window: 5 are missing on each side.
    """
    if min(image.shape[:2]) <= 2 * _RADIUS:
        raise ValueError(
            f"Expected images of at least 11 x 11 pixels, got {image.shape[:2]}; "
            "SSIM's window does not fit into less."
        )
    x, y = jnp.moveaxis(image, -1, 0), jnp.moveaxis(truth, -1, 0)
    # Only the sum of both variances is needed, so four moments do for five.
    # One array of three axes: stacked along a fourth, XLA:CPU's adjoint is slower.
    moments = _blur(jnp.concatenate([x, y, x * x + y * y, x * y]))
    mean_x, mean_y, squares, product = jnp.split(moments, 4)
    means = mean_x * mean_x + mean_y * mean_y
    variances = squares - means
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((means + c1) * (variances + c2))
    return jnp.moveaxis(similarity, 0, -1)


def _mean(values: Float[Array, "h w c"], mask: Mask | None) -> Float[Array, ""]:
    if mask is None:
        return jnp.mean(values)
    return numerics.masked_mean(values, mask.astype(values.dtype)[..., None])


@jax.custom_vjp
def _blur(images: Float[Array, "*b h w"]) -> Float[Array, "*b h-10 w-10"]:
    """Separable window over the last two axes, where it fits."""
    height, width = (size - 2 * _RADIUS for size in images.shape[-2:])
    columns = [w * images[..., i : i + height, :] for i, w in enumerate(_WINDOW)]
    blurred = functools.reduce(jnp.add, columns)
    rows = [w * blurred[..., i : i + width] for i, w in enumerate(_WINDOW)]
    return functools.reduce(jnp.add, rows)


def _blur_forward(
    images: Float[Array, "*b h w"],
) -> tuple[Float[Array, "*b h-10 w-10"], None]:
    return _blur(images), None


def _blur_backward(
    _: None, cotangent: Float[Array, "*b h w"]
) -> tuple[Float[Array, "*b h+10 w+10"]]:
    # The window is symmetric, so the adjoint is the same sum over the padded cotangent.
    # XLA:CPU's own adjoint, eleven pads and adds, takes ten times as long.
    margin = [(0, 0)] * (cotangent.ndim - 2) + [(2 * _RADIUS, 2 * _RADIUS)] * 2
    return (_blur(jnp.pad(cotangent, margin)),)


_blur.defvjp(_blur_forward, _blur_backward)
