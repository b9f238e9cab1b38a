"""Pose-free expression encoder: a crop of a face to an expression (GeoDiff4D, Sec 3.1).

The layout is that of X-NeMo's motion encoder, so that its weights load
(`names_expression`): a face-alignment hourglass, in which three blocks of attention
look across the face, squeezed to one vector. Trained by the denoising loss alone.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from geodiff_jax.models import attention, layers

NORM_EPSILON = 1e-5


def sincos_positions(positions: Float[Array, " n"], width: int) -> Float[Array, "n w"]:
    """As embeddings of times, but for the sines, which come first here."""
    return jnp.roll(layers.timestep_embedding(positions, width), width // 2, axis=-1)


def sincos_grid(height: int, width: int, channels: int) -> Float[Array, "n c"]:
    """A table for a grid of tokens, row by row: half of the channels code the column.

    The other half codes the row, in the same way.
    """
    row, column = jnp.mgrid[:height, :width].reshape(2, -1).astype(jnp.float32)
    halves = [sincos_positions(axis, channels // 2) for axis in (column, row)]
    return jnp.concatenate(halves, axis=-1)


class ConvBlock(nn.Module):
    """Three convolutions in a row whose results are joined (Bulat et al. 2017).

    They give a half, a quarter and a quarter of the channels; the input is added,
    through a convolution of one pixel where widths differ.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> Float[Array, "n h w d"]:
        """Height and width stay."""
        half, quarter = self.features // 2, self.features // 4
        y, parts = x, []
        for i, features in enumerate((half, quarter, quarter), 1):
            y = nn.relu(_norm(f"norm{i}", train, self.dtype)(y))
            y = _conv(f"conv{i}", features, 3, self.dtype, bias=False)(y)
            parts.append(y)
        if x.shape[-1] != self.features:
            x = nn.relu(_norm("shortcut_norm", train, self.dtype)(x))
            x = _conv("shortcut", self.features, 1, self.dtype, bias=False)(x)
        return x + jnp.concatenate(parts, axis=-1)


class PatchAttention(nn.Module):
    """A transformer block among patches of a map, added to it; it starts as nothing."""

    patch: int
    heads: int = 8
    head_width: int = 128
    dtype: DTypeLike = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Height and width are multiples of the patch, and stay."""
        patch, width, dtype = self.patch, self.heads * self.head_width, self.dtype
        n, h, w, channels = x.shape
        rows, columns = h // patch, w // patch
        y = layers.GroupNorm(attention.TRANSFORMER_EPSILON, dtype, name="norm")(x)
        y = nn.Conv(
            width, (patch, patch), patch, padding="VALID", dtype=dtype, name="proj_in"
        )(y)
        table = sincos_grid(rows, columns, width).astype(dtype)
        y = y.reshape(n, rows * columns, width) + table
        heads = attention.Attention(
            self.heads, dtype, self.implementation, name="attention"
        )
        y = y + heads(layers.LayerNorm(dtype, name="norm1")(y))
        perceptron = layers.FeedForward(dtype, name="feed_forward")
        y = y + perceptron(layers.LayerNorm(dtype, name="norm2")(y))
        y = y.reshape(n, rows, columns, patch, patch, -1).swapaxes(2, 3)
        zeros = nn.initializers.zeros_init()
        to_map = nn.Dense(channels, kernel_init=zeros, dtype=dtype, name="proj_out")
        return x + to_map(y.reshape(n, h, w, -1))


class Hourglass(nn.Module):
    """Halves a map `depth` times and comes back, adding what it passed on the way."""

    features: int
    depth: int = 4
    dropout: float = 0.5
    """Of what is added."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> Float[Array, "n h w c"]:
        """Height and width are at least 2**depth, and stay; odd ones lose their end."""

        def block(name: str) -> ConvBlock:
            return ConvBlock(self.features, self.dtype, name=name)

        passed = []
        for level in range(self.depth, 0, -1):
            skip = block(f"skip{level}")(x, train)
            passed.append(nn.Dropout(self.dropout, deterministic=not train)(skip))
            x = block(f"down{level}")(nn.max_pool(x, (2, 2), (2, 2)), train)
        x = block("bottom")(x, train)
        for level in range(1, self.depth + 1):
            x = block(f"up{level}")(x, train)
            skip = passed.pop()
            x = jax.image.resize(x, skip.shape, "bilinear") + skip
        return x


class ExpressionEncoder(nn.Module):
    """A crop of a face to an expression: one vector, and tokens for cross-attention.

    Defaults are X-NeMo's. Statistics of its batch norms are the collection
    "batch_stats"; under jit they are those of the whole batch, however it is sharded.
    """

    width: int = 256
    """Channels of the hourglass; before it there are a quarter, then a half of them."""
    maps: int = 68
    """Channels that the face is reduced to: the landmarks of face alignment."""
    depth: int = 4
    """How often the hourglass halves."""
    squeezed: int = 1
    """Channels of the last map, all of whose numbers make the expression: more than
    X-NeMo's where crops are small."""
    patches: tuple[int, int, int] = (4, 2, 2)
    """Pixels along the sides of the patches of the three blocks of attention."""
    heads: int = 8
    head_width: int = 128
    latent: int = 512
    whitened: bool = False
    """Whether the expression is brought to mean 0 and deviation 1 over faces, and then
    scaled and shifted as is learnt, before tokens are made of it (ours)."""
    tokens: int = 32
    token_width: int = 16
    box_width: int = 64
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    """Of activations; parameters, statistics and both results are float32."""
    implementation: str = "auto"
    """Of attention."""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "*b h w 3"],
        box: Float[Array, "*b 3"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "*b latent"], Float[Array, "*b tokens token_width"]]:
        """Crops in [-1, 1], of 224 x 224 pixels for X-NeMo's weights.

        `box` is where the face is beside the reference's: shift down and right in units
        of the reference's box, and size. X-NeMo gives (0, 0, 1) when it generates;
        GeoDiff4D gives none, and its features are zero. Training takes statistics
        from the batch, updates "batch_stats" and draws "dropout".

        Raises:
          ValueError: sides that the halvings and patches do not divide.
        """
        *batch, height, width, _ = images.shape
        self._check(height, width)
        x = self._face(images.reshape(-1, height, width, 3).astype(self.dtype), train)
        x = x.astype(jnp.float32)
        latent = nn.Dense(self.latent, name="to_latent")(x)
        if self.whitened:
            latent = _norm("latent_norm", train, jnp.float32)(latent)
        boxes = self._box(len(x), None if box is None else box.reshape(-1, 3))
        joined = jnp.concatenate([latent, boxes], axis=-1)
        tokens = nn.Dense(self.tokens * self.token_width, name="to_tokens")(joined)
        tokens = tokens.reshape(*batch, self.tokens, self.token_width)
        order = jnp.arange(self.tokens, dtype=jnp.float32)
        tokens = tokens + sincos_positions(order, self.token_width)
        return latent.reshape(*batch, -1), tokens

    def _face(self, x: Float[Array, "n h w 3"], train: bool) -> Float[Array, "n p"]:
        """The crop to `squeezed` maps of an eighth of its size, flat."""
        half, dtype = self.width // 2, self.dtype
        across = [
            PatchAttention(
                patch,
                self.heads,
                self.head_width,
                dtype,
                self.implementation,
                name=f"attention{i}",
            )
            for i, patch in enumerate(self.patches, 1)
        ]
        x = _conv("stem", self.width // 4, 7, dtype, stride=2)(x)
        x = nn.relu(_norm("stem_norm", train, dtype)(x))
        x = across[0](ConvBlock(half, dtype, name="block1")(x, train))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = ConvBlock(half, dtype, name="block2")(x, train)
        x = across[1](ConvBlock(self.width, dtype, name="block3")(x, train))
        x = Hourglass(self.width, self.depth, self.dropout, dtype, name="hourglass")(
            x, train
        )
        x = ConvBlock(self.width, dtype, name="top")(x, train)
        x = _conv("top_conv", self.width, 1, dtype)(x)
        x = across[2](_norm("top_norm", train, dtype)(x))
        x = _conv("maps_conv", self.maps, 1, dtype)(nn.relu(x))
        x = nn.relu(_norm("maps_norm", train, dtype)(x))
        x = _conv("squeeze", self.squeezed, 3, dtype, stride=2)(x)
        return nn.relu(x.reshape(len(x), -1))

    def _box(self, n: int, box: Float[Array, "n 3"] | None) -> Float[Array, "n d"]:
        """Features of the box; its layers exist even if no box is ever given."""
        if box is None and not self.is_initializing():
            return jnp.zeros((n, self.box_width))
        box = jnp.zeros((n, 3)) if box is None else box
        x = nn.relu(nn.Dense(self.box_width, name="box1")(box))
        return nn.Dense(self.box_width, name="box2")(x)

    def _check(self, height: int, width: int) -> None:
        first, second, third = self.patches
        multiple = math.lcm(8, 2 * first, 4 * second, 4 * third)
        least = 4 * 2**self.depth
        if height % multiple or width % multiple or min(height, width) < least:
            raise ValueError(
                f"Expected crops whose sides are multiples of {multiple} and at least "
                f"{least}, got {height} x {width}; resize them."
            )


def _norm(name: str, train: bool, dtype: DTypeLike) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=NORM_EPSILON,
        dtype=dtype,
        name=name,
    )


def _conv(
    name: str,
    features: int,
    size: int,
    dtype: DTypeLike,
    *,
    stride: int = 1,
    bias: bool = True,
) -> nn.Conv:
    """Padded alike on both sides, so that unstrided maps keep their size."""
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=bias,
        dtype=dtype,
        name=name,
    )
