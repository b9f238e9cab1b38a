import numpy as np
import pytest
from scipy import ndimage

from geodiff_jax.tracking import matte


def edge_image(height=90, width=120):
    """A vertical edge at column 60: (truth, blurred matte, image)."""
    truth = np.zeros((height, width), np.float32)
    truth[:, 60:] = 1.0
    coarse = ndimage.gaussian_filter(truth, 3.0)
    image = np.where(truth[..., None] > 0, [0.2, 0.3, 0.7], [0.8, 0.75, 0.6])
    noise = 0.01 * np.random.default_rng(0).normal(size=image.shape)
    return truth, coarse, (image + noise).astype(np.float32)


def test_blurred_matte_takes_the_edge_of_the_photo():
    truth, coarse, image = edge_image()
    fine = matte.levels(matte.refine(coarse, image, radius=12))
    assert np.abs(coarse - truth)[:, 50:70].mean() > 0.1
    assert np.abs(fine - truth)[:, 50:70].mean() < 0.015  # Of 0.12 before.


def test_flat_photo_leaves_the_matte_blurred_but_unbiased():
    _, coarse, image = edge_image()
    fine = matte.refine(coarse, np.full_like(image, 0.5), radius=3)
    np.testing.assert_allclose(fine, coarse, atol=0.1)
    np.testing.assert_allclose(fine.mean(axis=1), coarse.mean(axis=1), atol=1e-3)


def test_large_photos_are_refined_with_edges_of_a_smaller_copy(monkeypatch):
    truth, coarse, image = edge_image()
    monkeypatch.setattr(matte, "WORKING_SIZE", 60)
    fine = matte.levels(matte.refine(coarse, image, radius=12))
    assert np.abs(fine - truth)[:, 50:70].mean() < 0.03


@pytest.mark.parametrize("box", [[10, 10, 30, 40], [-5, 80, 40, 130], [0, 0, 100, 100]])
def test_head_window_stays_inside_the_photo(box):
    left, top, right, bottom = matte.head_window(
        np.array(box, float), width=100, height=120
    )
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 120
    # The face itself is in it, as far as it is in the photo.
    assert left <= max(box[0], 0) and right >= min(box[2], 100)
    assert top <= max(box[1], 0) and bottom >= min(box[3], 120)


def test_ellipse_holds_the_face_and_leaves_the_corners():
    box = np.array([40.0, 40.0, 80.0, 90.0])
    shape = matte.ellipse(box, width=120, height=150)
    assert shape.shape == (150, 120) and shape.min() >= 0 and shape.max() <= 1
    assert shape[40:90, 40:80].min() > 0.9
    assert shape[:10, :10].max() == 0.0 and shape[:10, -10:].max() == 0.0


def test_other_people_are_left_out():
    two = np.zeros((60, 120))
    two[10:, 10:40] = two[10:, 70:110] = 1.0
    own = matte._joined_to(np.array([75.0, 20.0, 100.0, 50.0]), two)
    assert own[:, :60].max() == 0.0
    np.testing.assert_array_equal(own[:, 60:], two[:, 60:])


def test_feather_fades_only_towards_the_photo():
    share = matte._feather((50, 50), at_border=(0, 5, 5, 0))
    assert share[25, 0] == 1.0 and share[-1, 25] == 1.0
    assert share[0, 25] == 0.0 and share[25, -1] == 0.0
