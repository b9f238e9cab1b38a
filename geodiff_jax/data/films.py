"""Films with fits: which frames a tracker saw, and one film as a recording.

VHAP (github.com/ShenhanQian/VHAP, preprocess_video.py) resamples films to 25 frames a
second before it tracks them; its export keeps the mattes in fg_masks. CAP4D's tracker
sees all frames, and keeps them in bg/cam0.
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from geodiff_jax.data import building, framing, recordings
from geodiff_jax.data.recordings import Job, Recording
from geodiff_jax.head import track as head_track
from geodiff_jax.io import images, video
from geodiff_jax.tracking import flowface, vhap


def film_frame(number: int, track_rate: float, film_rate: float) -> int:
    """Which frame of a film a tracker saw as its frame `number`.

    That of FFmpeg's filter fps, by which VHAP resamples: times are rounded to the new
    rate, and of the frames that fall together, the last one stays.
    """
    if track_rate <= 0.0 or track_rate == film_rate:
        return number
    return math.ceil((number + 0.5) * film_rate / track_rate - 1e-9) - 1


def reduction(shape: video.Shape, job: Job) -> int:
    """By which whole factor frames are reduced before all else.

    The square holds half of the frame or more: finer pixels would go in averages.
    """
    return max(1, min(shape.width, shape.height) // (2 * job.sizes.image))


def reduced_size(shape: video.Shape, factor: int) -> tuple[int, int]:
    """Width and height of frames reduced by a factor, rounded up."""
    return -(-shape.width // factor), -(-shape.height // factor)


def read(
    path: pathlib.Path, shape: video.Shape, factor: int, wanted: Sequence[int], job: Job
) -> Iterator[tuple[int, Float[np.ndarray, "h w 3"]]]:
    """Reduced frames by the tracker's numbers. Raises as `video.read_frames`."""
    by_film = {film_frame(x, job.track_rate, shape.rate): x for x in wanted}
    width, height = reduced_size(shape, factor)
    for number, pixels in video.read_frames(path, list(by_film)):
        image = pixels.astype(np.float32) / 255.0
        if factor > 1:
            image = images.resize(image, width=width, height=height)
        yield by_film[number], image


@functools.lru_cache(maxsize=2)
def read_fit(folder: pathlib.Path, head: pathlib.Path | None) -> vhap.Capture:
    """A film's fit by VHAP or, where there is a fit.npz, by CAP4D's tracker.

    Raises as `vhap.read` and `flowface.read`.
    """
    if not (folder / "fit.npz").is_file():
        return recordings.read_vhap(folder, head)
    track, model = flowface.read(folder), recordings.load_head(head)
    head_track.check(track, model)
    return vhap.Capture(
        track=track,
        offsets=np.zeros((model.num_vertices, 3), np.float32),
        images={},
        masks={(x, 0): f"bg/cam0/{x:04d}.png" for x in track.frame_ids},
    )


def fitted_matte(
    fit: pathlib.Path,
    capture: vhap.Capture,
    view: int,
    frame_id: int,
    like: Float[np.ndarray, "h w 3"],
) -> Float[np.ndarray, "h w"] | None:
    """The matte that a fit's folder has of a frame, at a picture's size; or None.

    Raises ValueError where it is torn.
    """
    name = capture.masks.get((frame_id, view))
    if name is None or not (fit / name).is_file():
        return None
    matte = images.read_image(fit / name).rgb[..., 0]
    return images.resize(matte, width=like.shape[1], height=like.shape[0])


def open_film(name: str, path: pathlib.Path, job: Job, *, licence: str) -> list:
    """A film that one camera made of one clip, and its fit, as the only recording.

    Raises ValueError without --track, and where the camera does not see the head.
    """
    if job.track is None:
        raise ValueError(
            "Expected --track, a folder of fits by VHAP or CAP4D, got none: these "
            "films come without."
        )
    subject, clip, _ = recordings.split_name(name)
    fit = recordings.find_fit(job.track, subject, clip)
    if fit is None:
        return [recordings.skipped_part(name, "no fit")]
    try:
        capture = read_fit(fit, job.head)
        shape = video.read_shape(path)
    except (OSError, ValueError) as error:
        return [recordings.skipped_part(name, f"corrupt file: {error}")]
    return [_recording(name, path, job, fit, capture, shape, licence)]


def _recording(
    name: str,
    path: pathlib.Path,
    job: Job,
    fit: pathlib.Path,
    capture: vhap.Capture,
    shape: video.Shape,
    licence: str,
) -> Recording | building.Skipped:
    cameras = capture.track.cameras
    if abs(shape.width * cameras.height / (shape.height * cameras.width) - 1.0) > 0.01:
        size = f"{shape.width} x {shape.height}"
        return recordings.skipped_part(name, f"a film of {size}, not as fitted")
    factor = reduction(shape, job)
    width, height = reduced_size(shape, factor)
    subject, clip, view = recordings.split_name(name)
    return Recording(
        subject=subject,
        clip=clip,
        view=view,
        head=recordings.person_head(recordings.load_head(job.head), capture),
        track=capture.track,
        camera=recordings.view_of(cameras, 0).resize(width=width, height=height),
        frames=functools.partial(_frames, path, shape, factor, fit, capture, job),
        licence=licence,
    )


def _frames(
    path: pathlib.Path,
    shape: video.Shape,
    factor: int,
    fit: pathlib.Path,
    capture: vhap.Capture,
    job: Job,
    wanted: Sequence[int],
) -> Iterator[tuple[int, framing.Frame | str]]:
    for frame_id, image in read(path, shape, factor, wanted, job):
        try:
            matte = fitted_matte(fit, capture, 0, frame_id, image)
            yield frame_id, framing.Frame(image, matte)
        except (OSError, ValueError) as error:
            yield frame_id, f"corrupt file: {error}"
