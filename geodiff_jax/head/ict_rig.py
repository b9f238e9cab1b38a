"""Joints and skinning weights for the ICT-FaceKit head, which has shapes alone.

The jaw's hinge, its turns and each vertex's share in them are measured on the shapes
that move the jaw. All other numbers are ours. Metres, the head's frame.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.spatial import transform

# Ranges of the vertices that the head keeps.
FACE = slice(0, 9_409)
BACK = slice(9_409, 11_248)
MOUTH_BAG = slice(11_248, 13_294)
EYE_SOCKETS = slice(13_294, 14_062)
SKIN = slice(0, 14_062)
GUMS = slice(14_062, 17_039)
UPPER_TEETH = slice(17_039, 19_247)
LOWER_TEETH = slice(19_247, 21_451)
EYEBALLS = (slice(21_451, 22_221), slice(22_221, 22_991))
"""Left and right."""

JAW_TURNS = ("jawOpen", "jawLeft", "jawRight")
"""Expressions that turn the jaw; jawForward slides it and mouthClose leaves it."""
GAZES = {
    "eyeLookDown_L": (3, (25.0, 0.0, 0.0)),
    "eyeLookDown_R": (4, (25.0, 0.0, 0.0)),
    "eyeLookIn_L": (3, (0.0, -32.0, 0.0)),
    "eyeLookIn_R": (4, (0.0, 32.0, 0.0)),
    "eyeLookOut_L": (3, (0.0, 35.0, 0.0)),
    "eyeLookOut_R": (4, (0.0, -35.0, 0.0)),
    "eyeLookUp_L": (3, (-26.0, 0.0, 0.0)),
    "eyeLookUp_R": (4, (-26.0, 0.0, 0.0)),
}
"""Joint and degrees of axis-angle, those of the built-in head: the files have none."""
ROOT, NECK = (0.0, -0.18, -0.04), (0.0, -0.135, -0.036)
"""Where the built-in head has them; its neck is as long."""
ANCHOR_REACH = 0.08
"""Metres around root, neck and jaw within which skin tells where they go."""


@dataclasses.dataclass(frozen=True)
class Rig:
    """What moves the shapes."""

    joints: Float[np.ndarray, "5 3"]
    anchors: Float[np.ndarray, "5 v"]
    """Rows sum to one; the joints of any identity are these means of its vertices."""
    weights: Float[np.ndarray, "v 5"]
    drivers: Float[np.ndarray, "e 5 3"]
    """Axis-angle, radians, in the order of the shapes."""


def fit(
    template: Float[np.ndarray, "v 3"], shapes: Mapping[str, Float[np.ndarray, "v 3"]]
) -> Rig:
    """A rig for shapes by name, which are vertices at full strength."""
    rotation, shift = rigid_motion(
        template[LOWER_TEETH], shapes["jawOpen"][LOWER_TEETH]
    )
    eyes = [sphere_centre(template[part]) for part in EYEBALLS]
    joints = np.array([ROOT, NECK, _hinge(rotation, shift), *eyes])
    drivers = np.zeros((len(shapes), 5, 3))
    for row, name in enumerate(shapes):
        if name in JAW_TURNS:
            turn, _ = rigid_motion(template[LOWER_TEETH], shapes[name][LOWER_TEETH])
            drivers[row, 2] = turn.as_rotvec()
        if name in GAZES:
            joint, degrees = GAZES[name]
            drivers[row, joint] = np.radians(degrees)
    rigid = rotation.apply(template) + shift - template
    share = _jaw_share(shapes["jawOpen"] - template, rigid)
    return Rig(joints, _anchors(template, joints), _weights(template, share), drivers)


def residuals(
    template: Float[np.ndarray, "v 3"],
    shapes: Float[np.ndarray, "e v 3"],
    rig: Rig,
) -> Float[np.ndarray, "e v 3"]:
    """Motion before skinning that gives each shape, alone at full strength, once its
    joints have turned. Eyeballs that turn keep their shape."""
    moved = shapes - template
    for row in np.flatnonzero(np.abs(rig.drivers[:, 2]).max(axis=1) > 0):
        turn = transform.Rotation.from_rotvec(rig.drivers[row, 2]).as_matrix()
        share = rig.weights[:, 2, None]
        blended = np.eye(3) + share[..., None] * (turn - np.eye(3))
        shift = share * (rig.joints[2] - turn @ rig.joints[2])
        before = np.linalg.solve(blended, (shapes[row] - shift)[..., None])[..., 0]
        moved[row] = before - template
    return moved


def rigid_motion(
    before: Float[np.ndarray, "n 3"], after: Float[np.ndarray, "n 3"]
) -> tuple[transform.Rotation, Float[np.ndarray, "3"]]:
    """Rotation, then shift, that carry one cloud to the other at least squared error
    (Kabsch, 1976)."""
    middle, target = before.mean(axis=0), after.mean(axis=0)
    rotation, _ = transform.Rotation.align_vectors(after - target, before - middle)
    return rotation, target - rotation.apply(middle)


def sphere_centre(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3"]:
    """Centre of the sphere of least squared algebraic error."""
    middle = points.mean(axis=0)
    offset = points - middle
    rows = np.concatenate([2.0 * offset, np.ones((len(points), 1))], axis=1)
    return middle + np.linalg.lstsq(rows, (offset**2).sum(axis=1), rcond=None)[0][:3]


def smooth_step(
    value: Float[np.ndarray, "*b"], low: float, high: float
) -> Float[np.ndarray, "*b"]:
    """From 0 at `low` to 1 at `high` with flat ends."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _hinge(
    rotation: transform.Rotation, shift: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """The point that stays where it is, in the head's middle plane."""
    still = np.eye(3) - rotation.as_matrix()
    in_plane, *_ = np.linalg.lstsq(still[:, 1:], shift, rcond=None)
    return np.array([0.0, *in_plane])


def _jaw_share(
    moved: Float[np.ndarray, "v 3"], rigid: Float[np.ndarray, "v 3"]
) -> Float[np.ndarray, " v"]:
    """How much of the jaw's rigid motion the opening gives each vertex."""
    # 2 mm keep the quotient calm at the hinge, where nothing moves.
    share = np.sum(moved * rigid, axis=1) / (np.sum(rigid**2, axis=1) + 0.002**2)
    # Skin is drawn along a little all over the head, and teeth bend by a tenth of a mm.
    share = np.clip((share - 0.03) / 0.94, 0.0, 1.0)
    share[UPPER_TEETH], share[LOWER_TEETH] = 0.0, 1.0
    return share


def _weights(
    template: Float[np.ndarray, "v 3"], jaw: Float[np.ndarray, " v"]
) -> Float[np.ndarray, "v 5"]:
    """The neck bends between shoulders and skull, along its own axis; chin and nape
    lie at one height there."""
    head = smooth_step(template @ np.array([0.0, 1.0, 0.45]), -0.19, -0.1)
    head[SKIN.stop :] = 1.0
    head[MOUTH_BAG] = 1.0
    weights = np.zeros((len(template), 5))
    weights[:, 0] = 1.0 - head
    weights[:, 1] = head * (1.0 - jaw)
    weights[:, 2] = head * jaw
    for joint, part in zip((3, 4), EYEBALLS, strict=True):
        weights[part] = np.eye(5)[joint]
    return weights


def _anchors(
    template: Float[np.ndarray, "v 3"], joints: Float[np.ndarray, "5 3"]
) -> Float[np.ndarray, "5 v"]:
    """Means that give the joints, and follow any affine change of what is around."""
    anchors = np.zeros((len(joints), len(template)))
    skin = np.arange(len(template)) < SKIN.stop
    for row, joint in enumerate(joints):
        near = skin & (np.linalg.norm(template - joint, axis=1) < ANCHOR_REACH)
        if row >= 3:
            near = np.zeros(len(template), bool)
            near[EYEBALLS[row - 3]] = True
        # The least weights with sum one whose mean is the joint.
        rows = np.concatenate([(template[near] - joint).T, np.ones((1, near.sum()))])
        wanted = np.array([0.0, 0.0, 0.0, 1.0])
        anchors[row, near] = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return anchors
