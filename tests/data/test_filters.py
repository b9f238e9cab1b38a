"""What is left out, and that nothing else is."""

import numpy as np
import pytest

from geodiff_jax.data import filters

GRID = (np.arange(32) + 0.5) / 32 - 0.5
DISC = np.hypot(*np.meshgrid(GRID, GRID))
HEAD = (DISC < 0.3).astype(np.float32)
PICTURE = np.array([0.0, 0.0, 100.0, 100.0])


def test_heads_count_as_seen_from_95_percent():
    assert filters.out_of_picture(0.95) is None
    assert "90 %" in filters.out_of_picture(0.949)


@pytest.mark.parametrize(
    "matte, words",
    [
        ((DISC < 0.35), None),
        ((DISC < 0.29), None),
        ((DISC < 0.0), "empty"),
        ((DISC < 0.2), "leaves out"),
        ((DISC < 9.0), "nearly all"),
        (np.roll(DISC < 0.35, 12, axis=1), "leaves out"),
    ],
)
def test_mattes_are_held_against_the_head(matte, words):
    found = filters.faulty_matte(matte.astype(np.float32), HEAD)
    assert (found is None) if words is None else (words in found)


def marks(path):
    """A face of 100 pixels on its way."""
    rng = np.random.default_rng(0)
    face = rng.uniform(0, 100, (20, 2))
    face[:2] = [[0, 0], [100, 100]]
    return face[None] + np.asarray(path, float)[:, None, None]


def test_a_cut_is_found_where_it_is():
    still = [0, 1, 0, 1, 80, 81, 80]
    reason = filters.scene_cut(marks(still), np.arange(10, 17))
    assert reason == "scene cut after frame 13"


def test_a_head_that_starts_and_stops_is_no_cut():
    # As fast as half a face a frame: only starting and stopping are sudden.
    path = [0, 0, 0, 50, 100, 150, 150, 150]
    assert filters.scene_cut(marks(path), np.arange(8)) is None


def test_frames_apart_are_not_compared():
    ids = np.array([0, 1, 2, 3, 90, 91, 92])
    assert filters.scene_cut(marks([0, 1, 0, 1, 80, 81, 80]), ids) is None
    assert filters.scene_cut(marks([0, 80]), np.arange(2)) is None


def test_only_other_faces_count():
    own = np.array([10.0, 10, 50, 50])
    same = own + [4, 4, 4, 4]
    other = own + [45, 0, 45, 0]
    assert filters.several_faces(np.zeros((0, 4)), own) is None
    assert filters.several_faces(np.stack([same, own]), own) is None
    assert filters.several_faces(np.stack([same, other]), own) == "several faces"


def test_only_hands_in_the_picture_count():
    inside, outside = PICTURE + 60, PICTURE + 200
    assert filters.hands(np.stack([outside]), PICTURE) is None
    assert filters.hands(np.stack([outside, inside]), PICTURE) == "a hand"
