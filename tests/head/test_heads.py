"""What every head has in common, so that nothing else needs to know which it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.geometry import mesh
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from tests.head import heads

pose = jax.jit(head_model.head_vertices)


@pytest.fixture(scope="module", params=heads.NAMES)
def head(request):
    return heads.load(request.param)


@pytest.fixture(scope="module")
def template(head):
    return np.asarray(head.template)


@pytest.fixture(scope="module")
def posed(head):
    """The head with one joint turned, or its lids closed, at a time."""
    rest = head_model.neutral(head)
    turn = jnp.array([0.0, 0.3, 0.0])
    jaw = rest.replace(jaw=jnp.array([0.3, 0.0, 0.0]))
    cases = {
        "rest": rest,
        "neck": rest.replace(neck=turn),
        "jaw": jaw,
        "left_eye": rest.replace(eyes=rest.eyes.at[0].set(turn)),
        "right_eye": rest.replace(eyes=rest.eyes.at[1].set(turn)),
        "lids": rest.replace(eyelids=jnp.ones(2)),
    }
    return {name: np.asarray(pose(head, params)) for name, params in cases.items()}


def marks(head, vertices):
    return np.asarray(landmarks.positions(head, jnp.asarray(vertices)))


def test_no_parameters_give_the_template(template, posed):
    np.testing.assert_allclose(posed["rest"], template, atol=1e-7)


@pytest.mark.parametrize(
    ("joint", "region"),
    [
        ("left_eye", "left_eyeball"),
        ("right_eye", "right_eyeball"),
        ("jaw", "lower_teeth"),
        ("neck", "upper_teeth"),
    ],
)
def test_joints_turn_what_hangs_on_them_rigidly(head, template, posed, joint, region):
    """Rotations about the joint's own place, whose angle is the parameter's."""
    own = np.asarray(head.regions[region])
    at = np.asarray(head.joint_template)[head_model.JOINTS.index(joint)]
    before, after = template[own] - at, posed[joint][own] - at
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=2e-7)
    axis = 0 if joint == "jaw" else 1
    np.testing.assert_allclose(after[:, axis], before[:, axis], atol=1e-6)
    first, second = [k for k in range(3) if k != axis]
    angle = np.arctan2(after[:, second], after[:, first])
    angle -= np.arctan2(before[:, second], before[:, first])
    # From z to x the angle about y counts backwards.
    turned = np.angle(np.exp(1j * angle)) * (1 if axis == 0 else -1)
    far = np.hypot(before[:, first], before[:, second]) > 5e-3
    np.testing.assert_allclose(turned[far], 0.3, atol=1e-4)


def test_upper_teeth_stay_while_the_jaw_opens(head, template, posed):
    own = np.asarray(head.regions["upper_teeth"])
    np.testing.assert_allclose(posed["jaw"][own], template[own], atol=1e-6)
    gap = marks(head, posed["jaw"])[[62, 66], 1] - marks(head, template)[[62, 66], 1]
    assert gap[0] - gap[1] > 0.01


def test_eyes_look_to_the_left_by_turning_about_y(head, template, posed):
    rest = landmarks.iris_positions(head, jnp.asarray(template))
    for eye, name in enumerate(("left_eye", "right_eye")):
        moved = landmarks.iris_positions(head, jnp.asarray(posed[name])) - rest
        assert moved[eye, 0] > 2e-3 and np.abs(moved[1 - eye]).max() < 1e-6


def test_eyelids_close_the_eyes(head, template, posed):
    before, after = marks(head, template), marks(head, posed["lids"])
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
        opened, closed = (x[upper, 1] - x[lower, 1] for x in (before, after))
        assert opened > 3e-3 and closed < 0.4 * opened


def test_landmarks_lie_where_faces_have_them(head, template):
    found = marks(head, template)
    mirrored = found[landmarks.IBUG_MIRROR] * [-1.0, 1.0, 1.0]
    assert np.linalg.norm(found - mirrored, axis=1).max() < 6e-3
    assert found[45, 0] > found[42, 0] > 0 > found[39, 0] > found[36, 0]
    assert (np.diff(found[[24, 44, 30, 51, 57, 8], 1]) < 0).all()
    assert found[30, 2] == found[27:, 2].max()
    assert 0.08 < found[45, 0] - found[36, 0] < 0.12


def test_regions_lie_on_their_sides(head, template):
    assert set(head.regions) == set(head_model.REGIONS)
    masks = {name: np.asarray(mask) for name, mask in head.regions.items()}
    for name, mask in masks.items():
        assert mask.any() or name == "tongue", name
        for side, sign in (("left_", 1), ("right_", -1)):
            if name.startswith(side):
                assert (sign * template[mask, 0] > 0).mean() > 0.95, name
    height = {
        name: template[mask, 1].mean() for name, mask in masks.items() if mask.any()
    }
    assert height["scalp"] > height["face"] > height["neck"] > height["boundary"]
    assert template[masks["scalp"], 2].mean() < template[masks["face"], 2].mean()


def test_normals_are_unit_and_point_outwards(head, template):
    normals = np.asarray(mesh.vertex_normals(head.template, head.faces))
    used = np.unique(np.asarray(head.faces))
    length = np.linalg.norm(normals[used], axis=1)
    assert (np.abs(length - 1.0) < 1e-5).mean() > 0.999
    for names in (("face", "scalp"), ("left_eyeball",), ("right_eyeball",)):
        faces = np.asarray(head.faces)[head_model.face_region(head, *names)]
        corners = template[faces]
        scaled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        away = corners[:, 0] - template[np.unique(faces)].mean(axis=0)
        area = np.linalg.norm(scaled, axis=1)
        assert area[(away * scaled).sum(axis=1) > 0].sum() > 0.9 * area.sum(), names


def test_weights_are_shares(head):
    weights = np.asarray(head.skinning_weights)
    assert weights.min() >= -1e-7 and np.abs(weights.sum(axis=1) - 1).max() < 1e-5


def test_a_face_is_as_large_as_a_face(head, template):
    """Metres, not millimetres: irises lie 5.5 to 7.5 cm apart."""
    irises = landmarks.iris_positions(head, jnp.asarray(template))
    assert 0.055 < float(irises[0, 0] - irises[1, 0]) < 0.075
