"""Photos whose truth is known: a posed head, its landmarks and its silhouette."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import transform

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.render import mesh_rasterizer
from geodiff_jax.tracking import detect

SKIN, WALL = (0.8, 0.6, 0.5), (0.3, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Portrait:
    """A photo, what a perfect detector finds in it, and the truth."""

    photo: images.Photo
    detection: detect.Detection
    params: head_model.HeadParams
    camera: cameras.Camera


def person(
    model,
    *,
    seed=0,
    yaw_degrees=0.0,
    roll_degrees=0.0,
    expression=None,
    eyes=None,
    distance=0.9,
    spread=0.7,
):
    """Parameters of a random bald person in front of the camera."""
    identity = spread * np.random.default_rng(seed).normal(
        size=len(model.identity_names)
    )
    strengths = np.zeros(len(model.expression_names))
    for name, strength in (expression or {}).items():
        strengths[model.expression_names.index(name)] = strength
    turn = transform.Rotation.from_euler("yz", [yaw_degrees, roll_degrees], True)
    upright = transform.Rotation.from_rotvec([np.pi, 0.0, 0.0])
    values = {
        "identity": np.clip(identity, -2.0, 2.0),
        "expression": strengths,
        "rotation": (upright * turn).as_rotvec(),
        "translation": [0.01, 0.0, distance],
        "eyes": np.zeros((2, 3)) if eyes is None else eyes,
    }
    narrow = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    return head_model.neutral(model).replace(**narrow)


def portrait(model, params, *, focal=800.0, width=400, height=440, known_focal=True):
    """The person before a blue wall, in flat skin colour."""
    camera = cameras.pinhole(focal=focal, width=width, height=height)
    face, ibug, irises = jax.tree.map(np.asarray, _seen(model, params, camera))
    covered, ibug = face >= 0, ibug.astype(np.float64)
    photo = images.photo_from_array(
        np.where(covered[..., None], SKIN, WALL),
        focal_pixels=focal if known_focal else None,
    )
    detection = detect.Detection(
        box=np.concatenate([ibug.min(axis=0), ibug.max(axis=0)]),
        ibug=ibug,
        irises=irises.astype(np.float64),
        landmarks_478=None,
        matte=covered.astype(np.float32),
        landmarks_source="file",
        matte_source="alpha",
        degraded=False,
        warnings=(),
    )
    return Portrait(photo, detection, params, camera)


def mirrored(shot):
    """The same portrait in a mirror; its truth is not mirrored along."""
    width = shot.photo.width
    detection = dataclasses.replace(
        shot.detection,
        ibug=shot.detection.ibug[landmarks.IBUG_MIRROR] * [-1, 1] + [width, 0],
        irises=shot.detection.irises[::-1] * [-1, 1] + [width, 0],
        matte=np.ascontiguousarray(shot.detection.matte[:, ::-1]),
    )
    flipped = np.ascontiguousarray(shot.photo.rgb[:, ::-1])
    photo = dataclasses.replace(shot.photo, rgb=flipped)
    return dataclasses.replace(shot, photo=photo, detection=detection)


def yaw_degrees(params):
    """By which the face points to the right of the image."""
    rotation = np.array(params.rotation, np.float64)
    forward = transform.Rotation.from_rotvec(rotation).as_matrix()[:, 2]
    return np.degrees(np.arctan2(forward[0], -forward[2]))


@jax.jit
def _seen(model, params, camera):
    """(face of each pixel, iBUG 68, irises)."""
    vertices = head_model.vertices(model, params)
    fragments = mesh_rasterizer.rasterize(vertices, model.faces, camera)
    ibug = camera.project(landmarks.positions(model, vertices))[0]
    irises = camera.project(landmarks.iris_positions(model, vertices))[0]
    return fragments.face, ibug, irises
