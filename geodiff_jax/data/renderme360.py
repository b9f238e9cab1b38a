"""RenderMe-360: 60 cameras round a head, FLAME fitted to the expressions.

The release of 21 people, as its download page (renderme-360.github.io, inner-download
and renderme_360_reader.py) names the contents of an .smc file, which is HDF5, and as
github.com/ZhuoyuanJiang/RenderMe360_extraction lists the files:

    raw/ID/ID_PART_raw.smc     Camera/CC/color/F and mask/F: encoded pictures
    anno/ID/ID_PART_anno.smc   Calibration/CC/K, D, RT; FLAME/F/shape, exp, trans,
                               verts, global_pose, neck_pose, jaw_pose, left_eye_pose,
                               right_eye_pose

CC is 00 to 59, F a number without leading zeros. What the page leaves open is measured:
FLAME's parameters must give the vertices that are stored with them, and each camera's
RT is taken in that direction, and with those axes, in which the vertices fall on the
mask. Only parts with FLAME (expressions) can be read. h5py must be installed.
"""

import contextlib
import functools
import io
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float
from PIL import Image

from geodiff_jax.data import building, framing, lenses, recordings
from geodiff_jax.data.recordings import Job, Recording
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head.track import Track
from geodiff_jax.io import images
from geodiff_jax.render import condition_maps
from geodiff_jax.tracking import arrays, vhap

LICENCE = (
    "RenderMe-360: non-commercial research, education and art; no redistribution and "
    "no dataset built on it."
)
HELD_OUT: tuple[str, ...] = ()
LARGEST_ERROR = 0.003
"""Metres between stored vertices and those that the parameters give (ours)."""
LEAST_ON_MASK = 0.8
"""Share of the head's vertices that the right pose puts on the mask (ours)."""
LEAST_HEIGHT = 0.15
"""Of the projected head, in heights of the mask: a far camera has all on it (ours)."""

_ROTATIONS = {
    "rotation": "global_pose",
    "neck_pose": "neck_pose",
    "jaw_pose": "jaw_pose",
}
_EYES = ("left_eye_pose", "right_eye_pose")


class RenderMe360(building.PackedParts):
    """RenderMe-360 as records of `schema`, by `renderme360`."""

    LICENCE = LICENCE


BUILDER = RenderMe360


def parts(job: Job) -> list[str]:
    """What there is to read. Raises ValueError where no file is in the layout."""
    names = []
    for path in sorted(job.source.glob("raw/*/*_raw.smc")):
        subject = path.parent.name
        clip = path.stem.removeprefix(f"{subject}_").removesuffix("_raw")
        # num_device is 60 even where fewer cameras are stored.
        with _opened(path) as file:
            views = list(file["Camera"])
        names += [recordings.part_name(subject, clip, view) for view in views]
    if not names:
        raise ValueError(
            f"Expected files such as raw/0297/0297_e0_raw.smc in {job.source}, got "
            "none; choose the folder that holds raw and anno."
        )
    return names


def open_part(name: str, job: Job) -> list[Recording | building.Skipped]:
    """One camera's pictures of a part.

    Raises ValueError where parameters, vertices, poses and masks contradict each other.
    """
    subject, clip, view = recordings.split_name(name)
    raw = job.source / "raw" / subject / f"{subject}_{clip}_raw.smc"
    anno = job.source / "anno" / subject / f"{subject}_{clip}_anno.smc"
    if not anno.is_file():
        return [recordings.skipped_part(name, "no calibration")]
    track, stored = _track(anno, job.head)
    if track is None or stored is None:
        return [recordings.skipped_part(name, "no fit")]
    head = recordings.load_head(job.head)
    first = track.frame_ids[0]
    try:
        with _opened(anno) as file:
            lens = {key: np.asarray(file["Calibration"][view][key]) for key in "KD"}
            pose = np.asarray(file["Calibration"][view]["RT"], np.float64)
        image, mask = read_pictures(raw, view, first)
    except (KeyError, OSError, ValueError) as error:
        return [recordings.skipped_part(name, f"corrupt file: {error}")]
    matrix = lens["K"].astype(np.float64)
    intrinsics = np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
    counted = np.asarray(condition_maps.head_vertices(head))
    found = camera_from_world(pose, stored[counted], mask, intrinsics, source=anno)
    camera = Camera(
        jaxlie.SE3.from_matrix(jnp.asarray(np.float32(found))),
        jnp.asarray(np.float32(intrinsics)),
        image.shape[1],
        image.shape[0],
    )
    factor = max(1, min(image.shape[:2]) // (2 * job.sizes.image))
    size = {"width": -(-camera.width // factor), "height": -(-camera.height // factor)}
    camera = camera.resize(**size)
    return [
        Recording(
            subject=subject,
            clip=clip,
            view=view,
            head=head,
            track=track,
            camera=camera,
            frames=functools.partial(_frames, raw, view, camera, lens["D"].ravel()),
            licence=LICENCE,
        )
    ]


def camera_from_world(
    pose: Float[np.ndarray, "4 4"],
    points: Float[np.ndarray, "p 3"],
    mask: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "4"],
    *,
    source: pathlib.Path,
) -> Float[np.ndarray, "4 4"]:
    """The pose in OpenCV's axes, in that direction in which the points are on the mask.

    Raises ValueError where it is rigid in none, or puts them there in none.
    """
    given = arrays.rigid(pose[None], "RT", source)[0]
    flips = (np.eye(4), arrays.OPENCV_FROM_OPENGL)
    tried = [
        flip @ one
        for one, flip in itertools.product((np.linalg.inv(given), given), flips)
    ]
    shares = [_share_on_mask(one, points, mask, intrinsics) for one in tried]
    if max(shares) < LEAST_ON_MASK:
        raise ValueError(
            f"Expected poses in {source} that put the fitted head on its mask, got "
            f"{max(shares):.0%} of it there in the best of four conventions; are "
            "lengths in metres?"
        )
    return tried[int(np.argmax(shares))]


def read_pictures(
    path: pathlib.Path, view: str, frame: int
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Picture and mask of a frame, in [0, 1], as the camera took them.

    Raises KeyError, OSError or ValueError where one is missing or torn.
    """
    with _opened(path) as file:
        camera = file["Camera"][view]
        encoded = [np.asarray(camera[kind][str(frame)]) for kind in ("color", "mask")]
    color, mask = (
        np.asarray(Image.open(io.BytesIO(x.tobytes())).convert("RGB"), np.float32)
        for x in encoded
    )
    return color / 255.0, mask.max(axis=-1) / 255.0


def _share_on_mask(
    pose: Float[np.ndarray, "4 4"],
    points: Float[np.ndarray, "p 3"],
    mask: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "4"],
) -> float:
    local = points @ pose[:3, :3].T + pose[:3, 3]
    before = local[:, 2] > 0.01
    if not before.all():
        return 0.0
    pixels = local[:, :2] / local[:, 2:] * intrinsics[:2] + intrinsics[2:]
    rows = np.flatnonzero((mask > 0.5).any(axis=1))
    if rows.size == 0 or np.ptp(pixels[:, 1]) < LEAST_HEIGHT * np.ptp(rows):
        return 0.0
    cells = np.floor(pixels).astype(int)
    height, width = mask.shape
    inside = ((cells >= 0) & (cells < [width, height])).all(axis=1)
    cells = cells[inside]
    return float((mask[cells[:, 1], cells[:, 0]] > 0.5).sum() / len(points))


@functools.lru_cache(maxsize=2)
def _track(
    path: pathlib.Path, head_path: pathlib.Path | None
) -> tuple[Track | None, Float[np.ndarray, "v 3"] | None]:
    """FLAME's parameters of all frames, and the vertices of the first; or nothing."""
    model = recordings.load_head(head_path)
    with _opened(path) as file:
        if "FLAME" not in file:
            return None, None
        frames = sorted(file["FLAME"], key=int)
        stored = [
            {key: np.asarray(value) for key, value in file["FLAME"][x].items()}
            for x in frames
        ]
    if not stored:
        return None, None
    params = [vhap.head_params(_as_vhap(x), model, path) for x in stored]
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *params)
    vertices = stored[0]["verts"].reshape(-1, 3).astype(np.float64)
    given = np.asarray(head_model.vertices(model, params[0]))[0]
    count = min(len(given), len(vertices))
    error = np.linalg.norm(given[:count] - vertices[:count], axis=-1).max()
    if error > LARGEST_ERROR:
        raise ValueError(
            f"Expected FLAME parameters in {path} that give the vertices beside them, "
            f"got ones {error:.3f} m off; take the FLAME that the dataset was fitted "
            "with (--head)."
        )
    identity = jaxlie.SE3.identity()
    nowhere = Camera(identity, jnp.ones(4), 1, 1)
    ids = tuple(int(x) for x in frames)
    return Track(stacked, nowhere, ids, model.version), vertices


def _as_vhap(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def row(name: str) -> np.ndarray:
        return stored[name].reshape(1, -1).astype(np.float64)

    return {
        **{name: row(own) for name, own in _ROTATIONS.items()},
        "eyes_pose": np.concatenate([row(name) for name in _EYES], axis=1),
        "translation": row("trans"),
        "expr": row("exp"),
        "shape": row("shape"),
    }


def _frames(
    path: pathlib.Path,
    view: str,
    camera: Camera,
    distortion: Float[np.ndarray, " k"],
    wanted: Sequence[int],
) -> Iterator[tuple[int, framing.Frame | str]]:
    lens = np.asarray(camera.intrinsics, np.float64)
    for frame_id in wanted:
        try:
            image, mask = read_pictures(path, view, frame_id)
        except (KeyError, OSError, ValueError) as error:
            yield frame_id, f"corrupt file: {error}"
            continue
        both = np.dstack([image, mask])
        both = images.resize(both, width=camera.width, height=camera.height)
        both = lenses.undistort(both, lens, distortion).clip(0.0, 1.0)
        yield frame_id, framing.Frame(both[..., :3], both[..., 3])


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"Expected h5py for {path}, got none; run `pip install "
            "'geodiff_jax[datasets]'`."
        ) from error
    with h5py.File(path, "r") as file:
        yield file
