"""Laws of hops and paths on a surface."""

import collections

import numpy as np
import pytest

from geodiff_jax.geometry import face_graph
from tests.geometry.test_mesh import grid, sphere


def soup(seed: int) -> np.ndarray:
    """Faces that share vertices by chance, degenerate ones too."""
    return np.random.default_rng(seed).integers(0, 9, (25, 3))


def hops_by_search(faces: np.ndarray) -> list[dict[int, int]]:
    """Of every face, the hops to all it can reach: breadth first, the obvious way."""
    owners = collections.defaultdict(set)
    for face, corners in enumerate(faces.tolist()):
        for corner in corners:
            owners[corner].add(face)
    neighbours = collections.defaultdict(set)
    for sharing in owners.values():
        for face in sharing:
            neighbours[face] |= sharing
    found = []
    for start in range(len(faces)):
        hops, queue = {start: 0}, collections.deque([start])
        while queue:
            face = queue.popleft()
            for other in neighbours[face] - hops.keys():
                hops[other] = hops[face] + 1
                queue.append(other)
        found.append(hops)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hops", (0, 1, 2, 3, 5))
def test_hops_agree_with_a_search(seed, hops):
    faces = soup(seed)
    pairs = np.stack(np.divmod(np.arange(25 * 25), 25), axis=1)
    searches = hops_by_search(faces)
    expected = [searches[i].get(j, 99) <= hops for i, j in pairs]
    found = face_graph.within_hops(faces, pairs, hops=hops)
    np.testing.assert_array_equal(found, expected)


def test_hops_of_nothing_are_nothing():
    none = np.zeros((0, 2), int)
    assert len(face_graph.within_hops(soup(0), none, hops=5)) == 0
    with pytest.raises(ValueError, match="at least 0 hops"):
        face_graph.within_hops(soup(0), none, hops=-1)


def random_points(vertices, faces, count: int, seed: int = 0):
    """(points, their faces, pairs of them), everywhere on the surface."""
    rng = np.random.default_rng(seed)
    face = rng.integers(0, len(faces), 2 * count)
    weights = rng.dirichlet(np.ones(3), 2 * count)
    points = np.einsum("nk,nkc->nc", weights, vertices[faces[face]])
    return points, face, np.arange(2 * count).reshape(-1, 2)


def distances(points, pairs):
    return np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)


@pytest.mark.parametrize("slant", ((1, 1), (8, 1)), ids=("even", "slender"))
def test_paths_in_a_plane_are_straight(slant):
    vertices, faces = grid(9)
    vertices = vertices.astype(float) * [*slant, 1]
    points, face, pairs = random_points(vertices, faces, 200)
    straight = distances(points, pairs)
    surface = (vertices, faces, points, face, pairs)
    # Round-off of a sum of up to sixteen steps.
    assert face_graph.path_within(*surface, limits=straight * (1 + 1e-9)).all()
    assert not face_graph.path_within(*surface, limits=straight * (1 - 1e-9)).any()


def test_paths_on_a_ball_follow_great_circles():
    vertices, faces = sphere(800)
    vertices = vertices.astype(float)
    points, face, pairs = random_points(vertices, faces, 200)
    cosine = np.sum(points[pairs[:, 0]] * points[pairs[:, 1]], axis=1)
    arcs = np.arccos(cosine / np.linalg.norm(points[pairs], axis=-1).prod(axis=1))
    surface = (vertices, faces, points, face, pairs)
    # The mean of the normals turns the plane off the centre by no more than a face
    # (0.1) does; chords are 1 % shorter than arcs.
    assert face_graph.path_within(*surface, limits=1.02 * arcs + 0.01).all()
    assert not face_graph.path_within(*surface, limits=0.98 * arcs).any()


def fold(gap: float):
    """A long sheet of 2 x 1 folded in the middle into two leaves."""
    vertices, faces = grid(21)
    x, y, _ = vertices.astype(float).T / 20
    turn = np.clip((x - 0.4) / 0.2, 0, 1) * np.pi
    along = np.where(x < 0.5, np.minimum(x, 0.4), np.minimum(1 - x, 0.4))
    bend = gap / 2 * np.sin(turn)
    height = gap / 2 * np.cos(turn)
    return np.stack([2 * along + bend, y, height], axis=1), faces


def test_paths_go_round_a_fold():
    gap = 0.02
    vertices, faces = fold(gap)
    centre = vertices[faces].mean(axis=1)
    below = np.flatnonzero((centre[:, 2] < -0.99 * gap / 2) & (centre[:, 0] < 0.7))
    opposite = centre[below] * [1, 1, -1]
    gaps = np.linalg.norm(centre[None] - opposite[:, None], axis=2)
    above = np.argmin(gaps, axis=1)
    pairs = np.stack([below, above], axis=1)
    around = 1.6 - centre[pairs][..., 0].sum(axis=1)  # To the fold's beginning, twice.
    surface = (vertices, faces, centre, np.arange(len(faces)), pairs)
    assert not face_graph.path_within(*surface, limits=around).any()
    # Round the bend, and half an edge (0.1) for each of the few rows to the side.
    assert face_graph.path_within(*surface, limits=around + 0.3).all()


def test_no_path_leads_from_sheet_to_sheet():
    vertices, faces = grid(4)
    both = np.concatenate([vertices, vertices + [0, 0, 1e-3]]).astype(float)
    faces = np.concatenate([faces, faces + len(vertices)])
    half = len(faces) // 2
    pairs = np.stack([np.arange(half), np.arange(half) + half], axis=1)
    centre = both[faces].mean(axis=1)
    found = face_graph.path_within(
        both, faces, centre, np.arange(2 * half), pairs, limits=np.full(half, 1e3)
    )
    assert not found.any()
