"""Softmax attention by whatever computes it fastest where the program runs.

One function, `attend`, and one argument that says how: cuDNN's flash attention on
NVIDIA GPUs, splash attention on TPUs, and two forms in plain JAX that run everywhere.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from geodiff_jax import sharding

Implementation = Literal["auto", "cudnn", "splash", "chunked", "plain"]

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

    `implementation` is settled while tracing, and "auto" by the default backend: cuDNN
    refuses to be traced where there is no NVIDIA GPU, so `lax.platform_dependent` is no
    choice. To lower for another platform than the process runs on, name it.

    - "plain": all logits at once; fastest while they are few.
    - "chunked": some rows of one head at a time, recomputed in the backward pass; on
      CPUs a few MB of logits, which stay in cache.
    - "cudnn": flash attention on NVIDIA GPUs, in half precision, of head widths up to
      128 (256 from Hopper on) that 8 divides.
    - "splash": the Pallas kernel for TPUs. `mask` hides keys from all queries and heads
      of an item, or nothing.
    - "auto": cuDNN or splash where they take the arrays, else by the number of logits.

    On a mesh of `sharding.AXES` every device computes its own items and heads, where
    their numbers allow; XLA could partition neither kernel nor loop by itself.

    Raises:
      ValueError: a mask that splash does not take.
    """
    if implementation == "auto":
        implementation = _choose(queries, keys, mask)
    batch = queries.shape[:-3]
    queries, keys, values = (_fold(x, batch) for x in (queries, keys, values))
    if mask is not None:
        missing = len(batch) + 3 - mask.ndim
        mask = _fold(mask.reshape((1,) * missing + mask.shape), batch)
    run = {"cudnn": _cudnn, "splash": _splash, "chunked": _chunked, "plain": _plain}
    seen = _on_mesh(run[implementation])(queries, keys, values, mask)
    return seen.reshape(*batch, *seen.shape[1:])


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


def _choose(queries: Array, keys: Array, mask: Array | None) -> Implementation:
    *batch, count, heads, width = queries.shape
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")
    if device.platform == "tpu" and (mask is None or _hides_keys_only(mask)):
        return "splash"
    half = queries.dtype in (jnp.bfloat16, jnp.float16)
    # cuDNN's gradients want even numbers of tokens where a mask becomes a bias.
    even = mask is None or (count % 2 == 0 and keys.shape[-3] % 2 == 0)
    if half and even and width % 8 == 0 and width <= _widest_of_cudnn(capability):
        return "cudnn"
    # 4 MB: beyond, logits leave the caches of a CPU, and its memory is the bottleneck.
    few = 2**20 if device.platform == "cpu" else 2**26
    logits = math.prod(batch) * heads * count * keys.shape[-3]
    return "plain" if logits <= few else "chunked"


def _on_mesh(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of (n, q, heads, width) arrays and a mask, by items and heads."""
    free = sharding.free_axes()
    if not free:
        return function

    def run(*arrays: Array | None) -> Array:
        count = max(x.shape[0] for x in arrays if x is not None)
        heads = arrays[0].shape[2]
        items = sharding.item_axes(count)
        mesh = jax.sharding.get_abstract_mesh()
        even = heads % mesh.shape.get("tensor", 1) == 0
        over_heads = "tensor" if "tensor" in free and even else None

        def place(size: tuple[int, ...], heads_axis: int) -> PartitionSpec:
            spec = [items or None, *(None,) * 3]
            spec[heads_axis] = over_heads
            return PartitionSpec(
                *(n if s > 1 else None for n, s in zip(spec, size, strict=True))
            )

        specs = [
            None if x is None else place(x.shape, 2 if i < 3 else 1)
            for i, x in enumerate(arrays)
        ]
        split = jax.shard_map(
            function,
            in_specs=tuple(specs),
            out_specs=place((count, 1, heads, 1), 2),
            # Axes of one device too: Mosaic takes all of a mesh or nothing.
            axis_names=set(mesh.auto_axes),
            check_vma=False,  # Pallas kernels say nothing of what varies.
        )
        return split(*arrays)

    return run


def _widest_of_cudnn(capability: str) -> int:
    """Heads that cuDNN takes; none (0) but on NVIDIA's GPUs, as 8.0 and not gfx942."""
    if not capability[:1].isdigit():
        return 0
    return 256 if float(capability) >= 9.0 else 128


def _hides_keys_only(mask: Array) -> bool:
    return all(size == 1 for size in mask.shape[-3:-1])


def _fold(array: Array, batch: tuple[int, ...]) -> Array:
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


def _cudnn(queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    # A mask becomes a bias, of which cuDNN wants all rows.
    rows = None
    if mask is not None:
        rows = jnp.broadcast_to(
            mask, (*mask.shape[:2], queries.shape[1], keys.shape[1])
        )
    seen = jax.nn.dot_product_attention(
        queries, keys, values, mask=rows, implementation="cudnn"
    )
    return _without_blind_rows(seen, mask)


def _splash(queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    if mask is not None and not _hides_keys_only(mask):
        raise ValueError(
            'Expected a mask (*b, 1, 1, keys) for "splash", got one of '
            f'{mask.shape}; use "chunked".'
        )
    count, num_keys, heads = queries.shape[1], keys.shape[1], queries.shape[2]
    rows, columns = (min(512, 128 * -(-n // 128)) for n in (count, num_keys))
    queries, keys, values = (
        jnp.swapaxes(
            jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)]), 1, 2
        )
        for x, block in ((_scaled(queries), rows), (keys, columns), (values, columns))
    )
    size = queries.shape[2], keys.shape[2]
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.FullMask(size)] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            use_fused_bwd_kernel=True,
        ),
    )
    segments = _segments(mask, queries.shape[0], num_keys, size)
    seen: Any = jax.vmap(kernel)(queries, keys, values, segments)
    return _without_blind_rows(jnp.swapaxes(seen, 1, 2)[:, :count], mask)


def _segments(
    mask: Array | None, count: int, num_keys: int, size: tuple[int, int]
) -> splash_attention.SegmentIds | None:
    """Queries are of segment 1, and so are the keys that they see: not the padding."""
    if mask is None and num_keys == size[1]:
        return None
    seen = jnp.ones((1, num_keys), bool) if mask is None else mask[:, 0, 0]
    seen = jnp.pad(
        jnp.broadcast_to(seen, (count, num_keys)), [(0, 0), (0, size[1] - num_keys)]
    )
    return splash_attention.SegmentIds(
        jnp.ones((count, size[0]), jnp.int32), seen.astype(jnp.int32)
    )


def _without_blind_rows(seen: Array, mask: Array | None) -> Array:
    """Zeros for queries that see no key, of which kernels make a mean of all values."""
    if mask is None:
        return seen
    sighted = jnp.swapaxes(mask.any(-1, keepdims=True), 1, 2)
    return jnp.where(sighted, seen, jnp.zeros((), seen.dtype))


def _plain(queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    # XLA:CPU multiplies with heads in front twice as fast, transposes included.
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
    seen, _ = _rows(_scaled(queries), keys, values, mask)
    return jnp.swapaxes(seen, 1, 2)


def _chunked(queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
    count = queries.shape[1]
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
    rows = _rows_of_a_chunk(count, keys.shape[2], math.prod(keys.shape[:2]))
    spare = [(0, 0), (0, 0), (0, -count % rows), (0, 0)]
    queries = jnp.pad(_scaled(queries), spare)
    if mask is not None and mask.shape[2] > 1:
        mask = jnp.pad(mask, spare)
    seen: Any = _in_chunks(rows, queries, keys, values, mask)
    return jnp.swapaxes(seen[:, :, :count], 1, 2)


def _rows_of_a_chunk(count: int, num_keys: int, heads: int) -> int:
    """Rows whose logits stay in a CPU's cache, or fill other devices; spread evenly."""
    most = 2**20 // num_keys if _one_by_one() else 2**26 // (heads * num_keys)
    return -(-count // -(-count // max(64, min(512, most))))


def _one_by_one() -> bool:
    """Whether heads take turns: where a single one has work for the whole device."""
    return jax.default_backend() == "cpu"


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
    cast = (g.astype(x.dtype) for g, x in zip(found, inputs, strict=True))
    return *cast, None


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def _split(rows: int, array: Array) -> Array:
    return array.reshape(-1, rows, *array.shape[1:])


def _join(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])


def _split_mask(rows: int, mask: Array | None) -> Array | None:
    """Chunks of a mask that differs between rows; None for one that does not."""
    return None if mask is None or mask.shape[0] == 1 else _split(rows, mask)


def _each_head(function: Callable, *arrays: Array | None) -> Any:
    """`function` of every head of (n, heads, ...) arrays; sizes of 1 broadcast."""
    if not _one_by_one():
        return _at_once(_at_once(function))(*arrays)
    sizes = [x.shape[:2] for x in arrays if x is not None]
    count, heads = max(n for n, _ in sizes), max(h for _, h in sizes)

    def one(index: Array) -> Any:
        place = index // heads, index % heads
        return function(*(x if x is None else _own(x, place) for x in arrays))

    found = jax.lax.map(one, jnp.arange(count * heads))
    return jax.tree.map(lambda x: x.reshape(count, heads, *x.shape[1:]), found)


def _own(array: Array, place: tuple[Array, Array]) -> Array:
    axes = zip(place, array.shape[:2], strict=True)
    return array[tuple(i if size > 1 else 0 for i, size in axes)]


def _at_once(function: Callable) -> Callable:
    """`function` along the arrays' first axis; sizes of 1 broadcast."""

    def run(*arrays: Array | None) -> Any:
        size = max(x.shape[0] for x in arrays if x is not None)
        axes = [0 if x is not None and x.shape[0] == size else None for x in arrays]
        own = [
            x if x is None or axis == 0 else x[0]
            for x, axis in zip(arrays, axes, strict=True)
        ]
        return jax.vmap(function, axes)(*own)

    return run
