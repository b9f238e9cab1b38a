"""Chart, regions and marks of the ICT-FaceKit head.

The files spread their chart over tiles of unit width, side by side, and lay the eyes
over the face; here every part has a square of its own. Limits of regions are ours,
drawn in the tile of the face as it is, in which the face is its own mirror image about
u = 0.5. Metres, the head's frame.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from geodiff_jax.head import ict_rig as rig
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model

SQUARES = (
    (0.0, 0.32, 0.68),  # The face and the ears.
    (0.68, 0.68, 0.32),  # The back of the head, shoulders, mouth bag, eye sockets.
    (0.68, 0.36, 0.32),  # Gums and tongue.
    (0.68, 0.04, 0.32),  # Teeth.
    (0.0, 0.0, 0.32),  # The left eyeball.
    (0.32, 0.0, 0.32),  # The right one.
)
"""Left, bottom and side of each part's place in the chart."""
INSET = 0.01
"""Share of a square's side that stays empty on each side of it."""
TONGUE_SEED = (2.75, 0.2)
"""A point of the files' chart on the tongue, which hangs together with the gums."""

# (distance from u = 0.5, v) in the tile of the face.
HAIRLINE = (
    (0.0, 0.1, 0.2, 0.27, 0.32, 0.36, 0.395, 0.5),
    (0.935, 0.935, 0.918, 0.88, 0.8, 0.72, 0.62, 0.62),
)
JAW = (
    (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    (0.27, 0.272, 0.275, 0.29, 0.31, 0.345, 0.4, 0.45, 0.45),
)
NOSE = np.array(
    [(0.0, 0.535), (0.085, 0.54), (0.105, 0.565), (0.06, 0.64), (0.03, 0.73)]
)
"""Half of an outline, upwards."""
BROW = 0.825
"""v from which the forehead rises."""
EAR = ((0.46, 0.6, 0.685), (0.392, 0.397, 0.43))
"""Its range in v, and the distance from u = 0.5 at which it starts there."""

# On the head.
EYE_REGION = np.array([0.022, 0.015])
"""Half axes around each eye, seen from the front, as on the built-in head."""
EAR_BACK = ((-0.06, -0.008), -0.034, 0.0725)
"""Its range in y, the least z, and the least distance from the middle plane."""
NAPE = ((-0.1, -0.06, -0.02, 0.0), (-0.07, -0.065, -0.045, -0.02))
"""z, and the height from which hair grows there, behind the ears."""
NECK_BASE = (np.array([0.0, 1.0, 0.2]), -0.168)
"""A plane through the pit of the throat and the last vertebra of the neck."""

DETECTED = {
    18: (-1.9, -1.9),
    19: (-3.7, 0.0),
    20: (-4.6, 0.0),
    21: (-2.7, 0.0),
    27: (0.0, 3.2),
    28: (0.0, 5.9),
    29: (0.0, 2.7),
    31: (-4.2, 1.9),
    32: (-1.5, 0.0),
    33: (0.0, 1.7),
    36: (-1.0, 0.7),
    37: (0.0, 0.8),
    38: (-0.5, 0.8),
    39: (0.8, 0.0),
    40: (0.0, -0.9),
    41: (0.0, -0.5),
    48: (1.5, 0.0),
    49: (-1.8, -1.4),
    58: (2.8, 0.0),
    59: (-0.9, 1.2),
    61: (-0.7, 0.0),
    62: (0.0, 0.8),
}
"""Millimetres to the subject's left and upwards, of the right half and the middle: from
the files' marks, which follow Multi-PIE, to where MediaPipe finds those that
`landmarks.MEDIAPIPE_FROM_IBUG_INNER` takes for them. Medians over 16 rendered people of
this head, where the detector disagrees with the files by more than it does with itself;
without them noses come out short and mouths broad."""


def packed_chart(
    uv: Float[np.ndarray, "n 2"],
    uv_faces: Int[np.ndarray, "f 3"],
    faces: Int[np.ndarray, "f 3"],
) -> tuple[Float[np.ndarray, "u 2"], Int[np.ndarray, "f 3"]]:
    """The files' chart of the given faces within [0, 1], each part in its square."""
    tile = np.floor(uv[uv_faces[:, 0], 0]).astype(int)
    square = tile.copy()
    for place, part in zip((4, 5), rig.EYEBALLS, strict=True):
        square[_within(faces, part)] = place
    # The eyes share points of the chart: one number for each pair.
    pairs = square[:, None] * len(uv) + uv_faces
    used, packed = np.unique(pairs, return_inverse=True)
    left_bottom, side = np.split(np.array(SQUARES)[used // len(uv)], [2], axis=1)
    inside = uv[used % len(uv)] % 1.0
    placed = left_bottom + side * (INSET + (1.0 - 2.0 * INSET) * inside)
    return placed, packed.reshape(-1, 3)


def regions(
    template: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    uv: Float[np.ndarray, "n 2"],
    uv_faces: Int[np.ndarray, "f 3"],
    marks: Int[np.ndarray, "68"],
) -> dict[str, Bool[np.ndarray, " v"]]:
    """Vertex masks for every name in `model.REGIONS`; the chart is the files'.

    The shoulders belong to the neck, and to its boundary, where the head ends. The gums
    are wet like the mouth's bag, so they belong to it. The skin behind the lids belongs
    to the face and to the eyes' regions.
    """
    masks = {name: np.zeros(len(template), bool) for name in head_model.REGIONS}
    masks.update(_parts(len(template), faces, uv, uv_faces))
    place = np.full((len(template), 2), np.nan)  # Comparisons with nan are false.
    place[rig.FACE] = _face_chart(faces, uv, uv_faces) - np.array([0.5, 0.0])
    aside, height = np.abs(place[:, 0]), place[:, 1]
    ear = (height > EAR[0][0]) & (height < EAR[0][-1])
    ear &= aside > np.interp(height, *EAR)
    ear[rig.BACK] = _is_ear_back(template[rig.BACK])
    masks["left_ear"] = ear & (template[:, 0] > 0)
    masks["right_ear"] = ear & (template[:, 0] < 0)
    scalp, neck = height > np.interp(aside, *HAIRLINE), height < np.interp(aside, *JAW)
    scalp[rig.BACK] = template[rig.BACK, 1] > np.interp(template[rig.BACK, 2], *NAPE)
    neck[rig.BACK] = ~scalp[rig.BACK]
    masks["scalp"], masks["neck"] = scalp & ~ear, neck & ~ear
    masks["boundary"] = masks["neck"] & (template @ NECK_BASE[0] < NECK_BASE[1])
    skin = np.zeros(len(template), bool)
    skin[rig.FACE] = skin[rig.EYE_SOCKETS] = True
    masks["face"] = skin & ~(scalp | neck | ear)
    masks["forehead"] = masks["face"] & (height > BROW)
    masks["lips"] = _enclosed(place, place[marks[48:60]])
    outline = np.concatenate([NOSE, NOSE[::-1] * np.array([-1.0, 1.0])])
    masks["nose"] = _enclosed(place, outline)
    for side, part in zip(("left", "right"), rig.EYEBALLS, strict=True):
        offset = (template - rig.sphere_centre(template[part]))[:, :2] / EYE_REGION
        near = (offset**2).sum(axis=1) < 1.0
        masks[f"{side}_eye_region"] = near & masks["face"]
        masks["nose"] &= ~near
    return masks


def _is_ear_back(points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    x, y, z = points.T
    (low, high), depth, width = EAR_BACK
    return (y > low) & (y < high) & (z > depth) & (np.abs(x) > width)


def vertex_embedding(
    vertices: Int[np.ndarray, " k"], faces: Int[np.ndarray, "f 3"]
) -> head_model.LandmarkEmbedding:
    """Vertices as points of the first face that each is a corner of."""
    is_corner = faces[None] == vertices[:, None, None]
    chosen = is_corner.any(axis=2).argmax(axis=1)
    share = is_corner[np.arange(len(vertices)), chosen]
    return _embedding(chosen, share.astype(np.float32))


def mark_embedding(
    template: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    marks: Int[np.ndarray, "68"],
) -> head_model.LandmarkEmbedding:
    """iBUG 68: the files' marks, moved over the skin by `DETECTED`, seen from ahead."""
    shift = np.zeros((68, 2))
    for mark, (aside, up) in DETECTED.items():
        shift[landmarks.IBUG_MIRROR[mark]] = np.array([-aside, up]) / 1000.0
        shift[mark] = np.array([aside, up]) / 1000.0
    embedding = vertex_embedding(marks, faces)
    chosen, shares = (np.array(x) for x in (embedding.faces, embedding.barycentrics))
    skin = np.flatnonzero(_within(faces, rig.FACE))
    corners = template[faces[skin]]
    origin = corners[:, 0, :2]
    sides = np.moveaxis(corners[:, 1:, :2] - origin[:, None], 1, 2)
    turned = np.linalg.det(sides)  # Twice the area; positive towards the viewer.
    seen = turned > 1e-12
    inverse = np.linalg.inv(np.where(seen[:, None, None], sides, np.eye(2)))
    for mark in np.flatnonzero(shift.any(axis=1)):
        old = template[marks[mark]]
        inner = np.einsum("fij,fj->fi", inverse, old[:2] + shift[mark] - origin)
        share = np.concatenate([1.0 - inner.sum(axis=1, keepdims=True), inner], axis=1)
        depth = np.abs(np.einsum("fk,fk->f", share, corners[..., 2]) - old[2])
        hit = seen & (share.min(axis=1) >= -1e-6)
        best = np.where(hit, depth, np.inf).argmin()
        chosen[mark], shares[mark] = skin[best], share[best]
    return _embedding(chosen, shares.astype(np.float32))


def iris_embedding(
    template: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    centres: Float[np.ndarray, "2 3"],
    irises: Float[np.ndarray, "2 3"],
) -> head_model.LandmarkEmbedding:
    """Where rays from the eyes' centres through the irises leave the eyeballs."""
    chosen, shares = [], []
    for part, centre, iris in zip(rig.EYEBALLS, centres, irises, strict=True):
        own = np.flatnonzero(_within(faces, part))
        corners = np.moveaxis(template[faces[own]] - centre, 1, 2)
        mixture = np.linalg.solve(corners, (iris - centre)[None, :, None])[..., 0]
        # Only the face that the ray meets has no negative share.
        hit = mixture.min(axis=1).argmax()
        chosen.append(own[hit])
        shares.append(mixture[hit] / mixture[hit].sum())
    return _embedding(np.array(chosen), np.array(shares, np.float32))


def _embedding(
    faces: Int[np.ndarray, " k"], shares: Float[np.ndarray, "k 3"]
) -> head_model.LandmarkEmbedding:
    return head_model.LandmarkEmbedding(
        faces=jnp.asarray(faces.astype(np.int32)), barycentrics=jnp.asarray(shares)
    )


def _within(faces: Int[np.ndarray, "f 3"], part: slice) -> Bool[np.ndarray, " f"]:
    return ((faces >= part.start) & (faces < part.stop)).all(axis=1)


def _parts(
    num_vertices: int,
    faces: Int[np.ndarray, "f 3"],
    uv: Float[np.ndarray, "n 2"],
    uv_faces: Int[np.ndarray, "f 3"],
) -> dict[str, Bool[np.ndarray, " v"]]:
    """Regions that are ranges of vertices, and the tongue."""
    number = np.arange(num_vertices)

    def within(*parts: slice) -> Bool[np.ndarray, " v"]:
        return np.any([(number >= p.start) & (number < p.stop) for p in parts], axis=0)

    gums = _within(faces, rig.GUMS)
    tongue = np.zeros(num_vertices, bool)
    tongue[faces[gums][_island(uv, uv_faces[gums], TONGUE_SEED)]] = True
    return {
        "left_eyeball": within(rig.EYEBALLS[0]),
        "right_eyeball": within(rig.EYEBALLS[1]),
        "mouth_interior": within(rig.MOUTH_BAG, rig.GUMS) & ~tongue,
        "upper_teeth": within(rig.UPPER_TEETH),
        "lower_teeth": within(rig.LOWER_TEETH),
        "tongue": tongue,
    }


def _island(
    uv: Float[np.ndarray, "n 2"],
    uv_faces: Int[np.ndarray, "f 3"],
    seed: tuple[float, float],
) -> Bool[np.ndarray, " f"]:
    """Faces that hang together, in the chart, with the one nearest to the seed."""
    middles = uv[uv_faces].mean(axis=1)
    inside = np.zeros(len(uv_faces), bool)
    inside[np.linalg.norm(middles - np.array(seed), axis=1).argmin()] = True
    reached = np.zeros(len(uv), bool)
    while True:
        reached[uv_faces[inside]] = True
        grown = reached[uv_faces].any(axis=1)
        if (grown == inside).all():
            return inside
        inside = grown


def _face_chart(
    faces: Int[np.ndarray, "f 3"],
    uv: Float[np.ndarray, "n 2"],
    uv_faces: Int[np.ndarray, "f 3"],
) -> Float[np.ndarray, "n_face 2"]:
    """The face's vertices in its tile."""
    own = _within(faces, rig.FACE) & (uv[uv_faces].max(axis=1)[:, 0] < 1.0)
    chart = np.full((rig.FACE.stop, 2), np.nan)
    chart[faces[own]] = uv[uv_faces[own]]
    return chart


def _enclosed(
    points: Float[np.ndarray, "n 2"], outline: Float[np.ndarray, "k 2"]
) -> Bool[np.ndarray, " n"]:
    """Points inside a closed polygon, by the even-odd rule."""
    start, end = outline, np.roll(outline, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (start[:, 1] > y) != (end[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        way = (y - start[:, 1]) / (end[:, 1] - start[:, 1])
        right = start[:, 0] + way * (end[:, 0] - start[:, 0]) > x
    return (crosses & right).sum(axis=1) % 2 == 1
