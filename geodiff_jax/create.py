"""One portrait in, one animatable avatar out: the whole chain as functions.

`create_avatar` is the sum; its stages (`track`, `build`, `measure`) stand alone so that
a launch script can store what each returns.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from PIL import Image
from scipy import ndimage

from geodiff_jax.appearance import look, texture
from geodiff_jax.avatar import closing, losses, preview
from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.avatar import start as avatar_start
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import landmarks, procedural
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.metrics import image as image_metrics
from geodiff_jax.metrics import region as metric_region
from geodiff_jax.tracking import detect, overlay
from geodiff_jax.tracking import fit as head_fit
from geodiff_jax.training import reconstruction as avatar_fit

MOUTH_DEPTH = 0.03
"""Metres behind the lips at which a mouth gets a third of the light; ours."""


@dataclasses.dataclass(frozen=True)
class CreateConfig:
    """The main job's settings; all sizes ours."""

    fit: head_fit.FitConfig = dataclasses.field(default_factory=head_fit.FitConfig)
    start: avatar_start.StartConfig = dataclasses.field(
        default_factory=avatar_start.StartConfig
    )
    reconstruction: avatar_fit.ReconstructionConfig = dataclasses.field(
        default_factory=avatar_fit.ReconstructionConfig
    )
    working_size: int = 680
    """Larger side of the head's crop while fitting, pixels."""
    side_size: int = 256
    """Pixels of the side views that hold the unseen in place."""
    preview_size: int = 512
    preview_fps: int = 24
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A photo understood: whose head, in which pose, seen by which camera."""

    photo: images.Photo
    detection: detect.Detection
    fit: head_fit.Fit


def create_avatar(
    image: str | images.Photo,
    *,
    head: head_model.HeadModel | None = None,
    config: CreateConfig | None = None,
) -> tuple[Avatar, dict[str, float]]:
    """(avatar, figures) of the largest face in a photo.

    `figures` are those of `measure`. Raises ValueError where the photo shows no usable
    face, in one sentence.
    """
    config = config or CreateConfig()
    tracked = track(image, head=head, config=config)
    avatar = build(tracked, config=config)
    return avatar, measure(avatar, tracked)


def track(
    image: str | images.Photo,
    *,
    head: head_model.HeadModel | None = None,
    landmarks_file: str | None = None,
    config: CreateConfig | None = None,
) -> Tracked:
    """Finds the face and fits head and camera to it."""
    config = config or CreateConfig()
    photo = image if isinstance(image, images.Photo) else images.read_image(image)
    detection = detect.detect(photo, landmarks_file=landmarks_file)
    model = procedural.load() if head is None else head
    return Tracked(
        photo, detection, head_fit.fit(model, photo, detection, config=config.fit)
    )


def build(
    tracked: Tracked,
    *,
    config: CreateConfig | None = None,
    backend: str | None = None,
    on_step: Callable[[int, dict[str, Float[Array, ""]]], None] | None = None,
) -> Avatar:
    """The Gaussian avatar of a tracked photo."""
    config = config or CreateConfig()
    key = jax.random.key(config.seed)
    start_key, fit_key = jax.random.split(key)
    result = tracked.fit
    camera = working_camera(tracked, size=config.working_size)
    image, matte, region = view_of(tracked, camera)
    avatar = avatar_start.start_avatar(
        start_key,
        result.head,
        result.params,
        camera,
        image,
        matte,
        region,
        np.asarray(default_colors(result.head)),
        config=config.start,
    )
    views = [make_view(tracked, camera)]
    native = crop_camera(tracked, scale=1.0)
    if camera.width > 1.2 * native.width:
        # A small face was enlarged: it must also be right at the photo's own pixels.
        views.append(make_view(tracked, native))
    sides = side_views(avatar, camera, size=config.side_size, backend=backend)
    avatar = avatar_fit.reconstruct(
        fit_key,
        avatar,
        tuple(views),
        sides,
        config=config.reconstruction,
        backend=backend,
        on_step=on_step,
    )
    return closing.close_face(
        avatar,
        _judging(avatar, result.camera),
        longest=config.reconstruction.longest,
        backend=backend,
    )


def _judging(avatar: Avatar, camera: Camera) -> tuple[Camera, Camera]:
    """The cameras from which a face must be opaque: the photo's, and straight ahead."""
    front = preview.front_camera(avatar.head, avatar.params, camera, size=512)
    return camera, front


def default_colors(head: head_model.HeadModel) -> Float[Array, "v 3"]:
    """What an average person would look like where the photo shows nothing."""
    person = look.sample_look(jax.random.key(0))
    colors = texture.vertex_colors(head, person)
    # Little light gets into a mouth, and less the deeper.
    inside = head.regions["mouth_interior"] | head.regions["tongue"]
    lips = landmarks.positions(head, head.template)[60:68, 2].mean()
    depth = jnp.maximum(lips - head.template[:, 2], 0.0)
    share = jnp.where(inside, 0.6 * jnp.exp(-depth / MOUTH_DEPTH), 1.0)
    return share[:, None] * colors


def working_camera(tracked: Tracked, *, size: int) -> Camera:
    """The head's crop, scaled so that its larger side has `size` pixels.

    Heads are enlarged at most 2.2 times: beyond that there is nothing left to see.
    """
    crop = crop_camera(tracked, scale=1.0)
    return crop_camera(tracked, scale=min(size / max(crop.width, crop.height), 2.2))


def crop_camera(tracked: Tracked, *, scale: float, margin: float = 0.06) -> Camera:
    """The camera of the part of the photo that holds head and metric's region."""
    camera = tracked.fit.camera
    region = training_region(tracked, camera, tracked.detection.matte)
    if not region.any():
        raise ValueError(
            "The fitted head lies outside the photo's foreground; "
            "give the corrected landmarks in landmarks.json."
        )
    rows = np.flatnonzero(region.any(axis=1))
    columns = np.flatnonzero(region.any(axis=0))
    pad = round(margin * (rows[-1] - rows[0]))
    left, top = max(int(columns[0]) - pad, 0), max(int(rows[0]) - pad, 0)
    right = min(int(columns[-1]) + 1 + pad, camera.width)
    bottom = min(int(rows[-1]) + 1 + pad, camera.height)
    crop = camera.crop(
        left=float(left), top=float(top), width=right - left, height=bottom - top
    )
    width, height = round(scale * crop.width), round(scale * crop.height)
    return crop.resize(width=width, height=height)


def training_region(
    tracked: Tracked, camera: Camera, matte: Float[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The metric's region, and all foreground that the head covers: the whole neck."""
    result = tracked.fit
    region = metric_region.head_region(
        result.head, result.params, camera, matte, edge=0
    )
    covered = metric_region.cover(result.head, result.params, camera)
    return region | (covered & (matte > 0.5))


def view_of(
    tracked: Tracked, camera: Camera
) -> tuple[
    Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]
]:
    """(photo, matte, region) as a camera of `crop_camera` sees them."""
    result = tracked.fit
    matte = tracked.detection.matte
    image = resample(tracked.photo.rgb, result.camera, camera)
    matte = resample(matte[..., None], result.camera, camera)[..., 0]
    return image, matte, training_region(tracked, camera, matte)


def make_view(tracked: Tracked, camera: Camera) -> losses.View:
    """The photo as a target of the reconstruction, at the resolution of `camera`."""
    image, matte, region = view_of(tracked, camera)
    return losses.View(
        camera=camera,
        image=jnp.asarray(image, jnp.float32),
        matte=jnp.asarray(matte, jnp.float32),
        region=jnp.asarray(region),
        empty=jnp.asarray(matte < 0.5),
    )


def resample(
    image: Float[np.ndarray, "h w c"], source: Camera, target: Camera
) -> Float[np.ndarray, "H W c"]:
    """The image of `source` as `target` sees it: same pose, another crop and scale."""
    fx, fy, cx, cy = (float(x) for x in source.intrinsics)
    gx, gy, dx, dy = (float(x) for x in target.intrinsics)
    box = (
        cx - dx * fx / gx,
        cy - dy * fy / gy,
        cx + (target.width - dx) * fx / gx,
        cy + (target.height - dy) * fy / gy,
    )
    limits = (0.0, 0.0, float(source.width), float(source.height))
    clipped = tuple(
        float(np.clip(edge, 0.0, limits[2 + index % 2]))
        for index, edge in enumerate(box)
    )
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(
                (target.width, target.height), Image.Resampling.BICUBIC, box=clipped
            )
        )
        for c in range(image.shape[-1])
    ]
    return np.clip(np.stack(channels, axis=-1), 0.0, 1.0)


def side_views(
    avatar: Avatar, camera: Camera, *, size: int, backend: str | None = None
) -> avatar_fit.SideViews:
    """What the unfitted avatar shows from around, and where it must be solid."""
    base = preview.front_camera(avatar.head, avatar.params, camera, size=size)
    directions = [(y, p) for y in (-40, -24, -10, 10, 24, 40) for p in (-8, 10)]
    around = [
        preview.turned(
            base, avatar.params, float(np.radians(yaw)), pitch=float(np.radians(pitch))
        )
        for yaw, pitch in directions
    ]
    solid = [
        ndimage.binary_erosion(
            metric_region.cover(avatar.head, avatar.params, c), iterations=3
        )
        for c in around
    ]
    batched = jax.tree.map(lambda *leaves: jnp.stack(leaves), *around)
    images_around, alphas = avatar_fit.render_sides(avatar, batched, backend=backend)
    # What is carved off, for the photo shows none of it, must not grow back.
    opaque = jnp.asarray(np.stack(solid)) & (alphas > 0.9)
    return avatar_fit.SideViews(batched, images_around, opaque)


def measure(
    avatar: Avatar, tracked: Tracked, *, backend: str | None = None
) -> dict[str, float]:
    """The figures that the report gives: all at the photo's own resolution.

    landmark_nme (iBUG 17-67 over the outer-eye distance), psnr (dB) and ssim in the
    metric's region, face_alpha_min over the eroded face from the photo's camera and
    from straight ahead, and the Gaussians' largest length and distance, metres.
    """
    result = tracked.fit
    camera = result.camera
    matte = tracked.detection.matte
    region = metric_region.head_region(avatar.head, avatar.params, camera, matte)
    truth = matte[..., None] * tracked.photo.rgb + (1.0 - matte[..., None])
    draw = jax.jit(functools.partial(avatar_model.render, backend=backend))
    view = draw(avatar, avatar.params, camera)
    image = np.clip(np.asarray(view.image), 0.0, 1.0)
    mask = jnp.asarray(region)
    alphas = []
    for lens in _judging(avatar, camera):
        face = metric_region.face_mask(avatar.head, avatar.params, lens)
        alpha = np.asarray(draw(avatar, avatar.params, lens).alpha)
        alphas.append(alpha[face].min() if face.any() else np.nan)
    seen, wanted = jnp.asarray(image), jnp.asarray(truth, jnp.float32)
    return {
        "landmark_nme": float(result.landmark_nme),
        "landmark_nme_without_offsets": float(result.landmark_nme_without_offsets),
        "psnr": float(image_metrics.psnr(seen, wanted, mask=mask)),
        "ssim": float(image_metrics.ssim(seen, wanted, mask=mask)),
        "face_alpha_min": float(min(alphas)),
        "longest_gaussian": float(longest(avatar)),
        "farthest_face_gaussian": float(farthest_from_triangle(avatar)),
        "gaussians": int(avatar.gaussians.alive.sum()),
    }


def estimate(config: CreateConfig) -> dict[str, float]:
    """Minutes and gigabytes that the job takes on two cores, from its settings.

    A linear model of measured runs (ours): detection, tracking and compiling, then
    every step by its Gaussians and pixels, then the preview's frames.
    """
    gaussians = (
        config.start.skin_count + config.start.hair_count + config.start.outline_count
    )
    load = gaussians / 60_000 + (config.working_size / 512) ** 2
    seconds = 45.0 + 0.12 * load * config.reconstruction.steps
    seconds += 0.02 * load * 11.3 * config.preview_fps
    return {"minutes": max(seconds / 60.0, 1.0), "memory_gb": 1.6 + 0.3 * load}


def sheet_tiles(
    avatar: Avatar,
    tracked: Tracked,
    front: Camera,
    *,
    backend: str | None = None,
) -> list[tuple[str, Float[np.ndarray, "h w 3"]]]:
    """The contact sheet's pictures: photo, fit, views, expressions, normals."""
    draw = preview.renderer(backend=backend)
    crop = working_camera(tracked, size=front.height)
    fitted = overlay.overlay(tracked.photo, tracked.detection, tracked.fit)
    tiles = [
        ("photo", resample(tracked.photo.rgb, tracked.fit.camera, crop)),
        ("fitted head", fitted),
        ("avatar, as in the photo", np.asarray(draw(avatar, avatar.params, crop))),
    ]
    for name, degrees in (("front", 0), ("left 35", -35), ("right 35", 35)):
        camera = preview.turned(front, avatar.params, float(np.radians(degrees)))
        tiles.append((name, np.asarray(draw(avatar, avatar.params, camera))))
    for clip in preview.CLIPS:
        params = preview.expressed(avatar, clip.peaks)
        tiles.append((clip.name, np.asarray(draw(avatar, params, front))))
    for name, degrees in (("normals", 0), ("normals 35", 35)):
        camera = preview.turned(front, avatar.params, float(np.radians(degrees)))
        normals = avatar_model.normals(avatar, avatar.params, camera, backend=backend)
        tiles.append((name, np.asarray(normals) / 2 + 0.5))
    return tiles


def longest(avatar: Avatar) -> float:
    """Six standard deviations of the longest axis of any Gaussian, metres."""
    world = avatar_model.pose(avatar, avatar.params)
    return 6.0 * float(jnp.exp(jnp.max(world.log_scales)))


def farthest_from_triangle(avatar: Avatar) -> float:
    """Largest distance of a Gaussian of the face's skin from its triangle, metres.

    Measured to the projection with its negative coordinates cut off: never too short.
    """
    world = avatar_model.pose(avatar, avatar.params)
    vertices = head_model.vertices(avatar.head, avatar.params)
    corners = vertices[avatar.head.faces[avatar.binding.face]]
    weights = jnp.maximum(mesh.barycentrics(world.means, corners), 0.0)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    nearest = jnp.sum(weights[..., None] * corners, axis=-2)
    on_face = jnp.asarray(head_model.face_region(avatar.head, "face"))
    counted = (avatar.layer == avatar_model.SKIN) & on_face[avatar.binding.face]
    distance = jnp.linalg.norm(world.means - nearest, axis=-1)
    return float(jnp.max(jnp.where(counted, distance, 0.0)))
