"""What a compiled training step gathers: python -m tests.training.gathers layers

Compiles a step of GeoDiff4D's first stage for a mesh of 1x8x1 and prints a line of
JSON: bytes of the state, of what a device holds of it, of the parameters, and of the
largest all-gather. By word:

small       size=small, which takes many minutes
layers      a network with a layer of every kind
up_front    the same, but all of its parameters are gathered before its first layer
unsharded   the same, but its largest kernels have no rule of their own
"""

import json
import sys
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from experiments import train_denoiser
from experiments.configs import generator, geodiff4d
from geodiff_jax import sharding
from geodiff_jax.training import loop
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states
from tests.experiments import small_command
from tests.training import hlo, meshes

DEVICES = 8


def traced_step(config: Any, mesh: sharding.Mesh) -> Any:
    """The step that `train_denoiser` jits; trace it with the mesh in force."""
    placed = jax.tree.map(
        lambda x: x.sharding, train_denoiser.abstract_state(config, mesh)
    )
    rate = optimizers.learning_rate(generator.optimizer_settings(config))
    step: Any = loop.make_step(
        generator.train_step(config), learning_rate=rate, placed=placed, mesh=mesh
    )
    return step.trace(generator.state_shapes(config), generator.batch_shapes(config))


def figures(config: Any, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Of a config's step."""
    state = train_denoiser.abstract_state(config, mesh)
    placed = jax.tree.map(lambda x: x.sharding, state)
    with jax.set_mesh(mesh):
        compiled = traced_step(config, mesh).lower().compile()

    def whole(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return {
        "state": whole(state),
        "held": sharding.bytes_per_device(state, placed),
        "parameters": whole(state.params),
        "largest": hlo.largest_gather(compiled.as_text()),
    }


class UpFront(meshes.EveryLayer):
    """All of its parameters come together before the first of its layers."""

    @staticmethod
    def apply(variables: Any, *arguments: Any, **options: Any) -> Any:
        """As a module's."""
        flat, unravel = jax.flatten_util.ravel_pytree(variables["params"])
        padded = jnp.pad(flat, (0, -len(flat) % DEVICES))
        for spec in (PartitionSpec("fsdp"), PartitionSpec()):
            padded = jax.lax.with_sharding_constraint(padded, spec)
            padded = jax.lax.optimization_barrier(padded)
        whole = {**variables, "params": unravel(padded[: len(flat)])}
        return meshes.EveryLayer().apply(whole, *arguments, **options)


def main(word: str) -> None:
    """Prints what was found."""
    config = geodiff4d.get_config("stage=1,size=small")
    if word != "small":
        config.update_from_flattened_dict(small_command.SIZES)
        network = UpFront() if word == "up_front" else meshes.EveryLayer()
        generator.network = lambda config: network
    if word == "unsharded":
        states.RULES = (("/(to_|expand|contract|conv)", PartitionSpec()), *states.RULES)
    found = figures(config, sharding.make_mesh((1, DEVICES, 1)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
