"""The procedural head's skin as one smooth surface over a chart (column, row).

A control cage of anatomical loops, typed in millimetres, spans a uniform bicubic
B-spline; a nose and brush strokes are laid over it. Column 0 is the front midline,
9 the back midline, negative columns the subject's right. All numbers are ours, from
general anthropometry. Frame: x left, y up from the pupils, z forward from the ears.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from scipy import interpolate

NUM_COLUMNS = 10
"""Cage columns of one half of the head."""

EYE_CENTRE = np.array([31.5, 0.0, 69.0])
"""Centre of the left eyeball."""
EYE_RADIUS = 12.0

# Every row runs along a loop of the head, from the front midline to the back midline.
CAGE: Float[np.ndarray, "rows 10 3"] = np.array(
    [
        # Base of the neck, flaring into the trapezius.
        [(0, -190, 27), (17, -190, 24), (33, -188, 17), (46, -186, 7), (56, -182, -6)]
        + [
            (63, -178, -22),
            (67, -173, -40),
            (58, -168, -61),
            (34, -164, -77),
            (0, -162, -82),
        ],
        # Lower neck.
        [(0, -169, 30), (17, -169, 27), (31, -168, 18), (42, -167, 6), (50, -165, -8)]
        + [
            (54.5, -161, -23),
            (56, -156, -40),
            (48, -151, -58),
            (28, -147, -72),
            (0, -145, -77),
        ],
        # Larynx.
        [(0, -145, 37), (16, -145, 31.5), (30, -147, 21), (40, -147, 8), (47, -146, -6)]
        + [
            (50, -144, -19),
            (50, -141, -34),
            (43, -136, -50),
            (26, -131, -65),
            (0, -129, -70),
        ],
        # Hyoid, where throat meets the floor of the mouth.
        [
            (0, -122, 43),
            (17, -122.5, 39),
            (31, -123.5, 29),
            (42, -124.5, 13.5),
            (48.5, -126, -3),
        ]
        + [
            (51, -124, -16),
            (50.5, -120, -31),
            (44.5, -115, -49),
            (26, -110, -65),
            (0, -108, -70),
        ],
        # Floor of the mouth.
        [(0, -115.5, 63), (17, -114.5, 58.5), (31, -112, 45.5), (43, -108, 26.5)]
        + [(51.5, -105, 7), (53.5, -101, -9), (53, -96, -27), (46, -91, -47)]
        + [(27, -86, -66), (0, -84, -72)],
        # Lower border of the mandible, chin to gonion, then behind the ear lobe.
        [(0, -113, 86.5), (14.5, -112, 82), (29, -106.5, 69), (42, -97, 49)]
        + [
            (51, -86, 29),
            (55.5, -74, 11),
            (56, -66, -8),
            (51, -65, -38),
            (32, -63, -66),
            (0, -61, -76),
        ],
        # Pogonion, then along the ramus.
        [(0, -100, 96), (13.5, -100, 91.5), (29, -95, 79), (44.5, -86, 55)]
        + [
            (55, -76, 33),
            (59.5, -65, 14),
            (60.5, -55, -7),
            (58, -51, -38),
            (37, -47, -72),
            (0, -45, -84),
        ],
        # Fold between lip and chin.
        [
            (0, -87, 95),
            (15.5, -87, 91.5),
            (32, -83, 79),
            (47.5, -76, 57.5),
            (58.5, -66, 35),
        ]
        + [
            (63.5, -55, 14),
            (65, -45, -7),
            (62, -40, -40),
            (42, -35, -77),
            (0, -32, -91),
        ],
        # Lower lip.
        [(0, -76, 99.5), (17, -75.5, 93.2), (34, -73, 78.6), (50, -66, 58)]
        + [(61, -56, 35), (66, -46, 15), (67, -36, -7), (65, -29, -41), (46, -23, -80)]
        + [(0, -20, -95)],
        # Mouth.
        [(0, -66, 101), (17, -66, 94.5), (34.5, -63, 79.3), (51, -57, 60)]
        + [(62.5, -47, 37), (67.5, -37, 16), (68.5, -27, -7), (67, -19, -42)]
        + [(48, -12, -83), (0, -8, -97.5)],
        # Upper lip.
        [
            (0, -56, 101.7),
            (17, -56, 95.2),
            (35, -53, 81.9),
            (52, -47, 63),
            (64, -38, 40),
        ]
        + [(69, -28, 17), (69.5, -18, -7), (69, -10, -43), (50, -2, -85), (0, 2, -98)],
        # Below the nose.
        [(0, -45, 100), (18, -45, 92.5), (36, -42, 82.5), (53, -36, 65)]
        + [(65.5, -28, 42), (70, -19, 18), (70.5, -9, -7), (70.5, 0, -43)]
        + [(52, 9, -86), (0, 13, -98)],
        # Cheek.
        [(0, -32, 96), (18, -31, 88.5), (36, -29, 81), (53.5, -25, 66.5)]
        + [(66, -18, 44), (70.5, -10, 19), (71, 0, -7), (72, 10, -43), (54, 20, -86)]
        + [(0, 24, -97)],
        # Cheekbone and orbital floor.
        [(0, -18, 92), (17, -18, 85), (35, -17, 79), (53, -14, 68), (65.5, -9, 45)]
        + [(70, -2, 19), (71, 9, -7), (73.5, 20, -43), (55, 31, -85), (0, 35, -96)],
        # Eyes.
        [(0, -3, 88), (15.5, -3, 80.5), (33, -3, 77), (50, -2, 69), (62.5, 1, 45.5)]
        + [(69, 7, 19), (71.5, 18, -7), (74.5, 30, -43), (56, 42, -83), (0, 46, -93)],
        # Root of the nose and upper orbit.
        [(0, 10, 91), (15, 10, 87.5), (32, 10, 84.3), (49, 10, 72), (61, 12, 48)]
        + [(68, 17, 20), (72, 28, -7), (75, 40, -42), (56, 53, -80), (0, 57, -88.5)],
        # Brows.
        [(0, 22, 96.5), (15, 23, 94), (32, 24, 87), (47.5, 24, 72), (59, 24, 48)]
        + [(67, 29, 20), (72, 40, -7), (74.5, 52, -41), (54, 65, -74), (0, 69, -81)],
        # Forehead.
        [(0, 41, 95.5), (15, 41, 92.5), (31, 41, 84.5), (46, 41, 68.5), (57.5, 41, 46)]
        + [(66, 44, 19), (71, 54, -8), (71.5, 65, -39), (50, 78, -65), (0, 81, -71)],
        # Upper forehead.
        [(0, 60, 90), (15, 60, 87.5), (30, 60, 79.5), (44.5, 59, 63.5), (56, 58, 42)]
        + [(63.5, 61, 16), (67, 69, -9), (64.5, 79, -35), (43, 89, -54), (0, 92, -58)],
        # Hairline.
        [(0, 79, 79), (14, 79, 76.5), (28, 78.5, 69), (42, 77, 54), (51.5, 75.5, 34)]
        + [(57.5, 77.5, 12), (60, 84, -10), (56, 91.5, -32), (37, 98.5, -45)]
        + [(0, 101, -45)],
        [(0, 97, 59), (13, 97, 57), (26, 96, 51), (38, 95, 40), (46, 94, 25)]
        + [(50, 95, 8), (49, 99, -10), (43, 103, -25), (27, 106, -33), (0, 107.5, -35)],
        [(0, 110, 34), (9, 110, 32.5), (18, 109.5, 28), (26, 109, 21), (31, 108.5, 12)]
        + [(33, 109, 2), (31, 110, -9), (25, 111.5, -16), (15, 112.5, -20)]
        + [(0, 113, -21)],
        # Crown: the pole of the chart.
        [(0, 115, 5)] * 10,
    ]
)
NUM_ROWS = len(CAGE)


@dataclasses.dataclass(frozen=True)
class Stroke:
    """A soft push: millimetres along a direction, Gaussian around a centre.

    Strokes act on both sides of the face; x components point outwards.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    push: tuple[float, float, float]


def falloff(
    points: Float[np.ndarray, "*b 3"],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> Float[np.ndarray, "*b"]:
    """Gaussian of the scaled distance to a centre, one there."""
    offset = (points - np.array(centre)) / np.array(radii)
    return np.exp(-np.sum(offset * offset, axis=-1))


def strokes(
    points: Float[np.ndarray, "*b 3"], brushes: tuple[Stroke, ...]
) -> Float[np.ndarray, "*b 3"]:
    """Sum of strokes and of their mirror images, at points in millimetres."""
    side = np.sign(points[..., :1])
    folded = np.concatenate([np.abs(points[..., :1]), points[..., 1:]], axis=-1)
    total = np.zeros_like(points)
    for brush in brushes:
        weight = falloff(folded, brush.centre, brush.radii)
        total += weight[..., None] * np.array(brush.push)
    total[..., :1] *= side
    return total


def _extended(points: Float[np.ndarray, "r 10 3"]) -> Float[np.ndarray, "r2 12 3"]:
    """The cage with a mirrored column at each midline and a ghost row at each end."""
    mirrored = points * np.array([-1.0, 1.0, 1.0])
    wide = np.concatenate([mirrored[:, 1:2], points, mirrored[:, -2:-1]], axis=1)
    below = 2.0 * wide[:1] - wide[1:2]
    # Over the pole the surface goes on down the opposite side of the head.
    beyond = mirrored[-2:-1, ::-1]
    beyond = np.concatenate([points[-2:-1, -2:-1], beyond, points[-2:-1, 1:2]], axis=1)
    return np.concatenate([below, wide, beyond], axis=0)


def _basis(fraction: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b 4"]:
    """Uniform cubic B-spline weights of four neighbouring control points."""
    u = fraction[..., None]
    return np.concatenate(
        [
            (1 - u) ** 3,
            3 * u**3 - 6 * u**2 + 4,
            -3 * u**3 + 3 * u**2 + 3 * u + 1,
            u**3,
        ],
        axis=-1,
    ) / np.array(6.0)


def _spline(
    control: Float[np.ndarray, "r 12 3"],
    column: Float[np.ndarray, "*b"],
    row: Float[np.ndarray, "*b"],
) -> Float[np.ndarray, "*b 3"]:
    first_row = np.clip(np.floor(row).astype(int), 0, NUM_ROWS - 2)
    first_column = np.clip(np.floor(column).astype(int), 0, NUM_COLUMNS - 2)
    row_weights = _basis(row - first_row)
    column_weights = _basis(column - first_column)
    total = np.zeros(column.shape + (3,))
    for i in range(4):
        for j in range(4):
            weight = row_weights[..., i] * column_weights[..., j]
            total += weight[..., None] * control[first_row + i, first_column + j]
    return total


@functools.cache
def _control() -> Float[np.ndarray, "r 12 3"]:
    """Control points whose spline passes close to the cage.

    Two corrections, not an interpolation: what they leave out is the unevenness of
    numbers typed by hand.
    """
    row, column = np.meshgrid(
        np.arange(NUM_ROWS, dtype=float),
        np.arange(NUM_COLUMNS, dtype=float),
        indexing="ij",
    )
    points = CAGE.copy()
    for _ in range(2):
        points = points + 0.8 * (CAGE - _spline(_extended(points), column, row))
        points[:, [0, -1], 0] = 0.0
        points[-1] = points[-1].mean(axis=0)
    return _extended(points)


def shell(
    column: Float[np.ndarray, "*b"], row: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b 3"]:
    """The head without nose, lids and lips, at chart points, in millimetres."""
    points = _spline(_control(), np.abs(column), row)
    points[..., 0] *= np.where(column < 0, -1.0, 1.0)
    return points


def chart_points(
    x: Float[np.ndarray, "*b"], y: Float[np.ndarray, "*b"]
) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    """Column and row where the front of the shell has the given x and y.

    Newton's method from a linear guess, with a numerical Jacobian.
    """
    column, row = np.abs(x) / 16.5, 14.0 + y / np.where(y > 0, 12.0, 13.0)
    step = 1e-4
    for _ in range(12):
        here = shell(column, row)
        by_column = (shell(column + step, row) - here) / step
        by_row = (shell(column, row + step) - here) / step
        miss_x, miss_y = here[..., 0] - np.abs(x), here[..., 1] - y
        determinant = (
            by_column[..., 0] * by_row[..., 1] - by_column[..., 1] * by_row[..., 0]
        )
        column = column - np.clip(
            (miss_x * by_row[..., 1] - miss_y * by_row[..., 0]) / determinant, -1, 1
        )
        row = row - np.clip(
            (miss_y * by_column[..., 0] - miss_x * by_column[..., 1]) / determinant,
            -1,
            1,
        )
        column = np.clip(column, 0.0, 6.0)
    return np.where(x < 0, -column, column), row


# The nose by the y of the shell that it covers: its midline in profile (y, z), the
# half width where it meets the cheek, and how broad its back is.
NOSE: Float[np.ndarray, "n 5"] = np.array(
    [
        # on shell   y      z    width  back
        (26.0, 26.0, 97.0, 17.0, 1.9),
        (16.0, 16.0, 96.6, 14.0, 1.9),
        (8.0, 8.0, 94.4, 11.8, 1.8),
        (0.0, 0.0, 96.6, 12.0, 1.7),
        (-8.0, -8.5, 102.3, 13.2, 1.7),
        (-16.0, -17.0, 107.9, 14.6, 1.7),
        (-23.0, -25.0, 113.0, 15.9, 1.75),
        (-29.0, -31.5, 117.3, 17.0, 1.85),
        (-34.0, -36.5, 119.3, 17.8, 2.0),
        (-38.0, -41.2, 117.6, 18.0, 2.1),
        (-41.0, -44.0, 112.9, 17.8, 2.2),
        (-44.0, -45.8, 106.4, 17.0, 2.2),
        (-47.5, -48.0, 102.2, 15.5, 2.0),
        (-54.0, -54.0, 101.8, 14.0, 1.9),
    ]
)

RELIEF: tuple[Stroke, ...] = (
    # Orbits.
    Stroke((17.0, 4.0, 82.0), (7.0, 9.0, 14.0), (0.0, 0.0, -1.5)),
    Stroke((34.0, 11.0, 82.0), (14.0, 5.5, 16.0), (0.0, 0.0, -1.2)),
    # Brow ridge.
    Stroke((22.0, 20.0, 92.0), (15.0, 6.0, 16.0), (0.0, 0.0, 1.0)),
    Stroke((43.0, 19.5, 78.0), (9.0, 6.0, 14.0), (0.6, 0.0, 1.0)),
    # Cheekbone.
    Stroke((47.0, -20.0, 70.0), (13.0, 10.0, 16.0), (1.0, 0.0, 1.6)),
    # Room for the bowl of the ear.
    Stroke((70.5, -7.0, -9.0), (14.0, 13.0, 10.0), (-4.0, 0.0, 0.0)),
    # Chin.
    Stroke((0.0, -101.0, 98.0), (13.0, 9.0, 20.0), (0.0, 0.0, 1.8)),
    # Fold from the nose to the corner of the mouth, and the cheek over it.
    Stroke((22.5, -46.0, 92.0), (5.0, 8.0, 14.0), (0.0, 0.0, -0.9)),
    Stroke((28.5, -57.0, 87.0), (5.0, 8.0, 14.0), (0.0, 0.0, -0.7)),
    Stroke((34.0, -44.0, 83.0), (11.0, 13.0, 18.0), (0.2, 0.0, 1.0)),
    # Beside the mouth.
    Stroke((31.0, -68.0, 84.0), (5.5, 7.0, 14.0), (0.2, 0.0, 0.8)),
    # From the inner corner of the eye down the cheek.
    Stroke((22.0, -13.0, 84.0), (6.0, 5.0, 14.0), (0.0, 0.0, -0.7)),
    # Sternocleidomastoid, its two pits and the larynx.
    Stroke((53.0, -95.0, -8.0), (9.0, 28.0, 10.0), (1.2, 0.0, 0.6)),
    Stroke((44.0, -130.0, 8.0), (8.0, 24.0, 9.0), (1.4, 0.0, 1.4)),
    Stroke((30.0, -165.0, 18.0), (8.0, 22.0, 10.0), (0.9, 0.0, 1.8)),
    Stroke((16.0, -188.0, 25.0), (7.0, 16.0, 10.0), (0.3, 0.0, 2.2)),
    Stroke((0.0, -192.0, 27.0), (8.0, 14.0, 12.0), (0.0, 0.0, -3.2)),
    Stroke((24.0, -140.0, 28.0), (8.0, 20.0, 12.0), (-0.6, 0.0, -1.4)),
    Stroke((0.0, -146.0, 37.0), (8.0, 10.0, 14.0), (0.0, 0.0, 1.6)),
)


def _nose(points: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """The push that raises the nose out of shell points."""
    x, y = np.abs(points[..., 0]), points[..., 1]
    order = slice(None, None, -1)
    columns = interpolate.PchipInterpolator(NOSE[order, 0], NOSE[order, 1:], axis=0)(
        np.clip(y, NOSE[-1, 0], NOSE[0, 0])
    )
    midline_y, midline_z, width, back = np.moveaxis(columns, -1, 0)
    inside = (y < NOSE[0, 0]) & (y > NOSE[-1, 0]) & (points[..., 2] > 50.0)
    height = np.clip(1.0 - (x / width) ** back, 0.0, 1.0) ** 1.5
    row_z = shell(*_midline_chart(y))[..., 2]
    push_z = np.where(inside, (midline_z - row_z) * height, 0.0)
    push_y = np.where(inside, (midline_y - y) * np.sqrt(height), 0.0)
    return np.stack([np.zeros_like(x), push_y, push_z], axis=-1)


def _midline_chart(
    y: Float[np.ndarray, "*b"],
) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    rows = np.linspace(5.0, 18.0, 400)
    heights = shell(np.zeros_like(rows), rows)[:, 1]
    return np.zeros_like(y), np.interp(y, heights, rows)


NOSE_RELIEF: tuple[Stroke, ...] = (
    # Tip.
    Stroke((0.0, -36.0, 118.0), (7.5, 6.5, 14.0), (0.0, 0.0, 1.2)),
    Stroke((0.0, -28.0, 113.0), (7.0, 4.0, 14.0), (0.0, 0.0, -0.5)),
    # Wings and the crease around them.
    Stroke((13.2, -39.5, 99.0), (5.0, 5.2, 12.0), (1.9, 0.2, 3.4)),
    Stroke((17.0, -32.0, 97.0), (3.6, 3.0, 12.0), (0.0, 0.0, -1.0)),
    Stroke((12.5, -30.2, 101.0), (4.0, 2.8, 12.0), (0.0, 0.0, -0.7)),
    Stroke((8.6, -36.0, 109.0), (2.4, 4.5, 12.0), (0.0, 0.0, -0.8)),
    Stroke((19.5, -37.5, 92.0), (3.0, 6.0, 12.0), (0.0, 0.0, -1.2)),
    # Philtrum.
    Stroke((0.0, -52.5, 101.0), (3.0, 5.0, 10.0), (0.0, 0.0, -0.8)),
    Stroke((5.6, -52.5, 101.0), (2.6, 6.0, 10.0), (0.0, 0.0, 0.55)),
)


def _dome(squared: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Square root, going on in a straight line below 0.1: a ball over its outline."""
    root = np.sqrt(np.maximum(squared, 0.1))
    return root + np.minimum(squared - 0.1, 0.0) / (2.0 * np.sqrt(0.1))


def surface(
    column: Float[np.ndarray, "*b"], row: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b 3"]:
    """The skin without the lids' ride on the eyeballs, in millimetres."""
    points = shell(column, row)
    points = points + strokes(points, RELIEF)
    raised = points + _nose(points)
    return raised + strokes(raised, NOSE_RELIEF)


def over_eyeball(
    points: Float[np.ndarray, "*b 3"], *, clearance: Float[np.ndarray, "*#b"] | float
) -> Float[np.ndarray, "*b 3"]:
    """Skin pushed forward so that it stays `clearance` mm above the eyeballs.

    A soft maximum of the skin's z and that of the larger sphere.
    """
    radius = EYE_RADIUS + clearance
    across = np.abs(points[..., 0]) - EYE_CENTRE[0]
    offset = np.hypot(across, points[..., 1] - EYE_CENTRE[1])
    sphere = EYE_CENTRE[2] + radius * _dome(1.0 - (offset / radius) ** 2)
    # Crisp on the lids, soft where they run out into cheek and brow.
    share = np.clip((offset - 9.0) / 9.0, 0.0, 1.0)
    softness = 0.9 + 1.6 * share * share * (3.0 - 2.0 * share)
    lifted = points.copy()
    front = points[..., 2] > 40.0
    lifted[..., 2] = softness * np.logaddexp(
        points[..., 2] / softness, np.where(front, sphere, -1e3) / softness
    )
    return lifted
