"""Damped least squares for a few hundred unknowns, as one compiled loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Residual = Callable[[Float[Array, " n"], Any], Float[Array, " r"]]


class Solution(NamedTuple):
    """Where the iteration stopped."""

    unknowns: Float[Array, " n"]
    objective: Float[Array, ""]
    """Half the sum of squared residuals."""
    iterations: Int[Array, ""]


class _State(NamedTuple):
    unknowns: Float[Array, " n"]
    objective: Float[Array, ""]
    damping: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def levenberg_marquardt(
    residual: Residual,
    start: Float[Array, " n"],
    data: Any,
    *,
    free: Bool[Array, " n"],
    max_iterations: int = 30,
    relative_tolerance: float = 1e-6,
) -> Solution:
    """Minimises half of |residual(unknowns, data)|² over the free unknowns.

    The others keep their value, so that stages which free more and more unknowns
    share one compiled program. Damping follows Marquardt: scaled by the diagonal of
    the normal matrix, divided by 5 after a step that helps, times 4 after one that
    does not. Stops where a helpful step gains less than `relative_tolerance`.
    Meant for float64.
    """

    def with_value(
        unknowns: Float[Array, " n"],
    ) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
        value = residual(unknowns, data)
        return value, value

    def step(state: _State) -> _State:
        # One pass gives slope and value: every copy of the residual is compiled anew.
        jacobian, value = jax.jacfwd(with_value, has_aux=True)(state.unknowns)
        jacobian = jacobian * free
        normal = jacobian.T @ jacobian
        diagonal = jnp.diagonal(normal)
        # Frozen and unseen unknowns have empty columns: a one keeps them solvable.
        scaling = state.damping * diagonal + jnp.where(diagonal > 0, 0.0, 1.0)
        factor = jax.scipy.linalg.cho_factor(normal + jnp.diag(scaling))
        shift = jax.scipy.linalg.cho_solve(factor, jacobian.T @ value)
        trial = state.unknowns - shift * free
        before = 0.5 * jnp.sum(value**2)
        after = 0.5 * jnp.sum(residual(trial, data) ** 2)
        better = after < before  # False where the trial is not finite.
        gain = (before - after) / jnp.maximum(before, 1e-300)
        # A step that does not help although damped away cannot be improved on.
        stuck = ~better & (state.damping > 1e8)
        return _State(
            jnp.where(better, trial, state.unknowns),
            jnp.where(better, after, before),
            jnp.where(better, state.damping / 5.0, state.damping * 4.0),
            state.iterations + 1,
            (better & (gain < relative_tolerance)) | stuck,
        )

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.iterations < max_iterations) & ~state.converged

    infinite = jnp.asarray(jnp.inf, start.dtype)
    damping = jnp.asarray(1e-3, start.dtype)
    first = _State(start, infinite, damping, 0, jnp.asarray(False))
    last = jax.lax.while_loop(unfinished, step, first)
    return Solution(last.unknowns, last.objective, last.iterations)
