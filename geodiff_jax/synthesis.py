"""Portraits that were never taken: views and clips, by sampling a denoiser.

`views` is CAP4D's way (many views around few references) and GeoFace's (all views and
the map of positions at once), `clip` that of GeoDiff4D, X-NeMo and Learn2Control
(frames, and normals, of a driven portrait). Both know latents and maps; who calls them
knows images, heads and cameras.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from geodiff_jax.diffusion import ddim, grids, guidance, stochastic_io
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.models import unet
from geodiff_jax.render import conditioning
from geodiff_jax.render.conditioning import Conditioning

Denoise = Callable[..., Array]
"""`Denoiser.apply` with its variables bound: (latents, t, signals, **what else)."""


@dataclasses.dataclass(frozen=True)
class ViewSampler:
    """CAP4D's sampling (Sec 3.2, Algorithm 1); values of its released code."""

    steps: int = 100
    guidance: float = 2.0
    views: int = 8
    """In the network at once, references included."""
    references: int = 4
    """At most, in one pass."""
    grid: Literal["strided", "trailing"] = "strided"
    """Of times. Velocities at zero terminal SNR begin at the last one: trailing."""
    geometry_slot: bool = False
    """Whether the last target is the map of positions (GeoFace): one pass holds all
    views, in their order."""


GRIDS = {"strided": grids.strided, "trailing": grids.trailing}


def views(
    key: Key[Array, ""],
    denoise: Denoise,
    schedule: schedules.NoiseSchedule,
    references: Float[Array, "batch reference h w c"],
    reference_signals: Conditioning,
    target_signals: Conditioning,
    *,
    layout: conditioning.Layout,
    sampler: ViewSampler,
) -> Float[Array, "batch target h w c"]:
    """Latents of all target views, consistent with each other and the references.

    Signals are the maps of references and of targets, (batch, view, 1, h, w, c) each,
    without latents and slots; with a geometry slot it is the last target, whose maps
    the network ignores. Raises ValueError where groups of `sampler.views` minus the
    references in a pass do not divide the targets, or are not one for a geometry slot.
    """
    batch, count, *image = references.shape
    held = references[:, :, None]
    own = reference_signals.replace(
        reference_latents=held, reference_slots=jnp.ones((batch, count, 1), bool)
    )
    num_targets = jax.tree.leaves(target_signals)[0].shape[1]
    empty = jnp.zeros((batch, num_targets, 1, *image), references.dtype)
    others = target_signals.replace(
        reference_latents=empty,
        reference_slots=jnp.zeros((batch, num_targets, 1), bool),
    )

    def guided(x: Array, t: Array, signals: Conditioning) -> Array:
        without = conditioning.unconditional(signals, layout)
        return guidance.guide(denoise, signals, without, scale=sampler.guidance)(x, t)

    times = GRIDS[sampler.grid](sampler.steps, num_times=schedule.num_times)
    noise_key, group_key = jax.random.split(key)
    groups = _groups(
        group_key,
        sampler,
        num_steps=len(times),
        num_targets=num_targets,
        num_references=count,
    )
    start = jax.random.normal(noise_key, (batch, 1, num_targets, 1, *image))
    grouped = stochastic_io.beside_references(guided, held[:, None], own, others)
    sampled = stochastic_io.sample(grouped, schedule, start, times, groups)
    return sampled[:, 0, :, 0]


def _groups(
    key: Key[Array, ""],
    sampler: ViewSampler,
    *,
    num_steps: int,
    num_targets: int,
    num_references: int,
) -> stochastic_io.Groups:
    """Who is in the network together; a map of positions stays the last of all."""
    if not sampler.geometry_slot:
        return stochastic_io.draw_groups(
            key,
            num_steps=num_steps,
            num_targets=num_targets,
            num_references=num_references,
            views=sampler.views,
            references_per_pass=min(num_references, sampler.references),
        )
    if num_references + num_targets != sampler.views:
        raise ValueError(
            f"Expected {sampler.views} views in all, the geometry slot included, got "
            f"{num_references} references and {num_targets} targets."
        )
    return stochastic_io.one_group(
        num_steps=num_steps, num_targets=num_targets, num_references=num_references
    )


@dataclasses.dataclass(frozen=True)
class ClipSampler:
    """GeoDiff4D's sampling (Sec 4.2, A.1); windows are ours, after X-NeMo."""

    steps: int = 25
    guidance: float = 2.5
    window: int = 16
    """Frames in the network at once: what stage 2 is trained on."""
    overlap: int = 4
    from_reference: bool = True
    """Whether it starts from the reference's latents, noised, or from noise alone."""
    blur_sigma: float | None = None
    """Of the blur of those latents before, in texels; None for none."""
    drops_reference: bool = False
    """Whether guidance also takes the reference's bank and context away."""


X_NEMO = ClipSampler(
    steps=35, window=24, blur_sigma=18.0, guidance=2.5, drops_reference=True
)
"""As its released code samples; it gives `clip` the portrait's `own_expression`."""


def clip(
    key: Key[Array, ""],
    denoise: Denoise,
    schedule: schedules.NoiseSchedule,
    reference: Float[Array, "batch domain h w c"],
    bank: unet.Bank,
    signals: Conditioning,
    *,
    context: Float[Array, "batch k d"] | None = None,
    own_expression: Float[Array, "batch e f"] | None = None,
    layout: conditioning.Layout = conditioning.LAYOUTS["geodiff4d"],
    sampler: ClipSampler,
) -> Float[Array, "batch domain time h w c"]:
    """Latents of a driven portrait, of all domains; of any length.

    Args:
      key: of the noise and of where windows begin.
      denoise: the network.
      schedule: what it was trained with.
      reference: latents of the photo and of its normals, from which sampling starts.
      bank: what `Denoiser.remember` makes of the photo.
      signals: maps and expression tokens, (batch, 1, time, ...).
      context: tokens for cross-attention, as the reference net had them.
      own_expression: tokens of the photo's own face, away from which X-NeMo's guidance
        pushes; zeros by default.
      layout: what guidance drops.
      sampler: how it is sampled.
    """
    frames = jax.tree.leaves(signals)[0].shape[2]
    start_key, window_key = jax.random.split(key)
    times = grids.leading(sampler.steps, num_times=schedule.num_times, offset=1)
    if sampler.from_reference:
        start = ddim.reference_start(
            start_key,
            schedule,
            reference,
            int(times[0]),
            frames=frames,
            blur_sigma=sampler.blur_sigma,
        )
    else:
        batch, domains, *image = reference.shape
        start = ddim.draw_noise(start_key, (batch, domains, 1, frames, *image))
    given, without = _halves(signals, bank, context, own_expression, layout, sampler)

    def told(x: Array, t: Array, conditions: _Conditions) -> Array:
        signals, bank, context, reads = conditions
        return denoise(x, t, signals, bank=bank, context=context, reads_bank=reads)

    def of_window(x: Array, t: Array, ids: Int[Array, " w"]) -> Array:
        own, other = (
            (jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=2), shown), *rest)
            for shown, *rest in (given, without)
        )
        return guidance.guide(told, own, other, scale=sampler.guidance)(x, t)

    whole = stochastic_io.over_windows(
        window_key,
        of_window,
        num_frames=frames,
        size=sampler.window,
        overlap=sampler.overlap,
    )
    return ddim.sample(whole, schedule, start, times)[:, :, 0]


_Conditions = tuple[Conditioning, unet.Bank, Array | None, Array | None]
"""Signals, bank, context and which items read the bank."""


def _halves(
    signals: Conditioning,
    bank: unet.Bank,
    context: Array | None,
    own_expression: Array | None,
    layout: conditioning.Layout,
    sampler: ClipSampler,
) -> tuple[_Conditions, _Conditions]:
    """What guidance is between: with everything, and without."""
    without = conditioning.unconditional(signals, layout)
    lead = jax.tree.leaves(signals)[0].shape[:3]
    if own_expression is not None:
        shape = (*lead, *own_expression.shape[1:])
        still = jnp.broadcast_to(own_expression[:, None, None], shape)
        without = without.replace(expression_tokens=still)
    if not sampler.drops_reference:
        return (signals, bank, context, None), (without, bank, context, None)
    reads = jnp.ones(lead[0], bool)
    unseen = None if context is None else jnp.zeros_like(context)
    return (signals, bank, context, reads), (without, bank, unseen, ~reads)
