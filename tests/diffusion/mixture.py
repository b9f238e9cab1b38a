"""A Gaussian mixture: noised, it stays one, so the perfect denoiser is known.

`python -m tests.diffusion.mixture` prints how far each sampler is from the flow that it
approximates: the table in the docstring of `diffusion/multistep.py`.
"""

import functools
from typing import Any

import diffrax
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.diffusion import ddim, grids, multistep, probability_flow
from geodiff_jax.diffusion import schedule as schedules


@flax.struct.dataclass
class Mixture:
    """Isotropic components."""

    means: Any
    """(k, d)."""
    scales: Any
    """(k,): standard deviations."""
    weights: Any
    """(k,), sum one."""


def random_mixture(seed: int, *, components: int = 8, dimension: int = 16) -> Mixture:
    """Overlapping clusters, of unit variance in all, as latents have."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.3, 0.7, components)
    weights = rng.dirichlet(np.full(components, 3.0))
    means = rng.normal(size=(components, dimension))
    means -= weights @ means
    within = weights @ scales**2
    means *= np.sqrt((1.0 - within) / (weights @ (means**2).mean(axis=1)))
    return Mixture(means, scales, weights)


def denoiser(mixture: Mixture, schedule: schedules.NoiseSchedule):
    """The perfect denoise(x, t), of the kind that the schedule names; x is (n, d).

    Integer times take the schedule's own rates, so the last one may hold no signal.
    """

    def denoise(x, t):
        if jnp.issubdtype(jnp.result_type(t), jnp.integer):
            signal, noise = schedule.rates(t, ndim=0)
        else:
            sigma = probability_flow.sigma_of_time(schedule, t)
            signal = 1.0 / jnp.sqrt(1.0 + sigma**2)
            noise = sigma * signal
        x0 = expected_x0(mixture, x, signal, noise)
        epsilon = (x - signal * x0) / noise
        velocity = signal * epsilon - noise * x0
        return {"x0": x0, "epsilon": epsilon, "v": velocity}[schedule.prediction]

    return denoise


def expected_x0(mixture: Mixture, x, signal, noise):
    """E[x0 | x]: each component's, weighted by how likely it is to have made x."""
    variance = signal**2 * mixture.scales**2 + noise**2
    difference = x[:, None, :] - signal * mixture.means
    log_likelihood = (
        jnp.log(mixture.weights)
        - 0.5 * x.shape[-1] * jnp.log(variance)
        - 0.5 * jnp.sum(difference**2, axis=-1) / variance
    )
    gain = signal * mixture.scales**2 / variance
    each = mixture.means + gain[:, None] * difference
    return jnp.einsum("nk,nkd->nd", jax.nn.softmax(log_likelihood, axis=-1), each)


def transport(mixture: Mixture, x: np.ndarray, start, end) -> np.ndarray:
    """Where the probability flow carries points of one dimension, exactly.

    The flow keeps the order of points and hence their quantiles. `start` and `end` are
    (signal, noise); x is (n, 1).
    """
    quantiles = _cumulative(mixture, x[:, 0], *start)
    low, high = np.full(len(x), -50.0), np.full(len(x), 50.0)
    for _ in range(70):  # Bisection down to double precision.
        middle = 0.5 * (low + high)
        below = _cumulative(mixture, middle, *end) < quantiles
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return middle[:, None]


def _cumulative(mixture: Mixture, x: np.ndarray, signal, noise) -> np.ndarray:
    deviations = np.sqrt(signal**2 * mixture.scales**2 + noise**2)
    standard = (x[:, None] - signal * mixture.means[:, 0]) / deviations
    with jax.enable_x64(True):
        below = np.asarray(jax.scipy.stats.norm.cdf(jnp.asarray(standard)))
    return below @ mixture.weights


GRIDS = {
    "leading": lambda schedule, count: grids.leading(count, offset=1),
    "trailing": lambda schedule, count: grids.trailing(count),
    "karras": grids.karras,
}
SAMPLERS = {
    "DDIM": ddim.sample,
    "2M": multistep.sample,
    "Heun": functools.partial(probability_flow.sample, solver=diffrax.Heun()),
}
ROWS = (
    ("DDIM", "leading"),
    ("DDIM", "trailing"),
    ("DDIM", "karras"),
    ("Heun", "karras"),
    ("2M", "leading"),
    ("2M", "trailing"),
    ("2M", "karras"),
)
EVALUATIONS = (6, 10, 15, 25)


class Benchmark:
    """Errors of samplers on 16 mixtures, without zero terminal SNR, in float64."""

    def __init__(self):
        with jax.enable_x64(True):
            self.schedule = schedules.make()
            mixtures = [random_mixture(seed) for seed in range(16)]
            self.mixtures = jax.tree.map(lambda *a: jnp.stack(a), *mixtures)
            rng = np.random.default_rng(16)
            self.starts = jnp.asarray(rng.normal(size=(16, 128, 16)))
            every = grids.trailing(self.schedule.num_times)
            self.truth = self._run(SAMPLERS["Heun"], every)

    def _run(self, sampler, times):
        def one(mixture: Mixture, start):
            denoise = denoiser(mixture, self.schedule)
            return sampler(denoise, self.schedule, start, times)

        return jax.jit(jax.vmap(one))(self.mixtures, self.starts)

    def error(self, sampler: str, grid: str, evaluations: int) -> float:
        """Root mean square distance, a coordinate, from the converged flow."""
        # Heun's method evaluates twice in each step but the last.
        steps = (evaluations + 1) // 2 if sampler == "Heun" else evaluations
        with jax.enable_x64(True):
            times = GRIDS[grid](self.schedule, steps)
            found = self._run(SAMPLERS[sampler], times)
            return float(jnp.sqrt(jnp.mean(jnp.square(found - self.truth))))


def table(benchmark: Benchmark) -> str:
    """One row for each sampler and grid, one column for each number of evaluations."""
    lines = [f"{'evaluations':<14}" + "".join(f"{n:>7}" for n in EVALUATIONS)]
    for sampler, grid in ROWS:
        errors = [benchmark.error(sampler, grid, n) for n in EVALUATIONS]
        cells = "".join(f"{error:7.3f}" for error in errors)
        lines.append(f"{sampler + ' ' + grid:<14}" + cells)
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Benchmark()))
