"""One step of training, whatever its objective: gradient, update, average, counters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

Loss = Callable[
    [Key[Array, ""], dict[str, Any], Any],
    tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Any]]],
]
"""Key, variables and batch to (loss, (figures, new statistics)); among the figures is
the loss, as `loss`."""


def take(
    key: Key[Array, ""],
    state: states.TrainState,
    batch: Any,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    average: float = 0.9999,
    accumulate: int = 1,
) -> tuple[states.TrainState, dict[str, Float[Array, ""]]]:
    """(state, figures) after one batch.

    A gradient that is not finite changes nothing but the counters. `average` and
    `accumulate` are those of `optimizer.Settings`.
    """
    gradient_of = functools.partial(_gradient, loss=loss)
    if accumulate > 1:
        gradient_of = functools.partial(
            _accumulated, gradient_of=gradient_of, parts=accumulate
        )
    gradient, figures, statistics = gradient_of(key, state, batch)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(figures["loss"])
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = optimizers.average_decay(state.step, largest=average)
    proposed = state.replace(
        params=params,
        average=optax.incremental_update(params, state.average, 1.0 - decay),
        statistics=statistics,
        optimizer=moments,
    )
    state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), proposed, state)
    failing = jnp.where(finite, 0, state.failing + 1)
    state = state.replace(
        step=state.step + 1, skipped=state.skipped + ~finite, failing=failing
    )
    return state, figures | {"gradient_norm": norm}


def _gradient(
    key: Key[Array, ""], state: states.TrainState, batch: Any, *, loss: Loss
) -> tuple[Any, dict[str, Array], Any]:
    """(of what learns, figures, new statistics)."""

    def value(params: Any) -> tuple[Array, tuple[dict, dict]]:
        return loss(key, states.variables_of(state.replace(params=params)), batch)

    gradient, (figures, statistics) = jax.grad(value, has_aux=True)(state.params)
    return gradient, figures, statistics


def _accumulated(
    key: Key[Array, ""],
    state: states.TrainState,
    batch: Any,
    *,
    gradient_of: Callable[..., tuple[Any, dict[str, Array], Any]],
    parts: int,
) -> tuple[Any, dict[str, Array], Any]:
    """Means over parts of the batch, all of which weigh the same."""

    # Every device keeps its items: part i has each i-th of them.
    def deal(x: Array) -> Array:
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(carry: tuple, part: tuple[Array, Any]) -> tuple[tuple, dict[str, Array]]:
        total, statistics = carry
        part_key, items = part
        gradient, figures, statistics = gradient_of(
            part_key, state.replace(statistics=statistics), items
        )
        return (jax.tree.map(jnp.add, total, gradient), statistics), figures

    start = jax.tree.map(jnp.zeros_like, state.params), state.statistics
    dealt = jax.random.split(key, parts), jax.tree.map(deal, batch)
    (total, statistics), figures = jax.lax.scan(add, start, dealt)
    # A part without such a time says nothing of it; a loss that is NaN says it all.
    means = {n: jnp.nanmean(x) for n, x in figures.items()}
    means["loss"] = jnp.mean(figures["loss"])
    return jax.tree.map(lambda x: x / parts, total), means, statistics
