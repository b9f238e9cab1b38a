"""Laws of the blocks: closed forms and other people's implementations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from geodiff_jax.models import layers


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def apply(module: nn.Module, params, *inputs):
    return module.apply({"params": params}, *inputs)


def test_time_is_embedded_by_cosines_then_sines():
    t, half = np.asarray([[0.0, 1.0], [21.0, 999.0]]), 5
    angles = t[..., None] * 10_000.0 ** (-np.arange(half) / half)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    # Angles up to 999 lose 999 x 2^-24 in float32.
    found = layers.timestep_embedding(jnp.asarray(t), 2 * half)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [64, 20])
def test_group_norm_is_that_of_flax_image_by_image(channels):
    # Far from zero, where the mean of squares less the square of means would fail.
    x = 100.0 + normal(2, 3, 4, 5, channels)
    params = {"scale": normal(channels), "bias": normal(channels, seed=1)}
    found = apply(layers.GroupNorm(), params, x)
    groups = 32 if channels == 64 else 4
    theirs = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)
    expected = apply(theirs, params, x.reshape(6, 4, 5, channels))
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=2e-4)


def test_layer_norm_is_that_of_flax():
    x, params = normal(3, 4, 8), {"scale": normal(8), "bias": normal(8, seed=1)}
    theirs = nn.LayerNorm(epsilon=1e-5)
    found, expected = (apply(m, params, x) for m in (layers.LayerNorm(), theirs))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("module", [layers.GroupNorm, layers.LayerNorm])
def test_norms_compute_in_float32(module):
    # bfloat16 has no numbers between 256 and 258.
    x = 256.0 + 2.0 * np.random.default_rng(0).integers(0, 2, (2, 3, 3, 32))
    params = {"scale": jnp.ones(32), "bias": jnp.zeros(32)}
    low, high = (apply(module(dtype=d), params, x) for d in (jnp.bfloat16, jnp.float32))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, high.astype(jnp.bfloat16))


def test_residual_blocks_start_as_the_identity():
    x, embedding = jnp.asarray(normal(2, 4, 4, 32)), jnp.asarray(normal(2, 8))
    found, _ = layers.ResBlock(32).init_with_output(jax.random.key(0), x, embedding)
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (1, 1)])
def test_upsampling_repeats_pixels_before_its_convolution(height, width):
    x = normal(2, 3, height, width, 4)
    params = {"conv": {"kernel": normal(3, 3, 4, 4), "bias": normal(4, seed=1)}}
    repeated = x.repeat(2, axis=-3).repeat(2, axis=-2)
    expected = apply(nn.Conv(4, (3, 3), padding=1), params["conv"], repeated)
    # Taps are summed before they are multiplied: 36 terms of about 1 in float32.
    np.testing.assert_allclose(apply(layers.Upsample(), params, x), expected, atol=1e-5)


@pytest.mark.parametrize(("padding", "first"), [((1, 1), 0), ((0, 1), 1)])
def test_downsampling_keeps_every_second_pixel_from_where_its_padding_says(
    padding, first
):
    x = normal(1, 6, 8, 2)
    kernel = np.zeros((3, 3, 2, 2), np.float32)
    kernel[1, 1] = np.eye(2)
    params = {"conv": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    found = apply(layers.Downsample(padding), params, x)
    np.testing.assert_array_equal(found, x[:, first::2, first::2])


def test_feed_forward_gates_its_first_half_by_its_second():
    x, module = normal(3, 2), layers.FeedForward()
    expand, contract = normal(2, 16), normal(8, 2)
    params = {
        "expand": {"kernel": expand, "bias": np.zeros(16, np.float32)},
        "contract": {"kernel": contract, "bias": np.zeros(2, np.float32)},
    }
    value, gate = np.split(x @ expand, 2, axis=-1)
    phi = 0.5 * (1.0 + np.vectorize(math.erf)(gate / np.sqrt(2.0)))
    expected = (value * gate * phi) @ contract
    np.testing.assert_allclose(apply(module, params, x), expected, atol=1e-5)
