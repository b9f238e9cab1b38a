"""Numbers that other trackers stored: read without running anything, checked by name.

Every complaint names the array and its file.
"""

import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float, Shaped

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model

RIGID_TOLERANCE = 1e-3
"""How far R^T R may lie from the identity; trackers store float32 and text (ours)."""

STILL = 1e-4
"""What poses (metres, cosines) and lenses (shares of the image) of two frames may
differ by and still count as those of one camera: the digits of text (ours)."""
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Cameras' axes: y down and z forward, for y up and z backwards."""


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is torn, or something else.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {file}.") from None
    except Exception as error:  # zipfile and zlib raise a dozen kinds.
        raise ValueError(
            f"Expected an .npz of arrays in {file}, got a file that cannot be read "
            f"({type(error).__name__})."
        ) from error


def rows(
    stored: Mapping[str, np.ndarray],
    name: str,
    width: int | None,
    file: pathlib.Path,
    *,
    default: int | None = None,
) -> Shaped[np.ndarray, "n width"]:
    """An array as (n, width), of any width if None; `default` rows of zeros if missing.

    Raises ValueError where it is missing, of another width, empty, or not finite.
    """
    if name not in stored:
        if default is not None and width is not None:
            return np.zeros((default, width))
        raise ValueError(f"Expected {name} in {file}, got {', '.join(sorted(stored))}.")
    array = np.atleast_2d(stored[name])
    wide = array.ndim == 2 and array.shape[1] == (width or array.shape[1])
    if not wide or array.size == 0:
        raise ValueError(
            f"Expected {name} of {width or 'any'} numbers a row in {file}, got the "
            f"shape {stored[name].shape}."
        )
    with np.errstate(over="ignore"):  # All ends in single precision.
        finite = array.dtype.kind in "iuf" and np.isfinite(np.float32(array)).all()
    if not finite:
        raise ValueError(
            f"Expected finite {name} in {file}, got NaN, infinity or text."
        )
    return array


def coefficients(
    values: Shaped[np.ndarray, "n width"], count: int, name: str, source: pathlib.Path
) -> Shaped[np.ndarray, "n count"]:
    """Rows of coefficients for the `count` shapes that there are.

    What is left out is zero. What there is no shape for must be zero: without it, it
    would be another face.

    Raises ValueError where it is not.
    """
    width = values.shape[1]
    if values[:, count:].any():
        raise ValueError(
            f"Expected zeros after the first {count} numbers of {name} in {source}, "
            f"got {width} and others among them; take a head with as many shapes."
        )
    return np.pad(values[:, :count], ((0, 0), (0, max(0, count - width))))


def check_version(
    model: head_model.HeadModel, expected: str, source: pathlib.Path
) -> None:
    """Raises ValueError for another head than the tracker's."""
    if model.version != expected:
        raise ValueError(
            f"Expected the head {expected} for {source}, got {model.version}; their "
            "parameters mean different shapes."
        )


def head_params(**values: Shaped[np.ndarray, "..."]) -> head_model.HeadParams:
    """Parameters by name, in single precision."""
    return head_model.HeadParams(
        **{name: jnp.asarray(np.float32(value)) for name, value in values.items()}
    )


def rigid(
    poses: Shaped[np.ndarray, "n 4 4"], name: str, file: pathlib.Path
) -> Float[np.ndarray, "n 4 4"]:
    """Poses in double precision; ValueError where they do more than turn and move."""
    poses = rows({name: poses.reshape(-1, 16)}, name, 16, file).reshape(-1, 4, 4)
    poses = poses.astype(np.float64)
    rotations = poses[:, :3, :3]
    gram = rotations @ np.swapaxes(rotations, 1, 2)
    if not (
        np.abs(gram - np.eye(3)).max() < RIGID_TOLERANCE
        and (np.linalg.det(rotations) > 0).all()
        and np.abs(poses[:, 3] - [0, 0, 0, 1]).max() < 1e-6
    ):
        raise ValueError(f"Expected rigid {name} in {file}, got something else.")
    return poses


def cameras(
    camera_from_world: Float[np.ndarray, "n 4 4"],
    intrinsics: Shaped[np.ndarray, "n 4"],
    sizes: Shaped[np.ndarray, "m 2"],
    file: pathlib.Path,
) -> Camera:
    """Views of rigid poses in OpenCV axes; `sizes` are widths and heights, pixels.

    Raises ValueError where sizes differ or are not whole, or lenses are not positive.
    """
    sizes = np.unique(sizes, axis=0)
    if len(sizes) != 1:
        raise ValueError(
            f"Expected views of one size in {file}, got {sizes.tolist()} as widths and "
            "heights; resize images and lenses first."
        )
    if intrinsics[:, :2].min() <= 0 or sizes.min() < 1:
        raise ValueError(f"Expected positive lenses and sizes in {file}.")
    if (sizes != np.round(sizes)).any():
        raise ValueError(f"Expected whole pixels in {file}, got {sizes.tolist()}.")
    width, height = (int(n) for n in sizes[0])
    return Camera(
        jaxlie.SE3.from_matrix(jnp.asarray(np.float32(camera_from_world))),
        jnp.asarray(np.float32(intrinsics)),
        width,
        height,
    )
