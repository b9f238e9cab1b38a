"""Cached latents stand for the pictures they were made of."""

import dataclasses
import pathlib
import shutil
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from geodiff_jax.data import (
    augment,
    building,
    latents,
    loading,
    pairing,
    pipeline,
    position_maps,
)
from geodiff_jax.data import rays as ray_maps
from tests.data import balls

NAMES = ["ann", "bob"]


def halves(pixels):
    """An encoder that keeps every second pixel."""
    return pixels[:, ::2, ::2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balls")
    building.make_parts(NAMES, balls.examples, folder / "parts")
    builder = balls.Balls(
        parts=folder / "parts", names=NAMES, data_dir=folder, file_format="array_record"
    )
    building.finish(builder, {"train": NAMES}, folder / "parts")
    return pathlib.Path(builder.data_path)


@pytest.fixture(scope="module")
def cached(original):
    """Encoded three at a time, after a run that broke off half way."""
    counted = mock.Mock(wraps=halves)

    def failing(pixels):
        if counted.call_count == 6:
            raise KeyboardInterrupt
        return counted(pixels)

    options = {"name": "half", "splits": ["train"], "batch": 3, "face": 48}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "CHUNK", 3)
        with pytest.raises(KeyboardInterrupt):
            latents.cache(original, failing, **options)
        path = latents.cache(original, counted, **options)
    # Eight records, two domains and geometry: what was encoded was not again.
    assert counted.call_count == 3 * 3
    assert latents.cache(original, counted, **options) == path
    assert counted.call_count == 3 * 3
    return path


def test_latents_are_the_encoders_of_each_record(original, cached):
    pictures = tfds.builder_from_directory(str(original)).as_data_source("train")
    stored = tfds.builder_from_directory(str(cached)).as_data_source("train")
    assert len(stored) == len(pictures) == 8
    for one, other in zip(stored, pictures, strict=True):
        image = other["image"][::2, ::2] / 127.5 - 1.0
        normal = (other["normal"][::2, ::2] - 128.0) / 127.0
        # Half precision, just below 1.
        np.testing.assert_allclose(one["latents"], [image, normal], atol=3e-4)
        for name in ("head_pose", "position_code", "camera_from_world", "synthetic"):
            np.testing.assert_array_equal(one[name], other[name])
    assert cached.parents[2] == original.parents[1]
    assert not list(cached.parents[2].glob(".*parts"))


def test_geometry_gives_the_charts_positions_back(original, cached):
    """The encoder here keeps every second pixel, so that nothing has to be decoded."""
    pictures = tfds.builder_from_directory(str(original)).as_data_source("train")
    stored = tfds.builder_from_directory(str(cached)).as_data_source("train")
    for one, other in zip(stored, pictures, strict=True):
        wanted = position_maps.resize(other["surface"].astype(np.float32), size=16)
        covered = wanted.any(axis=-1)
        pose, origin = other["camera_from_world"], other["translation"]
        found = position_maps.positions_from_pixels(
            one["geometry"].astype(np.float32), covered, pose, origin
        )
        assert one["geometry"].shape == (16, 16, 3) and covered.any()
        # Half precision of values below 1, times the extent.
        np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize("maps", [["head_pose"], ["surface"], ["uv"]])
def test_geometry_is_encoded_only_where_the_chart_is_seen(original, tmp_path, maps):
    moved = tmp_path / "balls" / "1.0.0"
    shutil.copytree(original, moved)
    path = latents.cache(moved, halves, name="x", splits=["train"], maps=maps)
    stored = tfds.builder_from_directory(str(path)).info.features
    assert ("geometry" in stored) == (maps == ["uv"])
    assert stored["latents"].shape == (2, 16, 16, 3)


def test_a_cache_without_what_is_asked_for_is_refused(original, tmp_path):
    moved = tmp_path / "balls" / "1.0.0"
    shutil.copytree(original, moved)
    path = latents.cache(moved, halves, name="x", splits=["train"], maps=["surface"])
    again = latents.cache(moved, halves, name="x", splits=["train"], maps=["surface"])
    assert again == path
    with pytest.raises(ValueError, match=r"geometry, .*uv in .* remove it"):
        latents.cache(moved, halves, name="x", splits=["train"])


def test_crops_are_those_of_the_pictures(original, cached):
    """All of them: the window is as wide as the ranges reach."""
    pair = pairing.Pairing(frames=2, cross_view=1.0)
    quiet = augment.Ranges(noise=0.0, blur=0.0)
    contents = loading.Contents(side=4, crop=24, ranges=quiet)
    of_latents = dataclasses.replace(contents, latents=True)
    crops = [
        pipeline.batches(
            [loading.open_source(path, "train", wanted)], pair, wanted, batch=32
        )[0]["driving"]
        / 255.0
        for path, wanted in ((original, contents), (cached, of_latents))
    ]
    # The ball's white edge goes through JPEG and one more resampling.
    assert np.abs(crops[0] - crops[1]).mean() < 0.02
    assert np.quantile(np.abs(crops[0] - crops[1]), 0.9) < 0.06


def test_rays_are_those_of_the_pictures(original, cached):
    maps = []
    for path, has_latents in ((original, False), (cached, True)):
        contents = loading.Contents(
            maps=("rays",), side=4, crop=None, latents=has_latents
        )
        source = loading.open_source(path, "train", contents)
        assert source.name == "balls"
        first, last = source.records[0], source.records[7]
        maps.append(ray_maps.ray_map(first, last, size=4, pixels=source.image))
    np.testing.assert_allclose(*maps, atol=1e-6)


def test_what_is_not_there_cannot_be_cached(original, tmp_path):
    with pytest.raises(ValueError, match="rays"):
        latents.cache(original, halves, name="x", splits=["train"], maps=["rays"])
    with pytest.raises(ValueError, match="finished"):
        latents.cache(tmp_path / "a" / "b" / "c", halves, name="x")
