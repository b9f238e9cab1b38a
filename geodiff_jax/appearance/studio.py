"""Photographs of a head: skin and hair rasterised together and shaded; no gradients."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float, Int

from geodiff_jax import numerics
from geodiff_jax.appearance import hair as hairs
from geodiff_jax.appearance import lighting as lights
from geodiff_jax.appearance import scene as scenes
from geodiff_jax.appearance import shading, texture
from geodiff_jax.appearance.hair import Hair
from geodiff_jax.appearance.lighting import Lighting
from geodiff_jax.appearance.look import Look
from geodiff_jax.appearance.scene import Scene
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head.model import HeadModel, HeadParams
from geodiff_jax.render import mesh_rasterizer

CHUNK = 32768
"""Pixels shaded at once: one compiled size for any number of visible pixels."""
EYE_CHUNK = 4096


def photograph(
    head: HeadModel,
    params: HeadParams,
    look: Look,
    lighting: Lighting,
    camera: Camera,
    *,
    maps: texture.Maps | None = None,
    hair: Hair | None = None,
    background: Float[np.ndarray | Array, "*hw 3"] | float = 1.0,
    supersample: int = 2,
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """A photograph (sRGB in [0, 1]) of one person, and its alpha.

    The picture is alpha * person + (1 - alpha) * background. `maps` and `hair` may be
    given to save baking and growing them again for every picture of a person, or to
    dress a head in a texture of its own.
    """
    maps = texture.bake_maps(head, look) if maps is None else maps
    hair = hairs.grow(head, look, identity=params.identity) if hair is None else hair
    scene, face, fine = _stage(head, params, hair, lighting, camera, supersample)
    samples = _develop(head, scene, face, fine, look, maps, lighting)
    covered = np.asarray(face >= 0, np.float32)[..., None]
    alpha = _reduce(covered, supersample)
    shown = _reduce(samples * covered, supersample)
    return shown + (1.0 - alpha) * np.asarray(background, np.float32), alpha[..., 0]


@functools.partial(jax.jit, static_argnums=5)
def _stage(
    head: HeadModel,
    params: HeadParams,
    hair: Hair,
    lighting: Lighting,
    camera: Camera,
    supersample: int,
) -> tuple[Scene, Int[Array, "h w"], Camera]:
    """The scene, the face that each sample sees, and the camera in the head's frame."""
    world_from_head = jaxlie.SE3.from_rotation_and_translation(
        jaxlie.SO3.exp(params.rotation), params.translation
    )
    near = camera.replace(camera_from_world=camera.camera_from_world @ world_from_head)
    fine = near.resize(
        width=supersample * camera.width, height=supersample * camera.height
    )
    scene = scenes.build(head, params, hair, lighting, fine.position)
    face = mesh_rasterizer.rasterize(scene.vertices, scene.faces, fine).face
    return scene, face, fine


def finish(head: HeadModel, look: Look) -> Float[np.ndarray, "v 3"]:
    """Roughness, reflectance and translucency of every vertex."""
    regions = {name: np.asarray(mask) for name, mask in head.regions.items()}
    values = np.tile(np.array([0.52, 0.028, 1.0], np.float32), (head.num_vertices, 1))
    oily = regions["nose"] | regions["forehead"]
    values[:, 0] -= 0.08 * float(look.oil) * (1.0 + 0.5 * oily)
    if float(look.hair_length) >= 0.001:
        values[regions["scalp"], :2] = [0.8, 0.012]
    values[regions["lips"]] = [0.38, 0.032, 0.9]
    for name in ("mouth_interior", "tongue"):
        values[regions[name]] = [0.36, 0.03, 0.4]
    for name in ("upper_teeth", "lower_teeth"):
        values[regions[name]] = [0.26, 0.045, 0.15]
    return values


def _develop(
    head: HeadModel,
    scene: Scene,
    face: Int[Array, "h w"],
    camera: Camera,
    look: Look,
    maps: texture.Maps,
    lighting: Lighting,
) -> Float[np.ndarray, "h w 3"]:
    """sRGB of every sample: skin, eyes and hair each by their own shader."""
    seen = np.asarray(face).reshape(-1)
    kinds = np.zeros(len(scene.faces), np.int8)
    kinds[len(head.faces) :] = 2
    eyeballs = np.asarray(head.regions["left_eyeball"] | head.regions["right_eyeball"])
    kinds[: len(head.faces)] = eyeballs[np.asarray(head.faces)].all(axis=1)
    of_pixel = np.where(seen >= 0, kinds[seen], -1)
    surface = _atlas(head, maps, jnp.asarray(finish(head, look)))
    shaders = (
        (functools.partial(_skin, head, surface), CHUNK),
        (functools.partial(_eyes, head, surface), EYE_CHUNK),
        (_hair, CHUNK),
    )
    image = np.zeros((len(seen), 3), np.float32)
    for kind, (shade, size) in enumerate(shaders):
        chosen = np.flatnonzero(of_pixel == kind)
        image[chosen] = _in_chunks(shade, chosen, seen, size, scene, camera, lighting)
    return image.reshape(*face.shape, 3)


def _in_chunks(
    shade: Callable[..., Array],
    chosen: Int[np.ndarray, " n"],
    seen: Int[np.ndarray, " hw"],
    size: int,
    scene: Scene,
    camera: Camera,
    lighting: Lighting,
) -> Float[np.ndarray, "n 3"]:
    """Shades the chosen samples, a fixed number at a time."""
    result = np.zeros((len(chosen), 3), np.float32)
    for start in range(0, len(chosen), size):
        index = chosen[start : start + size]
        # The last chunk repeats its last sample until it is full.
        padded = np.pad(index, (0, size - len(index)), mode="edge")
        shaded = shade(scene, camera, lighting, jnp.asarray(padded), seen[padded])
        result[start : start + size] = np.asarray(shaded)[: len(index)]
    return result


def _locate(
    scene: Scene, camera: Camera, pixel: Int[Array, " n"], face: Int[Array, " n"]
) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
    """Perspective-correct barycentrics, and positions in the head's frame.

    Weights are areas that the corners' offsets from the pixel's ray span, so that
    small triangles far from the camera lose no digits.
    """
    x = (pixel % camera.width + 0.5 - camera.intrinsics[2]) / camera.intrinsics[0]
    y = (pixel // camera.width + 0.5 - camera.intrinsics[3]) / camera.intrinsics[1]
    corners = scene.vertices[scene.faces[face]]
    local = camera.to_camera(corners.reshape(-1, 3)).reshape(corners.shape)
    u = local[..., 0] - x[:, None] * local[..., 2]
    v = local[..., 1] - y[:, None] * local[..., 2]
    area = jnp.roll(u, -1, 1) * jnp.roll(v, -2, 1) - jnp.roll(u, -2, 1) * jnp.roll(
        v, -1, 1
    )
    total = jnp.sum(area, axis=1, keepdims=True)
    weights = area / jnp.where(jnp.abs(total) > 1e-14, total, 1.0)
    weights = jnp.clip(weights, 0.0, 1.0)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-6)
    return weights, jnp.einsum("nk,nkc->nc", weights, corners)


def _points(
    scene: Scene, camera: Camera, pixel: Int[Array, " n"], face: Int[Array, " n"]
) -> tuple[shading.Points, Float[Array, "n 3"], Float[Array, "n 3"]]:
    """Shading points without colour and finish; barycentrics; the `extra` column."""
    weights, position = _locate(scene, camera, pixel, face)
    table = jnp.concatenate(
        [
            scene.normal,
            scene.soft_normal,
            scene.extra,
            scene.sky[:, None],
            scene.lamps,
        ],
        axis=1,
    )
    rows = jnp.einsum("nk,nkc->nc", weights, table[scene.faces[face]])
    view = numerics.normalize(camera.position - position)
    empty = jnp.zeros(len(pixel))
    points = shading.Points(
        jnp.zeros((len(pixel), 3)),
        numerics.normalize(rows[:, 0:3]),
        numerics.normalize(rows[:, 3:6]),
        view,
        rows[:, 10:],
        rows[:, 9],
        empty,
        empty,
        empty,
    )
    return points, weights, rows[:, 6:9]


@jax.jit
def _hair(
    scene: Scene,
    camera: Camera,
    lighting: Lighting,
    pixel: Int[Array, " n"],
    face: Int[Array, " n"],
) -> Float[Array, "n 3"]:
    points, _, color = _points(scene, camera, pixel, face)
    locks = points.replace(albedo=color, normal=points.soft_normal)
    return _print(shading.hair(locks, points.normal, lighting))


@jax.jit
def _skin(
    head: HeadModel,
    atlas: "_Atlas",
    scene: Scene,
    camera: Camera,
    lighting: Lighting,
    pixel: Int[Array, " n"],
    face: Int[Array, " n"],
) -> Float[Array, "n 3"]:
    points, weights, _ = _points(scene, camera, pixel, face)
    albedo, slope = _sample(head, atlas, face, weights)
    # A surface seen from behind (inside of the neck) turns its normal round.
    facing = jnp.sum(points.normal * points.view, axis=-1, keepdims=True)
    side = jnp.where(facing < -0.2, -1.0, 1.0)
    finishes = jnp.einsum("nk,nkc->nc", weights, atlas.finish[head.faces[face]])
    points = points.replace(
        albedo=albedo,
        normal=_emboss(head, scene, face, side * points.normal, slope),
        soft_normal=side * points.soft_normal,
        roughness=finishes[:, 0],
        reflectance=finishes[:, 1],
        translucency=finishes[:, 2],
    )
    return _print(shading.surface(points, lighting))


@jax.jit
def _eyes(
    head: HeadModel,
    atlas: "_Atlas",
    scene: Scene,
    camera: Camera,
    lighting: Lighting,
    pixel: Int[Array, " n"],
    face: Int[Array, " n"],
) -> Float[Array, "n 3"]:
    points, weights, direction = _points(scene, camera, pixel, face)
    albedo, _ = _sample(head, atlas, face, weights)
    normal = _bulge(direction, points.soft_normal)
    return _print(shading.eye(points.replace(albedo=albedo, normal=normal), lighting))


def _print(linear: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    return lights.srgb_from_linear(lights.expose(linear))


def _bulge(
    directions: Float[Array, "n 3"],
    gazes: Float[Array, "n 3"],
    *,
    offset: float = 0.45,
    rim_radians: float = 0.52,
) -> Float[Array, "n 3"]:
    """Normals of an eyeball with a cornea, by direction from its centre.

    The mesh is too coarse for a round highlight. The cornea is a smaller sphere, its
    centre `offset` eyeball radii before the eyeball's; they meet at `rim_radians` from
    the gaze. Ours.
    """
    directions = numerics.normalize(directions)
    cosine = jnp.sum(directions * gazes, axis=-1, keepdims=True)
    angle = jnp.arccos(jnp.clip(cosine, -0.9999, 0.9999))
    inside = jnp.clip((rim_radians - angle) / 0.12 + 0.5, 0.0, 1.0)
    return numerics.normalize(directions - inside * offset * gazes)


@flax.struct.dataclass
class _Atlas:
    """What the skin's shader reads beside the scene."""

    texels: Float[Array, "h w 5"]
    """Linear albedo; slope of the relief along u and v, metres per chart unit."""
    finish: Float[Array, "v 3"]


@jax.jit
def _atlas(
    head: HeadModel, maps: texture.Maps, finishes: Float[Array, "v 3"]
) -> _Atlas:
    height, width = maps.relief.shape
    down, right = jnp.gradient(maps.relief)
    slope = jnp.stack([right * width, -down * height], axis=-1)
    albedo = lights.linear_from_srgb(maps.albedo)
    return _Atlas(jnp.concatenate([albedo, slope], axis=-1), finishes)


def _sample(
    head: HeadModel,
    atlas: _Atlas,
    face: Int[Array, " n"],
    weights: Float[Array, "n 3"],
) -> tuple[Float[Array, "n 3"], Float[Array, "n 2"]]:
    """Albedo and slope where the chart says, bilinearly."""
    uv = jnp.einsum("nk,nkc->nc", weights, head.uv[head.uv_faces[face]])
    height, width = atlas.texels.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1.0 - uv[:, 1]) * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros((len(face), 5))
    for dx in (0, 1):
        for dy in (0, 1):
            column = jnp.clip(left + dx, 0, width - 1).astype(jnp.int32)
            row = jnp.clip(top + dy, 0, height - 1).astype(jnp.int32)
            weight = (1 - jnp.abs(x - left - dx)) * (1 - jnp.abs(y - top - dy))
            total += weight[:, None] * atlas.texels[row, column]
    return total[:, :3], total[:, 3:]


def _emboss(
    head: HeadModel,
    scene: Scene,
    face: Int[Array, " n"],
    normal: Float[Array, "n 3"],
    slope: Float[Array, "n 2"],
) -> Float[Array, "n 3"]:
    """Bends normals by the relief's slope (Mikkelsen 2010, Eq 2-4, in u and v)."""
    corners, uv = scene.vertices[scene.faces[face]], head.uv[head.uv_faces[face]]
    edges, steps = corners[:, 1:] - corners[:, :1], uv[:, 1:] - uv[:, :1]
    twice = steps[:, 0, 0] * steps[:, 1, 1] - steps[:, 0, 1] * steps[:, 1, 0]
    inverse = 1.0 / jnp.where(jnp.abs(twice) > 1e-12, twice, jnp.inf)[:, None]
    along_u = (steps[:, 1, 1:] * edges[:, 0] - steps[:, 0, 1:] * edges[:, 1]) * inverse
    along_v = (steps[:, 0, :1] * edges[:, 1] - steps[:, 1, :1] * edges[:, 0]) * inverse
    first, second = jnp.cross(along_v, normal), jnp.cross(normal, along_u)
    area = jnp.sum(along_u * first, axis=-1, keepdims=True)
    gradient = slope[:, :1] * first + slope[:, 1:] * second
    gradient = gradient / jnp.where(jnp.abs(area) > 1e-12, area, jnp.inf)
    steep = numerics.safe_norm(gradient)[:, None]
    gradient = gradient * jnp.minimum(1.0, 0.5 / jnp.maximum(steep, 1e-6))
    return numerics.normalize(normal - gradient)


def _reduce(
    image: Float[np.ndarray, "h w c"], factor: int
) -> Float[np.ndarray, "h2 w2 c"]:
    """Mean of factor x factor blocks."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(1, 3))
