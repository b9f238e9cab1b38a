"""Light in a portrait studio: lamps, sky, shadows, and how skin, eyes and hair answer.

Everything is linear light in the head's frame (before the neck bends). A lamp's colour
is the radiance of a white matte surface that faces it: diffuse = albedo * colour * cos.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from geodiff_jax import numerics
from geodiff_jax.render import mesh_rasterizer


@flax.struct.dataclass
class Lighting:
    """`l` lamps and a sky."""

    directions: Float[Array, "l 3"]
    """Unit vectors towards the lamps, head frame."""
    colors: Float[Array, "l 3"]
    sizes: Float[Array, " l"]
    """Angular radius of each lamp, radians."""
    sky: Float[Array, "4 3"]
    """Radiance as 1, x, y, z harmonics: what a direction d sees is
    sky[0] + sky[1:] . d."""


def constant(*, radiance: float = 1.0) -> Lighting:
    """The same light from everywhere: a matte surface shows its albedo."""
    sky = jnp.zeros((4, 3)).at[0].set(radiance)
    none = jnp.zeros((1, 3))
    forward = jnp.asarray([[0.0, 0.0, 1.0]])
    return Lighting(forward, none, jnp.full((1,), 0.2), sky)


def studio() -> Lighting:
    """Key from the upper left of the picture, weak fill, a rim behind."""
    return _portrait(
        key_azimuth=-0.7,
        key_elevation=0.6,
        key_strength=0.82,
        fill=0.22,
        rim=0.5,
        sky=0.26,
        warmth=0.06,
        size=0.22,
    )


def sample_lighting(key: Key[Array, ""]) -> Lighting:
    """A random portrait light: soft to hard, warm to cool, never from below."""
    draws = iter(np.asarray(jax.random.uniform(key, (8,)), np.float64).tolist())
    side = 1.0 if next(draws) < 0.5 else -1.0
    contrast = next(draws)
    return _portrait(
        key_azimuth=side * (0.15 + 0.95 * next(draws)),
        key_elevation=0.15 + 0.75 * next(draws),
        key_strength=0.5 + 0.45 * contrast,
        fill=0.12 + 0.25 * next(draws),
        rim=0.8 * next(draws),
        sky=0.50 - 0.30 * contrast,
        warmth=-0.10 + 0.25 * next(draws),
        size=0.10 + 0.35 * next(draws),
    )


def _portrait(
    *,
    key_azimuth: float,
    key_elevation: float,
    key_strength: float,
    fill: float,
    rim: float,
    sky: float,
    warmth: float,
    size: float,
) -> Lighting:
    """Key, fill opposite to it and rim behind; warm key against a cool sky."""
    side = 1.0 if key_azimuth >= 0 else -1.0
    angles = [
        (key_azimuth, key_elevation),
        (-side * 0.8, 0.1),
        (-side * 2.5, 0.5),
    ]
    directions = jnp.asarray([_direction(a, e) for a, e in angles])
    warm = np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    cool = np.array([1.0 - 0.5 * warmth, 1.0, 1.0 + 0.5 * warmth])
    colors = np.stack([key_strength * warm, fill * cool, rim * cool])
    gradient = np.array([1.0, 0.0, 0.45, 0.15])[:, None]
    return Lighting(
        directions,
        jnp.asarray(colors, jnp.float32),
        jnp.asarray([size, 0.6, 0.25]),
        jnp.asarray(sky * gradient * cool, jnp.float32),
    )


def _direction(azimuth: float, elevation: float) -> list[float]:
    """Azimuth from z towards x, elevation from the horizon, radians."""
    return [
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
        float(np.cos(azimuth) * np.cos(elevation)),
    ]


def srgb_from_linear(linear: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """IEC 61966-2-1; clips to [0, 1]."""
    x = jnp.clip(linear, 0.0, 1.0)
    return jnp.where(
        x <= 0.0031308, 12.92 * x, 1.055 * jnp.maximum(x, 1e-6) ** (1 / 2.4) - 0.055
    )


def linear_from_srgb(srgb: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Inverts `srgb_from_linear` on [0, 1]."""
    x = jnp.clip(srgb, 0.0, 1.0)
    return jnp.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def expose(linear: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Film's soft shoulder: straight up to 0.7, then bends towards 1."""
    knee = 0.7
    over = jnp.maximum(linear - knee, 0.0) / (1.0 - knee)
    return jnp.minimum(linear, knee) + (1.0 - knee) * (1.0 - jnp.exp(-over))


def sky_radiance(
    lighting: Lighting, directions: Float[Array, "*b 3"]
) -> Float[Array, "*b 3"]:
    """What a mirror sees of the sky."""
    return jnp.maximum(lighting.sky[0] + directions @ lighting.sky[1:], 0.0)


def sky_diffuse(
    lighting: Lighting, normals: Float[Array, "*b 3"]
) -> Float[Array, "*b 3"]:
    """What a white matte surface shows: cosine convolution scales x, y, z by 2/3.

    Ramamoorthi and Hanrahan 2001, Sec 3.2 (A1 / A0).
    """
    return jnp.maximum(lighting.sky[0] + 2.0 / 3.0 * normals @ lighting.sky[1:], 0.0)


# --- Shadows: depth maps from many directions, read at points.


def hemisphere(count: int) -> Float[np.ndarray, "d 3"]:
    """Evenly spread unit vectors over the whole sphere (golden spiral)."""
    i = np.arange(count) + 0.5
    z = 1.0 - 2.0 * i / count
    angle = np.pi * (1.0 + 5.0**0.5) * i
    flat = np.sqrt(1.0 - z * z)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z], -1).astype(
        np.float32
    )


def lamp_samples(lighting: Lighting, *, count: int) -> Float[Array, "l s 3"]:
    """Directions spread over the disc of each lamp."""
    i = jnp.arange(count) + 0.5
    radius = jnp.sqrt(i / count)[None] * lighting.sizes[:, None]
    angle = np.pi * (1.0 + 5.0**0.5) * i
    side, upper = _frame(lighting.directions)
    spread = (
        jnp.cos(angle)[:, None] * side[:, None]
        + jnp.sin(angle)[:, None] * (upper[:, None])
    )
    return numerics.normalize(
        lighting.directions[:, None] + jnp.tan(radius)[..., None] * spread
    )


def _frame(
    directions: Float[Array, "d 3"],
) -> tuple[Float[Array, "d 3"], Float[Array, "d 3"]]:
    """Two unit vectors across each direction."""
    steep = jnp.abs(directions[:, 1:2]) > 0.9
    up = jnp.where(steep, jnp.asarray([1.0, 0, 0]), jnp.asarray([0, 1.0, 0]))
    side = numerics.normalize(jnp.cross(up, directions))
    return side, jnp.cross(directions, side)


@functools.partial(jax.jit, static_argnames=("size",))
def visibility(
    vertices: Float[Array, "d p 3"],
    faces: Int[Array, "f 3"],
    points: Float[Array, "k 3"],
    directions: Float[Array, "d 3"],
    *,
    softness: Float[Array, " k"] | float = 0.002,
    bias: float = 0.0025,
    size: int = 176,
) -> Float[Array, "d k"]:
    """How much of each distant light reaches each point, in [0, 1].

    `vertices` are given once per direction, since hairs turn their flat side to the
    light. Light fades over `softness` metres below the surface, `bias` below it.
    """
    side, upper = _frame(directions)
    axes = jnp.stack([side, upper, -directions], axis=1)
    local = jnp.einsum("dak,dpk->dpa", axes, vertices)
    low, high = jnp.min(local, axis=1), jnp.max(local, axis=1)
    pitch = jnp.max((high - low)[:, :2], axis=1, keepdims=True) / (size - 4)

    def to_map(x: Float[Array, "d k 3"]) -> Float[Array, "d k 3"]:
        flat = (x[..., :2] - low[:, None, :2]) / pitch[:, None] + 2.0
        # Far away, so that perspective-correct weights become affine.
        return jnp.concatenate([flat, x[..., 2:] - low[:, None, 2:] + 100.0], axis=-1)

    def depth_map(on_map: Float[Array, "p 3"]) -> Float[Array, "h w"]:
        return mesh_rasterizer.rasterize_pixels(
            on_map, faces, width=size, height=size
        ).depth

    depths = jax.vmap(depth_map)(to_map(local))
    queries = to_map(jnp.einsum("dak,pk->dpa", axes, points))
    return jax.vmap(functools.partial(_compare, softness=softness, bias=bias))(
        depths, queries
    )


def _compare(
    depths: Float[Array, "h w"],
    queries: Float[Array, "k 3"],
    *,
    softness: Float[Array, " k"] | float,
    bias: float,
) -> Float[Array, " k"]:
    """Bilinear percentage-closer filtering with exponential fall-off."""
    size = depths.shape[0]
    x, y = queries[:, 0] - 0.5, queries[:, 1] - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros(len(queries))
    for dx in (0, 1):
        for dy in (0, 1):
            column = jnp.clip(left + dx, 0, size - 1).astype(jnp.int32)
            row = jnp.clip(top + dy, 0, size - 1).astype(jnp.int32)
            weight = (1 - jnp.abs(x - left - dx)) * (1 - jnp.abs(y - top - dy))
            below = jnp.maximum(queries[:, 2] - depths[row, column] - bias, 0.0)
            total += weight * jnp.exp(-below / softness)
    return total


def openness(
    vertices: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
    points: Float[Array, "k 3"],
    normals: Float[Array, "k 3"],
    *,
    count: int = 32,
) -> Float[Array, " k"]:
    """Cosine-weighted share of the sky that each point sees: ambient occlusion."""
    directions = jnp.asarray(hemisphere(count))
    stacked = jnp.broadcast_to(vertices, (count, *vertices.shape))
    seen = visibility(stacked, faces, points, directions)
    cosine = jnp.maximum(directions @ normals.T, 0.0)
    return jnp.sum(seen * cosine, axis=0) / jnp.maximum(jnp.sum(cosine, axis=0), 1e-6)
