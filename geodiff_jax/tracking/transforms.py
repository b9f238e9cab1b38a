"""transforms.json as VHAP and GaussianAvatars have it: an entry for each image.

An entry tells timestep_index, camera_index, the lens (fl_x, fl_y, cx, cy, w and h, in
pixels from the image's corner), transform_matrix (world from camera, in OpenGL's axes:
x right, y up, z backwards) and the paths of the image, its mask and its timestep's
parameters. What all entries share may stand above them.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head.track import Track
from geodiff_jax.tracking import arrays

WHOLE = "transforms.json"
PARTS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
TRAINING_TENTHS = 7
"""The first so many tenths of all timesteps are for training."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """One image."""

    timestep: int
    camera: int
    camera_id: str
    """The camera's own name, such as its serial number; else its index."""
    frame_id: int
    """timestep_index_original: where the recording has it; else the timestep."""
    size: tuple[float, float]
    """Width and height, pixels."""
    lens: tuple[float, float, float, float]
    """fx, fy, cx, cy in pixels."""
    pose: tuple[float, ...]
    """World from camera, OpenGL's axes, row by row."""
    flame_param_path: str
    file_path: str
    fg_mask_path: str | None


def read(folder: pathlib.Path) -> list[Shot]:
    """All entries of transforms.json or, without it, of its parts; sorted by time.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: one is torn, or entries lack something or contradict each other.
    """
    files = [folder / WHOLE]
    if not files[0].is_file():
        files = [folder / name for name in PARTS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"There is no {WHOLE} in {folder}, nor {', '.join(PARTS)}."
        )
    found: dict[tuple[int, int], Shot] = {}
    timesteps: dict[int, Shot] = {}
    for file in files:
        for entry in _entries(file):
            shot = _shot(entry, file)
            same = found.setdefault((shot.timestep, shot.camera), shot)
            time = timesteps.setdefault(shot.timestep, shot)
            together = (time.frame_id, time.flame_param_path)
            if same != shot or together != (shot.frame_id, shot.flame_param_path):
                raise ValueError(
                    f"Expected entries of timestep {shot.timestep} that agree in "
                    f"{file}, got two that contradict each other."
                )
    if not found:
        raise ValueError(f"Expected frames in {files[0]}, got none.")
    ids = [timesteps[timestep].frame_id for timestep in sorted(timesteps)]
    if ids != sorted(set(ids)):
        raise ValueError(
            f"Expected timestep_index_original that ascends with timestep_index in "
            f"{folder}, got another order."
        )
    return [found[key] for key in sorted(found)]


def cameras(shots: Sequence[Shot], folder: pathlib.Path) -> Camera:
    """The views, in the order of their indices.

    Raises ValueError where they move, differ in size, or are no cameras.
    """
    first: dict[int, Shot] = {}
    for shot in shots:
        first.setdefault(shot.camera, shot)
    own = np.array([[*x.pose, *x.lens] for x in shots])
    at_first = np.array([[*first[x.camera].pose, *first[x.camera].lens] for x in shots])
    unit = np.array([[1.0] * 16 + [max(x.size)] * 4 for x in shots])
    moved = (np.abs(own - at_first) > arrays.STILL * unit).any(axis=1)
    if moved.any():
        shot = shots[int(moved.argmax())]
        raise ValueError(
            f"Expected cameras that stand still in {folder}, got one, camera_index "
            f"{shot.camera}, that moves or zooms at timestep {shot.timestep}; put its "
            "motion into the head first."
        )
    views = [first[camera] for camera in sorted(first)]
    poses = np.array([view.pose for view in views]).reshape(-1, 4, 4)
    world_from_camera = arrays.rigid(poses, "transform_matrix", folder)
    return arrays.cameras(
        arrays.OPENCV_FROM_OPENGL @ np.linalg.inv(world_from_camera),
        np.array([view.lens for view in views]),
        np.array([shot.size for shot in shots]),
        folder,
    )


def flame_param_path(timestep: int) -> str:
    """Where the parameters of a timestep lie in the folder."""
    return f"flame_param/{timestep:05d}.npz"


def write(
    folder: pathlib.Path, track: Track, *, validation_views: Sequence[int] = ()
) -> None:
    """transforms.json and its parts, for a track of frames 0, 1, ... by timestep.

    Of the first 70 % of the timesteps, `validation_views` are for validation, the
    others for training; the remaining timesteps are for the test.

    Raises ValueError if no view would be left for training.
    """
    if np.ndim(track.cameras.intrinsics) != 2:
        raise ValueError(
            f"Expected one axis of views for {folder}, got lenses of shape "
            f"{np.shape(track.cameras.intrinsics)}."
        )
    views = range(len(track.cameras.intrinsics))
    held_out = set(validation_views)
    if not held_out <= set(views) or len(held_out) == len(views):
        raise ValueError(
            f"Expected validation views among {list(views)}, but not all of them, got "
            f"{sorted(held_out)}."
        )
    trained = max(1, track.num_frames * TRAINING_TENTHS // 10)
    early, late = range(trained), range(trained, track.num_frames)
    seen = [view for view in views if view not in held_out]
    splits = {
        WHOLE: (range(track.num_frames), views),
        PARTS[0]: (early, seen),
        PARTS[1]: (early, sorted(held_out)),
        PARTS[2]: (late, views),
    }
    cameras = _camera_entries(track.cameras)
    for name, (timesteps, of_views) in splits.items():
        content = {
            "frames": [
                _entry(timestep, track.frame_ids[timestep], view, cameras[view])
                for timestep in timesteps
                for view in of_views
            ],
            **{key: cameras[0][key] for key in _LENS},
            "timestep_indices": list(timesteps),
            "camera_indices": list(of_views),
        }
        (folder / name).write_text(json.dumps(content, indent=1))


_LENS = ("cx", "cy", "fl_x", "fl_y", "h", "w", "camera_angle_x", "camera_angle_y")


def _camera_entries(cameras: Camera) -> list[dict[str, Any]]:
    """What an entry says of each view."""
    camera_from_world = np.asarray(cameras.camera_from_world.as_matrix(), np.float64)
    poses = np.linalg.inv(camera_from_world) @ arrays.OPENCV_FROM_OPENGL
    width, height = cameras.width, cameras.height
    lenses = np.asarray(cameras.intrinsics, np.float64).tolist()
    return [
        {
            "cx": cx,
            "cy": cy,
            "fl_x": fx,
            "fl_y": fy,
            "h": height,
            "w": width,
            "camera_angle_x": 2 * math.atan(width / (2 * fx)),
            "camera_angle_y": 2 * math.atan(height / (2 * fy)),
            "transform_matrix": pose.tolist(),
        }
        for (fx, fy, cx, cy), pose in zip(lenses, poses, strict=True)
    ]


def _entry(
    timestep: int, frame_id: int, view: int, camera: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "timestep_index": timestep,
        "timestep_index_original": frame_id,
        "timestep_id": f"{frame_id:05d}",
        "camera_index": view,
        "camera_id": f"{view:02d}",
        **camera,
        "file_path": f"images/{timestep:05d}_{view:02d}.png",
        "fg_mask_path": f"fg_masks/{timestep:05d}_{view:02d}.png",
        "flame_param_path": flame_param_path(timestep),
    }


def _entries(file: pathlib.Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_bytes())
        frames = content["frames"]
        shared = {name: value for name, value in content.items() if name != "frames"}
        return [{**shared, **frame} for frame in frames]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"Expected a list of frames in {file}, got something else "
            f"({type(error).__name__})."
        ) from error


def _shot(entry: Mapping[str, Any], file: pathlib.Path) -> Shot:
    def number(name: str, *default: float) -> float:
        value = entry.get(name, *default)
        # Huge integers have no float, and NaN is not below anything.
        if not isinstance(value, int | float) or not abs(value) < 1e12:
            raise ValueError(
                f"Expected a finite number {name} in each frame of {file}, got "
                f"{value!r:.40}."
            )
        return float(value)

    def index(name: str, *default: float) -> int:
        value = number(name, *default)
        if value < 0 or value != int(value):
            raise ValueError(f"Expected {name} 0, 1, ... in {file}, got {value}.")
        return int(value)

    def text(name: str) -> str:
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise ValueError(
                f"Expected a path {name} in each frame of {file}, got "
                f"{entry.get(name)!r:.40}."
            )
        return entry[name]

    timestep = index("timestep_index")
    width, height = number("w"), number("h")
    if "fl_x" in entry:
        fx = number("fl_x")
    else:
        fx = width / 2 / math.tan(_half_angle(number("camera_angle_x"), file))
    return Shot(
        timestep=timestep,
        camera=index("camera_index", 0),
        camera_id=str(entry.get("camera_id", f"{index('camera_index', 0):02d}")),
        frame_id=index("timestep_index_original", timestep),
        size=(width, height),
        lens=(
            fx,
            number("fl_y", fx),
            number("cx", width / 2),
            number("cy", height / 2),
        ),
        pose=tuple(_pose(entry.get("transform_matrix"), file).ravel().tolist()),
        flame_param_path=text("flame_param_path"),
        file_path=text("file_path"),
        fg_mask_path=text("fg_mask_path") if entry.get("fg_mask_path") else None,
    )


def _half_angle(angle: float, file: pathlib.Path) -> float:
    if not 0 < angle < math.pi:
        raise ValueError(
            f"Expected camera_angle_x between 0 and pi in {file}, got {angle}."
        )
    return angle / 2


def _pose(value: Any, file: pathlib.Path) -> Float[np.ndarray, "4 4"]:
    try:
        pose = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        pose = np.zeros(0)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError(
            f"Expected a transform_matrix of 4 x 4 finite numbers in each frame of "
            f"{file}, got {value!r:.40}."
        )
    return pose
