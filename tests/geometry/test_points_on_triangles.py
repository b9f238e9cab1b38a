"""Points given as faces and barycentric coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.geometry import mesh


def random_triangles(count: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, 3, 3))


def test_barycentrics_give_back_points_of_the_plane():
    corners = random_triangles(50)
    weights = jax.random.normal(jax.random.key(1), (50, 3))
    weights = weights + (1 - weights.sum(1, keepdims=True)) / 3
    points = jnp.sum(weights[..., None] * corners, axis=1)
    # Single precision on random triangles, the thinnest of them 1 : 30.
    np.testing.assert_allclose(
        mesh.barycentrics(points, corners), weights, rtol=2e-3, atol=2e-3
    )


def test_barycentrics_ignore_the_height_over_the_plane():
    corners = random_triangles(50)
    normal = jnp.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lifted = corners.mean(axis=1) + 0.3 * normal
    np.testing.assert_allclose(mesh.barycentrics(lifted, corners), 1 / 3, atol=2e-3)


def test_barycentrics_are_finite_on_degenerate_triangles():
    line = jnp.array([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], [[1.0, 1, 1]] * 3])
    gradient = jax.jacrev(mesh.barycentrics)(jnp.ones((2, 3)), line)
    np.testing.assert_array_equal(
        mesh.barycentrics(jnp.ones((2, 3)), line), [[1, 0, 0], [1, 0, 0]]
    )
    assert np.all(np.isfinite(gradient))


def test_every_face_gets_its_share_to_within_one():
    weights = np.array([0.0, 1.0, 2.5, 0.3, 6.2])
    face, barycentrics = mesh.sample_surface(jax.random.key(3), weights, count=1000)
    share = np.bincount(face, minlength=5)
    assert np.all(np.abs(share - 1000 * weights / weights.sum()) <= 1)
    np.testing.assert_allclose(barycentrics.sum(axis=1), 1.0)
    assert barycentrics.min() >= 0
    # Uniform in a triangle: each coordinate has mean 1/3 and variance 1/18.
    np.testing.assert_allclose(barycentrics.mean(axis=0), 1 / 3, atol=0.03)
    np.testing.assert_allclose(barycentrics.var(axis=0), 1 / 18, atol=0.01)


def test_a_surface_without_area_cannot_be_sampled():
    with pytest.raises(ValueError, match="positive area"):
        mesh.sample_surface(jax.random.key(0), np.zeros(4), count=10)
