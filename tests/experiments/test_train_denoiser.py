"""The command that trains the generator: its door, its sums, and its meshes."""

import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import latent_codec
from experiments.configs import cap4d, generator, geodiff4d, geoface, learn2control
from geodiff_jax import checkpoint, sharding
from geodiff_jax.training import loop
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states
from tests.experiments import launch as test_launch
from tests.experiments import small, toy_cap4d, toy_codec

launch, random_batches, recorded_batches, train_denoiser = (
    test_launch.import_apart(f"experiments.{name}")
    for name in ("launch", "random_batches", "recorded_batches", "train_denoiser")
)

CONFIG = "--config=experiments/configs/geoface.py:size=tiny"
FLAGS = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"
"""Compiled without LLVM's optimisations, which takes less and changes no result."""


def command(*words, check=True, cache="", devices=8):
    """Runs a module; programs compiled before lie in `cache`."""
    flags = FLAGS.format(devices)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        check=check,
        env=environment,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((CONFIG, "--config.optimizer.learning_rte=1"), "learning_rate"),
        (
            (CONFIG, "--mesh=3x1x1", "--workdir={}", "--data=random"),
            "8 devices, which are here, got 3x1",
        ),
    ],
)
def test_bad_flags_end_with_status_2_and_a_sentence(tmp_path, words, message):
    words = [word.format(tmp_path / "run") for word in words]
    ended = command("experiments.train_denoiser", *words, check=False)
    (sentence,) = ended.stderr.strip().splitlines()
    assert ended.returncode == 2 and message in sentence
    assert sentence.startswith("train_denoiser: ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "8", "8x1", "8x1x1x1", "axbxc", "8x-1x1"])
def test_meshes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="data x fsdp x tensor"):
        launch.mesh_shape(text)


@pytest.mark.parametrize("text", ["", "3", "0:2", "4:3", "a:b"])
def test_steps_that_are_none_are_not_traced(text):
    assert launch.profile(None, "run") is None
    found = launch.profile("2:3", "run")
    assert (str(found.folder), found.first, found.last) == ("run/profile", 2, 3)
    with pytest.raises(ValueError, match="--profile_steps as FIRST:LAST"):
        launch.profile(text, "run")


def test_a_config_files_own_sentence_is_what_one_reads(capsys):
    trace = "Error: Traceback (most recent call last):\n  File x\nValueError: Say: no."
    for reason in (trace, KeyError("Say: no."), ValueError("Say: no.")):
        with pytest.raises(SystemExit) as stop:
            launch.refuse(reason)
        assert stop.value.code == 2
        assert capsys.readouterr().err.endswith(": Say: no.\n")


SETTINGS = {
    "geodiff4d": (geodiff4d, ""),
    "cap4d": (cap4d, ""),
    "geoface": (geoface, ""),
    "learn2control": (learn2control, ""),
}


@pytest.mark.parametrize("paper", SETTINGS)
def test_random_batches_are_the_same_for_any_number_of_processes(paper):
    module, argument = SETTINGS[paper]
    shapes = generator.batch_shapes(module.get_config(argument))
    whole = random_batches.RandomBatches(shapes, references=2)
    parts = [
        random_batches.RandomBatches(shapes, references=2, process=i, processes=2)
        for i in (0, 1)
    ]
    for _ in range(2):
        batch = next(whole)
        halves = [next(part) for part in parts]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *halves)
        jax.tree.map(np.testing.assert_array_equal, joined, batch)
        jax.tree.map(
            lambda x, s: np.testing.assert_equal(x.shape, s.shape), batch, shapes
        )
    later = random_batches.RandomBatches(shapes, references=2)
    later.set_state(json.loads(json.dumps(whole.get_state())))
    jax.tree.map(np.testing.assert_array_equal, next(later), next(whole))


def as_read(batch):
    """A batch in the pipeline's form, which holds more than some networks want."""
    parts = {
        name: {k: v for k, v in vars(part).items() if v is not None}
        for name, part in (("signals", batch.signals), ("reference", batch.reference))
        if part is not None
    }
    whole = {"latents": batch.latents, "driving": batch.driving, "replaced": [0]}
    if batch.surface is not None:
        surface = vars(batch.surface)
        whole["surface"] = {k: surface[k] for k in ("positions", "intrinsics")}
    flags = {"synthetic": batch.synthetic, "frames": batch.frames}
    return whole | parts | flags | {"uv": batch.uv}


@pytest.mark.parametrize("paper", SETTINGS)
def test_what_datasets_hold_becomes_a_batch(paper):
    module, argument = SETTINGS[paper]
    config = module.get_config(argument)
    shapes = generator.batch_shapes(config)
    batch = next(random_batches.RandomBatches(shapes))
    read = as_read(batch)
    if batch.synthetic is None:  # Records know it in any case.
        read["synthetic"] = np.zeros(2, bool)
    jax.tree.map(
        np.testing.assert_array_equal, recorded_batches.to_batch(read, shapes), batch
    )
    contents = recorded_batches.contents_of(config, shapes)
    assert contents.reference == (paper not in ("cap4d", "geoface"))
    assert contents.geometry == contents.uv == (paper == "geoface")
    views = recorded_batches.pairing_of(config).views
    assert views + contents.geometry == config.views
    held = {name for name, x in vars(shapes.signals).items() if x is not None}
    assert set(contents.maps) == held - {"reference_slots", "reference_latents"}
    larger = generator.batch_shapes(module.get_config("size=small"))
    with pytest.raises(ValueError, match=r"items with \w+ of \(.*, got \("):
        recorded_batches.to_batch(read, larger)


@pytest.fixture(scope="module")
def paper_state():
    """Of both stages in one: everything learns, temporal modules included."""
    config = geodiff4d.get_config("stage=2,size=paper")
    config.trained = ""
    return generator.state_shapes(config)


@pytest.mark.parametrize("shape", [(32, 8, 1), (1, 64, 1), (4, 8, 8)])
def test_a_device_holds_its_share_of_the_papers_state(paper_state, shape):
    mesh = sharding.abstract_mesh(shape)
    placed = sharding.shardings(paper_state, states.RULES, mesh)
    held = sharding.bytes_per_device(paper_state, placed)
    whole = sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(paper_state)
    )
    assert whole / mesh.size <= held <= 1.1 * whole / shape[1]
    if shape[1] == 64:
        assert held < 1e9


@pytest.mark.parametrize("paper", ["cap4d", "geoface", "learn2control"])
def test_rules_know_every_parameter(paper):
    """GeoDiff4D's are in the test before. Vectors are told from kernels by name."""
    module, argument = SETTINGS[paper]
    mesh = sharding.abstract_mesh((1, 8, 1))
    state = train_denoiser.abstract_state(module.get_config(argument), mesh)
    for path, leaf in jax.tree.leaves_with_path(state.params):
        spread = any(leaf.sharding.spec)
        assert spread == (path[-1].key == "kernel"), jax.tree_util.keystr(path)


@functools.cache
def tiny_state(paper, argument):
    config = SETTINGS[paper][0].get_config(argument)
    return generator.state_shapes(config)


# Who is trained when: papers, parts of parameters' paths, and stages that train them.
TRAINED = [
    ("geodiff4d", "domain_label", (1,)),
    ("geodiff4d", "encoder", (1,)),
    ("geodiff4d", "reference_net", (1,)),
    ("geodiff4d", "_expression", (1,)),
    ("geodiff4d", "conv_in", (1,)),
    ("geodiff4d", "_temporal", (2,)),
    ("learn2control", "reference_net", (1,)),
    ("learn2control", "guide", (1,)),
    ("learn2control", "origin", (1,)),
    *(
        ("learn2control", f"feature_field/{name}", (1,))
        for name in ("features", "opacity_logits", "log_scales")
    ),
    ("learn2control", "_temporal", (2,)),
    ("cap4d", "unet/maps_in", (1, 2)),
    ("cap4d", "unet", (1, 2)),
    ("geoface", "camera_token", (1,)),
    ("geoface", "unet", (1,)),
    *((paper, "vae", ()) for paper in SETTINGS),
]


@pytest.mark.parametrize(("paper", "part", "stages"), TRAINED)
def test_stages_train_what_is_agreed(paper, part, stages):
    """What a stage does not train rests in it, or is not in its network at all."""
    for stage in (1,) if paper == "geoface" else (1, 2):
        state = tiny_state(paper, "" if paper == "geoface" else f"stage={stage}")
        learning, resting = (
            [
                name
                for path, _ in jax.tree.leaves_with_path(tree)
                if part
                in (name := jax.tree_util.keystr(path, simple=True, separator="/"))
            ]
            for tree in (state.params, state.resting)
        )
        assert bool(learning) == (stage in stages)
        assert bool(resting) == (1 in stages and stage not in stages)


def without(rules, word):
    return [(pattern, spec) for pattern, spec in rules if word not in pattern]


def test_without_a_rule_parameters_are_refused(paper_state):
    mesh = sharding.abstract_mesh((1, 8, 1))
    with pytest.raises(
        ValueError, match="rule for the partition of params/.*/embedding"
    ):
        sharding.shardings(paper_state, without(states.RULES, "bias"), mesh)


def stage(names, *, trained="", value=0.0):
    params = {name: {"kernel": jnp.full((2, 2), value)} for name in names}
    optimizer = optimizers.make(optimizers.Settings())
    variables = {"params": params, "batch_stats": {"mean": jnp.full(2, value)}}
    return states.initial_state(
        jax.random.key(0), variables, optimizer, trained=trained
    )


def saved(state):
    """As a checkpoint without a template gives it back."""
    return {
        name: jax.tree.map(np.asarray, getattr(state, name))
        for name in ("average", "resting", "statistics")
    }


def test_the_second_stage_starts_from_the_averages_of_the_first():
    first = stage(("a", "b"), value=1.0)
    first = first.replace(average=jax.tree.map(lambda x: x + 1, first.params))
    second = stage(("a", "b", "temporal"), trained="temporal")
    found = train_denoiser.started(second, saved(first), trained="temporal")
    assert (found.resting["a"]["kernel"] == 2).all()
    assert (found.params["temporal"]["kernel"] == 0).all()
    assert (found.statistics["mean"] == 1).all()
    assert jax.tree.structure(found) == jax.tree.structure(second)
    again = train_denoiser.started(second, saved(found), trained="temporal")
    jax.tree.map(np.testing.assert_array_equal, again, found)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("a",), "b/kernel .* got nothing"), (("a", "b", "c"), "without c/kernel")],
)
def test_other_networks_are_no_stage_before(names, message):
    second = stage(("a", "b", "temporal"), trained="temporal")
    with pytest.raises(ValueError, match=message):
        train_denoiser.started(second, saved(stage(names)), trained="temporal")


@pytest.mark.parametrize(
    ("module", "argument", "start"),
    [
        (geodiff4d, "stage=2", None),
        (geodiff4d, "stage=1", "x"),
        (geodiff4d, "stage=2", "x.safetensors"),
        (cap4d, "stage=2", None),
    ],
)
def test_only_a_second_stage_starts_from_another(module, argument, start):
    config = module.get_config(argument)
    with pytest.raises(ValueError, match="--start"):
        train_denoiser.first_state(config, None, start=start)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A toy of CAP4D's checkpoint, whose numbers are known by name."""
    path = tmp_path_factory.mktemp("weights") / "cap4d.safetensors"
    toy_cap4d.write(path)
    return path


@pytest.mark.parametrize("stage", [1, 2])
def test_a_converted_checkpoint_fits_its_config_wholly(converted, capsys, stage):
    config = cap4d.get_config(f"stage={stage},size=tiny")
    config.latent_channels = 4
    shapes = generator.state_shapes(config)
    filled = train_denoiser.adopted_variables(config, str(converted))
    said = capsys.readouterr().out
    assert "stay" not in said and "zero" not in said
    assert "These are not used: params/vae." in said
    state = train_denoiser.with_adopted(shapes, filled)
    tensors = toy_cap4d.checkpoint()
    for name, layer in (("time_embed.0", "time1"), ("cond_linear", "maps_in")):
        wanted = tensors[f"model.diffusion_model.{name}.weight"].T
        for params in (state.params, state.average):
            np.testing.assert_array_equal(params["unet"][layer]["kernel"], wanted)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    # A step gives the buffers of both away.
    pairs = zip(
        *(jax.tree.leaves(x) for x in (state.params, state.average)), strict=True
    )
    assert not any(np.shares_memory(*pair) for pair in pairs)


@pytest.mark.slow
def test_training_starts_from_a_converted_checkpoint(converted, tmp_path):
    """Its learning rate is so small that the weights stay what they were."""
    workdir = tmp_path / "run"
    ended = command(
        "experiments.train_denoiser",
        "--config=experiments/configs/cap4d.py:size=tiny",
        "--config.optimizer.learning_rate=1e-12",
        "--config.optimizer.warmup=0",
        "--config.latents=4",
        "--config.latent_channels=4",
        "--config.steps=1",
        "--mesh=2x4x1",
        "--config.batch=8",
        f"--workdir={workdir}",
        "--data=random",
        f"--start={converted}",
    )
    assert "Step 1 of 1" in ended.stdout and "params/vae" in ended.stdout
    found = checkpoint.Series(workdir / "checkpoints").restore(None)
    wanted = toy_cap4d.checkpoint()["model.diffusion_model.time_embed.0.weight"].T
    kernel = found.tree["params"]["unet"]["time1"]["kernel"]
    np.testing.assert_allclose(kernel, wanted, atol=1e-6)


def test_what_a_converted_checkpoint_does_not_know_is_named(converted, capsys):
    """GeoDiff4D of that UNet: its reference net starts as the UNet does."""
    config = geodiff4d.get_config("size=tiny")
    config.latent_channels = 4
    for net in (config.model.unet, config.model.reference_net):
        net.heads = toy_cap4d.network().heads
    filled = train_denoiser.adopted_variables(config, str(converted))
    said = capsys.readouterr().out.splitlines()
    (random,) = (x for x in said if x.startswith("These stay as they are: "))
    named = random.removeprefix("These stay as they are: ").rstrip(".").split(", ")
    expected = ["batch_stats", "params/domain_label", "params/encoder"]
    assert named[:3] == expected
    assert all("params/unet/" in x and "_expression" in x for x in named[3:])
    (padded,) = (x for x in said if x.startswith("These start at zero: "))
    assert padded.count("conv_in/kernel: 3 of 7 inputs") == 2
    params = filled["params"]
    stem = params["reference_net"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(params["unet"]["conv_in"]["kernel"], stem)
    assert isinstance(params["domain_label"]["embedding"], jax.ShapeDtypeStruct)


def test_requirements_add_up(monkeypatch):
    config = small.config()
    monkeypatch.setattr(train_denoiser, "work_of", lambda _: loop.Work(16, 1e12))
    said = train_denoiser.requirements(config, sharding.abstract_mesh((2, 8, 1)))
    assert said["that learn"] == said["parameters"]
    assert said["items per device"].startswith("0.5 of 8; to run, set --config.batch")
    assert said["operations per device"] == "0.188 TFLOP"  # 3 / 16


@pytest.mark.slow
def test_a_run_goes_on_from_its_workdir(tmp_path):
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    words = (
        "experiments.train_denoiser",
        CONFIG,
        f"--workdir={workdir}",
        "--data=random",
        "--mesh=2x2x2",
        "--config.latents=4",
        "--config.batch=4",
        "--log_every=1",
        "--save_every=1",
    )
    command(*words, "--config.steps=2", cache=cache)
    ended = command(*words, "--config.steps=3", cache=cache)
    assert "Step 3 of 3" in ended.stdout
    lines = [json.loads(x) for x in (workdir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["latents"] == 4
    # As many steps as there are: who takes it for the same ends at once.
    other = ("--config.model.unet.channels=32", "--config.steps=3")
    ended = command(*words, *other, check=False)
    assert ended.returncode == 2 and "another configuration" in ended.stderr


@pytest.mark.slow
def test_geoface_trains_on_records(tmp_path):
    """With the alignment loss, by the commands that a user runs."""
    codec = toy_codec.write(tmp_path / "vae.safetensors")
    pictures = toy_codec.dataset(tmp_path / "data")
    latents = latent_codec.cache(pictures, codec, splits=("train", "held_out"))
    workdir = tmp_path / "run"
    ended = command(
        "experiments.train_denoiser",
        CONFIG,
        f"--workdir={workdir}",
        f"--data={latents}",
        "--config.latents=8",
        "--config.steps=2",
        "--log_every=1",
        devices=1,
    )
    assert "Step 2 of 2" in ended.stdout
    lines = [json.loads(x) for x in (workdir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert np.isfinite(line["loss"]) and 0.0 < line["loss/alignment"] < 10.0
