"""From pictures to latents on disk, and to batches of a generator's training."""

import shutil

import jax
import numpy as np
import pytest

from experiments import latent_codec, picture_batches, recorded_batches
from experiments.configs import cap4d, geodiff4d, geoface, learn2control
from geodiff_jax.data import latents as cached_latents
from geodiff_jax.models import weight_files
from tests.experiments import launch as test_launch
from tests.experiments import toy_codec
from tests.models import settings

prepare_data = test_launch.import_apart("experiments.prepare_data")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return toy_codec.write(tmp_path_factory.mktemp("codec") / "vae.safetensors")


@pytest.fixture(scope="module")
def cached(codec, tmp_path_factory):
    """By the command; (its pictures, its latents)."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        toy_codec.render_balls(patch)
        values = {"data_dir": str(folder), "plan": "toy", "cache_latents": str(codec)}
        test_launch.run_apart(prepare_data, **values)
    (latents,) = folder.glob("cached_latents/*/1.0.0")
    return str(folder / "procedural_heads" / "toy" / "2.0.0"), str(latents)


def config_of(module):
    config = module.get_config()
    config.batch, config.latents = 2, 8
    if "crop" in config:
        config.crop = 32
    if "features" in config:
        config.features.size = 8
    return config


@pytest.mark.parametrize("paper", [geodiff4d, cap4d, learn2control])
def test_training_reads_latents_of_the_pictures(cached, codec, paper):
    """Any record's: balls of one frame look alike from both sides."""
    pictures, latents = cached
    config = config_of(paper)
    batch = next(recorded_batches.RecordedBatches(config, [latents]))
    shown = picture_batches.spread([pictures], "train", image=64, count=100)
    module, variables = latent_codec.load(codec)
    encode = jax.jit(
        lambda x: module.apply(variables, x, method="encode").mean,
        compiler_options=settings.QUICKLY,
    )
    known = np.asarray(encode(shown))[:, : batch.latents.shape[1]]
    for found in np.moveaxis(batch.latents, 1, 3).reshape(-1, *known.shape[1:]):
        # Half precision.
        nearest = np.abs(known - found).max((1, 2, 3, 4)).min()
        assert nearest < 2e-3 * np.abs(known).max()
    assert np.std(known) > 1e-2


def test_training_reads_geometry_beside_the_pictures(cached, codec):
    """Both papers read the same records, and only one of them the position maps."""
    config = config_of(geoface)
    batch = next(recorded_batches.RecordedBatches(config, [cached[1]]))
    shown = batch.latents[:, 0, :-1, 0]
    plain = next(recorded_batches.RecordedBatches(config_of(cap4d), [cached[1]]))
    known = plain.latents.reshape(-1, *shown.shape[2:])
    for found in shown.reshape(-1, *shown.shape[2:]):
        assert (np.abs(known - found).max(axis=(1, 2, 3)) == 0).any()
    assert not (batch.latents[:, 0, -1, 0] == shown[:, 0]).all()
    assert batch.uv.shape == (2, 4, 4, 4, 3) and batch.uv[..., 2].any()
    without = geoface.get_config("alignment=0")
    without.update(batch=2, latents=8)
    assert next(recorded_batches.RecordedBatches(without, [cached[1]])).uv is None


def test_records_without_a_chart_are_refused(cached, tmp_path):
    """Of a head without one, or encoded for other papers."""

    def encode(pixels):
        return pixels[:, ::8, ::8]

    pictures = tmp_path / "procedural_heads" / "toy" / "2.0.0"
    shutil.copytree(cached[0], pictures)
    other = cached_latents.cache(pictures, encode, name="other", maps=["head_pose"])
    for folder in (other, pictures):
        with pytest.raises(ValueError, match=r"Expected geometry.* in the records of"):
            recorded_batches.RecordedBatches(config_of(geoface), [str(folder)])


def test_batches_with_everyone_have_one_example_of_each(cached):
    config = config_of(geodiff4d)
    of_each = recorded_batches.one_of_each(config, [cached[1]] * 2, split="train")
    drawn = [next(of_each) for _ in range(8)]
    # Two people of four records, twice; changed crops would all be different.
    assert all(len(batch.latents) == 4 for batch in drawn)
    for person in range(4):
        crops = {np.asarray(batch.driving[person]).tobytes() for batch in drawn}
        assert 2 <= len(crops) <= 4


def test_a_file_without_an_autoencoder_is_refused(tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    parts = {"unet": {"params": {"kernel": np.zeros(1, np.float32)}}}
    weight_files.save(other, parts, metadata={})
    for path in (other, tmp_path / "none"):
        values = {"data_dir": str(tmp_path / "data"), "cache_latents": str(path)}
        with pytest.raises(SystemExit) as stop:
            test_launch.run_apart(prepare_data, **values)
        (sentence,) = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and sentence.startswith("prepare_data: ")
    assert not (tmp_path / "data").exists()
