"""Laws of noise schedules and grids, and the numbers of CAP4D and X-NeMo."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.diffusion import grids
from geodiff_jax.diffusion import schedule as schedules
from tests.conftest import shared_data

KINDS = ("epsilon", "v", "x0")


def cap4d(**changes) -> schedules.NoiseSchedule:
    settings = {
        "zero_terminal": True,
        "largest_beta": 0.99,
        "num_views": 8,
        "ends_clean": False,
    }
    return schedules.make(**settings | changes)


def close_but_for_the_end(found, expected):
    """To 1e-9, but the last few where 1 - beta cancels."""
    np.testing.assert_allclose(found[:-3], expected[:-3], rtol=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cap4d_schedule_step_by_step():
    golden = np.load(shared_data("goldens/cap4d_schedule.npz"))
    plain = schedules.scaled_linear(1000)
    close_but_for_the_end(schedules.betas(plain), golden["f64_betas_before"])
    zero = schedules.zero_terminal_snr(plain)
    expected = golden["f64_betas_zero_snr_unclipped"]
    close_but_for_the_end(schedules.betas(zero), expected)
    capped = schedules.zero_terminal_snr(plain, largest_beta=0.99)
    expected = golden["f64_betas_zero_snr_clipped_0p99"]
    close_but_for_the_end(schedules.betas(capped), expected)
    close_but_for_the_end(capped, golden["f64_alphas_cumprod_before_shift"])
    factor = schedules.view_factor(8)
    np.testing.assert_allclose(factor, golden["f64_n8_shift_ratio"], rtol=1e-12)
    shifted = schedules.shift_snr(capped, factor=factor)
    close_but_for_the_end(shifted, golden["f64_n8_alphas_cumprod"])
    # CAP4D leaves the first as zero: it compares the first time with itself.
    betas = schedules.betas(shifted)[1:]
    close_but_for_the_end(betas, golden["f64_n8_betas"][1:])


@pytest.mark.parametrize("steps", [25, 50, 100])
def test_cap4d_schedule_as_stored_and_sampled(steps):
    golden = np.load(shared_data("goldens/cap4d_schedule.npz"))
    schedule = cap4d()
    for found, name in (
        (schedule.alpha_bar, "alphas_cumprod"),
        (schedule.signal_rate, "sqrt_alphas_cumprod"),
        (schedule.noise_rate, "sqrt_one_minus_alphas_cumprod"),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, golden[f"n8_{name}"], rtol=1e-5)
    times = grids.strided(steps)
    sampled = {
        key: golden[f"n8_S{steps}_{key}"]
        for key in ("timesteps", "alphas", "alphas_prev", "sqrt_one_minus_alphas")
    }
    np.testing.assert_array_equal(times[::-1], sampled["timesteps"])
    now, following = grids.steps(schedule, times)
    signal, noise = schedule.rates(now, ndim=1)
    np.testing.assert_allclose(signal[::-1] ** 2, sampled["alphas"], rtol=1e-5)
    expected = sampled["sqrt_one_minus_alphas"]
    np.testing.assert_allclose(noise[::-1], expected, rtol=1e-5)
    signal, _ = schedule.rates(following, ndim=1)
    np.testing.assert_allclose(signal[::-1] ** 2, sampled["alphas_prev"], rtol=1e-5)


def test_xnemo_schedule():
    golden = np.load(shared_data("goldens/xnemo_sampling.npz"))
    schedule = schedules.make(last_beta=0.02)
    np.testing.assert_allclose(
        schedule.alpha_bar, golden["alphas_cumprod"], rtol=1e-4, atol=1e-7
    )
    betas = schedules.betas(schedules.scaled_linear(1000, last_beta=0.02))
    np.testing.assert_allclose(betas, golden["betas"], rtol=1e-5)
    end, _ = schedule.rates(-1, ndim=0)
    assert float(end) ** 2 == golden["final_alpha_cumprod"]
    for steps in (25, 35):
        expected = golden[f"S{steps}_timesteps"]
        np.testing.assert_array_equal(grids.leading(steps, offset=1), expected)


def test_rates_are_a_point_on_the_unit_circle():
    for schedule in (cap4d(), schedules.make(zero_terminal=True, prediction="v")):
        total = schedule.signal_rate**2 + schedule.noise_rate**2
        np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_zero_terminal_keeps_the_first_time_and_empties_the_last():
    before = schedules.scaled_linear(1000)
    after = schedules.zero_terminal_snr(before)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    assert after[-1] == 0.0
    assert schedules.make(zero_terminal=True).zero_terminal
    assert not cap4d().zero_terminal


def test_shift_adds_a_constant_to_log_snr():
    with jax.enable_x64(True):
        t = jnp.arange(1000)
        plain = cap4d(num_views=None).log_snr(t)
        for changed, factor in (
            (cap4d(num_views=5), 0.5),
            (cap4d(num_views=None, shift=0.25), 0.25),
            (cap4d(num_views=5, shift=0.25), 0.125),
        ):
            moved = changed.log_snr(t) - plain
            np.testing.assert_allclose(moved, np.log(factor), atol=1e-7)


@pytest.mark.parametrize(("source", "to"), itertools.product(KINDS, KINDS))
def test_conversions_name_the_same_point(source, to):
    """Each kind, computed from (x0, epsilon), converts into every other."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x0, epsilon = (jnp.asarray(rng.normal(size=(4, 3))) for _ in range(2))
        t = jnp.asarray([0, 300, 700, 998])
        made = {
            kind: schedules.make(prediction=kind, zero_terminal=True) for kind in KINDS
        }
        x = schedules.add_noise(made["v"], x0, epsilon, t)
        values = {k: schedules.target(s, x0, epsilon, t) for k, s in made.items()}
        found = schedules.convert(made["v"], x, values[source], t, source=source, to=to)
        # Division by the least signal, 4e-4 at time 998, magnifies round-off.
        np.testing.assert_allclose(found, values[to], atol=1e-10)
        for one in schedules.separate(made[source], x, values[source], t):
            assert one.dtype == jnp.float64


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_slopes_stay_finite_where_no_signal_or_no_noise_is_left(kind):
    schedule = schedules.make(prediction=kind, zero_terminal=True)
    x, prediction = jnp.ones((2, 2)), jnp.full((2, 2), 0.5)
    t = jnp.asarray([999, -1])

    def total(x, prediction):
        x0, epsilon = schedules.separate(schedule, x, prediction, t)
        return jnp.sum(x0**2) + jnp.sum(epsilon**2)

    value, slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(x, prediction)
    assert np.isfinite(value)
    assert np.isfinite(slopes).all()


def test_velocity_tells_both_where_no_signal_is_left():
    schedule = schedules.make(prediction="v", zero_terminal=True)
    x0, epsilon = jnp.asarray([[0.3, -2.0]]), jnp.asarray([[1.5, 0.7]])
    velocity = schedules.velocity(schedule, x0, epsilon, 999)
    found = schedules.separate(schedule, epsilon, velocity, 999)
    np.testing.assert_array_equal(found[0], x0)
    np.testing.assert_array_equal(found[1], epsilon)


def test_times_broadcast_from_the_left():
    """One time for each sample and view, on latents of seven axes."""
    schedule = cap4d()
    rng = np.random.default_rng(1)
    shape = (2, 2, 3, 1, 2, 2, 4)
    x0, epsilon = rng.normal(size=(2, *shape)).astype(np.float32)
    t = rng.integers(0, 1000, (2, 1, 3, 1))
    add = jax.jit(lambda *a: schedules.add_noise(schedule, *a))
    found = np.asarray(add(x0, epsilon, t))
    for sample, view in itertools.product(range(2), range(3)):
        at = np.s_[sample, :, view]
        expected = np.asarray(add(x0[at], epsilon[at], t[sample, 0, view, 0]))
        np.testing.assert_allclose(found[at], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_errors_of_x0_alike_for_every_kind(kind):
    """weight * error^2 of a prediction = min(SNR, gamma) * error^2 of its x0."""
    with jax.enable_x64(True):
        schedule = schedules.make(prediction=kind)
        t = jnp.asarray([0, 100, 400, 999])
        x = jnp.ones((4, 1))
        right, _ = schedules.separate(schedule, x, jnp.zeros((4, 1)), t)
        wrong, _ = schedules.separate(schedule, x, jnp.full((4, 1), 0.1), t)
        weighed = schedules.min_snr_weight(schedule, t) * 0.1**2
        expected = jnp.minimum(schedule.snr(t), 5.0) * jnp.square(wrong - right)[:, 0]
        np.testing.assert_allclose(weighed, expected, rtol=1e-9)


def test_min_snr_is_finite_where_no_signal_is_left():
    for kind in KINDS:
        schedule = schedules.make(prediction=kind, zero_terminal=True)
        assert np.isfinite(schedules.min_snr_weight(schedule, 999))


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 30, 100, 400])
def test_grids_descend_within_the_schedule(steps):
    for zero_terminal in (False, True):
        schedule = schedules.make(prediction="v", zero_terminal=zero_terminal)
        trailing = grids.trailing(steps)
        karras = grids.karras(schedule, steps)
        assert trailing[0] == karras[0] == 999
        made = [trailing, karras, grids.linspace(steps), grids.leading(steps, offset=1)]
        for times in made:
            assert len(times) == steps
            grids.steps(schedule, times)
        grids.steps(schedule, grids.strided(steps))
        assert karras[-1] == 0 or steps <= 2


def test_karras_times_have_the_sigmas_of_equation_5():
    schedule = schedules.make()
    times = grids.karras(schedule, 10)
    sigmas = np.asarray(schedule.noise_rate / schedule.signal_rate)
    wanted = np.linspace(sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7), 10) ** 7
    for t, sigma in zip(times, wanted, strict=True):
        # None of the schedule's is nearer; logs are even enough for the neighbours.
        near = np.abs(np.log(sigmas) - np.log(sigma)).argmin()
        assert abs(t - near) <= 1


def test_karras_begins_at_sigma_80_after_a_start_without_signal():
    schedule = schedules.make(prediction="v", zero_terminal=True)
    first, second, *_ = grids.karras(schedule, 12)
    sigma = float(schedule.noise_rate[second] / schedule.signal_rate[second])
    assert first == 999
    assert 60 < sigma < 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.leading(0), "1 to 1000 steps, got 0"),
        (lambda: grids.trailing(1001), "1 to 1000 steps, got 1001"),
        (lambda: grids.leading(1000, offset=1), "below 1000, got 1000"),
        (lambda: grids.steps(schedules.make(), np.array([3, 7])), "descend"),
        (lambda: grids.steps(schedules.make(), np.array([1000, 7])), "descend"),
        (lambda: schedules.view_factor(1), "two views"),
        (lambda: schedules.from_alpha_bar(np.array([0.5, 0.9])), "descend"),
        (lambda: schedules.from_alpha_bar(np.array([1.0, 0.9])), "descend"),
        (lambda: schedules.make(last_beta=1.5), "betas"),
    ],
)
def test_refusals_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
