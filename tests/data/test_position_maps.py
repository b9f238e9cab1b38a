"""Position maps as pictures: what is drawn is where it was, and nothing is averaged."""

import jaxlie
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.data import position_maps

seeds = st.integers(0, 2**32 - 1)


def world(seed, *, reach=0.17):
    """(positions with an empty row, covered, pose, origin) of a head far from zero."""
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=3, scale=2.0)
    positions = origin + rng.uniform(-reach, reach, (5, 6, 3))
    covered = np.ones((5, 6), bool)
    covered[2] = False
    wxyz = rng.normal(size=4)
    pose = np.concatenate([wxyz / np.linalg.norm(wxyz), rng.normal(size=3)])
    return positions * covered[..., None], covered, pose, origin


@given(seeds)
def test_positions_come_back(seed):
    positions, covered, pose, origin = world(seed)
    pixels = position_maps.pixels_from_positions(positions, pose, origin)
    assert np.abs(pixels).max() < 1.0 and not pixels[~covered].any()
    found = position_maps.positions_from_pixels(pixels, covered, pose, origin)
    # Single precision, some metres from zero.
    np.testing.assert_allclose(found, positions, atol=5e-6)


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_maps_are_of_the_cameras_axes_and_of_no_place(seed):
    """Camera and head moved or turned together give the same map."""
    positions, covered, pose, origin = world(seed)
    rng = np.random.default_rng(seed)
    move = jaxlie.SE3.exp(np.float32(rng.normal(size=6)))
    other = np.asarray(move.apply(np.float32(positions))) * covered[..., None]
    turned = (jaxlie.SE3(np.float32(pose)) @ move.inverse()).parameters()
    there = np.asarray(move.apply(np.float32(origin)))
    np.testing.assert_allclose(
        position_maps.pixels_from_positions(other, np.asarray(turned), there),
        position_maps.pixels_from_positions(positions, pose, origin),
        atol=5e-5,  # Single precision, over the extent.
    )


def test_axes_are_the_cameras():
    """x right, y down, z away; this one looks along the world's -x, its y up."""
    rows = np.float32([[0, 0, -1], [0, -1, 0], [-1, 0, 0]])
    wxyz = np.asarray(jaxlie.SO3.from_matrix(rows).parameters())
    pose = np.concatenate([wxyz, [0.1, 0.2, 0.9]])
    nearer_higher_left = 0.5 * position_maps.EXTENT * np.eye(3).reshape(1, 3, 3)
    found = position_maps.pixels_from_positions(nearer_higher_left, pose, np.zeros(3))
    np.testing.assert_allclose(
        found[0], [[0, 0, -0.5], [0, -0.5, 0], [-0.5, 0, 0]], atol=1e-6
    )


def test_what_is_too_far_is_clipped():
    positions = np.full((1, 1, 3), [9.0, -9.0, 0.15])
    pose = np.array([1.0, 0, 0, 0, 0, 0, 0])
    found = position_maps.pixels_from_positions(positions, pose, np.zeros(3))
    np.testing.assert_allclose(found[0, 0], [1.0, -1.0, 0.5], atol=1e-6)


@pytest.mark.parametrize("size", [3, 8, 12, 17])
def test_resized_maps_have_the_texels_nearest_to_their_own(size):
    """By looking at every texel; a tie may go either way."""
    positions = np.random.default_rng(0).normal(size=(8, 8, 3))
    found = position_maps.resize(positions, size=size)
    assert found.shape == (size, size, 3)
    centres = (np.arange(8) + 0.5) / 8
    for row, column in np.ndindex(size, size):
        place = (np.array([row, column]) + 0.5) / size
        (one,) = np.argwhere((positions == found[row, column]).all(axis=-1))
        away = np.abs(centres[one] - place)
        nearest = np.abs(centres[:, None] - place).min(axis=0)
        np.testing.assert_allclose(away, nearest, atol=1e-12)
