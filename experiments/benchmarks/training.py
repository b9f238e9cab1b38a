"""How fast data reaches a training step, and what the steps and their saves take.

python -m experiments.benchmarks.training [--parts=pipeline,checkpoint,step,scaling]
    [--workers=0,1,2] [--devices=1,2,4,8] [--seconds=10] [--side=64] [--json=FILE]

pipeline    examples per second, by number of worker processes (0 reads in the step's
            own): pairs of cached 64 x 64 latents; pairs of 512 x 512 frames, whose
            driving crop is augmented; clips of 16 cached frames with their crops.
            `per_cpu_s` is per second of processor time, which others on the machine
            change less.
checkpoint  of the tiny size's state: how long a save holds training up, when it is on
            disk, and how long it takes to come back.
step        steps per second at the tiny size on cached records, and the share of the
            time that they waited for them.
scaling     steps per second on so many virtual devices of this machine, each of which
            has as much to do; they share its cores.

Data are rendered first, 32 pictures of two heads at 512 x 512 and at 128 x 128, in a
folder that goes away; the pipeline reads them as if they were 16,384, since grain takes
longer to shuffle few records than to read them. Where training compiles, a row takes
minutes.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jaxtyping import Float

from experiments.benchmarks import timing
from experiments.configs import generator, geodiff4d
from geodiff_jax import checkpoint
from geodiff_jax.data import (
    building,
    latents,
    loading,
    pairing,
    pipeline,
    procedural_heads,
    schema,
)
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

PARTS = ("pipeline", "checkpoint", "step", "scaling")
_PARTS = flags.DEFINE_list("parts", ",".join(PARTS), "Which tables.")
_WORKERS = flags.DEFINE_list("workers", "0,1,2", "Processes that read.")
_DEVICES = flags.DEFINE_list("devices", "1,2,4,8", "Virtual devices of `scaling`.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Of each row of the pipeline.")
_SIDE = flags.DEFINE_integer("side", 64, "Of latents; pictures have eight times that.")
_JSON = flags.DEFINE_string("json", None, "Where to write the table as JSON.")

MAPS = ("head_pose",)
CONFIG = "--config=experiments/configs/geodiff4d.py:stage=1,size=tiny"
STEPS, WARM = 60, 20
"""Of a training run, and how many of them do not count."""
ITEMS = 2
"""Per device, where they are scaled."""
KINDS = {
    "latents": (loading.Contents(MAPS, latents=True, crop=None), 1, 8),
    "frames": (loading.Contents(MAPS), 1, 4),
    "clips": (loading.Contents(MAPS, latents=True), 16, 2),
}
"""What examples hold, their frames, and how many a batch has."""


def make_data(folder: pathlib.Path, *, side: int, channels: int = 4) -> tuple[str, str]:
    """(rendered records, the same with latents of this side and so many channels)."""
    image = 8 * side
    plan = procedural_heads.Plan(
        schema.Sizes(image, side, MAPS), 2, 0, clips=1, frames=16, views=1, texture=64
    )
    config = procedural_heads.PlanConfig(name=f"s{image}", plan=plan)
    builder = procedural_heads.ProceduralHeads(
        parts=folder / f"parts{image}",
        config=config,
        data_dir=folder,
        file_format="array_record",
    )
    rendered, names = pathlib.Path(builder.data_path), plan.parts()["train"]

    def render(name: str) -> Iterator[Any]:
        return procedural_heads.examples(name, plan)

    building.make_parts(
        names, render, folder / f"parts{image}", workers=1, title="Rendering"
    )
    building.finish(builder, {"train": names}, folder / f"parts{image}")
    cached = latents.cache(
        rendered, pooled(side, channels), name="pooled", splits=("train",), maps=MAPS
    )
    return str(rendered), str(cached)


def pooled(side: int, channels: int) -> latents.Encode:
    """In place of an autoencoder, which has nothing to do with how fast one reads."""

    def encode(pixels: Float[np.ndarray, "n y x 3"]) -> Float[np.ndarray, "n h w z"]:
        size = pixels.shape[1] // side
        rows = pixels.reshape(len(pixels), side, size, side, size, 3).mean((2, 4))
        return rows[..., np.arange(channels) % 3]

    return encode


def pipeline_rows(rendered: str, cached: str) -> Iterator[timing.Row]:
    """One row per kind of example and number of workers."""
    for kind, (contents, frames, batch) in KINDS.items():
        contents = dataclasses.replace(contents, side=_SIDE.value)
        folder = cached if contents.latents else rendered
        source = repeated(loading.open_source(folder, "train", contents), times=512)
        pair = pairing.Pairing(frames=frames)
        data = pipeline.batches([source], pair, contents, batch=batch)
        for workers in map(int, _WORKERS.value):
            iterator = pipeline.Iterator(data, workers=workers)
            rates = rate(lambda it=iterator: next(it), seconds=_SECONDS.value)
            iterator.close()
            if workers:  # Their processor time is not this process'.
                del rates["per_cpu_s"]
            shown = {name: batch * each for name, each in rates.items()}
            yield {"part": "pipeline", "of": kind, "workers": workers, **shown}


def repeated(source: loading.Source, *, times: int) -> loading.Source:
    """The same records as so many times as many people's."""
    count = len(source.index)
    copies = np.arange(times).repeat(count)
    tiled = loading.chosen(source, np.tile(np.arange(count), times))
    labels = dict(vars(tiled.index))
    for name in ("subject", "clip"):
        labels[name] = labels[name] + copies * (int(labels[name].max()) + 1)
    return dataclasses.replace(tiled, index=building.Index(**labels))


def rate(step: Callable[[], Any], *, seconds: float) -> dict[str, float]:
    """How often per second, of the clock and of the processor; warm from the start."""
    for _ in range(3):
        step()
    count, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
    while count < 2 or time.perf_counter() - begin < seconds:
        step()
        count += 1
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    return {"per_s": count / wall, "per_cpu_s": count / cpu}


def checkpoint_rows(folder: pathlib.Path) -> Iterator[timing.Row]:
    """The median of some saves."""
    config, random = geodiff4d.get_config("size=tiny"), np.random.default_rng(0)
    optimizer = optimizers.make(generator.optimizer_settings(config))

    def fresh(key: Any) -> states.TrainState:
        return states.initial_state(key, generator.variables(key, config), optimizer)

    template = jax.eval_shape(fresh, jax.eval_shape(jax.random.key, 0))
    state = jax.tree.map(
        lambda x: jax.device_put(random.integers(0, 9, x.shape).astype(x.dtype)),
        template,
    )
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    series = checkpoint.Series(folder / "checkpoints")
    paused, saved, restored = [], [], []
    for number in range(5):
        begin = time.perf_counter()
        series.save(number, state)
        paused.append(time.perf_counter() - begin)
        series.wait()
        saved.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        found = series.restore(template)
        assert found is not None
        jax.block_until_ready(found.tree)
        restored.append(time.perf_counter() - begin)
    series.close()
    figures = {"pause_s": paused, "saved_s": saved, "restore_s": restored}
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    medians = {name: float(np.median(times)) for name, times in figures.items()}
    yield {"part": "checkpoint", "of": "tiny", "mb": size / 1e6, **medians}


def step_rows(folder: pathlib.Path, cached: str) -> Iterator[timing.Row]:
    """Of a run on records, on one device."""
    said = trained(folder / "step", f"--data={cached}", "--mesh=1x1x1")
    yield {"part": "step", "of": "tiny", "devices": 1, **said}


def scaling_rows(folder: pathlib.Path) -> Iterator[timing.Row]:
    """One row per number of devices, each in a process of its own."""
    for devices in map(int, _DEVICES.value):
        said = trained(
            folder / f"devices{devices}",
            "--data=random",
            f"--mesh={devices}x1x1",
            f"--config.batch={ITEMS * devices}",
            devices=devices,
        )
        yield {"part": "scaling", "of": "tiny", "devices": devices, **said}


def trained(
    workdir: pathlib.Path, *words: str, devices: int | None = None
) -> dict[str, float]:
    """What a training run's log says of its time once it is warm."""
    virtual = f"--xla_force_host_platform_device_count={devices}" if devices else ""
    inherited = os.environ.get("XLA_FLAGS", "")
    command = [sys.executable, "-m", "experiments.train_denoiser", CONFIG, *words]
    plan = (f"--workdir={workdir}", f"--config.steps={STEPS}", f"--log_every={WARM}")
    subprocess.run(
        [*command, *plan],
        # Stripped: of one space XLA makes the name of a file.
        env=os.environ | {"XLA_FLAGS": f"{inherited} {virtual}".strip()},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    lines = (workdir / "log.jsonl").read_text().splitlines()
    warm = [json.loads(line) for line in lines[1:]]
    names = ("steps_per_s", "images_per_s", "data_wait_share")
    return {name: float(np.mean([line[name] for line in warm])) for name in names}


def rows(folder: pathlib.Path) -> Iterator[timing.Row]:
    """Of all parts that were asked for."""
    if "pipeline" in _PARTS.value:
        yield from pipeline_rows(*make_data(folder, side=_SIDE.value))
    if "checkpoint" in _PARTS.value:
        yield from checkpoint_rows(folder)
    if "step" in _PARTS.value:
        size = generator.SIZES["tiny"]
        made = make_data(folder, side=size["latents"], channels=size["latent_channels"])
        yield from step_rows(folder, made[1])
    if "scaling" in _PARTS.value:
        yield from scaling_rows(folder)


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    unknown = set(_PARTS.value) - set(PARTS)
    if unknown:
        raise app.UsageError(
            f"--parts are {', '.join(PARTS)}, not {', '.join(unknown)}.", exitcode=2
        )
    logging.set_verbosity(logging.WARNING)
    about = timing.machine()
    with tempfile.TemporaryDirectory() as folder:
        table = list(rows(pathlib.Path(folder)))
    timing.report("Training", about, table, json_path=_JSON.value)


if __name__ == "__main__":
    app.run(main)
