"""H.264 films through PyAV, which carries its own codec."""

import contextlib
import dataclasses
import fractions
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import av
import av.error
import numpy as np
from jaxtyping import Float, UInt8

from geodiff_jax.io import atomic

# Codes of ITU-T H.273.
_BT709, _STUDIO_RANGE = 1, 1


def write_video(
    path: str | os.PathLike,
    frames: Iterable[Float[np.ndarray, "h w 3"]],
    fps: float,
    *,
    metadata: Mapping[str, str] | None = None,
    quality: int = 17,
) -> None:
    """Writes an .mp4 that every player shows.

    Frames are in [0, 1] and all of one size; an odd edge is repeated once, since the
    format stores colour for every second pixel. `quality` is x264's crf, lower is
    better; 16-18 look lossless. `metadata` is kept as tags of the container.
    """
    with atomic.new_file(path) as temporary:
        # Without the flag, mp4 drops every tag that QuickTime does not know.
        options = {"movflags": "+use_metadata_tags+faststart"}
        with av.open(str(temporary), "w", options=options, format="mp4") as container:
            container.metadata.update(metadata or {})
            rate = fractions.Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(quality)}
            # Untagged films are shown in other colours by other players.
            codec = stream.codec_context
            codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
            codec.color_range = _STUDIO_RANGE
            pixels_in_order = _even(_checked(frames))
            first = next(pixels_in_order)
            stream.height, stream.width = first.shape[:2]
            for pixels in itertools.chain([first], pixels_in_order):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def read_video(
    path: str | os.PathLike,
) -> tuple[Float[np.ndarray, "t h w 3"], float]:
    """Frames in [0, 1] and the frames per second of a film in any usual format."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not frames:
        raise ValueError(f"Expected a film, got {path} without a single frame.")
    return np.stack(frames).astype(np.float32) / 255.0, rate


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a film's container says of it."""

    width: int
    height: int
    rate: float
    """Frames per second."""


def read_shape(path: str | os.PathLike) -> Shape:
    """Size and rate of a film, of which no frame is decoded. Raises as `read_video`."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        return Shape(stream.width, stream.height, rate)


def read_frames(
    path: str | os.PathLike, numbers: Sequence[int]
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Single frames by their numbers, which ascend; ends where the film does.

    Decodes from the start, one frame in memory at a time. Raises as `read_video`.
    """
    wanted = set(numbers)
    with _opened(path) as container:
        last = max(wanted, default=-1)
        for number, frame in enumerate(container.decode(video=0)):
            if number > last:
                return
            if number in wanted:
                yield number, frame.to_ndarray(format="rgb24")


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    try:
        with av.open(os.fspath(path)) as container:
            yield container
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no film at {path}.") from None
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(
            f"Expected a film, got {path}, which cannot be decoded ({error}); "
            "convert it to mp4 first."
        ) from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The tags of the container."""
    with av.open(os.fspath(path)) as container:
        return dict(container.metadata)


def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for index, frame in enumerate(frames):
        frame = np.asarray(frame)
        shape = shape or frame.shape
        if frame.shape != shape or frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(
                f"Expected frames of one size (h, w, 3), got {frame.shape} at frame "
                f"{index} after {shape}; resize them first."
            )
        yield np.round(np.clip(frame, 0.0, 1.0) * 255.0).astype(np.uint8)
    if shape is None:
        raise ValueError("Expected at least one frame to write, got none.")


def _even(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        odd_height, odd_width = frame.shape[0] % 2, frame.shape[1] % 2
        yield np.pad(frame, ((0, odd_height), (0, odd_width), (0, 0)), mode="edge")
