"""Textures and vertex colours of a look on any head.

Colours are sRGB-encoded albedo: what a photograph in even white light would show.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Bool, Float

from geodiff_jax.appearance import lighting, noise, skin
from geodiff_jax.appearance import surface as surfaces
from geodiff_jax.appearance.look import Look
from geodiff_jax.appearance.surface import Anatomy, Eye, Surface
from geodiff_jax.head import model as head_model


@flax.struct.dataclass
class Maps:
    """Textures of one look in the head's chart; row 0 is v = 1."""

    albedo: Float[Array, "h w 3"]
    """sRGB."""
    relief: Float[Array, "h w"]
    """Height over the mesh, metres."""


def bake(
    head: head_model.HeadModel, look: Look, *, size: int = 1024
) -> Float[Array, "h w 3"]:
    """The look's albedo in the head's chart, sRGB in [0, 1]; gutters are filled."""
    return bake_maps(head, look, size=size).albedo


def bake_maps(head: head_model.HeadModel, look: Look, *, size: int = 1024) -> Maps:
    """Albedo and relief in the head's chart."""
    surface, covered = surfaces.of_texels(head, size=size)
    linear, relief = paint(surface, surfaces.anatomy(head), look)
    values = np.concatenate([linear, relief[:, None]], axis=1)
    image = _fill(values, covered)
    return Maps(
        lighting.srgb_from_linear(jnp.asarray(image[..., :3])),
        jnp.asarray(image[..., 3]),
    )


def vertex_colors(head: head_model.HeadModel, look: Look) -> Float[Array, "v 3"]:
    """The same albedo at every vertex, sRGB in [0, 1]."""
    surface = surfaces.of_vertices(head)
    linear, _ = paint(surface, surfaces.anatomy(head), look)
    return lighting.srgb_from_linear(jnp.asarray(linear))


def paint(
    surface: Surface, anatomy: Anatomy, look: Look
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Linear albedo and relief (metres) of points on the head."""
    color = np.full((len(surface.position), 3), 0.5, np.float32)
    relief = np.zeros(len(surface.position), np.float32)
    parts = surface.parts
    eyes = (("left_eyeball", anatomy.eyes[0]), ("right_eyeball", anatomy.eyes[1]))
    for name, eye in eyes:
        color[parts[name]] = _eyeball(surface.select(parts[name]), eye, look)
    for name in ("upper_teeth", "lower_teeth"):
        color[parts[name]] = _teeth(surface.select(parts[name]), name, look)
    for name in ("mouth_interior", "tongue"):
        color[parts[name]] = _mucosa(surface.select(parts[name]), look, name)
    bare = parts["skin"]
    color[bare], relief[bare] = skin.albedo(surface.select(bare), anatomy, look)
    return np.clip(color, 0.004, 0.95), relief


def _eyeball(surface: Surface, eye: Eye, look: Look) -> Float[np.ndarray, "n 3"]:
    """Sclera with veins, then iris, limbus and pupil by the angle from the gaze."""
    local = surface.position - eye.centre
    length = np.maximum(np.linalg.norm(local, axis=1), 1e-6)
    cosine = np.clip(local @ eye.gaze / length, -1.0, 1.0)
    radius = 0.012 * np.arccos(cosine)  # Along a sphere of human size.
    side = np.cross([0.0, 1.0, 0.0], eye.gaze)
    angle = np.arctan2(local[:, 1], local @ side)
    color = _sclera(surface, eye, look, radius)
    iris = _iris(radius, angle, look)
    inside = noise.smoothstep(0.00625, 0.00575, radius)[:, None]
    color = color + inside * (iris - color)
    # The upper lid and its lashes shade the eyeball; drawn where the lid rests.
    depth = -eye.opening.at(surface.position)
    upper = noise.smoothstep(-0.006, 0.004, local[:, 1] - 0.0)
    shade = 0.62 * np.exp(-np.maximum(depth, 0.0) / 0.0017) * (0.35 + 0.65 * upper)
    return color * (1.0 - shade)[:, None]


def _sclera(
    surface: Surface, eye: Eye, look: Look, radius: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"]:
    seed = int(look.seed)
    stretched = surface.position * np.array([0.35, 1.0, 0.35])
    veins = np.abs(noise.fractal(stretched, wavelength=0.003, octaves=3, seed=seed + 5))
    veins = noise.smoothstep(0.10, 0.0, veins)
    outwards = noise.smoothstep(0.006, 0.013, radius)
    corners = [
        np.exp(-np.sum((surface.position - eye.contour[i]) ** 2, 1) / (2 * 0.0032**2))
        for i in (0, 3)
    ]
    pink = np.clip(0.12 * outwards + 0.20 * veins * outwards, 0.0, 1.0)
    nasal = 0 if abs(eye.contour[0, 0]) < abs(eye.contour[3, 0]) else 1
    pink = np.clip(pink + 0.75 * corners[nasal] + 0.25 * corners[1 - nasal], 0, 0.85)
    white = np.array([0.70, 0.67, 0.63])
    return white + pink[:, None] * (np.array([0.56, 0.22, 0.18]) - white)


def _iris(
    radius: Float[np.ndarray, " n"], angle: Float[np.ndarray, " n"], look: Look
) -> Float[np.ndarray, "n 3"]:
    """Fibres run from the pupil outwards; melanin turns blue stroma to brown."""
    seed, depth = int(look.seed), float(look.iris_melanin)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    fibre_points = np.concatenate([circle * 0.02, radius[:, None] * 0.35], axis=-1)
    fibres = noise.fractal(fibre_points, wavelength=0.0018, octaves=3, seed=seed + 61)
    pupil = float(look.pupil_radius)
    t = np.clip((radius - pupil) / (0.0058 - pupil), 0.0, 1.0)
    collarette = np.exp(-(((t - 0.28 - 0.05 * fibres) / 0.16) ** 2))
    # Little melanin filters blue to green and hazel; much hides the blue altogether.
    stroma = np.array([0.14, 0.26, 0.40]) * np.exp(-depth * np.array([0.2, 0.7, 3.4]))
    brown = np.exp(-(0.9 + 1.6 * depth) * np.array([0.95, 1.75, 2.9]))
    share = noise.smoothstep(
        0.25, 0.75, depth + 0.35 * collarette * min(1.0, 3 * depth)
    )
    share = share[:, None]
    color = stroma + share * (brown - stroma)
    color = color * (1.0 + 0.38 * fibres + 0.30 * collarette)[:, None]
    limbus = noise.smoothstep(0.70, 1.0, t)
    color = color * (1.0 - 0.72 * limbus)[:, None]
    hole = noise.smoothstep(pupil + 0.00022, pupil - 0.00018, radius)[:, None]
    return np.maximum(color, 0.005) * (1.0 - hole) + 0.004 * hole


def _teeth(surface: Surface, name: str, look: Look) -> Float[np.ndarray, "n 3"]:
    """Ivory, greyer at the biting edge, yellower at the gum, dark at the back."""
    up = 1.0 if name == "upper_teeth" else -1.0
    height = up * surface.position[:, 1]
    low, high = (height.min(), height.max()) if len(height) else (0.0, 1.0)
    t = (height - low) / max(high - low, 1e-6)
    ivory = np.array([0.74, 0.68, 0.55]) * (1.0 - 0.08 * float(look.age))
    edge = np.array([0.66, 0.64, 0.58])
    color = edge + noise.smoothstep(0.0, 0.45, t)[:, None] * (ivory - edge)
    gum = noise.smoothstep(0.80, 0.92, t)[:, None]
    color = color + gum * (np.array([0.50, 0.18, 0.16]) - color)
    front = surface.position[:, 2].max() if len(height) else 0.0
    back = noise.smoothstep(0.005, 0.035, front - surface.position[:, 2])
    return color * (1.0 - 0.4 * back)[:, None]


def _mucosa(surface: Surface, look: Look, name: str) -> Float[np.ndarray, "n 3"]:
    """Wet red flesh that darkens into the throat."""
    mottled = noise.fractal(surface.position, wavelength=0.003, octaves=2, seed=9)
    base = (
        np.array([0.52, 0.20, 0.18])
        if name == "tongue"
        else np.array([0.46, 0.15, 0.13])
    )
    front = surface.position[:, 2].max() if len(mottled) else 0.0
    depth = noise.smoothstep(0.0, 0.045, front - surface.position[:, 2])
    dark = (1.0 - (0.4 if name == "tongue" else 0.65) * depth) * (1.0 + 0.1 * mottled)
    return base * dark[:, None] * (1.0 - 0.12 * float(look.melanin))


def _fill(
    values: Float[np.ndarray, "n c"], covered: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w c"]:
    """Spreads the nearest covered texel over the gutters."""
    image = np.zeros((*covered.shape, values.shape[1]), np.float32)
    image[covered] = values
    nearest = scipy.ndimage.distance_transform_edt(
        ~covered, return_distances=False, return_indices=True
    )
    rows, columns = np.asarray(nearest)
    return image[rows, columns]
