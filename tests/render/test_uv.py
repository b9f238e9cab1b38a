"""Laws of charts, position maps and remeshed heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.geometry import mesh
from geodiff_jax.render import uv
from tests.geometry.test_face_graph import hops_by_search
from tests.geometry.test_mesh import grid, sphere
from tests.head import heads

# The rasterizer has tests of its own; its reference twin would compile for minutes.
pytestmark = pytest.mark.usefixtures("kernels")


position_map = jax.jit(uv.position_map)
interpolate = jax.jit(mesh.interpolate)
each_head = pytest.mark.parametrize("name", heads.NAMES)


@functools.cache
def charted_tube(size: int = 24, *, mirrored: bool = False):
    """(chart, vertices, faces)."""
    vertices, faces, points, uv_faces = tube(mirrored=mirrored)
    return uv.rasterize_chart(points, uv_faces, size=size), vertices, faces


@functools.cache
def tube_searches() -> list[dict[int, int]]:
    return hops_by_search(np.asarray(charted_tube()[2]))


@functools.cache
def charted(name: str, size: int):
    """(chart, vertices, faces, uv, uv_faces) of a head."""
    head = heads.load(name)
    chart = uv.rasterize_chart(head.uv, head.uv_faces, size=size)
    return chart, head.template, head.faces, head.uv, head.uv_faces


def tube(rows: int = 6, columns: int = 24, *, mirrored: bool = False):
    """A unit cylinder of height 2 pi, open at both ends, cut in the chart at u = 0."""
    t, v = np.meshgrid(np.arange(columns), np.linspace(0, 1, rows + 1))
    angle = 2 * np.pi * t / columns
    vertices = np.stack([np.sin(angle), 2 * np.pi * v, np.cos(angle)], -1)
    corner, wide = np.arange(t.size).reshape(t.shape), columns + 1
    following = np.roll(corner, -1, axis=1)
    a, b, c, d = corner[:-1], following[:-1], following[1:], corner[1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    place = np.arange((rows + 1) * wide).reshape(rows + 1, wide)
    a, b, c, d = place[:-1, :-1], place[:-1, 1:], place[1:, 1:], place[1:, :-1]
    uv_faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    u, v = np.meshgrid(np.arange(wide) / columns, np.linspace(0, 1, rows + 1))
    points = np.stack([1 - u if mirrored else u, v], -1).reshape(-1, 2)
    return (
        jnp.asarray(vertices.reshape(-1, 3), jnp.float32),
        jnp.asarray(faces.reshape(-1, 3)),
        jnp.asarray(points, jnp.float32),
        jnp.asarray(uv_faces.reshape(-1, 3)),
    )


def sheet(slender: float = 1.0):
    """A flat square that fills the chart, its vertices on texel centres of size 8."""
    vertices, faces = grid(8)
    vertices = jnp.asarray(vertices)
    return (
        vertices * jnp.array([slender, 1.0, 1.0]),
        jnp.asarray(faces),
        (vertices[:, :2] + 0.5) / 8,
        jnp.asarray(faces),
    )


def two_sheets(*, tied: bool):
    """Two leaves 5 apart, side by side in the chart; perhaps one surface far away."""
    vertices, faces = grid(12)
    far = vertices + np.array([0, 0, 5], np.float32)
    points = (vertices[:, :2] + 0.5) / [24, 12]
    everything = [faces, faces + 144]
    if tied:
        strip = np.array([[0, 11, 144], [11, 155, 144]])  # Between their lowest rows.
        everything.append(strip)
    chart = np.concatenate([points, points + [11 / 24, 0]])
    return (
        jnp.asarray(np.concatenate([vertices, far])),
        jnp.asarray(np.concatenate(everything)),
        jnp.asarray(chart, jnp.float32),
        jnp.asarray(np.concatenate(everything)),
    )


def centres(size: int) -> np.ndarray:
    """u to the right and v upwards of every texel's centre."""
    row, column = np.mgrid[:size, :size]
    return np.stack([column + 0.5, size - 0.5 - row], axis=-1) / size


# --- Charts and position maps


@each_head
def test_texels_find_their_place_and_back(name):
    chart, vertices, faces, points, chart_faces = charted(name, 128)
    assert 0.75 < chart.valid.mean() < 1.0
    back = np.asarray(position_map(chart, chart_faces, points))
    # The rasterizer rounds corners to 1/256 texel; slivers magnify that.
    valid = np.asarray(chart.valid)
    np.testing.assert_allclose(back[valid], centres(128)[valid], atol=1 / 64 / 128)
    places = np.asarray(position_map(chart, faces, vertices))
    assert (places[~valid] == 0).all()
    some = np.flatnonzero(valid)[::29]
    corners = np.asarray(vertices)[np.asarray(faces)[np.asarray(chart.face).flat[some]]]
    found = places.reshape(-1, 3)[some]
    again = jax.jit(mesh.barycentrics)(jnp.asarray(found), jnp.asarray(corners))
    rebuilt = np.einsum("nk,nkc->nc", again, corners)
    np.testing.assert_allclose(rebuilt, found, atol=1e-5)  # Slivers, single precision.


def test_a_vertex_on_a_texel_is_that_texel():
    vertices, faces, points, uv_faces = sheet()
    chart = uv.rasterize_chart(points, uv_faces, size=8)
    image = position_map(chart, faces, vertices)
    expected = np.asarray(vertices).reshape(8, 8, 3)[::-1]  # v upwards, row 0 on top.
    seen = np.asarray(chart.valid)
    assert seen[:-1, :-1].all()  # The other sides belong to no face (top-left rule).
    np.testing.assert_allclose(np.asarray(image)[seen], expected[seen], atol=1e-4)


def test_position_maps_are_linear_in_whatever_vertices_carry():
    chart, vertices, faces = charted_tube()
    random = np.random.default_rng(0).normal(size=(2, 3, len(vertices), 5))
    values = jnp.asarray(random, jnp.float32)
    image = position_map(chart, faces, values)
    assert image.shape == (2, 3, 24, 24, 5)
    corners = random[:, :, np.asarray(faces)[np.asarray(chart.face)]]
    expected = np.sum(corners * np.asarray(chart.barycentric)[..., None], axis=-2)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    weight = jax.grad(lambda x: position_map(chart, faces, x).sum())(values)
    # Every covered texel hands out a total weight of one, to each channel.
    expected = np.full((2, 3, 5), chart.valid.sum())
    np.testing.assert_allclose(weight.sum(axis=-2), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("points", "size", "message"),
    [
        (np.zeros((0, 2)), 8, "without UV coordinates"),
        (np.array([[0, 0], [1, 0], [6.9, 1]]), 8, r"UV coordinates in \[0, 1\]"),
        (np.array([[0, 0], [1, 0], [np.nan, 1]]), 8, r"UV coordinates in \[0, 1\]"),
        (np.array([[0, 0], [1, 0], [0, 1.0]]), 0, "at least 1 texel"),
    ],
    ids=("none", "tiles", "nan", "size"),
)
def test_bad_charts_are_named(points, size, message):
    with pytest.raises(ValueError, match=message):
        uv.rasterize_chart(jnp.asarray(points), jnp.asarray([[0, 1, 2]]), size=size)


@pytest.mark.parametrize("hops", (None, 5))
def test_a_chart_too_small_for_any_texel_gives_nothing(hops):
    vertices, faces, points, uv_faces = sheet()
    chart = uv.rasterize_chart(points / 100, uv_faces, size=8)
    assert not chart.valid.any()
    assert not position_map(chart, faces, vertices).any()
    empty = uv.remesh(faces, chart, vertices, hops=hops, stretch=uv.STRETCH)
    assert empty.texels.shape == (0, 2) and empty.triangles.shape == (0, 3)
    assert uv.count_bridging(empty, faces, vertices, {}) == {"all": 0}


def test_degenerate_faces_are_no_obstacle():
    vertices, faces, points, uv_faces = sheet()
    chart = uv.rasterize_chart(points, uv_faces, size=40)
    extended = jnp.concatenate([faces, jnp.asarray([[0, 0, 1], [5, 5, 5]])])
    remeshed = uv.remesh(extended, chart, vertices, stretch=uv.STRETCH)
    alone = uv.remesh(faces, chart, vertices)
    np.testing.assert_array_equal(remeshed.triangles, alone.triangles)


# --- Remeshing


@pytest.mark.parametrize("hops", (None, 0, 1, 2, 5))
def test_remeshing_agrees_with_a_search_per_triangle(hops):
    chart, vertices, faces = charted_tube()
    remeshed = uv.remesh(faces, chart, vertices, hops=hops)
    face = np.asarray(chart.face)
    searches = tube_searches()
    expected = set()
    for row in range(23):
        for column in range(23):
            low, right = (row + 1, column), (row, column + 1)
            opposite = (row + 1, column + 1)
            for corners in ((low, opposite), (opposite, right)):
                corners = ((row, column), *corners)
                ids = [int(face[corner]) for corner in corners]
                apart = max(searches[i][j] for i in ids for j in ids)
                if min(ids) >= 0 and (hops is None or apart <= hops):
                    expected.add(corners)
    found = np.asarray(remeshed.texels)[np.asarray(remeshed.triangles)]
    assert {tuple(map(tuple, corners)) for corners in found.tolist()} == expected
    np.testing.assert_array_equal(remeshed.face, face[np.asarray(chart.valid)])


@pytest.mark.parametrize("mirrored", (False, True))
def test_triangles_face_as_the_head_does(mirrored):
    chart, vertices, faces = charted_tube(mirrored=mirrored)
    assert (np.asarray(chart.mirrored) == mirrored)[np.asarray(chart.valid)].all()
    remeshed = uv.remesh(faces, chart, vertices)
    places = interpolate(vertices, faces, remeshed.face, remeshed.barycentric)
    normals = jax.jit(mesh.face_normals)(places, remeshed.triangles)
    outwards = np.asarray(places)[np.asarray(remeshed.triangles)].mean(axis=1)
    outwards[:, 1] = 0.0  # Along the tube.
    assert (np.sum(normals * outwards, axis=-1) > 0.9).all()


@pytest.mark.parametrize("tied", (False, True))
def test_leaves_that_touch_in_the_chart_stay_apart(tied):
    vertices, faces, points, uv_faces = two_sheets(tied=tied)
    chart = uv.rasterize_chart(points, uv_faces, size=48)
    plain = uv.remesh(faces, chart, vertices, hops=None)
    left = np.arange(len(vertices)) < 144
    regions = {"left": jnp.asarray(left), "nowhere": jnp.zeros(len(left), bool)}
    counts = uv.count_bridging(plain, faces, vertices, regions)
    apart = left[np.asarray(faces)[np.asarray(plain.face)]].any(axis=1)
    crossing = apart[np.asarray(plain.triangles)]
    crossing = crossing.any(axis=1) & ~crossing.all(axis=1)
    assert crossing.sum() > 20
    if not tied:
        assert counts == {"all": crossing.sum(), "left": crossing.sum(), "nowhere": 0}
    for rule in ({}, {"hops": None, "stretch": uv.STRETCH}):
        kept = uv.remesh(faces, chart, vertices, **rule)
        assert uv.count_bridging(kept, faces, vertices, {}) == {"all": 0}


@pytest.mark.parametrize("slender", (1.0, 12.0))
def test_nothing_bridges_in_a_plane(slender):
    vertices, faces, points, uv_faces = sheet(slender)
    chart = uv.rasterize_chart(points, uv_faces, size=40)
    plain = uv.remesh(faces, chart, vertices, hops=None)
    assert not uv.bridging(plain, faces, vertices, stretch=1.0).any()


def test_nothing_bridges_on_a_ball():
    vertices, faces = sphere(1500)
    front = faces[(vertices[faces][..., 2] > 0.1).all(axis=1)]
    points = jnp.asarray(0.5 + 0.49 * vertices[:, :2])
    chart = uv.rasterize_chart(points, jnp.asarray(front), size=64)
    surface = (jnp.asarray(front), chart, jnp.asarray(vertices))
    plain = uv.remesh(*surface, hops=None)
    assert len(plain.triangles) > 4000
    assert not uv.bridging(plain, surface[0], surface[2]).any()


@pytest.mark.parametrize(
    ("name", "size"),
    [("procedural", 128), ("procedural", 256), ("flame", 128), ("ict", 128)],
)
def test_remeshed_heads_bridge_no_gap(name, size):
    chart, vertices, faces, _, _ = charted(name, size)
    ours = uv.remesh(faces, chart, vertices)
    assert not uv.bridging(ours, faces, vertices).any()
    if size == 128:
        plain = uv.remesh(faces, chart, vertices, hops=None)
        bad = uv.bridging(plain, faces, vertices)
        by_paths = uv.remesh(faces, chart, vertices, hops=None, stretch=uv.STRETCH)
        np.testing.assert_array_equal(by_paths.triangles, plain.triangles[~bad])
        assert bad.any() and len(ours.triangles) > 0.95 * len(plain.triangles)


# --- From position maps to meshes


def remeshed_tube(size: int = 48):
    chart, vertices, faces = charted_tube(size)
    return uv.remesh(faces, chart, vertices), chart, vertices, faces


def test_twins_close_the_seam_and_nothing_else():
    remeshed, chart, vertices, faces = remeshed_tube()
    twin, column = np.asarray(remeshed.twin), np.asarray(remeshed.texels)[:, 1]
    np.testing.assert_array_equal(twin[twin], np.arange(len(twin)))
    twins = twin != np.arange(len(twin))
    assert set(column[twins].tolist()) == {0, 47}
    assert twins.sum() >= 2 * 46  # Rows at the ends may have lost a texel.
    image = position_map(chart, faces, vertices)
    _, closed = uv.mesh_from_position_map(image, chart.valid, remeshed)
    edges = np.sort(np.asarray(closed)[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2))
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses == 1).sum() < 2 * 48  # Two rings of 47, where the seam added 94.


def test_a_mesh_lies_on_the_surface_it_came_from():
    remeshed, chart, vertices, faces = remeshed_tube()
    image = position_map(chart, faces, vertices)
    found, triangles = uv.mesh_from_position_map(image, chart.valid, remeshed)
    exact = interpolate(vertices, faces, remeshed.face, remeshed.barycentric)
    alone = np.asarray(remeshed.twin) == np.arange(len(remeshed.twin))
    np.testing.assert_allclose(found[alone], exact[alone], atol=1e-6)
    # Of 24 sides, the middle of one lies 1 - cos(pi / 24) within the unit circle; a
    # chord from texel to texel lies no deeper in a side than across one corner.
    radius = np.linalg.norm(np.asarray(exact)[:, [0, 2]], axis=1)
    assert radius.min() > np.cos(np.pi / 24) - 1e-5 and radius.max() < 1 + 1e-5
    centroids = np.asarray(found)[np.asarray(triangles)].mean(axis=1)
    depth = 1 - np.linalg.norm(centroids[:, [0, 2]], axis=1)
    assert -1e-5 < depth.min() and depth.max() < 2 * (1 - np.cos(np.pi / 24))


def test_map_to_mesh_to_map_is_the_identity():
    remeshed, chart, _, _ = remeshed_tube()
    random = np.random.default_rng(0).normal(size=(48, 48, 3))
    image = jnp.asarray(random, jnp.float32)
    found, _ = uv.mesh_from_position_map(image, chart.valid, remeshed)
    own = jnp.asarray(centres(48), jnp.float32)[*np.asarray(remeshed.texels).T]
    again = uv.rasterize_chart(own, remeshed.triangles, size=48)
    drawn = np.asarray(position_map(again, remeshed.triangles, found))
    alone = np.zeros((48, 48), bool)
    alone[tuple(np.asarray(remeshed.texels).T)] = np.asarray(
        remeshed.twin
    ) == np.arange(len(remeshed.twin))
    seen = np.asarray(again.valid)
    assert seen.mean() > 0.95
    # Centres are on the rasterizer's grid of 1/256, up to round-off of a texel's place.
    np.testing.assert_allclose(drawn[seen & alone], image[seen & alone], atol=1e-3)
    other = np.asarray(found)[np.asarray(remeshed.twin)]
    np.testing.assert_array_equal(found, other)  # Twins met in the middle.


def test_what_a_mask_leaves_out_is_not_built():
    remeshed, chart, vertices, faces = remeshed_tube()
    image = position_map(chart, faces, vertices)
    valid = np.asarray(chart.valid).copy()
    valid[:, :24] = False
    broken = jnp.where(valid[..., None], image, jnp.nan)
    found, triangles = uv.mesh_from_position_map(broken, jnp.asarray(valid), remeshed)
    assert len(triangles) == 2 * 23 * (np.asarray(chart.valid)[:, 30].sum() - 1)
    assert np.isfinite(np.asarray(found)[np.asarray(triangles)]).all()


def test_meshes_of_many_maps_are_differentiable():
    remeshed, chart, _, _ = remeshed_tube()

    def total(image):
        return uv.mesh_from_position_map(image, chart.valid, remeshed)[0].sum()

    weight = jax.grad(total)(jnp.ones((2, 48, 48, 3)))
    expected = np.broadcast_to(np.asarray(chart.valid)[None, ..., None], weight.shape)
    np.testing.assert_allclose(weight, expected)  # Twins weigh a half, twice.
