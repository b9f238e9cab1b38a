"""Eyelids, lips and nostrils of the procedural head: rings that refill its holes.

Rings are evaluated for a given opening of the lids, so that closing them is the
difference of two evaluations. Millimetres, the frame of `procedural_shell`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from geodiff_jax.head import procedural_shell as shell

EYE_RINGS = np.array([0.8, 0.62, 0.46, 0.32, 0.2, 0.1, 0.0])
"""Distance from the lid margin, as a share of that to the hole's edge."""
LID_RIM = 1.2
"""Depth of the wet rim behind the margin of the lids, mm."""
LID_END = 9.5
"""Distance from the eye's centre at which the lids' inner side ends, mm."""


@dataclasses.dataclass(frozen=True)
class EyeOpening:
    """The palpebral fissure of the left eye, millimetres from the eye's centre."""

    inner: tuple[float, float] = (-14.4, -2.1)
    outer: tuple[float, float] = (13.5, 0.9)
    upper: float = 5.9
    """Height of the upper margin over the line between the corners."""
    lower: float = 4.6
    crease: float = 1.0
    """Depth of the fold above the upper lid."""
    thickness: float = 1.6
    """Of the lids in front of the eyeball."""
    closure: tuple[float, float] = (0.0, 0.0)
    """Share of its way the upper margin has gone to the lower; the lower's rise, mm."""


def eye_margins(
    share: Float[np.ndarray, " n"], opening: EyeOpening
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Upper and lower lid margins at shares of the way from inner to outer corner."""
    ease = 0.25 * share + 0.75 * (0.5 - 0.5 * np.cos(np.pi * share))
    inner, outer = np.array(opening.inner), np.array(opening.outer)
    line = inner + (outer - inner) * ease[:, None]
    power_upper = 1.1 - 0.35 * share
    power_lower = 1.0 - 0.25 * share
    upper = np.sin(np.pi * ease**0.92) ** power_upper * opening.upper
    lower = np.sin(np.pi * ease**1.12) ** power_lower * opening.lower
    closed, risen = opening.closure
    # Near the corners both margins go to a line between them.
    corner = 0.45 * (
        np.exp(-((share / 0.16) ** 2)) + np.exp(-(((1 - share) / 0.16) ** 2))
    )
    # The duct at the inner corner stays ajar, else its slivers turn over.
    closing = closed * (1.0 - np.exp(-((share / 0.06) ** 2)))
    rise = risen * np.sin(np.pi * share) ** 2 + closing * corner * (upper + lower)
    lower = lower - rise
    upper = upper - (lower + upper) * closing
    raise_by = np.array([0.0, 1.0])
    return line + upper[:, None] * raise_by, line - lower[:, None] * raise_by


def eye_rings(
    edge: Float[np.ndarray, "n 2"], opening: EyeOpening
) -> tuple[Float[np.ndarray, "r n 3"], Float[np.ndarray, "s n 2"]]:
    """Rings of the left eye and their chart points; `edge` is the hole's, in the chart.

    The edge starts at the inner corner and runs along the lower lid first.
    """
    half = len(edge) // 2
    share = np.arange(half + 1) / half
    upper, lower = eye_margins(share, opening)
    margin = np.concatenate([lower, upper[-2:0:-1]]) + shell.EYE_CENTRE[:2]
    chart = np.stack(shell.chart_points(margin[:, 0], margin[:, 1]), axis=1)
    blend = EYE_RINGS[:, None, None] ** 1.1
    skin_chart = chart + (edge - chart) * blend
    points = shell.surface(skin_chart[..., 0], skin_chart[..., 1])
    upper_share = np.zeros(len(edge))
    upper_share[half + 1 :] = np.sin(np.pi * share[-2:0:-1]) ** 0.7
    ring = EYE_RINGS[:, None]
    fold = np.exp(-(((ring - 0.36) / 0.13) ** 2)) * upper_share * opening.crease
    fold *= 1.0 - 0.6 * opening.closure[0]
    points[..., 2] -= fold
    thicker = 0.6 * opening.closure[0] * upper_share**1.5
    points = shell.over_eyeball(points, clearance=opening.thickness + thicker)
    return np.concatenate([points, _behind_lids(points[-1])]), skin_chart


def _behind_lids(margin: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3 n 3"]:
    """The wet rim of the lids and two rings that end inside the eyeball."""
    offset = margin - shell.EYE_CENTRE
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    inner = 0.55 * distance + 0.45 * LID_END
    radii = np.stack([distance - LID_RIM, inner, np.full_like(distance, LID_END)])
    return shell.EYE_CENTRE + offset * radii / distance


MOUTH_RINGS = np.array([0.75, 0.5, 0.28, 0.12, 0.0])
"""Distance from the vermilion border, as a share of that to the hole's edge."""
LIP_RINGS = np.array([0.2, 0.45, 0.7, 0.9, 1.0])
"""Way from the vermilion border to where the lips meet."""
BAG = np.array(
    [
        # back, opening up, opening down, wider
        (2.5, 0.6, 0.6, 0.2),
        (5.0, 5.0, 4.5, 0.6),
        (8.5, 12.0, 12.0, 1.5),
        (16.0, 15.0, 14.0, 4.0),
        (32.0, 13.0, 13.0, 6.0),
        (50.0, 5.0, 8.0, -4.0),
    ]
)
"""The mouth bag, ring by ring, behind the line where the lips meet, mm."""
MOUTH_HALF_WIDTH = 25.0
MOUTH_COUNT = 68
"""Vertices of each ring of the mouth: those of its hole's edge."""

# Upper border, meeting line and lower border by the share of the mouth's half width.
LIPS = np.array(
    [
        # share, upper y, meeting y, lower y
        (0.0, -58.9, -67.4, -77.0),
        (0.12, -58.2, -67.3, -77.0),
        (0.26, -57.5, -66.9, -76.8),
        (0.42, -58.7, -66.6, -75.9),
        (0.6, -60.9, -66.7, -73.8),
        (0.8, -63.8, -67.0, -70.6),
        (0.93, -65.8, -67.1, -68.2),
        (1.0, -66.9, -66.9, -66.9),
    ]
)
# Height of the lips over the shell at the midline, by the way from border to meeting.
UPPER_LIP = np.array([(0.0, 2.3), (0.2, 3.2), (0.45, 3.7), (0.7, 3.2), (0.9, 1.7)])
LOWER_LIP = np.array([(0.0, 1.9), (0.2, 3.1), (0.45, 4.2), (0.7, 4.1), (0.9, 2.2)])
MEETING_HEIGHT = 0.3


def _curve(
    x: Float[np.ndarray, "*b"], knots: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "*b"]:
    return shell.interpolate.PchipInterpolator(knots[:, 0], knots[:, 1])(x)


def mouth_shares(count: int) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
    """Signed share of the half width around the lips, and which belong to the upper.

    Starts at the lower midline, towards the left corner; corners count as lower.
    """
    turn = np.arange(count) * (4.0 / count)
    share = np.sin(0.5 * np.pi * turn)
    share[[0, count // 2]] = 0.0
    upper = (turn > 1.0) & (turn < 3.0)
    return share, upper


def mouth_rings(
    edge: Float[np.ndarray, "n 2"],
) -> tuple[Float[np.ndarray, "r n 3"], Float[np.ndarray, "s n 2"]]:
    """Rings from the hole's edge over lips and bag, and chart points of the first ones.

    The edge starts at the lower midline and runs to the subject's left.
    """
    share, upper = mouth_shares(len(edge))
    r = np.abs(share)
    x = share * MOUTH_HALF_WIDTH
    border_y = np.where(upper, _curve(r, LIPS[:, [0, 1]]), _curve(r, LIPS[:, [0, 3]]))
    meeting_y = _curve(r, LIPS[:, [0, 2]])
    chart = np.stack(shell.chart_points(x, border_y), axis=1)
    blend = MOUTH_RINGS[:, None, None] ** 1.1
    skin_chart = chart + (edge - chart) * blend
    skin = shell.surface(skin_chart[..., 0], skin_chart[..., 1])
    taper = np.sqrt(np.clip(1.0 - r**2.2, 0.0, 1.0))
    border_height = np.where(upper, UPPER_LIP[0, 1], LOWER_LIP[0, 1]) * taper
    skin[..., 2] += border_height * (1.0 - MOUTH_RINGS[:, None]) ** 3
    lips = [_lip_ring(share, upper, border_y, meeting_y, way) for way in LIP_RINGS]
    meeting = lips[-1]
    bag = [_bag_ring(meeting, upper, taper, *row) for row in BAG]
    return np.concatenate([skin, np.stack(lips + bag)]), skin_chart


def _lip_ring(
    share: Float[np.ndarray, " n"],
    upper: np.ndarray,
    border_y: Float[np.ndarray, " n"],
    meeting_y: Float[np.ndarray, " n"],
    way: float,
) -> Float[np.ndarray, "n 3"]:
    x = share * MOUTH_HALF_WIDTH * (1.0 - 0.02 * way)
    y = border_y + (meeting_y - border_y) * way
    r = np.abs(share)
    taper = np.sqrt(np.clip(1.0 - r**2.2, 0.0, 1.0))
    end = np.array([[1.0, MEETING_HEIGHT]])
    height = np.where(
        upper,
        _curve(np.array(way), np.concatenate([UPPER_LIP, end])),
        _curve(np.array(way), np.concatenate([LOWER_LIP, end])),
    )
    flat = shell.surface(*shell.chart_points(x, y))
    z = flat[:, 2] + height * taper - 1.6 * way * r**6
    gap = np.where(upper, 0.1, -0.1) * way * taper
    return np.stack([x, y + gap, z], axis=1)


def _bag_ring(
    meeting: Float[np.ndarray, "n 3"],
    upper: np.ndarray,
    taper: Float[np.ndarray, " n"],
    back: float,
    up: float,
    down: float,
    wider: float,
) -> Float[np.ndarray, "n 3"]:
    opened = np.where(upper, up, -down) * taper**0.8
    x = meeting[:, 0] * (1.0 + wider / MOUTH_HALF_WIDTH)
    return np.stack([x, meeting[:, 1] + opened, meeting[:, 2] - back], axis=1)


NOSTRIL_RADII = np.array([0.2, 0.2])
"""Of the nostril's rim in the chart, columns and rows."""


def nostril_rings(
    edge: Float[np.ndarray, "n 2"],
) -> tuple[Float[np.ndarray, "r n 3"], Float[np.ndarray, "3"], np.ndarray]:
    """Rim, three rings inside and end of the left nostril; and the rim in the chart."""
    centre = 0.5 * (edge.min(axis=0) + edge.max(axis=0))
    scaled = (edge - centre) / np.ptp(edge, axis=0)
    around = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    chart = centre + around * NOSTRIL_RADII
    rim = shell.surface(chart[:, 0], chart[:, 1])
    middle = rim.mean(axis=0)
    steps = ((1.02, 0.2, 1.6, -0.6), (0.85, 0.3, 5.0, -2.5), (0.5, -0.5, 11.0, -6.0))
    inside = [middle + (rim - middle) * step[0] + np.array(step[1:]) for step in steps]
    return np.stack([rim, *inside]), middle + np.array([-0.5, 13.0, -8.0]), chart
