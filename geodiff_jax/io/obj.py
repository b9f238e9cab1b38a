"""Wavefront .obj: the vertices, chart and faces of one mesh, in the file's own order.

Other readers weld, split or reorder vertices; blend shapes need them as they stand.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Polygons cut into triangles about their first corner."""

    vertices: Float[np.ndarray, "v 3"]
    uv: Float[np.ndarray, "u 2"]
    """As written; empty without a chart."""
    faces: Int[np.ndarray, "f 3"]
    uv_faces: Int[np.ndarray, "f 3"]
    """The same corners in the chart; empty (0, 3) without one."""
    polygons: Int[np.ndarray, " f"]
    """Which polygon of the file each triangle was cut from."""


def read(path: str | os.PathLike) -> Mesh:
    """The mesh of a file; materials, normals and groups are passed over.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is no vertex or face, or that names what is not there.
    """
    lines = _lines(path)
    vertices = _numbers(lines, "v", 3, path)
    uv = _numbers(lines, "vt", 2, path)
    corners: list[tuple[int, int]] = []
    lengths: list[int] = []
    for line in lines:
        if line[:2] not in ("f ", "f\t"):
            continue
        tokens = line.split()[1:]
        if len(tokens) < 3:
            raise ValueError(
                f"Expected faces of 3 corners or more in {path}: {line!r}."
            )
        lengths.append(len(tokens))
        corners += (_corner(token, line, path) for token in tokens)
    chosen = np.array(corners, np.int64).reshape(-1, 2)
    corner, polygons = _fan(np.array(lengths, np.int64))
    has_chart = len(uv) > 0 and bool((chosen[:, 1] != 0).all())
    faces = _places(chosen[:, 0], len(vertices), "vertices", path)[corner]
    uv_faces = np.zeros((0, 3), np.int64)
    if has_chart:
        uv_faces = _places(chosen[:, 1], len(uv), "chart points", path)[corner]
    return Mesh(vertices, uv if has_chart else uv[:0], faces, uv_faces, polygons)


def read_vertices(path: str | os.PathLike) -> Float[np.ndarray, "v 3"]:
    """The vertices alone, as a blend shape needs them; raises as `read`."""
    return _numbers(_lines(path), "v", 3, path)


def _lines(path: str | os.PathLike) -> list[str]:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {path}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected text in {path}, got something else.") from error


def _numbers(
    lines: Sequence[str], keyword: str, width: int, path: str | os.PathLike
) -> np.ndarray:
    """The first `width` numbers after each keyword; some files add weights, colours."""
    start = len(keyword) + 1
    found = [x[start:] for x in lines if x[:start] in (f"{keyword} ", f"{keyword}\t")]
    try:
        rows = [row.split()[:width] for row in found]
        array = np.array(rows, np.float64).reshape(len(rows), width)
    except ValueError as error:
        raise ValueError(
            f"Expected {width} numbers after each {keyword!r} in {path}."
        ) from error
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite numbers after each {keyword!r} in {path}.")
    return array


def _corner(token: str, line: str, path: str | os.PathLike) -> tuple[int, int]:
    """(vertex, chart point) as written, from 1 on or back from the end; 0 for none."""
    vertex, _, rest = token.partition("/")
    chart = rest.partition("/")[0]
    try:
        return int(vertex), int(chart or 0)
    except ValueError as error:
        raise ValueError(f"Expected corners as 1/2/3 in {path}: {line!r}.") from error


def _places(
    written: np.ndarray, count: int, what: str, path: str | os.PathLike
) -> np.ndarray:
    """Indices from 0 on. Those that count back do so from the end of the file, which
    is where they stand in files of one mesh."""
    places = np.where(written > 0, written - 1, written + count)
    if len(places) and (places.min() < 0 or places.max() >= count or 0 in written):
        raise ValueError(f"Expected faces among the {count} {what} of {path}.")
    return places


def _fan(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(corners of triangles, their polygons) of polygons that follow each other."""
    first = np.cumsum(lengths) - lengths
    polygons = np.repeat(np.arange(len(lengths)), lengths - 2)
    cut = np.cumsum(lengths - 2) - (lengths - 2)
    second = first[polygons] + 1 + np.arange(len(polygons)) - cut[polygons]
    return np.stack([first[polygons], second, second + 1], axis=1), polygons
