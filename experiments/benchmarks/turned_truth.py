"""Rendered people, whose every side is known, and what one photo of them becomes.

Shape, skin, hair and light of a person come from one key; the head that is fitted may
be another than the one that was photographed.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float, Key

from geodiff_jax import create
from geodiff_jax.appearance import hair, lighting, look, studio, texture
from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.avatar import preview
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import landmarks, procedural
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.metrics import image as image_metrics
from geodiff_jax.metrics import region as metric_region

SIZE = 512
DISTANCE = 1.1
"""Metres from the camera to the head frame's origin."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A head with a look of its own, in a light of its own, and its photo."""

    head: head_model.HeadModel
    params: head_model.HeadParams
    take: Callable[[Camera], tuple[np.ndarray, np.ndarray]]
    """(picture before white, alpha) from any side."""
    camera: Camera
    """The photo's, whose frame is the world's."""
    photo: images.Photo


@dataclasses.dataclass(frozen=True)
class Turned:
    """One side of a person, and of the avatar that never saw it."""

    truth: Float[np.ndarray, "h w 3"]
    image: Float[np.ndarray, "h w 3"]
    psnr: float
    """Decibels, in the metric's region of the true head."""
    iou: float
    """Of the silhouettes above the neck's lower ring."""
    landmark_error: float
    """Mean distance over iBUG 17-67, hidden or not, over the outer eye corners'."""


def sample_subject(
    key: Key[Array, ""], head: head_model.HeadModel, *, size: int = SIZE
) -> Subject:
    """Someone who looks straight into a 50 mm lens."""
    shape, skin, light = jax.random.split(key, 3)
    params = head_model.neutral(head).replace(
        identity=procedural.sample_identity(shape, head),
        rotation=jnp.array([jnp.pi, 0.0, 0.0]),
        translation=jnp.array([0.0, 0.03, DISTANCE]),
    )
    person = look.sample_look(skin)
    take = functools.partial(
        studio.photograph,
        head,
        params,
        person,
        lighting.sample_lighting(light),
        maps=texture.bake_maps(head, person),
        hair=hair.grow(head, person, identity=params.identity),
        background=1.0,
    )
    camera = cameras.pinhole(focal=2.0 * size, width=size, height=size)
    return Subject(head, params, take, camera, as_photo(*take(camera), camera))


def as_photo(
    image: Float[np.ndarray, "h w 3"], alpha: Float[np.ndarray, "h w"], camera: Camera
) -> images.Photo:
    """The picture as a file with a matte and a known lens would hold it."""
    # A file's colours are straight: the white behind them taken off again.
    opacity = np.maximum(alpha, 1e-3)[..., None]
    straight = np.clip((image - (1.0 - opacity)) / opacity, 0.0, 1.0)
    pixels = np.concatenate([straight, alpha[..., None]], axis=-1)
    return images.photo_from_array(pixels, focal_pixels=float(camera.intrinsics[0]))


def same_view(subject: Subject, side: Camera, tracked: create.Tracked) -> Camera:
    """`side` in the tracked photo's world, whose scale one photo leaves open.

    The scale is the one that puts the middle of the outer eye corners as far from the
    photo's camera as the truth has it.
    """
    fit = tracked.fit
    scale = _eye_depth(fit.head, fit.params, fit.camera)
    scale /= _eye_depth(subject.head, subject.params, subject.camera)
    moved = side.camera_from_world @ subject.camera.camera_from_world.inverse()
    moved = jaxlie.SE3.from_rotation_and_translation(
        moved.rotation(), scale * moved.translation()
    )
    return side.replace(camera_from_world=moved @ fit.camera.camera_from_world)


def turn(
    subject: Subject, tracked: create.Tracked, avatar: Avatar, *, yaw_radians: float
) -> Turned:
    """The avatar beside the truth, from the photo's camera carried round the head."""
    head, params = subject.head, subject.params
    side = preview.turned(subject.camera, params, yaw_radians)
    truth, matte = (np.asarray(x) for x in subject.take(side))
    own = same_view(subject, side, tracked)
    view = _render(avatar, avatar.params, own)
    image = np.clip(np.asarray(view.image), 0.0, 1.0)
    region = metric_region.head_region(head, params, side, matte)
    psnr = image_metrics.psnr(
        jnp.asarray(image), jnp.asarray(truth, jnp.float32), mask=jnp.asarray(region)
    )
    above = metric_region.above_neck_ring(head, params, side)
    inside, wanted = (np.asarray(view.alpha) > 0.5) & above, (matte > 0.5) & above
    iou = (inside & wanted).sum() / (inside | wanted).sum()
    error = landmarks.normalized_error(
        _marks(avatar.head, avatar.params, own), _marks(head, params, side)
    )
    return Turned(truth, image, float(psnr), float(iou), float(error))


_render = jax.jit(avatar_model.render)


def _marks(
    head: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> Float[Array, "68 2"]:
    marks = landmarks.positions(head, head_model.vertices(head, params))
    return camera.project(marks)[0]


def _eye_depth(
    head: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> Float[Array, ""]:
    marks = landmarks.positions(head, head_model.vertices(head, params))
    middle = marks[np.array(landmarks.OUTER_EYE_CORNERS)].mean(axis=0)
    return jnp.linalg.norm(middle - camera.position)
