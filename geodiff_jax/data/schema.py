"""One training example: a picture of a head with all that is known about it.

Builders make `Example`s, `check` is the door that each of them passes, `features` and
`encode` say how they lie on disk (ArrayRecord, by TensorFlow Datasets).
"""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8
from PIL import Image

from geodiff_jax.head.model import HeadModel, HeadParams

MAPS = {
    "head_pose": 3,
    "position_code": 42,
    "expression_offset": 3,
    "surface": 3,
    "uv": 3,
}
"""Channels of what may be stored. The first three are at the latents' resolution; names
are those of `render.conditioning.Conditioning`. CAP4D's rays and masks follow from the
camera. `surface` is the posed head's chart, where Learn2Control draws what it learns:
positions of texels in the camera's world, metres, zero outside the chart. `uv` is what
the picture sees of it, for GeoFace's alignment: u, v and 1 at the centres of tokens of
two latents a side, zero off the head. Hair is not known to it. Half precision is off by
at most 1 / 4096, a hundredth of a texel of GeoFace's 32."""
OF_CHART = ("surface", "uv")
"""Those that a head without UV coordinates does not have."""
COVERED = 0.5
"""A pixel has a normal where at least this share of it is head (ours)."""
UNIT_TOLERANCE = 0.02
"""Of lengths of normals: 8 bits a channel round by 0.004."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What all examples of one dataset have in common."""

    image: int = 512
    """Pixels along a side of image, normals and mask (001, Sec 4.1)."""
    map: int = 64
    """Of condition maps: the latents' side."""
    maps: tuple[str, ...] = tuple(MAPS)
    """Which of `MAPS` are stored."""
    surface: int = 256
    """Texels along a side of `surface` (004, Sec 3.2)."""

    def of_map(self, name: str) -> tuple[int, int, int]:
        """Shape of one of `MAPS`."""
        sides = {"surface": self.surface, "uv": self.map // 2}
        side = sides.get(name, self.map)
        return side, side, MAPS[name]


@dataclasses.dataclass(frozen=True)
class Example:
    """One view of one instant, cut to a square and laid on white."""

    image: Float[np.ndarray, "h w 3"]
    """sRGB in [0, 1], white where there is no head."""
    normal: Float[np.ndarray, "h w 3"]
    """x right, y up, z towards the viewer; unit where `mask` >= 0.5, else zero."""
    mask: Float[np.ndarray, "h w"]
    """Share of each pixel that is head or hair, in [0, 1]."""
    camera_from_world: Float[np.ndarray, "7"]
    """Of this square picture: quaternion wxyz, then metres."""
    intrinsics: Float[np.ndarray, "4"]
    """fx, fy, cx, cy in pixels of this picture."""
    params: HeadParams
    """Of this frame, in the camera's world."""
    head_version: str
    """`HeadModel.version` that gives the parameters their meaning."""
    maps: dict[str, Float[np.ndarray, "m m c"]]
    """By names of `MAPS`; zero outside the head."""
    face_box: Float[np.ndarray, "4"]
    """left, top, right, bottom of the face, pixels."""
    subject: str
    clip: str
    """A recording in which light and looks stay: what references are drawn from."""
    frame: int
    """Instant of the clip, the same number in all its views."""
    view: str
    """Name of the camera; the same one throughout a clip."""
    synthetic: bool
    """Rendered or generated, not photographed (004, Sec 3.4)."""
    licence: str
    """What may be done with the picture, in words."""

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.subject}/{self.clip}/{self.frame}/{self.view}"


def unit_normals(
    normals: Float[np.ndarray, "h w 3"], mask: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Normals as the schema wants them: unit where there is head, zero elsewhere."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    shown = (mask[..., None] >= COVERED) & (length > 1e-6)
    return np.where(shown, normals / np.maximum(length, 1e-6), 0.0)


def check(example: Example, sizes: Sizes, head: HeadModel) -> None:
    """Raises ValueError, in one sentence, for what is no example of this schema."""
    try:
        _check_labels(example, head)
        _check_arrays(example, sizes, head)
        _check_picture(example)
        _check_normals(example)
        _check_camera(example)
    except ValueError as error:
        raise ValueError(f"{example.name}: {error}") from error


def features(sizes: Sizes, head: HeadModel) -> tfds.features.FeaturesDict:
    """How `encode`d examples lie on disk: `Example`, flattened by its names."""
    side = sizes.image

    def numbers(*shape: int, dtype: type = np.float32) -> tfds.features.Tensor:
        # As bytes: a list of floats would be read nine times slower.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    def picture(channels: int) -> tfds.features.Image:
        return tfds.features.Image(shape=(side, side, channels), encoding_format="png")

    return tfds.features.FeaturesDict(
        {
            "image": picture(3),
            "normal": picture(3),
            "mask": picture(1),
            "camera_from_world": numbers(7),
            "intrinsics": numbers(4),
            "face_box": numbers(4),
            **{name: numbers(*shape) for name, shape in _param_shapes(head).items()},
            **{
                name: numbers(*sizes.of_map(name), dtype=np.float16)
                for name in sizes.maps
            },
            **{
                name: tfds.features.Text()
                for name in ("head_version", "subject", "clip", "view", "licence")
            },
            "frame": np.int64,
            "synthetic": np.bool_,
        }
    )


def encode(example: Example) -> dict[str, np.ndarray]:
    """The example as `features` wants it, PNGs as arrays of their bytes."""
    pictures = {
        "image": np.round(255.0 * np.clip(example.image, 0.0, 1.0)).astype(np.uint8),
        "normal": bytes_from_normals(example.normal),
        "mask": np.round(255.0 * example.mask).astype(np.uint8),
    }
    labels = ("head_version", "subject", "clip", "frame", "view", "synthetic")
    arrays = {"camera_from_world", "intrinsics", "face_box"}
    return {
        **{name: _png(pixels) for name, pixels in pictures.items()},
        **{name: np.asarray(getattr(example, name), np.float32) for name in arrays},
        **{name: np.asarray(x, np.float32) for name, x in vars(example.params).items()},
        **{name: np.asarray(x, np.float16) for name, x in example.maps.items()},
        **{name: np.asarray(getattr(example, name)) for name in (*labels, "licence")},
    }


def bytes_from_normals(
    normals: Float[np.ndarray, "*b 3"],
) -> UInt8[np.ndarray, "*b 3"]:
    """Normals as bytes, 128 for 0, so that the background stays exactly zero."""
    return np.round(normals * 127.0 + 128.0).astype(np.uint8)


def normals_from_bytes(
    pixels: UInt8[np.ndarray, "*b 3"],
) -> Float[np.ndarray, "*b 3"]:
    """Inverts `bytes_from_normals` to 0.004."""
    return (pixels.astype(np.float32) - 128.0) / 127.0


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, " n"]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return np.frombuffer(stream.getvalue(), np.uint8)


def _param_shapes(head: HeadModel) -> dict[str, tuple[int, ...]]:
    return {
        "identity": (len(head.identity_names),),
        "expression": (len(head.expression_names),),
        "eyelids": (2,),
        "neck": (3,),
        "jaw": (3,),
        "eyes": (2, 3),
        "rotation": (3,),
        "translation": (3,),
    }


def _check_labels(example: Example, head: HeadModel) -> None:
    for name in ("subject", "clip", "view", "licence"):
        if not getattr(example, name).strip():
            raise ValueError(f"Expected a {name}, got none; every example names its.")
    if example.head_version != head.version:
        raise ValueError(
            f"Expected parameters of the head {head.version}, got "
            f"{example.head_version}; track the recording with this head."
        )


def _check_arrays(example: Example, sizes: Sizes, head: HeadModel) -> None:
    side = sizes.image
    if set(example.maps) != set(sizes.maps):
        raise ValueError(
            f"Expected the maps {sorted(sizes.maps)}, got {sorted(example.maps)}."
        )
    expected = {
        "image": (side, side, 3),
        "normal": (side, side, 3),
        "mask": (side, side),
        "camera_from_world": (7,),
        "intrinsics": (4,),
        "face_box": (4,),
        **_param_shapes(head),
        **{name: sizes.of_map(name) for name in sizes.maps},
    }
    given = {**vars(example), **vars(example.params), **example.maps}
    for name, shape in expected.items():
        value = np.asarray(given[name])
        if value.shape != shape:
            raise ValueError(f"Expected {name} of shape {shape}, got {value.shape}.")
        if not np.isfinite(value).all():
            raise ValueError(f"Expected a finite {name}, got NaN or infinity.")


def _check_picture(example: Example) -> None:
    for name in ("image", "mask"):
        values = getattr(example, name)
        if values.min() < 0.0 or values.max() > 1.0:
            raise ValueError(
                f"Expected {name} in [0, 1], got {values.min():g} to {values.max():g}."
            )
    if not (example.mask >= COVERED).any():
        raise ValueError("Expected a head in the picture, got an empty mask.")
    outside = example.image[example.mask == 0.0]
    if outside.size and outside.min() < 0.99:
        raise ValueError(
            "Expected white where the mask is zero, got another background; lay the "
            "picture on white."
        )


def _check_normals(example: Example) -> None:
    length = np.linalg.norm(example.normal, axis=-1)
    shown = example.mask >= COVERED
    if np.abs(length[~shown]).max(initial=0.0) > 0.0:
        raise ValueError(
            "Expected no normals outside the mask, got some; see schema.unit_normals."
        )
    # A hole in a mesh, or a grazing sample, may leave single pixels without.
    bare = np.mean(length[shown] == 0.0)
    wrong = np.abs(length[shown] - 1.0)[length[shown] > 0.0].max(initial=0.0)
    if bare > 0.01 or wrong > UNIT_TOLERANCE:
        raise ValueError(
            f"Expected unit normals inside the mask, got {bare:.1%} without one and "
            f"lengths up to {wrong:.3f} off."
        )
    # Normals of what is round point away from its middle, whatever it is.
    rows, columns = np.nonzero(shown)
    x, y, z = example.normal[shown].T
    outward = {
        "x to the right": np.mean(x * (columns - columns.mean())),
        "y up": np.mean(-y * (rows - rows.mean())),
        "z towards the viewer": z.mean(),
    }
    flipped = [axis for axis, value in outward.items() if value <= 0.0]
    if flipped:
        raise ValueError(
            f"Expected normals with {' and '.join(flipped)}, got the opposite; flip "
            "these axes of the estimator or the renderer."
        )


def _check_camera(example: Example) -> None:
    length = np.linalg.norm(example.camera_from_world[:4])
    if abs(length - 1.0) > 1e-3 or example.intrinsics[:2].min() <= 0.0:
        raise ValueError(
            f"Expected a unit quaternion and positive focal lengths, got length "
            f"{length:.4f} and {example.intrinsics[:2].tolist()} pixels."
        )
    left, top, right, bottom = example.face_box
    side = len(example.image)
    if not (right > left and bottom > top and right > 0 and bottom > 0) or (
        left >= side or top >= side
    ):
        raise ValueError(
            "Expected a face box (left, top, right, bottom) that meets the picture, "
            f"got {example.face_box.round(1).tolist()}."
        )
