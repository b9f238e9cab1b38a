"""Charts: what each texel sees, position maps, and meshes whose vertices are texels.

A chart is a square texture over the head: u to the right, v upwards, row 0 at v = 1,
texel centres at +0.5.
"""

import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.spatial
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax.geometry import face_graph, mesh
from geodiff_jax.render import mesh_rasterizer

HOPS = 5
"""001, A.2: how far apart faces of one remeshed triangle may be."""
STRETCH = 3.0
"""Ours: how many times the straight distance a path on the surface may be."""


@flax.struct.dataclass
class Chart:
    """What each texel centre sees of the mesh."""

    face: Int[Array, "h w"]
    """Index of the face, -1 outside the chart."""
    barycentric: Float[Array, "h w 3"]
    """Weights of the face's corners; zero outside."""
    mirrored: Bool[Array, "h w"]
    """Where the face lies back to front in the chart."""

    @property
    def valid(self) -> Bool[Array, "h w"]:
        """Texels that see a face."""
        return self.face >= 0


@flax.struct.dataclass
class Remesh:
    """A mesh with one vertex per covered texel, in row order.

    `mesh.interpolate(values, faces, remeshed.face, remeshed.barycentric)` carries what
    is known at the head's vertices over to the texels, under jit and in any pose.
    """

    texels: Int[Array, "n 2"]
    """(row, column)."""
    face: Int[Array, " n"]
    """Face of the head's mesh that the texel lies on."""
    barycentric: Float[Array, "n 3"]
    triangles: Int[Array, "m 3"]
    """Wound as the head's faces are."""
    twin: Int[Array, " n"]
    """The texel at the same place across a seam of the chart, or the texel itself."""


def rasterize_chart(
    uv: Float[Array, "u 2"],
    uv_faces: Int[Array, "f 3"],
    *,
    size: int,
    backend: str | None = None,
) -> Chart:
    """The chart at size x size texels; where faces overlap, the first one is seen.

    Runs outside jit. Raises ValueError as `check_chart`.
    """
    check_chart(uv, uv_faces)
    if size < 1:
        raise ValueError(f"Expected a chart of at least 1 texel, got size {size}.")
    return _rasterize(jnp.asarray(uv), jnp.asarray(uv_faces), size, backend)


def check_chart(uv: Float[Array, "u 2"], uv_faces: Int[Array, "f 3"]) -> None:
    """Raises ValueError without a chart, or for one that leaves [0, 1]."""
    if len(uv) == 0 or len(uv_faces) == 0:
        raise ValueError(
            "Expected a head with a chart, got one without UV coordinates; "
            "unwrap its mesh first."
        )
    if not (np.min(uv) >= 0.0 and np.max(uv) <= 1.0):  # Also where any is NaN.
        raise ValueError(
            f"Expected UV coordinates in [0, 1], got {np.min(uv):g} to {np.max(uv):g}; "
            "move tiles into one square first."
        )


def position_map(
    chart: Chart, faces: Int[Array, "f 3"], vertices: Float[Array, "*b v c"]
) -> Float[Array, "*b h w c"]:
    """Positions, or any other values of vertices, at texel centres; zero outside.

    `faces` are those of the mesh, corner by corner the `uv_faces` of the chart.
    Differentiable in `vertices`.
    """
    flat = mesh.interpolate(
        vertices,
        faces,
        jnp.maximum(chart.face, 0).ravel(),
        chart.barycentric.reshape(-1, 3),
    )
    image = flat.reshape(*vertices.shape[:-2], *chart.face.shape, vertices.shape[-1])
    return jnp.where(chart.valid[..., None], image, 0.0)


def remesh(
    faces: Int[Array, "f 3"],
    chart: Chart,
    vertices: Float[Array, "v 3"],
    *,
    hops: int | None = HOPS,
    stretch: float | None = None,
) -> Remesh:
    """Topology-preserving remeshing (001, A.2), outside jit.

    Every 2 x 2 block of texels gives two triangles, split from the top left (ours). One
    is kept if its corners are covered and their faces lie pairwise within `hops` of
    each other, over the mesh's vertices; None keeps all, as CAP4D does. `vertices`
    are the head at rest.

    Where a texel spans more faces than that, hops tear holes in a sound surface: at 128
    texels, round the eyes and the mouth of the built-in head. There use hops=None and
    `stretch=STRETCH` (ours), which leaves out the triangles that are `bridging`, and
    those alone.
    """
    surface = np.asarray(vertices, np.float64), np.asarray(faces)
    valid = np.asarray(chart.valid)
    texels = np.argwhere(valid)
    made = Remesh(
        texels=texels,
        face=np.asarray(chart.face)[valid],
        barycentric=np.asarray(chart.barycentric)[valid],
        triangles=_triangles(valid, np.asarray(chart.mirrored)),
        twin=np.arange(len(texels)),
    )
    pairs, side = _sides(made.triangles)
    joined = np.ones(len(pairs), bool)
    if hops is not None:
        joined = face_graph.within_hops(surface[1], made.face[pairs], hops=hops)
    if stretch is not None:
        joined[joined] = _joined(made, *surface, pairs[joined], stretch)
    made = made.replace(triangles=made.triangles[joined[side].all(axis=1)])
    return jax.tree.map(jnp.asarray, made.replace(twin=_twins(made, *surface)))


def bridging(
    remeshed: Remesh,
    faces: Int[Array, "f 3"],
    vertices: Float[Array, "v 3"],
    *,
    stretch: float = STRETCH,
) -> Bool[np.ndarray, " m"]:
    """Triangles that span a gap of the surface, as between lips.

    The path on the surface between two corners exceeds `stretch` times their distance
    and one mean edge. Paths are those of `face_graph.path_within`, seldom too long.
    """
    remeshed = jax.tree.map(np.asarray, remeshed)
    pairs, side = _sides(remeshed.triangles)
    surface = np.asarray(vertices, np.float64), np.asarray(faces)
    joined = _joined(remeshed, *surface, pairs, stretch)
    return ~joined[side].all(axis=1)


def count_bridging(
    remeshed: Remesh,
    faces: Int[Array, "f 3"],
    vertices: Float[Array, "v 3"],
    regions: Mapping[str, Bool[Array, " v"]],
) -> dict[str, int]:
    """Bridging triangles that touch each region, and under "all" how many there are."""
    bad = np.asarray(remeshed.triangles)[bridging(remeshed, faces, vertices)]
    corners = np.asarray(faces)[np.asarray(remeshed.face)[bad]]
    counts = {
        name: int(np.asarray(mask)[corners].any(axis=(1, 2)).sum())
        for name, mask in regions.items()
    }
    return {"all": len(bad), **counts}


def mesh_from_position_map(
    image: Float[Array, "*b h w 3"], valid: Bool[Array, "h w"], remeshed: Remesh
) -> tuple[Float[Array, "*b n 3"], Int[Array, "m 3"]]:
    """The surface that a position map describes: (vertices, faces), outside jit.

    Vertices are the texels of `remeshed`; twins across a seam meet in the middle and
    are one vertex to the faces. Triangles with a texel that is not valid are left out.
    """
    remeshed = jax.tree.map(np.asarray, remeshed)
    rows, columns = remeshed.texels.T
    present = np.asarray(valid)[rows, columns]
    itself = np.arange(len(present))
    twin = np.where(present & present[remeshed.twin], remeshed.twin, itself)
    vertices = image[..., rows, columns, :]
    vertices = 0.5 * (vertices + vertices[..., twin, :])
    kept = present[remeshed.triangles].all(axis=1)
    triangles = np.minimum(itself, twin)[remeshed.triangles[kept]]
    return vertices, jnp.asarray(triangles)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _rasterize(
    uv: Float[Array, "u 2"],
    uv_faces: Int[Array, "f 3"],
    size: int,
    backend: str | None,
) -> Chart:
    x, y = uv[:, 0] * size, (1.0 - uv[:, 1]) * size
    fragments = mesh_rasterizer.rasterize_pixels(
        jnp.stack([x, y, jnp.ones_like(x)], axis=-1),
        uv_faces,
        width=size,
        height=size,
        backend=backend,
    )
    first, second = (uv[uv_faces[:, k]] - uv[uv_faces[:, 0]] for k in (1, 2))
    clockwise = first[:, 0] * second[:, 1] < first[:, 1] * second[:, 0]
    mirrored = clockwise[jnp.maximum(fragments.face, 0)] & (fragments.face >= 0)
    return Chart(fragments.face, fragments.barycentric, mirrored)


def _triangles(
    valid: Bool[np.ndarray, "h w"], mirrored: Bool[np.ndarray, "h w"]
) -> Int[np.ndarray, "m 3"]:
    """Two of each 2 x 2 block, where covered; corners number the covered texels."""
    index = np.where(valid, np.cumsum(valid).reshape(valid.shape) - 1, -1)
    top_left, top_right = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    low_left, low_right = index[1:, :-1].ravel(), index[1:, 1:].ravel()
    lower = np.stack([top_left, low_left, low_right], axis=1)
    upper = np.stack([top_left, low_right, top_right], axis=1)
    triangles = np.concatenate([lower, upper])
    triangles = triangles[(triangles >= 0).all(axis=1)]
    turned = mirrored[valid][triangles].sum(axis=1) >= 2
    return np.where(turned[:, None], triangles[:, ::-1], triangles)


def _sides(
    triangles: Int[np.ndarray, "m 3"],
) -> tuple[Int[np.ndarray, "k 2"], Int[np.ndarray, "m 3"]]:
    """Every pair of corners once, and which three pairs each triangle has."""
    sides = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]], axis=-1).astype(np.int64)
    count = int(triangles.max(initial=0)) + 1
    key, side = np.unique(sides[..., 0] * count + sides[..., 1], return_inverse=True)
    return np.stack(np.divmod(key, count), axis=1), side.reshape(-1, 3)


def _joined(
    remeshed: Remesh,
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    pairs: Int[np.ndarray, "k 2"],
    stretch: float,
) -> Bool[np.ndarray, " k"]:
    """Pairs of texels that the surface joins about as directly as space does."""
    points = _points(remeshed, vertices, faces)
    corners = vertices[faces]
    mean_edge = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).mean()
    distance = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    limits = stretch * distance + mean_edge
    return face_graph.path_within(
        vertices, faces, points, remeshed.face, pairs, limits=limits
    )


def _points(
    remeshed: Remesh,
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
) -> Float[np.ndarray, "n 3"]:
    corners = vertices[faces[remeshed.face]]
    return np.einsum("nk,nkc->nc", remeshed.barycentric, corners)


def _twins(
    remeshed: Remesh,
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    *,
    candidates: int = 12,
) -> Int[np.ndarray, " n"]:
    """Texels that are each other's nearest across a seam, on the head's surface at most
    their mean pitch apart.

    Both lie on the rim of the remeshed surface, more than two texels apart in the chart
    so that no hole counts as a seam. All ours.
    """
    itself = np.arange(len(remeshed.texels))
    pairs, side = _sides(remeshed.triangles)
    rim = np.unique(pairs[np.bincount(side.ravel(), minlength=len(pairs)) == 1])
    if len(rim) == 0:
        return itself
    points = _points(remeshed, vertices, faces)
    length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    total = np.bincount(pairs.ravel(), np.repeat(length, 2), minlength=len(itself))
    pitch = total / np.maximum(np.bincount(pairs.ravel(), minlength=len(itself)), 1)
    tree = scipy.spatial.cKDTree(points[rim])
    distance, other = tree.query(points[rim], k=candidates)
    found = np.isfinite(distance)
    pairs = np.stack([np.repeat(rim, found.sum(axis=1)), rim[other[found]]], axis=1)
    away = np.abs(np.diff(remeshed.texels[pairs], axis=1)).max(axis=(1, 2)) > 2
    limits = pitch[pairs].min(axis=1)
    near = away & (distance[found] <= limits)
    pairs, limits = pairs[near], limits[near]
    pairs = pairs[
        face_graph.path_within(
            vertices, faces, points, remeshed.face, pairs, limits=limits
        )
    ]
    # The query lists the nearest first, and unique finds the first of each.
    start, place = np.unique(pairs[:, 0], return_index=True)
    chosen = itself.copy()
    chosen[start] = pairs[place, 1]
    return np.where(chosen[chosen] == itself, chosen, itself)
