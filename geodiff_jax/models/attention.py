"""Attention among the pixels, domains, views and frames of a clip, and to tokens.

Maps are (batch, domain, view, time, h, w, c). Blocks are exact to Stable Diffusion's
and X-NeMo's, so that their weights load. What a map looks at (an expression, a text)
is (batch, domain, view, time, tokens, channels), where any of domain, view and time
may be 1: the same tokens for all.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, DTypeLike, Float

from geodiff_jax.models import attend, layers

AXES = ("batch", "domain", "view", "time", "h", "w")
"""Names of the axes of a map, before its channels."""
TRANSFORMER_EPSILON = 1e-6
"""Of the group norms before transformers."""

Map = Float[Array, "batch domain view time h w c"]
Tokens = Float[Array, "#batch #domain #view #time _ _"]


def fold(x: jax.Array, tokens: tuple[str, ...]) -> jax.Array:
    """Map to (batch, n, tokens, c): n is all axes that are not tokens, in their order.

    Raises:
      ValueError: tokens that are no axes of a map, or the batch, which never mixes.
    """
    order, shape = _folding(x.shape, tokens)
    return x.transpose(order).reshape(shape)


def unfold(x: jax.Array, tokens: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
    """Inverts `fold` of a map of that shape; channels may differ."""
    order, _ = _folding(shape, tokens)
    ordered = [*(shape[axis] for axis in order[:-1]), x.shape[-1]]
    back = sorted(range(len(order)), key=order.__getitem__)
    return x.reshape(ordered).transpose(back)


def _folding(
    shape: tuple[int, ...], tokens: tuple[str, ...]
) -> tuple[list[int], tuple[int, ...]]:
    """The order of axes before they are joined, and the joined shape."""
    if not tokens or not set(tokens) <= set(AXES[1:]) or len(set(tokens)) < len(tokens):
        raise ValueError(f"Expected some of {AXES[1:]} as tokens, got {tokens}.")
    inner = [AXES.index(name) for name in tokens]
    outer = [axis for axis in range(1, 6) if axis not in inner]
    joined = (math.prod(shape[axis] for axis in axes) for axes in (outer, inner))
    return [0, *outer, *inner, 6], (shape[0], *joined, shape[-1])


class Attention(nn.Module):
    """Attention of tokens to themselves or to a context; heads share the channels."""

    heads: int
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"
    """See `attend.attend`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*b q c"],
        context: Float[Array, "*#b k d"] | None = None,
        *,
        extra: Float[Array, "*#b m c"] | None = None,
        mask: Bool[Array, "*#b #heads #q #keys"] | None = None,
    ) -> Float[Array, "*b q c"]:
        """Keys and values are those of `context` (or x), and after them of `extra`.

        Queries see the keys where `mask` is true. For losses on attention maps, queries
        and keys without the extra ones (*b, tokens, heads, width) are sown as "query"
        and "key" into "intermediates".
        """
        if x.shape[-1] % self.heads:
            raise ValueError(
                f"Expected channels that {self.heads} heads divide, got {x.shape[-1]}."
            )
        context = x if context is None else context
        to_q, to_k, to_v = (
            nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)
            for name in ("to_q", "to_k", "to_v")
        )
        query = self._split(to_q(x))
        key, value = self._split(to_k(context)), self._split(to_v(context))
        self.sow("intermediates", "query", query)
        self.sow("intermediates", "key", key)
        batch = x.shape[:-2]
        key, value = _broadcast(key, batch), _broadcast(value, batch)
        if extra is not None:
            more = [self._split(to(extra)) for to in (to_k, to_v)]
            key, value = (
                jnp.concatenate([own, _broadcast(other, batch)], axis=-3)
                for own, other in zip((key, value), more, strict=True)
            )
        y = attend.attend(
            query, key, value, mask=mask, implementation=self.implementation
        )
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out")(
            y.reshape(x.shape)
        )

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)


def _broadcast(x: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """Tokens of heads (*#batch, k, heads, width) to that batch."""
    return jnp.broadcast_to(x, (*batch, *x.shape[-3:]))


class AxisAttention(nn.Module):
    """Self-attention along some axes of a map; all others are batch."""

    heads: int
    tokens: tuple[str, ...] = ("h", "w")
    """Axes whose elements see each other, of `AXES`."""
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Map,
        bank: Float[Array, "batch m c"] | None = None,
        reads_bank: Bool[Array, " batch"] | None = None,
    ) -> Map:
        """Everything in an item sees the item's `bank` too, where `reads_bank` is true.

        The bank is hidden states of the same width, such as a reference net's; this
        layer's own to_k and to_v project them.
        """
        folded, mask = fold(x, self.tokens), None
        if bank is not None and reads_bank is not None:
            own = jnp.ones((x.shape[0], folded.shape[2]), bool)
            others = jnp.broadcast_to(reads_bank[:, None], bank.shape[:2])
            mask = jnp.concatenate([own, others], axis=1)[:, None, None, None]
        y = Attention(self.heads, self.dtype, self.implementation, name="attention")(
            folded, extra=None if bank is None else bank[:, None], mask=mask
        )
        return unfold(y, self.tokens, x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context if there is one, and a perceptron."""

    heads: int
    tokens: tuple[str, ...] = ("h", "w")
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Map,
        context: Tokens | None = None,
        bank: Float[Array, "batch m c"] | None = None,
        reads_bank: Bool[Array, " batch"] | None = None,
    ) -> tuple[Map, Map]:
        """The block's result, and what its self-attention saw: what a bank holds."""
        norms = [layers.LayerNorm(self.dtype, name=f"norm{i}") for i in (1, 2, 3)]
        options = {"dtype": self.dtype, "implementation": self.implementation}
        seen = norms[0](x)
        x = x + AxisAttention(self.heads, self.tokens, **options, name="along")(
            seen, bank, reads_bank
        )
        if context is not None:
            y = Attention(self.heads, **options, name="across")(
                _pixels(norms[1](x)), context
            )
            x = x + y.reshape(x.shape)
        x = x + layers.FeedForward(self.dtype, name="feed_forward")(norms[2](x))
        return x, seen


class SpatialTransformer(nn.Module):
    """A transformer block between two projections, added to the map.

    As in latent diffusion the second projection starts at zero.
    """

    heads: int
    tokens: tuple[str, ...] = ("h", "w")
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Map,
        context: Tokens | None = None,
        bank: Float[Array, "batch m c"] | None = None,
        reads_bank: Bool[Array, " batch"] | None = None,
    ) -> tuple[Map, Map]:
        """The map, and what the self-attention inside saw: see `TransformerBlock`."""
        width, dtype = x.shape[-1], self.dtype
        y = layers.GroupNorm(TRANSFORMER_EPSILON, dtype, name="norm")(x)
        y = nn.Dense(width, dtype=dtype, name="proj_in")(y)
        y, seen = TransformerBlock(
            self.heads, self.tokens, dtype, self.implementation, name="block"
        )(y, context, bank, reads_bank)
        return x + _from_zero(width, dtype)(y), seen


class ExpressionModule(nn.Module):
    """Every pixel looks twice at tokens of an expression (X-NeMo's motion module)."""

    heads: int
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"

    @nn.compact
    def __call__(self, x: Map, expression: Tokens) -> Map:
        """The map itself at the start of training."""
        y = layers.GroupNorm(TRANSFORMER_EPSILON, self.dtype, name="norm")(x)
        y = _TwoAttentions(self.heads, self.dtype, self.implementation, name="block")(
            _pixels(y), expression
        )
        return x + y.reshape(x.shape)


class TemporalModule(nn.Module):
    """Frames look twice at each other, pixel by pixel (Guo et al. 2023, X-NeMo)."""

    heads: int
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"

    @nn.compact
    def __call__(self, x: Map, frames: Bool[Array, "batch time"] | None = None) -> Map:
        """The map itself at the start of training.

        Frames where `frames` is false are padding, which the others do not see.
        X-NeMo's weights know clips of up to 32 frames.
        """
        y = layers.GroupNorm(TRANSFORMER_EPSILON, self.dtype, name="norm")(x)
        mask = None if frames is None else frames[:, None, None, None]
        y = _TwoAttentions(self.heads, self.dtype, self.implementation, name="block")(
            fold(y, ("time",)),
            positions=frame_positions(x.shape[3], x.shape[-1]).astype(self.dtype),
            mask=mask,
        )
        return x + unfold(y, ("time",), x.shape)


def frame_positions(frames: int, width: int) -> Float[Array, "t c"]:
    """Sines (even channels) and cosines (odd) of 0, 1, ... (Vaswani et al. 2017)."""
    angles = jnp.arange(frames)[:, None] * layers.LONGEST_PERIOD ** (
        -jnp.arange(0, width, 2) / width
    )
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(frames, width)


class _TwoAttentions(nn.Module):
    """What expression and temporal modules share; the result starts at zero."""

    heads: int
    dtype: DTypeLike = jnp.float32
    implementation: attend.Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*b q c"],
        context: Float[Array, "*#b m k"] | None = None,
        *,
        positions: Float[Array, "q c"] | None = None,
        mask: Bool[Array, "*#b #heads #q #keys"] | None = None,
    ) -> Float[Array, "*b q c"]:
        """Two attentions to `context` or to x, and a perceptron.

        `positions` are added to what attention sees.
        """
        width, dtype = x.shape[-1], self.dtype
        x = nn.Dense(width, dtype=dtype, name="proj_in")(x)
        for i in (1, 2):
            y = layers.LayerNorm(dtype, name=f"norm{i}")(x)
            y = y if positions is None else y + positions
            attention = Attention(
                self.heads, dtype, self.implementation, name=f"attention{i}"
            )
            x = x + attention(y, context, mask=mask)
        y = layers.LayerNorm(dtype, name="norm3")(x)
        x = x + layers.FeedForward(dtype, name="feed_forward")(y)
        return _from_zero(width, dtype)(x)


def _pixels(x: Map) -> Float[Array, "batch domain view time n c"]:
    return x.reshape(*x.shape[:4], -1, x.shape[-1])


def _from_zero(width: int, dtype: DTypeLike) -> nn.Dense:
    zeros = nn.initializers.zeros_init()
    return nn.Dense(width, dtype=dtype, kernel_init=zeros, name="proj_out")
