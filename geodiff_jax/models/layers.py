"""What the networks of images are built of, exact to Stable Diffusion's.

Arrays are (*b, h, w, c) with any leading axes; nothing here looks across them.
Parameters are float32, `dtype` is that of activations, norms compute in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float, Num

from geodiff_jax.models import convolution

NORM_GROUPS = 32
NORM_EPSILON = 1e-5
LONGEST_PERIOD = 10_000.0
WIDENING = 4
"""Of feed-forward layers."""


def timestep_embedding(t: Num[Array, "*b"], width: int) -> Float[Array, "*b w"]:
    """Cosines, then sines, of t at frequencies from 1 to almost 1/10,000."""
    exponents = jnp.arange(width // 2, dtype=jnp.float32) / (width // 2)
    angles = t[..., None].astype(jnp.float32) * LONGEST_PERIOD**-exponents
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class GroupNorm(nn.Module):
    """Norm over the pixels and the channels of each group, image by image.

    There are 32 groups, or fewer if 32 does not divide the channels of a toy.
    """

    epsilon: float = NORM_EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """Mean 0, variance 1, then a scale and bias per channel."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        y = x.astype(jnp.float32)
        # Pixels first: XLA:CPU sums whole rows of channels at once.
        y = y - _over_groups(y.mean((-3, -2)))
        variance = _over_groups(jnp.square(y).mean((-3, -2)))
        return (y * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(
            self.dtype
        )


def _over_groups(means: Float[Array, "*b c"]) -> Float[Array, "*b 1 1 c"]:
    """Channels' means to those of their groups."""
    channels = means.shape[-1]
    groups = math.gcd(NORM_GROUPS, channels)
    means = means.reshape(*means.shape[:-1], groups, channels // groups).mean(-1)
    return jnp.repeat(means, channels // groups, axis=-1)[..., None, None, :]


class LayerNorm(nn.Module):
    """Norm over channels in float32, handed on as `dtype`."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Mean 0, variance 1, then a scale and bias per channel."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        variance = jnp.square(y).mean(-1, keepdims=True)
        return (y * jax.lax.rsqrt(variance + NORM_EPSILON) * scale + bias).astype(
            self.dtype
        )


class ResBlock(nn.Module):
    """Twice norm, SiLU and a 3x3 convolution, added to the input (Rombach et al. 2022).

    The input passes a convolution of one pixel where widths differ. The second
    convolution starts at zero.
    """

    features: int
    epsilon: float = NORM_EPSILON
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*b h w c"],
        embedding: Float[Array, "*#b e"] | None = None,
    ) -> Float[Array, "*b h w d"]:
        """`embedding`, of time and whatever else, is projected and added between."""
        dtype = self.dtype
        y = nn.silu(GroupNorm(self.epsilon, dtype, name="norm1")(x))
        y = conv(self.features, dtype=dtype, name="conv1")(y)
        if embedding is not None:
            shift = nn.Dense(self.features, dtype=dtype, name="embedding")
            y = y + shift(nn.silu(embedding))[..., None, None, :]
        y = nn.silu(GroupNorm(self.epsilon, dtype, name="norm2")(y))
        y = conv(self.features, dtype=dtype, zero=True, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=dtype, name="skip")(x)
        return x + y


class Downsample(nn.Module):
    """A convolution that halves height and width, and keeps the channels."""

    padding: tuple[int, int] = (1, 1)
    """Before and after, on both axes; Stable Diffusion's VAE pads (0, 1)."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b hh ww c"]:
        """Odd sizes are rounded up by even padding."""
        return nn.Conv(
            x.shape[-1],
            (3, 3),
            strides=2,
            padding=[self.padding, self.padding],
            dtype=self.dtype,
            conv_general_dilated=convolution.convolve,
            name="conv",
        )(x)


class Upsample(nn.Module):
    """Every pixel becomes four, then a convolution that keeps the channels."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b hh ww c"]:
        """Twice the height and width."""
        return _ConvOfFour(self.dtype, name="conv")(x)


class _ConvOfFour(nn.Module):
    """A 3x3 convolution of a map whose pixels are each repeated to be 2x2.

    Its nine taps fall on four different pixels, which ones depends on where in its 2x2
    a result lies: four convolutions of 2x2 summed taps, in 4/9 of the arithmetic.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b hh ww c"]:
        *batch, height, width, channels = x.shape
        start, shape = nn.initializers.lecun_normal(), (3, 3, channels, channels)
        kernel = self.param("kernel", start, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x = x.reshape(-1, height, width, channels).astype(self.dtype)

        def results(i: int, j: int) -> jax.Array:
            """Those in row i and column j of every 2x2."""
            taps = _sum_taps(_sum_taps(kernel, i, axis=0), j, axis=1)
            return convolution.convolve(
                x,
                taps.astype(self.dtype),
                strides=(1, 1),
                padding=[(1 - i, i), (1 - j, j)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        rows = [jnp.stack([results(i, 0), results(i, 1)], axis=3) for i in (0, 1)]
        y = jnp.stack(rows, axis=2) + bias.astype(self.dtype)
        return y.reshape(*batch, 2 * height, 2 * width, channels)


def _sum_taps(kernel: jax.Array, place: int, *, axis: int) -> jax.Array:
    """Three taps to two, for the first or the second of two equal pixels."""
    before, here, after = jnp.split(kernel, 3, axis)
    pair = (before, here + after) if place == 0 else (before + here, after)
    return jnp.concatenate(pair, axis)


class FeedForward(nn.Module):
    """A perceptron of one hidden layer, gated by an exact GELU (Shazeer 2020)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """The first half of the hidden layer is the value, the second its gate."""
        width = x.shape[-1]
        x = nn.Dense(2 * WIDENING * width, dtype=self.dtype, name="expand")(x)
        x, gate = jnp.split(x, 2, axis=-1)
        x = x * nn.gelu(gate, approximate=False)
        return nn.Dense(width, dtype=self.dtype, name="contract")(x)


def conv(features: int, *, dtype: DTypeLike, name: str, zero: bool = False) -> nn.Conv:
    """A 3x3 convolution that keeps height and width; `zero` is how it starts."""
    start = nn.initializers.zeros_init() if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        features,
        (3, 3),
        padding=1,
        dtype=dtype,
        kernel_init=start,
        conv_general_dilated=convolution.convolve,
        name=name,
    )
