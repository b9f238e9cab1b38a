"""Driving crops: where they look, and what their colours become."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from geodiff_jax.data import augment

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (64, 48, 3)).astype(np.uint8)
BOX = np.array([8.0, 16.0, 40.0, 48.0])
HALF_A_BYTE = 0.5001 / 255.0


def crop(picture, box, size=32, **change):
    made = augment.Change(**change)
    generator = np.random.default_rng(1)
    shown = augment.crop(generator, Image.fromarray(picture), box, made, size=size)
    return shown / 255.0


def test_no_change_is_the_plain_crop():
    np.testing.assert_array_equal(crop(NOISE, BOX), NOISE[16:48, 8:40] / 255.0)


def test_what_lies_beyond_the_picture_is_white():
    shown = crop(0 * NOISE, BOX - 24)
    np.testing.assert_array_equal(shown[:8], 1.0)
    np.testing.assert_array_equal(shown[:, :16], 1.0)
    assert not shown[8:, 16:].any()


@pytest.mark.parametrize("size", [32, 16, 8])
def test_the_window_is_where_its_change_says(size):
    """A picture of its own coordinates, against the window's map in closed form."""
    y, x = np.mgrid[:100, :100] + 0.5
    picture = np.stack([2 * x, 2 * y, 0 * x], axis=-1).round().astype(np.uint8)
    box, angle, scale = np.array([30.0, 34.0, 62.0, 66.0]), 0.3, 1.1
    shown = crop(
        picture, box, size, rotation_radians=angle, scale=scale, shift=(0.1, -0.05)
    )
    grid = ((np.arange(size) + 0.5) / size - 0.5) * 32 * scale
    u, v = np.meshgrid(grid, grid)
    cos, sin = np.cos(angle), np.sin(angle)
    expected_x = 46 + 3.2 + cos * u - sin * v
    expected_y = 50 - 1.6 + sin * u + cos * v
    # Bytes at half a pixel each, rounded twice.
    np.testing.assert_allclose(shown[..., 0] * 255 / 2, expected_x, atol=0.6)
    np.testing.assert_allclose(shown[..., 1] * 255 / 2, expected_y, atol=0.6)


def test_colours_change_as_named():
    flat = np.full((48, 48, 3), 128, np.uint8)
    value = 128 / 255
    for change, expected in (
        ({"brightness": 0.8}, 0.8 * value),
        ({"contrast": 1.2}, value),
        ({"saturation": 0.8}, value),
    ):
        found = crop(flat, BOX, **change)
        np.testing.assert_array_equal(255.0 * found, np.round(255.0 * expected))
    grey = crop(NOISE, BOX, saturation=0.0)
    np.testing.assert_array_equal(np.ptp(grey, axis=-1), 0.0)
    greys = (NOISE / 255.0) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(grey[..., 0], greys[16:48, 8:40], atol=HALF_A_BYTE)
    soft = crop(NOISE // 2 + 64, BOX, contrast=0.8)
    plain = crop(NOISE // 2 + 64, BOX)
    assert abs(soft.std() / plain.std() - 0.8) < 1e-3


def test_noise_and_blur_are_as_strong_as_named():
    flat = np.full((300, 300, 3), 128, np.uint8)
    box = np.array([30.0, 30.0, 254.0, 254.0])
    noisy = crop(flat, box, size=224, noise=0.03)
    # The standard error of a deviation of 150,000 numbers is 0.2 %.
    assert abs(noisy.std() / 0.03 - 1.0) < 0.01
    spot = np.zeros((300, 300, 3), np.uint8)
    spot[142:146, 142:146] = 255
    for blur in (0.7, 1.1, 1.5, 2.5):
        blurred = crop(spot, box, size=224, blur=blur)
        weights = blurred[..., 0].sum(axis=0)
        place = np.arange(224)
        mean = np.average(place, weights=weights)
        spread = np.average(np.square(place - mean), weights=weights)
        # Variances add: (4^2 - 1) / 12 of the spot; bytes cut the tails.
        assert abs(np.sqrt(spread - 1.25) / blur - 1.0) < 0.05


def test_every_crop_has_noise_of_its_own_and_again_the_same():
    flat = Image.fromarray(np.full((64, 64, 3), 128, np.uint8))
    box, change = np.array([0.0, 0, 64, 64]), augment.Change(noise=0.03)

    def drawn(seed):
        generator = np.random.default_rng(seed)
        crops = [augment.crop(generator, flat, box, change, size=64) for _ in range(4)]
        return np.stack(crops).reshape(4, -1)

    np.testing.assert_array_equal(drawn(0), drawn(0))
    between = np.corrcoef(np.concatenate([drawn(0), drawn(1)]))
    # 12,288 values each: five deviations of a correlation between independent ones.
    assert np.abs(between - np.eye(8)).max() < 5 / np.sqrt(3 * 64**2)


def test_draws_stay_in_their_ranges_and_reach_them():
    ranges = augment.Ranges()
    drawn = [augment.draw(np.random.default_rng(i), ranges) for i in range(800)]
    limits = {
        "brightness": (0.8, 1.2),
        "contrast": (0.8, 1.2),
        "saturation": (0.8, 1.2),
        "noise": (0.0, 0.03),
        "blur": (0.0, 1.5),
        "scale": (0.85, 1.15),
        "rotation_radians": (-np.radians(15), np.radians(15)),
        "shift": (-0.08, 0.08),
    }
    assert set(limits) == {field.name for field in dataclasses.fields(augment.Change)}
    for name, (low, high) in limits.items():
        values = np.array([getattr(change, name) for change in drawn])
        near = 0.05 * (high - low)
        assert low <= values.min() < low + near, name
        assert high - near < values.max() <= high, name
    # Four standard deviations of 800 draws.
    still = np.mean([change.scale == 1.0 for change in drawn])
    sharp = np.mean([change.blur == 0.0 for change in drawn])
    assert abs(still - 0.2) < 0.057 and abs(sharp - 0.7) < 0.065
