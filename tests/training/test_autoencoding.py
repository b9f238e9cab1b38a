"""The autoencoder's objective: what it costs, that it falls, what its figures mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.models import vae
from geodiff_jax.training import autoencoding
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states
from tests.models import settings

KEY = jax.random.key(5)
MODULE = vae.AutoencoderKL(4, (1, 2), 1, latent_channels=4, scale=1.0)
RATES = optimizers.Settings(learning_rate=3e-3, weight_decay=0.0)
OBJECTIVE = autoencoding.Objective()


def pictures(*, count=2, side=8):
    """Smooth ones, which few numbers can tell."""
    row, column = np.mgrid[:side, :side] / side
    phases = np.random.default_rng(0).uniform(0, 6, (count, 2, 1, 1, 3))
    waves = np.sin(phases + 3 * row[..., None]) * np.cos(phases - column[..., None])
    return jnp.asarray(waves, jnp.float32)


@functools.cache
def step():
    return jax.jit(
        functools.partial(
            autoencoding.train_step,
            module=MODULE,
            optimizer=optimizers.make(RATES),
            objective=OBJECTIVE,
        ),
        compiler_options=settings.QUICKLY,
    )


@functools.partial(jax.jit, static_argnums=3, compiler_options=settings.QUICKLY)
def compute(key, variables, shown, objective):
    return autoencoding.loss(key, MODULE, variables, shown, objective=objective)


@functools.cache
def first_state():
    init = jax.jit(MODULE.init, compiler_options=settings.QUICKLY)
    variables = init(KEY, pictures())
    return states.initial_state(KEY, variables, optimizers.make(RATES))


def test_pictures_are_learnt():
    state, losses = first_state(), []
    for _ in range(40):
        state, figures = step()(states.step_key(state), state, pictures())
        losses.append(float(figures["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    reconstruct = jax.jit(
        functools.partial(autoencoding.reconstruct, MODULE),
        compiler_options=settings.QUICKLY,
    )
    ends = [
        reconstruct(states.variables_of(one), pictures())[1]
        for one in (first_state(), state)
    ]
    # Both domains of both records.
    assert ends[0].shape == (2, 2) and (ends[1] > ends[0] + 3.0).all()


def test_a_picture_that_is_not_finite_changes_nothing_but_counts():
    bad = pictures().at[0, 1, 0, 0, 0].set(jnp.nan)
    state, _ = step()(KEY, first_state(), bad)
    assert (state.step, state.skipped, state.failing) == (1, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, state.params, first_state().params)


def test_differences_are_told_by_domain():
    variables = states.variables_of(first_state())
    figures = [
        compute(KEY, variables, shown, OBJECTIVE)[1][0]
        for shown in (pictures(), pictures().at[:, 1].multiply(0.5))
    ]
    assert figures[0]["loss/image"] == figures[1]["loss/image"]
    assert figures[0]["loss/normal"] > figures[1]["loss/normal"]


@pytest.mark.parametrize("weight", ["squared", "divergence"])
def test_the_loss_is_the_sum_of_its_weighted_parts(weight):
    variables = states.variables_of(first_state())
    values = []
    for amount in (0.0, 0.5):
        objective = autoencoding.Objective(**{weight: amount})
        value, (figures, _) = compute(KEY, variables, pictures(), objective)
        values.append(value)
    np.testing.assert_allclose(
        values[1] - values[0], 0.5 * figures[f"loss/{weight}"], rtol=1e-3
    )


def test_what_comes_back_whole_has_the_highest_psnr():
    codec = vae.PixelShuffle(4)
    decoded, decibels = autoencoding.reconstruct(codec, {"params": {}}, pictures())
    np.testing.assert_array_equal(decoded, pictures())
    np.testing.assert_array_equal(decibels, 100.0)


def test_scaled_latents_have_a_deviation_of_one():
    """Oracle: draws from the posterior of a network with that scale."""
    variables = states.variables_of(first_state())
    shown = pictures(count=40)
    mean, square = autoencoding.latent_moments(MODULE, variables, shown)
    module = MODULE.clone(scale=float(1.0 / np.sqrt(square - mean**2)))
    encoded = module.apply({"params": variables["params"]}, shown, method="encode")
    # 20,480 draws, 5,120 of each channel.
    np.testing.assert_allclose(np.std(encoded.sample(KEY)), 1.0, atol=0.02)
