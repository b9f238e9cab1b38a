"""Hair thickness: what the outline says, and nothing where it says nothing."""

import numpy as np

from geodiff_jax.avatar import outline
from geodiff_jax.head import model as head_model
from tests.avatar import toy_head


def posed():
    head = toy_head.load()
    params = toy_head.params(head)
    return head, np.asarray(head_model.vertices(head, params))


def apparent_radius(camera, radius: float) -> float:
    """Pixels: the outline of a ball is where the line of sight touches it."""
    sine = radius / toy_head.DISTANCE
    return float(camera.intrinsics[0]) * sine / np.sqrt(1 - sine**2)


def test_a_wider_outline_is_hair_of_that_thickness():
    head, vertices = posed()
    camera = toy_head.camera(512)
    matte = toy_head.disc(512, apparent_radius(camera, 0.115)).astype(float)
    thickness = outline.hair_thickness(head, vertices, camera, matte)
    scalp = np.asarray(head.regions["scalp"])
    # The crown is seen edge-on: 15 mm; the border to the face is kept thin.
    crown = scalp & (np.abs(vertices[:, 2] - toy_head.DISTANCE) < 0.02)
    crown &= vertices[:, 1] < -0.08
    np.testing.assert_allclose(thickness[crown], 0.015, atol=0.003)
    assert np.all(thickness[~scalp] == 0)


def test_a_tight_outline_has_no_hair():
    head, vertices = posed()
    camera = toy_head.camera(512)
    matte = toy_head.disc(512, apparent_radius(camera, 0.1)).astype(float)
    thickness = outline.hair_thickness(head, vertices, camera, matte)
    assert thickness.max() < 0.0025  # A pixel and a half of the matte's raster.


def test_uncovered_pixels_lie_beside_the_shell_at_its_depth():
    head, vertices = posed()
    camera = toy_head.camera(128)
    region = toy_head.disc(128, 1.2 * apparent_radius(camera, 0.1))
    pixels, depth, reach, face = outline.uncovered(head, vertices, camera, region)
    radius = np.linalg.norm(pixels - 64.0, axis=1)
    assert len(pixels) > 100
    # Chords of the polygonal outline lie up to 1 % inside the circle, and the layer
    # reaches 0.6 % of the frame's height under the shell.
    assert radius.min() > 0.97 * apparent_radius(camera, 0.1) - 1 - 0.006 * 128
    np.testing.assert_allclose(depth, toy_head.DISTANCE, atol=0.045)
    assert np.all(face >= 0)
    expected = (radius - apparent_radius(camera, 0.1)) * toy_head.DISTANCE / 320
    np.testing.assert_allclose(reach, np.maximum(expected, 0), atol=0.005)
