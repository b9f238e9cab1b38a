"""Whether a generator follows what drives it: its loss, where that is another's.

python -m experiments.benchmarks.control --workdir=DIR --data=FOLDER,... \\
    --config=experiments/configs/geodiff4d.py:stage=1,size=tiny [--batches=192]
    [--json=FILE]

The denoising loss of averaged weights on held-out people, and by how many percent it
rises where the driving faces, or the maps of head poses, are those of another person:
same latents, noise and diffusion time. A network that does not look loses nothing.
Another person's face also has another skin; the person's own face, from another of its
pictures, differs in expression, view and light alone. A batch has one example of every
person. Intervals of 95 % are a bootstrap over batches: they tell how well these
people's loss is known, not how others' would be.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Key

from experiments import launch, recorded_batches, training_run
from experiments.benchmarks import timing
from experiments.configs import generator
from geodiff_jax import sharding
from geodiff_jax.training import denoising
from geodiff_jax.training import state as states

_BATCHES = flags.DEFINE_integer("batches", 192, "That are averaged.", lower_bound=2)
_JSON = flags.DEFINE_string("json", None, "Where to write the table as JSON.")

RESAMPLES = 2_000
DRIVEN = ("its own", "its face of another picture", "others' faces", "others' poses")


def main(argv: list[str]) -> None:
    """Prints a row for each way of driving."""
    del argv
    config = training_run.given_config()
    workdir, data = training_run.given_folders()
    variables, number = trained(config, workdir)
    table = list(rows(measured(config, variables, data, count=_BATCHES.value)))
    about = {"step": number, "batches": _BATCHES.value, **timing.machine()}
    timing.report("Control", about, table, json_path=_JSON.value)


def trained(config: generator.Config, workdir: str) -> tuple[dict[str, Any], int]:
    """(averaged weights of a workdir's last checkpoint, its step)."""
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    template = training_run.abstract_state(generator.state_shapes(config), mesh)
    found = training_run.newest(workdir, template=template)
    return states.variables_of(found.tree, averaged=True), int(found.tree.step)


def measured(
    config: generator.Config, variables: dict[str, Any], data: list[str], *, count: int
) -> Float[np.ndarray, "batch driven"]:
    """Losses of so many held-out batches by DRIVEN."""
    batches = recorded_batches.one_of_each(config, data, split="held_out")
    compute = jax.jit(functools.partial(losses, config=config))
    keys = jax.random.split(jax.random.key(0), count)
    pairs = zip(keys, itertools.pairwise(batches), strict=False)
    return np.asarray([compute(key, variables, *pair) for key, pair in pairs])


def losses(
    key: Key[Array, ""],
    variables: dict[str, Any],
    batch: denoising.Batch,
    other: denoising.Batch,
    *,
    config: generator.Config,
) -> Float[Array, " driven"]:
    """Of a batch, and of what it would be, were each item driven by the one before.

    `other` are further pictures of the same people, in the same order.

    Raises ValueError for batches without driving faces and head poses, or of one item.
    """
    if batch.driving is None or batch.signals.head_pose is None:
        raise ValueError(
            "Expected a generator that faces and head poses drive, such as "
            "experiments/configs/geodiff4d.py."
        )
    if len(batch.latents) == 1:
        raise ValueError("Expected several people, who drive each other, got one.")
    again = batch.replace(driving=other.driving)
    faces = batch.replace(driving=jnp.roll(batch.driving, 1, axis=0))
    poses = jnp.roll(batch.signals.head_pose, 1, axis=0)
    turned = batch.replace(signals=batch.signals.replace(head_pose=poses))
    seen = {"objective": denoising.Objective(drop=0.0), "train": False}
    return jnp.stack(
        [
            generator.loss(key, variables, x, config=config, **seen)
            for x in (batch, again, faces, turned)
        ]
    )


def rows(found: Float[np.ndarray, "batch driven"]) -> Iterator[timing.Row]:
    """Mean losses, and how many percent more they are, with the interval's ends."""
    random = np.random.default_rng(0)
    chosen = random.integers(len(found), size=(RESAMPLES, len(found)))
    resampled = found[chosen].mean(axis=1)
    rise = 100 * (resampled / resampled[:, :1] - 1)
    low, high = np.percentile(rise, [2.5, 97.5], axis=0)
    means = found.mean(axis=0)
    for i, name in enumerate(DRIVEN):
        more = {} if i == 0 else {"more": 100 * (means[i] / means[0] - 1)}
        ends = {} if i == 0 else {"low": low[i], "high": high[i]}
        row = {"driven by": name, "loss": means[i], **more, **ends}
        yield {k: x if isinstance(x, str) else float(x) for k, x in row.items()}


if __name__ == "__main__":
    launch.run(main)
