"""What is near on a surface: hops from face to face, and short paths along it.

Faces are neighbours if they share a vertex by its id, so the seams of a chart do not
part them. All numpy, outside jit.
"""

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int
from scipy.sparse import csgraph


def within_hops(
    faces: Int[np.ndarray, "f 3"], pairs: Int[np.ndarray, "k 2"], *, hops: int
) -> Bool[np.ndarray, " k"]:
    """Whether at most `hops` steps between neighbours join the faces of each pair.

    Faces are neighbours if they share a vertex; a face is within 0 hops of itself.
    Raises ValueError if `hops` is negative.
    """
    if hops < 0:
        raise ValueError(f"Expected at least 0 hops between faces, got {hops}.")
    key, inverse = np.unique(_key(pairs, len(faces)), return_inverse=True)
    first, second = np.divmod(key, max(len(faces), 1))
    # Two searches that meet in the middle stay small where one would not.
    step = _neighbours(faces)
    near = scipy.sparse.eye_array(len(faces), dtype=bool, format="csr")
    for _ in range(hops // 2):
        near = near @ step
    far = near @ step if hops % 2 else near
    meet = near[first].multiply(far[second]).sum(axis=1)
    return (np.asarray(meet) > 0)[inverse]


def path_within(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    points: Float[np.ndarray, "n 3"],
    point_faces: Int[np.ndarray, " n"],
    pairs: Int[np.ndarray, "k 2"],
    *,
    limits: Float[np.ndarray, " k"],
) -> Bool[np.ndarray, " k"]:
    """Whether a path on the surface no longer than its limit joins each pair of points.

    Every point lies on its face. The path is the section of the surface by an upright
    plane through both points, where that is short enough: nearly the shortest of all
    where the surface is smooth. Else it is the shortest to cross edges at their ends
    and middles only, too long by at most half an edge for each edge crossed. So True is
    certain, and False is wrong by no more than that.
    """
    ends = point_faces[pairs].T
    start, end = points[pairs[:, 0]], points[pairs[:, 1]]
    joined = _sections(vertices, faces, start, end, ends, limits)
    rest = ~joined & (np.linalg.norm(end - start, axis=1) <= limits)
    joined[rest] = _dijkstra(
        vertices, faces, points, point_faces, pairs[rest], limits[rest]
    )
    return joined


def _neighbours(faces: Int[np.ndarray, "f 3"]) -> scipy.sparse.csr_array:
    """(f, f), True between faces that share a vertex, and on the diagonal."""
    face = np.repeat(np.arange(len(faces)), 3)
    shape = (int(faces.max(initial=-1)) + 1, len(faces))
    place = (faces.ravel(), face)
    incidence = scipy.sparse.csr_array((np.ones(len(face), bool), place), shape)
    return (incidence.T @ incidence).tocsr()


def _edges(
    faces: Int[np.ndarray, "f 3"],
) -> tuple[Int[np.ndarray, "e 2"], Int[np.ndarray, " s"]]:
    """Edges, and the edge of every side: first sides of all faces, then second ones."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = int(faces.max(initial=0)) + 1
    key, inverse = np.unique(_key(np.sort(sides, axis=1), count), return_inverse=True)
    return np.stack(np.divmod(key, count), axis=1), inverse


def _key(pairs: Int[np.ndarray, "k 2"], count: int) -> Int[np.ndarray, " k"]:
    """One number per pair: numpy sorts numbers far faster than rows."""
    return pairs[:, 0].astype(np.int64) * max(count, 1) + pairs[:, 1]


def _sections(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    start: Float[np.ndarray, "k 3"],
    end: Float[np.ndarray, "k 3"],
    ends: Int[np.ndarray, "2 k"],
    limits: Float[np.ndarray, " k"],
    *,
    steps: int = 64,
) -> Bool[np.ndarray, " k"]:
    """Whether the surface's section by an upright plane leads from start to end.

    The plane holds both points and the mean normal of their faces, `ends`. Walks from
    face to face; gives up at rims, and where the section is longer than the limit.
    """
    opposite = _opposite_sides(faces)
    first, second, third = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(second - first, third - first)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    forward = end - start
    across = np.cross(normals[ends].sum(axis=0), forward)
    joined = np.zeros(len(start), bool)
    row, (face, goal), place = np.arange(len(start)), ends, start
    entry, length = np.full(len(start), -1), np.zeros(len(start))
    for _ in range(steps):
        there = face == goal
        last = np.linalg.norm(end[row] - place, axis=1)
        joined[row[there]] = (length + last <= limits[row])[there]
        # Each side runs from its corner to the next one.
        corners = vertices[faces[face]]
        height = np.einsum("kcx,kx->kc", corners - start[row, None], across[row])
        following = np.roll(height, -1, axis=1)
        crossed = (height >= 0) != (following >= 0)
        crossed &= entry[:, None] != np.arange(3)
        fall = np.where(crossed, height - following, 1.0)
        crossing = (height / fall)[..., None] * (np.roll(corners, -1, axis=1) - corners)
        crossing += corners
        ahead = np.einsum("kcx,kx->kc", crossing - place[:, None], forward[row])
        side = np.argmax(np.where(crossed, ahead, -np.inf), axis=1)
        point = crossing[np.arange(len(row)), side]
        length = length + np.linalg.norm(point - place, axis=1)
        entry, next_face = np.divmod(opposite[side, face], len(faces))
        on = ~there & crossed.any(axis=1) & (entry >= 0) & (length < limits[row])
        row, place, length = row[on], point[on], length[on]
        face, goal, entry = next_face[on], goal[on], entry[on]
    return joined


def _opposite_sides(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "3 f"]:
    """Of every side, side * f + face beyond its edge; -1 at rims."""
    _, edge_of_side = _edges(faces)
    order = np.argsort(edge_of_side, kind="stable")
    same = edge_of_side[order[1:]] == edge_of_side[order[:-1]]
    opposite = np.full(len(order), -1)
    opposite[order[1:][same]] = order[:-1][same]
    opposite[order[:-1][same]] = order[1:][same]
    return opposite.reshape(3, -1)


def _dijkstra(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    points: Float[np.ndarray, "n 3"],
    point_faces: Int[np.ndarray, " n"],
    pairs: Int[np.ndarray, "k 2"],
    limits: Float[np.ndarray, " k"],
    *,
    chunk: int = 64,
) -> Bool[np.ndarray, " k"]:
    """Dijkstra's shortest paths over vertices, middles of edges, and the points."""
    if len(pairs) == 0:
        return np.zeros(0, bool)
    used, place = np.unique(pairs, return_inverse=True)
    place = place.reshape(-1, 2)
    edges, edge_of_side = _edges(faces)
    middles = len(vertices) + edge_of_side.reshape(3, -1).T
    nodes = np.concatenate([faces, middles], axis=1)  # Of each face, six.
    own = len(vertices) + len(edges) + np.arange(len(used))
    positions = [vertices, vertices[edges].mean(axis=1), points[used]]
    links = [nodes[:, [i, j]] for i in range(5) for j in range(max(i + 1, 3), 6)]
    touching = nodes[point_faces[used]]
    links += [np.stack([touching[:, i], own], axis=1) for i in range(6)]
    graph = _graph(np.concatenate(positions), np.concatenate(links))
    joined = np.zeros(len(pairs), bool)
    for rows in np.array_split(np.argsort(limits), len(pairs) // chunk + 1):
        sources, row = np.unique(place[rows, 0], return_inverse=True)
        lengths = csgraph.dijkstra(
            graph, directed=False, indices=own[sources], limit=limits[rows].max()
        )
        joined[rows] = lengths[row, own[place[rows, 1]]] <= limits[rows]
    return joined


def _graph(
    positions: Float[np.ndarray, "n 3"], links: Int[np.ndarray, "k 2"]
) -> scipy.sparse.csr_array:
    """Lengths of links; each counts once, however many faces share it."""
    key = np.unique(_key(np.sort(links, axis=1), len(positions)))
    first, second = np.divmod(key, len(positions))
    length = np.linalg.norm(positions[first] - positions[second], axis=1)
    shape = (len(positions), len(positions))
    return scipy.sparse.csr_array((np.maximum(length, 1e-12), (first, second)), shape)
