"""Loose parts of the procedural head: eyeballs, ears, teeth with gums, tongue.

Each is a patch of quads (and fans at poles) with a chart island of its own in the
unit square. Millimetres, left side, the frame of `procedural_shell`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from geodiff_jax.head import procedural_shell as shell
from geodiff_jax.head import procedural_topology as topology


@dataclasses.dataclass(frozen=True)
class Part:
    """A patch of surface with its own chart."""

    points: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    uv: Float[np.ndarray, "v 2"]
    """Chart of each vertex in the unit square."""
    marks: Bool[np.ndarray, " v"]
    """Gum instead of enamel on teeth; otherwise unused."""


def mirrored(part: Part) -> Part:
    """The part of the other side, with its winding kept outwards."""
    return dataclasses.replace(
        part,
        points=part.points * np.array([-1.0, 1.0, 1.0]),
        faces=part.faces[:, ::-1],
        uv=part.uv * np.array([-1.0, 1.0]) + np.array([1.0, 0.0]),
    )


def _disc(
    rings: Float[np.ndarray, "r n 3"],
    centre: Float[np.ndarray, "3"],
    radii: Float[np.ndarray, " r"],
) -> Part:
    """A patch around a centre; rings run counter-clockwise, innermost first.

    `radii` are the rings' in the chart, up to 0.5.
    """
    count = rings.shape[1]
    number = np.arange(rings.shape[0] * count).reshape(rings.shape[0], count)
    points = np.concatenate([rings.reshape(-1, 3), centre[None]])
    quads = topology.ring_quads(number[::-1])
    faces = np.concatenate(
        [topology.triangles(quads, points), topology.fan(number[0], len(points) - 1)]
    )
    turn = 2.0 * np.pi * np.arange(count) / count
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    uv = 0.5 + np.concatenate(
        [(radii[:, None, None] * circle).reshape(-1, 2), [[0.0, 0.0]]]
    )
    return Part(points, faces, uv, np.zeros(len(points), bool))


def _sheet(points: Float[np.ndarray, "r n 3"], marks: Bool[np.ndarray, "r n"]) -> Part:
    """A patch of rows and columns; up the rows and along the columns is outwards."""
    num_rows, num_columns = points.shape[:2]
    number = np.arange(num_rows * num_columns).reshape(num_rows, num_columns)
    quads = np.stack(
        [number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]], axis=-1
    ).reshape(-1, 4)
    flat = points.reshape(-1, 3)
    faces = topology.triangles(quads, flat)
    v, u = np.meshgrid(
        np.linspace(0, 1, num_rows), np.linspace(0, 1, num_columns), indexing="ij"
    )
    uv = np.stack([u.ravel(), v.ravel()], axis=1)
    return Part(flat, faces, uv, marks.ravel())


EYEBALL_ANGLES = np.radians(
    [4.5, 9.2, 15.0, 22.0, 29.4, 34.0, 42.0, 54.0, 72.0, 95.0, 120.0, 148.0, 176.0]
)
"""Rings of the eyeball from its pole; pupil and iris end at the second and fifth."""
CORNEA_BULGE = 0.45


def eyeball(*, sectors: int = 24) -> Part:
    """The left eyeball, looking along z."""
    turn = 2.0 * np.pi * np.arange(sectors) / sectors
    bulge = CORNEA_BULGE * np.clip(1 - (EYEBALL_ANGLES / np.radians(34)) ** 2, 0, 1)
    radius = (shell.EYE_RADIUS + bulge)[:, None]
    sine, cosine = np.sin(EYEBALL_ANGLES)[:, None], np.cos(EYEBALL_ANGLES)[:, None]
    rings = np.stack(
        [
            radius * sine * np.cos(turn),
            radius * sine * np.sin(turn),
            radius * cosine * np.ones(sectors),
        ],
        axis=-1,
    )
    apex = np.array([0.0, 0.0, shell.EYE_RADIUS + CORNEA_BULGE])
    # The front half gets three quarters of the chart.
    radii = 0.5 * np.interp(EYEBALL_ANGLES, np.radians([0, 60, 180]), [0, 0.75, 1.0])
    return _disc(rings + shell.EYE_CENTRE, apex + shell.EYE_CENTRE, radii)


# Outline of the left ear seen from its side, (backwards, up) from the ear canal, mm,
# counter-clockwise for somebody looking at it from the left, starting at the tragus.
EAR_OUTLINE = np.array(
    [(-3, -2), (-4.5, 6), (-4, 14), (-1, 22), (6, 28.5), (15, 30), (23, 26.5)]
    + [(28.5, 18), (29.5, 8), (27, -3), (23.5, -12), (18.8, -21.5), (14, -29)]
    + [(7.5, -34), (1.0, -32.5), (-3.5, -25), (-4, -17), (-3.5, -9)],
    float,
)
EAR_CENTRE = np.array([7.0, 0.0])
# Ridges as polylines with (height, width) in mm: helix, antihelix, crura, tragus.
EAR_RIDGES = (
    (
        np.array(
            [(4, 1), (0, 4), (-2, 12), (1, 21), (7, 26.5), (15, 27.5), (21.5, 24)]
            + [(26, 17), (27, 8), (24.5, -3), (20.8, -12), (16.5, -20)],
            float,
        ),
        4.4,
        2.7,
    ),
    (
        np.array(
            [(10, -15), (15, -11), (18.5, -3), (18, 6), (14, 13), (12, 20)], float
        ),
        4.4,
        3.3,
    ),
    (np.array([(17, 8), (11, 10.5), (4, 12)], float), 2.2, 2.6),
    (np.array([(-2.5, -4), (-1.5, 1)], float), 4.5, 3.2),
    (np.array([(6, -14.5), (10, -13.5)], float), 2.6, 2.8),
)


def _distance_to_polyline(
    points: Float[np.ndarray, "*b 2"], line: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "*b"]:
    start, way = line[:-1], np.diff(line, axis=0)
    offset = points[..., None, :] - start
    share = np.clip((offset * way).sum(-1) / (way * way).sum(-1), 0.0, 1.0)
    return np.linalg.norm(offset - share[..., None] * way, axis=-1).min(axis=-1)


def _rounded(line: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """The polyline as a smooth curve of many points."""
    if len(line) < 3:
        return line
    at = np.arange(len(line), dtype=float)
    spline = shell.interpolate.CubicSpline(at, line)
    return spline(np.linspace(0, at[-1], 6 * len(line)))


def _ear_relief(flat: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b"]:
    """Height over the ear's plane, mm."""
    # A soft maximum, so that ridges run into each other.
    height = np.full(flat.shape[:-1], -1.0)
    for line, tall, wide in EAR_RIDGES:
        distance = _distance_to_polyline(flat, _rounded(line))
        ridge = tall * np.exp(-((distance / wide) ** 2))
        height = np.logaddexp(2.0 * height, 2.0 * ridge) / 2.0
    concha = np.exp(
        -(
            (((flat[..., 0] - 7.0) / 8.0) ** 2 + ((flat[..., 1] + 2.0) / 10.0) ** 2)
            ** 1.5
        )
    )
    lobe = np.exp(
        -(
            (((flat[..., 0] - 5.0) / 9.0) ** 2 + ((flat[..., 1] + 26.0) / 7.5) ** 2)
            ** 1.5
        )
    )
    # The front edge runs under the skin of the cheek.
    front = np.clip((-flat[..., 0] - 0.5) / 3.5, 0.0, 1.0)
    return height - 7.0 * concha + 2.2 * lobe - 3.5 * front * front


EAR_RINGS = np.array(
    [0.12, 0.25, 0.37, 0.48, 0.58, 0.67, 0.75, 0.82, 0.88, 0.94, 0.98, 1.0]
)
# Behind the rim: share of the outline, mm behind the rim's height.
EAR_BACK = ((1.005, 2.2), (0.96, 3.8), (0.86, 6.0), (0.72, 12.0), (0.6, 22.0))


def ear(*, sectors: int = 40) -> Part:
    """The left ear, tilted back and standing off the head; its back ends inside it."""
    knots = np.concatenate([EAR_OUTLINE, EAR_OUTLINE[:1]])
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))]
    spline = shell.interpolate.CubicSpline(length, knots, bc_type="periodic")
    outline = spline(np.linspace(0, length[-1], sectors, endpoint=False)) - EAR_CENTRE
    flat = EAR_CENTRE + EAR_RINGS[:, None, None] * outline
    front = np.concatenate([flat, _ear_relief(flat)[..., None]], axis=-1)
    back = [
        np.concatenate(
            [EAR_CENTRE + share * outline, (front[-1, :, 2] - drop)[:, None]], axis=-1
        )
        for share, drop in EAR_BACK
    ]
    # The list runs clockwise seen from outside, where backwards is to the left.
    rings = _place_ear(np.concatenate([front, np.stack(back)]))[:, ::-1]
    centre = np.r_[EAR_CENTRE, _ear_relief(EAR_CENTRE[None])]
    radii = 0.5 * np.linspace(0, 1, len(rings) + 1)[1:]
    return _disc(rings, _place_ear(centre), radii)


def _place_ear(local: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Ear coordinates (backwards, up, outwards) to the head's frame."""
    flare, tilt = np.radians(24.0), np.radians(12.0)
    back, up, out = np.moveaxis(local, -1, 0)
    x = out * np.cos(flare) + (back + 4.0) * np.sin(flare)
    along = back * np.cos(flare) - out * np.sin(flare)
    z = -(along * np.cos(tilt) + up * np.sin(tilt))
    y = up * np.cos(tilt) - along * np.sin(tilt)
    return np.stack([71.5 + x, y - 6.0, z - 2.0], axis=-1)


# Half a tooth row from the midline: width, length and cusp roundness of each crown, mm.
UPPER_CROWNS = np.array(
    [(8.5, 10.3, 1.0), (6.7, 9.0, 1.2), (7.6, 10.0, 2.4), (7.0, 8.3, 2.0)]
    + [(6.8, 7.8, 1.8), (10.0, 7.3, 1.2)]
)
LOWER_CROWNS = np.array(
    [(5.4, 8.8, 0.7), (5.9, 9.0, 0.9), (6.9, 10.0, 2.0), (7.0, 8.5, 1.9)]
    + [(7.0, 8.0, 1.6), (10.5, 7.2, 1.2)]
)
TOOTH_ACROSS = np.array([0.0, 0.13, 0.5, 0.87])
# Rows of a tooth strip: front of the gum, neck, crown, edge, back.
NUM_TOOTH_ROWS = 10


def _tooth_columns(
    crowns: Float[np.ndarray, "n 3"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arc length from the midline, tooth and place across it, for the left half."""
    starts = np.r_[0.0, np.cumsum(crowns[:, 0])]
    tooth = np.repeat(np.arange(len(crowns)), len(TOOTH_ACROSS))
    across = np.tile(TOOTH_ACROSS, len(crowns))
    arc = starts[tooth] + across * crowns[tooth, 0]
    return (
        np.append(arc, starts[-1]),
        np.append(tooth, len(crowns) - 1),
        np.append(across, 1.0),
    )


def teeth(*, upper: bool) -> Part:
    """A row of twelve crowns with scalloped gums, the strip folded over their edges."""
    crowns = UPPER_CROWNS if upper else LOWER_CROWNS
    arc, tooth, across = _tooth_columns(crowns)
    arc = np.r_[-arc[:0:-1], arc]
    tooth, across = np.r_[tooth[:0:-1], tooth], np.r_[across[:0:-1], across]
    x, z, normal = _arch(arc, front=94.0 if upper else 91.2, width=1.0)
    centred = 2.0 * across - 1.0
    belly = np.sqrt(np.clip(1.0 - np.abs(centred) ** 4, 0.0, 1.0))
    gum_y = (crowns[tooth, 1] - 2.2 * np.abs(centred) ** 2.2) * 1.0
    edge_y = crowns[tooth, 2] * np.abs(centred) ** 2.5 * 0.8 + np.where(
        tooth == 1, 0.7, 0.0
    )
    # Each row: height between edge (0) and gum line (1) or mm above it; mm forward.
    rows = []
    for height, beyond, forward, scallop in (
        (1.0, 9.0, -0.5, 0.3),
        (1.0, 4.0, 1.0, 0.5),
        (1.0, 0.7, 0.9, 0.9),
        (1.0, 0.0, 0.1, 1.0),
        (0.72, 0.0, 0.7, 1.0),
        (0.4, 0.0, 0.75, 1.0),
        (0.08, 0.0, 0.1, 1.0),
        (0.0, 0.0, -0.8, 1.0),
        (0.35, 0.0, -2.6, 1.0),
        (1.0, 2.0, -4.5, 0.5),
    ):
        y = edge_y + height * (gum_y - edge_y) + beyond
        notch = np.where(beyond > 0, -0.25, -1.3) * (1.0 - belly) * scallop
        out = forward + notch
        rows.append(
            np.stack([x + normal[:, 0] * out, y, z + normal[:, 1] * out], axis=-1)
        )
    points = np.stack(rows)
    gum = np.zeros(points.shape[:2], bool)
    gum[[0, 1, 2, 9]] = True
    if upper:
        points[..., 1] += -69.6
        return _sheet(points[::-1], gum[::-1])
    points[..., 1] = -68.0 - points[..., 1]
    return _sheet(points, gum)


def _arch(
    arc: Float[np.ndarray, " n"], *, front: float, width: float
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "n 2"]]:
    """Points and outward normals (x, z) on the dental arch at signed arc lengths."""
    x = np.linspace(0.0, 34.0, 400)
    drop = x**2 / 26.0 + (x / 27.0) ** 6 * 6.0
    length = np.r_[0.0, np.cumsum(np.hypot(np.diff(x), np.diff(drop)))]
    at = np.interp(np.abs(arc) * width, length, x)
    slope = at / 13.0 + 6.0 * (at / 27.0) ** 5 * 6.0 / 27.0
    normal = np.stack([np.sign(arc) * slope, np.ones_like(at)], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    z = front - at**2 / 26.0 - (at / 27.0) ** 6 * 6.0
    return np.sign(arc) * at, z, normal


def tongue(*, num_rows: int = 9, num_columns: int = 9) -> Part:
    """The tongue at rest behind the lower teeth, tip forward."""
    across = np.linspace(-1.0, 1.0, num_columns)
    rows = []
    for way in np.linspace(0.0, 1.0, num_rows):
        wide = 17.0 * np.sqrt(np.clip(1.0 - (0.97 * way) ** 3.0, 0.0, 1.0))
        angle = 0.5 * np.pi * across
        z = 48.0 + 38.5 * way - 2.0 * across**2
        y = (
            -77.5
            + 6.0 * np.cos(angle) * (1 - 0.6 * way**3)
            - 1.2 * np.exp(-((across / 0.18) ** 2)) * (1 - way**4)
        )
        rows.append(np.stack([wide * np.sin(angle), y, np.full_like(y, 1.0) * z], -1))
    # Rows run backwards so that the upper side is outwards.
    points = np.stack(rows[::-1])
    return _sheet(points, np.zeros(points.shape[:2], bool))
