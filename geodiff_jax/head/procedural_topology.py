"""The procedural head's skin mesh: a grid over the chart with holes, and their rings.

Eyes, mouth and nostrils are rectangular holes of the grid, refilled with concentric
rings of quads that have as many vertices as the hole's edge. Everything is mirror
symmetric vertex by vertex.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from geodiff_jax.head import procedural_shell as shell


def _spread(stops: list[tuple[float, int]]) -> Float[np.ndarray, " n"]:
    """Values from 0 through each stop, with that many equal steps before it."""
    values = [np.zeros(1)]
    for stop, steps in stops:
        values.append(np.linspace(values[-1][-1], stop, steps + 1)[1:])
    return np.round(np.concatenate(values), 6)


HALF_COLUMNS = _spread([(4.0 / 3.0, 8), (4.0, 13), (6.0, 9), (9.0, 8)])
COLUMNS = np.concatenate([-HALF_COLUMNS[:0:-1], HALF_COLUMNS[:-1]])
"""Chart columns of the grid, from the back midline over the right side to the left."""
ROWS = np.concatenate(
    [
        _spread([(3.0, 8), (9.0, 24), (10.5, 6)]),
        np.array([10.7, 10.82, 10.94, 11.06, 11.18, 11.3, 11.45, 11.6, 11.8]),
        12.0 + _spread([(2.0, 10), (5.0, 12), (9.0, 9), (9.7, 1)]),
    ]
)
"""Chart rows of the grid, from the neck to one below the crown."""

EYE_HOLE = (0.67, 3.2, 13.2, 15.5)
NOSTRIL_HOLE = (0.17, 0.67, 10.82, 11.3)
MOUTH_HOLE = (-2.0, 2.0, 7.5, 10.5)
"""Holes as first and last column, first and last row."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The skin's grid with its holes."""

    index: Int[np.ndarray, "rows columns"]
    """Vertex at each row and column, -1 inside holes."""
    chart: Float[np.ndarray, "v 2"]
    """Column and row of each vertex; the last vertex is the crown."""
    quads: Int[np.ndarray, "q 4"]
    crown: Int[np.ndarray, "t 3"]
    """Triangles of the fan around the crown."""


def _span(
    hole: tuple[float, float, float, float],
) -> tuple[int, int, int, int]:
    """Grid positions of a hole's first and last column, first and last row."""
    first, last = (int(np.argmin(np.abs(COLUMNS - k))) for k in hole[:2])
    low, high = (int(np.argmin(np.abs(ROWS - t))) for t in hole[2:])
    return first, last, low, high


def mirrored(
    hole: tuple[float, float, float, float],
) -> tuple[float, float, float, float]:
    """The same hole on the other side of the face."""
    return -hole[1], -hole[0], hole[2], hole[3]


HOLES = (
    EYE_HOLE,
    mirrored(EYE_HOLE),
    NOSTRIL_HOLE,
    mirrored(NOSTRIL_HOLE),
    MOUTH_HOLE,
)


def grid() -> Grid:
    """Grid vertices, the quads outside the holes and the fan at the crown."""
    num_rows, num_columns = len(ROWS), len(COLUMNS)
    vertex_free = np.zeros((num_rows, num_columns), bool)
    quad_free = np.zeros((num_rows - 1, num_columns), bool)
    for hole in HOLES:
        first, last, low, high = _span(hole)
        vertex_free[low + 1 : high, first + 1 : last] = True
        quad_free[low:high, first:last] = True
    numbers = np.cumsum(~vertex_free).reshape(vertex_free.shape) - 1
    index = np.where(vertex_free, -1, numbers)
    crown = int(index.max()) + 1
    row, column = np.meshgrid(ROWS, COLUMNS, indexing="ij")
    chart = np.stack([column[~vertex_free], row[~vertex_free]], axis=1)
    chart = np.concatenate([chart, [[0.0, shell.NUM_ROWS - 1.0]]])
    after = np.roll(index, -1, axis=1)
    quads = np.stack([index[:-1], after[:-1], after[1:], index[1:]], axis=-1)
    top = np.stack([index[-1], after[-1], np.full(num_columns, crown)], axis=-1)
    return Grid(index, chart, quads[~quad_free], top)


def perimeter(
    index: Int[np.ndarray, "rows columns"],
    hole: tuple[float, float, float, float],
    *,
    start_at_middle: bool = False,
) -> Int[np.ndarray, " n"]:
    """Vertices of a hole's edge, counter-clockwise seen from the front.

    Starts at the middle of the first column, or of the first row.
    """
    first, last, low, high = _span(hole)
    loop = np.concatenate(
        [
            index[low, first:last],
            index[low:high, last],
            index[high, last:first:-1],
            index[high:low:-1, first],
        ]
    )
    return np.roll(
        loop, -((last - first) // 2) if start_at_middle else (high - low) // 2
    )


def mirror_of(
    chart: Float[np.ndarray, "v 2"], loop: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Grid vertices across the midline, in the same order (so clockwise)."""
    wanted = chart[loop] * np.array([-1.0, 1.0])
    distance = np.abs(wanted[:, None] - chart[None]).sum(axis=-1)
    return np.argmin(distance, axis=1)


def ring_quads(rings: Int[np.ndarray, "r n"]) -> Int[np.ndarray, "q 4"]:
    """Quads between successive counter-clockwise rings, outermost first."""
    after = np.roll(rings, -1, axis=1)
    quads = np.stack([rings[:-1], after[:-1], after[1:], rings[1:]], axis=-1)
    return quads.reshape(-1, 4)


def fan(ring: Int[np.ndarray, " n"], centre: int) -> Int[np.ndarray, "n 3"]:
    """Triangles from a counter-clockwise ring to a vertex inside it."""
    return np.stack([ring, np.roll(ring, -1), np.full(len(ring), centre)], axis=1)


def triangles(
    quads: Int[np.ndarray, "q 4"], points: Float[np.ndarray, "v 3"]
) -> Int[np.ndarray, "t 3"]:
    """Two triangles for each quad, split along its shorter diagonal.

    Ties go by side, so that mirrored quads split alike.
    """
    corners = points[quads]
    first = np.linalg.norm(corners[:, 0] - corners[:, 2], axis=-1)
    second = np.linalg.norm(corners[:, 1] - corners[:, 3], axis=-1)
    left = corners[:, :, 0].mean(axis=1) >= 0
    along = np.where(np.abs(first - second) < 1e-6, left, first < second)
    turned = np.where(along[:, None], quads, np.roll(quads, 1, axis=1))
    return np.concatenate([turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]])
