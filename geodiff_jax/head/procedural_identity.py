"""Identity directions of the procedural head: what makes one person unlike another.

Each direction is a smooth field in space, so that ears, teeth and joints go along,
with the eyeballs and the lids on them moved as one piece; some also reshape the lids,
lips or ears alone. Millimetres for one standard deviation, ours, of the size that
anthropometric surveys give. Frame of `procedural_shell`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from geodiff_jax.head import procedural_features as features
from geodiff_jax.head import procedural_rig as rig
from geodiff_jax.head import procedural_shell as shell
from geodiff_jax.head.procedural_anatomy import Anatomy

Triple = tuple[float, float, float]
Stroke = shell.Stroke


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Growth away from a point and its mirror image, as shares of the distance.

    Full within the window's radii, and gone beyond about twice them.
    """

    rates: Triple
    centre: Triple
    window: Triple = (0.0, 0.0, 0.0)
    radii: Triple = (1e4, 1e4, 1e4)


@dataclasses.dataclass(frozen=True)
class Direction:
    """One way in which heads differ."""

    strokes: tuple[Stroke, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    parts: tuple[str, ...] = ()
    """Vertex ranges that alone take part; empty for the whole head."""
    lids: tuple[tuple[str, float | tuple[float, float]], ...] = ()
    """Changes of `EyeOpening`'s fields."""
    odd: bool = False
    """An asymmetry: y and z opposite on the two sides, x the same on both."""


_LIPS = ("mouth",)
_EARS = ("left_ear", "right_ear")
_LOW = (80.0, 34.0, 60.0)

DIRECTIONS: dict[str, Direction] = {
    "head_size": Direction(stretches=(Stretch((0.022, 0.022, 0.022), (0, -20, 0)),)),
    "head_width": Direction(
        stretches=(Stretch((0.03, 0, 0), (0, 0, 0), (0, 45, -10), (150, 75, 110)),)
    ),
    "head_length": Direction(
        stretches=(Stretch((0, 0, 0.034), (0, 0, 0), (0, 45, -50), (150, 80, 75)),)
    ),
    "cranium_height": Direction(
        stretches=(Stretch((0, 0.045, 0), (0, 25, 0), (0, 115, 0), (160, 75, 160)),)
    ),
    "occiput": Direction(strokes=(Stroke((0, 30, -98), (50, 35, 40), (0, 0, -4.0)),)),
    "forehead_slope": Direction(
        strokes=(
            Stroke((0, 70, 84), (50, 28, 40), (0, 0, -3.2)),
            Stroke((0, 24, 94), (40, 14, 30), (0, 0, 0.8)),
        )
    ),
    "forehead_width": Direction(
        strokes=(Stroke((54, 42, 50), (18, 30, 35), (2.2, 0, 0.6)),)
    ),
    "forehead_bossing": Direction(
        strokes=(Stroke((24, 50, 90), (18, 18, 24), (0, 0, 1.6)),)
    ),
    "temple_hollow": Direction(
        strokes=(Stroke((60, 20, 45), (12, 16, 20), (-1.8, 0, -0.4)),)
    ),
    "brow_ridge": Direction(
        strokes=(
            Stroke((16, 20, 93), (14, 7, 18), (0, 0, 1.3)),
            Stroke((40, 19, 80), (14, 7, 18), (0.3, 0, 1.4)),
        )
    ),
    "brow_height": Direction(
        strokes=(Stroke((30, 20, 88), (26, 9, 24), (0, 1.7, 0.2)),)
    ),
    "face_length": Direction(
        stretches=(Stretch((0, 0.028, 0), (0, 5, 0), (0, -110, 60), (150, 105, 100)),)
    ),
    "face_width": Direction(
        stretches=(Stretch((0.034, 0, 0), (0, 0, 0), (0, -30, 45), (150, 62, 60)),)
    ),
    "cheekbone_prominence": Direction(
        strokes=(Stroke((54, -16, 62), (17, 12, 24), (1.7, 0, 1.3)),)
    ),
    "cheekbone_height": Direction(
        strokes=(
            Stroke((50, -8, 66), (15, 9, 24), (0.6, 0, 0.9)),
            Stroke((50, -30, 66), (15, 10, 24), (-0.5, 0, -0.8)),
        )
    ),
    "cheek_fullness": Direction(
        strokes=(
            Stroke((48, -50, 62), (18, 20, 28), (2.3, 0, 1.7)),
            Stroke((40, -88, 60), (18, 14, 24), (1.0, -0.6, 0.6)),
        )
    ),
    "midface_depth": Direction(
        strokes=(Stroke((0, -38, 92), (46, 34, 40), (0, 0, 2.2)),)
    ),
    "eye_spacing": Direction(
        strokes=(Stroke((31.5, 0, 75), (24, 24, 40), (1.6, 0, 0)),)
    ),
    "eye_depth": Direction(strokes=(Stroke((32, 0, 74), (20, 16, 30), (0, 0, -1.5)),)),
    "eye_height": Direction(
        strokes=(Stroke((31.5, 0, 75), (28, 18, 40), (0, 1.3, 0)),)
    ),
    "eye_width": Direction(lids=(("inner", (-14.8, -2.1)), ("outer", (14.2, 1.0)))),
    "eye_opening": Direction(lids=(("upper", 6.5), ("lower", 4.85))),
    "eye_tilt": Direction(lids=(("inner", (-14.4, -2.6)), ("outer", (13.5, 1.9)))),
    "eyelid_hooding": Direction(
        strokes=(Stroke((36, 9.5, 84), (13, 4.5, 12), (0, -1.4, 1.1)),),
        parts=("grid", "left_lids", "right_lids"),
    ),
    "eyelid_crease": Direction(lids=(("crease", 1.45),)),
    "eye_bags": Direction(
        strokes=(Stroke((31, -13, 82), (11, 4.5, 12), (0, -0.3, 1.0)),),
        parts=("grid", "left_lids", "right_lids"),
    ),
    "nose_length": Direction(
        strokes=(
            Stroke((0, -38, 110), (19, 15, 30), (0, -2.4, 0)),
            Stroke((0, -20, 106), (12, 14, 24), (0, -0.8, 0)),
        )
    ),
    "nose_width": Direction(strokes=(Stroke((16, -38, 99), (9, 11, 16), (1.7, 0, 0)),)),
    "nose_bridge_height": Direction(
        strokes=(
            Stroke((0, 2, 92), (9, 13, 20), (0, 0, 1.7)),
            Stroke((0, -14, 101), (9, 12, 20), (0, 0, 0.8)),
        )
    ),
    "nose_bridge_width": Direction(
        strokes=(Stroke((8, -8, 94), (6, 17, 16), (1.2, 0, 0)),)
    ),
    "nose_hump": Direction(
        strokes=(
            Stroke((0, -11, 101), (7, 9, 18), (0, 0, 1.4)),
            Stroke((0, -33, 114), (10, 6, 14), (0, -0.7, -0.5)),
        )
    ),
    "nose_projection": Direction(
        strokes=(Stroke((0, -36, 114), (15, 15, 22), (0, 0, 2.3)),)
    ),
    "nose_tip_rotation": Direction(
        strokes=(Stroke((0, -37, 115), (13, 9, 15), (0, 2.0, 0.3)),)
    ),
    "nose_tip_width": Direction(
        strokes=(Stroke((7.5, -36, 112), (6, 8, 12), (1.3, 0, 0.1)),)
    ),
    "nostril_flare": Direction(
        strokes=(Stroke((15.5, -41, 99), (6, 7, 12), (1.1, 1.0, 0.3)),)
    ),
    "columella_height": Direction(
        strokes=(Stroke((0, -44, 105), (6, 6, 14), (0, -1.1, 0.2)),)
    ),
    "philtrum_length": Direction(
        strokes=(
            Stroke((0, -46, 100), (32, 13, 36), (0, 1.1, 0)),
            Stroke((0, -66, 98), (36, 16, 36), (0, -1.0, 0)),
        )
    ),
    "mouth_width": Direction(
        stretches=(Stretch((0.072, 0, -0.0), (0, 0, 0), (0, -67, 92), (38, 17, 30)),)
    ),
    "mouth_height": Direction(
        strokes=(Stroke((0, -67, 96), (38, 20, 40), (0, 1.3, 0)),)
    ),
    "upper_lip_fullness": Direction(
        strokes=(
            Stroke((0, -58, 103), (22, 5.5, 16), (0, 0.9, 0.5)),
            Stroke((0, -62.5, 105), (22, 5, 14), (0, 0, 0.6)),
        ),
        parts=("grid", "mouth"),
    ),
    "lower_lip_fullness": Direction(
        strokes=(
            Stroke((0, -77, 101), (20, 6, 16), (0, -1.0, 0.4)),
            Stroke((0, -72, 103), (20, 5, 14), (0, 0, 0.7)),
        ),
        parts=("grid", "mouth"),
    ),
    "lip_protrusion": Direction(
        strokes=(Stroke((0, -66, 102), (26, 15, 22), (0, 0, 1.6)),),
        parts=("grid", "mouth"),
    ),
    "cupids_bow": Direction(
        strokes=(
            Stroke((0, -58.5, 103), (4.2, 5, 14), (0, -0.7, -0.15)),
            Stroke((7, -57, 103), (4, 5, 14), (0, 0.6, 0.2)),
        ),
        parts=("grid", "mouth"),
    ),
    "mouth_corner_height": Direction(
        strokes=(Stroke((25, -67, 84), (11, 11, 20), (0, 1.3, -0.2)),),
        parts=("grid", "mouth"),
    ),
    "nasolabial_fold": Direction(
        strokes=(
            Stroke((26, -48, 88), (5, 11, 16), (0, 0, -0.9)),
            Stroke((36, -42, 82), (10, 14, 18), (0.2, 0, 0.9)),
        ),
        parts=("grid", "mouth"),
    ),
    "jaw_width": Direction(strokes=(Stroke((58, -68, 18), (24, 26, 36), (3.0, 0, 0)),)),
    "jaw_angle": Direction(
        strokes=(Stroke((56, -74, 12), (20, 16, 26), (0.5, -3.2, -0.8)),)
    ),
    "jaw_length": Direction(
        strokes=(Stroke((0, -104, 78), (60, 32, 60), (0, -2.0, 0.6)),)
    ),
    "chin_protrusion": Direction(
        strokes=(Stroke((0, -102, 92), (26, 17, 28), (0, 0, 2.5)),)
    ),
    "chin_height": Direction(
        strokes=(Stroke((0, -110, 88), (28, 15, 26), (0, -2.2, 0)),)
    ),
    "chin_width": Direction(
        strokes=(Stroke((22, -103, 82), (13, 13, 18), (2.2, 0, 0.5)),)
    ),
    "chin_cleft": Direction(
        strokes=(
            Stroke((0, -103, 97), (4.0, 9, 14), (0, 0, -0.6)),
            Stroke((9, -103, 95), (6, 9, 14), (0, 0, 0.4)),
        )
    ),
    "lip_chin_fold": Direction(
        strokes=(Stroke((0, -87, 95), (20, 6, 20), (0, 0, -1.0)),),
        parts=("grid", "mouth"),
    ),
    "double_chin": Direction(
        strokes=(Stroke((0, -123, 58), (36, 14, 30), (0, -3.2, 0.6)),)
    ),
    "neck_thickness": Direction(
        stretches=(
            Stretch((0.05, 0, 0.05), (0, 0, -20), (0, -195, -20), (150, 68, 150)),
        )
    ),
    "larynx": Direction(strokes=(Stroke((0, -148, 36), (9, 12, 18), (0, 0, 1.7)),)),
    "ear_size": Direction(
        stretches=(Stretch((0.055, 0.055, 0.055), (70, -6, -4)),), parts=_EARS
    ),
    "ear_protrusion": Direction(
        strokes=(Stroke((88, -4, -32), (14, 60, 24), (3.0, 0, 0.8)),), parts=_EARS
    ),
    "ear_height": Direction(
        strokes=(Stroke((74, -6, -14), (400, 400, 400), (0, 2.0, 0)),), parts=_EARS
    ),
    "ear_lobe": Direction(
        strokes=(Stroke((72, -36, -4), (14, 12, 16), (0, -1.8, 0)),), parts=_EARS
    ),
    "brow_asymmetry": Direction(
        strokes=(Stroke((32, 21, 86), (22, 9, 24), (0, 0.8, 0)),), odd=True
    ),
    "eye_asymmetry": Direction(
        strokes=(Stroke((31.5, 0, 75), (24, 18, 40), (0, 0.6, 0)),), odd=True
    ),
    "nose_asymmetry": Direction(
        strokes=(Stroke((0, -30, 108), (16, 20, 26), (0.9, 0, 0)),), odd=True
    ),
    "mouth_asymmetry": Direction(
        strokes=(Stroke((24, -67, 86), (14, 13, 24), (0, 0.8, 0)),), odd=True
    ),
    "jaw_asymmetry": Direction(
        strokes=(Stroke((54, -72, 22), (24, 28, 40), (1.0, 0.5, 0)),), odd=True
    ),
}
"""By name, one standard deviation each."""


def _stretched(
    points: Float[np.ndarray, "v 3"], stretch: Stretch
) -> Float[np.ndarray, "v 3"]:
    offset = (points - np.array(stretch.window)) / np.array(stretch.radii)
    weight = np.exp(-(np.sum(offset * offset, axis=-1) ** 2))
    side = np.where(points[:, :1] < 0, [[-1.0, 1.0, 1.0]], 1.0)
    away = points - side * np.array(stretch.centre)
    return away * np.array(stretch.rates) * weight[:, None]


def _field(
    points: Float[np.ndarray, "v 3"], direction: Direction
) -> Float[np.ndarray, "v 3"]:
    total = shell.strokes(points, direction.strokes)
    for stretch in direction.stretches:
        total = total + _stretched(points, stretch)
    if direction.odd:
        side = np.sign(points[:, :1])
        total = total * np.concatenate([side, *2 * [np.tanh(points[:, :1] / 8.0)]], 1)
    return total


def displacement(
    anatomy: Anatomy, direction: Direction
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "5 3"]]:
    """Motion of vertices and joints for one standard deviation, millimetres."""
    moved = _field(anatomy.points, direction)
    joints = _field(rig.JOINTS, direction)
    if direction.parts:
        taking_part = _in_ranges(anatomy, direction.parts)
        moved = np.where(taking_part[:, None], moved, 0.0)
        joints = np.zeros_like(joints)
    else:
        moved = _with_rigid_eyes(anatomy, moved, joints)
    moved += _lid_change(anatomy, direction)
    return moved, joints


def _in_ranges(anatomy: Anatomy, names: tuple[str, ...]) -> Bool[np.ndarray, " v"]:
    mask = np.zeros(len(anatomy.points), bool)
    for name in names:
        mask[anatomy.ranges[name]] = True
    return mask


def _with_rigid_eyes(
    anatomy: Anatomy,
    moved: Float[np.ndarray, "v 3"],
    joints: Float[np.ndarray, "5 3"],
) -> Float[np.ndarray, "v 3"]:
    """Moves each eyeball, and the lids on it, with the eye's joint."""
    for side, joint in (("left", 3), ("right", 4)):
        distance = np.linalg.norm(anatomy.points - rig.JOINTS[joint], axis=1)
        hold = 1.0 - rig.smooth_step(distance, 16.0, 30.0)
        hold[anatomy.ranges[f"{side}_eyeball"]] = 1.0
        moved = moved + hold[:, None] * (joints[joint] - moved)
    return moved


def _lid_change(anatomy: Anatomy, direction: Direction) -> Float[np.ndarray, "v 3"]:
    total = np.zeros_like(anatomy.points)
    if direction.lids:
        opening = dataclasses.replace(features.EyeOpening(), **dict(direction.lids))
        changed, _ = features.eye_rings(anatomy.eye_edge, opening)
        left = changed.reshape(-1, 3) - anatomy.points[anatomy.ranges["left_lids"]]
        total[anatomy.ranges["left_lids"]] = left
        total[anatomy.ranges["right_lids"]] = left * np.array([-1.0, 1.0, 1.0])
    return total
