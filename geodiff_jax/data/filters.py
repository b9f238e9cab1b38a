"""What is left out of training data (002, supplement D), each with its reason.

A filter takes numbers and gives a reason in words, or None where nothing is wrong.
CAP4D names what it drops, not at which values: those without a source are ours.
"""

import numpy as np
from jaxtyping import Float, Shaped

from geodiff_jax.data import schema

LEAST_VISIBLE = 0.95
"""Share of the head inside the picture (002, supplement D)."""
LEAST_MATTED = 0.85
"""Share of the drawn head that the matte must hold (ours)."""
MOST_MATTED = 0.97
"""Share of the square that a matte of one person can hold (ours)."""
CUT = 0.25
"""Acceleration of landmarks, in sizes of the face a frame squared, at a scene's end
(ours: a head that starts to turn by 300 degrees a second stays below 0.1)."""
SAME_FACE = 0.2
"""Overlap (intersection over union) from which two boxes are of one face (ours)."""


def out_of_picture(share: float) -> str | None:
    """Too little of the head is in the frame; `share` is that of its vertices."""
    if share >= LEAST_VISIBLE:
        return None
    # By steps of five percent: reports count equal reasons.
    return f"{int(20 * share) * 5} % of the head in the picture, or little more"


def faulty_matte(
    matte: Float[np.ndarray, "s s"], head: Float[np.ndarray, "s s"]
) -> str | None:
    """The matte and the fitted head disagree, or the background was kept.

    `head` is how much of each pixel the fitted head covers.
    """
    if matte.max(initial=0.0) < schema.COVERED:
        return "mask empty"
    drawn = head.sum()
    if drawn == 0.0:
        return "no head drawn in the picture"
    if (np.minimum(matte, head).sum() / drawn) < LEAST_MATTED:
        return "faulty matte: it leaves out much of the fitted head"
    if matte.mean() > MOST_MATTED:
        return "faulty matte: it holds nearly all of the picture"
    return None


def scene_cut(
    marks: Float[np.ndarray, "t k 2"], frame_ids: Shaped[np.ndarray, " t"]
) -> str | None:
    """Landmarks that jump, in pixels of the whole frame: two recordings in one clip.

    A cut accelerates them twice, on its two sides, a start or a stop once. Only frames
    that follow each other are compared.
    """
    follows = np.diff(frame_ids) == 1
    size = np.ptp(marks, axis=1).max(axis=-1)
    jump = marks[2:] - 2.0 * marks[1:-1] + marks[:-2]
    speed = np.linalg.norm(jump, axis=-1).mean(axis=-1) / np.maximum(size[1:-1], 1e-6)
    fast = (speed > CUT) & follows[1:] & follows[:-1]
    (both,) = np.nonzero(fast[1:] & fast[:-1])
    return None if both.size == 0 else f"scene cut after frame {frame_ids[both[0] + 1]}"


def several_faces(
    faces: Float[np.ndarray, "n 4"], own: Float[np.ndarray, "4"]
) -> str | None:
    """A detector found a face besides the tracked one; boxes in one picture's pixels.

    Boxes are (left, top, right, bottom).
    """
    others = [box for box in faces if _overlap(box, own) < SAME_FACE]
    return "several faces" if others else None


def hands(
    found: Float[np.ndarray, "n 4"], picture: Float[np.ndarray, "4"]
) -> str | None:
    """A detector found a hand in the part of the frame that the picture shows."""
    return "a hand" if any(_overlap(box, picture) > 0.0 for box in found) else None


def _overlap(one: Float[np.ndarray, "4"], other: Float[np.ndarray, "4"]) -> float:
    lower, upper = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.maximum(upper - lower, 0.0))
    areas = [np.prod(np.maximum(box[2:] - box[:2], 0.0)) for box in (one, other)]
    return float(shared / max(sum(areas) - shared, 1e-9))
