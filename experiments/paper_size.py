"""What training at a paper's size takes, found out without the hardware.

python -m experiments.paper_size [--papers=geodiff4d,cap4d] [--size=paper] \\
    [--compile] [--json=FILE]

Lowers one training step of every stage for NVIDIA GPUs (attention in chunks, since
cuDNN is not asked without a GPU) and for TPUs (splash attention), from shapes alone,
and counts parameters, floating-point operations of a frame's forward pass (all domains)
and the bytes of parameters, their average, gradients and Adam's moments. About a minute
per stage. `--compile` also compiles the step for this machine, attention in chunks, and
says how long that took.
"""

import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import rich.console
import rich.table
from absl import app, flags

from experiments.configs import cap4d, generator, geodiff4d, geoface, learn2control
from geodiff_jax.training import denoising
from geodiff_jax.training import state as states

_PAPERS = flags.DEFINE_list("papers", None, "Which papers; all by default.")
_SIZE = flags.DEFINE_string("size", "paper", "Of the networks.")
_COMPILE = flags.DEFINE_bool("compile", False, "For this machine; takes minutes.")
_JSON = flags.DEFINE_string("json", None, "Where to write the figures.")

CONFIGS = {
    "geodiff4d": (geodiff4d, (1, 2)),
    "cap4d": (cap4d, (1,)),
    "geoface": (geoface, ()),
    "learn2control": (learn2control, (1, 2)),
}
"""Modules, and the stages that differ in shape."""
ATTENTION = {"cuda": "chunked", "tpu": "splash"}


def step_of(config: ml_collections.ConfigDict) -> tuple[Any, tuple]:
    """(a training step, its abstract arguments): key, state and batch."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = key, generator.state_shapes(config), generator.batch_shapes(config)
    return generator.train_step(config), arguments


def lower(config: ml_collections.ConfigDict, platform: str) -> Any:
    """One training step for a platform that need not be there."""
    step, arguments = step_of(attending(config, ATTENTION[platform]))
    return jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,))


def compile_seconds(config: ml_collections.ConfigDict) -> float:
    """How long XLA takes to compile one training step for this machine, lowered."""
    step, arguments = step_of(attending(config, "chunked"))
    lowered = jax.jit(step, donate_argnums=1).trace(*arguments).lower()
    begin = time.monotonic()
    lowered.compile()
    return time.monotonic() - begin


def attending(
    config: ml_collections.ConfigDict, implementation: str
) -> ml_collections.ConfigDict:
    """The config with another implementation of attention in all networks."""
    config = config.copy_and_resolve_references().unlock()
    for part in ("unet", "reference_net", "encoder"):
        if part in config.model:
            config.model[part].implementation = implementation
    return config


def forward_flops(config: ml_collections.ConfigDict) -> float:
    """Operations of one forward pass of the batch, by XLA's count before it fuses.

    Of attention with all logits at once, since loops are counted as one turn.
    """
    config = attending(config, "plain")
    _, (key, state, batch) = step_of(config)

    def forward(key: Any, state: states.TrainState, batch: denoising.Batch) -> Any:
        return generator.loss(key, states.variables_of(state), batch, config=config)

    lowered = jax.jit(forward).trace(key, state, batch).lower()
    return float(lowered.cost_analysis()["flops"])


def plan(config: ml_collections.ConfigDict, *, compiled: bool) -> dict[str, Any]:
    """The figures of one stage; raises what lowering raises."""
    seconds = {}
    for platform in ATTENTION:
        begin = time.monotonic()
        lower(config, platform)
        seconds[f"{platform}_lowering_s"] = time.monotonic() - begin
    _, (_, state, batch) = step_of(config)
    learning = count(state.params)
    frames = math.prod(batch.latents.shape[i] for i in (0, 2, 3))
    if compiled:
        seconds["compiling_s"] = compile_seconds(config)
    return {
        "parameters": learning + count(state.resting),
        "learning": learning,
        "frames": frames,
        "tflops_per_frame": forward_flops(config) / frames / 1e12,
        # Gradients beside what the state holds: all of it float32.
        "state_gb": 4 * (count(state) + learning) / 1e9,
        **seconds,
    }


def count(tree: Any) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def plans(
    papers: list[str], size: str, *, compiled: bool = False
) -> Iterator[dict[str, Any]]:
    """One row per paper and stage."""
    for paper in papers:
        module, stages = CONFIGS[paper]
        for stage in stages or (None,):
            argument = f"size={size}" + ("" if stage is None else f",stage={stage}")
            row = plan(module.get_config(argument), compiled=compiled)
            yield {"paper": paper, "stage": stage or 1, "size": size, **row}


def main(argv: list[str]) -> None:
    """Prints a table."""
    del argv
    papers = _PAPERS.value or list(CONFIGS)
    unknown = set(papers) - set(CONFIGS)
    if unknown:
        raise app.UsageError(f"--papers are {', '.join(CONFIGS)}, not {unknown}")
    rows = list(plans(papers, _SIZE.value, compiled=_COMPILE.value))
    table = rich.table.Table(title="One training step")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(
            *(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values())
        )
    rich.console.Console(width=140).print(table)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(
            json.dumps({"rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    app.run(main)
