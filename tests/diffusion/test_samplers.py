"""Laws that every sampler keeps, on mixtures whose perfect denoiser is known."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.diffusion import ddim, grids, multistep, probability_flow
from geodiff_jax.diffusion import schedule as schedules
from tests.diffusion import mixture as mixtures
from tests.diffusion import toy

SAMPLERS = {
    "DDIM": ddim.sample,
    "2M": multistep.sample,
    "Heun": functools.partial(probability_flow.sample, solver=diffrax.Heun()),
    "Euler": functools.partial(probability_flow.sample, solver=diffrax.Euler()),
}
# Euler's method is DDIM: one law says so.
each_sampler = pytest.mark.parametrize("name", ["DDIM", "2M", "Heun"])


def run(name, denoise, schedule, start, times, **options):
    """The sampler, compiled as a whole."""
    sampler = functools.partial(SAMPLERS[name], denoise, schedule, **options)
    return np.asarray(jax.jit(lambda x: sampler(x, times))(start))


@pytest.fixture(scope="module")
def benchmark():
    return mixtures.Benchmark()


@pytest.mark.parametrize(("name", "order"), [("DDIM", 1), ("2M", 2), ("Heun", 2)])
def test_error_falls_with_the_samplers_order(name, order):
    """In one dimension the flow is known: it keeps the quantiles of the mixture."""
    with jax.enable_x64(True):
        schedule = schedules.make(prediction="v")
        mixture = mixtures.random_mixture(0, components=4, dimension=1)
        denoise = mixtures.denoiser(mixture, schedule)
        start = np.random.default_rng(0).normal(size=(64, 1))
        rates = [[float(r) for r in schedule.rates(t, ndim=0)] for t in (961, 121)]
        exact = mixtures.transport(mixture, start, *rates)

        def error(stride: int) -> float:
            times = np.arange(961, 120, -stride)
            path = run(name, denoise, schedule, start, times, trajectory=True)
            # The step after the grid's last time leaves the flow at first order.
            return np.sqrt(np.mean(np.square(path[-2] - exact)))

        coarse, fine = error(24), error(12)
        assert fine < 0.02
        # Higher powers of the step still show at these steps.
        assert abs(np.log2(coarse / fine) - order) < 0.3


def test_eulers_method_is_ddim():
    """To round-off, for any kind of prediction and a denoiser that is not perfect."""
    with jax.enable_x64(True):
        start = np.random.default_rng(1).normal(size=(5, 3))
        times = grids.trailing(20)

        def denoise(x, t):
            return toy.denoise(jnp.tanh, x, t.astype(x.dtype))

        for prediction in ("epsilon", "v", "x0"):
            schedule = schedules.make(prediction=prediction)
            found = run("Euler", denoise, schedule, start, times)
            expected = run("DDIM", denoise, schedule, start, times)
            np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_single_gaussian_is_carried_linearly():
    """All of its latents stay as many deviations from the mean; also without signal."""
    with jax.enable_x64(True):
        one = mixtures.Mixture(np.array([[0.7, -0.4]]), np.array([0.5]), np.ones(1))
        schedule = schedules.make(prediction="v", zero_terminal=True)
        start = np.random.default_rng(2).normal(size=(9, 2))
        # The last step goes to the mean of what time 0 leaves open.
        last = float(schedule.noise_rate[0] / schedule.signal_rate[0])
        expected = one.means[0] + 0.5 * start / np.sqrt(1.0 + (last / 0.5) ** 2)
        denoise = mixtures.denoiser(one, schedule)
        times = grids.trailing(1000)
        for name, tolerance in (("DDIM", 1e-2), ("2M", 1e-3), ("Heun", 1e-4)):
            found = run(name, denoise, schedule, start, times)
            np.testing.assert_allclose(found, expected, atol=tolerance)


@each_sampler
@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_from_no_signal_are_finite(name, steps):
    """One step of a perfect v predicts the mean of all."""
    schedule = schedules.make(prediction="v", zero_terminal=True)
    mixture = mixtures.random_mixture(1, dimension=2)
    denoise = mixtures.denoiser(mixture, schedule)
    start = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
    times = grids.trailing(steps)
    found = run(name, denoise, schedule, start, times, trajectory=True)
    assert found.shape == (steps + 1, 4, 2)
    assert found.dtype == jnp.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], start)
    if steps == 1:
        np.testing.assert_allclose(found[-1], 0.0, atol=1e-5)


@each_sampler
def test_the_trajectory_ends_at_the_sample(name):
    schedule = schedules.make(ends_clean=False)
    denoise = functools.partial(toy.denoise, jnp.tanh)
    start = np.ones((2, 3), np.float32)
    times = grids.leading(5, offset=1)
    path = run(name, denoise, schedule, start, times, trajectory=True)
    sample = run(name, denoise, schedule, start, times)
    assert path.shape == (6, 2, 3)
    np.testing.assert_allclose(path[-1], sample, rtol=1e-6)


def test_ten_steps_of_2m_reach_25_of_ddim(benchmark):
    """From the same start: both grids begin at the last time."""
    found = benchmark.error("2M", "karras", 10)
    assert found < benchmark.error("DDIM", "trailing", 25)


@pytest.mark.slow
def test_the_table_in_the_docstring_is_measured(benchmark):
    printed = multistep.__doc__.split("\n\n")[2].splitlines()
    for line, expected in zip(
        printed, mixtures.table(benchmark).splitlines(), strict=True
    ):
        assert line.split() == expected.split()


def test_extrapolation_is_off_where_steps_are_infinite():
    zero = schedules.make(prediction="v", zero_terminal=True)
    weights = np.asarray(multistep.extrapolation(zero, grids.trailing(5)))
    # The first step has no past, the second an infinite one, the last is infinite.
    np.testing.assert_array_equal(weights[[0, 1, 4]], 0.0)
    assert (weights[2:4] > 0).all()
    plain = schedules.make(ends_clean=False)
    assert (multistep.extrapolation(plain, grids.trailing(5))[1:] > 0).all()
