"""A fitted photo on disk: `fit.json` for people, `fit.npz` for what is too large.

`fit.json` gives camera_from_world 4x4, intrinsics 3x3, width and height of the upright
photo, the head's version, its parameters with the names of their basis, and the
landmarks found and projected.
"""

import json
import os
import pathlib
import zipfile
from typing import Any

import jax.numpy as jnp
import jaxlie
import numpy as np

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.io import atomic
from geodiff_jax.tracking import detect, fit, offsets


def save(
    folder: str | os.PathLike, result: fit.Fit, detection: detect.Detection
) -> None:
    """Writes fit.npz, then fit.json: where the latter exists, both are whole."""
    path = pathlib.Path(folder)
    camera = result.camera
    content = {
        "camera_from_world": _plain(camera.camera_from_world.as_matrix()),
        "intrinsics": _plain(camera.matrix),
        "width": camera.width,
        "height": camera.height,
        "head_version": result.head.version,
        "params": {name: _plain(value) for name, value in vars(result.params).items()},
        "names": {
            "identity": list(result.head.identity_names),
            "expression": list(result.head.expression_names),
        },
        "landmarks": {
            "found": _plain(result.found),
            "projected": _plain(result.projected),
            "source": detection.landmarks_source,
        },
        "figures": {name: getattr(result, name) for name in _FIGURES},
        "matte_source": detection.matte_source,
        "degraded": detection.degraded,
        "warnings": list(detection.warnings),
    }
    with atomic.new_file(path / "fit.npz") as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                offsets=np.asarray(result.offsets),
                matte=detection.matte.astype(np.float16),
                box=detection.box,
                irises=np.zeros((0, 2))
                if detection.irises is None
                else detection.irises,
            )
    atomic.write_text(path / "fit.json", json.dumps(content, indent=1))


def load(
    folder: str | os.PathLike, model: head_model.HeadModel
) -> tuple[fit.Fit, detect.Detection]:
    """Reads what `save` wrote, for the same head.

    Raises ValueError in one sentence for damaged files and for another head's.
    """
    path = pathlib.Path(folder)
    try:
        content = json.loads((path / "fit.json").read_text())
        with np.load(path / "fit.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        version = content["head_version"]
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(_damaged(path, error)) from error
    if version != model.version:
        raise ValueError(
            f"Expected a fit of the head {model.version} in {path}, got one of "
            f"{version}; choose another folder to fit this head."
        )
    try:
        return _fit_of(content, arrays, model), _detection_of(content, arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(path, error)) from error


_NO_IRISES = np.zeros((0, 2))
_FIGURES = (
    "landmark_nme",
    "landmark_nme_without_offsets",
    "offsets_rms",
    "offsets_max",
    "yaw_radians",
)


def _fit_of(
    content: dict[str, Any],
    arrays: dict[str, np.ndarray],
    model: head_model.HeadModel,
) -> fit.Fit:
    matrix = np.asarray(content["intrinsics"], np.float32)
    intrinsics = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    pose = jaxlie.SE3.from_matrix(jnp.asarray(content["camera_from_world"]))
    camera = Camera(
        pose, jnp.asarray(intrinsics), int(content["width"]), int(content["height"])
    )
    params = {}
    for name, expected in vars(head_model.neutral(model)).items():
        params[name] = jnp.asarray(content["params"][name], jnp.float32)
        if params[name].shape != expected.shape:
            raise ValueError(f"{name} has the shape {params[name].shape}")
    field = jnp.asarray(arrays["offsets"], jnp.float32)
    return fit.Fit(
        head=offsets.apply(model, arrays["offsets"]),
        params=head_model.HeadParams(**params),
        camera=camera,
        offsets=field,
        found=jnp.asarray(content["landmarks"]["found"], jnp.float32),
        projected=jnp.asarray(content["landmarks"]["projected"], jnp.float32),
        **{name: float(content["figures"][name]) for name in _FIGURES},
    )


def _detection_of(
    content: dict[str, Any], arrays: dict[str, np.ndarray]
) -> detect.Detection:
    irises = arrays["irises"]
    return detect.Detection(
        box=arrays["box"],
        ibug=np.asarray(content["landmarks"]["found"], np.float64),
        irises=irises if len(irises) else None,
        landmarks_478=None,
        matte=arrays["matte"].astype(np.float32),
        landmarks_source=content["landmarks"]["source"],
        matte_source=content["matte_source"],
        degraded=content["degraded"],
        warnings=tuple(content["warnings"]),
    )


def _plain(array: Any) -> list:
    return np.asarray(array, np.float64).tolist()


def _damaged(path: pathlib.Path, error: Exception) -> str:
    return (
        f"Expected an intact fit.json and fit.npz in {path}, got damaged ones "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
        "remove both to fit the photo again."
    )
