"""Meshes come back in the file's own order."""

import numpy as np
import pytest

from geodiff_jax.io import obj
from tests.conftest import shared_data

SQUARE = """# a unit square, and a triangle on it
mtllib nothing.mtl
v 0 0 0
v 1 0 0 0.5 0.5 0.5
v 1 1 0
v\t0 1 0
v 0.5 2e0 -1
vt 0 0
vt 1 0
vt 1 1 0
vt 0 1
vn 0 0 1
g part
f 1/1/1 2/2/1 3/3/1 4/4/1
f 4/4 3/3 -1/1
"""


def write(tmp_path, text):
    path = tmp_path / "mesh.obj"
    path.write_text(text)
    return path


def test_polygons_are_cut_about_their_first_corner(tmp_path):
    mesh = obj.read(write(tmp_path, SQUARE))
    assert mesh.vertices.shape == (5, 3) and mesh.uv.shape == (4, 2)
    np.testing.assert_array_equal(mesh.vertices[4], [0.5, 2.0, -1.0])
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3], [3, 2, 4]])
    np.testing.assert_array_equal(mesh.uv_faces, [[0, 1, 2], [0, 2, 3], [3, 2, 0]])
    np.testing.assert_array_equal(mesh.polygons, [0, 0, 1])


@pytest.mark.parametrize("corners", range(3, 9))
def test_a_cut_polygon_keeps_its_area(tmp_path, corners):
    angle = 2 * np.pi * np.arange(corners) / corners
    lines = [f"v {np.cos(a):.17g} {np.sin(a):.17g} 0" for a in angle]
    lines.append("f " + " ".join(str(i + 1) for i in range(corners)))
    mesh = obj.read(write(tmp_path, "\n".join(lines)))
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    area = 0.5 * np.cross(b - a, c - a)[:, 2]
    assert len(area) == corners - 2 and (area > 0).all()
    np.testing.assert_allclose(area.sum(), corners / 2 * np.sin(2 * np.pi / corners))


@pytest.mark.parametrize("form", ["1 2 3", "1//1 2//1 3//1"])
def test_without_a_chart_there_is_none(tmp_path, form):
    text = "\n".join(x for x in SQUARE.splitlines() if x[:2] != "f ") + f"\nf {form}\n"
    mesh = obj.read(write(tmp_path, text))
    assert mesh.uv.shape == (0, 2) and mesh.uv_faces.shape == (0, 3)
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2]])


def test_no_faces_are_points(tmp_path):
    mesh = obj.read(write(tmp_path, "v 1 2 3\n"))
    assert mesh.faces.shape == mesh.uv_faces.shape == (0, 3)
    np.testing.assert_array_equal(obj.read_vertices(tmp_path / "mesh.obj"), [[1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v 1 2\n", "3 numbers after each 'v'"),
        ("v 1 2 x\n", "3 numbers after each 'v'"),
        ("v 1 2 nan\n", "finite numbers"),
        (SQUARE + "f 1 2\n", "3 corners or more"),
        (SQUARE + "f 1 2 9\n", "among the 5 vertices"),
        (SQUARE + "f 1/1 2/2 3/9\n", "among the 4 chart points"),
        (SQUARE + "f 0/1 2/1 3/1\n", "among the 5 vertices"),
        (SQUARE + "f -9/1 2/1 3/1\n", "among the 5 vertices"),
        (SQUARE + "f a b c\n", "corners as 1/2/3"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        obj.read(write(tmp_path, text))


def test_missing_files_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        obj.read(tmp_path / "head.obj")
    (tmp_path / "mesh.obj").write_bytes(b"\xff\xfe\x00v 1")
    with pytest.raises(ValueError, match="Expected text"):
        obj.read_vertices(tmp_path / "mesh.obj")


def test_flames_own_template():
    mesh = obj.read(shared_data("flame_topology/head_template_mesh.obj"))
    assert mesh.vertices.shape == (5023, 3) and mesh.uv.shape == (5118, 2)
    assert mesh.faces.shape == mesh.uv_faces.shape == (9976, 3)
    assert len(np.unique(mesh.polygons)) == 9976
    # The chart is the faces' own: a vertex has few points in it.
    pairs = np.unique(np.stack([mesh.faces, mesh.uv_faces], -1).reshape(-1, 2), axis=0)
    assert len(pairs) == 5118
