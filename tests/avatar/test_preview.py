"""Cameras and moves of the preview."""

import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.avatar import preview
from geodiff_jax.head import model as head_model
from tests.avatar import toy_avatar, toy_head


def test_front_camera_looks_straight_at_the_face_and_frames_it():
    head = toy_head.load()
    params = toy_head.params(head).replace(rotation=jnp.array([2.9, 0.4, 0.3]))
    camera = preview.front_camera(head, params, toy_head.camera(), size=200, fill=0.8)
    vertices = head_model.vertices(head, params)
    local = camera.to_camera(vertices)
    rest = np.asarray(head.template)
    # The camera's axes are the head's: x to its left, y down, z into the face.
    np.testing.assert_allclose(local[:, 0], rest[:, 0], atol=1e-5)
    np.testing.assert_allclose(local[:, 1], -rest[:, 1], atol=1e-5)
    height = np.ptp(np.asarray(camera.project(vertices)[0])[:, 1])
    # Perspective enlarges the near half of a ball by a few per cent.
    assert 0.8 <= height / 200 < 0.83
    distance = jnp.linalg.norm(camera.position - params.translation)
    np.testing.assert_allclose(distance, toy_head.DISTANCE, rtol=1e-4)


@pytest.mark.parametrize("yaw", [-0.6, 0.6])
def test_turning_shows_the_side_that_the_camera_moves_to(yaw: float):
    head = toy_head.load()
    params = toy_head.params(head)
    front = preview.front_camera(head, params, toy_head.camera(), size=100)
    camera = preview.turned(front, params, yaw)
    # Seen from the front the subject's left is to the right of the image.
    in_head = jnp.array([1.0, -1.0, -1.0]) * (camera.position - params.translation)
    np.testing.assert_allclose(
        in_head, toy_head.DISTANCE * np.array([np.sin(yaw), 0, np.cos(yaw)]), atol=1e-5
    )


def test_expressions_rise_to_their_peak_and_unknown_ones_are_left_out():
    avatar = toy_avatar.load()
    raised = preview.expressed(avatar, {"jawOpen": 0.7, "earWiggle": 1.0}, level=0.5)
    np.testing.assert_allclose(raised.expression, [0.35])
    again = preview.expressed(avatar.replace(params=raised), {"jawOpen": 0.1})
    np.testing.assert_allclose(again.expression, [0.35])


def test_the_preview_turns_both_ways_and_ends_where_it_began():
    avatar = toy_avatar.load()
    front = preview.front_camera(avatar.head, avatar.params, toy_head.camera(), size=64)
    shots = preview.frames(avatar, front, fps=10)
    sideways = np.array([camera.position[0] for _, camera in shots])
    bound = toy_head.DISTANCE * np.sin(preview.TURN_RADIANS)
    np.testing.assert_allclose([sideways.min(), sideways.max()], [-bound, bound], 1e-3)
    np.testing.assert_allclose(shots[-1][0].expression, 0.0, atol=1e-6)


def test_a_sheet_has_a_tile_for_every_picture():
    tiles = [(str(i), np.full((10 + i, 20, 3), i / 10)) for i in range(5)]
    sheet = preview.contact_sheet(tiles, size=32, columns=3)
    assert sheet.shape == (2 * (32 + 18), 3 * 32, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        centre = sheet[row * 50 + 18 + 16, column * 32 + 16]
        np.testing.assert_allclose(centre, index / 10, atol=1 / 255)
