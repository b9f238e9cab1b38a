"""How fast the denoiser's UNet runs and learns, beside diffusers on PyTorch.

python -m experiments.benchmarks.denoiser [--sizes=tiny,small,paper] [--json=FILE]

Stable Diffusion's part of the generator in float32: one forward pass, and one training
step (loss, gradients, AdamW). The sizes are those of the configs; "paper" is Stable
Diffusion 1.5 with latents of 64 x 64, forward only, and wants 8 GB. `gflop` is what the
algorithm takes (XLA's cost analysis before it compiles, attention in its plain form),
`share_of_peak` that over the time and the machine's measured matrix product. Where
diffusers is installed (the extra `parity`), each row has its time beside ours, taken
right after it. Where others use the machine too, compare CPU times.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from experiments.benchmarks import diffusers_twin, timing
from experiments.configs import generator
from geodiff_jax.models import unet

_SIZES = flags.DEFINE_list("sizes", "tiny,small,paper", "Of the configs.")
_RUNS = flags.DEFINE_integer("runs", None, "Per row; default: by size.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Where to write the table as JSON.")

RUNS = {"tiny": 30, "small": 10, "paper": 3}
BATCH = {"tiny": 4, "small": 2, "paper": 1}
PASSES = {"tiny": ("forward", "train"), "small": ("forward", "train")}
"""Sizes that are not named are too large to learn on CPUs."""
WORDS, WORD_WIDTH = 77, 768
LEARNING_RATE = 1e-5
T = 500.0


class Problem(NamedTuple):
    """A network and what it is given."""

    net: unet.UNet
    latents: np.ndarray
    context: np.ndarray


def problem(size: str) -> Problem:
    """Of the config's size, as random images with random texts."""
    chosen = generator.choose("size", size, generator.SIZES)
    net = unet.UNet(**chosen["unet"])
    levels = len(net.multipliers)
    tokens = (unet.IMAGE,) * (levels - 1) + ((),)
    side, lead = chosen["latents"], (BATCH[size], 1, 1, 1)
    random = np.random.default_rng(0)
    return Problem(
        net.clone(tokens=tokens),
        random.normal(size=(*lead, side, side, 4)).astype(np.float32),
        random.normal(size=(*lead, WORDS, WORD_WIDTH)).astype(np.float32),
    )


def parameters(given: Problem) -> Any:
    """Random ones; nothing is compiled."""
    shapes = jax.eval_shape(
        lambda: given.net.init(
            jax.random.key(0), given.latents, T, context=given.context
        )
    )
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * random.standard_normal(x.shape, np.float32)),
        shapes,
    )


def passes(net: unet.UNet) -> dict[str, Callable[..., Any]]:
    """Functions of (state, latents, context) by their name in the table.

    The state of "train" is parameters and AdamW's, which it returns one step on.
    """
    optimizer = optax.adamw(LEARNING_RATE)

    def forward(variables: Any, latents: Any, context: Any) -> jax.Array:
        return net.apply(variables, latents, T, context=context)[0]

    def loss(variables: Any, latents: Any, context: Any) -> jax.Array:
        error = forward(variables, latents, context) - latents
        return jnp.mean(error * error)

    def train(state: Any, latents: Any, context: Any) -> Any:
        variables, moments = state
        gradients = jax.grad(loss)(variables, latents, context)
        updates, moments = optimizer.update(gradients, moments, variables)
        return optax.apply_updates(variables, updates), moments

    return {"forward": forward, "train": train}


def gigaflops(given: Problem, kind: str, state: Any) -> float:
    """What a pass takes; loops would count once, so attention has none here."""
    step = passes(given.net.clone(implementation="plain"))[kind]
    lowered = jax.jit(step).lower(state, given.latents, given.context)
    costs: Any = lowered.cost_analysis()
    return costs["flops"] / 1e9


def rows(about: dict[str, Any], sizes: list[str]) -> Iterator[timing.Row]:
    """One row per size and pass."""
    twin = diffusers_twin.missing() is None
    for size in sizes:
        given, runs = problem(size), _RUNS.value or RUNS[size]
        variables = parameters(given)
        theirs = (
            diffusers_twin.passes(*given, learning_rate=LEARNING_RATE) if twin else {}
        )
        for kind in PASSES.get(size, ("forward",)):
            state = variables
            if kind == "train":
                state = variables, optax.adamw(LEARNING_RATE).init(variables)
            gflop = gigaflops(given, kind, state)
            step, compile_s = compiled(given, kind, state)
            figures = timing.measure(step, runs=runs)
            yield {
                "size": size,
                "pass": kind,
                "parameters_m": sum(x.size for x in jax.tree.leaves(variables)) / 1e6,
                "gflop": gflop,
                "compile_s": compile_s,
                **figures,
                "share_of_peak": 1e3 * gflop / figures["median_ms"] / about["gflops"],
                **(compared(theirs[kind], figures, runs=runs) if twin else {}),
            }


def compiled(given: Problem, kind: str, state: Any) -> tuple[Callable[[], Any], float]:
    """A pass that goes on from its own state, and how many seconds it compiled."""
    donated = (0,) if kind == "train" else ()
    arrays = jnp.asarray(given.latents), jnp.asarray(given.context)
    lowered = jax.jit(passes(given.net)[kind], donate_argnums=donated).lower(
        state, *arrays
    )
    begin = time.perf_counter()
    run = lowered.compile()
    seconds = time.perf_counter() - begin
    # Another pass may still need what this one gives away.
    held = jax.tree.map(jnp.copy, state) if donated else state

    def step() -> Any:
        nonlocal held
        out = run(held, *arrays)
        if donated:
            held = out
        return out

    return step, seconds


def compared(
    step: Callable[[], Any], ours: dict[str, float], *, runs: int
) -> dict[str, float]:
    """PyTorch's time for the same pass, and ours over it."""
    theirs = timing.measure(step, runs=runs)
    return {
        "torch_ms": theirs["median_ms"],
        "torch_cpu_ms": theirs["cpu_ms"],
        "over_torch": ours["median_ms"] / theirs["median_ms"],
        "cpu_over_torch": ours["cpu_ms"] / theirs["cpu_ms"],
    }


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    for size in _SIZES.value:
        try:
            generator.choose("size", size, generator.SIZES)
        except ValueError as error:
            raise app.UsageError(f"--sizes: {error}", exitcode=2) from error
    about = timing.machine()
    table = list(rows(about, _SIZES.value))
    hidden = ("runs", "min_ms", "p90_ms")
    timing.report("Denoiser", about, table, hidden=hidden, json_path=_JSON.value)


if __name__ == "__main__":
    app.run(main)
