"""How splatting's kernels are called: shapes of results, lists and scratch.

What each array holds is in kernels/README.md.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.render import ffi

_TILE = 16  # Pixels along a side of the CUDA kernels' tiles.

# Image, alpha, depth (empty if nobody asked), visible, and the capacity wanted.
Outputs = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


class Options(NamedTuple):
    """What is known when a program is traced."""

    width: int
    height: int
    near: float
    antialiased: bool
    has_depth: bool
    capacity: int


def default_capacity(gaussians: int, views: int, width: int, height: int) -> int:
    """Ours: heads of 1e4 to 1e6 Gaussians meet 1.5 to 6 tiles each."""
    tiles = _num_tiles(width, height)
    return max(1, views * min(gaussians * tiles, 4 * gaussians + 64 * tiles))


def _output_shapes(
    options: Options, operands: tuple[jax.Array, ...]
) -> list[jax.ShapeDtypeStruct]:
    """Depth is empty if nobody asked for it: the kernels take the hint."""
    views, channels = operands[5].shape[0], operands[4].shape[1]
    size = (views, options.height, options.width)
    depth = size if options.has_depth else (views, 0, 0)
    shapes = ((*size, channels), size, depth)
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def forward_cpu(options: Options, *operands: jax.Array) -> Outputs:
    """Outputs of the CPU kernel, which wants no capacity."""
    seen = (operands[5].shape[0], operands[0].shape[0])
    image, alpha, depth, visible = ffi.call(
        "splat_forward",
        [*_output_shapes(options, operands), jax.ShapeDtypeStruct(seen, jnp.bool_)],
        *operands,
        near=np.float32(options.near),
        antialiased=options.antialiased,
    )
    return image, alpha, depth, visible, jnp.zeros((), jnp.int32)


def backward_cpu(
    options: Options,
    operands: tuple[jax.Array, ...],
    lists: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """Gradients of the operands."""
    del lists  # Made again: their length is not known beforehand.
    return tuple(
        ffi.call(
            "splat_backward",
            [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in operands],
            *operands,
            *cotangents,
            near=np.float32(options.near),
            antialiased=options.antialiased,
        )
    )


def list_shapes(
    options: Options, operands: tuple[jax.Array, ...]
) -> list[jax.ShapeDtypeStruct]:
    """Of what CUDA's forward pass leaves to the adjoint; see kernels/README.md."""
    count, views = operands[0].shape[0], operands[5].shape[0]
    size = (views, options.height, options.width)
    shapes = (
        ((views, count, 8), jnp.float32),
        ((views, count, 2), jnp.uint32),
        ((options.capacity,), jnp.uint32),
        ((options.capacity,), jnp.uint32),
        ((views * _num_tiles(options.width, options.height) + 1,), jnp.uint32),
        (size, jnp.uint32),
        (size, jnp.float32),
    )
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def _num_tiles(width: int, height: int) -> int:
    return -(-width // _TILE) * -(-height // _TILE)


def forward_cuda(
    options: Options, *operands: jax.Array
) -> tuple[Outputs, tuple[jax.Array, ...]]:
    """Outputs, and lists for the adjoint."""
    pairs = operands[0].shape[0] * operands[5].shape[0]
    most = max(pairs, options.capacity)
    # Three arrays of words for either sort, three of pairs, and cub's own.
    scratch = _scratch(
        4 * most, 4 * most, 4 * most, *[4 * pairs] * 3, most // 2 + 65536
    )
    image, alpha, depth, wanted, *lists, _ = ffi.call(
        "splat_forward_cuda",
        [
            *_output_shapes(options, operands),
            jax.ShapeDtypeStruct((), jnp.int32),
            *list_shapes(options, operands),
            scratch,
        ],
        *operands,
        near=np.float32(options.near),
        antialiased=options.antialiased,
    )
    visible = lists[1][..., 1] > 0
    return (image, alpha, depth, visible, wanted), tuple(lists)


def backward_cuda(
    options: Options,
    operands: tuple[jax.Array, ...],
    lists: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """Gradients of the operands."""
    (count, channels), views = operands[4].shape, operands[5].shape[0]
    columns = channels + options.has_depth
    # Shares per slot, sums per pair, and rows of sums per tile and per 256 Gaussians.
    scratch = _scratch(
        4 * options.capacity * (6 + columns),
        4 * views * count * 8,
        4 * views * _num_tiles(options.width, options.height) * channels,
        4 * views * -(-count // 256) * 16,
    )
    *gradients, _ = ffi.call(
        "splat_backward_cuda",
        [*(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in operands), scratch],
        *operands,
        *lists,
        *cotangents,
        near=np.float32(options.near),
        antialiased=options.antialiased,
    )
    return tuple(gradients)


def _scratch(*pieces: int) -> jax.ShapeDtypeStruct:
    """Pieces of so many bytes, each at a multiple of 256, as the kernels lay them."""
    return jax.ShapeDtypeStruct((sum(-(-x // 256) * 256 for x in pieces),), jnp.uint8)
