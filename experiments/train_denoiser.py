"""Trains the generator of any of the four papers.

python -m experiments.train_denoiser --workdir=DIR --data=FOLDER,... \\
    --config=experiments/configs/geodiff4d.py:stage=1,size=tiny

Run the same command again to go on from the last checkpoint, on any mesh. Stage 2
starts from the averaged weights of stage 1: --start=WORKDIR. What trains everything
may start from weights of others, as `experiments.convert_weights` writes them, and says
what they do not know: --start=FILE.safetensors. `--data=random` trains on noise of the
right shapes, to time steps.

`--vae=FILE.safetensors`, the latents' autoencoder, draws what averaged weights make of
held-out records, beside the truth, every --look_every steps: samples/STEP.png.

`--dry_run --mesh=256x8x1` says what the mesh would hold and compute, without it.

What it leaves in the workdir is told in `training_run`.
"""

import functools
import math
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments import (
    launch,
    paper_size,
    random_batches,
    recorded_batches,
    sampling,
    training_run,
)
from experiments.configs import generator
from geodiff_jax import sharding
from geodiff_jax.models import adoption, weight_files, weights
from geodiff_jax.training import loop
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

_START = flags.DEFINE_string(
    "start", None, "Workdir of the stage before, or a file of convert_weights."
)
_VAE = flags.DEFINE_string("vae", None, "File that decodes samples; none without.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Says what it would take, and ends.")
CONVERTED = ".safetensors"


def main(argv: list[str]) -> None:
    """From flags to a trained state on disk."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = training_run.given_config()
    if _DRY_RUN.value:
        shape = launch.mesh_shape(launch.MESH.value or "1x1x1")
        for name, value in requirements(config, sharding.abstract_mesh(shape)).items():
            print(f"{name:<30}{value}")
        return

    def train_on(
        workdir: str, data: list[str], *, mesh: jax.sharding.Mesh, **options: Any
    ) -> states.TrainState:
        look = None
        if _VAE.value is not None:
            look = sampling.Samples(config, data, _VAE.value, workdir)
        workers = training_run.DATA_WORKERS.value
        batches = batches_of(config, data, mesh=mesh, workers=workers)
        options |= {"start": _START.value, "look": look}
        return train(config, workdir, batches=batches, mesh=mesh, **options)

    training_run.command(config, train_on)


def train(
    config: generator.Config,
    workdir: str,
    *,
    batches: loop.Batches,
    plan: loop.Plan,
    mesh: jax.sharding.Mesh,
    start: str | None = None,
    look: loop.Look | None = None,
) -> states.TrainState:
    """Trains from the workdir's last checkpoint, or from the start, to the plan's end.

    Raises ValueError for what does not fit together, before anything is compiled.
    """
    template = abstract_state(config, mesh)
    placed = jax.tree.map(lambda x: x.sharding, template)
    settings = generator.optimizer_settings(config)
    return training_run.train(
        config,
        workdir,
        template=template,
        first=functools.partial(first_state, config, placed, start=start),
        step=generator.train_step(config),
        rate=optimizers.learning_rate(settings),
        batches=batches,
        plan=plan,
        work=work_of(config),
        mesh=mesh,
        look=look,
    )


def batches_of(
    config: generator.Config,
    data: list[str],
    *,
    mesh: jax.sharding.Mesh,
    workers: int = 0,
) -> loop.Batches:
    """This process' rows of batches of datasets, or of noise for `["random"]`."""
    own: Any = training_run.own_rows(config.batch, mesh)
    if data != ["random"]:
        return recorded_batches.RecordedBatches(config, data, workers=workers, **own)
    return random_batches.RandomBatches(
        generator.batch_shapes(config),
        references=config.get("references", 1),
        seed=config.seed,
        **own,
    )


def work_of(config: generator.Config) -> loop.Work:
    """What a step of a config does."""
    images = config.batch * config.views * config.frames
    return loop.Work(images=images, forward_flops=paper_size.forward_flops(config))


def abstract_state(config: generator.Config, mesh: sharding.Mesh) -> Any:
    """The state's ShapeDtypeStructs, with their shardings; nothing is allocated."""
    return training_run.abstract_state(generator.state_shapes(config), mesh)


def first_state(
    config: generator.Config, placed: Any, *, start: str | None
) -> states.TrainState:
    """Fresh, each device making its own part, or with the weights of `start`.

    These are another workdir's, all of them, or a converted checkpoint's, as far as
    they go. Raises ValueError if there are none, or no need for them, or other
    networks'.
    """
    converted = start is not None and start.endswith(CONVERTED)
    if (config.stage > 1 and start is None) or (config.trained and converted):
        raise ValueError(
            f"Expected --start, stage 1's workdir, for stage {config.stage}."
        )
    if config.stage == 1 and start is not None and not converted:
        raise ValueError(f"Expected no --start but *{CONVERTED} for stage 1.")
    adopted = adopted_variables(config, start) if start and converted else None
    make = functools.partial(generator.fresh_state, config=config)
    state = training_run.made(make, placed, seed=config.seed)
    if start is None:
        return state
    if adopted is not None:
        return jax.device_put(with_adopted(state, adopted), placed)
    other = training_run.newest(start).tree
    return jax.device_put(started(state, other, trained=config.trained), placed)


def adopted_variables(config: generator.Config, path: str) -> dict[str, Any]:
    """The network's variables: a file's arrays, and shapes of what it does not know.

    A reference net that it lacks starts as its UNet does (ours, as AnimateAnyone).
    Says what is missing there. Raises ValueError or OSError.
    """
    parts, _ = weight_files.load_modules(path)
    network = generator.network(config)
    if network.reference_net is not None and "unet" in parts:
        parts.setdefault("reference_net", parts["unet"])
    shapes = generator.state_shapes(config)
    own = states.variables_of(shapes)
    filled, report = adoption.adopt(network, own, parts)
    if jax.process_index() == 0:
        for line in weights.summary(report, own, name=path):
            print(line)
    return filled


def with_adopted(state: states.TrainState, filled: dict[str, Any]) -> states.TrainState:
    """The state with all that is more than a shape in place of its own.

    Everything of it learns, so that nothing rests.
    """

    def take(own: Any, new: Any) -> Any:
        return jax.tree.map(
            # Copies: the step gives away the buffers of parameters and average.
            lambda x, y: x if isinstance(y, jax.ShapeDtypeStruct) else np.array(y),
            own,
            new,
        )

    return state.replace(
        params=take(state.params, filled["params"]),
        average=take(state.average, filled["params"]),
        statistics=take(state.statistics, filled.get("batch_stats", {})),
    )


def started(
    state: states.TrainState, other: dict[str, Any], *, trained: str
) -> states.TrainState:
    """The state with the averaged weights of another stage's, and its statistics.

    What this stage trains may be missing there. Raises ValueError for any other
    difference.
    """
    known: dict[Any, Any] = flax.traverse_util.flatten_dict(
        optimizers.merge(other["average"], other["resting"] or {})
    )

    def take(params: Any, *, optional: bool) -> Any:
        flat: dict[Any, Any] = flax.traverse_util.flatten_dict(params)
        for name, value in flat.items():
            if name not in known and optional:
                continue
            flat[name] = known.pop(name, None)
            found = getattr(flat[name], "shape", "nothing")
            if found != value.shape:
                raise ValueError(
                    f"Expected {'/'.join(name)} of shape {value.shape} in the stage "
                    f"before, got {found}."
                )
        return flax.traverse_util.unflatten_dict(flat)

    params = take(state.params, optional=bool(trained))
    resting = take(state.resting, optional=False)
    if known:
        raise ValueError(
            "Expected the network of the stage before, got one without "
            f"{'/'.join(min(known))}."
        )
    return state.replace(
        params=params,
        resting=resting,
        average=jax.tree.map(jnp.array, params),
        statistics=other["statistics"] or {},
    )


def requirements(config: generator.Config, mesh: sharding.Mesh) -> dict[str, str]:
    """What a run on a mesh would take, by name, ready to be read."""
    state, devices = abstract_state(config, mesh), mesh.size
    placed = jax.tree.map(lambda x: x.sharding, state)
    learning = paper_size.count(state.params)
    gradients = sharding.bytes_per_device(state.params, placed.params)
    held = sharding.bytes_per_device(state, placed)
    flops = 3.0 * work_of(config).forward_flops
    batch = generator.batch_shapes(config)
    batch_bytes = sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch)
    )
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    items = f"{config.batch / parts:g} of {config.batch}"
    if config.batch % parts:
        items += f"; to run, set --config.batch to a multiple of {parts}"
    return {
        "mesh": " ".join(f"{name} {size}" for name, size in mesh.shape.items()),
        "parameters": f"{(learning + paper_size.count(state.resting)) / 1e6:.2f} M",
        "that learn": f"{learning / 1e6:.2f} M",
        "state": f"{_bytes(state) / 1e9:.3f} GB",
        "state per device": f"{held / 1e9:.3f} GB",
        "gradients per device": f"{gradients / 1e9:.3f} GB",
        "batch per device": f"{batch_bytes / parts / 1e6:.3f} MB",
        "items per device": items,
        "operations of a step": f"{flops / 1e12:.3f} TFLOP",
        "operations per device": f"{flops / devices / 1e12:.3f} TFLOP",
    }


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    launch.run(main)
