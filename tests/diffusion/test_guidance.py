"""Laws of classifier-free guidance."""

import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.diffusion import guidance

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
GIVEN = {"map": jnp.asarray([[1.0], [2.0]]), "tokens": (jnp.ones((2, 3)), None)}
WITHOUT = {"map": GIVEN["map"], "tokens": (jnp.zeros((2, 3)), None)}
T = jnp.asarray(500)


class Net:
    """Counts its passes and the samples that it has seen."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, conditions):
        self.batches.append(x.shape[0])
        t = jnp.reshape(t, (-1, 1)) / 1000
        return jnp.sin(x * conditions["map"] + t) + conditions["tokens"][0] * x


@pytest.mark.parametrize("one_pass", [True, False])
def test_predictions_are_pushed_away_from_the_unconditional(one_pass):
    net = Net()
    guided = guidance.guide(net, GIVEN, WITHOUT, scale=2.5, one_pass=one_pass)
    found = guided(X, T)
    assert net.batches == ([4] if one_pass else [2, 2])
    without, given = net(X, T, WITHOUT), net(X, T, GIVEN)
    np.testing.assert_allclose(found, without + 2.5 * (given - without), rtol=1e-5)


@pytest.mark.parametrize("one_pass", [True, False])
def test_scale_one_is_the_conditional_model_exactly(one_pass):
    net = Net()
    expected = net(X, T, GIVEN)
    # So far away that adding and taking away again would round.
    far = {**GIVEN, "tokens": (jnp.full((2, 3), 1e4), None)}
    for scale in (1, 1.0, jnp.asarray(1.0)):
        guided = guidance.guide(net, GIVEN, far, scale=scale, one_pass=one_pass)
        np.testing.assert_array_equal(guided(X, T), expected)


def test_scale_one_in_python_costs_one_pass():
    net = Net()
    guidance.guide(net, GIVEN, WITHOUT, scale=1.0)(X, T)
    assert net.batches == [2]


def test_unconditional_samples_come_first():
    seen = []

    def net(x, t, conditions):
        seen.append(conditions["tokens"][0])
        return x

    guidance.guide(net, GIVEN, WITHOUT, scale=2.0)(X, T)
    np.testing.assert_array_equal(seen[0], np.repeat([[0.0], [1.0]], 2, 0) * np.ones(3))


@pytest.mark.parametrize("shape", [(2,), (1,)])
def test_times_of_samples_are_doubled_too(shape):
    net, t = Net(), jnp.full(shape, 300)
    found = guidance.guide(net, GIVEN, WITHOUT, scale=2.0)(X, t)
    expected = guidance.guide(net, GIVEN, WITHOUT, scale=2.0, one_pass=False)(X, t)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_conditions_without_the_batch_are_refused_by_name():
    shared = {"map": jnp.ones((1, 1)), "tokens": (jnp.ones((2, 3)), None)}
    with pytest.raises(ValueError, match=r"2 samples in front.*'map'.*one_pass=False"):
        guidance.guide(Net(), shared, WITHOUT, scale=2.0)(X, T)
