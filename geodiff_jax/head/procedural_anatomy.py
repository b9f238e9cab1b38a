"""The procedural head put together: one mesh, its chart, and what each vertex is.

Millimetres, the frame of `procedural_shell`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from geodiff_jax.head import procedural_features as features
from geodiff_jax.head import procedural_parts as parts
from geodiff_jax.head import procedural_shell as shell
from geodiff_jax.head import procedural_topology as topology

FACE_SHARE = 0.6
"""Share of the chart's width for the face, out to column 4.5 (65 degrees)."""
SKIN_ISLAND = (0.004, 0.21, 0.996, 0.996)
# Islands below the skin: name, left, bottom, right, top in the chart.
ISLANDS = {
    "left_eyeball": (0.006, 0.006, 0.156, 0.156),
    "right_eyeball": (0.164, 0.006, 0.314, 0.156),
    "left_ear": (0.322, 0.006, 0.512, 0.196),
    "right_ear": (0.520, 0.006, 0.710, 0.196),
    "upper_teeth": (0.718, 0.110, 0.994, 0.196),
    "lower_teeth": (0.718, 0.014, 0.994, 0.100),
    "tongue": (0.006, 0.166, 0.076, 0.200),
    "mouth_bag": (0.084, 0.166, 0.314, 0.200),
}


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The mean head and the meaning of its vertices."""

    points: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    uv: Float[np.ndarray, "u 2"]
    uv_faces: Int[np.ndarray, "f 3"]
    chart: Float[np.ndarray, "v 2"]
    """Column and row on the shell; NaN off the skin and inside lids and mouth."""
    ranges: dict[str, slice]
    """Vertices of the grid, of each feature's rings and of each part."""
    gum: Bool[np.ndarray, " v"]
    eye_edge: Float[np.ndarray, "n 2"]
    """Edge of the left eye's hole, in the chart."""


def _chart_axes() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Knots of the maps column -> u and row -> v, by arc length on the shell."""
    columns, rows = np.linspace(0, 9, 181), np.linspace(0, shell.NUM_ROWS - 1, 441)
    level = shell.shell(*np.broadcast_arrays(columns[:, None], np.arange(8.0, 18.0)))
    steps = np.linalg.norm(np.diff(level, axis=0), axis=-1).mean(axis=1)
    arc = np.r_[0.0, np.cumsum(steps)]
    edge = np.interp(4.5, columns, arc)
    u = np.where(
        arc <= edge,
        FACE_SHARE * arc / edge,
        FACE_SHARE + (1 - FACE_SHARE) * (arc - edge) / (arc[-1] - edge),
    )
    upright = shell.shell(
        *np.broadcast_arrays(np.array([0.0, 2.0, 4.0]), rows[:, None])
    )
    steps = np.linalg.norm(np.diff(upright, axis=0), axis=-1).mean(axis=1)
    v = np.r_[0.0, np.cumsum(steps)]
    return columns, u, rows, v / v[-1]


def _skin_uv(chart: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b 2"]:
    columns, u, rows, v = _chart_axes()
    left, bottom, right, top = SKIN_ISLAND
    across = np.interp(np.abs(chart[..., 0]), columns, u) * np.sign(chart[..., 0])
    up = np.interp(chart[..., 1], rows, v)
    return np.stack(
        [left + (right - left) * (0.5 + 0.5 * across), bottom + (top - bottom) * up],
        axis=-1,
    )


def _nested_uv(
    contour: Float[np.ndarray, "n 2"],
    opposite: Int[np.ndarray, " n"],
    shrink: list[tuple[float, float]],
) -> Float[np.ndarray, "r n 2"]:
    """Chart rings inside a closed contour: (height, width) shares of it.

    `opposite` is the vertex across the opening from each one.
    """
    middle = 0.5 * (contour + contour[opposite])
    height = contour[:, 1] - middle[:, 1]
    order = np.argsort(middle[:, 0])
    along = middle[order, 0]
    centre = 0.5 * (along[0] + along[-1])
    rings = []
    for tall, wide in shrink:
        x = centre + (contour[:, 0] - centre) * wide
        y = np.interp(x, along, middle[order, 1])
        opening = np.interp(x, along, np.abs(height[order]))
        rings.append(np.stack([x, y + tall * np.sign(height) * opening], axis=-1))
    return np.stack(rings)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Vertices of one piece with their chart; faces count from its first vertex."""

    name: str
    points: Float[np.ndarray, "v 3"]
    chart: Float[np.ndarray, "v 2"]
    uv: Float[np.ndarray, "v 2"]
    faces: Int[np.ndarray, "f 3"]
    """Negative numbers -1-i stand for vertex i of the grid."""


def _mirror(points: np.ndarray) -> np.ndarray:
    return points * np.r_[-1.0, np.ones(points.shape[-1] - 1)]


def _mirrored_block(block: _Block, name: str, chart: np.ndarray) -> _Block:
    """The same piece on the right; `chart` is the grid's, to find mirrored vertices."""
    grid_faces = block.faces < 0
    across = topology.mirror_of(chart, -1 - np.unique(block.faces[grid_faces]))
    table = dict(zip(np.unique(block.faces[grid_faces]), -1 - across, strict=True))
    faces = block.faces.copy()
    faces[grid_faces] = [table[vertex] for vertex in block.faces[grid_faces]]
    return _Block(
        name,
        _mirror(block.points),
        _mirror(block.chart),
        _mirror(block.uv - np.array([0.5, 0.0])) + np.array([0.5, 0.0]),
        faces[:, ::-1],
    )


def _ring_block(
    name: str,
    loop: Int[np.ndarray, " n"],
    rings: Float[np.ndarray, "r n 3"],
    end: Float[np.ndarray, "e 3"],
    chart: Float[np.ndarray, "s n 2"],
    inner_uv: Float[np.ndarray, "m 2"],
    edge_points: Float[np.ndarray, "n 3"],
) -> _Block:
    """Rings inside a hole of the grid, closed by a fan if there is an end point."""
    count = len(loop)
    number = np.arange(rings.shape[0] * count).reshape(-1, count)
    points = np.concatenate([rings.reshape(-1, 3), end])
    # The loop's own positions let the quads choose their diagonals.
    quads = topology.ring_quads(
        np.concatenate([np.arange(count)[None], number + count])
    )
    faces = topology.triangles(quads, np.concatenate([edge_points, points]))
    if len(end):
        faces = np.concatenate(
            [faces, topology.fan(number[-1] + count, len(points) - 1 + count)]
        )
    faces = np.where(faces < count, -1 - loop[faces % count], faces - count)
    full_chart = np.full((len(points), 2), np.nan)
    full_chart[: chart.size // 2] = chart.reshape(-1, 2)
    uv = np.concatenate([_skin_uv(chart).reshape(-1, 2), inner_uv])
    return _Block(name, points, full_chart, uv, faces)


def _lids(loop: np.ndarray, edge: np.ndarray, edge_points: np.ndarray) -> _Block:
    rings, chart = features.eye_rings(edge, features.EyeOpening())
    opposite = -np.arange(len(loop)) % len(loop)
    inner = _nested_uv(
        _skin_uv(chart[-1]), opposite, [(0.85, 0.97), (0.6, 0.92), (0.3, 0.85)]
    )
    return _ring_block(
        "left_lids",
        loop,
        rings,
        np.zeros((0, 3)),
        chart,
        inner.reshape(-1, 2),
        edge_points,
    )


def _nostril(loop: np.ndarray, edge: np.ndarray, edge_points: np.ndarray) -> _Block:
    rings, end, rim = features.nostril_rings(edge)
    flat = _skin_uv(rim)
    centre = flat.mean(axis=0)
    inner = [centre + (flat - centre) * share for share in (0.75, 0.5, 0.25)]
    inner_uv = np.concatenate([*inner, centre[None]])
    return _ring_block(
        "left_nostril", loop, rings, end[None], rim[None], inner_uv, edge_points
    )


def _mouth(loop: np.ndarray, edge: np.ndarray, edge_points: np.ndarray) -> _Block:
    rings, chart = features.mouth_rings(edge)
    count = len(loop)
    opposite = (count // 2 - np.arange(count)) % count
    ways = features.LIP_RINGS
    lips = _nested_uv(
        _skin_uv(chart[-1]),
        opposite,
        [(1.0 - 0.88 * way, 1.0 - 0.12 * way) for way in ways],
    )
    bag = _bag_uv(len(features.BAG), count)
    end = rings[-1].mean(axis=0) - np.array([0.0, 0.0, 4.0])
    return _ring_block(
        "mouth",
        loop,
        rings,
        end[None] * np.array([0.0, 1.0, 1.0]),
        chart,
        np.concatenate([lips.reshape(-1, 2), bag]),
        edge_points,
    )


def _bag_uv(num_rings: int, count: int) -> Float[np.ndarray, "m 2"]:
    """A disc: rings behind the meeting line, then the end in its middle."""
    turn = 2.0 * np.pi * np.arange(count) / count - 0.5 * np.pi
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    radii = 0.5 * np.arange(num_rings, 0, -1) / (num_rings + 1)
    rings = 0.5 + radii[:, None, None] * circle
    return _place(np.concatenate([rings.reshape(-1, 2), [[0.5, 0.5]]]), "mouth_bag")


def _place(uv: np.ndarray, island: str) -> np.ndarray:
    left, bottom, right, top = ISLANDS[island]
    return np.array([left, bottom]) + uv * np.array([right - left, top - bottom])


def _part(name: str, part: parts.Part) -> _Block:
    nowhere = np.full((len(part.points), 2), np.nan)
    return _Block(name, part.points, nowhere, _place(part.uv, name), part.faces)


def _blocks(grid: topology.Grid, skin: np.ndarray) -> list[_Block]:
    """Everything but the grid, in vertex order."""
    loops = {
        "lids": topology.perimeter(grid.index, topology.EYE_HOLE),
        "nostril": topology.perimeter(grid.index, topology.NOSTRIL_HOLE),
        "mouth": topology.perimeter(
            grid.index, topology.MOUTH_HOLE, start_at_middle=True
        ),
    }

    def around(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return loops[name], grid.chart[loops[name]], skin[loops[name]]

    lids, nostril = _lids(*around("lids")), _nostril(*around("nostril"))
    eyeball, ear = parts.eyeball(), parts.ear()
    return [
        lids,
        _mirrored_block(lids, "right_lids", grid.chart),
        nostril,
        _mirrored_block(nostril, "right_nostril", grid.chart),
        _mouth(*around("mouth")),
        _part("left_eyeball", eyeball),
        _part("right_eyeball", parts.mirrored(eyeball)),
        _part("left_ear", ear),
        _part("right_ear", parts.mirrored(ear)),
        _part("upper_teeth", parts.teeth(upper=True)),
        _part("lower_teeth", parts.teeth(upper=False)),
        _part("tongue", parts.tongue()),
    ]


def build() -> Anatomy:
    """The mean head."""
    grid = topology.grid()
    skin = shell.over_eyeball(
        shell.surface(*grid.chart.T), clearance=features.EyeOpening().thickness
    )
    blocks = _blocks(grid, skin)
    faces = [topology.triangles(grid.quads, skin), grid.crown]
    ranges, start = {"grid": slice(0, len(skin))}, len(skin)
    for block in blocks:
        local = block.faces
        faces.append(np.where(local < 0, -1 - local, local + start))
        ranges[block.name] = slice(start, start + len(block.points))
        start += len(block.points)
    points = np.concatenate([skin] + [block.points for block in blocks])
    chart = np.concatenate([grid.chart] + [block.chart for block in blocks])
    uv = np.concatenate([_skin_uv(grid.chart)] + [block.uv for block in blocks])
    all_faces = np.concatenate(faces)
    uv, uv_faces = _cut_seams(uv, all_faces, grid, ranges["mouth"])
    gum = np.zeros(len(points), bool)
    for name in ("upper_teeth", "lower_teeth"):
        gum[ranges[name]] = parts.teeth(upper=name == "upper_teeth").marks
    eye_edge = grid.chart[topology.perimeter(grid.index, topology.EYE_HOLE)]
    return Anatomy(points, all_faces, uv, uv_faces, chart, ranges, gum, eye_edge)


def _cut_seams(
    uv: Float[np.ndarray, "v 2"],
    faces: Int[np.ndarray, "f 3"],
    grid: topology.Grid,
    mouth: slice,
) -> tuple[Float[np.ndarray, "u 2"], Int[np.ndarray, "f 3"]]:
    """Adds chart points along the back, at the crown and where the mouth bag starts."""
    uv, uv_faces = uv.copy(), faces.copy()
    extra = [uv]
    first = len(uv)
    back = grid.index[:, 0]
    copies = dict(zip(back, range(first, first + len(back)), strict=True))
    extra.append(1.0 * uv[back] * np.array([-1.0, 1.0]) + np.array([1.0, 0.0]))
    first += len(back)
    skin_faces = np.flatnonzero((faces < len(grid.chart)).all(axis=1))
    crown = len(grid.chart) - 1
    for face in skin_faces:
        corners = faces[face]
        known = corners != crown
        wraps = np.ptp(uv[corners[known], 0]) > 0.5
        if wraps:
            uv_faces[face] = [copies.get(c, c) for c in corners]
        if not known.all():
            # The pole gets one chart point in the middle of each triangle's base.
            points = np.concatenate(extra)
            base = points[uv_faces[face][known], 0].mean()
            extra.append(np.array([[base, SKIN_ISLAND[3]]]))
            uv_faces[face][~known] = first
            first += 1
    count = len(topology.perimeter(grid.index, topology.MOUTH_HOLE))
    rings_before = len(features.MOUTH_RINGS) + len(features.LIP_RINGS)
    bag_start = mouth.start + rings_before * count
    meeting = np.arange(bag_start - count, bag_start)
    turn = 2.0 * np.pi * np.arange(count) / count - 0.5 * np.pi
    rim = 0.5 + 0.5 * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    inside = ((faces >= bag_start) & (faces < mouth.stop)).any(axis=1)
    is_meeting = (faces >= meeting[0]) & (faces < bag_start) & inside[:, None]
    uv_faces = np.where(is_meeting, faces - meeting[0] + first, uv_faces)
    extra.append(_place(rim, "mouth_bag"))
    return np.concatenate(extra), uv_faces
