"""Ava-256: 256 people, 80 cameras, long scripts of expressions and speech.

The folder is that which download.py fills (github.com/facebookresearch/ava-256,
DATASHEET.md, download.py, data/utils.py), a capture DATE--TIME--SID for each person:

    CAPTURE/decoder/camera_calibration.json   KRT: cameraId, K, T, distortion
    CAPTURE/decoder/frame_list.csv            seg_id, frame_id
    CAPTURE/decoder/image/CAMERA.zip          NNNNNN.avif
    CAPTURE/decoder/segmentation_parts/CAMERA.zip   NNNNNN.png

K and T are stored transposed; T then maps the world to the camera (3 x 4), K is for
pictures of 2668 x 4096. Lengths are taken as millimetres, which nobody states: a fit in
metres would not agree with another unit, see `rigs`. Pictures are linear (its issue 8)
and get sRGB's curve here; their white balance stays. A segment is a clip. Fits are
VHAP's exports of a segment's pictures, TRACK/SID/SEGMENT, frames counted in their
order; mattes are the union of the segmentation's parts but for the chair.
"""

import csv
import functools
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from geodiff_jax.appearance import lighting
from geodiff_jax.data import building, framing, lenses, recordings, rigs
from geodiff_jax.data.recordings import Job, Recording
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.io import images
from geodiff_jax.tracking import arrays

LICENCE = "CC BY-NC 4.0 (Ava-256, Meta)."
HELD_OUT: tuple[str, ...] = ()
CALIBRATED = (2668, 4096)
"""Width and height that the intrinsics are for."""
METRES = 1e-3
"""In the unit of lengths."""
CHAIR = 3
"""The part of the segmentation that is neither background nor the person."""


class Ava256(building.PackedParts):
    """Ava-256 as records of `schema`, by `ava256`."""

    LICENCE = LICENCE


BUILDER = Ava256


def parts(job: Job) -> list[str]:
    """What there is to read: people, their segments, their cameras.

    Raises ValueError where no capture is in the layout, or a list of frames is torn.
    """
    names = []
    for subject, folder in _captures(job.source).items():
        cameras = [path.stem for path in (folder / "image").glob("*.zip")]
        for segment in read_segments(folder / "frame_list.csv"):
            names += [recordings.part_name(subject, segment, x) for x in cameras]
    if not names:
        raise ValueError(
            "Expected captures such as 20210810--1306--FXN596/decoder/image/*.zip in "
            f"{job.source}, got none; choose the folder that download.py filled."
        )
    return names


def open_part(name: str, job: Job) -> list[Recording | building.Skipped]:
    """One camera's pictures of a segment, with its fit.

    Raises ValueError where calibration and fit contradict each other.
    """
    if job.track is None:
        raise ValueError(
            "Expected --track, the folder of VHAP's exports, got none: Ava-256 hands "
            "out another mesh than FLAME's."
        )
    subject, segment, camera = recordings.split_name(name)
    fit = recordings.find_fit(job.track, subject, segment)
    if fit is None:
        return [recordings.skipped_part(name, "no fit")]
    folder = _captures(job.source)[subject]
    try:
        capture = recordings.read_vhap(fit, job.head)
        rig, distortions = read_rig(folder / "camera_calibration.json")
        frame_ids = read_segments(folder / "frame_list.csv")[segment]
        width, height = _size(folder / "image" / f"{camera}.zip")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return [recordings.skipped_part(name, f"corrupt file: {error}")]
    if _short(camera) not in rig.camera_from_world:
        return [recordings.skipped_part(name, "camera not calibrated")]
    fitted = [_short(x) for x in capture.camera_ids]
    rig = rigs.in_world_of(rig, capture.track.cameras, fitted)
    view = rig.camera(_short(camera), width=width, height=height)
    return [
        Recording(
            subject=subject,
            clip=segment,
            view=camera,
            head=recordings.person_head(recordings.load_head(job.head), capture),
            track=capture.track,
            camera=view,
            frames=functools.partial(
                _frames, folder, camera, frame_ids, view, distortions[_short(camera)]
            ),
            licence=LICENCE,
        )
    ]


@functools.lru_cache(maxsize=4)
def read_rig(
    path: pathlib.Path,
) -> tuple[rigs.Rig, dict[str, Float[np.ndarray, " k"]]]:
    """The cameras of a capture, metres, and their distortions.

    Raises ValueError or FileNotFoundError.
    """
    poses, lens, distortions = {}, {}, {}
    try:
        for one in json.loads(path.read_bytes())["KRT"]:
            name = _short(str(one["cameraId"]))
            matrix = np.asarray(one["K"], np.float64).T
            pose = np.eye(4)
            pose[:3] = np.asarray(one["T"], np.float64).T
            pose[:3, 3] *= METRES
            poses[name] = arrays.rigid(pose[None], "T", path)[0]
            lens[name] = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
            distortions[name] = np.asarray(one["distortion"], np.float64).ravel()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {path}.") from None
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"Expected KRT with cameraId, K, T and distortion in {path}, got something "
            f"else ({type(error).__name__})."
        ) from error
    return rigs.Rig(poses, lens, *CALIBRATED), distortions


@functools.lru_cache(maxsize=4)
def read_segments(path: pathlib.Path) -> dict[str, list[int]]:
    """Numbers of frames by segment, ascending. Raises ValueError or OSError."""
    found: dict[str, list[int]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if not (row.get("frame_id") or "").isdigit() or not row.get("seg_id"):
                raise ValueError(f"Expected seg_id and frame_id in each row of {path}.")
            found.setdefault(row["seg_id"], []).append(int(row["frame_id"]))
    return {segment: sorted(frames) for segment, frames in found.items()}


def _frames(
    folder: pathlib.Path,
    camera: str,
    frame_ids: Sequence[int],
    view: Camera,
    distortion: Float[np.ndarray, " k"],
    wanted: Sequence[int],
) -> Iterator[tuple[int, framing.Frame | str]]:
    lens = np.asarray(view.intrinsics, np.float64)
    parts_path = folder / "segmentation_parts" / f"{camera}.zip"
    for place in wanted:
        if place >= len(frame_ids):
            return
        number = frame_ids[place]
        try:
            linear = _picture(folder / "image" / f"{camera}.zip", f"{number:06d}.avif")
            found = None
            if parts_path.is_file():
                found = _picture(parts_path, f"{number:06d}.png")
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            yield place, f"no picture, or a corrupt file: {error}"
            continue
        image = lighting.srgb_from_linear(jnp.asarray(linear.astype(np.float32) / 255))
        image = lenses.undistort(np.asarray(image), lens, distortion)
        matte = None
        if found is not None:
            labels = found[..., 0]
            person = ((labels > 0) & (labels != CHAIR)).astype(np.float32)
            person = images.resize(person, width=view.width, height=view.height)
            matte = lenses.undistort(person[..., None], lens, distortion)[..., 0]
        yield place, framing.Frame(image, matte)


def _picture(archive: pathlib.Path, name: str) -> np.ndarray:
    """A picture of an archive, in whichever of its folders; values as they are."""
    with zipfile.ZipFile(archive) as content:
        named = {pathlib.PurePath(x).name: x for x in content.namelist()}
        if name not in named:
            raise ValueError(f"there is no {name}")
        with Image.open(io.BytesIO(content.read(named[name]))) as picture:
            pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]


def _size(archive: pathlib.Path) -> tuple[int, int]:
    """Width and height of an archive's pictures."""
    with zipfile.ZipFile(archive) as content:
        names = [x for x in content.namelist() if x.endswith(".avif")]
    if not names:
        raise ValueError(f"Expected pictures in {archive}, got none.")
    height, width = _picture(archive, pathlib.PurePath(names[0]).name).shape[:2]
    return width, height


@functools.lru_cache(maxsize=2)
def _captures(source: pathlib.Path) -> dict[str, pathlib.Path]:
    found = {}
    for folder in source.glob("*/decoder"):
        named = re.fullmatch(r"(?:m--)?\d+--\d+--(\w+)(?:--.*)?", folder.parent.name)
        if named:
            found[named.group(1)] = folder
    return found


def _short(camera: str) -> str:
    return camera.removeprefix("cam")
