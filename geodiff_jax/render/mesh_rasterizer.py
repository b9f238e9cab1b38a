"""Mesh rasterization: ids from a kernel, everything smooth from jnp.

Which face a pixel sees is piecewise constant and carries no gradient; barycentrics
and depth are recomputed from the ids, so they are differentiable in vertices and
camera (not across silhouettes).
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.render import ffi, mesh_rasterizer_reference


@flax.struct.dataclass
class Fragments:
    """One rasterised view: what each pixel centre sees."""

    face: Int[Array, "h w"]
    """Index of the nearest face, -1 for background."""
    barycentric: Float[Array, "h w 3"]
    """Perspective-correct weights of the face's vertices; zero for background."""
    depth: Float[Array, "h w"]
    """Along the camera's z axis, inf for background."""


def rasterize(
    vertices: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
    camera: Camera,
    *,
    near: float = 0.01,
    backend: str | None = None,
) -> Fragments:
    """The nearest face, its barycentrics and its depth at every pixel centre.

    Both sides of a face are drawn; a face with a vertex at z <= near metres is dropped
    whole. Differentiable in vertices and camera. vmap gives batches.
    """
    pixels, depth = camera.project(vertices)
    depth = jnp.where(depth > near, depth, -1.0)
    return rasterize_pixels(
        jnp.concatenate([pixels, depth[:, None]], axis=-1),
        faces,
        width=camera.width,
        height=camera.height,
        backend=backend,
    )


def rasterize_pixels(
    points: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
    *,
    width: int,
    height: int,
    backend: str | None = None,
) -> Fragments:
    """Rasterizes points given as (x, y) in pixels and depth z; UV charts have z = 1.

    Vertices are rounded to 1/256 pixel and pixels on an edge belong to one face only
    (top-left rule, y down). The nearest face wins, the lower index at equal depth.
    Faces are dropped where a vertex has z <= 0, lies over 32768 pixels from the
    image's corner, or is not finite.
    """
    if not (0 <= width <= 32768 and 0 <= height <= 32768):
        raise ValueError(
            f"Expected an image of at most 32768 x 32768, got {width} x {height}; "
            "render it in crops."
        )
    face = ffi.dispatch(
        jax.lax.stop_gradient(points).astype(jnp.float32),
        faces.astype(jnp.int32),
        backend=backend,
        cpu=functools.partial(_face_ids_cpu, width=width, height=height),
        cuda=functools.partial(_face_ids_cuda, width=width, height=height),
        reference=functools.partial(
            mesh_rasterizer_reference.face_ids, width=width, height=height
        ),
    )
    barycentric, depth = _interpolation(backend, points, faces, face)
    return Fragments(face=face, barycentric=barycentric, depth=depth)


def interpolate(
    fragments: Fragments, faces: Int[Array, "f 3"], attributes: Float[Array, "p c"]
) -> Float[Array, "h w c"]:
    """Vertex attributes at every pixel centre; zero for background."""
    if faces.shape[0] == 0:
        return jnp.zeros((*fragments.face.shape, attributes.shape[-1]))
    corners = attributes[faces[jnp.maximum(fragments.face, 0)]]
    return jnp.sum(fragments.barycentric[..., None] * corners, axis=-2)


def _face_ids_cpu(points: Array, faces: Array, *, width: int, height: int) -> Array:
    result = jax.ShapeDtypeStruct((height, width), jnp.int32)
    return ffi.call("mesh_rasterize", [result], points, faces)[0]


def _face_ids_cuda(points: Array, faces: Array, *, width: int, height: int) -> Array:
    results = [
        jax.ShapeDtypeStruct((height, width), jnp.int32),
        # Scratch: depth and face of every pixel; a list of large faces.
        jax.ShapeDtypeStruct((height, width, 2), jnp.uint32),
        jax.ShapeDtypeStruct((faces.shape[0] + 1,), jnp.uint32),
    ]
    return ffi.call("mesh_rasterize_cuda", results, points, faces)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _interpolation(
    backend: str | None, points: Array, faces: Array, face: Array
) -> tuple[Array, Array]:
    """`_barycentrics`, which is its derivative; on CPUs in one pass over the image."""
    if points.dtype != jnp.float32:
        return _barycentrics(points, faces, face)
    return ffi.dispatch(
        points,
        faces.astype(jnp.int32),
        face,
        backend=backend,
        cpu=_interpolation_cpu,
        cuda=_barycentrics,
        reference=_barycentrics,
    )


@_interpolation.defjvp
def _interpolation_tangents(
    backend: str | None, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    points, faces, face = primals
    _, derivative = jax.jvp(
        lambda p: _barycentrics(p, faces, face), (points,), tangents[:1]
    )
    return _interpolation(backend, *primals), derivative


def _interpolation_cpu(points: Array, faces: Array, face: Array) -> tuple[Array, Array]:
    results = [
        jax.ShapeDtypeStruct((*face.shape, 3), jnp.float32),
        jax.ShapeDtypeStruct(face.shape, jnp.float32),
    ]
    barycentric, depth = ffi.call("mesh_interpolate", results, points, faces, face)
    return barycentric, depth


def _barycentrics(
    points: Float[Array, "p 3"], faces: Int[Array, "f 3"], face: Int[Array, "h w"]
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """Perspective-correct barycentrics and depth of the faces seen."""
    height, width = face.shape
    seen = face >= 0
    if faces.shape[0] == 0 or points.shape[0] == 0:
        zeros = jnp.zeros((height, width, 3), points.dtype)
        return zeros, jnp.full((height, width), jnp.inf, points.dtype)
    triangles = points[faces].reshape(-1, 9)[jnp.maximum(face, 0)]
    triangles = triangles.reshape(height, width, 3, 3)
    # A harmless triangle behind the background keeps its gradients finite.
    harmless = jnp.asarray(
        [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], points.dtype
    )
    triangles = jnp.where(seen[..., None, None], triangles, harmless)
    x = triangles[..., 0] - (jnp.arange(width)[:, None] + 0.5)
    y = triangles[..., 1] - (jnp.arange(height)[:, None, None] + 0.5)
    edges = jnp.roll(x, -1, -1) * jnp.roll(y, -2, -1)
    edges -= jnp.roll(x, -2, -1) * jnp.roll(y, -1, -1)
    area = jnp.sum(edges, axis=-1, keepdims=True)
    # Coverage was decided on rounded vertices: exact ones may lie a hair outside, and
    # far outside for slivers, hence the clip. What has no area to speak of (in square
    # pixels, ours) has no weights of its own, and no gradient of 1 / area.
    sliver = jnp.abs(area) < 1e-4
    screen = jnp.clip(edges / jnp.where(sliver, 1.0, area), 0.0, 1.0)
    screen = jnp.where(sliver, 1.0 / 3.0, screen)
    over_depth = screen / triangles[..., 2]
    total = jnp.sum(over_depth, axis=-1)
    screen_total = jnp.sum(screen, axis=-1)
    depth = jnp.where(seen, screen_total / total, jnp.inf)
    return jnp.where(seen[..., None], over_depth / total[..., None], 0.0), depth
