"""Classifier-free guidance over any pytree of conditions (Ho and Salimans 2022)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from geodiff_jax.diffusion import schedule as schedules

ConditionalDenoise = Callable[[Array, Array, Any], Array]
"""`denoise(x, t, conditions) -> prediction`."""


def guide(
    denoise: ConditionalDenoise,
    conditional: PyTree,
    unconditional: PyTree,
    *,
    scale: Float[ArrayLike, ""],
    one_pass: bool = True,
) -> schedules.Denoise:
    """denoise(x, t) whose prediction is pushed away from the unconditional one.

    unconditional + scale * (conditional - unconditional): GeoDiff4D 2.5, CAP4D 2. What
    is dropped is the caller's choice: a tree of the same structure without it. In one
    pass the batch is doubled, unconditional first, and all leaves need the batch in
    front; two passes need less memory. With scale 1 it is the conditional model
    exactly, and if that is a Python number, nothing else is evaluated.
    """
    if isinstance(scale, int | float) and scale == 1:
        return lambda x, t: denoise(x, t, conditional)

    def guided(x: Array, t: Array) -> Array:
        if one_pass:
            without, given = _doubled(denoise, x, t, unconditional, conditional)
        else:
            without, given = denoise(x, t, unconditional), denoise(x, t, conditional)
        # Not from `without` on, so that scale 1 leaves `given` to the last bit.
        return given + (scale - 1.0) * (given - without)

    return guided


def _doubled(
    denoise: ConditionalDenoise,
    x: Array,
    t: Array,
    unconditional: PyTree,
    conditional: PyTree,
) -> list[Array]:
    """Both predictions from one pass."""
    for path, leaf in jax.tree.leaves_with_path((unconditional, conditional)):
        if jnp.shape(leaf)[:1] != x.shape[:1]:
            raise ValueError(
                f"Expected conditions with {x.shape[0]} samples in front, as x, got "
                f"{jax.tree_util.keystr(path)} of shape {jnp.shape(leaf)}; repeat it "
                "or set one_pass=False."
            )
    both = jax.tree.map(lambda *a: jnp.concatenate(a), unconditional, conditional)
    if jnp.ndim(t) > 0:
        t = jnp.concatenate([jnp.broadcast_to(t, (x.shape[0], *t.shape[1:]))] * 2)
    return jnp.split(denoise(jnp.concatenate([x, x]), t, both), 2)
