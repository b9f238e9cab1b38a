"""Which face each pixel centre sees, in jnp: the oracle and fallback of the kernel.

Exact like the kernel: vertices are rounded to 1/256 pixel and edge functions are
integers, held in two limbs of int32 because jax has no int64 by default.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

SUBPIXELS = 256
GUARD_BAND = 32768.0
_BLOCK = 16
_LIMB = 12


def _product_difference(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Sign (-1, 0, 1) of a b - c d, exact for |values| <= 2^24."""
    mask = (1 << _LIMB) - 1
    (ah, al), (bh, bl), (ch, cl), (dh, dl) = (
        (v >> _LIMB, v & mask) for v in (a, b, c, d)
    )
    low = al * bl - cl * dl
    middle = ah * bl + al * bh - ch * dl - cl * dh + (low >> _LIMB)
    high = ah * bh - ch * dh + (middle >> _LIMB)
    rest = (middle & mask) | (low & mask)
    return jnp.where(high < 0, -1, jnp.where((high > 0) | (rest > 0), 1, 0))


def _covers(
    corners: Int[Array, "3 2"], x: Int[Array, "1 b"], y: Int[Array, "b 1"]
) -> Bool[Array, "b b"]:
    """Top-left rule for one triangle with positive area, at points in subpixels."""
    inside = jnp.asarray(True)
    for i in range(3):
        start, end = corners[(i + 1) % 3], corners[(i + 2) % 3]
        dx, dy = end - start
        sign = _product_difference(dx, y - start[1], dy, x - start[0])
        top_left = (dy < 0) | ((dy == 0) & (dx > 0))
        inside = inside & ((sign > 0) | ((sign == 0) & top_left))
    return inside


def face_ids(
    points: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
    *,
    width: int,
    height: int,
) -> Int[Array, "h w"]:
    """Index of the nearest face at every pixel centre, -1 for background.

    points: x and y in pixels, z > 0 the depth. See `mesh_rasterizer.rasterize_pixels`.
    """
    rows, columns = (-(-size // _BLOCK) * _BLOCK for size in (height, width))
    face = jnp.full((rows, columns), -1, jnp.int32)
    if 0 in (faces.shape[0], points.shape[0], width, height):
        return face[:height, :width]
    triangles = points.astype(jnp.float32)[faces]
    xy, z = triangles[..., :2], triangles[..., 2]
    drawn = jnp.all(jnp.abs(xy) <= GUARD_BAND, axis=(1, 2))
    drawn &= jnp.all((z > 0) & (z < jnp.inf), axis=1)
    drawn &= jnp.all((faces >= 0) & (faces < points.shape[0]), axis=1)
    corners = jnp.where(drawn[:, None, None], jnp.round(xy * SUBPIXELS), 0)
    corners = corners.astype(jnp.int32)
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = _product_difference(edge1[:, 0], edge2[:, 1], edge1[:, 1], edge2[:, 0])
    drawn &= area != 0
    flipped = (area < 0)[:, None]
    corners = jnp.where(flipped[..., None], corners[:, ::-1], corners)
    z = jnp.where(drawn[:, None], jnp.where(flipped, z[:, ::-1], z), 1.0)
    limit = jnp.asarray([columns, rows]) // _BLOCK
    first = jnp.clip(corners.min(axis=1) // (_BLOCK * SUBPIXELS), 0, limit)
    last = jnp.clip(corners.max(axis=1) // (_BLOCK * SUBPIXELS) + 1, 0, limit)
    spans = jnp.where(drawn[:, None], jnp.maximum(last - first, 0), 0)
    local = jnp.arange(_BLOCK) * SUBPIXELS + SUBPIXELS // 2

    def draw_face(f: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        def draw_block(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            face, depth = state
            column = (first[f, 0] + k % spans[f, 0]) * _BLOCK
            row = (first[f, 1] + k // spans[f, 0]) * _BLOCK
            x = (column * SUBPIXELS + local)[None, :]
            y = (row * SUBPIXELS + local)[:, None]
            covered = _covers(corners[f], x, y)
            z_here = _depth(corners[f], z[f], x, y)
            old = jax.lax.dynamic_slice(depth, (row, column), (_BLOCK, _BLOCK))
            old_face = jax.lax.dynamic_slice(face, (row, column), (_BLOCK, _BLOCK))
            nearer = covered & (z_here < old)
            depth = jax.lax.dynamic_update_slice(
                depth, jnp.where(nearer, z_here, old), (row, column)
            )
            face = jax.lax.dynamic_update_slice(
                face, jnp.where(nearer, f, old_face).astype(jnp.int32), (row, column)
            )
            return face, depth

        return jax.lax.fori_loop(0, spans[f, 0] * spans[f, 1], draw_block, state)

    depth = jnp.full((rows, columns), jnp.inf, jnp.float32)
    face, _ = jax.lax.fori_loop(0, faces.shape[0], draw_face, (face, depth))
    return face[:height, :width]


def _depth(
    corners: Int[Array, "3 2"],
    z: Float[Array, "3"],
    x: Int[Array, "1 b"],
    y: Int[Array, "b 1"],
) -> Float[Array, "b b"]:
    """Perspective-correct depth; meaningful inside the triangle only."""
    weights = []
    for i in range(3):
        start, end = corners[(i + 1) % 3], corners[(i + 2) % 3]
        dx, dy = (end - start).astype(jnp.float32)
        offset_x = (x - start[0]).astype(jnp.float32)
        offset_y = (y - start[1]).astype(jnp.float32)
        weights.append(jnp.maximum(dx * offset_y - dy * offset_x, 0.0))
    total = weights[0] + weights[1] + weights[2]
    inverse = sum(w / z[i] for i, w in enumerate(weights))
    # Round-off may leave a sliver no weight at all.
    return jnp.where(inverse > 0, total / jnp.where(inverse > 0, inverse, 1.0), z[0])
