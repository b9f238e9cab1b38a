"""Samples of held-out records while a generator trains."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import latent_codec, sampling
from experiments.configs import cap4d, geoface
from geodiff_jax import reporting
from tests.experiments import small, toy_codec


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return toy_codec.write(tmp_path_factory.mktemp("codec") / "vae.safetensors")


@pytest.fixture(scope="module")
def latents(codec, tmp_path_factory):
    pictures = toy_codec.dataset(tmp_path_factory.mktemp("data"))
    return str(latent_codec.cache(pictures, codec, splits=("train", "held_out")))


def test_references_come_first_among_views(latents):
    config = cap4d.get_config()
    config.latents, config.views = 8, 4
    batch = sampling.held_out(config, [latents])
    count = sampling.count_references(batch)
    slots = np.asarray(batch.signals.reference_slots)[0, :, 0]
    assert 0 < count < 4 and slots[:count].all() and not slots[count:].any()
    held = np.asarray(batch.signals.reference_latents)
    np.testing.assert_array_equal(held[:, :count], batch.latents[:, 0, :count])
    assert sampling.targets(batch).shape == (1, 1, 4 - count, 8, 8, 12)


def test_a_position_map_is_the_last_of_what_is_shown(latents):
    config = geoface.get_config()
    config.latents = 8
    batch = sampling.held_out(config, [latents])
    assert sampling.count_references(batch) == 1
    assert sampling.targets(batch).shape == (1, 1, config.views - 1, 8, 8, 12)
    maps = sampling.shown_maps(batch)
    assert maps.shape == (1, config.views - 1, 8, 8, 3)
    # Rays, where there is a camera.
    assert maps[:, :-1].any(axis=(2, 3, 4)).all() and not maps[:, -1].any()


def test_pictures_of_all_sizes_make_a_row():
    pictures = [np.full((side, side, 3), side / 10) for side in (2, 3, 6)]
    row = sampling.side_by_side(pictures)
    assert row.shape == (6, 18, 3)
    np.testing.assert_allclose(row[0, ::6, 0], [0.2, 0.3, 0.6], rtol=1e-6)


def test_noise_has_nothing_to_show(codec, tmp_path):
    with pytest.raises(ValueError, match="--data=FOLDER"):
        sampling.Samples(small.config(), ["random"], codec, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_samples_are_drawn_beside_the_truth(latents, codec, tmp_path):
    config = small.config()
    config.sampler.steps = 2
    look = sampling.Samples(config, [latents], codec, tmp_path)
    log = reporting.Log(tmp_path, tensorboard=True)
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        look(7, small.state(config), log)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    log.close()
    with Image.open(tmp_path / "samples" / "00000007.png") as drawn:
        pixels = np.asarray(drawn)
    # Two clips of two frames; reference, map, crop, and two domains twice.
    assert pixels.shape == (4 * 64, 7 * 64, 3)
    columns = np.split(pixels.astype(float), 7, axis=1)
    # Samples of random weights are no truth; a frame's truth is its own reference
    # here, as balls of one clip look alike.
    assert np.abs(columns[3] - columns[4]).mean() > 1.0
    assert np.abs(columns[3] - columns[0]).mean() < 20.0
    assert list(tmp_path.glob("events*"))
