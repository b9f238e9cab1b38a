"""NeRSemble v2: 425 people, 16 cameras, expressions and speech, 73 frames a second.

The folder is that which `nersemble-data download` fills (github.com/tobias-kirschstein/
nersemble-data, its README, constants.py and nersemble_data.py), PPP a participant:

    PPP/calibration/camera_params.json      world_2_cam {serial: 4 x 4}, intrinsics
    PPP/calibration/color_calibration.json  {serial: 3 x terms}
    PPP/sequences/SEQUENCE/images/cam_SERIAL.mp4
    PPP/sequences/BACKGROUND/image_SERIAL.jpg

Poses map the world to the camera in OpenCV's axes; the only intrinsics are those of all
cameras, for pictures of 2200 x 3208. Colours are corrected in linear light, after
pictures are reduced, as the official loader does. BACKGROUND is no sequence.

Fits are VHAP's exports (github.com/ShenhanQian/VHAP, doc/nersemble_v2.md), which moves
the world and sees the films at 25 frames a second; mattes are those of its
preprocessing where they are there, SEQUENCE/alpha_maps/cam_SERIAL_NNNNNN.jpg, else the
export's.
"""

import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from geodiff_jax.data import building, color, films, framing, recordings, rigs
from geodiff_jax.data.recordings import Job, Recording
from geodiff_jax.io import images, video
from geodiff_jax.tracking import arrays, vhap

LICENCE = "NeRSemble v2: research by whom its authors gave access; see their terms."
CALIBRATED = (2200, 3208)
"""Width and height that the intrinsics are for."""
BACKGROUND = "BACKGROUND"
HELD_OUT = ("388", "422", "443", "445", "475")
"""Participants of NeRSemble's benchmark of novel views (pypi.org/project/
nersemble-benchmark): their hidden cameras must stay unseen."""


class NersembleV2(building.PackedParts):
    """NeRSemble v2 as records of `schema`, by `nersemble`."""

    LICENCE = LICENCE


BUILDER = NersembleV2


def parts(job: Job) -> list[str]:
    """What there is to read: participants, their sequences, their cameras.

    Raises ValueError where the folder has no film in NeRSemble's layout.
    """
    films = job.source.glob("[0-9][0-9][0-9]/sequences/*/images/cam_*.mp4")
    names = [
        recordings.part_name(
            film.parents[3].name, film.parents[1].name, film.stem.removeprefix("cam_")
        )
        for film in films
        if film.parents[1].name != BACKGROUND
    ]
    if not names:
        raise ValueError(
            "Expected films such as 017/sequences/EXP-1-head/images/cam_222200037.mp4 "
            f"in {job.source}, got none; choose the folder that nersemble-data filled."
        )
    return names


def open_part(name: str, job: Job) -> list[Recording | building.Skipped]:
    """One camera's film of a sequence, with its fit.

    Raises ValueError where calibration and fit contradict each other.
    """
    if job.track is None:
        raise ValueError(
            "Expected --track, the folder of VHAP's exports, got none: NeRSemble hands "
            "out no fits."
        )
    subject, clip, _ = recordings.split_name(name)
    fit = recordings.find_fit(job.track, subject, clip)
    if fit is None:
        return [recordings.skipped_part(name, "no fit")]
    return [_open(name, job, fit)]


def _open(name: str, job: Job, fit: pathlib.Path) -> Recording | building.Skipped:
    subject, clip, serial = recordings.split_name(name)
    folder = job.source / subject / "calibration"
    try:
        capture = recordings.read_vhap(fit, job.head)
        rig = read_rig(folder / "camera_params.json")
        shape = video.read_shape(film_path(job.source, subject, clip, serial))
        matrix = _color_matrix(folder / "color_calibration.json", serial)
    except (OSError, ValueError) as error:
        return recordings.skipped_part(name, f"corrupt file: {error}")
    if serial not in rig.camera_from_world:
        return recordings.skipped_part(name, "camera not calibrated")
    if abs(shape.width * rig.height / (shape.height * rig.width) - 1.0) > 0.01:
        size = f"{shape.width} x {shape.height}"
        return recordings.skipped_part(name, f"a film of {size}, not as calibrated")
    rig = rigs.in_world_of(rig, capture.track.cameras, capture.camera_ids)
    factor = films.reduction(shape, job)
    width, height = films.reduced_size(shape, factor)
    return Recording(
        subject=subject,
        clip=clip,
        view=serial,
        head=recordings.person_head(recordings.load_head(job.head), capture),
        track=capture.track,
        camera=rig.camera(serial, width=width, height=height),
        frames=functools.partial(
            _frames, name, job, matrix, shape, factor, fit, capture
        ),
        licence=LICENCE,
    )


def film_path(
    source: pathlib.Path, subject: str, clip: str, serial: str
) -> pathlib.Path:
    """Where a camera's film lies."""
    return source / subject / "sequences" / clip / "images" / f"cam_{serial}.mp4"


@functools.lru_cache(maxsize=4)
def read_rig(path: pathlib.Path) -> rigs.Rig:
    """The cameras of a participant. Raises ValueError or FileNotFoundError."""
    content = _json(path)
    try:
        matrix = np.asarray(content["intrinsics"], np.float64)
        poses = {
            serial: arrays.rigid(np.asarray([pose], np.float64), "world_2_cam", path)[0]
            for serial, pose in content["world_2_cam"].items()
        }
        lens = np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"Expected world_2_cam and intrinsics in {path}, got something else."
        ) from error
    return rigs.Rig(poses, dict.fromkeys(poses, lens), *CALIBRATED)


def _frames(
    name: str,
    job: Job,
    matrix: Float[np.ndarray, "3 t"],
    shape: video.Shape,
    factor: int,
    fit: pathlib.Path,
    capture: vhap.Capture,
    wanted: Sequence[int],
) -> Iterator[tuple[int, framing.Frame | str]]:
    subject, clip, serial = recordings.split_name(name)
    path = film_path(job.source, subject, clip, serial)
    for frame_id, recorded in films.read(path, shape, factor, wanted, job):
        image = color.correct(recorded, matrix)
        try:
            matte = _own_matte(path, frame_id, image)
            if matte is None and serial in capture.camera_ids:
                view = capture.camera_ids.index(serial)
                matte = films.fitted_matte(fit, capture, view, frame_id, image)
            yield frame_id, framing.Frame(image, matte)
        except (OSError, ValueError) as error:
            yield frame_id, f"corrupt file: {error}"


def _own_matte(
    film: pathlib.Path, frame_id: int, like: Float[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "h w"] | None:
    path = film.parents[1] / "alpha_maps" / f"{film.stem}_{frame_id:06d}.jpg"
    if not path.is_file():
        return None
    matte = images.read_image(path).rgb[..., 0]
    return images.resize(matte, width=like.shape[1], height=like.shape[0])


def _color_matrix(path: pathlib.Path, serial: str) -> Float[np.ndarray, "3 t"]:
    found = _json(path)
    try:
        matrix = np.asarray(found[serial], np.float64)
    except (KeyError, TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.ndim != 2 or len(matrix) != 3 or matrix.shape[1] not in color.TERMS:
        raise ValueError(
            f"Expected a colour matrix of 3 rows for camera {serial} in {path}, got "
            f"the shape {matrix.shape}."
        )
    return matrix


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {path}.") from None
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, got something else.") from error
