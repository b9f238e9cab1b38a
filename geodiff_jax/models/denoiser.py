"""The denoiser: every paper's network as settings of one (GeoDiff4D, Eq. 1).

It predicts what a noise schedule asks for (noise, velocity or signal) for every
domain, view and frame of a clip, given what the frames shall show (`Conditioning`) and
a reference, which enters as a bank of hidden states (GeoDiff4D, Learn2Control) or as
clean latents in slots of its own (CAP4D, GeoFace).
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Num

from geodiff_jax.models import expression_encoder, guider, unet, vae
from geodiff_jax.render import conditioning
from geodiff_jax.render.conditioning import Conditioning

Latents = Float[Array, "batch domain view time h w c"]

PLUCKER_CHANNELS = 6
LABEL_SCALE = 0.02
"""Standard deviation of new embeddings. Not zero: Wonder3D found that to fail."""


@flax.struct.dataclass
class Reference:
    """What the reference net looks at, once for a clip."""

    latents: Float[Array, "batch h w c"]
    """Clean, of the image alone."""
    head_pose: Float[Array, "batch h w 3"] | None = None
    """The reference's own map (GeoDiff4D, Sec 3.2); None for Learn2Control."""
    context: Float[Array, "batch k d"] | None = None
    """Tokens for cross-attention, such as X-NeMo's embedding of the image."""


class Denoiser(nn.Module):
    """Networks of the generator, and how signals enter them.

    Maps of the layout are concatenated to the latents; with `unet.maps` they are
    projected onto the first hidden map, with a `guide` they go through it instead.
    Defaults are GeoDiff4D's. What stands here is all that is trained but the splatted
    features of Learn2Control. `init` makes what its call uses: give it a `reference`
    and `driving` crops where there is a net for them.
    """

    unet: unet.UNet
    layout: conditioning.Layout = conditioning.LAYOUTS["geodiff4d"]
    reference_net: unet.UNet | None = None
    encoder: expression_encoder.ExpressionEncoder | None = None
    guide: guider.Guider | None = None
    num_domains: int = 1
    """Image, or image and normals, told apart by a label if there are several."""
    geometry_slot: bool = False
    """Whether the last view is a map of positions on the chart (GeoFace), which no
    camera sees: a learnt token stands for its rays."""
    origin_width: int = 0
    """Channels of the token that tells synthetic from real images (Learn2Control, Sec
    3.4), for cross-attention; 0 for none."""

    def setup(self) -> None:
        """Embeddings of what is no map."""
        start = nn.initializers.normal(LABEL_SCALE)
        if self.num_domains > 1:
            width = 4 * self.unet.channels
            self.domain_label = nn.Embed(self.num_domains, width, embedding_init=start)
        if self.geometry_slot:
            self.camera_token = self.param("camera_token", start, (PLUCKER_CHANNELS,))
        if self.origin_width:
            self.origin = nn.Embed(2, self.origin_width, embedding_init=start)

    def __call__(
        self,
        latents: Latents,
        t: Num[Array, "..."],
        signals: Conditioning,
        *,
        reference: Reference | None = None,
        bank: unet.Bank | None = None,
        reads_bank: Bool[Array, " batch"] | None = None,
        driving: Float[Array, "batch view time y x 3"] | None = None,
        synthetic: Bool[Array, " batch"] | None = None,
        context: Float[Array, "batch k d"] | None = None,
        dropped: Bool[Array, " batch"] | None = None,
        frames: Bool[Array, "batch time"] | None = None,
        train: bool = False,
    ) -> Latents:
        """The prediction for noised latents at diffusion time t.

        Args:
          latents: noised; whatever they hold in the slots of references is ignored.
          t: diffusion time: one for all, one per item (batch,), or broadcastable to
            (batch, domain, view, time).
          signals: leading axes (batch, view, time), the same for all domains.
          reference: runs the reference net. Give it or its `bank`, not both.
          bank: what `remember` returned, once for many steps of sampling.
          reads_bank: which items see it; all by default.
          driving: crops of faces in [0, 1], from which `express` makes the tokens of
            the expression; else `signals` has them.
          synthetic: whether items are rendered; real by default, as in sampling.
          context: tokens for cross-attention; the reference's by default.
          dropped: items that lose what the layout drops, for guidance.
          frames: false where a frame is padding.
          train: whether the encoder takes statistics from the batch.

        Raises:
          ValueError: signals or fields that do not fit each other.
        """
        self._check(latents, signals, reference, bank)
        if reference is not None:
            bank = self.remember(reference)
            context = reference.context if context is None else context
        if driving is not None:
            signals = signals.replace(
                expression_tokens=self.express(driving, train=train)[1]
            )
        signals = _drop(signals, self.layout, dropped)
        held = signals.reference_latents
        slots = _over_pixels(signals.reference_slots)
        x = latents
        if held is not None:
            x = jnp.where(slots, held[:, None], latents)
        x, maps, guidance = self._enter(x, signals)
        tokens = signals.expression_tokens
        prediction, _ = self.unet(
            x,
            t,
            context=self._context(context, synthetic, batch=len(latents)),
            expression=None if tokens is None else tokens[:, None],
            maps=maps,
            stem_residual=guidance,
            label=self._label(),
            bank=bank,
            reads_bank=reads_bank,
            frames=frames,
        )
        if held is None:
            return prediction
        # No prediction, as in CAP4D: losses mask it, samplers cut it off.
        return jnp.where(slots, latents - held[:, None], prediction)

    def remember(self, reference: Reference) -> dict[str, jax.Array]:
        """The bank of a reference: at time 0, of the image alone, once for a clip."""
        if self.reference_net is None:
            raise ValueError(
                "Expected a reference net for a reference, got none; put its latents "
                "into slots of the conditioning."
            )
        x = reference.latents
        if reference.head_pose is not None:
            x = jnp.concatenate([x, reference.head_pose.astype(x.dtype)], axis=-1)
        context = reference.context
        if self.origin_width and context is None:
            context = self.origin(jnp.zeros((len(x), 1), jnp.int32))
        if context is not None:
            context = context[:, None, None, None]
        _, bank = self.reference_net(
            x[:, None, None, None],
            jnp.zeros((), jnp.int32),
            context=context,
            record=True,
        )
        return bank

    def express(
        self, crops: Float[Array, "*b y x 3"], *, train: bool = False
    ) -> tuple[Float[Array, "*b e"], Float[Array, "*b k d"]]:
        """(latent, tokens) of the expressions of driving faces, images in [0, 1]."""
        if self.encoder is None:
            raise ValueError(
                "Expected an expression encoder for driving crops, got none; give the "
                "tokens in the conditioning."
            )
        return self.encoder(vae.pixels_from_images(crops), train=train)

    def _enter(
        self, x: Latents, signals: Conditioning
    ) -> tuple[Array, Array | None, Array | None]:
        """(latents, maps to project, guidance to add) by where the maps go."""
        if not self.layout.maps:
            return x, None, None
        if self.geometry_slot and signals.plucker is not None:
            rays = signals.plucker
            signals = signals.replace(plucker=rays.at[:, -1].set(self.camera_token))
        maps = conditioning.concatenate(signals, self.layout)[:, None]
        if self.guide is not None:
            return x, None, self.guide(maps)
        if self.unet.maps:
            return x, maps, None
        maps = jnp.broadcast_to(maps, (*x.shape[:-1], maps.shape[-1]))
        return jnp.concatenate([x, maps.astype(x.dtype)], axis=-1), None, None

    def _label(self) -> Float[Array, "1 domain 1 1 e"] | None:
        if self.num_domains == 1:
            return None
        labels = self.domain_label(jnp.arange(self.num_domains))
        return labels[None, :, None, None]

    def _context(
        self, context: Array | None, synthetic: Array | None, *, batch: int
    ) -> Array | None:
        """(batch, 1, 1, 1, k, d): given tokens, or the one of the origin."""
        if self.origin_width:
            origin = jnp.zeros(batch, bool) if synthetic is None else synthetic
            context = self.origin(origin.astype(jnp.int32))[:, None]
        return None if context is None else context[:, None, None, None]

    def _check(
        self,
        latents: Latents,
        signals: Conditioning,
        reference: Reference | None,
        bank: unet.Bank | None,
    ) -> None:
        if latents.shape[1] != self.num_domains:
            raise ValueError(
                f"Expected latents of {self.num_domains} domains along axis 1, got "
                f"{latents.shape[1]}."
            )
        if (signals.reference_latents is None) != (signals.reference_slots is None):
            raise ValueError(
                "Expected reference_latents and reference_slots together, got one."
            )
        if self.reference_net is None:
            return
        if (reference is None) == (bank is None):
            raise ValueError(
                "Expected a reference, or the bank that `remember` makes of it, got "
                + ("neither." if bank is None else "both.")
            )


def _drop(
    signals: Conditioning,
    layout: conditioning.Layout,
    dropped: Bool[Array, " batch"] | None,
) -> Conditioning:
    """What the layout drops, zero in those items: all of it together."""
    if dropped is None:
        return signals

    def choose(without: Array, given: Array) -> Array:
        there = dropped.reshape(-1, *(1,) * (given.ndim - 1))
        return jnp.where(there, without, given)

    return jax.tree.map(choose, conditioning.unconditional(signals, layout), signals)


def _over_pixels(
    slots: Bool[Array, "batch view time"] | None,
) -> Bool[Array, "batch 1 view time 1 1 1"] | None:
    return None if slots is None else slots[:, None, :, :, None, None, None]
