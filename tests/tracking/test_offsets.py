import numpy as np
import pytest

from geodiff_jax.head import landmarks, procedural
from geodiff_jax.head import model as head_model
from geodiff_jax.tracking import offsets

AMPLITUDE, LENGTH = 0.002, 0.02


@pytest.fixture(scope="module")
def model():
    return procedural.load()


@pytest.fixture(scope="module")
def basis(model):
    return offsets.field_basis(model, amplitude=AMPLITUDE, length=LENGTH)


def test_prior_has_the_amplitude_at_landmarks_and_less_elsewhere(model, basis):
    deviation = np.linalg.norm(basis, axis=1)
    assert deviation.max() <= AMPLITUDE * 1.001
    nose = np.asarray(model.faces)[model.landmarks.faces[30]]
    # The share of independent variance is not passed on.
    np.testing.assert_allclose(deviation[nose], AMPLITUDE, rtol=0.05)


def test_offsets_fade_away_from_the_face(model, basis):
    template = np.asarray(model.template)
    marks = np.asarray(landmarks.positions(model, model.template))
    distance = np.linalg.norm(template[:, None] - marks, axis=-1).min(axis=1)
    far = distance > 4.0 * LENGTH
    assert far.any()
    assert np.linalg.norm(basis[far], axis=1).max() < 0.01 * AMPLITUDE


def test_neighbours_move_alike(model, basis):
    template, faces = np.asarray(model.template), np.asarray(model.faces)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    eyes = np.asarray(model.regions["left_eyeball"] | model.regions["right_eyeball"])
    ends = ends[~eyes[ends].any(axis=1)]
    gap = np.linalg.norm(template[ends[:, 0]] - template[ends[:, 1]], axis=1)
    change = np.linalg.norm(basis[ends[:, 0]] - basis[ends[:, 1]], axis=1)
    # A squared-exponential process changes by at most amplitude / length per metre.
    assert (change <= 1.01 * AMPLITUDE / LENGTH * gap + 1e-9).all()


def test_eyeballs_stay_round_and_take_their_joints_along(model, basis):
    field = basis @ np.random.default_rng(0).normal(size=(basis.shape[1], 3))
    moved = offsets.apply(model, field)
    for name, joint in (("left_eyeball", "left_eye"), ("right_eyeball", "right_eye")):
        ball = np.asarray(model.regions[name])
        shift = np.asarray(moved.template - model.template)[ball]
        np.testing.assert_allclose(shift, shift[:1].repeat(ball.sum(), 0), atol=1e-7)
        k = head_model.JOINTS.index(joint)
        joints = np.asarray(moved.joint_template - model.joint_template)
        np.testing.assert_allclose(joints[k], shift[0], atol=1e-7)
    assert moved.template.dtype == model.template.dtype


def test_lids_never_sink_into_an_eyeball(model, basis):
    """Offsets that draw the whole eye region inwards slide over the eyeball instead."""
    template = np.asarray(model.template, np.float64)
    ball = np.asarray(model.regions["left_eyeball"])
    centre = template[ball].mean(axis=0)
    radius = np.linalg.norm(template[ball] - centre, axis=1).max()
    inwards = np.where(ball[:, None], 0.0, 0.1 * (centre - template))
    ridden = offsets.ride_on_eyeballs(model, inwards)
    before = np.linalg.norm(template - centre, axis=1)
    after = np.linalg.norm(template + ridden - centre, axis=1)
    skin = ~(ball | np.asarray(model.regions["right_eyeball"]))
    skin &= template[:, 0] > 0.0
    near = skin & (before < 1.2 * radius)
    assert near.any()
    np.testing.assert_allclose(after[near], before[near], rtol=1e-9)
    far = skin & (before > 2.0 * radius)
    np.testing.assert_array_equal(ridden[far], inwards[far])


def test_outward_offsets_are_left_alone(model):
    template = np.asarray(model.template, np.float64)
    forwards = np.broadcast_to([0.0, 0.0, 0.002], template.shape)
    ridden = offsets.ride_on_eyeballs(model, forwards)
    np.testing.assert_allclose(ridden, forwards, atol=1e-15)


def test_bounded_offsets_stay_below_the_bound_and_keep_their_direction():
    long = np.array([[0.0, 0.0, 0.0], [1e-3, 0.0, 0.0], [0.0, 0.02, 0.02]])
    short = offsets.bounded(long, 0.0045)
    assert np.linalg.norm(short, axis=1).max() < 0.0045
    np.testing.assert_allclose(short[:2], long[:2], rtol=1e-3)
    np.testing.assert_allclose(np.cross(short[2], long[2]), 0.0, atol=1e-12)
