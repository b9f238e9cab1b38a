"""Lenses are undone: what is straight comes out straight."""

import numpy as np
import pytest

from geodiff_jax.data import lenses

LENS = np.array([60.0, 62.0, 31.0, 25.0])


@pytest.mark.parametrize(
    "coefficients", [[0.1, -0.05, 0.0, 0.0], [0.05, 0.02, 0.01, -0.02, 0.03]]
)
def test_each_pixel_comes_from_where_the_lens_put_it(coefficients):
    """Colours are coordinates, and those are linear: bilinear samples are exact."""
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
    picture = np.stack([x, y], axis=-1)
    found = lenses.undistort(picture, LENS, np.array(coefficients))
    points = (picture - LENS[2:]) / LENS[:2]
    expected = lenses.distort(points, np.array(coefficients)) * LENS[:2] + LENS[2:]
    seen = np.all((expected > 0.5) & (expected < [63.5, 47.5]), axis=-1)
    assert seen.mean() > 0.7
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-9)
    assert np.abs(expected - picture).max() > 0.3


def test_terms_are_opencvs():
    """Each by its own formula, at one point."""
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    point = np.array([x, y])
    for k, expected in enumerate(
        [
            point * (1 + r2),
            point * (1 + r2**2),
            point + [2 * x * y, r2 + 2 * y * y],
            point + [r2 + 2 * x * x, 2 * x * y],
            point * (1 + r2**3),
        ]
    ):
        found = lenses.distort(point, np.eye(5)[k])
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_pinholes_are_left_alone():
    picture = np.ones((4, 5, 3))
    assert lenses.undistort(picture, LENS, np.zeros(5)) is picture
