"""What a photo shows, before any head model: one face's landmarks and the matte.

Sources, best first: a hand-corrected landmarks file, mediapipe, and scikit-image's
frontal-face cascade with an average face, which is degraded and says so.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
from jaxtyping import Float
from skimage import data as skimage_data
from skimage import feature

from geodiff_jax.head import landmarks
from geodiff_jax.io import images
from geodiff_jax.tracking import matte as person_matte
from geodiff_jax.tracking import mediapipe_models

MIN_FACE_PIXELS = 64
"""Smallest usable face: the geometric mean of its box's sides, brows to chin."""
SEARCH_SIZE = 2048
"""Larger side of the copy in which faces are sought (ours)."""
AVERAGE_FACE: Float[np.ndarray, "68 2"] = np.reshape(
    [
        int(number) / 100
        for number in """
    -81 3  -80 20  -78 37  -68 76  -60 91  -49 102  -31 117  -14 123
    0 123  14 123  31 117  49 102  60 91  68 76  78 37  80 20  81 3
    -62 -22  -55 -31  -44 -35  -30 -35  -15 -32  15 -32  30 -35
    44 -35  55 -31  62 -22  0 -5  0 5  0 21  0 40  -17 52  -7 55  0 54
    7 55  17 52  -50 0  -43 -5  -31 -5  -20 3  -31 6  -41 6  20 3
    31 -5  43 -5  50 0  41 6  31 6  -28 77  -21 73  -8 67  0 69  8 67
    21 73  28 77  21 82  10 87  0 88  -10 87  -21 82  -25 78  -13 77
    0 78  13 77  25 78  13 77  0 78  -13 77
    """.split()
    ],
    (68, 2),
)
"""iBUG 68 of the built-in head; outer eye corners at (-0.5, 0) and (0.5, 0)."""


@dataclasses.dataclass(frozen=True)
class Detection:
    """The largest face of a photo, in the photo's pixels (pixel centres at +0.5)."""

    box: Float[np.ndarray, "4"]
    """Left, top, right, bottom of the landmarks: hairline or brows to chin."""
    ibug: Float[np.ndarray, "68 2"]
    """iBUG 68."""
    irises: Float[np.ndarray, "2 2"] | None
    """Centres, the subject's left then right."""
    landmarks_478: Float[np.ndarray, "478 3"] | None
    """MediaPipe's face mesh; the depth is relative, in pixels too."""
    matte: Float[np.ndarray, "h w"]
    """How much of each pixel is the person, in [0, 1]."""
    landmarks_source: str
    """"file", "mediapipe" or "average face"."""
    matte_source: str
    """"alpha", "mediapipe" or "ellipse"."""
    degraded: bool
    """Whether landmarks or matte are only a rough guess."""
    warnings: tuple[str, ...]
    """What the user should know, one sentence each."""


@dataclasses.dataclass(frozen=True)
class _Face:
    box: Float[np.ndarray, "4"]
    ibug: Float[np.ndarray, "68 2"]
    irises: Float[np.ndarray, "2 2"] | None = None
    mesh: Float[np.ndarray, "478 3"] | None = None
    source: str = "mediapipe"
    warnings: tuple[str, ...] = ()


def detect(
    photo: images.Photo, *, landmarks_file: str | os.PathLike | None = None
) -> Detection:
    """Finds the largest face of a photo and what of it is the person.

    `landmarks_file` is JSON: {"ibug68": [[x, y], ...]} and, if wanted, {"irises":
    [[x, y] of the left, of the right]}, in pixels of the upright photo. Raises
    ValueError for a photo without a usable face or a wrong file, OSError where
    mediapipe is installed but cannot run: each in one sentence.
    """
    image = _over_white(photo)
    usable = mediapipe_models.installed()
    if landmarks_file is not None:
        face = _read_landmarks(landmarks_file, width=photo.width, height=photo.height)
    else:
        face = _mesh_face(image) if usable else _average_face(image)
    _check_size(face.box)
    matte, source, notes = _matte(photo, image, face.box, usable=usable)
    return Detection(
        box=face.box,
        ibug=face.ibug,
        irises=face.irises,
        landmarks_478=face.mesh,
        matte=matte,
        landmarks_source=face.source,
        matte_source=source,
        degraded=face.source == "average face" or source == "ellipse",
        warnings=face.warnings + notes,
    )


def face_size(box: Float[np.ndarray, "4"]) -> float:
    """Geometric mean of a box's sides, pixels."""
    return float(np.sqrt(np.prod(box[2:] - box[:2])))


def _check_size(box: Float[np.ndarray, "4"]) -> None:
    size = face_size(box)
    if size < MIN_FACE_PIXELS:
        raise ValueError(
            f"Expected a face of at least {MIN_FACE_PIXELS} pixels, got one of "
            f"{size:.0f}; use a larger photo."
        )


def _over_white(photo: images.Photo) -> Float[np.ndarray, "h w 3"]:
    if photo.alpha is None:
        return photo.rgb
    alpha = photo.alpha[..., None]
    return alpha * photo.rgb + (1.0 - alpha)


def _matte(
    photo: images.Photo,
    image: Float[np.ndarray, "h w 3"],
    box: Float[np.ndarray, "4"],
    *,
    usable: bool,
) -> tuple[Float[np.ndarray, "h w"], str, tuple[str, ...]]:
    """(matte, its source, warnings)."""
    if photo.alpha is not None:
        left, top = np.maximum(box[:2], 0).astype(int)
        right, bottom = box[2:].astype(int) + 1
        if photo.alpha[top:bottom, left:right].mean() > 0.5:
            return photo.alpha, "alpha", ()
    if usable:
        return person_matte.person(image, box), "mediapipe", ()
    note = (
        "Without mediapipe the person's outline is only an ellipse: the result is "
        "degraded; run `pip install 'geodiff_jax[portrait]'`."
    )
    ellipse = person_matte.ellipse(box, width=photo.width, height=photo.height)
    return ellipse, "ellipse", (note,)


def _mesh_face(image: Float[np.ndarray, "h w 3"]) -> _Face:
    """The largest face by mediapipe, averaged over crops."""
    boxes = _face_boxes(image)
    for box in boxes:
        mesh = _mesh_in_square(image, _square(box, scale=2.0))
        if mesh is not None:
            ibug, irises, mesh = _averaged_mesh(image, mesh)
            bounds = _bounds(mesh[:468, :2])
            return _Face(bounds, ibug, irises, mesh, warnings=_several(len(boxes)))
    raise ValueError(
        "Found no face in the photo; use one that shows a face from the front, or give "
        "its landmarks in a file."
    )


def _several(count: int) -> tuple[str, ...]:
    if count < 2:
        return ()
    return (f"The photo shows {count} faces: the largest one is used.",)


def _face_boxes(image: Float[np.ndarray, "h w 3"]) -> list[Float[np.ndarray, "4"]]:
    """Boxes of all faces, largest first; small ones are sought in ever finer tiles."""
    height, width = image.shape[:2]
    scale = min(SEARCH_SIZE / max(height, width), 1.0)
    small = images.resize(image, width=int(width * scale), height=int(height * scale))
    # A face that fills the frame is found only with some margin round it.
    for parts, margin in ((1, 0.0), (1, 0.5), (2, 0.0), (4, 0.0)):
        if parts > 1 and max(small.shape) / parts < 2 * MIN_FACE_PIXELS * scale:
            break  # Any face that is small in such a tile is too small anyway.
        boxes = _boxes_in_tiles(small, parts=parts, margin=margin)
        if boxes:
            return [box / scale for box in boxes]
    return []


def _boxes_in_tiles(
    image: Float[np.ndarray, "h w 3"], *, parts: int, margin: float
) -> list[Float[np.ndarray, "4"]]:
    """Distinct boxes found in square tiles that overlap by half."""
    height, width = image.shape[:2]
    side = max(height, width) / parts
    pad = int(margin * side)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    found = []
    for top in _starts(height, side):
        for left in _starts(width, side):
            bottom, right = int(top + side) + 2 * pad, int(left + side) + 2 * pad
            tile = padded[top:bottom, left:right]
            corner = np.array([left, top, left, top]) - pad
            found += list(mediapipe_models.face_boxes(tile) + corner)
    return _distinct(found)


def _starts(length: int, side: float) -> list[int]:
    if length <= side:
        return [0]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return [int(start) for start in np.linspace(0, length - side, count)]


def _distinct(boxes: list[Float[np.ndarray, "4"]]) -> list[Float[np.ndarray, "4"]]:
    """Largest first, without those whose centre lies in a larger one."""
    kept: list[Float[np.ndarray, "4"]] = []
    for box in sorted(boxes, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1])):
        centre = (box[:2] + box[2:]) / 2
        if not any((k[:2] < centre).all() and (centre < k[2:]).all() for k in kept):
            kept.append(box)
    return kept


def _square(
    box: Float[np.ndarray, "4"],
    *,
    scale: float,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Float[np.ndarray, "3"]:
    """Left, top and side of a square round the box, in whole pixels."""
    size = max(box[2] - box[0], box[3] - box[1])
    centre = (box[:2] + box[2:]) / 2 + size * np.asarray(shift)
    side = max(round(scale * size), 8)
    return np.array([*np.round(centre - side / 2), side])


def _crop(
    image: Float[np.ndarray, "h w 3"], square: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "s s 3"]:
    """The square at the mesh's size; beyond the photo its edge goes on."""
    left, top, side = square.astype(int)
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    size = mediapipe_models.MESH_SIZE
    return images.resize(image[rows[:, None], columns], width=size, height=size)


def _to_photo(
    mesh: Float[np.ndarray, "478 3"], square: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "478 3"]:
    scaled = mesh * (square[2] / mediapipe_models.MESH_SIZE)
    return scaled + np.array([square[0], square[1], 0.0])


def _mesh_in_square(
    image: Float[np.ndarray, "h w 3"], square: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "478 3"] | None:
    mesh = mediapipe_models.face_meshes([_crop(image, square)])[0]
    return None if mesh is None else _to_photo(mesh, square)


# Scale and shift, in face sizes, of the crops whose results are averaged (ours).
_CROPS = (
    (1.6, (0.0, 0.0)),
    (1.8, (0.05, 0.03)),
    (2.0, (-0.05, 0.0)),
    (2.2, (0.03, -0.05)),
    (2.5, (0.0, 0.05)),
)


def _averaged_mesh(
    image: Float[np.ndarray, "h w 3"], first: Float[np.ndarray, "478 3"]
) -> tuple[
    Float[np.ndarray, "68 2"], Float[np.ndarray, "2 2"], Float[np.ndarray, "478 3"]
]:
    """(iBUG 68, irises, all points): means over crops, the first two also mirrored.

    One run repeats within 0.7 % of the outer-eye distance only, and left and right
    differ by 1.1 %.
    """
    squares = [_square(_bounds(first[:468, :2]), scale=s, shift=d) for s, d in _CROPS]
    crops = [_crop(image, square) for square in squares]
    meshes = mediapipe_models.face_meshes(crops)
    mirrored = mediapipe_models.face_meshes([crop[:, ::-1] for crop in crops])
    upright = [
        _to_photo(mesh, square)
        for mesh, square in zip(meshes, squares, strict=True)
        if mesh is not None
    ] or [first]
    marks = [(landmarks.ibug_from_mediapipe(m)[:, :2], _irises(m)) for m in upright]
    for mesh, square in zip(mirrored, squares, strict=True):
        if mesh is not None:
            flipped = mesh * [-1, 1, 1] + [mediapipe_models.MESH_SIZE, 0, 0]
            points = _to_photo(flipped, square)
            ibug = landmarks.ibug_from_mediapipe(points)[landmarks.IBUG_MIRROR, :2]
            marks.append((ibug, _irises(points)[::-1]))
    ibug, irises = (np.mean(values, axis=0) for values in zip(*marks, strict=True))
    return ibug, irises, np.mean(upright, axis=0)


def _irises(mesh: Float[np.ndarray, "478 3"]) -> Float[np.ndarray, "2 2"]:
    """Centres, left then right."""
    sides = landmarks.MEDIAPIPE_IRISES
    return np.stack([mesh[sides[s], :2].mean(axis=0) for s in ("left", "right")])


def _bounds(points: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "4"]:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _average_face(image: Float[np.ndarray, "h w 3"]) -> _Face:
    """A frontal average face put into the cascade's largest box."""
    height, width = image.shape[:2]
    scale = min(800 / max(height, width), 1.0)
    small = images.resize(image, width=int(width * scale), height=int(height * scale))
    cascade = feature.Cascade(skimage_data.lbp_frontal_face_cascade_filename())
    found = cascade.detect_multi_scale(
        img=np.round(small * 255).astype(np.uint8),
        scale_factor=1.2,
        step_ratio=1,
        min_size=(40, 40),
        max_size=small.shape[:2],
    )
    boxes = _distinct(
        [
            np.array([f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]], float)
            for f in found
        ]
    )
    if not boxes:
        raise ValueError(
            "Found no face in the photo; install mediapipe with `pip install "
            "'geodiff_jax[portrait]'`, or use one that shows a face from the front."
        )
    left, top, right, _ = boxes[0] / scale
    size = right - left
    # The cascade's box against eyes: measured on five portraits.
    eyes = np.array([left + 0.5 * size, top + 0.375 * size])
    ibug = eyes + 0.5 * size * AVERAGE_FACE
    note = (
        "Without mediapipe the landmarks are those of an average face in the face's "
        "box: the result is degraded; run `pip install 'geodiff_jax[portrait]'`."
    )
    return _Face(
        _bounds(ibug),
        ibug,
        source="average face",
        warnings=(note,),  # Its other boxes are mostly no faces.
    )


def _read_landmarks(path: str | os.PathLike, *, width: int, height: int) -> _Face:
    """Landmarks that a person has placed or corrected."""
    source = pathlib.Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no landmarks file at {source}.")
    form = '{"ibug68": a list of 68 [x, y]} in pixels of the upright photo'
    try:
        content = json.loads(source.read_bytes())
        ibug = np.array(content["ibug68"], np.float64)
        irises = content.get("irises")
        irises = None if irises is None else np.array(irises, np.float64)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected {form}, got {source}, which is not it.") from error
    for name, points, count in (("ibug68", ibug, 68), ("irises", irises, 2)):
        if points is not None and points.shape != (count, 2):
            raise ValueError(
                f"Expected {form}, got {name} of shape {points.shape} in {source}."
            )
    inside = (ibug[17:] >= 0).all() and (ibug[17:] <= [width, height]).all()
    if not inside:
        raise ValueError(
            f"Expected landmarks inside the {width} x {height} photo, got others in "
            f"{source}; give them in pixels of the upright photo."
        )
    return _Face(_bounds(ibug), ibug, irises, source="file")
