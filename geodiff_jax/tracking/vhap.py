"""VHAP's captures, which GaussianAvatars loads, to tracks and back.

A folder holds canonical_flame_param.npz, whose presence tells loaders the layout,
flame_param/*.npz for each timestep, and transforms.json or its parts, see
`transforms`. Rotations are axis-angle, in radians; lengths are metres; the world's axes
stay as they are, y upwards.

VHAP turns FLAME inside the skinning, about the root joint j where its shape puts it:
R (v - j) + j + t. Here heads turn about their frame's origin: R v + (t + j - R j). So
`translation` changes on the way, and nothing else does.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from geodiff_jax.head import lbs
from geodiff_jax.head import model as head_model
from geodiff_jax.head import track as head_track
from geodiff_jax.io import atomic
from geodiff_jax.tracking import arrays, transforms

HEAD_VERSION = "flame2023"
"""FLAME 2023 with its jaw. Teeth, where there are some, add vertices, not shapes."""
NUM_IDENTITY, NUM_EXPRESSIONS = 300, 100
CANONICAL = "canonical_flame_param.npz"
CANONICAL_JAW_RADIANS = 0.3
"""How far the canonical head opens its mouth."""

_POSES = {
    "translation": 3,
    "rotation": 3,
    "neck_pose": 3,
    "jaw_pose": 3,
    "eyes_pose": 6,  # Left, then right, as FLAME orders its joints.
}
_PER_FRAME = (*_POSES, "expr")


@dataclasses.dataclass(frozen=True)
class Capture:
    """A track with what else VHAP knows of the recording."""

    track: head_track.Track
    offsets: Float[np.ndarray, "p 3"]
    """Metres on FLAME's vertices at rest, in their order, then on the teeth that VHAP
    adds, if any; not yet in the track's head, see `head.model.with_offsets`."""
    images: Mapping[tuple[int, int], str]
    """(frame id, view) to a path in the folder, as it is written there; images may be
    missing, here and on disk."""
    masks: Mapping[tuple[int, int], str]
    """The same for the foreground masks."""
    camera_ids: tuple[str, ...] = ()
    """The views' own names, in their order, such as serial numbers of cameras."""


def read(folder: str | os.PathLike, model: head_model.HeadModel) -> Capture:
    """A capture that VHAP exported, or anyone for GaussianAvatars.

    Views are in the order of camera_index. Next, let `head.track.check_cameras` see
    whether the head lies in them.

    Raises:
      FileNotFoundError: one of the files is missing.
      ValueError: the head is another, cameras move or differ in size, arrays are
        missing, not finite, or do not fit together.
    """
    path = pathlib.Path(folder)
    arrays.check_version(model, HEAD_VERSION, path)
    if not (path / CANONICAL).is_file():
        raise FileNotFoundError(
            f"Expected {CANONICAL} in {path}, there is none; choose a folder that VHAP "
            "exported."
        )
    shots = transforms.read(path)
    per_timestep = {shot.timestep: shot for shot in shots}
    frames = [per_timestep[timestep] for timestep in sorted(per_timestep)]
    cameras = transforms.cameras(shots, path)
    stored = _gathered([path / shot.flame_param_path for shot in frames])
    names = {shot.camera: shot.camera_id for shot in shots}
    views = {camera: i for i, camera in enumerate(sorted(names))}
    keyed = [((shot.frame_id, views[shot.camera]), shot) for shot in shots]
    return Capture(
        track=head_track.Track(
            params=head_params(stored, model, path),
            cameras=cameras,
            frame_ids=tuple(shot.frame_id for shot in frames),
            head_version=HEAD_VERSION,
        ),
        offsets=_offsets(stored, model, path),
        images={key: x.file_path for key, x in keyed},
        masks={key: x.fg_mask_path for key, x in keyed if x.fg_mask_path},
        camera_ids=tuple(names[camera] for camera in views),
    )


def read_result(path: str | os.PathLike, model: head_model.HeadModel) -> Capture:
    """VHAP's own tracked_flame_params_*.npz of one camera, before the export.

    The camera stands at (0, 0, 1) and looks along -z; its focal length is stored in
    units of the image's longer side; image_size is read as height and width (inferred).
    Frames have the numbers of timestep_id if these ascend, else they count from 0.

    Raises as `read`.
    """
    file = pathlib.Path(path)
    arrays.check_version(model, HEAD_VERSION, file)
    stored = arrays.read(file)
    if "focal_length" not in stored:
        raise ValueError(
            f"Expected focal_length in {file}, there is none: calibrated cameras are "
            "not among the results; export the capture and read its folder."
        )
    focal = arrays.rows(stored, "focal_length", 1, file)
    size = arrays.rows(stored, "image_size", 2, file)
    if len(focal) != 1 or len(size) != 1:
        raise ValueError(
            f"Expected one focal_length and image_size in {file}, got {len(focal)} and "
            f"{len(size)}."
        )
    height, width = size[0]
    focal_pixels = float(focal[0, 0]) * max(height, width)
    camera_from_world = arrays.OPENCV_FROM_OPENGL.copy()
    camera_from_world[2, 3] = 1.0
    _refuse_motion(stored, file)
    params = head_params(stored, model, file)
    return Capture(
        track=head_track.Track(
            params=params,
            cameras=arrays.cameras(
                camera_from_world[None],
                np.array([[focal_pixels, focal_pixels, width / 2, height / 2]]),
                size[:, ::-1],
                file,
            ),
            frame_ids=_frame_ids(stored.get("timestep_id"), len(params.rotation)),
            head_version=HEAD_VERSION,
        ),
        offsets=_offsets(stored, model, file),
        images={},
        masks={},
    )


def write(
    folder: str | os.PathLike,
    track: head_track.Track,
    model: head_model.HeadModel,
    *,
    offsets: Float[np.ndarray, "p 3"] | None = None,
    validation_views: Sequence[int] = (),
) -> None:
    """Writes a track as a capture for GaussianAvatars, without its images.

    Those belong to images/ and fg_masks/, named as in transforms.json. A folder that
    is there is replaced as a whole. `validation_views` are kept from training, see
    `transforms.write`. The canonical head keeps shape and offsets. GaussianAvatars
    takes pixels as square and the principal point as centred, whatever is written:
    crop to that first.

    Raises:
      FileExistsError: the folder holds images, which would be lost.
      ValueError: what the layout cannot say (another head, eyelids, an identity that
        changes, more shapes than FLAME has), or parameters that are not finite.
    """
    target = pathlib.Path(folder)
    if (target / "images").exists():
        raise FileExistsError(
            f"Expected no images in {target} yet, there are some, which would be lost; "
            "write the track first, or choose another folder."
        )
    arrays.check_version(model, HEAD_VERSION, target)
    head_track.check(track, model)
    if track.num_frames == 0:
        raise ValueError(f"Expected a track with frames for {target}, got none.")
    shared, moving = _stored(track.params, model, target)
    if offsets is None:
        offsets = np.zeros((model.num_vertices, 3))
    shared["static_offset"] = np.asarray(offsets, np.float32)[None]
    if not np.isfinite(shared["static_offset"]).all():
        raise ValueError(f"Expected finite offsets for {target}, got NaN or infinity.")
    canonical = {name: np.zeros_like(values[:1]) for name, values in moving.items()}
    canonical["jaw_pose"][0, 0] = CANONICAL_JAW_RADIANS
    with atomic.new_folder(target) as temporary:
        transforms.write(temporary, track, validation_views=validation_views)
        _save(temporary / CANONICAL, {**shared, **canonical})
        for timestep in range(track.num_frames):
            own = {k: v[timestep : timestep + 1] for k, v in moving.items()}
            file = temporary / transforms.flame_param_path(timestep)
            file.parent.mkdir(exist_ok=True)
            _save(file, {**shared, **own})


def _gathered(files: Sequence[pathlib.Path]) -> dict[str, np.ndarray]:
    """Files of one frame each, as one of many frames."""
    widths: dict[str, int] = dict(_POSES)
    frames, first = [], {}
    for file in files:
        stored = arrays.read(file)
        _refuse_motion(stored, file)
        frame = {
            name: arrays.rows(stored, name, widths.get(name), file)
            for name in (*_PER_FRAME, "shape")
        }
        widths |= {name: values.shape[1] for name, values in frame.items()}
        for name in _PER_FRAME:
            if len(frame[name]) != 1:
                raise ValueError(
                    f"Expected one {name} in {file}, got {len(frame[name])}."
                )
        first = first or stored
        for name in ("shape", "static_offset"):
            if not np.array_equal(stored.get(name, 0), first.get(name, 0)):
                raise ValueError(
                    f"Expected one {name} in all files, got another in {file} than in "
                    f"{files[0]}; keep one person, tracked once, in a folder."
                )
        frames.append(frame)
    moving = {name: np.concatenate([x[name] for x in frames]) for name in _PER_FRAME}
    return {**first, **moving}


def head_params(
    stored: Mapping[str, np.ndarray],
    model: head_model.HeadModel,
    source: pathlib.Path,
) -> head_model.HeadParams:
    """Parameters of frames from arrays in VHAP's terms, a row for each frame.

    translation, rotation, neck_pose, jaw_pose (t, 3), eyes_pose (t, 6), expr (t, e) and
    one shape, by FLAME's rules: the head turns about its root joint. `source` is what
    complaints name. Raises ValueError where rows are missing, or do not fit together.
    """
    poses = {name: arrays.rows(stored, name, n, source) for name, n in _POSES.items()}
    expressions = arrays.rows(stored, "expr", None, source)
    frames = len(expressions)
    for name, values in poses.items():
        if len(values) != frames:
            raise ValueError(
                f"Expected {name} for the {frames} frames of {source}, got "
                f"{len(values)}."
            )
    shape = arrays.rows(stored, "shape", None, source)
    if len(shape) != 1:
        raise ValueError(f"Expected one shape in {source}, got {len(shape)}.")
    shape = arrays.coefficients(shape, len(model.identity_names), "shape", source)
    expressions = arrays.coefficients(
        expressions, len(model.expression_names), "expr", source
    )
    identity = np.broadcast_to(shape, (frames, shape.shape[1]))
    params = {
        "identity": identity,
        "expression": expressions,
        "eyelids": np.zeros((frames, 2)),
        "neck": poses["neck_pose"],
        "jaw": poses["jaw_pose"],
        "eyes": poses["eyes_pose"].reshape(frames, 2, 3),
        "rotation": poses["rotation"],
        "translation": poses["translation"]
        + _root_shift(model, identity, expressions, poses["rotation"]),
    }
    return arrays.head_params(**params)


def _root_shift(
    model: head_model.HeadModel,
    identity: Shaped[np.ndarray, "t i"],
    expression: Shaped[np.ndarray, "t e"],
    rotation: Shaped[np.ndarray, "t 3"],
) -> Float[np.ndarray, "t 3"]:
    """j - R j: how much further the origin moves when a head turns about its root."""
    root = np.asarray(model.joint_template, np.float64)[0]
    root = root + identity @ np.asarray(model.joint_identity_basis, np.float64)[:, 0]
    if model.joint_expression_basis is not None:
        moves = np.asarray(model.joint_expression_basis, np.float64)[:, 0]
        root = root + expression @ moves
    turned = lbs.rotation_matrices(jnp.asarray(np.float32(rotation)))
    return root - np.einsum("tkl,tl->tk", np.asarray(turned, np.float64), root)


def _refuse_motion(stored: Mapping[str, np.ndarray], file: pathlib.Path) -> None:
    if np.count_nonzero(stored.get("dynamic_offset", 0)):
        raise ValueError(
            f"Expected no dynamic_offset in {file}, got one: no head has vertices that "
            "move by themselves; track again without."
        )


def _offsets(
    stored: Mapping[str, np.ndarray],
    model: head_model.HeadModel,
    source: pathlib.Path,
) -> Float[np.ndarray, "p 3"]:
    """static_offset, (p, 3) or (1, p, 3); zeros if there is none."""
    found = stored.get("static_offset", np.zeros((model.num_vertices, 3)))
    found = found[0] if found.ndim == 3 and len(found) == 1 else found
    rows = arrays.rows({"static_offset": found}, "static_offset", 3, source)
    return rows.astype(np.float32)


def _frame_ids(stored: np.ndarray | None, frames: int) -> tuple[int, ...]:
    names = [] if stored is None else [str(x) for x in np.ravel(stored)]
    numbers = [int(x) for x in names if x.isascii() and x.isdigit() and len(x) < 16]
    if len(numbers) == len(names) == frames and numbers == sorted(set(numbers)):
        return tuple(numbers)
    return tuple(range(frames))


def _stored(
    params: head_model.HeadParams, model: head_model.HeadModel, target: pathlib.Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(what all frames share, what each has) in VHAP's terms: inverts the reading."""
    own = {name: np.asarray(x, np.float64) for name, x in vars(params).items()}
    for name, values in own.items():
        if not np.isfinite(values).all():
            raise ValueError(f"Expected finite {name} for {target}, got NaN.")
    if own["eyelids"].any():
        raise ValueError(
            f"Expected open eyelids for {target}, got closed ones: VHAP closes eyes by "
            "expressions only; fit the recording again without eyelids."
        )
    if np.ptp(own["identity"], axis=0).any():
        raise ValueError(
            f"Expected one identity for {target}, got one that changes; average it, or "
            "write one capture for each."
        )
    frames = len(own["rotation"])
    shift = _root_shift(model, own["identity"], own["expression"], own["rotation"])
    moving = {
        "translation": own["translation"] - shift,
        "rotation": own["rotation"],
        "neck_pose": own["neck"],
        "jaw_pose": own["jaw"],
        "eyes_pose": own["eyes"].reshape(frames, 6),
        "expr": arrays.coefficients(
            own["expression"], NUM_EXPRESSIONS, "expression", target
        ),
    }
    shape = arrays.coefficients(own["identity"], NUM_IDENTITY, "identity", target)[0]
    as_stored = {name: np.asarray(x, np.float32) for name, x in moving.items()}
    return {"shape": np.asarray(shape, np.float32)}, as_stored


def _save(file: pathlib.Path, content: Mapping[str, np.ndarray]) -> None:
    with file.open("wb") as stream:
        # No array is named allow_pickle.
        np.savez(stream, **content)  # pyright: ignore[reportArgumentType]
