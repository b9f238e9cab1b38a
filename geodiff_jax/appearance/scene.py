"""The posed head with its hair, and the light that reaches every vertex.

Everything is in the head's frame, before `rotation` and `translation`, so lamps stay
with the head: turning the head by `rotation` is the same picture as moving the camera.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from geodiff_jax import numerics
from geodiff_jax.appearance import hair as hairs
from geodiff_jax.appearance import lighting as lights
from geodiff_jax.appearance.hair import Hair
from geodiff_jax.appearance.lighting import Lighting
from geodiff_jax.geometry import mesh
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.head.model import HeadModel, HeadParams

SHADOW_STRIDE = 7
"""One strand in so many, made wider, casts the shadows of all."""
SHADOW_POINTS = np.array([0, hairs.POINTS // 2, hairs.POINTS - 1])
SKY_SAMPLES = 22
LAMP_SAMPLES = 3


@flax.struct.dataclass
class Scene:
    """Skin and ribbons as one mesh of `p` vertices; the head's own come first."""

    vertices: Float[Array, "p 3"]
    faces: Int[Array, "f 3"]
    normal: Float[Array, "p 3"]
    """For ribbons the tangent."""
    soft_normal: Float[Array, "p 3"]
    """For ribbons the outward direction of the hair, for eyeballs the gaze."""
    extra: Float[Array, "p 3"]
    """For ribbons their linear albedo, for eyeballs the direction from the centre."""
    sky: Float[Array, " p"]
    """Visible share of the sky."""
    lamps: Float[Array, "p l"]
    """Visible share of each lamp."""


def build(
    head: HeadModel,
    params: HeadParams,
    hair: Hair,
    lighting: Lighting,
    camera_position: Float[Array, "3"],
) -> Scene:
    """Poses the head, lays ribbons towards the camera and casts shadows."""
    vertices = head_model.head_vertices(head, params)
    strands = hairs.pose(hair, vertices, head.faces)
    viewer = numerics.normalize(camera_position - strands[:, 0])
    flat = hairs.ribbons(strands, hair.width, viewer)
    ribbon_faces = hairs.ribbon_faces(*strands.shape[:2]) + len(vertices)
    normals = mesh.vertex_normals(vertices, head.faces)
    skin_light, hair_light = _light(head, vertices, normals, strands, hair, lighting)
    directions, gazes = _eyeballs(head, vertices)
    is_eye = jnp.any(directions != 0.0, axis=-1, keepdims=True)
    along = hairs.tangents(strands)
    strand_rows = jnp.concatenate(
        [
            along,
            _outward(strands, along, jnp.mean(vertices, axis=0)),
            jnp.broadcast_to(hair.color[:, None], strands.shape),
            hair_light,
        ],
        axis=-1,
    )
    skin_rows = jnp.concatenate(
        [
            normals,
            jnp.where(is_eye, gazes, _soften(normals, head.faces)),
            directions,
            skin_light,
        ],
        axis=-1,
    )
    both_sides = jnp.repeat(strand_rows.reshape(-1, strand_rows.shape[-1]), 2, axis=0)
    rows = jnp.concatenate([skin_rows, both_sides])
    return Scene(
        jnp.concatenate([vertices, flat]),
        jnp.concatenate([head.faces, ribbon_faces]),
        rows[:, 0:3],
        rows[:, 3:6],
        rows[:, 6:9],
        rows[:, 9],
        rows[:, 10:],
    )


def _light(
    head: HeadModel,
    vertices: Float[Array, "v 3"],
    normals: Float[Array, "v 3"],
    strands: Float[Array, "n p 3"],
    hair: Hair,
    lighting: Lighting,
) -> tuple[Float[Array, "v c"], Float[Array, "n p c"]]:
    """Shares of the sky, then of each lamp, that skin vertices and strands see."""
    sky_directions = jnp.asarray(lights.hemisphere(SKY_SAMPLES))
    lamp_directions = lights.lamp_samples(lighting, count=LAMP_SAMPLES)
    directions = jnp.concatenate([sky_directions, lamp_directions.reshape(-1, 3)])
    coarse = strands[:, SHADOW_POINTS]
    points = jnp.concatenate([vertices + 0.001 * normals, coarse.reshape(-1, 3)])
    # Light seeps deep into hair.
    softness = jnp.where(jnp.arange(len(points)) < len(vertices), 0.002, 0.007)
    casters, faces = _casters(head, vertices, strands, hair, directions)
    seen = lights.visibility(casters, faces, points, directions, softness=softness)
    sky, lamps = seen[:SKY_SAMPLES], seen[SKY_SAMPLES:]
    lamps = jnp.mean(lamps.reshape(*lamp_directions.shape[:2], -1), axis=1).T
    cosine = jnp.maximum(sky_directions @ normals.T, 0.0)
    count = len(vertices)
    skin_sky = jnp.sum(sky[:, :count] * cosine, axis=0)
    skin_sky = skin_sky / jnp.maximum(jnp.sum(cosine, axis=0), 1e-6)
    # Some light always wanders into mouth and nostrils; its share is ours.
    skin_sky = 0.05 + 0.95 * skin_sky
    # Half of the sky is below the horizon of the head itself.
    hair_sky = 1.35 * jnp.mean(sky[:, count:], axis=0)
    on_hair = jnp.concatenate([hair_sky[:, None], lamps[count:]], axis=-1)
    on_hair = _between(on_hair.reshape(*coarse.shape[:2], -1), strands.shape[1])
    return jnp.concatenate([skin_sky[:, None], lamps[:count]], axis=-1), on_hair


def _casters(
    head: HeadModel,
    vertices: Float[Array, "v 3"],
    strands: Float[Array, "n p 3"],
    hair: Hair,
    directions: Float[Array, "d 3"],
) -> tuple[Float[Array, "d q 3"], Int[Array, "f 3"]]:
    """What throws shadows: the skin, and some strands turned to the light."""
    bearers = hairs.SCALP_STRANDS + hairs.BEARD_STRANDS
    casting = strands[:bearers:SHADOW_STRIDE][:, SHADOW_POINTS]
    width = 2.2 * hair.width[:bearers:SHADOW_STRIDE]
    flat = jax.vmap(lambda d: hairs.ribbons(casting, width, d))(directions)
    stacked = jnp.broadcast_to(vertices, (len(directions), *vertices.shape))
    ribbon_faces = hairs.ribbon_faces(*casting.shape[:2]) + len(vertices)
    return (
        jnp.concatenate([stacked, flat], axis=1),
        jnp.concatenate([head.faces, ribbon_faces]),
    )


def _between(values: Float[Array, "n s c"], points: int) -> Float[Array, "n p c"]:
    """Values at `SHADOW_POINTS`, interpolated at every point of the strand."""
    place = np.interp(np.arange(points), SHADOW_POINTS, np.arange(len(SHADOW_POINTS)))
    low = np.minimum(np.floor(place).astype(int), len(SHADOW_POINTS) - 2)
    share = jnp.asarray(place - low, jnp.float32)[:, None]
    return values[:, low] * (1.0 - share) + values[:, low + 1] * share


def _outward(
    strands: Float[Array, "n p 3"],
    along: Float[Array, "n p 3"],
    centre: Float[Array, "3"],
) -> Float[Array, "n p 3"]:
    """Away from the head, nearly across the strand."""
    outward = numerics.normalize(strands - centre)
    lengthwise = jnp.sum(outward * along, -1, keepdims=True)
    return numerics.normalize(outward - 0.8 * along * lengthwise)


def _soften(
    normals: Float[Array, "v 3"], faces: Int[Array, "f 3"], *, rounds: int = 10
) -> Float[Array, "v 3"]:
    """Normals averaged over neighbouring faces, again and again."""

    def once(_: Int[Array, ""], current: Float[Array, "v 3"]) -> Float[Array, "v 3"]:
        face = jnp.mean(current[faces], axis=1)
        total = jnp.zeros_like(current)
        for corner in range(3):
            total = total.at[faces[:, corner]].add(face)
        return numerics.normalize(total)

    return jax.lax.fori_loop(0, rounds, once, normals)


def _eyeballs(
    head: HeadModel, vertices: Float[Array, "v 3"]
) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """Posed direction from the eyeball's centre, and of its gaze; zero elsewhere.

    The posed rotation is that of the best rigid fit (Kabsch 1976).
    """
    directions, gazes = jnp.zeros_like(vertices), jnp.zeros_like(vertices)
    irises = landmarks.iris_positions(head, head.template)
    for i, name in enumerate(("left_eyeball", "right_eyeball")):
        mask = head.regions[name][:, None].astype(vertices.dtype)
        count = jnp.maximum(jnp.sum(mask), 1.0)
        rest_mean = jnp.sum(mask * head.template, axis=0) / count
        posed_mean = jnp.sum(mask * vertices, axis=0) / count
        spread = ((vertices - posed_mean) * mask).T @ (head.template - rest_mean)
        u, _, vt = jnp.linalg.svd(spread)
        fix = jnp.ones(3).at[2].set(jnp.linalg.det(u @ vt))
        rotation = (u * fix) @ vt
        centre = head.joint_template[3 + i]
        rest = numerics.normalize(head.template - centre)
        directions = directions + mask * (rest @ rotation.T)
        gazes = gazes + mask * (rotation @ numerics.normalize(irises[i] - centre))
    return directions, gazes
