"""Pixel3DMM's results to tracks: checkpoint/*.frame, one torch archive per frame.

`flame` holds exp, shape, eyelids (1, 2), t (1, 3) in metres and rotations: R, neck and
jaw (1, 6), eyes (1, 12), left then right. `camera` holds R_base_0 (1, 3, 3) and
t_base_0 (1, 3), camera from world in OpenGL's axes (x right, y up, z backwards), fl
(1, 1) and pp (1, 2). The world stays as it is: R v + t for FLAME's vertices v, posed
by neck, jaw and eyes alone; so here too.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float, Shaped

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head.track import Track
from geodiff_jax.io import torch_files
from geodiff_jax.tracking import arrays

HEAD_VERSION = "flame2020"
"""What Pixel3DMM tracks unless told otherwise."""

_FLAME = {
    "exp": None,
    "shape": None,
    "eyelids": 2,
    "eyes": 12,
    "jaw": 6,
    "neck": 6,
    "R": 6,
    "R_rotation_matrix": 9,
    "t": 3,
}
_CAMERA = {"R_base_0": 9, "t_base_0": 3, "fl": 1, "pp": 2}


def read(
    folder: str | os.PathLike,
    model: head_model.HeadModel,
    *,
    head_version: str = HEAD_VERSION,
) -> Track:
    """The track of a result folder, the one that holds `checkpoint`.

    One view, the square that was tracked: crop and resize the photos, or the camera,
    before they meet. Frames have the numbers of their files. Results of
    use_flame2023=True are of another `head_version`. Next, let
    `head.track.check_cameras` see whether the head lies in the view.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: the head is another, files are torn, lack something or do not fit
        together, rotations are none, or the camera moves.
    """
    path = pathlib.Path(folder)
    arrays.check_version(model, head_version, path)
    files = sorted((path / "checkpoint").glob("*.frame"), key=_frame_id)
    if not files:
        raise FileNotFoundError(
            f"There are no checkpoint/*.frame in {path}; choose the folder that "
            "Pixel3DMM's tracking wrote for one recording."
        )
    widths: dict[str, int | None] = {**_FLAME, **_CAMERA, "img_size": 1}
    frames = []
    for file in files:
        frames.append(_frame(file, widths))
        widths |= {name: row.shape[1] for name, row in frames[-1].items()}
    stored = {name: np.concatenate([x[name] for x in frames]) for name in widths}
    return Track(
        params=_head_params(stored, model, files, path),
        cameras=_camera(stored, files, path),
        frame_ids=tuple(_frame_id(file) for file in files),
        head_version=head_version,
    )


def _frame_id(file: pathlib.Path) -> int:
    if not (file.stem.isascii() and file.stem.isdigit() and len(file.stem) < 16):
        raise ValueError(f"Expected a number as the name of {file}.")
    return int(file.stem)


def _frame(
    file: pathlib.Path, widths: Mapping[str, int | None]
) -> dict[str, np.ndarray]:
    """One row of each array."""
    content = torch_files.read(file)
    flame, camera = (_section(content, name, file) for name in ("flame", "camera"))
    size = {"img_size": _image_size(content, file)}
    frame = {}
    for names, stored in ((_FLAME, flame), (_CAMERA, camera), (size, size)):
        for name in names:
            frame[name] = arrays.rows(stored, name, widths[name], file)
            if len(frame[name]) != 1:
                raise ValueError(
                    f"Expected one {name} in {file}, got {len(frame[name])}."
                )
    return frame


def _section(content: Any, name: str, file: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by name; matrices become rows of nine."""
    section = content.get(name) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"Expected {name} in {file}, got something else.")
    found = {}
    for key, value in section.items():
        if isinstance(key, str) and isinstance(value, np.ndarray):
            matrix = value.shape == (1, 3, 3)
            found[key] = value.reshape(1, 9) if matrix else value
    return found


def _image_size(content: dict[str, Any], file: pathlib.Path) -> np.ndarray:
    """A side, or two that are the same."""
    try:
        sides = np.asarray(content.get("img_size"), np.float64).ravel()
    except (ValueError, TypeError, OverflowError):
        sides = np.zeros(0)
    if sides.size not in (1, 2) or sides.min() != sides.max():
        raise ValueError(
            f"Expected img_size, the side of a square, in {file}, got "
            f"{content.get('img_size')!r:.40}."
        )
    return sides[:1]


def _head_params(
    stored: Mapping[str, np.ndarray],
    model: head_model.HeadModel,
    files: list[pathlib.Path],
    source: pathlib.Path,
) -> head_model.HeadParams:
    joints = [stored[name] for name in ("R", "neck", "jaw", "eyes")]
    numbers = np.concatenate(joints, axis=1).reshape(len(files), -1, 6)
    turns = _rotations(numbers, files)
    # The same rotation twice tells whether six numbers are rows or columns.
    apart = np.abs(turns[:, 0] - stored["R_rotation_matrix"].reshape(-1, 3, 3))
    wrong = apart.max(axis=(1, 2)) > arrays.RIGID_TOLERANCE
    if wrong.any():
        raise ValueError(
            f"Expected R to be the first two rows of R_rotation_matrix in "
            f"{files[wrong.argmax()]}, got another rotation."
        )
    rotations = jaxlie.SO3.from_matrix(jnp.asarray(np.float32(turns)))
    axis_angles = np.asarray(rotations.log())
    identities, expressions = len(model.identity_names), len(model.expression_names)
    params = {
        "identity": arrays.coefficients(stored["shape"], identities, "shape", source),
        "expression": arrays.coefficients(stored["exp"], expressions, "exp", source),
        "eyelids": stored["eyelids"],
        "neck": axis_angles[:, 1],
        "jaw": axis_angles[:, 2],
        "eyes": axis_angles[:, 3:],
        "rotation": axis_angles[:, 0],
        "translation": stored["t"],
    }
    return arrays.head_params(**params)


def _rotations(
    numbers: Shaped[np.ndarray, "t 5 6"], files: list[pathlib.Path]
) -> Float[np.ndarray, "t 5 3 3"]:
    """Rotations from six numbers: their first two rows, made orthonormal.

    Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural
    Networks", Sec. 4.2, with rows for columns, as PyTorch3D has it.
    """
    first, second = np.split(numbers.astype(np.float64), 2, axis=-1)
    length = np.linalg.norm(first, axis=-1, keepdims=True)
    x = first / np.maximum(length, 1e-12)
    across = second - (x * second).sum(axis=-1, keepdims=True) * x
    width = np.linalg.norm(across, axis=-1, keepdims=True)
    flat = (np.minimum(length, width) < 1e-6)[..., 0]
    if flat.any():
        frame, joint = np.argwhere(flat)[0]
        raise ValueError(
            f"Expected two rows of a rotation for {head_model.JOINTS[joint]} in "
            f"{files[frame]}, got two that span no plane."
        )
    y = across / width
    return np.stack([x, y, np.cross(x, y)], axis=-2)


def _camera(
    stored: Mapping[str, np.ndarray], files: list[pathlib.Path], source: pathlib.Path
) -> Camera:
    """The one camera of all frames."""
    apart = [np.abs(stored[name] - stored[name][:1]).max(axis=1) for name in _CAMERA]
    apart.append(np.abs(stored["img_size"] - stored["img_size"][:1])[:, 0])
    moved = np.max(apart, axis=0) > arrays.STILL
    if moved.any():
        raise ValueError(
            f"Expected one camera for all frames of {source}, got another in "
            f"{files[moved.argmax()]}; read such frames from folders of their own."
        )
    pose = np.eye(4)
    pose[:3, :3] = stored["R_base_0"][0].reshape(3, 3)
    pose[:3, 3] = stored["t_base_0"][0]
    pose = arrays.rigid(pose[None], "R_base_0", source)
    size = stored["img_size"][0, 0]
    focal = stored["fl"][0, 0] * size
    # As Pixel3DMM has it: a principal point of zero lies at the centre of pixel number
    # size/2, counted from 0. Pixel centres at +0.5 are ours too, so nothing is added.
    half = size / 2 + 0.5
    centre = half + stored["pp"][0] * half
    return arrays.cameras(
        arrays.OPENCV_FROM_OPENGL @ pose,
        np.array([[focal, focal, *centre]]),
        np.array([[size, size]]),
        source,
    )
