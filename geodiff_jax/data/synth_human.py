"""SynthHuman: 298,008 pictures of rendered people with exact normals and mattes.

The folder is that which `download_data.py` fills (github.com/microsoft/DAViD, README),
N with seven digits:

    rgb_N.png     384 x 512
    alpha_N.png   share of the person, grey
    normal_N.exr  XYZ in [-1, 1]; axes and channels' order are not stated, so the fitted
                  face decides them, see `estimates.in_house_axes`
    depth_N.exr   centimetres; not read
    cam_N.txt     intrinsics 3 x 3, pixels

There are no poses, subjects or fits. The first 98,040 samples show faces and are taken,
the others are of bodies and upper bodies, with heads too small. Each sample is its own
subject. Fits lie in --track as SAMPLE/fit.json (`tracking.files`), or --track=fit makes
them on the way, with the focal length that the sample tells.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from geodiff_jax.data import building, framing, recordings
from geodiff_jax.data.recordings import Job, Recording
from geodiff_jax.io import images
from geodiff_jax.tracking import detect, files, fit

LICENCE = "CDLA-Permissive-2.0 (SynthHuman, Microsoft)."
HELD_OUT: tuple[str, ...] = ()
FACES = 98_040
"""Samples before this one show a face (the release's README)."""
CHUNK = 200
"""Samples in a part (ours)."""
WORST_FIT = 0.05
"""Mean landmark error of a fit over the outer-eye distance, before offsets (ours)."""
CLIP, VIEW = "samples", "camera"


class SynthHuman(building.PackedParts):
    """SynthHuman as records of `schema`, by `synth_human`."""

    LICENCE = LICENCE


BUILDER = SynthHuman


def parts(job: Job) -> list[str]:
    """What there is to read, `CHUNK` samples a part.

    Raises ValueError where the folder has no picture in SynthHuman's layout.
    """
    chunks = {number // CHUNK for number in _numbers(job.source)}
    if not chunks:
        raise ValueError(
            f"Expected pictures such as rgb_0000000.png in {job.source}, got none; "
            "choose the folder SynthHuman that download_data.py filled."
        )
    return [recordings.part_name(f"{x:05d}", CLIP, VIEW) for x in sorted(chunks)]


def open_part(name: str, job: Job) -> Iterator[Recording | building.Skipped]:
    """The samples of a part, with their fits. Raises ValueError without --track."""
    if job.track is None:
        raise ValueError(
            "Expected --track, a folder of fits or `fit` to make them, got none: "
            "SynthHuman hands out no fits."
        )
    chunk = int(recordings.split_name(name)[0])
    for number in _numbers(job.source):
        if number // CHUNK == chunk:
            yield _open(f"{number:07d}", job)


def _open(sample: str, job: Job) -> Recording | building.Skipped:
    name = recordings.part_name(sample, CLIP, VIEW)
    try:
        frame = read_frame(job.source, sample)
        matrix = np.loadtxt(job.source / f"cam_{sample}.txt", ndmin=2)
        if matrix.shape != (3, 3):
            raise ValueError(f"Expected 3 x 3 numbers in cam_{sample}.txt.")
    except (OSError, ValueError) as error:
        return recordings.skipped_part(name, f"corrupt file: {error}")
    height, width = frame.image.shape[:2]
    away = np.abs(matrix[:2, 2] / [width, height] - 0.5)
    if away.max() > 0.02 or abs(matrix[0, 0] / matrix[1, 1] - 1.0) > 0.02:
        return recordings.skipped_part(name, "a lens that no fit models")
    try:
        found = fit_of(frame, float(matrix[0, 0]), sample, job)
    except (OSError, ValueError) as error:
        return recordings.skipped_part(name, f"no fit: {error}")
    if found.landmark_nme_without_offsets > WORST_FIT:
        return recordings.skipped_part(name, "no fit: landmarks are far off")
    return Recording(
        subject=sample,
        clip=CLIP,
        view=VIEW,
        head=found.head,
        track=fit.to_track(found),
        camera=found.camera,
        frames=functools.partial(_only, frame),
        licence=LICENCE,
        synthetic=True,
    )


def read_frame(source: pathlib.Path, sample: str) -> framing.Frame:
    """Picture, matte and normals of a sample. Raises as `images.read_image`."""
    return framing.Frame(
        images.read_image(source / f"rgb_{sample}.png").rgb,
        images.read_image(source / f"alpha_{sample}.png").rgb[..., 0],
        np.nan_to_num(images.read_exr(source / f"normal_{sample}.exr")),
    )


def fit_of(frame: framing.Frame, focal: float, sample: str, job: Job) -> fit.Fit:
    """The sample's fit: stored, or made on the spot.

    Raises FileNotFoundError or ValueError where there is none.
    """
    head = recordings.load_head(job.head)
    if job.track != recordings.FIT_HERE:
        folder = pathlib.Path(str(job.track)) / sample
        if not (folder / "fit.json").is_file():
            raise FileNotFoundError("there is none")
        return files.load(folder, head)[0]
    photo = images.photo_from_array(frame.image, focal_pixels=focal)
    detection = detect.detect(photo)
    if detection.landmarks_source == "average face":
        raise ValueError("landmarks would be guessed; install mediapipe")
    return jax.tree.map(np.asarray, fit.fit(head, photo, detection))


@functools.lru_cache(maxsize=2)
def _numbers(source: pathlib.Path) -> list[int]:
    stems = [path.stem.removeprefix("rgb_") for path in source.glob("rgb_*.png")]
    return sorted(int(x) for x in stems if x.isdigit() and int(x) < FACES)


def _only(
    frame: framing.Frame, wanted: Sequence[int]
) -> Iterator[tuple[int, framing.Frame | str]]:
    for frame_id in wanted:
        yield frame_id, frame
