"""The flow's own laws: times and sigmas, diffrax as an oracle, sharded batches."""

import os
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.diffusion import ddim, grids, multistep, probability_flow
from geodiff_jax.diffusion import schedule as schedules
from tests.diffusion import mixture as mixtures


def test_fractional_times_and_sigmas_are_inverse():
    """Whole times have the schedule's sigma; also where the last one is infinite."""
    with jax.enable_x64(True):
        schedule = schedules.make(prediction="v", zero_terminal=True)
        t = jnp.asarray([0.0, 0.5, 300.0, 700.25, 998.0])
        sigma = probability_flow.sigma_of_time(schedule, t)
        back = probability_flow.time_of_sigma(schedule, sigma)
        np.testing.assert_allclose(back, t, atol=1e-9)
        signal, noise = schedule.rates(jnp.asarray([0, 300, 998]), ndim=1)
        np.testing.assert_allclose(sigma[jnp.asarray([0, 2, 4])], noise / signal)


@pytest.mark.slow
def test_steps_are_those_of_diffeqsolve():
    """Of a solver of high order whose stages lie between the grid's times."""
    with jax.enable_x64(True):
        schedule = schedules.make(prediction="v")
        mixture = mixtures.random_mixture(2, dimension=3)
        denoise = mixtures.denoiser(mixture, schedule)
        start = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
        times = grids.trailing(12)
        solver = diffrax.Tsit5()
        signal, noise = schedule.rates(np.asarray(times), ndim=1)
        sigmas = noise / signal

        def slope(sigma, y, args):
            rate = 1.0 / jnp.sqrt(1.0 + sigma**2)
            x0 = mixtures.expected_x0(mixture, rate * y, rate, sigma * rate)
            return (y - x0) / sigma

        def oracle(x):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(slope),
                solver,
                t0=sigmas[0],
                t1=sigmas[-1],
                dt0=None,
                y0=x / signal[0],
                stepsize_controller=diffrax.StepTo(sigmas),
            )
            x = solution.ys[0] * signal[-1]
            last = int(times[-1])
            return ddim.step(schedule, x, denoise(x, jnp.asarray(last)), last, -1)

        found = probability_flow.sample(denoise, schedule, start, times, solver=solver)
        np.testing.assert_allclose(found, jax.jit(oracle)(start), rtol=1e-9)


def check_sharding():
    """Every sampler on a batch sharded over eight devices; run by the test below."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shape = (8, 2, 1, 2, 4, 4, 4)
    start = jax.device_put(jax.random.normal(jax.random.key(0), shape), split)
    schedule = schedules.make(prediction="v", zero_terminal=True)
    times = grids.trailing(6)

    def denoise(x, t):
        return jnp.tanh(x.mean(axis=1, keepdims=True) - x + t / 1000)

    def flow(solver):
        return lambda *args: probability_flow.sample(*args, solver=solver)

    samplers = {
        "DDIM": ddim.sample,
        "2M": multistep.sample,
        "Euler": flow(diffrax.Euler()),
        "Heun": flow(diffrax.Heun()),
        "Tsit5": flow(diffrax.Tsit5()),
    }
    for name, sampler in samplers.items():
        run = jax.jit(lambda x, s=sampler: s(denoise, schedule, x, times))
        compiled = run.lower(start).compile()
        assert "all-gather" not in compiled.as_text(), name
        found = compiled(start)
        assert found.sharding.is_equivalent_to(split, found.ndim), name
        alone = run(jax.device_put(start, jax.devices()[0]))
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_sharded_batch_stays_sharded():
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check_sharding()
