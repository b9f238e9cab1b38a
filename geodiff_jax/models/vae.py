"""Codecs between pixels and the latents in which the generator works.

`AutoencoderKL` is Stable Diffusion's; `PixelShuffle` has its interface and nothing to
learn. Pixels are (*b, h, w, 3) in [-1, 1] with any leading axes, such as batch, domain,
view and time: images by `pixels_from_images`, white where there is nothing, and normal
maps as they are, (0, 0, 0) where there is nothing.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float, Key

from geodiff_jax import numerics
from geodiff_jax.models import attend, layers

NORM_EPSILON = 1e-6
LOG_VARIANCES = (-30.0, 20.0)
"""To which an encoder's are clipped (Rombach et al. 2022)."""
LINEAR_LOG_VARIANCE = -7.0
"""Of latents where a linear autoencoder's training starts; ours."""
FOREGROUND_LENGTH = 0.5
"""Decoded normals shorter than this are background; ours, half way."""


def pixels_from_images(images: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Images in [0, 1] to pixels."""
    return 2.0 * images - 1.0


def images_from_pixels(pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Decoded pixels to images, clipped to [0, 1]."""
    return jnp.clip(0.5 * pixels + 0.5, 0.0, 1.0)


def normals_from_pixels(pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Decoded pixels to unit normals, zero where they are background."""
    return numerics.normalize(pixels, epsilon=FOREGROUND_LENGTH)


@flax.struct.dataclass
class Gaussian:
    """A normal distribution of latents, each independent of the others."""

    mean: Float[Array, "*b h w z"]
    log_variance: Float[Array, "*b h w z"]

    def std(self) -> Float[Array, "*b h w z"]:
        """Standard deviations."""
        return jnp.exp(0.5 * self.log_variance)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*b h w z"]:
        """One draw."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + self.std() * noise

    def scaled(self, factor: float) -> "Gaussian":
        """The distribution of the latents times a positive factor."""
        log_variance = self.log_variance + 2.0 * jnp.log(factor)
        return Gaussian(factor * self.mean, log_variance)

    def kl_from_standard(self) -> Float[Array, "*b"]:
        """Divergence from the standard normal in nats, summed over each image."""
        excess = jnp.exp(self.log_variance) - 1.0 - self.log_variance
        return 0.5 * jnp.sum(jnp.square(self.mean) + excess, axis=(-3, -2, -1))


def frame_by_frame(
    function: Callable[[Any], Any],
    frames: Float[Array, "*b h w c"],
    *,
    at_once: int = 1,
) -> Any:
    """A codec's `function` of frames along all leading axes, a few of them at a time.

    Memory is that of `at_once` frames; results, arrays or pytrees of arrays, are those
    of `function(frames)`.
    """
    *batch, height, width, channels = frames.shape
    flat = frames.reshape(-1, height, width, channels)
    results = jax.lax.map(function, flat, batch_size=at_once)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)


class AutoencoderKL(nn.Module):
    """Stable Diffusion's variational autoencoder; defaults are those of 1.5 and 2.1.

    `init` and `apply` take pixels and return them after both ways; `apply` with
    `method="encode"`, `"posterior"` or `"decode"` goes one way.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Of the channels, per level; each level after the first halves the resolution."""
    blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    latent_channels: int = 4
    patch: int = 1
    """Pixels along each side of a square that level 0 takes for one pixel: with 2 or 4
    an autoencoder for a CPU leaves out the levels where nearly all of the time goes."""
    linear: bool = False
    """Adds a linear codec of each latent's own square of pixels, beside which the rest
    starts at nothing: for little data and little time. See `principal_squares`;
    ours (the shortcuts of Chen et al. 2025 learn nothing)."""
    scale: float = 0.18215
    """Latents for diffusion are the encoder's times this: deviation about 1."""
    dtype: DTypeLike = jnp.float32
    """Of activations; parameters, norms and results are float32."""

    @property
    def factor(self) -> int:
        """How many pixels a latent has along each side."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    def setup(self) -> None:
        """Both networks and the two layers between them."""
        sizes = (self.channels, self.multipliers, self.blocks)
        self.encoder = _Encoder(*sizes, 2 * self.latent_channels, self.dtype)
        self.decoder = _Decoder(*sizes, 3 * self.patch**2, self.linear, self.dtype)
        self.post_quant = nn.Dense(self.latent_channels)
        if not self.linear:
            self.quant = nn.Dense(2 * self.latent_channels)
            return
        zeros = nn.initializers.zeros_init()
        self.quant = nn.Dense(2 * self.latent_channels, kernel_init=zeros)
        self.linear_in = nn.Dense(self.latent_channels)
        self.linear_out = nn.Dense(3 * self.factor**2)

    def __call__(self, pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
        """Pixels decoded from the most likely latents."""
        return self.decode(self.encode(pixels).mean)

    def posterior(self, pixels: Float[Array, "*b h w 3"]) -> Gaussian:
        """The encoder's latents before `scale`: those of which training takes the KL.

        Raises:
          ValueError: height or width that `factor` does not divide.
        """
        _check_divides(self.factor, pixels.shape)
        squares = _channels_from_squares(pixels, self.patch)
        moments = self.quant(self.encoder(squares).astype(jnp.float32))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        if self.linear:
            mean += self.linear_in(_channels_from_squares(pixels, self.factor))
            log_variance += LINEAR_LOG_VARIANCE
        return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCES))

    def encode(self, pixels: Float[Array, "*b h w 3"]) -> Gaussian:
        """Latents for diffusion: their mean, or a sample."""
        return self.posterior(pixels).scaled(self.scale)

    def decode(self, latents: Float[Array, "*b h w z"]) -> Float[Array, "*b hh ww 3"]:
        """Pixels from latents for diffusion, a little beyond [-1, 1] at times."""
        latents = latents / self.scale
        squares = self.decoder(self.post_quant(latents)).astype(jnp.float32)
        pixels = _squares_from_channels(squares, self.patch)
        if self.linear:
            pixels += _squares_from_channels(self.linear_out(latents), self.factor)
        return pixels


class PixelShuffle(nn.Module):
    """A codec with nothing to learn: each square of pixels is one latent, and back.

    The inverse is exact. For tests, and to train where no autoencoder is at hand.
    """

    factor: int = 8
    """How many pixels a latent has along each side."""

    @property
    def latent_channels(self) -> int:
        """All numbers of a square."""
        return 3 * self.factor**2

    def __call__(self, pixels: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
        """The same pixels."""
        return self.decode(self.encode(pixels).mean)

    def posterior(self, pixels: Float[Array, "*b h w 3"]) -> Gaussian:
        """Certain: every sample is the mean.

        Raises:
          ValueError: height or width that `factor` does not divide.
        """
        _check_divides(self.factor, pixels.shape)
        mean = _channels_from_squares(pixels, self.factor)
        return Gaussian(mean, jnp.full_like(mean, -jnp.inf))

    def encode(self, pixels: Float[Array, "*b h w 3"]) -> Gaussian:
        """The latents are the pixels, so their scale is 1."""
        return self.posterior(pixels)

    def decode(self, latents: Float[Array, "*b h w z"]) -> Float[Array, "*b hh ww 3"]:
        """Pixels from latents."""
        return _squares_from_channels(latents, self.factor)


class _Encoder(nn.Module):
    """Pixels, or squares of them as channels, to moments; level 0 is the largest."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    out_channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b hh ww z"]:
        dtype = self.dtype
        x = layers.conv(self.channels, dtype=dtype, name="conv_in")(x)
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                x = _block(multiplier * self.channels, dtype, f"down{level}_{i}")(x)
            if level < len(self.multipliers) - 1:
                down = layers.Downsample((0, 1), dtype, name=f"downsample{level}")
                x = down(x)
        x = _Middle(dtype, name="middle")(x)
        return _head(self.out_channels, x, dtype)


class _Decoder(nn.Module):
    """Latents to what the encoder takes; level 0 is the largest."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    out_channels: int
    zero: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w z"]) -> Float[Array, "*b hh ww c"]:
        dtype = self.dtype
        widest = self.multipliers[-1] * self.channels
        x = layers.conv(widest, dtype=dtype, name="conv_in")(x)
        x = _Middle(dtype, name="middle")(x)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                x = _block(multiplier * self.channels, dtype, f"up{level}_{i}")(x)
            if level:
                x = layers.Upsample(dtype, name=f"upsample{level}")(x)
        return _head(self.out_channels, x, dtype, zero=self.zero)


class _Middle(nn.Module):
    """Between both ways: the only place where all pixels see each other."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        x = _block(x.shape[-1], self.dtype, "block1")(x)
        x = _PixelAttention(self.dtype, name="attention")(x)
        return _block(x.shape[-1], self.dtype, "block2")(x)


class _PixelAttention(nn.Module):
    """Self-attention of one head, with biases, added to its input."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        *batch, height, width, channels = x.shape
        y = layers.GroupNorm(NORM_EPSILON, self.dtype, name="norm")(x)
        y = y.reshape(*batch, height * width, channels)
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(y)[..., None, :]
            for name in ("to_q", "to_k", "to_v")
        )
        y = attend.attend(query, key, value).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, name="to_out")(y)


def _block(features: int, dtype: DTypeLike, name: str) -> layers.ResBlock:
    return layers.ResBlock(features, NORM_EPSILON, dtype, name=name)


def _head(
    features: int, x: jax.Array, dtype: DTypeLike, *, zero: bool = False
) -> jax.Array:
    """How both networks end; called inside their `__call__`."""
    x = nn.silu(layers.GroupNorm(NORM_EPSILON, dtype, name="norm_out")(x))
    return layers.conv(features, dtype=dtype, zero=zero, name="conv_out")(x)


def principal_squares(
    module: AutoencoderKL, pixels: Float[np.ndarray, "*b y x 3"]
) -> dict[str, Any]:
    """Parameters of a linear codec that keeps the principal components of squares.

    As good as a linear codec of squares can be for these pictures (Eckart and Young
    1936). Latents are as long as pixels (ours), so that a loss of latents is one of
    pixels. Host arrays.

    Raises:
      ValueError: a module that is not `linear`, or with more latent channels than a
        square has numbers.
    """
    if not module.linear:
        raise ValueError(f"Expected a linear autoencoder, got {module}.")
    numbers = 3 * module.factor**2
    if module.latent_channels > numbers:
        raise ValueError(
            f"Expected at most {numbers} latent channels, the numbers of a square of "
            f"{module.factor} x {module.factor} pixels, got {module.latent_channels}."
        )
    squares = np.asarray(_channels_from_squares(jnp.asarray(pixels), module.factor))
    squares = squares.reshape(-1, numbers).astype(np.float64)
    mean = squares.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(squares, rowvar=False))
    basis = vectors[:, : -module.latent_channels - 1 : -1]
    linear = {
        "linear_in": {"kernel": basis, "bias": -mean @ basis},
        "linear_out": {"kernel": basis.T, "bias": mean},
    }
    return jax.tree.map(np.float32, linear)


def _channels_from_squares(
    pixels: Float[Array, "*b y x 3"], side: int
) -> Float[Array, "*b h w c"]:
    """Each square of pixels as one: row by row, the three colours together."""
    *batch, height, width, _ = pixels.shape
    rows, columns = height // side, width // side
    squares = pixels.reshape(*batch, rows, side, columns, side, 3).swapaxes(-4, -3)
    return squares.reshape(*batch, rows, columns, 3 * side**2)


def _squares_from_channels(
    values: Float[Array, "*b h w c"], side: int
) -> Float[Array, "*b y x 3"]:
    """The inverse of `_channels_from_squares`."""
    *batch, rows, columns, _ = values.shape
    squares = values.reshape(*batch, rows, columns, side, side, 3).swapaxes(-4, -3)
    return squares.reshape(*batch, rows * side, columns * side, 3)


def _check_divides(factor: int, shape: tuple[int, ...]) -> None:
    height, width = shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(
            f"Expected height and width in multiples of {factor} pixels, got "
            f"{height} x {width}; resize or crop them."
        )
