"""How skin, wet flesh, eyes and hair answer to light; linear colours throughout.

Unit vectors point away from the surface. A perfectly white matte surface under the
same light from everywhere comes out exactly as bright as that light.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from geodiff_jax import numerics
from geodiff_jax.appearance import lighting as lights
from geodiff_jax.appearance.lighting import Lighting

BLEEDING = np.array([0.30, 0.10, 0.05], np.float32)
"""How far light wraps round the terminator in red, green and blue; ours."""


@flax.struct.dataclass
class Points:
    """What the shader knows of every pixel."""

    albedo: Float[Array, "*b 3"]
    normal: Float[Array, "*b 3"]
    soft_normal: Float[Array, "*b 3"]
    """Normal blurred over a centimetre or so: what light that went under skin sees."""
    view: Float[Array, "*b 3"]
    """Towards the camera."""
    lamps: Float[Array, "*b l"]
    """Visible share of each lamp."""
    sky: Float[Array, "*b"]
    """Visible share of the sky."""
    roughness: Float[Array, "*b"]
    reflectance: Float[Array, "*b"]
    """Of a mirror of the same stuff, seen straight on."""
    translucency: Float[Array, "*b"]
    """1 for skin, 0 for a matte surface."""


def fresnel(
    cosine: Float[Array, "*b"], *, base: Float[Array, "*#b"] | float
) -> Float[Array, "*b"]:
    """Schlick 1994: reflectance that rises from `base` to 1 at grazing angles."""
    return base + (1.0 - base) * (1.0 - jnp.clip(cosine, 0.0, 1.0)) ** 5


def glossy(
    normal: Float[Array, "*b 3"],
    view: Float[Array, "*b 3"],
    light: Float[Array, "3"],
    roughness: Float[Array, "*b"],
) -> Float[Array, "*b"]:
    """GGX lobe times pi, light's cosine included (Walter et al. 2007; Kelemen 2001)."""
    half = numerics.normalize(view + light)
    n_h = jnp.clip(jnp.sum(normal * half, -1), 0.0, 1.0)
    l_h = jnp.clip(jnp.sum(light * half, -1), 0.1, 1.0)
    n_l = jnp.clip(jnp.sum(normal * light, -1), 0.0, 1.0)
    squared = roughness**4
    spread = n_h**2 * (squared - 1.0) + 1.0
    distribution = squared / jnp.maximum(spread**2, 1e-8)
    return distribution * n_l / (4.0 * l_h**2)


def surface(points: Points, lighting: Lighting) -> Float[Array, "*b 3"]:
    """Skin, lips, teeth: diffuse with light bleeding under the skin, and a sheen."""
    bleeding = BLEEDING * points.translucency[..., None]
    # Red light travels furthest under the skin, so it sees the smoothest normal.
    blend = (
        points.translucency[..., None, None] * jnp.asarray([0.85, 0.45, 0.25])[:, None]
    )
    sharp, soft = points.normal[..., None, :], points.soft_normal[..., None, :]
    normals = numerics.normalize(sharp + blend * (soft - sharp))
    cosine = jnp.sum(points.normal * points.view, axis=-1)
    mirror = _sheen(cosine, points)
    reflected = 2.0 * cosine[..., None] * points.normal - points.view
    light = lights.sky_diffuse(lighting, normals)
    light = jnp.diagonal(light, axis1=-2, axis2=-1) * _bounced(points)
    shine = mirror[..., None] * lights.sky_radiance(lighting, reflected)
    shine = shine * points.sky[..., None]
    for i in range(lighting.directions.shape[0]):
        direction, color = lighting.directions[i], lighting.colors[i]
        facing = (normals @ direction + bleeding) / (1.0 + bleeding)
        seen = points.lamps[..., i, None]
        # Light that leaks round a shadow's edge is red, too.
        seen_through = seen ** (1.0 - 0.9 * bleeding)
        light = light + color * seen_through * jnp.maximum(facing, 0.0)
        wide = jnp.sqrt(jnp.sqrt(points.roughness**4 + 0.1 * lighting.sizes[i] ** 2))
        lobe = glossy(points.normal, points.view, direction, wide)
        half = numerics.normalize(points.view + direction)
        edge = fresnel(jnp.sum(half * direction, -1), base=points.reflectance)
        shine = shine + (lobe * edge)[..., None] * color * seen
    return points.albedo * (1.0 - mirror[..., None]) * light + shine


def eye(points: Points, lighting: Lighting) -> Float[Array, "*b 3"]:
    """A wet ball: matte below, above it sharp pictures of the lamps and the sky."""
    cosine = jnp.sum(points.normal * points.view, axis=-1)
    mirror = fresnel(cosine, base=0.03)[..., None]
    reflected = 2.0 * cosine[..., None] * points.normal - points.view
    light = lights.sky_diffuse(lighting, points.normal) * points.sky[..., None]
    shine = mirror * lights.sky_radiance(lighting, reflected) * points.sky[..., None]
    for i in range(lighting.directions.shape[0]):
        direction, color = lighting.directions[i], lighting.colors[i]
        size, seen = lighting.sizes[i], points.lamps[..., i, None]
        facing = jnp.maximum((points.normal @ direction + 0.25) / 1.25, 0.0)
        light = light + color * seen * facing[..., None]
        # The lamp's own radiance is its colour over the share of sky that it fills.
        radiance = color / jnp.maximum(jnp.sin(size) ** 2, 1e-3)
        angle = jnp.arccos(jnp.clip(reflected @ direction, -0.9999, 0.9999))
        disc = 1.0 - _smoothstep(size, size + 0.10, angle)
        shine = shine + mirror * disc[..., None] * radiance * seen
    return points.albedo * (1.0 - mirror) * light + shine


def hair(
    points: Points, tangent: Float[Array, "*b 3"], lighting: Lighting
) -> Float[Array, "*b 3"]:
    """Strands: a white gleam near the root side, a tinted one near the tip side.

    Kajiya and Kay 1989; two shifted lobes as in Marschner et al. 2003, Sec 5.
    `normal` is the outward direction of the mass of hair.
    """
    tangent = numerics.normalize(tangent)
    light = lights.sky_diffuse(lighting, points.normal) * points.sky[..., None]
    shine = jnp.zeros_like(light)
    tint = jnp.sqrt(points.albedo)
    for i in range(lighting.directions.shape[0]):
        direction, color = lighting.directions[i], lighting.colors[i]
        along = tangent @ direction
        body = jnp.clip((points.normal @ direction + 0.45) / 1.45, 0.0, 1.0)
        seen = (points.lamps[..., i] * body)[..., None]
        matte = jnp.sqrt(jnp.clip(1.0 - along**2, 0.0, 1.0))[..., None]
        light = light + color * matte * seen
        half = numerics.normalize(points.view + direction)
        white = _strand_lobe(tangent, points.normal, half, shift=0.10, power=90.0)
        inner = _strand_lobe(tangent, points.normal, half, shift=-0.12, power=22.0)
        lobes = 0.11 * white[..., None] + 0.22 * inner[..., None] * tint
        shine = shine + color * lobes * seen * (1.0 - points.roughness[..., None])
    return points.albedo * light + shine


def _strand_lobe(
    tangent: Float[Array, "*b 3"],
    normal: Float[Array, "*b 3"],
    half: Float[Array, "*b 3"],
    *,
    shift: float,
    power: float,
) -> Float[Array, "*b"]:
    shifted = numerics.normalize(tangent + shift * normal)
    along = jnp.sum(shifted * half, axis=-1)
    return jnp.clip(1.0 - along**2, 1e-6, 1.0) ** (0.5 * power)


def _bounced(points: Points) -> Float[Array, "*b 3"]:
    """Sky light in a hollow, with what its own bright walls throw back.

    A hollow that sees the share s of the sky, all of albedo a, is as bright as if it
    saw s / (1 - a (1 - s)): a white one hides nothing.
    """
    sky = jnp.clip(points.sky, 0.0, 1.0)[..., None]
    return sky / jnp.maximum(1.0 - points.albedo * (1.0 - sky), 1e-3)


def _sheen(cosine: Float[Array, "*b"], points: Points) -> Float[Array, "*b"]:
    """Fresnel of a rough surface: grazing reflection is damped by roughness."""
    limit = jnp.maximum(1.0 - points.roughness, points.reflectance)
    grazing = (1.0 - jnp.clip(cosine, 0.0, 1.0)) ** 5
    return points.reflectance + (limit - points.reflectance) * grazing


def _smoothstep(
    low: Float[Array, ""], high: Float[Array, ""], x: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
