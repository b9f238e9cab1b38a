"""DDIM against diffusers and X-NeMo, and what enters it: noise and references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.diffusion import ddim, grids, multistep
from geodiff_jax.diffusion import schedule as schedules
from tests.conftest import shared_data
from tests.diffusion import mixture as mixtures
from tests.diffusion import toy

GRIDS = {
    "leading": grids.leading,
    "trailing": grids.trailing,
    "linspace": grids.linspace,
}
KEY = jax.random.key(0)
toy_denoise = functools.partial(toy.denoise, jnp.tanh)


@pytest.fixture(scope="module")
def golden():
    return np.load(mixtures.__file__.replace("mixture.py", "diffusers.npz"))


@pytest.mark.parametrize("name", toy.CASES)
def test_grids_and_trajectories_are_those_of_diffusers(golden, name):
    case = toy.CASES[name]
    schedule = schedules.make(
        prediction=case.prediction,
        zero_terminal=case.zero_terminal,
        ends_clean=case.ends_clean,
    )
    offset = {"offset": case.offset} if case.grid == "leading" else {}
    times = GRIDS[case.grid](case.steps, **offset)
    np.testing.assert_array_equal(times, golden[f"{name}_times"])
    expected = golden[f"{name}_trajectory"]
    start = golden["start"]
    if case.eta or case.grid == "linspace":
        found = step_by_step(golden, case, schedule, times, expected)
    else:
        sample = multistep.sample if case.sampler == "2M" else ddim.sample
        run = functools.partial(sample, toy_denoise, schedule, trajectory=True)
        found = jax.jit(lambda x: run(x, times))(start)
    # diffusers is in float32 as well: relative to the largest latent on the way.
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


def step_by_step(golden, case, schedule, times, path):
    """From each of diffusers' latents to the next, with its noise and its next time.

    Its steps are all of one length, which for linspace is not the grid's.
    """
    found = [golden["start"]]
    for t, x, noise in zip(times, path, golden["noises"], strict=False):
        x = jnp.asarray(x)
        now = (schedule, x, toy_denoise(x, t), t, max(t - 1000 // case.steps, -1))
        found.append(
            ddim.noisy_step(*now, jnp.asarray(noise), eta=case.eta)
            if case.eta
            else ddim.step(*now)
        )
    return np.stack(found)


def test_xnemo_sampling():
    """Noised reference, leading grid, predictions that couple the frames."""
    golden = np.load(shared_data("goldens/xnemo_sampling.npz"))
    schedule = schedules.make(last_beta=0.02)
    times = grids.leading(int(golden["toy_S"]), offset=1)
    np.testing.assert_array_equal(times, golden["toy_timesteps"])
    x0, noise = jnp.asarray(golden["toy_x0"]), jnp.asarray(golden["toy_noise"])
    start = schedules.add_noise(schedule, x0, noise, times[0])

    def denoise(x, t):
        frames = x.mean(axis=2, keepdims=True)
        return jnp.tanh(0.6 * x + 0.3 * frames + t / 1000 - 0.3)

    found = ddim.sample(denoise, schedule, start, times, trajectory=True)
    np.testing.assert_allclose(found, golden["toy_trajectory"], atol=1e-4)


def test_xnemo_blur():
    golden = np.load(shared_data("goldens/xnemo_sampling.npz"))
    last = [np.moveaxis(golden[f"blur_{name}"], 1, -1) for name in ("in", "out")]
    found = ddim.blur(jnp.asarray(last[0]), sigma=18.0)
    np.testing.assert_allclose(found, last[1], atol=1e-6)


def test_noise_is_shared_by_domains_and_by_nothing_else():
    shape = (2, 2, 3, 2, 8, 8, 4)
    noise = np.asarray(jax.jit(ddim.draw_noise, static_argnums=1)(KEY, shape))
    np.testing.assert_array_equal(noise[:, 0], noise[:, 1])
    samples = noise[:, 0].reshape(2 * 3 * 2, -1)
    correlation = np.corrcoef(samples)
    # 256 values each: other pairs correlate by chance, a sixteenth is one deviation.
    assert np.abs(correlation - np.eye(12)).max() < 5 / 16
    assert abs(samples.std() - 1.0) < 0.05


def test_a_reference_starts_every_frame_with_noise_of_its_own():
    schedule = schedules.make()
    shape = (2, 2, 8, 8, 4)
    reference = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    @jax.jit
    def begin(reference):
        settings = {"views": 2, "frames": 3}
        own = (KEY, schedule, reference, 961)
        return (
            ddim.reference_start(*own, **settings),
            ddim.reference_start(*own, **settings, blur_sigma=18.0),
            ddim.blur(reference, sigma=18.0),
        )

    start, blurred, softer = (np.asarray(x) for x in begin(reference))
    assert start.shape == (2, 2, 2, 3, 8, 8, 4)
    signal, rate = np.asarray(schedule.signal_rate)[961], schedule.noise_rate[961]
    noise = (start - signal * reference[:, :, None, None]) / np.asarray(rate)
    # Domains differ in the reference, hence up to round-off.
    np.testing.assert_allclose(noise[:, 0], noise[:, 1], atol=1e-5)
    assert abs(noise.std() - 1.0) < 0.05
    apart = noise[:, :1, :, 1:] - noise[:, :1, :, :-1]
    assert abs(apart.std() - np.sqrt(2.0)) < 0.1
    expected = np.broadcast_to((softer - reference)[:, :, None, None], start.shape)
    np.testing.assert_allclose(blurred - start, signal * expected, atol=1e-5)


def test_without_eta_no_noise_enters():
    schedule = schedules.make()
    start = np.ones((2, 2, 1, 1, 2, 2, 4), np.float32)
    times = grids.leading(4, offset=1)

    @jax.jit
    def both(x):
        own = (toy_denoise, schedule, x, times)
        return ddim.sample_noisy(KEY, *own, eta=0.0), ddim.sample(*own)

    found, expected = both(start)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_fresh_noise_leads_to_the_same_distribution():
    """One Gaussian: mean and spread, whichever share of the noise is renewed."""
    one = mixtures.Mixture(np.array([[0.7]]), np.array([0.5]), np.ones(1))
    schedule = schedules.make()
    denoise = mixtures.denoiser(one, schedule)
    start = jax.random.normal(jax.random.key(1), (4000, 1))
    times = grids.trailing(100)

    def run(key, start):
        return ddim.sample_noisy(
            key, denoise, schedule, start, times, eta=1.0, shared_axes=()
        )

    found = np.asarray(jax.jit(run)(jax.random.key(2), start))
    # 4000 samples: three standard errors of the mean are 0.024, of the spread 0.017;
    # 100 steps miss a little of the spread.
    assert abs(found.mean() - 0.7) < 0.03
    assert abs(found.std() - 0.5) < 0.03
    assert abs(np.corrcoef(found[:, 0], start[:, 0])[0, 1]) < 0.1


def test_fresh_noise_is_shared_by_domains():
    schedule = schedules.make()
    start = np.ones((1, 2, 1, 2, 2, 2, 4), np.float32)

    @jax.jit
    def run(x):
        own = (lambda x, t: jnp.zeros_like(x), schedule, x, grids.leading(3))
        return ddim.sample_noisy(KEY, *own, eta=1.0, trajectory=True)

    path = np.asarray(run(start))
    np.testing.assert_array_equal(path[:, :, 0], path[:, :, 1])
    np.testing.assert_array_equal(path[0], start)
    assert np.abs(path[-2] - path[0]).min() > 0
