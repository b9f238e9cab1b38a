import numpy as np
import pytest
from scipy.spatial import transform

from geodiff_jax.tracking import gaze

JOINTS = np.array([[0.032, -0.03, 0.9], [-0.032, -0.03, 0.9]])  # Camera frame.
FORWARD = np.array([0.0, 0.0, -0.012])


def turned(angles):
    """Camera-frame irises of eyes turned by axis-angles given in the head frame."""
    camera_from_head = transform.Rotation.from_rotvec([np.pi, 0.1, -0.2]).as_matrix()
    rest = JOINTS + FORWARD
    turns = transform.Rotation.from_rotvec(angles @ camera_from_head.T)
    return camera_from_head, rest, JOINTS + turns.apply(rest - JOINTS)


def test_gaze_is_found_from_iris_pixels():
    angles = np.array([[0.2, -0.3, 0.0], [0.2, -0.3, 0.0]])
    rotation, rest, irises = turned(angles)
    found = gaze.eyes(JOINTS, rest, irises, rotation)
    _, _, again = turned(found)
    # No torsion is sought, so compare where the irises are, not the axis-angles.
    np.testing.assert_allclose(again, irises, atol=1e-4)


def test_eyes_that_disagree_are_drawn_together():
    angles = np.array([[0.0, 0.2, 0.0], [0.0, -0.2, 0.0]])
    rotation, rest, irises = turned(angles)
    found = gaze.eyes(JOINTS, rest, irises, rotation, vergence=0.5)
    between = np.linalg.norm(found[0] - found[1])
    assert between == pytest.approx(0.2, rel=0.1)


def test_rays_that_miss_the_eyeball_stay_within_reach():
    rays = np.array([[0.5, 0.0, 1.0], [0.5, 0.0, 1.0]])
    found = gaze.eyes(JOINTS, JOINTS + FORWARD, rays, np.eye(3), max_degrees=40.0)
    assert np.isfinite(found).all()
    assert np.degrees(np.linalg.norm(found, axis=1)).max() <= 40.0 + 1e-9


def test_irises_at_rest_need_no_turn():
    rest = JOINTS + FORWARD
    found = gaze.eyes(JOINTS, rest, rest, np.eye(3))
    np.testing.assert_allclose(found, 0.0, atol=1e-12)
