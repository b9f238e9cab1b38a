"""Joints, skinning weights, regions and landmarks of the procedural head.

Millimetres, the frame of `procedural_shell`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import spatial

from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural_features as features
from geodiff_jax.head import procedural_shell as shell
from geodiff_jax.head.procedural_anatomy import Anatomy

JOINTS = np.array(
    [
        (0.0, -180.0, -40.0),
        (0.0, -135.0, -36.0),
        (0.0, -46.0, 6.0),
        tuple(shell.EYE_CENTRE),
        tuple(shell.EYE_CENTRE * np.array([-1.0, 1.0, 1.0])),
    ]
)
"""Root, neck, jaw, left eye, right eye.

The jaw's condyles slide forwards as it opens, so it turns about the ramus below them.
"""
CONDYLES = np.array([0.0, -18.0, 14.0])
"""Middle between the jaw's condyles, from which its bone spreads."""


def smooth_step(
    value: Float[np.ndarray, "*b"],
    low: Float[np.ndarray, "*b"] | float,
    high: Float[np.ndarray, "*b"] | float,
) -> Float[np.ndarray, "*b"]:
    """From 0 at `low` to 1 at `high` with flat ends."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def filled_chart(anatomy: Anatomy) -> Float[np.ndarray, "v 2"]:
    """The chart, with lids and mouth interior given their rim's place in it."""
    chart = anatomy.chart.copy()
    for name in ("left_lids", "right_lids", "left_nostril", "right_nostril", "mouth"):
        block = chart[anatomy.ranges[name]]
        known = np.flatnonzero(~np.isnan(block[:, 0]))
        block[np.isnan(block[:, 0])] = block[known[-1]]
    return chart


def _jaw_share(anatomy: Anatomy) -> Float[np.ndarray, " v"]:
    """How much of the jaw's motion each vertex takes."""
    points, chart = anatomy.points, filled_chart(anatomy)
    offset = points - CONDYLES
    below = np.degrees(np.arctan2(-offset[:, 1], offset[:, 2]))
    side = np.abs(points[:, 0])
    centre = 29.5 + 8.0 * smooth_step(side, 8.0, 50.0) + 6.0 * smooth_step(side, 45, 62)
    spread = 8.0 + 8.0 * smooth_step(side, 8.0, 34.0) + 10.0 * smooth_step(side, 40, 62)
    share = smooth_step(below, centre - spread, centre + spread)
    share *= smooth_step(chart[:, 1], 2.2, 5.4)
    share *= 1.0 - smooth_step(np.abs(chart[:, 0]), 3.8, 5.9)
    share = np.nan_to_num(share)
    share = _mouth_jaw_share(anatomy, share)
    for name, value in (
        ("left_eyeball", 0.0),
        ("right_eyeball", 0.0),
        ("left_lids", 0.0),
        ("right_lids", 0.0),
        ("left_ear", 0.0),
        ("right_ear", 0.0),
        ("upper_teeth", 0.0),
        ("lower_teeth", 1.0),
        ("tongue", 1.0),
    ):
        share[anatomy.ranges[name]] = value
    return share


def _mouth_jaw_share(
    anatomy: Anatomy, share: Float[np.ndarray, " v"]
) -> Float[np.ndarray, " v"]:
    """Lips part by what they are, never by where they lie."""
    block = anatomy.ranges["mouth"]
    count = features.MOUTH_COUNT
    signed, upper = features.mouth_shares(count)
    r = np.abs(signed)
    lip = np.where(upper, 0.5 * r**3.2, 1.0 - 0.5 * r**2.6)
    rings = share[block.start : block.stop - 1].reshape(-1, count).copy()
    blend = np.zeros(len(rings))
    blend[: len(features.MOUTH_RINGS)] = features.MOUTH_RINGS
    rings = rings * blend[:, None] + lip * (1.0 - blend[:, None])
    share = share.copy()
    share[block.start : block.stop - 1] = rings.ravel()
    share[block.stop - 1] = 0.5
    return share


def skinning_weights(anatomy: Anatomy) -> Float[np.ndarray, "v 5"]:
    """Shares of root, neck, jaw and eyes; rows sum to one."""
    chart = filled_chart(anatomy)
    head = np.where(np.isnan(chart[:, 1]), 1.0, smooth_step(chart[:, 1], 0.0, 3.4))
    jaw = _jaw_share(anatomy)
    weights = np.zeros((len(jaw), 5))
    weights[:, 0] = 1.0 - head
    weights[:, 1] = head * (1.0 - jaw)
    weights[:, 2] = head * jaw
    for joint, name in ((3, "left_eyeball"), (4, "right_eyeball")):
        weights[anatomy.ranges[name]] = np.eye(5)[joint]
    return weights


def regions(anatomy: Anatomy) -> dict[str, Bool[np.ndarray, " v"]]:
    """Vertex masks for every name in `model.REGIONS`."""
    points, chart = anatomy.points, filled_chart(anatomy)
    count = features.MOUTH_COUNT
    masks = {name: np.zeros(len(points), bool) for name in head_model.REGIONS}
    for name in ("left_eyeball", "right_eyeball", "left_ear", "right_ear", "tongue"):
        masks[name][anatomy.ranges[name]] = True
    for name in ("upper_teeth", "lower_teeth"):
        masks[name][anatomy.ranges[name]] = True
        masks[name] &= ~anatomy.gum
    mouth = anatomy.ranges["mouth"]
    lips_start = mouth.start + (len(features.MOUTH_RINGS) - 1) * count
    lips_stop = lips_start + (len(features.LIP_RINGS) + 1) * count
    masks["lips"][lips_start:lips_stop] = True
    # The gums are wet like the bag, so they belong to it.
    masks["mouth_interior"][lips_stop : mouth.stop] = True
    masks["mouth_interior"] |= anatomy.gum

    skin = ~np.isnan(chart[:, 0]) & ~masks["mouth_interior"]
    column, row = np.abs(chart[:, 0]), chart[:, 1]
    with np.errstate(invalid="ignore"):
        # Hairline: over the forehead, down the temples, behind the ears to the nape.
        hairline = np.interp(
            column,
            [0, 2, 3.3, 4.2, 4.8, 5.6, 6.2, 7, 9],
            [18.3, 18.4, 17.6, 15.8, 13.6] + [12.6, 9.4, 6.2, 5.2],
        )
        masks["scalp"] = skin & (row > hairline)
        below_jaw = row < np.interp(column, [0, 4, 5, 6, 9], [4.9, 4.9, 5.1, 7.5, 7.5])
        masks["neck"] = skin & below_jaw & ~masks["scalp"]
        masks["boundary"] = skin & (row == 0.0)
        masks["face"] = skin & ~masks["scalp"] & ~below_jaw & (column < 5.9)
        masks["forehead"] = masks["face"] & (row > 16.2)
        nose = (np.abs(points[:, 0]) < 19.5) & (row > 10.6) & (row < 15.0)
        nose &= (np.abs(points[:, 0]) < 12.0) | (points[:, 1] < -12.0)
        masks["nose"] = masks["face"] & nose
    for side, sign in (("left", 1.0), ("right", -1.0)):
        centre = shell.EYE_CENTRE * np.array([sign, 1.0, 1.0])
        offset = (points - centre)[:, :2] / np.array([22.0, 15.0])
        near = (offset**2).sum(axis=1) < 1.0
        masks[f"{side}_eye_region"] = masks["face"] & near
        masks["nose"] &= ~near
    masks["nose"][anatomy.ranges["left_nostril"]] = True
    masks["nose"][anatomy.ranges["right_nostril"]] = True
    return masks


def _closest(
    targets: Float[np.ndarray, "k 3"],
    points: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    candidates: Int[np.ndarray, " c"],
) -> head_model.LandmarkEmbedding:
    """(face, barycentric) points near targets, among the candidate faces."""
    centroids = points[faces[candidates]].mean(axis=1)
    _, near = spatial.cKDTree(centroids).query(targets, k=24)
    near = candidates[near]
    corner, second, third = (points[faces[near, k]] for k in range(3))
    edges = np.stack([second - corner, third - corner], axis=-1)
    gram = np.einsum("tfki,tfkj->tfij", edges, edges)
    along = np.einsum("tfki,tfk->tfi", edges, targets[:, None] - corner)
    inner = np.linalg.solve(gram, along[..., None])[..., 0]
    weights = np.concatenate([1.0 - inner.sum(-1, keepdims=True), inner], axis=-1)
    weights = np.clip(weights, 0.0, None)
    weights /= weights.sum(axis=-1, keepdims=True)
    found = np.einsum("tfc,tfck->tfk", weights, np.stack([corner, second, third], 2))
    best = np.linalg.norm(found - targets[:, None], axis=-1).argmin(axis=1)
    row = np.arange(len(targets))
    return head_model.LandmarkEmbedding(
        jnp.asarray(near[row, best].astype(np.int32)),
        jnp.asarray(weights[row, best].astype(np.float32)),
    )


# iBUG points of the left half and the midline that are told by place, (x, y) in mm
# seen from the front: jaw from the chin up, brow from inside out, nose.
JAW = (
    [(0.0, 5.55), (0.9, 5.5), (1.9, 5.55), (2.9, 5.85), (3.75, 6.0), (4.6, 6.35)]
    + [(5.1, 9.5), (5.35, 10.8), (5.5, 12.4)]
)  # fmt: skip
"""Chart points of iBUG 8 to 16."""
BROW = ((13.0, 28.0), (26.5, 31.0), (38.5, 31.0), (48.0, 27.5), (54.5, 20.0))
"""iBUG 22 to 26: MediaPipe's map has the brow's upper edge."""
NOSE_POINTS = ((0.0, 5.0), (0.0, -4.0), (0.0, -17.5), (0.0, -34.0))
"""iBUG 27 to 30."""
NOSE_BASE = ((0.0, -46.5, 105.0), (6.5, -47.2, 101.5), (15.4, -45.0, 96.5))
"""iBUG 33 to 35, in the head's frame."""


def ibug_targets(anatomy: Anatomy) -> Float[np.ndarray, "68 3"]:
    """Where the iBUG points lie on the mean head."""
    targets = np.zeros((68, 3))
    jaw = np.array(JAW)
    targets[8:17] = shell.surface(jaw[:, 0], jaw[:, 1])
    for first, flat in ((22, np.array(BROW)), (27, np.array(NOSE_POINTS))):
        at = shell.surface(*shell.chart_points(flat[:, 0], flat[:, 1]))
        targets[first : first + len(flat)] = at
    targets[27:31, :2] = np.array(NOSE_POINTS)
    targets[33:36] = NOSE_BASE
    lids = anatomy.points[anatomy.ranges["left_lids"]]
    count = len(anatomy.eye_edge)
    first = (len(features.EYE_RINGS) - 1) * count
    margin = lids[first : first + count]
    half = count // 2
    # Inner corner, upper two, outer corner, lower two. Seen from the front, the lids
    # meet before their margins end.
    shares = np.array((0.05, -0.4, -0.66, 0.97, 0.62, 0.39))
    place = np.floor(shares * half).astype(int)
    way = (shares * half - place)[:, None]
    after = (place + 1) % count
    targets[42:48] = margin[place] * (1.0 - way) + margin[after] * way
    # The outer corner is where the wet rims meet, behind the margins.
    rim = lids[first + count : first + 2 * count]
    targets[45] = (rim[place] * (1.0 - way) + rim[after] * way)[3]
    mouth = anatomy.points[anatomy.ranges["mouth"]]
    count = features.MOUTH_COUNT
    rings = mouth[:-1].reshape(-1, count, 3)
    outer = len(features.MOUTH_RINGS) - 1
    border = 0.6 * rings[outer] + 0.4 * rings[outer + 1]
    meeting = rings[outer + len(features.LIP_RINGS)]
    turn, _ = features.mouth_shares(count)
    quarter = count // 4

    def at_share(ring: np.ndarray, share: float, upper: bool) -> np.ndarray:
        angle = np.arcsin(share) / (0.5 * np.pi)
        place = quarter * (2.0 - angle if upper else angle)
        low = int(place)
        return ring[low] + (ring[low + 1] - ring[low]) * (place - low)

    for ring, upper_points, lower_points, corner, end in (
        (
            border,
            {51: 0.0, 52: 0.27, 53: 0.72},
            {55: 0.73, 56: 0.34, 57: 0.0},
            54,
            0.99,
        ),
        (meeting, {62: 0.0, 63: 0.45}, {65: 0.45, 66: 0.0}, 64, 0.9),
    ):
        for point, share in upper_points.items():
            targets[point] = at_share(ring, share, True)
        for point, share in lower_points.items():
            targets[point] = at_share(ring, share, False)
        # The corners are where the lips meet; inside they end before that line does.
        pair = at_share(meeting, end, True), at_share(meeting, end, False)
        targets[corner] = 0.5 * (pair[0] + pair[1])
    mirror = landmarks.IBUG_MIRROR
    for point in range(68):
        if targets[point, 2] == 0.0:
            targets[point] = targets[mirror[point]] * np.array([-1.0, 1.0, 1.0])
    return targets


def landmark_embedding(anatomy: Anatomy) -> head_model.LandmarkEmbedding:
    """The iBUG 68 on the skin."""
    outside = filled_chart(anatomy)
    skin = ~np.isnan(outside[:, 0]) & ~regions(anatomy)["mouth_interior"]
    candidates = np.flatnonzero(skin[anatomy.faces].all(axis=1))
    return _closest(ibug_targets(anatomy), anatomy.points, anatomy.faces, candidates)


def iris_embedding(anatomy: Anatomy) -> head_model.LandmarkEmbedding:
    """The apex of each cornea: the last vertex of each eyeball."""
    faces, weights = [], []
    for name in ("left_eyeball", "right_eyeball"):
        apex = anatomy.ranges[name].stop - 1
        face = int(np.flatnonzero((anatomy.faces == apex).any(axis=1))[0])
        faces.append(face)
        weights.append((anatomy.faces[face] == apex).astype(np.float32))
    return head_model.LandmarkEmbedding(
        jnp.asarray(np.array(faces, np.int32)), jnp.asarray(np.stack(weights))
    )
