"""The probability-flow ODE on diffrax's solvers, stepped over a grid of times.

With sigma = noise_rate / signal_rate and y = x / signal_rate, dy/dsigma = epsilon:
Euler's method is DDIM (Song et al. 2021, Eq. 14). Solvers are stepped inside
`lax.scan`, as `diffrax.diffeqsolve` would gather a batch sharded over devices.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from geodiff_jax.diffusion import ddim, grids
from geodiff_jax.diffusion import schedule as schedules


def sample(
    denoise: schedules.Denoise,
    schedule: schedules.NoiseSchedule,
    start: Float[Array, "*x"],
    times: Int[np.ndarray, " s"],
    *,
    solver: diffrax.AbstractSolver,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """The sample that an explicit solver's steps over `times` lead to.

    A solver also asks for times between the grid's, so it gives `denoise` scalar
    floats. sigma is infinite where no signal is left, and zero at the end has no time:
    the step from there and the last step are DDIM's, at integer times. With
    `trajectory` all latents, stacked in front: the start first, the sample last.
    """
    now, following = grids.steps(schedule, times)
    skip = int(schedule.zero_terminal and times[0] == schedule.num_times - 1)

    def straight(x: Array, index: int) -> Array:
        t, next_t = now[index], following[index]
        return ddim.step(schedule, x, denoise(x, t), t, next_t).astype(x.dtype)

    x, path = start, [start[None]]
    if skip:
        x = straight(x, 0)
        path.append(x[None])
    if len(times) > skip + 1:
        x, between = _flow(
            denoise, schedule, x, now[skip:], solver=solver, trajectory=trajectory
        )
        path.append(between)
    if len(times) > skip:
        x = straight(x, -1)
        path.append(x[None])
    return jnp.concatenate(path) if trajectory else x


def time_of_sigma(
    schedule: schedules.NoiseSchedule, sigma: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """The fractional time, linear in log(sigma) between the schedule's."""
    known, times = _log_sigmas(schedule)
    return jnp.interp(jnp.log(sigma), known, times)


def sigma_of_time(
    schedule: schedules.NoiseSchedule, t: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Inverse of `time_of_sigma`."""
    known, times = _log_sigmas(schedule)
    return jnp.exp(jnp.interp(t, times, known))


def _log_sigmas(schedule: schedules.NoiseSchedule) -> tuple[Array, Array]:
    """Without a last time that holds no signal: its sigma is infinite."""
    count = schedule.num_times - int(schedule.zero_terminal)
    log_sigmas = jnp.log(schedule.noise_rate) - jnp.log(schedule.signal_rate)
    return log_sigmas[:count], jnp.arange(count, dtype=log_sigmas.dtype)


def _flow(
    denoise: schedules.Denoise,
    schedule: schedules.NoiseSchedule,
    x: Array,
    times: Array,
    *,
    solver: diffrax.AbstractSolver,
    trajectory: bool,
) -> tuple[Array, Any]:
    """The latent at the last time, and those at all but the first if asked."""

    def latent(sigma: Array, y: Array) -> Array:
        return (y * jax.lax.rsqrt(1.0 + jnp.square(sigma))).astype(x.dtype)

    def slope(sigma: ArrayLike, y: Array, args: None) -> Array:
        del args
        sigma = jnp.asarray(sigma)
        prediction = denoise(latent(sigma, y), time_of_sigma(schedule, sigma))
        signal = jax.lax.rsqrt(1.0 + jnp.square(sigma))
        rates = (signal, sigma * signal)
        _, epsilon = schedules.separate_at(
            latent(sigma, y), prediction, *rates, kind=schedule.prediction
        )
        return epsilon.astype(y.dtype)

    terms = diffrax.ODETerm(slope)

    def advance(carry: tuple, now: tuple[Array, Array]) -> tuple[tuple, Any]:
        y, state = carry
        y, _, _, state, _ = solver.step(terms, *now, y, None, state, made_jump=False)
        return (y, state), latent(now[1], y) if trajectory else None

    signal, noise = schedule.rates(times, ndim=1)
    sigmas = noise / signal
    y = x * jnp.sqrt(1.0 + jnp.square(sigmas[0]))
    state = solver.init(terms, sigmas[0], sigmas[1], y, None)
    over = (sigmas[:-1], sigmas[1:])
    (y, _), path = jax.lax.scan(advance, (y, state), over)
    return latent(sigmas[-1], y), path
