"""What training changes, and where it lies on a mesh."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Key, UInt32

from geodiff_jax import sharding
from geodiff_jax.training import optimizer as optimizers

_SHARE = PartitionSpec(("fsdp", "tensor"), None)
RULES: sharding.Rules = (
    # Of two layers in a row the first spreads its results over `tensor`, the second
    # sums over them (Shoeybi et al. 2019); heads stay whole if `tensor` divides them.
    # An embedding is added to what conv1 has spread.
    (
        r"/(to_q|to_k|to_v|expand|conv1|embedding)/kernel$",
        PartitionSpec("fsdp", "tensor"),
    ),
    (r"/(to_out|contract|conv2)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"/kernel$", _SHARE),
    # Tables of few rows, vectors, and a field that all draw: a thousandth of all.
    (
        r"/(embedding|bias|scale|mean|var|camera_token)$|/feature_field/",
        PartitionSpec(),
    ),
    (r"^key$", PartitionSpec()),
)
"""For the generator's networks, whatever part of the state has their names."""


FIELD = "feature_field"
"""The branch of the parameters that holds a `splatted_features.FeatureField`'s arrays,
beside the network's (Learn2Control)."""


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; nothing else makes the next step."""

    key: UInt32[Array, " k"]
    """Data of the key that every step folds its number into."""
    params: Any
    """That learn, float32."""
    resting: Any
    """Parameters that this stage does not train."""
    average: Any
    """Moving average of `params`, float32: what samples are drawn with."""
    statistics: Any
    """Of the encoder's batch norms."""
    optimizer: optax.OptState
    step: Int[Array, ""]
    """Batches seen, those whose gradient was not finite included."""
    skipped: Int[Array, ""]
    """Of them, how many had no finite gradient and changed nothing."""
    failing: Int[Array, ""]
    """The last so many were skipped in a row."""


def initial_state(
    key: Key[Array, ""],
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    trained: str = "",
) -> TrainState:
    """Of a module's variables; `trained` as in `optimizer.split`."""
    params, resting = optimizers.split(variables["params"], trained=trained)
    return TrainState(
        key=jax.random.key_data(key),
        params=params,
        resting=resting,
        # A copy: the step gives away the buffers of both.
        average=jax.tree.map(lambda x: jnp.array(x, jnp.float32), params),
        statistics=variables.get("batch_stats", {}),
        optimizer=optimizer.init(params),
        # Three, since a step cannot give one buffer away thrice.
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        failing=jnp.zeros((), jnp.int32),
    )


def variables_of(state: TrainState, *, averaged: bool = False) -> dict[str, Any]:
    """What a module is applied to."""
    params = state.average if averaged else state.params
    return {
        "params": optimizers.merge(params, state.resting),
        "batch_stats": state.statistics,
    }


def step_key(state: TrainState) -> Key[Array, ""]:
    """The next step's own: the same on every mesh and after every restart."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
