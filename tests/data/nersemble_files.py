"""A tiny studio in NeRSemble v2's layout, and VHAP's export of its fit."""

import json

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from PIL import Image

from geodiff_jax.appearance import lighting
from geodiff_jax.data import films, nersemble
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head.track import Track
from geodiff_jax.io import video
from geodiff_jax.tracking import vhap
from tests.data import portraits

SERIALS = ("222200036", "222200049")
SEQUENCE = "EXP-1-head"
SIZE = (88, 128)
"""Of films: NeRSemble's are 25 times as large."""
FRAMES = 2
GAIN = np.array([1.25, 1.5, 2.0])
"""By which the cameras are too dark, in linear light."""
STUDIO_FROM_FIT = jaxlie.SE3.exp(jnp.array([0.4, -1.3, 0.2, 0.5, -2.1, 0.7]))
"""Trackers move the world: the studio's is another than that of the fit."""


def camera(view):
    yaw = (-0.25, 0.3)[view]
    return portraits.camera(yaw, width=SIZE[0], height=SIZE[1])


def params(frame):
    return portraits.params(yaw=0.25 * frame)


def track():
    cameras = [camera(view) for view in range(len(SERIALS))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cameras)
    moving = [params(frame) for frame in range(FRAMES)]
    frames = jax.tree.map(lambda *x: jnp.stack(x), *moving)
    return Track(frames, stacked, tuple(range(FRAMES)), vhap.HEAD_VERSION)


def write_fit(folder, subject, *, cameras=SERIALS):
    """As VHAP names and fills it, cameras by their serial numbers."""
    path = folder / f"{subject}_EXP-1_v16_DS4_whiteBg_staticOffset_maskBelowLine"
    vhap.write(path, track(), portraits.head())
    for file in path.glob("transforms*.json"):
        content = json.loads(file.read_text())
        for frame in content["frames"]:
            frame["camera_id"] = cameras[frame["camera_index"]]
        file.write_text(json.dumps(content))
    return path


def write_participant(folder, subject, *, inverted=False):
    """Calibration, films, mattes and the empty set of one participant."""
    path = folder / subject
    calibration = path / "calibration"
    calibration.mkdir(parents=True)
    lens = camera(0).resize(
        width=nersemble.CALIBRATED[0], height=nersemble.CALIBRATED[1]
    )
    poses = {}
    for view, serial in enumerate(SERIALS):
        pose = camera(view).camera_from_world @ STUDIO_FROM_FIT.inverse()
        pose = pose.inverse() if inverted else pose
        poses[serial] = np.asarray(pose.as_matrix(), np.float64).tolist()
    content = {"world_2_cam": poses, "intrinsics": np.asarray(lens.matrix).tolist()}
    (calibration / "camera_params.json").write_text(json.dumps(content))
    matrix = np.pad(np.diag(GAIN), ((0, 0), (0, 1))).tolist()
    (calibration / "color_calibration.json").write_text(
        json.dumps(dict.fromkeys(SERIALS, matrix))
    )
    sequence = path / "sequences" / SEQUENCE
    (sequence / "alpha_maps").mkdir(parents=True)
    empty = path / "sequences" / nersemble.BACKGROUND
    empty.mkdir()
    wall = np.uint8(np.broadcast_to(255 * portraits.GREEN, (*SIZE[::-1], 3)))
    for view, serial in enumerate(SERIALS):
        Image.fromarray(wall).save(empty / f"image_{serial}.jpg")
        shots = [portraits.shot(params(t), camera(view)) for t in range(FRAMES)]
        for t, (_, matte, _) in enumerate(shots):
            grey = Image.fromarray(np.uint8(np.round(255 * matte)))
            grey.save(sequence / "alpha_maps" / f"cam_{serial}_{t:06d}.jpg", quality=95)
        film = sequence / "images" / f"cam_{serial}.mp4"
        write_film(film, [recorded(picture) for picture, _, _ in shots], rate=73)


def write_film(path, shots, *, rate):
    """A film whose shots a tracker at 25 frames a second sees; the others are grey."""
    last = films.film_frame(len(shots) - 1, 25.0, rate)
    frames = np.full((last + 2, *shots[0].shape), 0.5, np.float32)
    for t, shot in enumerate(shots):
        frames[films.film_frame(t, 25.0, rate)] = shot
    video.write_video(path, frames, rate, quality=6)


def recorded(picture):
    """What a camera that is too dark makes of it."""
    linear = lighting.linear_from_srgb(jnp.asarray(picture)) / GAIN
    return np.asarray(lighting.srgb_from_linear(linear))


def stored_camera(record, size) -> Camera:
    pose = jaxlie.SE3(jnp.asarray(record["camera_from_world"]))
    return Camera(pose, jnp.asarray(record["intrinsics"]), size, size)
