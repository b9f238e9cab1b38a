"""DPM-Solver++(2M): a second-order sampler for one evaluation a step.

Root mean square distance from the converged probability flow on mixtures of 8 Gaussians
in 16 dimensions, Stable Diffusion's schedule (`python -m tests.diffusion.mixture`)::

    evaluations         6     10     15     25
    DDIM leading    0.196  0.138  0.100  0.068
    DDIM trailing   0.210  0.150  0.110  0.075
    DDIM karras     0.250  0.159  0.116  0.079
    Heun karras     1.495  0.281  0.084  0.029
    2M leading      0.214  0.106  0.064  0.038
    2M trailing     0.159  0.096  0.060  0.033
    2M karras       0.164  0.074  0.042  0.017

From the last time on, 10 steps over Karras sigmas reach what 25 of DDIM do; leading
grids leave out the noisiest times, and there it takes 11. The tighter and farther
apart the clusters, the more do single points that end in another one count, and the
less does the order of a sampler.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from geodiff_jax.diffusion import grids
from geodiff_jax.diffusion import schedule as schedules


def sample(
    denoise: schedules.Denoise,
    schedule: schedules.NoiseSchedule,
    start: Float[Array, "*x"],
    times: Int[np.ndarray, " s"],
    *,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """The sample that steps over any grid of `times` (host, descending) lead to.

    Lu et al. 2022 (DPM-Solver++), Algorithm 2: a DDIM step whose x0 is extrapolated
    from this and the last prediction. With `trajectory` all latents, stacked in front:
    the start first, the sample last.
    """

    def advance(
        carry: tuple[Array, Array], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Any]:
        x, last = carry
        t, next_t, weight = now
        x0, _ = schedules.separate(schedule, x, denoise(x, t), t)
        ahead = x0 + weight * (x0 - last)
        rates = schedule.rates(t, ndim=x.ndim)
        _, epsilon = schedules.separate_at(x, ahead, *rates, kind="x0")
        x = schedules.add_noise(schedule, ahead, epsilon, next_t).astype(x.dtype)
        return (x, x0.astype(x.dtype)), x if trajectory else None

    over = (*grids.steps(schedule, times), extrapolation(schedule, times))
    (final, _), path = jax.lax.scan(advance, (start, jnp.zeros_like(start)), over)
    return jnp.concatenate([start[None], path]) if trajectory else final


def extrapolation(
    schedule: schedules.NoiseSchedule, times: Int[np.ndarray, " s"]
) -> Float[Array, " s"]:
    """How far each step looks ahead: half its length over that of the step before.

    Lengths are in log(signal_rate / noise_rate). Zero, plain DDIM, for the first step,
    for the one after a start without signal and for the one to where no noise is left:
    there lengths are infinite.
    """
    now, following = grids.steps(schedule, times)
    lengths = 0.5 * (schedule.log_snr(following) - schedule.log_snr(now))
    finite = jnp.isfinite(lengths)
    lengths = jnp.where(finite, lengths, 1.0)
    weights = 0.5 * lengths[1:] / lengths[:-1]
    weights = jnp.where(finite[1:] & finite[:-1], weights, 0.0)
    return jnp.concatenate([jnp.zeros_like(weights, shape=(1,)), weights])
