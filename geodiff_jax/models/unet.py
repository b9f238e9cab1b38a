"""The UNet of the generator: Stable Diffusion's, with attention as data.

One module is the denoiser's network and the reference net (GeoDiff4D, Sec 3.2), and
with other fields CAP4D's MMDM UNet, X-NeMo's UNets, Stable Diffusion 1.5 and 2.1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, DTypeLike, Float, Num

from geodiff_jax.models import attend, attention, layers

Bank = Mapping[str, Float[Array, "batch _ _"]]
"""Hidden states of a reference net, by the name of the attention that reads them."""

IMAGE = ("h", "w")


class UNet(nn.Module):
    """Encoder, middle and decoder over (batch, domain, view, time, h, w, c).

    A layer is a residual block, spatial attention, and, if they are asked for, a module
    that looks at an expression and one that looks along time. Defaults are Stable
    Diffusion 1.5's. Level 0 has the resolution of the latents, each next one half.
    """

    out_channels: int = 4
    """0 for a reference net, which ends at the last hidden map."""
    channels: int = 320
    multipliers: tuple[float, ...] = (1, 2, 4, 4)
    """Of the channels, per level: see `widths`."""
    blocks: int = 2
    """Layers per level on the way down; on the way up it is one more."""
    tokens: tuple[tuple[str, ...], ...] = (IMAGE, IMAGE, IMAGE, ())
    """Per level, the axes along which spatial attention looks; () for no attention."""
    middle_tokens: tuple[str, ...] = IMAGE
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Per level, of spatial attention; the middle has those of the last level."""
    cross_attention: bool = True
    """Spatial attention also looks at a context."""
    expression_modules: bool = False
    temporal_modules: bool = False
    module_heads: int = 8
    """Of expression and temporal modules, at every level."""
    maps: bool = False
    """Condition maps are projected, from zero, onto the first hidden map (CAP4D)."""
    remat: str | None = None
    """Which policy of `jax.checkpoint_policies` keeps memory down; None keeps all."""
    implementation: attend.Implementation = "auto"
    """Of attention: see `attend.attend`."""
    dtype: DTypeLike = jnp.float32
    """Of activations; parameters, norms, softmax and the result are float32."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the hidden maps, per level."""
        return tuple(round(self.channels * m) for m in self.multipliers)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch domain view time h w c"],
        t: Num[Array, "..."],
        *,
        context: attention.Tokens | None = None,
        expression: attention.Tokens | None = None,
        maps: Float[Array, "#batch #domain #view #time h w k"] | None = None,
        stem_residual: Float[Array, "#batch #domain #view #time h w d"] | None = None,
        label: Float[Array, "#batch #domain #view #time e"] | None = None,
        bank: Bank | None = None,
        reads_bank: Bool[Array, " batch"] | None = None,
        frames: Bool[Array, "batch time"] | None = None,
        record: bool = False,
    ) -> tuple[Float[Array, "batch domain view time h w o"], dict[str, jax.Array]]:
        """The prediction (or the last hidden map), and the bank for another UNet.

        Args:
          x: latents, with whatever maps are concatenated to them.
          t: diffusion time: one for all, one per item (batch,), or broadcastable to
            (batch, domain, view, time).
          context: what cross-attention looks at, such as a text or an image embedding.
          expression: what expression modules look at.
          maps: condition maps that are added as in CAP4D.
          stem_residual: added to the first hidden map, as a guider's features are.
          label: added to the embedding of t, which has 4 x `channels` channels.
          bank: hidden states that self-attention sees too; all names or none.
          reads_bank: which items see it; all, if not given.
          frames: false where a frame is padding, which temporal modules do not see.
          record: whether to return the bank, else it is empty.

        Raises:
          ValueError: fields, signals or sizes that do not fit each other.
        """
        signals = _Signals(
            self._embed(t, label), context, expression, bank, reads_bank, frames
        )
        self._check(x, signals, maps)
        x = self._stem(x, maps, stem_residual)
        recorded: dict[str, jax.Array] = {}
        skips, last = [x], len(self.multipliers) - 1
        for level in range(last + 1):
            for i in range(self.blocks):
                x = self._layer(x, f"down{level}", i, level, signals, recorded)
                skips.append(x)
            if level < last:
                name = f"down{level}_downsample"
                x = layers.Downsample(dtype=self.dtype, name=name)(x)
                skips.append(x)
        x = self._layer(x, "middle", 0, last, signals, recorded)
        x = self._residual(x, "middle_residual1", last, signals)
        for level in range(last, -1, -1):
            for i in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._layer(x, f"up{level}", i, level, signals, recorded)
            if level > 0:
                x = layers.Upsample(self.dtype, name=f"up{level}_upsample")(x)
        return self._head(x), recorded if record else {}

    def _embed(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        """Of diffusion time and label: (batch, domain, view, time, e), or 1 of each."""
        t = jnp.asarray(t)
        t = t.reshape(t.shape + (1,) * (4 - t.ndim))
        width = layers.WIDENING * self.channels
        y = layers.timestep_embedding(t, self.channels).astype(self.dtype)
        y = nn.silu(nn.Dense(width, dtype=self.dtype, name="time1")(y))
        y = nn.Dense(width, dtype=self.dtype, name="time2")(y)
        return y if label is None else y + label.astype(self.dtype)

    def _stem(
        self, x: jax.Array, maps: jax.Array | None, residual: jax.Array | None
    ) -> jax.Array:
        """The first hidden map, and what is added to it."""
        x = layers.conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        if maps is not None:
            zeros = nn.initializers.zeros_init()
            x = x + nn.Dense(
                self.channels, kernel_init=zeros, dtype=self.dtype, name="maps_in"
            )(maps)
        return x if residual is None else x + residual.astype(self.dtype)

    def _layer(
        self,
        x: jax.Array,
        where: str,
        i: int,
        level: int,
        signals: "_Signals",
        recorded: dict[str, jax.Array],
    ) -> jax.Array:
        """Residual block, spatial attention, expression, time; fills `recorded`."""
        options = {"dtype": self.dtype, "implementation": self.implementation}
        x = self._residual(x, f"{where}_residual{i}", level, signals)
        tokens = self.middle_tokens if where == "middle" else self.tokens[level]
        if tokens:
            name = f"{where}_attention{i}"
            x, seen = self._saving(attention.SpatialTransformer)(
                self.heads[level], tokens, **options, name=name
            )(x, signals.context, signals.states(name), signals.reads_bank)
            recorded[name] = seen.reshape(x.shape[0], -1, x.shape[-1])
        if self.expression_modules:
            x = self._saving(attention.ExpressionModule)(
                self.module_heads, **options, name=f"{where}_expression{i}"
            )(x, signals.expression)
        if self.temporal_modules:
            x = self._saving(attention.TemporalModule)(
                self.module_heads, **options, name=f"{where}_temporal{i}"
            )(x, signals.frames)
        return x

    def _residual(
        self, x: jax.Array, name: str, level: int, signals: "_Signals"
    ) -> jax.Array:
        width = self.widths[level]
        block = self._saving(layers.ResBlock)(width, dtype=self.dtype, name=name)
        return block(x, signals.embedding)

    def _head(self, x: jax.Array) -> jax.Array:
        if not self.out_channels:
            return x.astype(jnp.float32)
        x = nn.silu(layers.GroupNorm(dtype=self.dtype, name="norm_out")(x))
        head = layers.conv(
            self.out_channels, dtype=self.dtype, zero=True, name="conv_out"
        )
        return head(x).astype(jnp.float32)

    def _saving(self, module: Callable[..., Any]) -> Callable[..., Any]:
        """The module, computed again in the backward pass if that is asked for."""
        if self.remat is None:
            return module
        return nn.remat(module, policy=getattr(jax.checkpoint_policies, self.remat))

    def _check(self, x: jax.Array, signals: "_Signals", maps: jax.Array | None) -> None:
        levels = len(self.multipliers)
        if not len(self.tokens) == len(self.heads) == levels:
            raise ValueError(
                f"Expected tokens and heads for {levels} levels, got "
                f"{len(self.tokens)} and {len(self.heads)}."
            )
        multiple = 2 ** (levels - 1)
        if x.shape[4] % multiple or x.shape[5] % multiple:
            raise ValueError(
                f"Expected height and width in multiples of {multiple}, got "
                f"{x.shape[4]} x {x.shape[5]}."
            )
        for name, wanted, signal in (
            ("context", self.cross_attention, signals.context),
            ("expression", self.expression_modules, signals.expression),
            ("maps", self.maps, maps),
        ):
            if wanted != (signal is not None):
                raise ValueError(
                    f"Expected {name} if and only if the module's fields ask for it, "
                    f"got {'none' if signal is None else 'some'}."
                )


@flax.struct.dataclass
class _Signals:
    """What layers take beside the map."""

    embedding: jax.Array
    context: jax.Array | None
    expression: jax.Array | None
    bank: Bank | None
    reads_bank: jax.Array | None
    frames: jax.Array | None

    def states(self, name: str) -> jax.Array | None:
        """The bank's for one attention.

        Raises:
          ValueError: a bank that lacks it.
        """
        if self.bank is None:
            return None
        if name not in self.bank:
            raise ValueError(
                f"Expected a bank with states for {name}, got {sorted(self.bank)}; "
                "is it of a reference net with the same levels?"
            )
        return self.bank[name]
