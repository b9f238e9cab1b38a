"""A person in RenderMe-360's layout: two cameras, FLAME, encoded pictures in HDF5."""

import io
import pathlib

import jax
import numpy as np
from PIL import Image

from geodiff_jax.data import lenses
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head.track import Track
from geodiff_jax.tracking import vhap
from tests.data import portraits

SIZE = (88, 128)
DISTORTION = np.array([0.08, 0.02, 0.001, -0.002, 0.0])
FRAMES = (3, 10)
"""Of which the names are compared as numbers."""


def camera(view) -> Camera:
    return portraits.camera((-0.4, 0.2)[view], width=SIZE[0], height=SIZE[1])


def params(place):
    return portraits.params(yaw=0.2 * place)


def write(folder, subject, *, clip="e0", inverted=False, spoilt=0.0, flame=True):
    """`inverted` poses map the world to the camera; `spoilt` moves vertices, metres."""
    import h5py

    for kind in ("raw", "anno"):
        (folder / kind / subject).mkdir(parents=True, exist_ok=True)
    name = f"{subject}/{subject}_{clip}"
    with h5py.File(folder / "raw" / f"{name}_raw.smc", "w") as file:
        for view in range(2):
            for place, frame in enumerate(FRAMES):
                _write_pictures(file, view, frame, place)
    with h5py.File(folder / "anno" / f"{name}_anno.smc", "w") as file:
        for view in range(2):
            pose = np.asarray(camera(view).camera_from_world.as_matrix(), np.float64)
            group = file.create_group(f"Calibration/{view:02d}")
            group["RT"] = pose if inverted else np.linalg.inv(pose)
            group["K"], group["D"] = np.asarray(camera(view).matrix), DISTORTION
        for place, frame in enumerate(FRAMES) if flame else ():
            _write_flame(file.create_group(f"FLAME/{frame}"), place, spoilt)


def _write_pictures(file, view, frame, place):
    picture, matte, _ = portraits.shot(params(place), camera(view))
    # What a lens sees at a point is what a pinhole sees where the lens bends it from.
    both = np.dstack([picture, matte])
    bent = lenses.undistort(both, np.asarray(camera(view).intrinsics), -DISTORTION)
    for kind, pixels in (("color", bent[..., :3]), ("mask", bent[..., [3, 3, 3]])):
        stream = io.BytesIO()
        eight = np.uint8(np.round(255 * pixels.clip(0, 1)))
        Image.fromarray(eight).save(stream, format="PNG")
        group = file.require_group(f"Camera/{view:02d}/{kind}")
        group[str(frame)] = np.frombuffer(stream.getvalue(), np.uint8)


def _write_flame(group, place, spoilt):
    """By VHAP's own writer, whose terms are FLAME's."""
    one = jax.tree.map(lambda x: x[None], params(place))
    head = portraits.head()
    track = Track(one, camera(0), (0,), head.version)
    shared, moving = vhap._stored(track.params, head, pathlib.Path("anno"))
    names = {"rotation": "global_pose", "neck_pose": "neck_pose"}
    names |= {"jaw_pose": "jaw_pose", "translation": "trans", "expr": "exp"}
    for name, own in names.items():
        group[own] = moving[name][0]
    eyes = moving["eyes_pose"][0]
    group["left_eye_pose"], group["right_eye_pose"] = eyes[:3], eyes[3:]
    group["shape"] = shared["shape"]
    group["verts"] = np.asarray(head_model.vertices(head, params(place))) + spoilt
