"""The algebra of a set of Gaussians."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.gaussians import model

covariance = jax.jit(model.Gaussians.covariance)
rotation_of = jax.jit(model.Gaussians.rotation)
shortest_axis = jax.jit(model.Gaussians.shortest_axis)


def random_gaussians(seed: int = 0, *, n: int = 40, k: int = 1) -> model.Gaussians:
    rng = np.random.default_rng(seed)
    return model.Gaussians(
        means=jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        quaternions=jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        log_scales=jnp.asarray(rng.uniform(-3, 0, (n, 3)), jnp.float32),
        opacity_logits=jnp.asarray(rng.normal(size=n), jnp.float32),
        sh=jnp.asarray(rng.normal(size=(n, k, 3)), jnp.float32),
        alive=jnp.asarray(rng.random(n) < 0.8),
    )


def test_rotation_agrees_with_jaxlie():
    gaussians = random_gaussians()
    convert = jax.jit(lambda q: jaxlie.SO3(q).normalize().as_matrix())
    expected = convert(gaussians.quaternions)
    # float32 round-off of a few products.
    np.testing.assert_allclose(rotation_of(gaussians), expected, atol=1e-6)


def test_covariance_has_the_squared_scales_along_the_own_axes():
    gaussians = random_gaussians()
    rotation = np.asarray(rotation_of(gaussians))
    in_own_axes = (
        np.swapaxes(rotation, 1, 2) @ np.asarray(covariance(gaussians)) @ rotation
    )
    expected = np.asarray(gaussians.scales)[:, :, None] ** 2 * np.eye(3)
    np.testing.assert_allclose(in_own_axes, expected, atol=2e-6)


def test_length_of_a_quaternion_means_nothing():
    gaussians = random_gaussians()
    longer = gaussians.replace(quaternions=-3.0 * gaussians.quaternions)
    np.testing.assert_allclose(covariance(longer), covariance(gaussians), atol=1e-6)


def test_shortest_axis_has_the_least_variance():
    gaussians = random_gaussians()
    axis = np.asarray(shortest_axis(gaussians))
    variance = np.einsum("ni,nij,nj->n", axis, covariance(gaussians), axis)
    np.testing.assert_allclose(np.linalg.norm(axis, axis=-1), 1.0, atol=1e-6)
    least = np.exp(2 * np.asarray(gaussians.log_scales).min(axis=-1))
    np.testing.assert_allclose(variance, least, rtol=1e-3, atol=1e-7)


def test_empty_slots_are_transparent():
    gaussians = random_gaussians()
    dead = ~np.asarray(gaussians.alive)
    assert dead.any() and (np.asarray(gaussians.opacities)[dead] == 0).all()
    assert (np.asarray(gaussians.opacities)[~dead] > 0).all()


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0)])
def test_gradients_stay_finite(quaternion):
    gaussians = random_gaussians(n=3)
    start = jnp.broadcast_to(jnp.asarray(quaternion, jnp.float32), (3, 4))

    def total(quaternions):
        moved = gaussians.replace(quaternions=quaternions)
        return jnp.sum(moved.covariance()) + jnp.sum(moved.shortest_axis())

    assert np.isfinite(jax.jit(jax.grad(total))(start)).all()
