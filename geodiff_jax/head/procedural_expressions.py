"""Expression directions of the procedural head, named after ARKit.

Millimetres at full strength, without what the joints carry. Frame of
`procedural_shell`. All numbers are ours.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import interpolate

from geodiff_jax.head import procedural_features as features
from geodiff_jax.head import procedural_rig as rig
from geodiff_jax.head import procedural_shell as shell
from geodiff_jax.head.procedural_anatomy import Anatomy

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Pull:
    """A soft pull of the skin: a Gaussian around a place, seen from the front.

    x is outwards. The skin slides over the face: what it moves in x and y, it follows
    in z. `depth` comes on top.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    push: tuple[float, float]
    depth: float = 0.0
    swell: float = 0.0
    """Away from the upright axis of the head."""
    lips: str = "both"
    """Which lip takes part: both, upper or lower."""


@dataclasses.dataclass(frozen=True)
class Expression:
    """One expression: pulls on the skin, lids and joints."""

    pulls: tuple[Pull, ...] = ()
    side: str = "both"
    """both, left or right."""
    lids: tuple[tuple[str, float | tuple[float, float]], ...] = ()
    """Changes of `EyeOpening`'s fields, on that side."""
    closure: tuple[float, float] = (0.0, 0.0)
    """How far the upper margin goes to meet the lower one, and the lower rises, mm."""
    joints: tuple[tuple[int, Triple], ...] = ()
    """Degrees of axis-angle added to a joint of `JOINTS`."""


def _sided(name: str, expression: Expression) -> dict[str, Expression]:
    return {
        f"{name}_L": dataclasses.replace(expression, side="left"),
        f"{name}_R": dataclasses.replace(expression, side="right"),
    }


def _gaze(name: str, left: Triple, right: Triple, lids: tuple) -> dict[str, Expression]:
    return {
        f"{name}_L": Expression(side="left", lids=lids, joints=((3, left),)),
        f"{name}_R": Expression(side="right", lids=lids, joints=((4, right),)),
    }


EXPRESSIONS: dict[str, Expression] = {
    **_sided(
        "browDown",
        Expression(
            pulls=(
                Pull((18, 20), (15, 9), (-2.2, -5.5), 1.2),
                Pull((40, 22), (14, 9), (-1.0, -3.2), 0.6),
                Pull((3, 17), (5, 9), (0, -2.0), 0.8),
            )
        ),
    ),
    "browInnerUp": Expression(
        pulls=(
            Pull((12, 23), (15, 12), (-0.8, 7.0), 0.4),
            Pull((14, 48), (22, 14), (0, 2.5), 0.4),
            Pull((22, 10), (12, 6), (0, 2.0), 0.0),
        )
    ),
    **_sided(
        "browOuterUp",
        Expression(
            pulls=(
                Pull((42, 24), (17, 12), (0.5, 6.5), 0.3),
                Pull((38, 46), (20, 14), (0, 2.2), 0.3),
                Pull((40, 10), (13, 6), (0, 2.2), 0.0),
            )
        ),
    ),
    "cheekPuff": Expression(
        pulls=(
            Pull((42, -57), (18, 19), (0, 0), swell=7.5),
            Pull((0, -53), (22, 7), (0, 0), 2.2),
            Pull((0, -83), (22, 9), (0, 0), 2.2),
            Pull((24, -67), (8, 8), (-1.5, 0), 0.5),
        )
    ),
    **_sided(
        "cheekSquint",
        Expression(
            pulls=(
                Pull((40, -20), (18, 13), (0.5, 5.0), 2.4),
                Pull((33, -11), (15, 6), (0, 2.6), 0.8),
            ),
            lids=(("lower", 3.9),),
        ),
    ),
    **_sided("eyeBlink", Expression(closure=(1.0, 1.4))),
    **_gaze(
        "eyeLookDown",
        (25, 0, 0),
        (25, 0, 0),
        (("upper", 0.9), ("lower", 5.7), ("crease", 0.4)),
    ),
    **_gaze("eyeLookIn", (0, -32, 0), (0, 32, 0), ()),
    **_gaze("eyeLookOut", (0, 35, 0), (0, -35, 0), ()),
    **_gaze(
        "eyeLookUp",
        (-26, 0, 0),
        (-26, 0, 0),
        (("upper", 7.6), ("lower", 4.1), ("crease", 1.4)),
    ),
    **_sided(
        "eyeSquint",
        Expression(
            pulls=(
                Pull((36, -14), (18, 8), (0, 2.4), 1.0),
                Pull((40, 14), (16, 6), (0, -1.4), 0.4),
            ),
            lids=(("upper", 4.6), ("lower", 2.9)),
        ),
    ),
    **_sided(
        "eyeWide",
        Expression(lids=(("upper", 8.2), ("lower", 5.2), ("crease", 1.5))),
    ),
    "jawForward": Expression(),
    "jawLeft": Expression(joints=((2, (0, 6.0, 0)),)),
    "jawRight": Expression(joints=((2, (0, -6.0, 0)),)),
    "jawOpen": Expression(
        pulls=(
            Pull((26, -67), (10, 14), (-3.0, 0.0), 0.8),
            Pull((46, -60), (14, 24), (0, 0), swell=-1.8),
        ),
        joints=((2, (17.0, 0, 0)),),
    ),
    "mouthClose": Expression(
        pulls=(
            Pull((0, -72), (24, 8), (0, 6.0), -0.5, lips="lower"),
            Pull((0, -62), (24, 8), (0, -3.5), -0.5, lips="upper"),
        )
    ),
    **_sided(
        "mouthDimple",
        Expression(
            pulls=(
                Pull((26, -67), (10, 10), (4.5, 0.8), -2.2),
                Pull((36, -64), (7, 9), (1.0, 0), 1.4),
            )
        ),
    ),
    **_sided(
        "mouthFrown",
        Expression(
            pulls=(
                Pull((26, -68), (13, 12), (1.0, -6.5), -0.6),
                Pull((30, -86), (14, 10), (0.8, -2.5), 0.8),
                Pull((12, -86), (14, 8), (0, 1.6), 0.8),
            )
        ),
    ),
    "mouthFunnel": Expression(
        pulls=(
            Pull((25, -67), (14, 13), (-6.5, 0), 4.0),
            Pull((0, -59), (17, 9), (0, 2.6), 4.5, lips="upper"),
            Pull((0, -75), (17, 10), (0, -3.6), 4.5, lips="lower"),
            Pull((38, -64), (14, 18), (-2.4, 0), -1.0),
        )
    ),
    "mouthLeft": Expression(),
    "mouthRight": Expression(),
    **_sided(
        "mouthLowerDown",
        Expression(
            pulls=(
                Pull((13, -74), (12, 9), (1.0, -6.5), 0.4, lips="lower"),
                Pull((16, -88), (15, 10), (0.6, -2.5), 0.4, lips="lower"),
            )
        ),
    ),
    **_sided(
        "mouthPress",
        Expression(
            pulls=(
                Pull((14, -76), (14, 7), (1.0, 2.4), -1.4, lips="lower"),
                Pull((14, -59), (14, 6), (1.0, -1.6), -1.4, lips="upper"),
                Pull((27, -67), (9, 9), (1.4, 0.4), -0.8),
            )
        ),
    ),
    "mouthPucker": Expression(
        pulls=(
            Pull((24, -67), (15, 13), (-9.0, 0), 6.0),
            Pull((10, -67), (10, 12), (-2.2, 0), 3.0),
            Pull((0, -67), (16, 12), (0, 0), 3.5),
            Pull((40, -62), (14, 20), (-3.0, 0), -1.4),
        )
    ),
    "mouthRollLower": Expression(
        pulls=(
            Pull((0, -77), (22, 6), (0, 4.2), -2.6, lips="lower"),
            Pull((0, -71), (22, 4.5), (0, 1.2), -3.6, lips="lower"),
        )
    ),
    "mouthRollUpper": Expression(
        pulls=(
            Pull((0, -58), (22, 5), (0, -3.6), -2.4, lips="upper"),
            Pull((0, -63), (22, 4.5), (0, -1.0), -3.4, lips="upper"),
        )
    ),
    "mouthShrugLower": Expression(
        pulls=(
            Pull((0, -78), (20, 11), (0, 4.2), 1.8),
            Pull((0, -98), (18, 12), (0, 3.0), 0.6),
        )
    ),
    "mouthShrugUpper": Expression(
        pulls=(Pull((0, -60), (22, 10), (0, 2.8), 1.4, lips="upper"),)
    ),
    **_sided(
        "mouthSmile",
        Expression(
            pulls=(
                Pull((27, -67), (14, 12), (7.0, 8.6), -1.6),
                Pull((13, -62), (10, 7), (2.0, 2.4), -1.2, lips="upper"),
                Pull((13, -74), (10, 8), (2.0, 0.8), -1.0, lips="lower"),
                Pull((43, -36), (17, 17), (1.5, 4.5), 3.6),
                Pull((30, -52), (6, 13), (1.5, 1.5), -1.6),
                Pull((17, -39), (6, 7), (0.9, 1.0), 0.0),
                Pull((36, -13), (16, 6), (0, 1.4), 0.5),
            ),
            lids=(("lower", 4.1),),
        ),
    ),
    **_sided(
        "mouthStretch",
        Expression(
            pulls=(
                Pull((27, -68), (14, 12), (6.5, -3.0), -1.0),
                Pull((14, -76), (12, 9), (1.5, -1.4), 0, lips="lower"),
                Pull((34, -92), (14, 14), (2.0, -2.0), 0.4),
            )
        ),
    ),
    **_sided(
        "mouthUpperUp",
        Expression(
            pulls=(
                Pull((12, -60), (11, 9), (0.5, 5.5), 0.4, lips="upper"),
                Pull((16, -42), (9, 10), (1.0, 2.2), 0.6),
                Pull((34, -36), (14, 14), (0, 2.0), 1.2),
            )
        ),
    ),
    **_sided(
        "noseSneer",
        Expression(
            pulls=(
                Pull((14, -38), (8, 9), (0.8, 3.8), 0.4),
                Pull((9, -10), (8, 10), (-0.5, 2.0), 0.8),
                Pull((14, -58), (12, 8), (0, 2.2), 0.2, lips="upper"),
                Pull((26, -40), (10, 12), (0, 2.0), 1.2),
            )
        ),
    ),
}


def _side_share(side: str, x: Float[np.ndarray, " v"]) -> Float[np.ndarray, " v"]:
    if side == "both":
        return np.ones_like(x)
    return rig.smooth_step(x if side == "left" else -x, -9.0, 9.0)


def _lip_share(anatomy: Anatomy, lips: str) -> Float[np.ndarray, " v"]:
    """One off the mouth's rings; on them, one on the lip that takes part."""
    share = np.ones(len(anatomy.points))
    if lips == "both":
        return share
    block = anatomy.ranges["mouth"]
    signed, upper = features.mouth_shares(features.MOUTH_COUNT)
    other = upper if lips == "lower" else ~upper
    corner = np.abs(signed) ** 3
    ring = np.where(other, 0.5 * corner, 1.0 - 0.5 * corner)
    count = (block.stop - block.start - 1) // len(ring)
    share[block.start : block.stop - 1] = np.tile(ring, count)
    share[block.stop - 1] = 0.0
    return share


def _height_map() -> interpolate.RectBivariateSpline:
    """The face's z over x and y, without nose and lips."""
    x, y = np.linspace(0.0, 56.0, 29), np.linspace(-112.0, 60.0, 80)
    grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
    z = shell.shell(*shell.chart_points(grid_x, grid_y))[..., 2]
    return interpolate.RectBivariateSpline(x, y, z)


def _pulled(
    anatomy: Anatomy,
    expression: Expression,
    height: interpolate.RectBivariateSpline,
) -> Float[np.ndarray, "v 3"]:
    points = anatomy.points
    folded = np.abs(points[:, 0])
    moved, swollen = np.zeros_like(points), np.zeros_like(points)
    soft = rig.smooth_step(points[:, 2], 8.0, 40.0) * _softness(anatomy)
    outwards = (points - np.array([0.0, 0.0, 10.0])) * np.array([1.0, 0.0, 1.0])
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True) + 1e-9
    for pull in expression.pulls:
        offset = (np.stack([folded, points[:, 1]], 1) - pull.centre) / pull.radii
        weight = np.exp(-np.sum(offset * offset, axis=1))
        if pull.centre[0] < 15:
            mirrored = np.stack([-folded, points[:, 1]], 1)
            offset = (mirrored - pull.centre) / pull.radii
            twin = np.exp(-np.sum(offset * offset, axis=1))
            weight_sum, weight_difference = weight + twin, weight - twin
            if pull.centre[0] == 0:
                weight_sum = weight
        else:
            weight_sum = weight_difference = weight
        share = soft * _lip_share(anatomy, pull.lips)
        moved[:, 0] += np.sign(points[:, 0]) * weight_difference * share * pull.push[0]
        moved[:, 1] += weight_sum * share * pull.push[1]
        moved[:, 2] += weight_sum * share * pull.depth
        swollen += (weight_sum * share * pull.swell)[:, None] * outwards
    side = _side_share(expression.side, points[:, 0])[:, None]
    moved *= side
    inside = np.clip(folded, 0, 56)
    target = np.clip(np.abs(points[:, 0] + moved[:, 0]), 0, 56)
    before = height.ev(inside, np.clip(points[:, 1], -112, 60))
    after = height.ev(target, np.clip(points[:, 1] + moved[:, 1], -112, 60))
    moved[:, 2] += (after - before) * soft
    return moved + swollen * side


def _softness(anatomy: Anatomy) -> Float[np.ndarray, " v"]:
    """Skin moves; eyeballs, ears, teeth and tongue do not, the mouth bag half."""
    soft = np.zeros(len(anatomy.points))
    for name in ("grid", "left_lids", "right_lids", "left_nostril", "right_nostril"):
        soft[anatomy.ranges[name]] = 1.0
    block = anatomy.ranges["mouth"]
    count = features.MOUTH_COUNT
    outside = len(features.MOUTH_RINGS) + len(features.LIP_RINGS)
    rings = np.ones((block.stop - block.start - 1) // count)
    rings[outside:] = np.array([1.0, 0.9, 0.6, 0.3, 0.1, 0.0])
    soft[block.start : block.stop - 1] = np.repeat(rings, count)
    return soft


def _lid_motion(anatomy: Anatomy, expression: Expression) -> Float[np.ndarray, "v 3"]:
    """What the lids do, on the expression's sides."""
    moved = np.zeros_like(anatomy.points)
    opening = features.EyeOpening(closure=expression.closure)
    opening = dataclasses.replace(opening, **dict(expression.lids))
    if opening == features.EyeOpening():
        return moved
    rings, _ = features.eye_rings(anatomy.eye_edge, opening)
    left = rings.reshape(-1, 3) - anatomy.points[anatomy.ranges["left_lids"]]
    if expression.side in ("left", "both"):
        moved[anatomy.ranges["left_lids"]] = left
    if expression.side in ("right", "both"):
        moved[anatomy.ranges["right_lids"]] = left * np.array([-1.0, 1.0, 1.0])
    return moved


def displacement(
    anatomy: Anatomy,
    name: str,
    height: interpolate.RectBivariateSpline,
    weights: Float[np.ndarray, "v 5"],
) -> Float[np.ndarray, "v 3"]:
    """Motion of the vertices at full strength, before skinning, millimetres."""
    expression = EXPRESSIONS[name]
    moved = _pulled(anatomy, expression, height) + _lid_motion(anatomy, expression)
    if name == "jawForward":
        moved[:, 2] += 6.0 * weights[:, 2]
    if name in ("mouthLeft", "mouthRight"):
        sign = 1.0 if name == "mouthLeft" else -1.0
        moved += _mouth_sideways(anatomy, height) * np.array([sign, 1.0, 1.0])
    return moved


def _mouth_sideways(
    anatomy: Anatomy, height: interpolate.RectBivariateSpline
) -> Float[np.ndarray, "v 3"]:
    """The mouth slid to the left."""
    points = anatomy.points
    offset = (points[:, :2] - np.array([0.0, -66.0])) / np.array([34.0, 20.0])
    weight = np.exp(-np.sum(offset * offset, axis=1)) * _softness(anatomy)
    weight *= rig.smooth_step(points[:, 2], 8.0, 40.0)
    moved = np.zeros_like(points)
    moved[:, 0] = 7.0 * weight
    return moved


def joint_drivers() -> Float[np.ndarray, "e 5 3"]:
    """Axis-angle, radians, added to the joints by each expression."""
    drivers = np.zeros((len(EXPRESSIONS), 5, 3))
    for row, expression in enumerate(EXPRESSIONS.values()):
        for joint, degrees in expression.joints:
            drivers[row, joint] = np.radians(degrees)
    return drivers


def basis(
    anatomy: Anatomy, weights: Float[np.ndarray, "v 5"]
) -> Float[np.ndarray, "e v 3"]:
    """All expressions in order, millimetres."""
    height = _height_map()
    return np.stack(
        [displacement(anatomy, name, height, weights) for name in EXPRESSIONS]
    )
