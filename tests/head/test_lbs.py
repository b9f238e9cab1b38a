"""Laws of skinning."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.head import lbs
from geodiff_jax.head.model import PARENTS

laws = settings(max_examples=20, deadline=None)
joint_transforms = jax.jit(lbs.joint_transforms, static_argnums=2)
skin = jax.jit(lbs.skin)
rotation_matrices = jax.jit(lbs.rotation_matrices)


def arrays(seed: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Joints, axis-angles, vertices and skinning weights."""
    rng = np.random.default_rng(seed)
    joints, angles = rng.normal(size=(2, 5, 3))
    vertices, weights = rng.normal(size=(9, 3)), rng.dirichlet(np.ones(5), 9)
    return tuple(
        jnp.asarray(x, jnp.float32) for x in (joints, angles, vertices, weights)
    )


def posed(angles, joints, vertices, weights) -> jax.Array:
    transforms = joint_transforms(rotation_matrices(angles), joints, PARENTS)
    return skin(vertices, weights, *transforms)


@laws
@given(seed=st.integers(0, 10_000))
def test_no_rotation_moves_nothing(seed):
    joints, angles, vertices, weights = arrays(seed)
    found = posed(jnp.zeros_like(angles), joints, vertices, weights)
    np.testing.assert_allclose(found, vertices, atol=2e-6)


@laws
@given(seed=st.integers(0, 10_000))
def test_the_root_alone_moves_all_rigidly(seed):
    joints, angles, vertices, weights = arrays(seed)
    only_root = jnp.zeros_like(angles).at[0].set(angles[0])
    rotation = np.asarray(jaxlie.SO3.exp(angles[0]).as_matrix())
    expected = (vertices - joints[0]) @ rotation.T + joints[0]
    found = posed(only_root, joints, vertices, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@laws
@given(seed=st.integers(0, 10_000))
def test_joints_carry_their_children_as_a_chain_of_frames(seed):
    """Oracle: homogeneous matrices of each joint's frame, multiplied down the tree."""
    joints, angles, _, _ = arrays(seed)
    rotations, translations = joint_transforms(
        rotation_matrices(angles), joints, PARENTS
    )
    frames: list[np.ndarray] = []
    for j, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = jaxlie.SO3.exp(angles[j]).as_matrix()
        start = joints[parent] if parent >= 0 else np.zeros(3)
        local[:3, 3] = np.asarray(joints[j]) - np.asarray(start)
        frames.append(frames[parent] @ local if parent >= 0 else local)
        rest = np.eye(4)
        rest[:3, 3] = -np.asarray(joints[j])
        expected = frames[j] @ rest
        np.testing.assert_allclose(rotations[j], expected[:3, :3], atol=1e-5)
        np.testing.assert_allclose(translations[j], expected[:3, 3], atol=2e-5)


@laws
@given(seed=st.integers(0, 10_000), joint=st.integers(1, 4))
def test_a_joint_stays_where_its_own_rotation_finds_it(seed, joint):
    joints, angles, _, _ = arrays(seed)
    alone = jnp.zeros_like(angles).at[joint].set(angles[joint])
    weights = jnp.eye(5)
    found = posed(alone, joints, joints, weights)
    np.testing.assert_allclose(found[joint], joints[joint], atol=5e-6)


def test_turning_the_neck_carries_jaw_and_eyes():
    joints, angles, vertices, _ = arrays(0)
    only_neck = jnp.zeros_like(angles).at[1].set(angles[1])
    rotation = np.asarray(jaxlie.SO3.exp(angles[1]).as_matrix())
    expected = (vertices - joints[1]) @ rotation.T + joints[1]
    for joint in (1, 2, 3, 4):
        weights = jnp.zeros((9, 5)).at[:, joint].set(1.0)
        found = posed(only_neck, joints, vertices, weights)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    root = jnp.zeros((9, 5)).at[:, 0].set(1.0)
    found = posed(only_neck, joints, vertices, root)
    np.testing.assert_allclose(found, vertices, atol=1e-6)


def test_gradients_are_finite_at_rest():
    joints, angles, vertices, weights = arrays(0)
    gradient = jax.grad(lambda a: jnp.sum(posed(a, joints, vertices, weights) ** 2))
    found = jax.jit(gradient)(jnp.zeros_like(angles))
    assert np.isfinite(found).all() and np.abs(found).max() > 0
