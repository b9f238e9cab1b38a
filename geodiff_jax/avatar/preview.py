"""What a fresh avatar is judged by: a turn, some expressions, one sheet."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image, ImageDraw, ImageOps

from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import lbs
from geodiff_jax.head import model as head_model

TURN_RADIANS = np.radians(35.0)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One move of the preview: which expressions rise and fall, and for how long."""

    name: str
    seconds: float
    peaks: dict[str, float]
    """Strength of each named expression at the middle of the clip."""


CLIPS = (
    Clip("jaw open", 1.2, {"jawOpen": 1.0}),
    Clip("smile", 1.2, {"mouthSmile_L": 1.0, "mouthSmile_R": 1.0}),
    Clip("blink", 0.5, {"eyeBlink_L": 1.0, "eyeBlink_R": 1.0}),
    Clip(
        "brows up",
        1.0,
        {"browInnerUp": 1.0, "browOuterUp_L": 1.0, "browOuterUp_R": 1.0},
    ),
    Clip("brows down", 1.0, {"browDown_L": 1.0, "browDown_R": 1.0}),
    Clip("eyes left", 0.8, {"eyeLookOut_L": 0.8, "eyeLookIn_R": 0.8}),
    Clip("eyes right", 0.8, {"eyeLookIn_L": 0.8, "eyeLookOut_R": 0.8}),
    Clip("eyes up", 0.8, {"eyeLookUp_L": 0.8, "eyeLookUp_R": 0.8}),
)


def front_camera(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    size: int,
    fill: float = 0.8,
) -> Camera:
    """A square camera straight before the face, as far away as `camera` is.

    The neutral head, neck included, fills a share `fill` of the frame's height.
    """
    rotation = lbs.rotation_matrices(params.rotation)
    rest = head_model.head_vertices(head, head_model.canonical(params))
    low, high = jnp.min(rest[:, 1]), jnp.max(rest[:, 1])
    middle = jnp.stack([jnp.zeros_like(low), (low + high) / 2, jnp.zeros_like(low)])
    pivot = rotation @ middle + params.translation
    distance = jnp.linalg.norm(camera.position - pivot)
    return cameras.look_at(
        pivot + distance * rotation[:, 2],
        pivot,
        up=rotation[:, 1],
        focal=fill * size * distance / (high - low),
        width=size,
        height=size,
    )


def turned(
    camera: Camera, params: head_model.HeadParams, yaw: float, *, pitch: float = 0.0
) -> Camera:
    """The camera carried round the head by `yaw` and `pitch` radians."""
    distance = jnp.linalg.norm(camera.position - params.translation)
    # The pivot lies on the optical axis, so the head stays in the frame's centre.
    forward = camera.camera_from_world.rotation().as_matrix()[2]
    pivot = camera.position + distance * forward
    return cameras.orbit(camera, pivot, yaw_radians=yaw, pitch_radians=pitch)


def expressed(
    avatar: Avatar, peaks: dict[str, float], *, level: float = 1.0
) -> head_model.HeadParams:
    """The source frame with the named expressions raised to at least `level` x peak.

    Names that the head does not have are left out, so any head can be previewed.
    """
    expression = np.array(avatar.params.expression)
    for name, peak in peaks.items():
        if name in avatar.head.expression_names:
            index = avatar.head.expression_names.index(name)
            expression[index] = max(expression[index], level * peak)
    return avatar.params.replace(expression=jnp.asarray(expression))


def frames(
    avatar: Avatar, camera: Camera, *, fps: int, turn_seconds: float = 4.0
) -> list[tuple[head_model.HeadParams, Camera]]:
    """The preview, frame by frame: a turn to both sides, then every clip."""
    steps = np.linspace(0.0, 2.0 * np.pi, round(turn_seconds * fps), endpoint=False)
    shots = [
        (avatar.params, turned(camera, avatar.params, TURN_RADIANS * np.sin(angle)))
        for angle in steps
    ]
    for clip in CLIPS:
        phases = np.linspace(0.0, np.pi, round(clip.seconds * fps))
        shots += [
            (expressed(avatar, clip.peaks, level=float(np.sin(phase) ** 2)), camera)
            for phase in phases
        ]
    return shots


def renderer(
    *, backend: str | None = None
) -> Callable[[Avatar, head_model.HeadParams, Camera], Float[Array, "h w 3"]]:
    """A compiled `(avatar, params, camera) -> image (h, w, 3)` over white."""

    @jax.jit
    def draw(
        avatar: Avatar, params: head_model.HeadParams, camera: Camera
    ) -> Float[Array, "h w 3"]:
        view = avatar_model.render(avatar, params, camera, backend=backend)
        return jnp.clip(view.image, 0.0, 1.0)

    return draw


def contact_sheet(
    tiles: list[tuple[str, Float[np.ndarray, "_ _ 3"]]], *, size: int, columns: int
) -> Float[np.ndarray, "H W 3"]:
    """Named pictures on one white sheet, each fitted into a square of `size` pixels."""
    label = 18
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * size, rows * (size + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, picture) in enumerate(tiles):
        left = index % columns * size
        top = index // columns * (size + label)
        tile = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
        tile = ImageOps.contain(tile, (size, size), Image.Resampling.LANCZOS)
        inset = ((size - tile.width) // 2, (size - tile.height) // 2)
        sheet.paste(tile, (left + inset[0], top + label + inset[1]))
        draw.text((left + 6, top + 3), name, fill="black")
    return np.asarray(sheet, np.float32) / 255.0
