"""Grids of diffusion times for samplers: which times, from noisy to clean.

A grid is an array of integers on the host, so that its length and order are known when
a sampler is traced. It descends; what follows its last time is -1, where sampling ends.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from geodiff_jax.diffusion import schedule as schedules


def leading(
    num_steps: int, *, num_times: int = 1000, offset: int = 0
) -> Int[np.ndarray, " s"]:
    """Every (num_times // num_steps)-th time from `offset` on, descending.

    Stable Diffusion and X-NeMo set offset 1.
    """
    _check_count(num_steps, num_times)
    times = np.arange(num_steps) * (num_times // num_steps) + offset
    return _descending(times, num_times)


def strided(num_steps: int, *, num_times: int = 1000) -> Int[np.ndarray, " s"]:
    """CAP4D's grid: every (num_times // num_steps)-th time from 1 on, descending.

    1, 11, ..., 991 for 100 of 1000. As `leading` with offset 1, but up to the
    last time: more than num_steps where they do not divide num_times.
    """
    _check_count(num_steps, num_times)
    times = np.arange(0, num_times, num_times // num_steps) + 1
    return _descending(times, num_times)


def trailing(num_steps: int, *, num_times: int = 1000) -> Int[np.ndarray, " s"]:
    """From the last time down in even steps: what zero terminal SNR needs."""
    _check_count(num_steps, num_times)
    ends = np.arange(num_times, 0, -num_times / num_steps)[:num_steps]
    return np.round(ends).astype(np.int64) - 1


def linspace(num_steps: int, *, num_times: int = 1000) -> Int[np.ndarray, " s"]:
    """From the last time to 0, both included."""
    _check_count(num_steps, num_times)
    return np.linspace(0, num_times - 1, num_steps).round()[::-1].astype(np.int64)


def karras(
    schedule: schedules.NoiseSchedule,
    num_steps: int,
    *,
    rho: float = 7.0,
    largest_sigma: float = 80.0,
) -> Int[np.ndarray, " s"]:
    """The times nearest (in log) to sigmas evenly spaced in sigma^(1/rho), descending.

    sigma is noise_rate / signal_rate. Karras et al. 2022 (EDM), Eq. 5 and Table 1;
    Stable Diffusion's own largest is 14.6. Times that would coincide move apart to the
    next free ones. Where the schedule's last time holds no signal, sampling starts
    there and the spacing begins at the second time.
    """
    _check_count(num_steps, schedule.num_times)
    finite = schedule.num_times - int(schedule.zero_terminal)
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)[:finite]
    sigmas = np.asarray(schedule.noise_rate, np.float64)[:finite] / np.sqrt(alpha_bar)
    largest = min(sigmas[-1], largest_sigma)
    count = num_steps - int(schedule.zero_terminal)
    wanted = np.linspace(largest ** (1 / rho), sigmas[0] ** (1 / rho), count)[::-1]
    places = np.interp(rho * np.log(wanted), np.log(sigmas), np.arange(finite))
    order = np.arange(count)
    apart = np.maximum.accumulate(places.round() - order) + order
    times = np.minimum(apart, finite - count + order).astype(np.int64)
    if schedule.zero_terminal:
        times = np.append(times, finite)
    return _descending(times, schedule.num_times)


def steps(
    schedule: schedules.NoiseSchedule, times: Int[np.ndarray, " s"]
) -> tuple[Int[Array, " s"], Int[Array, " s"]]:
    """(times, next times) of a sampler's steps; the last ends at -1.

    Raises:
      ValueError: times do not descend or are not the schedule's.
    """
    bounded = np.concatenate([[schedule.num_times], times, [-1]])
    if not times.size or not (np.diff(bounded) < 0).all():
        raise ValueError(
            f"Expected times that descend within [0, {schedule.num_times}), got "
            f"{np.array2string(times, threshold=8)}; take a grid of this schedule."
        )
    ends = np.append(times[1:], -1)
    return jnp.asarray(times, jnp.int32), jnp.asarray(ends, jnp.int32)


def _check_count(num_steps: int, num_times: int) -> None:
    if not 0 < num_steps <= num_times:
        raise ValueError(
            f"Expected 1 to {num_times} steps, got {num_steps}; ask for fewer."
        )


def _descending(
    ascending: Int[np.ndarray, " s"], num_times: int
) -> Int[np.ndarray, " s"]:
    if ascending[-1] >= num_times:
        raise ValueError(
            f"Expected times below {num_times}, got {ascending[-1]}; ask for fewer "
            "steps or a smaller offset."
        )
    return ascending[::-1].copy()
