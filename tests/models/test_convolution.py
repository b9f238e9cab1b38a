"""Convolutions from patches are convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from geodiff_jax.models import convolution

SAME = ((1, 1), (1, 1))
NAMES = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
CASES = {
    "same": ((2, 5, 4, 6), (3, 3), (1, 1), SAME),
    "fewer pixels than the kernel": ((2, 2, 1, 6), (3, 3), (1, 1), SAME),
    "halved": ((1, 8, 6, 6), (3, 3), (2, 2), SAME),
    "halved as a VAE does": ((1, 8, 6, 6), (3, 3), (2, 2), ((0, 1), (0, 1))),
    "odd, oblong": ((2, 7, 5, 6), (2, 4), (2, 1), ((1, 0), (2, 3))),
}


def arrays(size, window, features=64):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], size)
    return x, jax.random.normal(keys[1], (*window, size[-1], features))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_patches_are_a_convolution_and_so_are_their_gradients(case):
    size, window, strides, padding = case
    x, kernel = arrays(size, window)

    def both(function):
        out, pull = jax.vjp(function, x, kernel)
        return out, *pull(jnp.cos(out))

    def ours(x, kernel):
        return convolution._from_patches(x, kernel, strides, padding)

    def xlas(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **NAMES)

    for one, two in zip(jax.jit(both, static_argnums=0)(ours), both(xlas), strict=True):
        # Sums of up to 576 terms of order one, in another order.
        np.testing.assert_allclose(one, two, atol=2e-4, rtol=1e-5)


def is_convolution(features, size, **options):
    x, kernel = arrays(size, (3, 3), features)
    run = functools.partial(
        convolution.convolve, strides=(1, 1), padding=SAME, **NAMES, **options
    )
    return "conv_general_dilated" in str(jax.make_jaxpr(run)(x, kernel))


def test_patches_are_made_where_the_kernel_is_the_larger_matrix(monkeypatch):
    small, large = (2, 4, 4, 6), (2, 6, 6, 6)
    assert not is_convolution(32, small) and is_convolution(64, large)
    assert is_convolution(32, small, lhs_dilation=(1, 2))
    assert is_convolution(32, small, rhs_dilation=(2, 2))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert is_convolution(32, small)


def test_flax_convolves_with_it():
    x, _ = arrays((2, 3, 4, 4, 6), (3, 3))
    options = {"features": 96, "kernel_size": (3, 3), "padding": 1}
    twin = nn.Conv(**options)
    ours = nn.Conv(**options, conv_general_dilated=convolution.convolve)
    variables = twin.init(jax.random.key(1), x)
    np.testing.assert_allclose(
        ours.apply(variables, x), twin.apply(variables, x), atol=1e-5
    )
