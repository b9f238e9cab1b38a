"""Gaussians follow their triangles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from geodiff_jax.gaussians import binding, model
from geodiff_jax.geometry import mesh

OCTAHEDRON = jnp.asarray(
    [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], jnp.float32
)
FACES = jnp.asarray(
    [[4, 0, 2], [4, 2, 1], [4, 1, 3], [4, 3, 0], [5, 2, 0], [5, 1, 2], [5, 3, 1]]
    + [[5, 0, 3]]
)

# Compiled whole: one by one, every operation would be a program of its own.
to_world, to_local = jax.jit(binding.to_world), jax.jit(binding.to_local)
covariance = jax.jit(model.Gaussians.covariance)
rotation_of = jax.jit(model.Gaussians.rotation)
shortest_axis = jax.jit(model.Gaussians.shortest_axis)
triangle_frames = jax.jit(mesh.triangle_frames)


def bumpy(seed: int) -> jax.Array:
    noise = np.random.default_rng(seed).normal(size=(6, 3))
    return jnp.asarray(0.1 * (np.asarray(OCTAHEDRON) + 0.2 * noise), jnp.float32)


def random_bound(seed: int, n: int = 64) -> tuple[model.Gaussians, binding.Binding]:
    rng = np.random.default_rng(seed)
    gaussians = model.Gaussians(
        means=jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        quaternions=jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        log_scales=jnp.asarray(rng.uniform(-3, 0, (n, 3)), jnp.float32),
        opacity_logits=jnp.zeros(n),
        sh=jnp.zeros((n, 1, 3)),
        alive=jnp.ones(n, bool),
    )
    return gaussians, binding.Binding(jnp.asarray(rng.integers(0, 8, n)))


def assert_same(one: model.Gaussians, other: model.Gaussians, *, atol: float):
    np.testing.assert_allclose(one.means, other.means, atol=atol)
    np.testing.assert_allclose(one.log_scales, other.log_scales, atol=10 * atol)
    np.testing.assert_allclose(covariance(one), covariance(other), atol=atol)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_to_local_inverts_to_world(seed):
    local, bound = random_bound(seed)
    vertices = bumpy(seed)
    world = to_world(local, bound, vertices, FACES)
    back = to_local(world, bound, vertices, FACES)
    # Means are of order 1 in triangles of order 0.1: float32 round-off times 10.
    assert_same(back, local, atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.2, 5.0))
def test_gaussians_move_rigidly_and_grow_with_the_mesh(seed, scale):
    local, bound = random_bound(seed)
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_rotvec(rng.uniform(-2, 2, 3)).as_matrix()
    translation = rng.uniform(-1, 1, 3)
    vertices = bumpy(seed)
    moved = scale * np.asarray(vertices) @ rotation.T + translation
    before = to_world(local, bound, vertices, FACES)
    after = to_world(local, bound, jnp.asarray(moved, jnp.float32), FACES)

    expected = scale * np.asarray(before.means) @ rotation.T + translation
    np.testing.assert_allclose(after.means, expected, atol=2e-5)
    expected = scale**2 * rotation @ np.asarray(covariance(before)) @ rotation.T
    np.testing.assert_allclose(covariance(after), expected, rtol=1e-3, atol=1e-4)


def test_agrees_with_the_paper_entry_by_entry():
    local, bound = random_bound(3, n=5)
    vertices = bumpy(3)
    rotation, scale, origin = (
        np.asarray(x, np.float64) for x in triangle_frames(vertices, FACES)
    )
    world = to_world(local, bound, vertices, FACES)
    means, world_scales = np.asarray(local.means), np.exp(world.log_scales)
    for i, face in enumerate(np.asarray(bound.face)):
        mean = scale[face] * rotation[face] @ means[i] + origin[face]
        np.testing.assert_allclose(np.asarray(world.means)[i], mean, atol=1e-6)
        turned = rotation[face] @ np.asarray(rotation_of(local))[i]
        np.testing.assert_allclose(np.asarray(rotation_of(world))[i], turned, atol=2e-6)
        scales = scale[face] * np.exp(np.asarray(local.log_scales)[i])
        np.testing.assert_allclose(world_scales[i], scales, rtol=1e-5)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
def total_and_gradients(means, quaternions, vertices, local, bound) -> jax.Array:
    moved = local.replace(means=means, quaternions=quaternions)
    world = binding.to_world(moved, bound, vertices, FACES)
    return jnp.sum(world.means) + jnp.sum(world.covariance())


@pytest.mark.parametrize("collapse", ["point", "line"])
def test_degenerate_triangles_give_finite_values_and_gradients(collapse):
    local, bound = random_bound(0)
    corners = np.zeros((6, 3), np.float32)
    if collapse == "line":
        corners[:, 0] = np.arange(6)
    corners = jnp.asarray(corners)

    arguments = (local.means, local.quaternions, corners)
    value, gradients = total_and_gradients(*arguments, local, bound)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    world = to_world(local, bound, corners, FACES)
    back = to_local(world, bound, corners, FACES)
    assert np.isfinite(back.log_scales).all() and np.isfinite(world.log_scales).all()


def test_gradient_agrees_with_differences():
    with jax.enable_x64(True):
        local, bound = random_bound(1, n=8)
        local = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, local
        )
        vertices = bumpy(1).astype(jnp.float64)

        def total(means, quaternions, corners):
            moved = local.replace(means=means, quaternions=quaternions)
            world = to_world(moved, bound, corners, FACES)
            return jnp.sum(jnp.sin(world.means)) + jnp.sum(world.covariance() ** 2)

        arguments = (local.means, local.quaternions, vertices)
        check_grads(jax.jit(total), arguments, order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_seed_shares_by_area(weighted):
    vertices = OCTAHEDRON * jnp.asarray([1.0, 1.0, 3.0])
    weights = np.array([1, 1, 1, 1, 3, 3, 3, 3.0]) if weighted else None
    _, bound = binding.seed(
        jax.random.key(0), vertices, FACES, count=4001, weights=weights
    )
    shares = np.bincount(bound.face, minlength=8)
    expected = np.asarray(mesh.face_areas(vertices, FACES), float)
    expected = expected * (1 if weights is None else weights)
    assert shares.sum() == 4001
    assert np.abs(shares - 4001 * expected / expected.sum()).max() <= 1


def test_seed_gives_every_triangle_its_minimum():
    vertices = OCTAHEDRON.at[4].set(jnp.asarray([0.0, 0.0, 1e-3]))
    weights = np.array([0, 1, 1, 1, 1, 1, 1, 1.0])
    _, bound = binding.seed(
        jax.random.key(0), vertices, FACES, count=101, weights=weights, minimum=2
    )
    shares = np.bincount(bound.face, minlength=8)
    assert shares.sum() == 101 and shares.min() == 2
    with pytest.raises(ValueError, match="raise `count`"):
        binding.seed(jax.random.key(0), vertices, FACES, count=7)


def test_seeded_gaussians_lie_inside_their_triangles_and_flat_on_them():
    vertices = bumpy(5)
    local, bound = binding.seed(jax.random.key(1), vertices, FACES, count=400)
    world = to_world(local, bound, vertices, FACES)
    rotation, _, _ = triangle_frames(vertices, FACES)
    normals = np.asarray(rotation)[np.asarray(bound.face), :, 1]
    corners = np.asarray(vertices)[np.asarray(FACES)[np.asarray(bound.face)]]
    means = np.asarray(world.means)
    # Each edge has the Gaussian on its inner side, and all lie in the plane.
    for k in range(3):
        inward = np.cross(normals, corners[:, (k + 1) % 3] - corners[:, k])
        assert (np.sum(inward * (means - corners[:, k]), axis=-1) > -1e-7).all()
    height = np.sum(normals * (means - corners[:, 0]), axis=-1)
    np.testing.assert_allclose(height, 0.0, atol=1e-7)
    alignment = np.abs(np.sum(shortest_axis(world) * normals, axis=-1))
    np.testing.assert_allclose(alignment, 1.0, atol=1e-5)


def test_seeds_spread_more_evenly_than_chance():
    triangle = jnp.asarray([[0, 0, 0], [1, 0, 0], [0, 1, 0]], jnp.float32)
    surplus = []
    for seed in range(6):
        local, bound = binding.seed(
            jax.random.key(seed), triangle, jnp.asarray([[0, 1, 2]]), count=400
        )
        means = to_world(local, bound, triangle, jnp.asarray([[0, 1, 2]])).means
        x, y = np.asarray(means)[:, 0], np.asarray(means)[:, 1]
        # The quarters at the corners.
        surplus += [(q.sum() - 100) for q in (x > 0.5, y > 0.5, x + y < 0.5)]
    by_chance = np.sqrt(400 * 3 / 16)
    assert np.sqrt(np.mean(np.square(surplus))) < 0.6 * by_chance


def test_losses_start_beyond_their_thresholds():
    local, _ = random_bound(0, n=4)
    local = local.replace(
        means=jnp.asarray([[0.5, 0, 0], [0, 3.0, 4.0], [0, 0, 0], [9, 0, 0]]),
        log_scales=jnp.log(
            jnp.asarray([[0.6] * 3, [0.5] * 3, [3.6, 4.6, 0.1], [9] * 3])
        ),
        alive=jnp.asarray([True, True, True, False]),
    )
    # Only the second mean is beyond 1 (by 4), only the third scale (by 3 and 4).
    np.testing.assert_allclose(binding.position_loss(local), 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(binding.scale_loss(local), 5 / 3, rtol=1e-6)
    visible = jnp.asarray([True, False, True, True])
    assert binding.position_loss(local, visible=visible) == 0
    gradient = jax.grad(lambda means: binding.position_loss(local.replace(means=means)))
    assert np.isfinite(gradient(jnp.zeros((4, 3)))).all()
