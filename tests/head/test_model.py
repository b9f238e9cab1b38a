"""Laws of the head, whichever source fills it."""

import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.head import model as head_model
from tests.head import random_head

laws = settings(max_examples=15, deadline=None)
vertices = jax.jit(head_model.vertices)
head_vertices = jax.jit(head_model.head_vertices)
HEAD = random_head.load()


def test_the_neutral_head_is_the_template():
    found = vertices(HEAD, head_model.neutral(HEAD))
    np.testing.assert_allclose(found, HEAD.template, atol=1e-6)
    assert head_model.neutral(HEAD, batch=(2, 3)).eyes.shape == (2, 3, 2, 3)


@laws
@given(seed=st.integers(0, 10_000))
def test_rotation_and_translation_move_the_head_rigidly(seed):
    params = random_head.params(seed)
    pose = jaxlie.SE3.from_rotation_and_translation(
        jaxlie.SO3.exp(params.rotation), params.translation
    )
    local = head_vertices(HEAD, params)
    matrix = np.asarray(pose.as_matrix())
    expected = local @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(vertices(HEAD, params), expected, atol=1e-6)


@laws
@given(seed=st.integers(0, 10_000))
def test_shapes_add_up_at_rest(seed):
    params = random_head.params(seed)
    found = head_model.rest_vertices(HEAD, params)
    expected = (
        HEAD.template
        + np.tensordot(params.identity, HEAD.identity_basis, 1)
        + np.tensordot(params.expression, HEAD.expression_basis, 1)
        + np.tensordot(params.eyelids, HEAD.eyelid_basis, 1)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_expressions_turn_the_joints_that_they_drive():
    """What drivers add equals what the joints' own parameters would."""
    still = HEAD.replace(
        expression_basis=jnp.zeros_like(HEAD.expression_basis),
        # Expressions drive neck, jaw and eyes; the root has no parameter of its own.
        joint_drivers=HEAD.joint_drivers.at[:, 0].set(0.0),
        joint_expression_basis=None,
    )
    rest = head_model.neutral(still)
    strengths = jnp.asarray([0.7, -0.2, 0.4])
    driven = vertices(still, rest.replace(expression=strengths))
    angles = np.tensordot(strengths, still.joint_drivers, 1)
    own = rest.replace(
        neck=jnp.asarray(angles[1]),
        jaw=jnp.asarray(angles[2]),
        eyes=jnp.asarray(angles[3:]),
    )
    np.testing.assert_allclose(driven, vertices(still, own), atol=1e-6)


def test_each_eye_turns_its_own_joint():
    one_each = HEAD.replace(
        skinning_weights=jnp.eye(5)[jnp.arange(30) % 5], pose_basis=None
    )
    rest = head_model.neutral(one_each)
    left = rest.replace(eyes=rest.eyes.at[0, 1].set(0.3))
    moved = np.abs(vertices(one_each, left) - vertices(one_each, rest)).max(axis=1)
    assert set(np.flatnonzero(moved > 1e-6) % 5) == {
        head_model.JOINTS.index("left_eye")
    }


def test_joints_follow_identity_and_expression():
    person = head_model.neutral(HEAD).replace(
        identity=jnp.asarray([1.0, 2, 3, 4]), expression=jnp.asarray([0.3, 1.0, -2.0])
    )
    nodding = person.replace(neck=jnp.asarray([0.5, 0, 0]))
    joints = (
        HEAD.joint_template
        + np.tensordot(person.identity, HEAD.joint_identity_basis, 1)
        + np.tensordot(person.expression, HEAD.joint_expression_basis, 1)
    )
    # A vertex on the neck's joint, fixed to it, stays.
    pinned = HEAD.replace(
        template=HEAD.template.at[0].set(HEAD.joint_template[1]),
        identity_basis=HEAD.identity_basis.at[:, 0].set(
            HEAD.joint_identity_basis[:, 1]
        ),
        expression_basis=HEAD.expression_basis.at[:, 0].set(
            HEAD.joint_expression_basis[:, 1]
        ),
        joint_drivers=jnp.zeros_like(HEAD.joint_drivers),
        skinning_weights=HEAD.skinning_weights.at[0].set(jnp.eye(5)[1]),
        pose_basis=HEAD.pose_basis.at[:, 0].set(0.0),
    )
    np.testing.assert_allclose(vertices(pinned, nodding)[0], joints[1], atol=1e-6)


def test_pose_correctives_are_linear_in_the_elements_of_the_rotations():
    turned = head_model.neutral(HEAD).replace(jaw=jnp.asarray([0.0, 0.0, jnp.pi / 2]))
    plain = HEAD.replace(pose_basis=None)
    # The jaw's matrix is ((0, -1, 0), (1, 0, 0), (0, 0, 1)), the second of four.
    first = 9 * 1
    expected = (
        -HEAD.pose_basis[first]
        - HEAD.pose_basis[first + 1]
        + HEAD.pose_basis[first + 3]
        - HEAD.pose_basis[first + 4]
    )
    corrected = head_model.with_offsets(plain, expected)
    np.testing.assert_allclose(
        head_vertices(HEAD, turned), head_vertices(corrected, turned), atol=1e-6
    )


def test_eyelids_may_be_added_to_the_posed_head():
    """FLAME's trackers add them after skinning, so they do not turn with the neck."""
    last = HEAD.replace(eyelids_after_skinning=True)
    closed = random_head.params(5)
    opened = closed.replace(eyelids=jnp.zeros(2))
    moved = head_vertices(last, closed) - head_vertices(last, opened)
    expected = np.tensordot(closed.eyelids, HEAD.eyelid_basis, 1)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    np.testing.assert_allclose(
        head_vertices(last, opened), head_vertices(HEAD, opened), atol=1e-6
    )


def test_canonical_keeps_only_the_person():
    params = random_head.params(1, batch=(3,))
    found = head_model.canonical(params)
    np.testing.assert_array_equal(found.identity, params.identity)
    others = {k: v for k, v in vars(found).items() if k != "identity"}
    assert all((value == 0).all() for value in others.values())
    assert found.eyes.shape == params.eyes.shape


def test_frames_are_posed_like_each_alone():
    params = random_head.params(2, batch=(2, 3))
    found = vertices(HEAD, params)
    assert found.shape == (2, 3, random_head.NUM_VERTICES, 3)
    one = jax.tree.map(lambda x: x[1, 2], params)
    np.testing.assert_allclose(found[1, 2], vertices(HEAD, one), atol=1e-6)


def test_offsets_move_the_template_only():
    offsets = jnp.full((random_head.NUM_VERTICES, 3), 0.01)
    personal = head_model.with_offsets(HEAD, offsets)
    np.testing.assert_allclose(personal.template - HEAD.template, 0.01, rtol=1e-4)
    same = personal.replace(template=HEAD.template)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), same, HEAD))


@pytest.mark.parametrize("names", [("face",), ("face", "neck"), ()])
def test_face_region_needs_all_three_corners(names):
    union = functools.reduce(
        np.logical_or, [np.asarray(HEAD.regions[n]) for n in names], np.zeros(30, bool)
    )
    expected = [
        all(union[corner] for corner in face) for face in np.asarray(HEAD.faces)
    ]
    np.testing.assert_array_equal(head_model.face_region(HEAD, *names), expected)


def test_gradients_are_finite_at_rest():
    def total(params):
        return jnp.sum(jnp.sin(10 * head_model.vertices(HEAD, params)))

    gradient = jax.jit(jax.grad(total))(head_model.neutral(HEAD))
    for name, value in vars(gradient).items():
        assert np.isfinite(value).all() and np.abs(value).max() > 0, name
