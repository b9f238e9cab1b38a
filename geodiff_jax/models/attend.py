"""Softmax attention by whatever computes it fastest where the program runs.

One function, `attend`, and one argument that says how: cuDNN's flash attention on
NVIDIA GPUs, splash attention on TPUs, and two forms in plain JAX that run everywhere.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Implementation = Literal["auto", "chunked", "plain"]

_HIDDEN = -1e30
"""Logit of a key that is not seen: finite, since inf - inf is NaN."""


def attend(
    queries: Float[Array, "*b q heads width"],
    keys: Float[Array, "*b k heads width"],
    values: Float[Array, "*b k heads width"],
    *,
    mask: Bool[Array, "..."] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "*b q heads width"]:
    """softmax(queries keys' / sqrt(width)) values, per head; the softmax in float32.

    `mask` is True where a query sees a key and broadcasts to (*b, heads, q, k); a query
    that sees none gets zeros.

    - "chunked": some rows of one head at a time, recomputed in the backward pass; on
      CPUs a few MB of logits, which stay in cache.
    - "plain": all logits at once; fastest while they are few.
    - "auto": one of these by the number of logits.
    """
    if implementation == "auto":
        implementation = _choose(queries, keys)
    fold = functools.partial(_fold, batch=queries.shape[:-3])
    folded = [fold(x) for x in (queries, keys, values)]
    if mask is not None:
        mask = jnp.reshape(mask, (1,) * (queries.ndim - mask.ndim) + mask.shape)
        mask = fold(mask)
    run = {"chunked": _chunked, "plain": _plain}[implementation]
    return run(*folded, mask).reshape(queries.shape)


def attention_weights(
    queries: Float[Array, "*b q heads width"],
    keys: Float[Array, "*b k heads width"],
    *,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "*b heads q k"]:
    """The softmax alone, float32, for losses on what attends to what.

    `mask` as in `attend`. Holds all logits: ask few layers.
    """
    queries, keys = (jnp.swapaxes(x, -3, -2) for x in (queries, keys))
    weights, total, _ = _exponentials(_scaled(queries), keys, mask)
    return weights / total


def _choose(queries: Array, keys: Array) -> Implementation:
    # 4 MB of logits: beyond it they leave the caches, and memory is the bottleneck.
    *batch, count, heads, _ = queries.shape
    logits = functools.reduce(int.__mul__, batch, heads) * count * keys.shape[-3]
    return "plain" if logits <= 2**20 else "chunked"


def _fold(array: Array, *, batch: tuple[int, ...]) -> Array:
    """(*b, x, y, z) to (n, x, y, z); n stays 1 where the array is one for all."""
    rest = array.shape[-3:]
    if all(size == 1 for size in array.shape[:-3]):
        return array.reshape(1, *rest)
    return jnp.broadcast_to(array, (*batch, *rest)).reshape(-1, *rest)


def _scaled(queries: Array) -> Array:
    return queries * jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)


def _product(equation: str, left: Array, right: Array) -> Array:
    """An einsum in `right`'s type that adds up in float32."""
    left = left.astype(right.dtype)
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _logits(queries: Array, keys: Array, mask: Array | None) -> Array:
    logits = _product("...qd,...kd->...qk", queries, keys)
    return logits if mask is None else jnp.where(mask, logits, _HIDDEN)


def _exponentials(
    queries: Array, keys: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
    """exp(logits - their maximum), its sum along keys (above zero), the maximum."""
    logits = _logits(queries, keys, mask)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    if mask is None:
        return weights, jnp.sum(weights, axis=-1, keepdims=True), top
    weights = jnp.where(mask, weights, 0.0)
    return weights, jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30), top


def _rows(
    queries: Array, keys: Array, values: Array, mask: Array | None
) -> tuple[Array, Array]:
    """What rows of scaled queries see, and the logarithm of their summed weights."""
    weights, total, top = _exponentials(queries, keys, mask)
    # Divided after the product: there are fewer outputs than weights.
    seen = _product("...qk,...kd->...qd", weights, values) / total
    return seen.astype(values.dtype), (top + jnp.log(total))[..., 0]


def _plain(queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    # XLA:CPU multiplies with heads in front twice as fast, transposes included.
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
    seen, _ = _rows(_scaled(queries), keys, values, mask)
    return jnp.swapaxes(seen, 1, 2)


def _chunked(queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
    count = queries.shape[2]
    rows = _rows_of_a_chunk(count, keys.shape[2])
    spare = [(0, 0), (0, 0), (0, -count % rows), (0, 0)]
    queries = jnp.pad(_scaled(queries), spare)
    if mask is not None and mask.shape[2] > 1:
        mask = jnp.pad(mask, spare)
    seen = _in_chunks(rows, queries, keys, values, mask)[:, :, :count]
    return jnp.swapaxes(seen, 1, 2)


def _rows_of_a_chunk(count: int, num_keys: int) -> int:
    """Rows whose logits stay in cache, spread evenly."""
    most = max(64, min(512, 2**20 // num_keys))
    return -(-count // -(-count // most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_chunks(
    rows: int, queries: Array, keys: Array, values: Array, mask: Array | None
) -> Array:
    """`_rows` of heads-first arrays, never more than `rows` at once."""
    return _in_chunks_forward(rows, queries, keys, values, mask)[0]


def _in_chunks_forward(
    rows: int, queries: Array, keys: Array, values: Array, mask: Array | None
) -> tuple[Array, Any]:
    def head(queries, keys, values, mask):
        def chunk(slices):
            queries, rows_mask = slices
            seen_by = mask if rows_mask is None else rows_mask
            return _rows(queries, keys, values, seen_by)

        slices = _split(rows, queries), _split_mask(rows, mask)
        return jax.tree.map(_join, jax.lax.map(chunk, slices))

    seen, log_sums = _each_head(head, queries, keys, values, mask)
    return seen, (queries, keys, values, mask, seen, log_sums)


def _in_chunks_backward(rows: int, kept: Any, gradient: Array) -> tuple:
    """Flash attention's backward pass (Dao et al. 2022, Algorithm 4)."""
    queries, keys, values, mask, seen, log_sums = kept
    delta = jnp.sum(seen.astype(jnp.float32) * gradient, axis=-1)

    def head(queries, keys, values, mask, log_sums, delta, gradient):
        def chunk(sums, slices):
            queries, log_sums, delta, gradient, rows_mask = slices
            seen_by = mask if rows_mask is None else rows_mask
            weights = jnp.exp(_logits(queries, keys, seen_by) - log_sums[:, None])
            if seen_by is not None:
                weights = jnp.where(seen_by, weights, 0.0)
            slopes = _product("qd,kd->qk", gradient, values) - delta[:, None]
            slopes = weights * slopes
            to_keys = sums[0] + _product("qk,qd->kd", slopes, queries)
            to_values = sums[1] + _product("qk,qd->kd", weights, gradient)
            return (to_keys, to_values), _product("qk,kd->qd", slopes, keys)

        slices = [_split(rows, x) for x in (queries, log_sums, delta, gradient)]
        zero = jnp.zeros(keys.shape, jnp.float32)
        sums, to_queries = jax.lax.scan(
            chunk, (zero, zero), (*slices, _split_mask(rows, mask))
        )
        return _join(to_queries), *sums

    arrays = queries, keys, values, mask, log_sums, delta, gradient
    found = _each_head(head, *arrays)
    inputs = queries, keys, values
    return *(g.astype(x.dtype) for g, x in zip(found, inputs, strict=True)), None


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def _split(rows: int, array: Array) -> Array:
    return array.reshape(-1, rows, *array.shape[1:])


def _join(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])


def _split_mask(rows: int, mask: Array | None) -> Array | None:
    """Chunks of a mask that differs between rows; None for one that does not."""
    return None if mask is None or mask.shape[0] == 1 else _split(rows, mask)


def _each_head(function: Callable, *arrays: Array | None) -> Any:
    """`function` of every head of (n, heads, ...) arrays, one after the other.

    Sizes of 1 broadcast, without a copy for each.
    """
    shapes = [x.shape[:2] for x in arrays if x is not None]
    count, heads = (max(sizes) for sizes in zip(*shapes, strict=True))

    def one(index: Array) -> Any:
        place = index // heads, index % heads
        own = [
            x
            if x is None
            else x[tuple(i * (s > 1) for i, s in zip(place, x.shape[:2], strict=True))]
            for x in arrays
        ]
        return function(*own)

    found = jax.lax.map(one, jnp.arange(count * heads))
    return jax.tree.map(lambda x: x.reshape(count, heads, *x.shape[1:]), found)
