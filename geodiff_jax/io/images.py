"""Photographs as arrays: upright, RGB, float [0, 1], whatever the file was.

Values stay as the file encodes them, taken as sRGB; colour profiles are not applied.
"""

import dataclasses
import hashlib
import io
import math
import os
import pathlib
import warnings
from collections.abc import Mapping

import av
import av.error
import numpy as np
from jaxtyping import Float
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from geodiff_jax.io import atomic

MAX_PIXELS = 100_000_000
"""Larger images are refused unread (ours): four times a good camera's."""
MAX_BYTES = 1_000_000_000

# The diagonal of 36 x 24 mm film, to which "35 mm equivalent" refers (CIPA DCG-001).
_FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
_MM_PER_RESOLUTION_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


@dataclasses.dataclass(frozen=True)
class Photo:
    """One upright photograph."""

    rgb: Float[np.ndarray, "h w 3"]
    """float32 in [0, 1], sRGB."""
    alpha: Float[np.ndarray, "h w"] | None
    """float32 in [0, 1]; None where the file has none or one that is constant."""
    focal_pixels: float | None
    """From EXIF; None where unknown."""
    sha256: str
    """Of the file's bytes; of the pixels for a photo made from an array."""
    path: pathlib.Path | None

    @property
    def height(self) -> int:
        """Rows of the upright photo."""
        return self.rgb.shape[0]

    @property
    def width(self) -> int:
        """Columns of the upright photo."""
        return self.rgb.shape[1]


def read_image(path: str | os.PathLike) -> Photo:
    """Reads a photograph of any usual kind: 8 or 16 bit, grey, palette, RGBA, CMYK.

    The first picture of a film-like file counts. Raises FileNotFoundError or
    ValueError in one sentence.
    """
    source = pathlib.Path(path)
    content = _read_bytes(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; the bound below is the one that counts.
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            _check_size(source, *picture.size)
            exif = picture.getexif()
            upright = ImageOps.exif_transpose(_in_eight_bits(picture))
    except _Refused:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any kind.
        raise ValueError(
            f"Expected an image, got {source}, which cannot be decoded "
            f"({_first_line(error)}); convert it to PNG or JPEG first."
        ) from error
    rgb, alpha = _channels(upright)
    return Photo(
        rgb=rgb,
        alpha=alpha,
        focal_pixels=_focal_pixels(exif, *upright.size),
        sha256=hashlib.sha256(content).hexdigest(),
        path=source,
    )


def photo_from_array(image: np.ndarray, *, focal_pixels: float | None = None) -> Photo:
    """A photo of pixels in memory: (h, w), (h, w, 3) or (h, w, 4), uint8 or [0, 1]."""
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            "Expected pixels of shape (h, w), (h, w, 3) or (h, w, 4), got "
            f"{image.shape}; put the channels last."
        )
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    scale = 255.0 if image.dtype == np.uint8 else 1.0
    pixels = np.clip(image.astype(np.float32) / scale, 0.0, 1.0)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    alpha = _varying(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Photo(np.ascontiguousarray(rgb), alpha, focal_pixels, digest, None)


def read_exr(path: str | os.PathLike) -> Float[np.ndarray, "h w 3"]:
    """Three channels of an OpenEXR file as they are: R, G, B, or X, Y, Z.

    FFmpeg's decoder reads them; nothing is clipped or encoded. Raises
    FileNotFoundError or ValueError in one sentence.
    """
    try:
        with av.open(os.fspath(path), format="exr_pipe") as container:
            frame = next(container.decode(video=0))
        if not frame.format.name.startswith("gbr"):
            raise ValueError(f"channels of the kind {frame.format.name}")
        return frame.to_ndarray(format="gbrpf32le").astype(np.float32)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no image at {path}; check the path."
        ) from None
    except (av.error.FFmpegError, StopIteration, ValueError) as error:
        raise ValueError(
            f"Expected an OpenEXR image of three channels, got {path} "
            f"({_first_line(error) or 'no picture'}); convert it first."
        ) from error


def write_png(
    path: str | os.PathLike,
    image: Float[np.ndarray, "h w *c"],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes grey (h, w), RGB or RGBA pixels in [0, 1] as an 8-bit PNG.

    `metadata` goes into its text chunks.
    """
    pixels = np.round(np.clip(np.asarray(image), 0.0, 1.0) * 255.0).astype(np.uint8)
    text = PngImagePlugin.PngInfo()
    for name, value in (metadata or {}).items():
        text.add_text(name, value)
    with atomic.new_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=text)


def resize(
    image: Float[np.ndarray, "h w *c"], *, width: int, height: int
) -> Float[np.ndarray, "height width *c"]:
    """Resamples float pixels: mean over each new pixel's area, bilinear if enlarged."""
    channels = image.reshape(*image.shape[:2], -1)
    enlarged = width > image.shape[1] or height > image.shape[0]
    kind = Image.Resampling.BILINEAR if enlarged else Image.Resampling.BOX
    planes = [
        np.asarray(
            Image.fromarray(channels[..., c].astype(np.float32)).resize(
                (width, height), kind
            )
        )
        for c in range(channels.shape[2])
    ]
    return np.stack(planes, axis=-1).reshape(height, width, *image.shape[2:])


def shrink(photo: Photo, *, max_side: int) -> Photo:
    """The photo with its larger side at most `max_side` pixels, focal length along."""
    scale = max_side / max(photo.width, photo.height)
    if scale >= 1.0:
        return photo
    size = {
        "width": max(round(photo.width * scale), 1),
        "height": max(round(photo.height * scale), 1),
    }
    focal = photo.focal_pixels
    return dataclasses.replace(
        photo,
        rgb=resize(photo.rgb, **size),
        alpha=None if photo.alpha is None else resize(photo.alpha, **size),
        focal_pixels=None if focal is None else focal * scale,
    )


class _Refused(ValueError):
    """A refusal that is already one sentence."""


def _read_bytes(source: pathlib.Path) -> bytes:
    if not source.exists():
        raise FileNotFoundError(f"There is no image at {source}; check the path.")
    if not source.is_file():
        raise ValueError(f"Expected an image file, got {source}, which is no file.")
    if source.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"Expected an image of at most {MAX_BYTES // 10**6} MB, got {source} with "
            f"{source.stat().st_size // 10**6} MB; shrink it first."
        )
    return source.read_bytes()


def _check_size(source: pathlib.Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Refused(
            f"Expected an image of at most {MAX_PIXELS // 10**6} megapixels, got "
            f"{source} with {width} x {height}; shrink it first."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].replace("<_io.BytesIO object", "<bytes")[:120] if lines else "?"


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """The same picture in mode RGB or RGBA, orientation and tags kept."""
    tags = {"exif": picture.info["exif"]} if "exif" in picture.info else {}
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float32)
        scaled = np.clip(values / _full_scale(values, picture.mode), 0.0, 1.0)
        deep = Image.fromarray(np.round(scaled * 255.0).astype(np.uint8))
        converted = deep.convert("RGB")
    else:
        clear = "transparency" in picture.info or "A" in picture.getbands()
        converted = picture.convert("RGBA" if clear else "RGB")
    converted.info = tags
    return converted


def _full_scale(values: Float[np.ndarray, "h w"], mode: str) -> float:
    """The value of white: 65535 for 16 bits; for floats the range tells."""
    if mode.startswith("I;16"):
        return 65535.0
    top = float(values.max(initial=0.0))
    candidates = (255.0, 65535.0) if mode == "I" else (1.0, 255.0, 65535.0)
    return next((white for white in candidates if top <= white), max(top, 1.0))


def _channels(
    picture: Image.Image,
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"] | None]:
    pixels = np.asarray(picture).astype(np.float32) / 255.0
    alpha = _varying(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return np.ascontiguousarray(pixels[..., :3]), alpha


def _varying(alpha: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"] | None:
    # One value everywhere says nothing about where the person is.
    return None if np.ptp(alpha) == 0.0 else np.ascontiguousarray(alpha)


def _focal_pixels(exif: Image.Exif, width: int, height: int) -> float | None:
    """Focal length in pixels of the stored size; None if unknown or implausible."""
    try:
        tags = exif.get_ifd(ExifTags.IFD.Exif)
        recorded = sorted(
            float(tags.get(tag, 0) or 0)
            for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
        )
        focal = _focal_of_diagonal(tags, recorded, math.hypot(width, height))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if recorded[0] > 0.0:
        # A cropped photo no longer has the angle of view that its tags describe.
        stored = min(width, height) / max(width, height)
        if abs(recorded[0] / recorded[1] / stored - 1.0) > 0.02:
            return None
    plausible = 0.3 * max(width, height) < focal < 20.0 * max(width, height)
    return focal if plausible else None


def _focal_of_diagonal(
    tags: dict[int, object], recorded: list[float], diagonal: float
) -> float:
    """Focal length where the image's diagonal is given in pixels; 0 if unknown."""
    film = _number(tags, ExifTags.Base.FocalLengthIn35mmFilm)
    if film > 0.0:
        return film / _FILM_DIAGONAL_MM * diagonal
    unit = int(_number(tags, ExifTags.Base.FocalPlaneResolutionUnit)) or 2
    across = _number(tags, ExifTags.Base.FocalPlaneXResolution)
    along = _number(tags, ExifTags.Base.FocalPlaneYResolution) or across
    density = math.sqrt(across * along) / _MM_PER_RESOLUTION_UNIT.get(unit, 25.4)
    focal = _number(tags, ExifTags.Base.FocalLength) * density
    # Resolutions count the pixels as recorded; a shrunk copy keeps the tags.
    full = math.hypot(*recorded)
    return focal * (diagonal / full if full > 0.0 else 1.0)


def _number(tags: dict[int, object], tag: int) -> float:
    value = float(tags.get(tag, 0) or 0)  # pyright: ignore[reportArgumentType]
    return value if math.isfinite(value) else 0.0
