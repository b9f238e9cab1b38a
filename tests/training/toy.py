"""A run in which nothing takes long: python -m tests.training.toy FOLDER STEPS.

The network is two numbers; the loop, its files and its checkpoints are the real ones.
"""

import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax import checkpoint, reporting, sharding
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.render.conditioning import Conditioning
from geodiff_jax.training import denoising, loop
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

SETTINGS = optimizers.Settings(learning_rate=0.01, warmup=5)
RULES = (("", jax.sharding.PartitionSpec()),)
MESH_SHAPE = (1, 1, 1)


class Batches:
    """Any batch by its number; `poisoned` ones hold a NaN."""

    def __init__(self, poisoned: range = range(0)) -> None:
        self.number = self.replaced = 0
        self.poisoned = poisoned

    def __next__(self) -> denoising.Batch:
        rng = np.random.default_rng(self.number)
        latents = rng.normal(size=(4, 1, 1, 1, 2, 2, 2)).astype(np.float32)
        if self.number in self.poisoned:
            latents[0] = np.nan
        self.number += 1
        return denoising.Batch(latents, Conditioning())

    def get_state(self) -> dict[str, int]:
        return {"next": self.number}

    def set_state(self, state: dict[str, int]) -> None:
        self.number = state["next"]


def scaling(variables, x, t, signals, **others):
    """A network of two parameters, one of which a later stage may train alone."""
    del t, signals, others
    params = variables["params"]
    return (params["early"]["gain"] + params["late"]["gain"]) * x, {}


def first_state() -> states.TrainState:
    gains = {name: {"gain": jnp.asarray(0.25)} for name in ("early", "late")}
    return states.initial_state(
        jax.random.key(1), {"params": gains}, optimizers.make(SETTINGS)
    )


@functools.cache
def mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(MESH_SHAPE, devices=jax.devices()[:1])


@functools.cache
def step() -> loop.Step:
    train_step = functools.partial(
        denoising.train_step,
        apply=scaling,
        schedule=schedules.make(),
        optimizer=optimizers.make(SETTINGS),
        objective=denoising.Objective(drop=0.0),
    )
    return loop.make_step(
        train_step,
        learning_rate=optimizers.learning_rate(SETTINGS),
        placed=sharding.shardings(first_state(), RULES, mesh()),
        mesh=mesh(),
    )


def run(
    folder: pathlib.Path,
    steps: int,
    *,
    batches: Any = None,
    log_every: int = 1,
    save_every: int = 4,
    most_failing: int = 20,
    look_every: int = 1000,
    look: loop.Look | None = None,
    profile: loop.Profile | None = None,
) -> states.TrainState:
    """Starts, or goes on where the folder's last run was."""
    batches = Batches() if batches is None else batches
    series = checkpoint.Series(folder / "checkpoints")
    try:
        placed = sharding.shardings(first_state(), RULES, mesh())
        state = jax.device_put(first_state(), placed)
        found = loop.resume(series, state, batches)
        state = state if found is None else found
        log = reporting.Log(folder, after=int(state.step))
        plan = loop.Plan(
            steps=steps,
            log_every=log_every,
            save_every=save_every,
            most_failing=most_failing,
            look_every=look_every,
            profile=profile,
        )
        work = loop.Work(images=4, forward_flops=1e6)
        options = {"plan": plan, "work": work, "mesh": mesh(), "look": look}
        try:
            return loop.run(step(), state, batches, log=log, series=series, **options)
        finally:
            log.close()
    finally:
        series.close()


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
