"""Losses of the same steps on meshes of eight: python -m tests.experiments.meshes 8x1x1

Prints a line of JSON per mesh: its losses, and the elements of the parameters and of
the largest all-gather in the compiled program.
"""

import json
import math
import re
import sys

import jax

from experiments import launch, random_batches, train_denoiser
from experiments.configs import generator
from geodiff_jax import sharding
from geodiff_jax.training import state as states
from tests.experiments import small

STEPS = 5


def losses(shape: tuple[int, ...]) -> dict:
    """On the first devices that make up the mesh."""
    config = small.config()
    mesh = sharding.make_mesh(shape, devices=jax.devices()[: math.prod(shape)])
    first = small.state(config)
    placed = sharding.shardings(first, states.RULES, mesh)
    with jax.set_mesh(mesh):
        state = jax.device_put(first, placed)
        batches = random_batches.RandomBatches(generator.batch_shapes(config))
        rows = [sharding.place_batch(next(batches), mesh) for _ in range(STEPS)]
        step = train_denoiser.step_of(config, placed, mesh)
        step = step.lower(state, rows[0]).compile()
        found = []
        for batch in rows:
            state, figures, _ = step(state, batch)
            found.append(float(figures["loss"]))
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\][^=]* all-gather", step.as_text())
    return {
        "mesh": list(shape),
        "losses": found,
        "parameters": sum(x.size for x in jax.tree.leaves(first.params)),
        "gathers": len(gathered),
        "largest": max(
            (math.prod(map(int, filter(None, g.split(",")))) for g in gathered),
            default=0,
        ),
    }


if __name__ == "__main__":
    for text in sys.argv[1:]:
        print(json.dumps(losses(launch.mesh_shape(text))), flush=True)
