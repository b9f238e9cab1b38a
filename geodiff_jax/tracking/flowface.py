"""FlowFace folders, CAP4D's input (002): FLAME fits and cameras as they are handed out.

`fit.npz` holds fx, fy, cx, cy (c, 1) in pixels, extr (c, 4, 4) world to OpenCV camera,
resolutions (c, 2) height and width; shape (150,), expr (t, 65), rot and tra (t, 3),
eye_rot (t, 3), and at times neck_rot and jaw_rot (t, 3). Rotations are axis-angle. The
head's world has y up and z towards the viewer; half a turn about x makes it that of
the cameras.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head.track import Track
from geodiff_jax.io import atomic
from geodiff_jax.tracking import arrays

HEAD_VERSION = "flame2023_no_jaw"
"""FLAME 2023 without jaw, its 65th expression a blink."""
NUM_IDENTITY, NUM_EXPRESSIONS = 150, 65

_VIEWER_FROM_CAMERA = np.diag([1.0, -1.0, -1.0])


def read(path: str | os.PathLike) -> Track:
    """The track of a FlowFace folder, or of its fit.npz.

    A file of expressions alone, without a shape, gets the mean one: it can drive.

    Raises:
      FileNotFoundError: no such file.
      ValueError: arrays are missing, not finite, or do not fit together.
    """
    file = pathlib.Path(path)
    file = file / "fit.npz" if file.is_dir() else file
    stored = arrays.read(file)
    expressions = arrays.rows(stored, "expr", NUM_EXPRESSIONS, file)
    frames = len(expressions)
    shape = arrays.rows(stored, "shape", NUM_IDENTITY, file, default=1)
    if len(shape) != 1:
        raise ValueError(f"Expected one shape in {file}, got {len(shape)}.")

    def per_frame(name: str, *, default: int | None = None) -> np.ndarray:
        rows = arrays.rows(stored, name, 3, file, default=default)
        if len(rows) != frames:
            raise ValueError(
                f"Expected {name} for the {frames} frames of {file}, got {len(rows)}."
            )
        return rows

    own = jaxlie.SO3.exp(jnp.asarray(per_frame("rot"), jnp.float32))
    turn = jaxlie.SO3.from_matrix(jnp.asarray(_VIEWER_FROM_CAMERA, jnp.float32))
    eyes = per_frame("eye_rot")
    params = {
        "identity": np.broadcast_to(shape, (frames, NUM_IDENTITY)),
        "expression": expressions,
        "eyelids": np.zeros((frames, 2)),
        "neck": per_frame("neck_rot", default=frames),
        "jaw": per_frame("jaw_rot", default=frames),
        "eyes": np.stack([eyes, eyes], axis=1),
        "rotation": np.asarray((turn @ own).log()),
        "translation": per_frame("tra") @ _VIEWER_FROM_CAMERA,
    }
    return Track(
        params=arrays.head_params(**params),
        cameras=_cameras(stored, file),
        frame_ids=tuple(range(frames)),
        head_version=HEAD_VERSION,
    )


def write(
    folder: str | os.PathLike, track: Track, *, camera_names: Sequence[str]
) -> None:
    """The fit.npz that `read` reads, in a folder of pictures: inverts it.

    Raises:
      ValueError: what the file has no room for: another head, identities that change,
        eyelids, and eyes that turn apart.
    """
    params = {name: np.asarray(x) for name, x in vars(track.params).items()}
    identity, eyes = params["identity"], params["eyes"]
    for said, fits in (
        (f"the head {HEAD_VERSION}", track.head_version == HEAD_VERSION),
        ("one identity", (identity == identity[:1]).all()),
        ("eyelids at rest", not params["eyelids"].any()),
        ("both eyes turned alike", (eyes[:, 0] == eyes[:, 1]).all()),
    ):
        if not fits:
            raise ValueError(f"Expected {said} for {folder}, got something else.")
    turn = jaxlie.SO3.from_matrix(jnp.asarray(_VIEWER_FROM_CAMERA, jnp.float32))
    size = [track.cameras.height, track.cameras.width]
    lens = np.asarray(track.cameras.intrinsics)
    stored = {
        **{name: lens[:, i : i + 1] for i, name in enumerate(("fx", "fy", "cx", "cy"))},
        "extr": track.cameras.camera_from_world.as_matrix(),
        "resolutions": np.tile(size, (len(lens), 1)),
        "camera_order": np.asarray(camera_names),
        "shape": identity[0],
        "expr": params["expression"],
        "rot": (turn.inverse() @ jaxlie.SO3.exp(track.params.rotation)).log(),
        "tra": params["translation"] @ _VIEWER_FROM_CAMERA,
        "eye_rot": eyes[:, 0],
        "neck_rot": params["neck"],
        "jaw_rot": params["jaw"],
    }
    with atomic.new_file(pathlib.Path(folder) / "fit.npz") as temporary:
        with open(temporary, "wb") as stream:
            np.savez(stream, **stored)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A picture of the head, and where in the track it belongs."""

    view: int
    """Place among the cameras."""
    frame: int
    image: pathlib.Path
    matte: pathlib.Path | None
    """White where the person is; None where the picture is of the person alone."""


def find_references(folder: str | os.PathLike, track: Track) -> tuple[Reference, ...]:
    """The references of a folder, of which `track` was read; the first is the first.

    Raises:
      FileNotFoundError: no list of references, or no picture of one.
      ValueError: a reference whose camera or frame the track lacks.
    """
    path = pathlib.Path(folder)
    stored = arrays.read(path / "fit.npz")
    names = [str(x) for x in stored.get("camera_order", ())] or sorted(
        x.name for x in (path / "images").glob("*") if x.is_dir()
    )
    found = []
    for camera, frame in read_references(path / "reference_images.json"):
        known = names.index(camera) if camera in names else len(names)
        if known >= len(track.cameras.intrinsics) or frame >= track.num_frames:
            raise ValueError(
                f"Expected references among {len(track.cameras.intrinsics)} cameras "
                f"and {track.num_frames} frames in {path}, got {camera}, {frame}."
            )
        pictures = sorted(
            x for x in (path / "images" / camera).glob("*") if x.is_file()
        )
        if frame >= len(pictures):
            raise FileNotFoundError(
                f"There is no picture of frame {frame} in {path / 'images' / camera}."
            )
        matte = path / "bg" / camera / f"{frame:04d}.png"
        own = matte if matte.is_file() else None
        found.append(Reference(known, frame, pictures[frame], own))
    return tuple(found)


def read_trajectory(path: str | os.PathLike) -> Camera:
    """A moving camera, such as orbit.npz: one pose and lens per frame, (t,).

    Raises as `read`.
    """
    file = pathlib.Path(path)
    return _cameras(arrays.read(file), file)


def read_expressions(
    path: str | os.PathLike,
) -> tuple[Float[np.ndarray, "n 65"], Float[np.ndarray, "n 3"]]:
    """(expressions, rotations of both eyes) of a database of single frames.

    Raises as `read`.
    """
    file = pathlib.Path(path)
    stored = arrays.read(file)
    expressions = arrays.rows(stored, "expr", NUM_EXPRESSIONS, file)
    eyes = arrays.rows(stored, "eye_rot", 3, file)
    if len(expressions) != len(eyes):
        raise ValueError(
            f"Expected as many eye_rot as expr in {file}, got {len(eyes)} and "
            f"{len(expressions)}."
        )
    return expressions, eyes


def read_references(path: str | os.PathLike) -> tuple[tuple[str, int], ...]:
    """(camera, frame) of each reference in reference_images.json; the first is the
    view that others are relative to.

    Raises as `read`.
    """
    file = pathlib.Path(path)
    expected = f"Expected pairs of a camera's name and a frame, from 0 on, in {file}"
    try:
        entries = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {file}.") from None
    except Exception as error:
        raise ValueError(f"{expected}, got no JSON.") from error
    found = []
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case [str() as camera, int() as frame] if frame >= 0 and frame is not True:
                found.append((camera, frame))
            case _:
                raise ValueError(f"{expected}, got something else.")
    if not found:
        raise ValueError(f"{expected}, got none.")
    return tuple(found)


def _cameras(stored: Mapping[str, np.ndarray], file: pathlib.Path) -> Camera:
    """All that the file has; `resolution` (2,) stands for one of each."""
    lens = [arrays.rows(stored, name, 1, file) for name in ("fx", "fy", "cx", "cy")]
    sizes = "resolution" if "resolution" in stored else "resolutions"
    heights_widths = arrays.rows(stored, sizes, 2, file)
    extrinsics = stored.get("extr", np.zeros(0))
    count = len(lens[0])
    if extrinsics.shape != (count, 4, 4) or any(len(x) != count for x in lens):
        raise ValueError(
            f"Expected extr, fx, fy, cx and cy for as many cameras in {file}, got extr "
            f"of shape {extrinsics.shape} and {[len(x) for x in lens]}."
        )
    return arrays.cameras(
        arrays.rigid(extrinsics, "extr", file),
        np.concatenate(lens, axis=1),
        heights_widths[:, ::-1],
        file,
    )
