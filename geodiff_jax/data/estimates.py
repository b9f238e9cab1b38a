"""Normals and mattes where a dataset has none: from files, from networks, from the fit.

A source is named by a text: "fit" (the fitted mesh), a folder of pictures of whole
frames, SUBJECT/CLIP/VIEW/FRAME.png with six digits for the frame, or an ONNX file.
Mattes are grey; normals are coloured, (n + 1) / 2 in [0, 1], grey where there are none,
of any signs: estimators disagree on their axes, so the face of the fitted mesh decides
which are flipped.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from geodiff_jax.data import framing
from geodiff_jax.io import images
from geodiff_jax.tracking import matte as person_matte
from geodiff_jax.tracking import mediapipe_models

FIT, MEDIAPIPE = "fit", "mediapipe"
LEAST_AGREEMENT = 0.5
"""Mean cosine between estimated and fitted normals on the face, axes in order (ours:
a smooth fit and a detailed estimate of one face agree to 0.9)."""


def check_source(source: str | None, *, what: str) -> None:
    """Raises ValueError or OSError for a source that cannot be used.

    `what` is "normals" or "matte": mattes may come from mediapipe as well.
    """
    if source is None or source == FIT:
        return
    if what == "matte" and source == MEDIAPIPE:
        if not mediapipe_models.installed():
            raise ValueError(
                "Expected mediapipe for --matte=mediapipe, got none; run `pip install "
                "'geodiff_jax[portrait]'`."
            )
        return
    path = pathlib.Path(source)
    if path.suffix == ".onnx" and path.is_file():
        _session(source)
    elif not path.is_dir():
        kinds = f"{FIT}, {MEDIAPIPE}," if what == "matte" else f"{FIT},"
        raise ValueError(
            f"Expected {kinds} a folder or an .onnx file for --{what}, got {source}."
        )


def check_detectors(kinds: Sequence[str]) -> None:
    """Raises ValueError where detectors are asked for and mediapipe is missing."""
    if kinds and not mediapipe_models.installed():
        raise ValueError(
            f"Expected mediapipe for --detect={kinds[0]}, got none; run `pip install "
            "'geodiff_jax[portrait]'`."
        )


def read_picture(
    source: str | None, subject: str, clip: str, view: str, frame: int
) -> Float[np.ndarray, "h w 3"] | None:
    """A picture of a source's folder; None where the source is no folder.

    Raises ValueError or FileNotFoundError in one sentence.
    """
    if source is None or not pathlib.Path(source).is_dir():
        return None
    path = pathlib.Path(source) / subject / clip / view / f"{frame:06d}.png"
    return images.read_image(path).rgb


def normals_of_colors(colors: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Normals that a folder's picture shows, in its own axes; zero where it is grey."""
    normals = 2.0 * colors - 1.0
    # No byte is the middle of 0 and 255: grey would become a normal of some direction.
    grey = np.abs(normals).max(axis=-1, keepdims=True) < 0.01
    return np.where(grey, 0.0, normals)


def estimate_matte(
    source: str,
    square: framing.Square,
    face_box: Float[np.ndarray, "4"],
    drawn: Float[np.ndarray, "s s"],
) -> Float[np.ndarray, "s s"]:
    """How much of each pixel of a square is the person; zero beyond the frame.

    `drawn` is how much the fitted head covers.
    """
    if source == FIT:
        return drawn * square.inside
    if source == MEDIAPIPE:
        return person_matte.person(square.image, face_box) * square.inside
    found = run_onnx(source, square.image)
    if found.shape[-1] != 1:
        raise ValueError(
            f"Expected one channel of {source}, got {found.shape[-1]}; choose a "
            "network that tells the person from the background."
        )
    return np.clip(found[..., 0], 0.0, 1.0) * square.inside


def estimate_normals(
    source: str, picture: Float[np.ndarray, "s s 3"]
) -> Float[np.ndarray, "s s 3"]:
    """A network's normals of a picture on white, in the network's own axes."""
    found = run_onnx(source, picture)
    if found.shape[-1] != 3:
        raise ValueError(
            f"Expected three channels of {source}, got {found.shape[-1]}; choose a "
            "network that estimates normals."
        )
    # Some networks return colours, some directions: only the latter go below zero.
    return found if found.min() < -0.05 else 2.0 * found - 1.0


def in_house_axes(
    normals: Float[np.ndarray, "s s 3"],
    fitted: Float[np.ndarray, "s s 3"],
    face: Bool[np.ndarray, "s s"],
) -> Float[np.ndarray, "s s 3"]:
    """Given normals with x right, y up and z towards the viewer.

    Their channels may come in either order, as RGB and as BGR; that which agrees more
    with the fitted mesh on the face counts, each axis with the sign by which it agrees.

    Raises:
      ValueError: no face is seen, or nothing makes the two agree.
    """
    if not face.any():
        raise ValueError("no face in the picture to compare normals on")
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = normals / np.maximum(length, 1e-6)

    def products(order: slice) -> Float[np.ndarray, "3"]:
        return np.mean(unit[face][:, order] * fitted[face], axis=0)

    order = max(_ORDERS, key=lambda order: np.abs(products(order)).sum())
    agreement = products(order)
    if np.abs(agreement).sum() < LEAST_AGREEMENT:
        raise ValueError("normals disagree with the fitted face")
    return unit[..., order] * np.where(agreement < 0.0, -1.0, 1.0)


_ORDERS = (slice(None), slice(None, None, -1))


def run_onnx(
    path: str, picture: Float[np.ndarray, "s s 3"]
) -> Float[np.ndarray, "s s c"]:
    """A network's only picture, at the size of the one it is shown.

    It is given RGB in [0, 1], (1, 3, h, w) or (1, h, w, 3) as its input says, at the
    size that its input says, if it says one.
    """
    session = _session(path)
    (entry,) = session.get_inputs()[:1]
    first = entry.shape[1] == 3
    sides = entry.shape[2:4] if first else entry.shape[1:3]
    side = len(picture)
    height, width = (x if isinstance(x, int) else side for x in sides)
    pixels = images.resize(picture, width=width, height=height).astype(np.float32)
    batch = (np.moveaxis(pixels, -1, 0) if first else pixels)[None]
    found = np.asarray(session.run(None, {entry.name: batch})[0], np.float32)[0]
    if found.ndim == 2:
        found = found[..., None]
    elif found.shape[0] in (1, 3) and found.shape[-1] not in (1, 3):
        found = np.moveaxis(found, 0, -1)
    return images.resize(found, width=side, height=side)


@functools.cache
def _session(path: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"Expected onnxruntime for {path}, got none; run `pip install "
            "'geodiff_jax[datasets]'`."
        ) from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # The runtime raises kinds of its own.
        raise ValueError(
            f"Expected an ONNX network in {path}, got something that cannot be loaded "
            f"({type(error).__name__})."
        ) from error
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(
            f"Expected a network of RGB pictures, (1, 3, h, w) or (1, h, w, 3), in "
            f"{path}, got one of {tuple(shape)}."
        )
    return session
