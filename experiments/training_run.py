"""The run of a command that trains: its flags, its files, and how it goes on.

Leaves in the workdir: run.json (config, versions, revision), log.jsonl and TensorBoard
events, checkpoints/. SIGTERM saves and ends with exit status 0.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Key

from experiments import launch
from geodiff_jax import checkpoint, reporting, sharding
from geodiff_jax.io import atomic, images
from geodiff_jax.training import loop
from geodiff_jax.training import state as states

DATA = flags.DEFINE_list("data", None, "Folders of prepared datasets.")
DATA_WORKERS = flags.DEFINE_integer("data_workers", 0, "Processes that read them.")
LOG_EVERY = flags.DEFINE_integer("log_every", 50, "Steps.", lower_bound=1)
SAVE_EVERY = flags.DEFINE_integer("save_every", 1000, "Steps.", lower_bound=1)
LOOK_EVERY = flags.DEFINE_integer(
    "look_every", 1000, "Steps between looks at held-out records.", lower_bound=1
)

Config = Any
"""`ml_collections.ConfigDict`, whose fields no static checker knows."""


def given_config() -> Config:
    """The flag's. Raises ValueError where there is none."""
    if launch.CONFIG.value is None:
        raise ValueError("Expected --config=experiments/configs/FILE.py, got none.")
    return launch.CONFIG.value


def given_folders() -> tuple[str, list[str]]:
    """(workdir, data) of the flags. Raises ValueError unless both are there."""
    workdir, data = launch.WORKDIR.value, DATA.value
    if not workdir or not data:
        raise ValueError("Expected --workdir=DIR and --data=FOLDER,..., got not both.")
    return workdir, data


def command(config: Config, train: Callable[..., states.TrainState]) -> None:
    """Calls `train(workdir, data, plan=, mesh=)` as the flags say; tells its end.

    Exit status 1 where there is no hope for the gradients.
    """
    workdir, data = given_folders()
    launch.join_processes()
    mesh = launch.mesh_of_all_devices(launch.MESH.value)
    plan = loop.Plan(
        steps=config.steps,
        log_every=LOG_EVERY.value,
        save_every=SAVE_EVERY.value,
        look_every=LOOK_EVERY.value,
        profile=launch.profile(launch.PROFILE_STEPS.value, workdir),
    )
    try:
        state = train(workdir, data, plan=plan, mesh=mesh)
    except FloatingPointError as error:
        print(f"{pathlib.Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(1)
    if jax.process_index() == 0:
        print(f"Step {int(state.step)} of {plan.steps} is in {workdir}.")


def own_rows(batch: int, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Whose rows this process gives, for a source of batches.

    Processes that share theirs count as one. Raises ValueError for a batch that they
    do not divide.
    """
    which, count = sharding.own_share(mesh, process=jax.process_index())
    if batch % count:
        raise ValueError(f"Expected a batch that {count} hosts divide, got {batch}.")
    return {"process": which, "processes": count}


def abstract_state(shapes: states.TrainState, mesh: sharding.Mesh) -> Any:
    """The state's shapes and types, as ShapeDtypeStructs with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        sharding.shardings(shapes, states.RULES, mesh),
    )


def made(
    fresh: Callable[[Key[Array, ""]], states.TrainState], placed: Any, *, seed: int
) -> states.TrainState:
    """What `fresh` gives, each device making its own part."""
    return jax.jit(fresh, out_shardings=placed)(jax.random.key(seed))


def gathered(tree: Any) -> Any:
    """Arrays that lie on the mesh, whole, as numpy; all processes call it together."""
    return multihost_utils.process_allgather(tree, tiled=True)


def newest(workdir: str | os.PathLike, *, template: Any = None) -> checkpoint.Found:
    """A workdir's last checkpoint, as `checkpoint.Series.restore` reads it.

    Raises ValueError where there is none.
    """
    series = checkpoint.Series(pathlib.Path(workdir) / "checkpoints")
    found = series.restore(template)
    series.close()
    if found is None:
        raise ValueError(f"Expected a workdir with a checkpoint, got {workdir}.")
    return found


def show(
    log: reporting.Log,
    workdir: str | os.PathLike,
    number: int,
    drawn: Float[np.ndarray, "h w 3"],
) -> None:
    """A picture of held-out records in [0, 1]: samples/NUMBER.png, and TensorBoard."""
    folder = pathlib.Path(workdir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    images.write_png(folder / f"{number:08d}.png", drawn)
    log.image(number, "held_out", drawn)


def train(
    config: Config,
    workdir: str,
    *,
    template: Any,
    first: Callable[[], states.TrainState],
    step: Callable[..., tuple[states.TrainState, loop.Figures]],
    batches: loop.Batches,
    plan: loop.Plan,
    work: loop.Work,
    mesh: jax.sharding.Mesh,
    rate: optax.Schedule,
    look: loop.Look | None = None,
) -> states.TrainState:
    """Trains from the workdir's last checkpoint, or from `first()`, to the plan's end.

    `template` is an `abstract_state`, `step` what `loop.make_step` takes, `rate` the
    schedule of its learning rate. Raises ValueError for what does not fit together,
    before anything is compiled.
    """
    folder = pathlib.Path(workdir)
    sharding.check_batch(config.batch, mesh, accumulated=config.optimizer.accumulate)
    placed = jax.tree.map(lambda x: x.sharding, template)
    jitted = loop.make_step(step, learning_rate=rate, placed=placed, mesh=mesh)
    series = checkpoint.Series(folder / "checkpoints")
    log = None
    try:
        with jax.set_mesh(mesh):
            state = loop.resume(series, template, batches)
            state = first() if state is None else state
            if jax.process_index() == 0:
                record = reporting.manifest(config=config.to_dict())
                atomic.write_text(folder / "run.json", json.dumps(record, indent=1))
                log = reporting.Log(folder, tensorboard=True, after=int(state.step))
            return loop.run(
                jitted,
                state,
                batches,
                plan=plan,
                work=work,
                mesh=mesh,
                log=log,
                series=series,
                metadata={"config": config.to_dict()},
                look=look,
            )
    finally:
        series.close()
        if log is not None:
            log.close()
