"""Primitives agree with their naive forms, and stay finite where those fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax import numerics

safe_norm = jax.jit(numerics.safe_norm)
normalize = jax.jit(numerics.normalize)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.floats(-8, 8))
def test_norm_and_normalize_agree_with_numpy(seed, exponent):
    vectors = np.random.default_rng(seed).normal(size=(5, 3)) * 10**exponent
    expected = np.linalg.norm(vectors, axis=-1)
    array = jnp.asarray(vectors, jnp.float32)
    # float32 round-off of a short sum.
    np.testing.assert_allclose(safe_norm(array), expected, rtol=1e-6)
    expected = vectors / expected[:, None]
    np.testing.assert_allclose(normalize(array), expected, atol=1e-6)


@pytest.mark.parametrize("function", [numerics.safe_norm, numerics.normalize])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-13])
def test_vanishing_vectors_have_zero_value_and_gradient(function, length):
    vectors = jnp.full((2, 3), length)
    np.testing.assert_array_equal(function(vectors), 0.0)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(function(v))))
    np.testing.assert_array_equal(gradient(vectors), 0.0)


def test_gradient_of_norm_is_the_direction():
    vector = jnp.asarray([3.0, 0.0, 4.0])
    np.testing.assert_allclose(jax.grad(numerics.safe_norm)(vector), [0.6, 0, 0.8])


def test_logit_inverts_sigmoid_and_stays_finite_at_the_ends():
    values = jnp.linspace(-9.0, 9.0, 19)
    found = numerics.logit(jax.nn.sigmoid(values))
    # At 9 one ulp of the probability moves the logit by 6e-8 / 1.2e-4.
    np.testing.assert_allclose(found, values, atol=2e-3)
    ends = jnp.asarray([0.0, 1.0])
    assert np.isfinite(numerics.logit(ends)).all()
    assert np.isfinite(jax.grad(lambda p: numerics.logit(p).sum())(ends)).all()


def test_masked_mean_is_the_mean_of_what_is_kept():
    values = jnp.arange(12.0).reshape(3, 4)
    mask = (values > 4).astype(jnp.float32)
    np.testing.assert_allclose(numerics.masked_mean(values, mask), 8.0)
    row = jnp.asarray([0.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(numerics.masked_mean(values, row[None]), 5.0)


def test_masked_mean_of_nothing_is_zero_with_finite_gradient():
    nothing = jnp.zeros((3, 4))
    assert numerics.masked_mean(jnp.ones((3, 4)), nothing) == 0
    gradient = jax.grad(numerics.masked_mean)(jnp.ones((3, 4)), nothing)
    np.testing.assert_array_equal(gradient, 0.0)
