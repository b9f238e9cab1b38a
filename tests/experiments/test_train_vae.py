"""The command that trains the autoencoder: its door, its files, and how it goes on."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import picture_batches
from experiments.configs import vae as configs
from geodiff_jax import checkpoint, sharding
from geodiff_jax.data import procedural_heads
from geodiff_jax.models import vae, weight_files
from geodiff_jax.training import autoencoding, loop
from tests.experiments import launch as test_launch
from tests.experiments import toy_codec

prepare_data, train_vae, training_run = (
    test_launch.import_apart(f"experiments.{name}")
    for name in ("prepare_data", "train_vae", "training_run")
)

STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Runs compile the same programs: once, without optimisations that cost more."""
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Balls of the toy plan's sizes, of both splits."""
    return toy_codec.dataset(tmp_path_factory.mktemp("data"))


def small_config():
    config = configs.get_config()
    config.model.update(channels=4, multipliers=(1, 2))
    config.image, config.steps = 64, STEPS
    config.optimizer.warmup = 1
    return config


def run(folder, data, *, steps=STEPS):
    plan = loop.Plan(steps=steps, log_every=1, save_every=2, look_every=2)
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    return train_vae.train(small_config(), str(folder), [data], plan=plan, mesh=mesh)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, dataset)


def curve(folder):
    """What the log says but for times and memory."""
    timed = ("_per_s", "data_wait_share", "memory_mb")
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines]


def test_a_run_goes_on_bit_for_bit(dataset, whole, tmp_path):
    assert run(tmp_path, dataset, steps=2).step == 2
    again = run(tmp_path, dataset)
    assert curve(tmp_path) == curve(whole[0])
    jax.tree.map(np.testing.assert_array_equal, again, whole[1])
    files = [(x / train_vae.FILE).read_bytes() for x in (tmp_path, whole[0])]
    assert files[0] == files[1]


def test_training_starts_from_principal_components(dataset):
    config = small_config()
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    shapes = jax.eval_shape(
        lambda: train_vae.fresh_state(jax.random.key(0), config=config)
    )
    template = training_run.abstract_state(shapes, mesh)
    placed = jax.tree.map(lambda x: x.sharding, template)
    state = train_vae.first_state(config, placed, [dataset])
    pictures = picture_batches.spread([dataset], "train", image=64, count=100)
    linear = vae.principal_squares(configs.network(config), pictures)
    for params in (state.params, state.average):
        known = {name: params[name] for name in linear}
        jax.tree.map(np.testing.assert_array_equal, known, linear)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.average)


def test_held_out_pictures_are_looked_at(whole):
    folder, _ = whole
    names = [f"held_out/psnr_{name}" for name in autoencoding.DOMAINS]
    looks = [line for line in curve(folder) if names[0] in line]
    assert [line["step"] for line in looks] == [2, 4]
    assert all(0.0 < line[name] < 100.0 for line in looks for name in names)
    # Four held-out balls; image, normals and what came back of both.
    with Image.open(folder / "samples" / "00000004.png") as drawn:
        assert drawn.size == (4 * 64, 4 * 64)
    assert (folder / "run.json").exists() and list((folder).glob("events*"))


def test_the_file_is_the_averaged_network(dataset, whole):
    folder, state = whole
    parts, facts = weight_files.load_modules(folder / train_vae.FILE)
    module, variables = parts["vae"]
    assert facts["step"] == STEPS
    pictures = jnp.asarray(
        picture_batches.spread([dataset], "train", image=64, count=100)
    )
    assert pictures.shape == (8, 2, 64, 64, 3)
    averaged = {"params": state.average}
    own = jax.jit(configs.network(small_config()).apply)
    # Scaled and scaled back: round-off.
    read = jax.jit(module.apply, static_argnames="method")
    np.testing.assert_allclose(
        read(variables, pictures), own(averaged, pictures), atol=1e-5
    )
    encoded = read(variables, pictures, method="encode")
    second = np.square(encoded.mean) + np.square(encoded.std())
    deviation = np.sqrt(np.mean(second) - np.mean(encoded.mean) ** 2)
    np.testing.assert_allclose(deviation, 1.0, rtol=1e-4)


def test_background_is_white_and_zero(dataset):
    pictures = picture_batches.spread([dataset], "held_out", image=64, count=1)
    assert (pictures[0, 0, 0] == 1.0).all() and (pictures[0, 1, 0] == 0.0).all()


def test_pictures_of_another_size_are_refused(dataset, tmp_path):
    config = small_config()
    config.image = 32
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="of 32 pixels in .*, got 64"):
        train_vae.train(
            config, str(tmp_path), [dataset], plan=loop.Plan(steps=1), mesh=mesh
        )
    assert checkpoint.Series(tmp_path / "checkpoints").restore(None) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config=experiments/configs/vae.py:size=large",), "size to be one of"),
        (("--config=experiments/configs/vae.py", "--workdir=x"), "--data=FOLDER"),
        (
            ("--config=experiments/configs/vae.py", "--workdir={}", "--data={}"),
            "finished",
        ),
    ],
)
def test_bad_flags_end_with_status_2_and_a_sentence(tmp_path, words, message):
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.train_vae"]
        + [word.format(tmp_path / "none") for word in words],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    (sentence,) = ended.stderr.strip().splitlines()
    assert ended.returncode == 2 and message in sentence
    assert sentence.startswith("train_vae: ") and not list(tmp_path.iterdir())


@pytest.fixture
def few_people(monkeypatch, tmp_path):
    """Heads of the tiny plan's pictures: eight people, and one who is held out."""
    plan = dataclasses.replace(
        procedural_heads.PLANS["tiny"], subjects=9, held_out=1, frames=4
    )
    monkeypatch.setitem(procedural_heads.PLANS, "tiny", plan)
    known = procedural_heads.ProceduralHeads.BUILDER_CONFIGS
    (config,) = (x for x in known if x.name == "tiny")
    monkeypatch.setattr(config, "plan", plan)
    folder, _ = prepare_data.prepare(str(tmp_path), "tiny", workers=1)
    return folder


@pytest.mark.slow
def test_people_it_has_not_seen_come_back_at_30_decibels(few_people, tmp_path):
    """After a fifth of the tiny size's steps, on an eighth of its people."""
    builder = tfds.builder_from_directory(str(few_people))
    seen, unseen = (
        {x["subject"] for x in builder.as_data_source(split)}
        for split in ("train", "held_out")
    )
    assert len(seen) == 8 and len(unseen) == 1 and not seen & unseen
    subprocess.run(
        [sys.executable, "-m", "experiments.train_vae", "--look_every=100"]
        + ["--config=experiments/configs/vae.py:size=tiny", "--config.steps=100"]
        + [f"--workdir={tmp_path / 'run'}", f"--data={few_people}"],
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    looks = [x for x in curve(tmp_path / "run") if "held_out/psnr_image" in x]
    assert [look["step"] for look in looks] == [100]
    for name in autoencoding.DOMAINS:
        assert looks[0][f"held_out/psnr_{name}"] >= 30.0
