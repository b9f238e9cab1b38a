"""Hair thickness: what the outline says, and nothing where it says nothing."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from geodiff_jax.avatar import outline
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.render import mesh_rasterizer
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
    image = np.full((512, 512, 3), 0.3)
    thickness = outline.hair_thickness(head, vertices, camera, image, matte)
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
    image = np.full((512, 512, 3), 0.3)
    thickness = outline.hair_thickness(head, vertices, camera, image, matte)
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


def test_gaps_between_strands_do_not_thin_the_hair():
    head, vertices = posed()
    camera = toy_head.camera(512)
    image = np.full((512, 512, 3), 0.3)
    matte = toy_head.disc(512, apparent_radius(camera, 0.115)).astype(float)
    row, column = np.indices(matte.shape) - 255.5
    outside = np.hypot(row, column) > apparent_radius(camera, 0.102)
    slits = outside & (np.indices(matte.shape)[1] % 12 < 2)
    whole, slit = (
        outline.hair_thickness(head, vertices, camera, image, mask)
        for mask in (matte, np.where(slits, 0.0, matte))
    )
    np.testing.assert_allclose(slit, whole, atol=0.002)


def seen_head():
    """The built-in head, its camera, the pixels it covers, and its vertices' pixels."""
    head = procedural.load()
    vertices = np.asarray(head_model.vertices(head, toy_head.params(head)))
    camera = toy_head.camera(256)
    bare = mesh_rasterizer.rasterize(jnp.asarray(vertices), head.faces, camera)
    covered = np.asarray(bare.face) >= 0
    pixels = np.asarray(camera.project(jnp.asarray(vertices))[0])
    return head, vertices, camera, covered, pixels


@pytest.mark.parametrize(("beside", "hangs"), [(0.25, True), (0.02, False)])
def test_beside_the_neck_hair_counts_and_a_collar_does_not(beside, hangs):
    head, vertices, camera, covered, pixels = seen_head()
    # 15 mm all around head and neck: hair above, that or cloth below.
    reach = 0.015 / toy_head.DISTANCE * float(camera.intrinsics[0])
    matte = (ndimage.distance_transform_edt(~covered) <= reach).astype(float)
    ears = np.asarray(head.regions["left_ear"])
    image = np.full((256, 256, 3), 0.3)
    image[round(pixels[ears, 1].max()) :] = beside
    thickness = outline.hair_thickness(head, vertices, camera, image, matte)
    nape = outline.hair_support(head) & (np.asarray(head.template)[:, 1] < -0.07)
    assert nape.sum() > 50
    assert np.median(thickness[nape]) == pytest.approx(0.015 * hangs, abs=0.006)
    assert np.all(thickness[~outline.hair_support(head)] == 0)


def test_a_tight_frame_sees_the_same_hair():
    head, vertices = posed()
    camera = toy_head.camera(512)
    radius = apparent_radius(camera, 0.115)
    matte = toy_head.disc(512, radius).astype(float)
    margin = round(256 - radius - 6)
    inner = slice(margin, 512 - margin)
    size = 512 - 2 * margin
    tight = camera.crop(left=float(margin), top=float(margin), width=size, height=size)
    whole = outline.hair_thickness(
        head, vertices, camera, np.full((512, 512, 3), 0.3), matte
    )
    cut = outline.hair_thickness(
        head, vertices, tight, np.full((size, size, 3), 0.3), matte[inner, inner]
    )
    assert whole.max() > 0.012
    np.testing.assert_allclose(cut, whole, atol=0.001)


def test_hair_ends_behind_where_it_ends_beside():
    head, vertices, camera, covered, pixels = seen_head()
    ears = np.asarray(head.regions["left_ear"])
    # 20 mm of hair down to the ear lobes, a bare neck below.
    end = round(pixels[ears, 1].max())
    reach = 0.02 / toy_head.DISTANCE * float(camera.intrinsics[0])
    matte = (ndimage.distance_transform_edt(~covered) <= reach).astype(float)
    matte[end:] = covered[end:]
    image = np.full((256, 256, 3), 0.3)
    thickness = outline.hair_thickness(head, vertices, camera, image, matte)
    behind = outline.hair_support(head) & (np.asarray(head.template)[:, 2] < -0.05)
    above = behind & (pixels[:, 1] < end - 12)
    below = behind & (pixels[:, 1] > end + 12)
    assert above.sum() > 100 and below.sum() > 20
    assert np.median(thickness[above]) > 0.015
    assert np.median(thickness[below]) < 0.006


def test_what_hangs_below_the_ears_is_a_smooth_sheet_that_no_jaw_moves():
    head, vertices, camera, covered, pixels = seen_head()
    reach_pixels = 0.04 / toy_head.DISTANCE * float(camera.intrinsics[0])
    region = ndimage.distance_transform_edt(~covered) <= reach_pixels
    place, depth, reach, face = outline.uncovered(head, vertices, camera, region)
    low, smooth, carried = outline.hanging(
        head, vertices, camera, place, depth, reach, face
    )
    ears = pixels[np.asarray(head.regions["left_ear"]), 1].max()
    assert not low[place[:, 1] < ears - 4].any()
    # Nearer to the ears, they may be the nearest outline.
    assert low[place[:, 1] > ears + reach_pixels].all()
    np.testing.assert_array_equal(smooth[~low], depth[~low])
    np.testing.assert_array_equal(carried[~low], face[~low])
    weights = np.asarray(head.skinning_weights)[:, head_model.JOINTS.index("jaw")]
    jaw = weights[np.asarray(head.faces)].max(axis=1)
    far = low & (reach > 0.012)
    assert jaw[face[far]].max() > 0.5 and jaw[carried[far]].max() < 0.01
    assert np.abs(smooth - depth)[low].max() < 0.06
    sheet = np.full(region.shape, np.nan)
    sheet[tuple(place[low].astype(int).T[::-1])] = smooth[low]
    for axis in (0, 1):
        assert np.nanmax(np.abs(np.diff(sheet, axis=axis))) < 0.004
    rough = np.full(region.shape, np.nan)
    rough[tuple(place[low].astype(int).T[::-1])] = depth[low]
    assert np.nanmax(np.abs(np.diff(rough, axis=0))) > 0.02
