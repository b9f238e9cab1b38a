"""Person mattes: from a coarse network output to the photo's own edges."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from geodiff_jax.io import images
from geodiff_jax.tracking import mediapipe_models

HEAD_WINDOW = 3.2
"""Side of the square round head and shoulders, in larger sides of the face's box."""
WORKING_SIZE = 1024
"""Larger side at which edges are sought (ours); they are applied at full size."""


def person(
    image: Float[np.ndarray, "h w 3"], box: Float[np.ndarray, "4"]
) -> Float[np.ndarray, "h w"]:
    """How much of each pixel is a person, in [0, 1]; `box` is the face in pixels.

    The network sees the whole photo once, and head and shoulders once more at its
    full resolution; there, edges follow the photo.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = head_window(box, width=width, height=height)
    head = image[top:bottom, left:right]
    coarse = [
        images.resize(matte, width=side, height=side)[: crop.shape[0], : crop.shape[1]]
        for crop in (image, head)
        for side in [max(crop.shape[:2])]
        for matte in mediapipe_models.person_mattes([_square(crop)])
    ]
    # Two and a half of the network's cells: as far as its outline may be wrong (ours).
    radius = 2.5 * max(head.shape[:2]) / mediapipe_models.MATTE_SIZE
    fine = levels(refine(coarse[1], head, radius=radius))
    matte = coarse[0].astype(np.float32)
    share = _feather(
        head.shape[:2], at_border=(left, top, width - right, height - bottom)
    )
    matte[top:bottom, left:right] += share * (fine - matte[top:bottom, left:right])
    return _joined_to(box, np.clip(matte, 0.0, 1.0))


def head_window(
    box: Float[np.ndarray, "4"], *, width: int, height: int
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of head and shoulders, inside the photo."""
    side = HEAD_WINDOW * max(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, top = max(int(x - side / 2), 0), max(int(y - side / 2), 0)
    return left, top, min(int(x + side / 2), width), min(int(y + side / 2), height)


def refine(
    coarse: Float[np.ndarray, "h w"],
    guide: Float[np.ndarray, "h w 3"],
    *,
    radius: float,
    epsilon: float = 1e-4,
) -> Float[np.ndarray, "h w"]:
    """Snaps a blurred matte to the edges of its image: guided filter with colour.

    In every window of `radius` pixels to each side the matte becomes an affine
    function of the colour (He, Sun and Tang, "Guided Image Filtering", Eqs. 14-16),
    fitted at `WORKING_SIZE` at most. `epsilon` is the squared contrast below which a
    window counts as flat.
    """
    height, width = coarse.shape
    scale = min(WORKING_SIZE / max(height, width), 1.0)
    size = {"width": max(int(width * scale), 1), "height": max(int(height * scale), 1)}
    slope, offset = _affine_windows(
        images.resize(coarse, **size).astype(np.float64),
        images.resize(guide, **size).astype(np.float64),
        reach=max(round(radius * scale), 1),
        epsilon=epsilon,
    )
    slope = images.resize(slope, width=width, height=height)
    offset = images.resize(offset, width=width, height=height)
    return np.clip(np.sum(slope * guide, axis=-1) + offset, 0.0, 1.0)


def levels(
    matte: Float[np.ndarray, "h w"], *, black: float = 0.1, white: float = 0.9
) -> Float[np.ndarray, "h w"]:
    """Stretches [black, white] to [0, 1]: removes the filter's faint halo (ours)."""
    return np.clip((matte - black) / (white - black), 0.0, 1.0)


def ellipse(
    box: Float[np.ndarray, "4"], *, width: int, height: int
) -> Float[np.ndarray, "height width"]:
    """What can be said without a network: an ellipse for the head, a band below it."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    centre = (box[0] + box[2]) / 2, box[1] + 0.4 * (box[3] - box[1])
    # Half axes of a head with hair, in sizes of the box from brows to chin (ours).
    half = 0.75 * (box[2] - box[0]), 0.95 * (box[3] - box[1])
    distance = np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1])
    head = np.clip((1.0 - distance) * half[0] / 2.0 + 0.5, 0.0, 1.0)
    neck = (np.abs(x - centre[0]) < 0.7 * half[0]) & (y > centre[1])
    return np.maximum(head, neck).astype(np.float32)


def _affine_windows(
    matte: Float[np.ndarray, "h w"],
    guide: Float[np.ndarray, "h w 3"],
    *,
    reach: int,
    epsilon: float,
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    mean_guide, mean_matte = _window_mean(guide, reach), _window_mean(matte, reach)
    covariance = _window_mean(guide[..., :, None] * guide[..., None, :], reach)
    covariance -= mean_guide[..., :, None] * mean_guide[..., None, :]
    cross = _window_mean(guide * matte[..., None], reach)
    cross -= mean_guide * mean_matte[..., None]
    slope = np.linalg.solve(covariance + epsilon * np.eye(3), cross[..., None])[..., 0]
    offset = mean_matte - np.sum(slope * mean_guide, axis=-1)
    return _window_mean(slope, reach), _window_mean(offset, reach)


def _window_mean(values: Float[np.ndarray, "h w *c"], reach: int) -> np.ndarray:
    mean = ndimage.uniform_filter1d(values, 2 * reach + 1, axis=0, mode="nearest")
    return ndimage.uniform_filter1d(mean, 2 * reach + 1, axis=1, mode="nearest")


def _joined_to(
    box: Float[np.ndarray, "4"], matte: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Without the parts that do not hang together with the face: other people."""
    labels, _ = ndimage.label(matte > 0.25)
    left, top = np.maximum(box[:2], 0).astype(int)
    right, bottom = box[2:].astype(int) + 1
    in_face = labels[top:bottom, left:right]
    in_face = in_face[in_face > 0]
    if in_face.size == 0:
        return matte
    own = labels == np.bincount(in_face).argmax()
    return np.where(ndimage.binary_dilation(own, iterations=3), matte, 0.0)


def _square(crop: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "s s 3"]:
    """The crop, continued to the right or below by its last pixels."""
    height, width = crop.shape[:2]
    side = max(height, width)
    return np.pad(crop, ((0, side - height), (0, side - width), (0, 0)), mode="edge")


def _feather(
    shape: tuple[int, int], *, at_border: tuple[int, int, int, int]
) -> Float[np.ndarray, "h w"]:
    """One inside, falling to zero over a tenth at the sides that lie in the photo.

    `at_border` is the distance of each side (left, top, right, bottom) to the photo's.
    """
    height, width = shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    share = np.ones(shape, np.float32)
    ramps = (x, y[:, None], x[::-1], y[::-1, None])
    for ramp, distance in zip(ramps, at_border, strict=True):
        if distance > 0:
            share *= np.clip(ramp / (0.1 * max(shape)), 0.0, 1.0)
    return share
