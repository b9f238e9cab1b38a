"""Harmonics agree with 3DGS's, and are harmonics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.gaussians import spherical_harmonics
from tests.conftest import shared_data


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_agrees_with_gsplat(degree):
    golden = np.load(shared_data("goldens/sh.npz"))
    used = (degree + 1) ** 2
    coefficients = jnp.asarray(golden["coeffs"][:, :used])
    directions, weights = jnp.asarray(golden["dirs"]), jnp.asarray(golden["w"])

    def loss(sh, along):
        colors = spherical_harmonics.evaluate(sh, along)
        return jnp.sum(weights * colors), colors

    differentiate = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    gradients, colors = differentiate(coefficients, directions)
    # float32 against float64 over at most 16 terms of order one.
    np.testing.assert_allclose(colors, golden[f"colors_deg{degree}"], atol=5e-6)
    expected = golden[f"grad_coeffs_deg{degree}"][:, :used]
    np.testing.assert_allclose(gradients[0], expected, atol=5e-6)
    expected = golden[f"grad_dirs_deg{degree}"]
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-4, atol=2e-5)


def test_basis_is_orthonormal_on_the_sphere():
    # Gauss-Legendre in z and even steps in azimuth integrate degree 6 exactly.
    z, z_weights = np.polynomial.legendre.leggauss(8)
    azimuth = np.arange(16) * 2 * np.pi / 16
    radius = np.sqrt(1 - z**2)[:, None]
    x, y = radius * np.cos(azimuth), radius * np.sin(azimuth)
    points = np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], axis=-1)
    functions = spherical_harmonics.basis(jnp.asarray(points.reshape(-1, 3)), degree=3)
    weights = np.repeat(z_weights, 16) * 2 * np.pi / 16
    gram = np.asarray(functions).T @ (weights[:, None] * np.asarray(functions))
    np.testing.assert_allclose(gram, np.eye(16), atol=2e-6)


def test_from_color_inverts_the_constant_term():
    color = jnp.asarray([[0.2, 0.5, 1.0], [0.0, 0.9, 0.1]])
    sh = spherical_harmonics.from_color(color)[:, None]
    shown = 0.5 + spherical_harmonics.evaluate(sh, jnp.ones((2, 3)))
    np.testing.assert_allclose(shown, color, atol=1e-6)


def test_gradient_is_finite_where_there_is_no_direction():
    sh = jnp.ones((1, 16, 3))
    along = jnp.zeros((1, 3))
    gradient = jax.grad(lambda d: spherical_harmonics.evaluate(sh, d).sum())
    assert np.isfinite(jax.jit(gradient)(along)).all()


def test_odd_number_of_coefficients_is_refused():
    with pytest.raises(ValueError, match="got 5"):
        spherical_harmonics.evaluate(jnp.zeros((2, 5, 3)), jnp.ones((2, 3)))
