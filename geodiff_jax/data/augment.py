"""Driving crops: the face's box, shaken so that only the expression can be read off it.

GeoDiff4D (Sec 3.1) changes brightness, contrast, saturation, noise, blur, scale,
rotation and translation, of the driving crop alone. Its ranges are not given.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float, Int16, UInt8
from PIL import Image, ImageFilter

WINDOW = 1.6
"""Sides of the face's box that stored windows show: as far as `Ranges` may look, which
is 1.15 (cos 15 + sin 15) + 2 x 0.08 = 1.57."""
_LUMA = np.array([0.299, 0.587, 0.114])
_STORE_STEPS, _NOISE_STEPS = 64, 8
"""In which noise is counted: parts of a deviation, and of a byte. Their product with
six deviations of 10 bytes fits 16 bits, in which all is computed."""


@dataclasses.dataclass(frozen=True)
class Ranges:
    """How far crops are changed; all values are ours."""

    brightness: float = 0.2
    """Factors of 1 - 0.2 to 1 + 0.2; likewise the next two."""
    contrast: float = 0.2
    saturation: float = 0.2
    noise: float = 0.03
    """Largest standard deviation, images in [0, 1]."""
    blur: float = 1.5
    """Largest standard deviation, pixels of a 224 x 224 crop; others in proportion."""
    blurred: float = 0.3
    """Probability."""
    scale: float = 0.15
    rotation_degrees: float = 15.0
    shift: float = 0.08
    """Of the crop's side."""
    moved: float = 0.8
    """Probability of scale, rotation and shift, together."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One draw, the same for all frames of a clip; the defaults change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    noise: float = 0.0
    blur: float = 0.0
    scale: float = 1.0
    """Above 1, more of the surroundings is seen."""
    rotation_radians: float = 0.0
    """Above 0, the window turns clockwise, the face in it counter-clockwise."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Of the window, to the right and down, in sides of the box."""


def draw(generator: np.random.Generator, ranges: Ranges) -> Change:
    """A change within the ranges."""
    u = generator.uniform(-1.0, 1.0, 7).tolist()
    chance = generator.random(4).tolist()
    moved = float(chance[0] < ranges.moved)
    blurred = float(chance[1] < ranges.blurred)
    return Change(
        brightness=1.0 + ranges.brightness * u[0],
        contrast=1.0 + ranges.contrast * u[1],
        saturation=1.0 + ranges.saturation * u[2],
        noise=ranges.noise * chance[2],
        blur=blurred * ranges.blur * chance[3],
        scale=1.0 + moved * ranges.scale * u[3],
        rotation_radians=moved * math.radians(ranges.rotation_degrees) * u[4],
        shift=(moved * ranges.shift * u[5], moved * ranges.shift * u[6]),
    )


def crop(
    generator: np.random.Generator,
    picture: Image.Image,
    box: Float[np.ndarray, "4"],
    change: Change,
    *,
    size: int,
) -> UInt8[np.ndarray, "size size 3"]:
    """The square about the box of an RGB picture, changed; white beyond the picture.

    One resampling does crop, size and motion. The generator is for noise alone.
    """
    window = _window(box, change)
    shrink = int(math.hypot(window[0], window[1]) / size)
    if shrink > 1:  # Bilinear samples would skip pixels in between.
        picture = picture.reduce(shrink)
        window = window / shrink
    moved = picture.transform(
        (size, size),
        Image.Transform.AFFINE,
        data=tuple(_affine(window, size)),
        resample=Image.Resampling.BILINEAR,
        fillcolor=(255, 255, 255),
    )
    if change.blur > 0.0:
        box_blur = ImageFilter.BoxBlur(_box_radius(change.blur * size / 224.0))
        moved = moved.filter(box_blur).filter(box_blur)
    return _with_noise(generator, np.asarray(_recolor(moved, change)), change.noise)


def stored_window(
    picture: Image.Image, box: Float[np.ndarray, "4"], *, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The face with its surroundings, from which any driving crop can be cut."""
    generator = np.random.default_rng(0)  # There is no noise to draw.
    return crop(generator, picture, box, Change(scale=WINDOW), size=size)


def window_box(size: int) -> Float[np.ndarray, "4"]:
    """The face's box within its `stored_window`."""
    half = size / WINDOW / 2
    return np.array([size / 2 - half] * 2 + [size / 2 + half] * 2)


def _window(box: Float[np.ndarray, "4"], change: Change) -> Float[np.ndarray, "4"]:
    """(side cos, side sin, centre x, centre y) of the changed square, pixels."""
    left, top, right, bottom = (float(x) for x in box)
    side = max(right - left, bottom - top)
    x = (left + right) / 2 + side * change.shift[0]
    y = (top + bottom) / 2 + side * change.shift[1]
    angle, scaled = change.rotation_radians, side * change.scale
    return np.array([scaled * np.cos(angle), scaled * np.sin(angle), x, y])


def _affine(window: Float[np.ndarray, "4"], size: int) -> Float[np.ndarray, "6"]:
    """Pillow's coefficients: from the crop's pixels to the picture's."""
    a, b = window[0] / size, window[1] / size
    half = size / 2
    x = window[2] - half * (a - b)
    y = window[3] - half * (b + a)
    return np.array([a, -b, x, b, a, y])


def _box_radius(deviation: float) -> float:
    """Of the box that gives this blur if it is drawn twice: a triangle, for which
    Pillow takes two thirds of the time of its Gaussian.

    A box of 2 n + 1 pixels and a part f of one more at either end has the variance
    (n (n + 1) (2 n + 1) / 3 + 2 f (n + 1)^2) / (2 n + 2 f + 1).
    """
    variance = deviation**2 / 2.0
    n = int((math.sqrt(1.0 + 12.0 * variance) - 1.0) / 2.0)
    more = (2 * n + 1) * (variance - n * (n + 1) / 3.0)
    return n + more / (2.0 * ((n + 1) ** 2 - variance))


def _recolor(picture: Image.Image, change: Change) -> Image.Image:
    """Saturation about grey, contrast about its mean, then brightness: one matrix."""
    own = change.saturation * np.eye(3) + (1.0 - change.saturation) * _LUMA
    grey = _LUMA @ picture.reduce(picture.size).getpixel((0, 0))  # The mean's.
    middle = np.full((3, 1), change.brightness * (1.0 - change.contrast) * grey)
    matrix = np.hstack([change.brightness * change.contrast * own, middle])
    return picture.convert("RGB", tuple(matrix.ravel().tolist()))


def _with_noise(
    generator: np.random.Generator, pixels: UInt8[np.ndarray, "h w 3"], deviation: float
) -> UInt8[np.ndarray, "h w 3"]:
    strength = round(_NOISE_STEPS * 255.0 * deviation)
    if not strength:
        return pixels
    noisy = strength * _normals(generator, pixels.shape)
    # To the nearest byte.
    noisy += _STORE_STEPS * _NOISE_STEPS // 2
    noisy //= _STORE_STEPS * _NOISE_STEPS
    noisy += pixels
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def _normals(
    generator: np.random.Generator, shape: tuple[int, ...]
) -> Int16[np.ndarray, "..."]:
    """Standard normal, in steps; from anywhere in a store, since drawing takes long."""
    count, store = math.prod(shape), _store()
    if 2 * count > len(store):
        return _steps(generator.standard_normal(shape, np.float32))
    begin = int(generator.integers(len(store) - count))
    return store[begin : begin + count].reshape(shape)


@functools.cache
def _store() -> Int16[np.ndarray, " n"]:
    """4 MB in every process that cuts crops."""
    return _steps(np.random.default_rng(0).standard_normal(2**21, np.float32))


def _steps(normals: Float[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
    return np.rint(_STORE_STEPS * normals).astype(np.int16)
