"""Photographs of a head: skin and hair rasterised together and shaded; no gradients."""

import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from geodiff_jax import numerics
from geodiff_jax.appearance import hair as hairs
from geodiff_jax.appearance import lighting as lights
from geodiff_jax.appearance import shading, texture
from geodiff_jax.appearance.hair import Hair
from geodiff_jax.appearance.lighting import Lighting
from geodiff_jax.appearance.look import Look
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head.model import HeadModel, HeadParams
from geodiff_jax.render import mesh_rasterizer

SHADOW_STRIDE = 7
"""One strand in so many, made wider, casts the shadows of all."""
SHADOW_POINTS = np.array([0, 4, 8, hairs.POINTS - 1])
SKY_SAMPLES = 24
LAMP_SAMPLES = 4


def photograph(
    head: HeadModel,
    params: HeadParams,
    look: Look,
    lighting: Lighting,
    camera: Camera,
    *,
    maps: texture.Maps | None = None,
    hair: Hair | None = None,
    background: Float[Array, "*hw 3"] | float = 1.0,
    supersample: int = 2,
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """A photograph (sRGB in [0, 1]) of one person, and its alpha.

    `maps` and `hair` may be given to save baking and growing them again for every
    picture of a person, or to dress a head in a texture of its own.
    """
    maps = texture.bake_maps(head, look) if maps is None else maps
    hair = hairs.grow(head, look, identity=params.identity) if hair is None else hair
    backdrop = jnp.broadcast_to(
        jnp.asarray(background, jnp.float32), (camera.height, camera.width, 3)
    )
    finish = jnp.asarray(materials(head, look))
    return _photograph(
        head, params, lighting, camera, maps, hair, finish, backdrop, supersample
    )


def materials(head: HeadModel, look: Look) -> Float[np.ndarray, "v 4"]:
    """Roughness, reflectance, translucency and "is an eyeball" of every vertex."""
    regions = {name: np.asarray(mask) for name, mask in head.regions.items()}
    finish = np.tile(
        np.array([0.52, 0.028, 1.0, 0.0], np.float32), (head.num_vertices, 1)
    )
    oily = regions["nose"] | regions["forehead"]
    finish[:, 0] -= 0.08 * float(look.oil) * (1.0 + 0.5 * oily)
    finish[regions["lips"]] = [0.38, 0.032, 0.9, 0.0]
    for name in ("mouth_interior", "tongue"):
        finish[regions[name]] = [0.36, 0.03, 0.4, 0.0]
    for name in ("upper_teeth", "lower_teeth"):
        finish[regions[name]] = [0.26, 0.045, 0.15, 0.0]
    for name in ("left_eyeball", "right_eyeball"):
        finish[regions[name]] = [0.10, 0.03, 0.0, 1.0]
    return finish


@functools.partial(jax.jit, static_argnums=8)
def _photograph(
    head: HeadModel,
    params: HeadParams,
    lighting: Lighting,
    camera: Camera,
    maps: texture.Maps,
    hair: Hair,
    finish: Float[Array, "v 4"],
    backdrop: Float[Array, "h w 3"],
    supersample: int,
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """Everything happens in the head's frame, to which the camera is brought."""
    vertices = head_model.head_vertices(head, params)
    strands = hairs.pose(hair, vertices, head.faces)
    world_from_head = jaxlie.SE3.from_rotation_and_translation(
        jaxlie.SO3.exp(params.rotation), params.translation
    )
    near = camera.replace(camera_from_world=camera.camera_from_world @ world_from_head)
    fine = near.resize(
        width=supersample * camera.width, height=supersample * camera.height
    )
    viewer = numerics.normalize(near.position - strands[:, 0])
    flat = hairs.ribbons(strands, hair.width, viewer)
    ribbon_faces = hairs.ribbon_faces(*strands.shape[:2]) + len(vertices)
    faces = jnp.concatenate([head.faces, ribbon_faces])
    fragments = mesh_rasterizer.rasterize(
        jnp.concatenate([vertices, flat]), faces, fine
    )
    table = jnp.concatenate(
        [
            _skin_table(head, vertices, strands, hair, finish, lighting),
            _hair_table(head, vertices, strands, hair, lighting),
        ]
    )
    pixels = mesh_rasterizer.interpolate(fragments, faces, table)
    positions = _positions(fine, fragments)
    linear = _shade(head, fragments, pixels, positions, near, maps, lighting)
    samples = lights.srgb_from_linear(lights.expose(linear))
    covered = (fragments.face >= 0).astype(jnp.float32)[..., None]
    color = _reduce(samples * covered, supersample)
    alpha = _reduce(covered, supersample)
    return color + (1.0 - alpha) * backdrop, alpha[..., 0]


# Columns of the vertex table.
_NORMAL, _SOFT, _EYE_NORMAL = slice(0, 3), slice(3, 6), slice(6, 9)
_FINISH, _SKY, _LAMPS = slice(9, 13), 13, slice(14, None)


def _skin_table(
    head: HeadModel,
    vertices: Float[Array, "v 3"],
    strands: Float[Array, "n p 3"],
    hair: Hair,
    finish: Float[Array, "v 4"],
    lighting: Lighting,
) -> Float[Array, "v c"]:
    """Normals, finish and light received at the mesh's vertices."""
    normals = mesh.vertex_normals(vertices, head.faces)
    sky_directions = jnp.asarray(lights.hemisphere(SKY_SAMPLES))
    lamp_directions = lights.lamp_samples(lighting, count=LAMP_SAMPLES)
    raised = vertices + 0.001 * normals
    seen = _seen(head, vertices, strands, hair, raised, sky_directions, lamp_directions)
    cosine = jnp.maximum(sky_directions @ normals.T, 0.0)
    sky = jnp.sum(seen[0] * cosine, axis=0) / jnp.maximum(jnp.sum(cosine, axis=0), 1e-6)
    return jnp.concatenate(
        [
            normals,
            _soften(normals, head.faces),
            _eye_directions(head, vertices),
            finish,
            sky[:, None],
            seen[1],
        ],
        axis=1,
    )


def _hair_table(
    head: HeadModel,
    vertices: Float[Array, "v 3"],
    strands: Float[Array, "n p 3"],
    hair: Hair,
    lighting: Lighting,
) -> Float[Array, "m c"]:
    """The same columns for ribbons: tangent, outward direction and colour."""
    sky_directions = jnp.asarray(lights.hemisphere(SKY_SAMPLES))
    lamp_directions = lights.lamp_samples(lighting, count=LAMP_SAMPLES)
    coarse = strands[:, SHADOW_POINTS]
    seen = _seen(
        head,
        vertices,
        strands,
        hair,
        coarse.reshape(-1, 3),
        sky_directions,
        lamp_directions,
        softness=0.007,
    )
    sky = jnp.mean(seen[0], axis=0)
    light = jnp.concatenate([1.35 * sky[:, None], seen[1]], axis=1)
    light = light.reshape(*coarse.shape[:2], -1)
    light = _between(light, strands.shape[1])
    centre = jnp.mean(vertices, axis=0)
    outward = numerics.normalize(strands - centre)
    along = hairs.tangents(strands)
    outward = numerics.normalize(
        outward - 0.8 * along * jnp.sum(outward * along, -1, keepdims=True)
    )
    color = jnp.broadcast_to(hair.color[:, None], strands.shape)
    shine = jnp.broadcast_to(
        jnp.asarray([0.0, 0.04, 0.0, 0.0]), (*strands.shape[:2], 4)
    )
    rows = jnp.concatenate([along, outward, color, shine, light], axis=-1)
    return jnp.repeat(rows.reshape(-1, rows.shape[-1]), 2, axis=0)


def _between(values: Float[Array, "n s c"], points: int) -> Float[Array, "n p c"]:
    """Values at `SHADOW_POINTS`, interpolated at every point of the strand."""
    place = np.interp(np.arange(points), SHADOW_POINTS, np.arange(len(SHADOW_POINTS)))
    low = np.minimum(np.floor(place).astype(int), len(SHADOW_POINTS) - 2)
    share = jnp.asarray(place - low, jnp.float32)[:, None]
    return values[:, low] * (1.0 - share) + values[:, low + 1] * share


def _seen(
    head: HeadModel,
    vertices: Float[Array, "v 3"],
    strands: Float[Array, "n p 3"],
    hair: Hair,
    points: Float[Array, "k 3"],
    sky_directions: Float[Array, "d 3"],
    lamp_directions: Float[Array, "l s 3"],
    *,
    softness: float = 0.002,
) -> tuple[Float[Array, "d k"], Float[Array, "k l"]]:
    """Visible share of the sky's directions and of each lamp."""
    lamps, samples = lamp_directions.shape[:2]
    directions = jnp.concatenate([sky_directions, lamp_directions.reshape(-1, 3)])
    bearers = hairs.SCALP_STRANDS + hairs.BEARD_STRANDS
    casting = strands[:bearers:SHADOW_STRIDE][:, SHADOW_POINTS]
    width = 2.2 * hair.width[:bearers:SHADOW_STRIDE]
    flat = jax.vmap(lambda d: hairs.ribbons(casting, width, d))(directions)
    stacked = jnp.broadcast_to(vertices, (len(directions), *vertices.shape))
    ribbon_faces = hairs.ribbon_faces(*casting.shape[:2]) + len(vertices)
    seen = lights.visibility(
        jnp.concatenate([stacked, flat], axis=1),
        jnp.concatenate([head.faces, ribbon_faces]),
        points,
        directions,
        softness=softness,
    )
    split = len(sky_directions)
    each_lamp = seen[split:].reshape(lamps, samples, -1)
    return seen[:split], jnp.mean(each_lamp, axis=1).T


def _soften(
    normals: Float[Array, "v 3"], faces: Float[Array, "f 3"], *, rounds: int = 10
) -> Float[Array, "v 3"]:
    """Normals averaged over neighbouring faces, again and again."""

    def once(_: int, current: Float[Array, "v 3"]) -> Float[Array, "v 3"]:
        face = jnp.mean(current[faces], axis=1)
        total = jnp.zeros_like(current)
        for corner in range(3):
            total = total.at[faces[:, corner]].add(face)
        return numerics.normalize(total)

    return jax.lax.fori_loop(0, rounds, once, normals)


def _eye_directions(
    head: HeadModel, vertices: Float[Array, "v 3"]
) -> Float[Array, "v 3"]:
    """Posed normals of ideal eyeballs with a cornea; zero elsewhere.

    The mesh is too coarse for a round highlight; a sphere is not.
    """
    total = jnp.zeros_like(vertices)
    for i, name in enumerate(("left_eyeball", "right_eyeball")):
        mask = head.regions[name][:, None].astype(vertices.dtype)
        count = jnp.maximum(jnp.sum(mask), 1.0)
        rest_mean = jnp.sum(mask * head.template, axis=0) / count
        posed_mean = jnp.sum(mask * vertices, axis=0) / count
        spread = ((vertices - posed_mean) * mask).T @ (head.template - rest_mean)
        u, _, vt = jnp.linalg.svd(spread)
        fix = jnp.ones(3).at[2].set(jnp.linalg.det(u @ vt))
        rotation = (u * fix) @ vt
        rest = numerics.normalize(head.template - head.joint_template[3 + i])
        total = total + mask * (rest @ rotation.T)
    return total


def _positions(
    camera: Camera, fragments: mesh_rasterizer.Fragments
) -> Float[Array, "h w 3"]:
    height, width = fragments.face.shape
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    depth = jnp.where(fragments.face >= 0, fragments.depth, 1.0)
    pixels = jnp.stack([x, y], -1).reshape(-1, 2)
    return camera.unproject(pixels, depth.reshape(-1)).reshape(height, width, 3)


def _shade(
    head: HeadModel,
    fragments: mesh_rasterizer.Fragments,
    pixels: Float[Array, "h w c"],
    positions: Float[Array, "h w 3"],
    camera: Camera,
    maps: texture.Maps,
    lighting: Lighting,
) -> Float[Array, "h w 3"]:
    """Linear colour of every pixel."""
    is_hair = (fragments.face >= len(head.faces))[..., None]
    view = numerics.normalize(camera.position - positions)
    normal = numerics.normalize(pixels[..., _NORMAL])
    # A surface seen from behind (inside of the neck) turns its normal round.
    facing = jnp.sum(normal * view, axis=-1, keepdims=True)
    normal = jnp.where(facing < -0.2, -normal, normal)
    albedo, relief = _sample(head, fragments, maps)
    normal = _emboss(normal, positions, relief, fragments.face)
    finish = pixels[..., _FINISH]
    points = shading.Points(
        lights.linear_from_srgb(albedo),
        normal,
        numerics.normalize(pixels[..., _SOFT]),
        view,
        pixels[..., _LAMPS],
        pixels[..., _SKY],
        finish[..., 0],
        finish[..., 1],
        finish[..., 2],
    )
    skin = shading.surface(points, lighting)
    eyes = shading.eye(
        points.replace(normal=_cornea(head, pixels[..., _EYE_NORMAL], fragments)),
        lighting,
    )
    locks = points.replace(
        normal=numerics.normalize(pixels[..., _SOFT]), albedo=pixels[..., _EYE_NORMAL]
    )
    strands = shading.hair(locks, pixels[..., _NORMAL], lighting)
    shaded = jnp.where(finish[..., 3:] > 0.5, eyes, skin)
    return jnp.where(is_hair, strands, shaded)


def _cornea(
    head: HeadModel,
    directions: Float[Array, "h w 3"],
    fragments: mesh_rasterizer.Fragments,
) -> Float[Array, "h w 3"]:
    return numerics.normalize(directions)


def _sample(
    head: HeadModel, fragments: mesh_rasterizer.Fragments, maps: texture.Maps
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """The maps, bilinearly, where the chart says."""
    face = jnp.clip(fragments.face, 0, len(head.faces) - 1)
    corners = head.uv[head.uv_faces[face]]
    uv = jnp.sum(fragments.barycentric[..., None] * corners, axis=-2)
    height, width = maps.relief.shape
    x = uv[..., 0] * width - 0.5
    y = (1.0 - uv[..., 1]) * height - 0.5
    both = jnp.concatenate([maps.albedo, maps.relief[..., None]], axis=-1)
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros((*x.shape, 4))
    for dx in (0, 1):
        for dy in (0, 1):
            column = jnp.clip(left + dx, 0, width - 1).astype(jnp.int32)
            row = jnp.clip(top + dy, 0, height - 1).astype(jnp.int32)
            weight = (1 - jnp.abs(x - left - dx)) * (1 - jnp.abs(y - top - dy))
            total += weight[..., None] * both[row, column]
    return total[..., :3], total[..., 3]


def _emboss(
    normal: Float[Array, "h w 3"],
    positions: Float[Array, "h w 3"],
    relief: Float[Array, "h w"],
    face: Float[Array, "h w"],
) -> Float[Array, "h w 3"]:
    """Bends normals by the relief's slope on the screen (Mikkelsen 2010, Eq 2-4)."""
    across = jnp.roll(positions, -1, 1) - positions
    down = jnp.roll(positions, -1, 0) - positions
    step_x = jnp.roll(relief, -1, 1) - relief
    step_y = jnp.roll(relief, -1, 0) - relief
    reach = jnp.maximum(numerics.safe_norm(across), numerics.safe_norm(down))
    first, second = jnp.cross(down, normal), jnp.cross(normal, across)
    area = jnp.sum(across * first, axis=-1, keepdims=True)
    slope = step_x[..., None] * first + step_y[..., None] * second
    slope = slope / jnp.where(jnp.abs(area) > 1e-12, area, 1.0)
    # Steps across an outline are no slope.
    steep = numerics.safe_norm(slope)[..., None]
    slope = slope * jnp.minimum(1.0, 0.5 / jnp.maximum(steep, 1e-6))
    smooth = (reach < 0.004) & (jnp.abs(area[..., 0]) > 1e-12) & (face >= 0)
    return numerics.normalize(jnp.where(smooth[..., None], normal - slope, normal))


def _reduce(image: Float[Array, "h w c"], factor: int) -> Float[Array, "h2 w2 c"]:
    """Mean of factor x factor blocks."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return jnp.mean(blocks, axis=(1, 3))
