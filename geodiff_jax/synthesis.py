"""Portraits that were never taken: views and clips, by sampling a denoiser.

`views` is CAP4D's way (many views around few references), `clip` GeoDiff4D's (frames
and normals of a driven portrait). Both know latents and maps; who calls them knows
images, heads and cameras.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

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
    without latents and slots. Raises ValueError where groups of `sampler.views` minus
    the references in a pass do not divide the targets.
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

    times = grids.strided(sampler.steps, num_times=schedule.num_times)
    noise_key, group_key = jax.random.split(key)
    groups = stochastic_io.draw_groups(
        group_key,
        num_steps=len(times),
        num_targets=num_targets,
        num_references=count,
        views=sampler.views,
        references_per_pass=min(count, sampler.references),
    )
    start = jax.random.normal(noise_key, (batch, 1, num_targets, 1, *image))
    grouped = stochastic_io.beside_references(guided, held[:, None], own, others)
    sampled = stochastic_io.sample(grouped, schedule, start, times, groups)
    return sampled[:, 0, :, 0]


@dataclasses.dataclass(frozen=True)
class ClipSampler:
    """GeoDiff4D's sampling (Sec 4.2, A.1); windows are ours, after X-NeMo."""

    steps: int = 25
    guidance: float = 2.5
    window: int = 16
    """Frames in the network at once: what stage 2 is trained on."""
    overlap: int = 4


def clip(
    key: Key[Array, ""],
    denoise: Denoise,
    schedule: schedules.NoiseSchedule,
    reference: Float[Array, "batch domain h w c"],
    bank: unet.Bank,
    signals: Conditioning,
    *,
    layout: conditioning.Layout = conditioning.LAYOUTS["geodiff4d"],
    sampler: ClipSampler,
) -> Float[Array, "batch domain time h w c"]:
    """Latents of a driven portrait, of all domains; of any length.

    `reference` are the latents of the photo and of its normals, from which sampling
    starts; `bank` is what `Denoiser.remember` makes of the photo; signals are head-pose
    maps and expression tokens, (batch, 1, time, ...).
    """
    frames = jax.tree.leaves(signals)[0].shape[2]
    start_key, window_key = jax.random.split(key)
    times = grids.leading(sampler.steps, num_times=schedule.num_times, offset=1)
    start = ddim.reference_start(
        start_key, schedule, reference, int(times[0]), frames=frames
    )

    def of_window(x: Array, t: Array, ids: Int[Array, " w"]) -> Array:
        own = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=2), signals)
        without = conditioning.unconditional(own, layout)

        def banked(x: Array, t: Array, conditions: tuple[Conditioning, Any]) -> Array:
            return denoise(x, t, conditions[0], bank=conditions[1])

        guided = guidance.guide(
            banked, (own, bank), (without, bank), scale=sampler.guidance
        )
        return guided(x, t)

    whole = stochastic_io.over_windows(
        window_key,
        of_window,
        num_frames=frames,
        size=sampler.window,
        overlap=sampler.overlap,
    )
    return ddim.sample(whole, schedule, start, times)[:, :, 0]
