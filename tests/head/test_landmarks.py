"""Marks on the surface, and the maps between conventions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.head import landmarks
from tests.head import random_head


def test_marks_are_weighted_means_of_their_corners():
    head = random_head.load()
    found = landmarks.positions(head, head.template)
    corners = np.asarray(head.template)[np.asarray(head.faces)]
    for k in (0, 30, 67):
        weights = np.asarray(head.landmarks.barycentrics)[k]
        expected = weights @ corners[int(head.landmarks.faces[k])]
        np.testing.assert_allclose(found[k], expected, atol=1e-6)
    frames = jnp.stack([head.template, 2 * head.template])
    np.testing.assert_allclose(
        landmarks.positions(head, frames)[1], 2 * found, rtol=1e-5
    )
    assert landmarks.iris_positions(head, frames).shape == (2, 2, 3)


def test_the_map_from_mediapipe_names_each_point_once():
    chosen = landmarks.ibug_from_mediapipe(np.arange(478.0)[:, None])[:, 0]
    assert len(set(chosen)) == 68 and chosen.max() < 468
    # Well known points: outer eye corners, nose tip, mouth corners, chin.
    named = {36: 33, 45: 263, 30: 4, 48: 61, 54: 291, 8: 152}
    assert {k: int(chosen[k]) for k in named} == named


def test_mirroring_twice_changes_nothing():
    mirror = landmarks.IBUG_MIRROR
    np.testing.assert_array_equal(mirror[mirror], np.arange(68))
    middle = {8, 27, 28, 29, 30, 33, 51, 57, 62, 66}
    assert set(np.flatnonzero(mirror == np.arange(68))) == middle
    assert mirror[36] == 45 and mirror[48] == 54 and mirror[17] == 26


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 50), seed=st.integers(0, 1000))
def test_error_does_not_depend_on_the_image_size(scale, seed):
    rng = np.random.default_rng(seed)
    truth, noise = rng.normal(size=(68, 2)), rng.normal(size=(68, 2))
    truth[36], truth[45] = (-1, 0), (1, 0)
    found = [
        landmarks.normalized_error(
            jnp.asarray(s * (truth + noise), jnp.float32),
            jnp.asarray(s * truth, jnp.float32),
        )
        for s in (1.0, scale)
    ]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-4)
    expected = np.linalg.norm(noise[17:], axis=1).mean() / 2
    assert float(found[0]) == pytest.approx(expected, rel=1e-4)


def test_the_jaw_line_does_not_count():
    truth = np.zeros((68, 2), np.float32)
    truth[36], truth[45] = (-1, 0), (1, 0)
    found = truth.copy()
    found[:17] = 100.0
    error = landmarks.normalized_error(jnp.asarray(found), jnp.asarray(truth))
    assert error == 0
