"""Triangle meshes: normals, areas, frames and neighbourhoods.

Counter-clockwise winding faces outwards. Topology functions run in numpy, outside jit:
their output sizes depend on the faces; what depends on the vertices is jnp.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from geodiff_jax import numerics


def face_normals(
    vertices: Float[Array, "*b p 3"], faces: Int[Array, "f 3"]
) -> Float[Array, "*b f 3"]:
    """Unit normals, outwards; zero for degenerate faces."""
    return numerics.normalize(_scaled_normals(vertices, faces))


def face_areas(
    vertices: Float[Array, "*b p 3"], faces: Int[Array, "f 3"]
) -> Float[Array, "*b f"]:
    """Square metres."""
    return 0.5 * numerics.safe_norm(_scaled_normals(vertices, faces))


def vertex_normals(
    vertices: Float[Array, "*b p 3"], faces: Int[Array, "f 3"]
) -> Float[Array, "*b p 3"]:
    """Unit area-weighted normals; zero for vertices without a proper face."""
    scaled = _scaled_normals(vertices, faces)
    total = jnp.zeros_like(vertices)
    for corner in range(3):
        total = total.at[..., faces[:, corner], :].add(scaled)
    return numerics.normalize(total, epsilon=1e-14)


def triangle_frames(
    vertices: Float[Array, "*b p 3"], faces: Int[Array, "f 3"]
) -> tuple[Float[Array, "*b f 3 3"], Float[Array, "*b f"], Float[Array, "*b f 3"]]:
    """World from triangle: (rotation, scale, origin), as in GaussianAvatars (Sec 3.2).

    Columns of the rotation: the first edge, the face normal, and their cross product.
    Scale is the mean of the first edge and the height over it; origin the centroid.
    Degenerate faces get the identity rotation.
    """
    corner0, corner1, corner2 = (vertices[..., faces[:, k], :] for k in range(3))
    edge = corner1 - corner0
    along = numerics.normalize(edge)
    normal = numerics.normalize(jnp.cross(along, corner2 - corner0))
    across = jnp.cross(along, normal)
    height = jnp.abs(jnp.sum(across * (corner2 - corner0), axis=-1))
    rotation = jnp.stack([along, normal, across], axis=-1)
    proper = jnp.sum(normal * normal, axis=-1) > 0.5
    rotation = jnp.where(
        proper[..., None, None], rotation, jnp.eye(3, dtype=edge.dtype)
    )
    scale = 0.5 * (numerics.safe_norm(edge) + height)
    return rotation, scale, (corner0 + corner1 + corner2) / 3.0


def interpolate(
    attributes: Float[Array, "*b p c"],
    faces: Int[Array, "f 3"],
    face: Int[Array, " k"],
    barycentrics: Float[Array, "k 3"],
) -> Float[Array, "*b k c"]:
    """Vertex attributes at points given as (face, barycentric coordinates)."""
    corners = attributes[..., faces[face], :]
    return jnp.sum(corners * barycentrics[..., None], axis=-2)


def barycentrics(
    points: Float[Array, "*b 3"], corners: Float[Array, "*b 3 3"]
) -> Float[Array, "*b 3"]:
    """Coordinates of points' projections onto the planes of triangles; sum to one.

    Degenerate triangles give their first corner.
    """
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :]
    second = second - corners[..., 0, :]
    offset = points - corners[..., 0, :]
    aa, ab, bb = (
        jnp.sum(x * y, axis=-1)
        for x, y in ((first, first), (first, second), (second, second))
    )
    pa, pb = jnp.sum(offset * first, axis=-1), jnp.sum(offset * second, axis=-1)
    area = aa * bb - ab * ab
    proper = area > 1e-12 * (aa * bb) + 1e-30
    scale = jnp.where(proper, 1.0 / jnp.where(proper, area, 1.0), 0.0)
    v, w = (bb * pa - ab * pb) * scale, (aa * pb - ab * pa) * scale
    return jnp.stack([1.0 - v - w, v, w], axis=-1)


_R2_STEPS = 1.32471795724474602596 ** -np.array([1.0, 2.0])
"""Powers of the plastic number's inverse: no lattice in the plane has rounder cells."""


def sample_surface(
    key: Key[Array, ""], weights: Float[np.ndarray, " f"], *, count: int
) -> tuple[Int[np.ndarray, " count"], Float[np.ndarray, "count 3"]]:
    """(face, barycentric) points: each face gets its share of `weights`, to within one.

    Within a face they spread evenly, without the clumps and gaps of chance: a lattice
    of irrational steps (Roberts 2018, "R2"), folded into the triangle. Weights are
    areas times any density; one systematic draw, so that neighbouring faces do not
    clump.
    """
    cumulative = np.cumsum(weights, dtype=np.float64)
    if not cumulative[-1] > 0:
        raise ValueError("Expected faces with a positive area, got none.")
    start, *shift = np.asarray(jax.random.uniform(key, (3,)), np.float64)
    index = np.arange(count)
    marks = (index + start) * (cumulative[-1] / count)
    face = np.minimum(np.searchsorted(cumulative, marks), len(weights) - 1)
    u, v = (shift + index[:, None] * _R2_STEPS).T % 1.0
    beyond = u + v > 1.0
    u, v = np.where(beyond, 1.0 - u, u), np.where(beyond, 1.0 - v, v)
    return face, np.stack([1.0 - u - v, u, v], axis=1)


def edges(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "e 2"]:
    """Every undirected edge once, vertices ascending, in lexical order."""
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(directed, axis=1), axis=0)


def smooth(
    values: Float[Array, "p c"],
    edge_list: Int[Array, "e 2"],
    *,
    anchors: Float[Array, " p"],
    iterations: int,
) -> Float[Array, "p c"]:
    """Diffuses vertex values along edges; `anchors` in [0, 1] says how much stays.

    Jacobi steps of the harmonic equation: vertices with anchor 1 keep their value,
    those with anchor 0 become the mean of their neighbours.
    """
    start, end = edge_list[:, 0], edge_list[:, 1]
    ones = jnp.ones(len(edge_list), values.dtype)
    degree = jnp.zeros(len(values), values.dtype).at[start].add(ones).at[end].add(ones)
    degree = jnp.maximum(degree, 1.0)[:, None]
    keep = anchors[:, None]

    def step(_: Int[Array, ""], current: Float[Array, "p c"]) -> Float[Array, "p c"]:
        total = jnp.zeros_like(current).at[start].add(current[end])
        total = total.at[end].add(current[start])
        return keep * values + (1.0 - keep) * total / degree

    return jax.lax.fori_loop(0, iterations, step, values)


def _scaled_normals(
    vertices: Float[Array, "*b p 3"], faces: Int[Array, "f 3"]
) -> Float[Array, "*b f 3"]:
    corner0, corner1, corner2 = (vertices[..., faces[:, k], :] for k in range(3))
    return jnp.cross(corner1 - corner0, corner2 - corner0)
