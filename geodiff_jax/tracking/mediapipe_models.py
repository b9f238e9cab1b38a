"""Everything that is asked of mediapipe 0.10.14, through its own interface.

Pixels go in as float RGB in [0, 1], results come back in the image's pixels.
mediapipe is an extra; nothing here is imported until it is used.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from geodiff_jax.io import images

NUM_POINTS = 478
MESH_SIZE = 512
"""Side of the square that the face mesh is shown (ours); it looks at 192² of it."""
MATTE_SIZE = 256
"""Side of the segmentation network's own input."""

_COMPANIONS = {
    "tensorflow_metadata": "pip install tensorflow-metadata==1.16.1",
    "importlib_resources": "pip install importlib_resources",
    "cv2": "apt-get install libgl1 libglib2.0-0",
}


def installed() -> bool:
    """Whether mediapipe is there, usable or not."""
    return importlib.util.find_spec("mediapipe") is not None


def missing_companions() -> dict[str, str]:
    """What mediapipe needs beside it but does not find: name -> the line that mends it.

    OpenCV counts as missing where it cannot load libGL.
    """
    missing = {}
    for name, remedy in _COMPANIONS.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            is_library = name == "cv2" and ".so" in str(error)
            missing["libGL" if is_library else name] = (
                "pip install 'geodiff_jax[portrait]'"
                if name == "cv2" and not is_library
                else remedy
            )
    return missing


def face_boxes(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "n 4"]:
    """(left, top, right, bottom) of the faces that either detector finds."""
    pixels = _eight_bits(image)
    height, width = pixels.shape[:2]
    boxes = []
    with _solutions() as solutions:
        for model in (0, 1):  # Near faces (within 2 m), then far ones.
            with solutions.face_detection.FaceDetection(
                model_selection=model, min_detection_confidence=0.5
            ) as detector:
                found = detector.process(pixels).detections or []
            for detection in found:
                box = detection.location_data.relative_bounding_box
                left, top = box.xmin * width, box.ymin * height
                right, bottom = left + box.width * width, top + box.height * height
                boxes.append([left, top, right, bottom])
    return np.array(boxes, np.float64).reshape(-1, 4)


def hand_boxes(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "n 4"]:
    """(left, top, right, bottom) of the hands, round their 21 points."""
    pixels = _eight_bits(image)
    size = np.array([pixels.shape[1], pixels.shape[0]], np.float64)
    with (
        _solutions() as solutions,
        solutions.hands.Hands(static_image_mode=True, max_num_hands=4) as detector,
    ):
        found = detector.process(pixels).multi_hand_landmarks or []
    points = [np.array([[p.x, p.y] for p in hand.landmark]) * size for hand in found]
    boxes = [np.concatenate([p.min(axis=0), p.max(axis=0)]) for p in points]
    return np.array(boxes, np.float64).reshape(-1, 4)


def face_meshes(
    crops: list[Float[np.ndarray, "h w 3"]],
) -> list[Float[np.ndarray, "478 3"] | None]:
    """The 478 points of the face in each crop: x, y and depth, all in its pixels."""
    results = []
    with (
        _solutions() as solutions,
        solutions.face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=True, max_num_faces=1
        ) as mesh,
    ):
        for crop in crops:
            height, width = crop.shape[:2]
            found = mesh.process(_eight_bits(crop)).multi_face_landmarks
            points = found and [(p.x, p.y, p.z) for p in found[0].landmark]
            scale = np.array([width, height, width], np.float64)
            results.append(np.array(points) * scale if points else None)
    return results


def person_mattes(
    crops: list[Float[np.ndarray, "h w 3"]],
) -> list[Float[np.ndarray, "256 256"]]:
    """How much of a person each cell of each square crop shows, in [0, 1]."""
    mattes = []
    with (
        _solutions() as solutions,
        solutions.selfie_segmentation.SelfieSegmentation(
            model_selection=0
        ) as segmentation,
    ):
        for crop in crops:
            small = images.resize(crop, width=MATTE_SIZE, height=MATTE_SIZE)
            mask = segmentation.process(_eight_bits(small)).segmentation_mask
            mattes.append(np.clip(np.asarray(mask, np.float32), 0.0, 1.0))
    return mattes


def _eight_bits(image: Float[np.ndarray, "h w 3"]) -> np.ndarray:
    return np.ascontiguousarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


@contextlib.contextmanager
def _solutions() -> Iterator[types.ModuleType]:
    """mediapipe's models, with its own chatter kept off the terminal."""
    with _silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            solutions = importlib.import_module("mediapipe").solutions
        except (ImportError, AttributeError) as error:
            raise _unusable(error) from error
        yield solutions


def _unusable(error: Exception) -> OSError:
    missing = missing_companions()
    if not missing:
        return OSError(
            f"Expected mediapipe 0.10.14, got one that fails to load ({error}); "
            "run `pip install 'geodiff_jax[portrait]'`."
        )
    remedies = " and ".join(f"`{line}`" for line in missing.values())
    return OSError(
        f"Cannot load mediapipe without {' and '.join(missing)}; run {remedies}."
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # The networks' runtime writes to the descriptor itself, past sys.stderr.
    sys.stderr.flush()
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
