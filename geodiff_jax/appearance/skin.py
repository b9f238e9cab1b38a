"""Paints skin: pigment where it gathers in faces, lips, brows, stubble, freckles.

All features are places for melanin or blood, so they suit any complexion. Sizes are
metres on the mean head and ours, as are all strengths.
"""

import numpy as np
import scipy.spatial
from jaxtyping import Float

from geodiff_jax.appearance import look as appearance
from geodiff_jax.appearance import noise
from geodiff_jax.appearance.look import Look
from geodiff_jax.appearance.surface import Anatomy, Surface


def albedo(
    surface: Surface, anatomy: Anatomy, look: Look
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Linear albedo of skin, and its relief in metres."""
    melanin, blood = _complexion(surface, anatomy, look)
    lips, crease = _lips(surface, anatomy)
    melanin = melanin * (1.0 - 0.35 * lips) + lips * 0.12 * float(look.melanin)
    blood = blood + lips * (0.42 + 0.75 * float(look.lip_blood)) * (
        1.0 - 0.22 * float(look.melanin)
    )
    wrinkles = noise.value_noise(
        surface.position * np.array([1.0, 0.12, 0.4]),
        wavelength=0.0011,
        seed=int(look.seed) + 41,
    )
    blood = blood + lips * 0.10 * wrinkles
    color = appearance.skin_color(np.maximum(melanin, 0.02), np.maximum(blood, 0.05))
    color = color * (1.0 - 0.62 * crease)[:, None]
    color = _lids(surface, anatomy, look, color)
    color = color * (1.0 - 0.88 * _nostrils(surface, anatomy))[:, None]
    color = _hairs(surface, anatomy, look, color)
    depth = 0.35 + 0.65 * noise.smoothstep(0.0, 0.5, surface.openness)
    depth = depth * (1.0 - 0.38 * _under_jaw(surface, anatomy))
    color = color * depth[:, None] ** np.array([0.75, 1.0, 1.0])
    return color.astype(np.float32), _relief(surface, look, lips, wrinkles)


def _bump(
    surface: Surface, centre: Float[np.ndarray, "3"], radius: float
) -> Float[np.ndarray, " n"]:
    """A Gaussian blob about a point."""
    squared = np.sum((surface.position - centre) ** 2, axis=1)
    return np.exp(-squared / (2 * radius**2))


def _complexion(
    surface: Surface, anatomy: Anatomy, look: Look
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Melanin and blood of bare skin."""
    marks, seed = anatomy.marks, int(look.seed)
    broad = noise.fractal(surface.position, wavelength=0.035, octaves=3, seed=seed)
    patchy = noise.fractal(surface.position, wavelength=0.009, octaves=3, seed=seed + 7)
    fine = noise.fractal(surface.position, wavelength=0.0022, octaves=2, seed=seed + 11)
    cheeks = np.zeros(len(surface.position))
    for side in (-1.0, 1.0):
        corner = marks[45 if side > 0 else 36]
        cheek = np.array(
            [0.92 * corner[0], 0.45 * corner[1] + 0.55 * marks[33, 1], marks[31, 2]]
        )
        cheeks += _bump(surface, cheek, 0.019)
    nose = _bump(surface, marks[30], 0.011) + 0.5 * sum(
        _bump(surface, marks[i], 0.007) for i in (31, 35)
    )
    ears = surface.weights["left_ear"] + surface.weights["right_ear"]
    chin = _bump(surface, 0.5 * (marks[8] + marks[57]), 0.012)
    under_eyes = sum(
        _bump(surface, 0.5 * (marks[i] + marks[j]) + [0, -0.006, 0], 0.007)
        for i, j in ((40, 41), (46, 47))
    )
    around_mouth = _bump(surface, marks[[48, 54]].mean(axis=0), 0.028)
    rosy = 0.10 + 0.25 * float(look.blood)
    blood = float(look.blood) * (1.0 + 0.22 * broad * (0.4 + float(look.blotches)))
    blood += rosy * (0.75 * cheeks + 0.75 * nose + 0.9 * ears + 0.2 * chin)
    blood += (0.04 + 0.06 * float(look.blotches)) * patchy + 0.02 * fine
    blood += 0.05 * under_eyes - 0.05 * surface.weights["forehead"]
    uneven = 0.05 + 0.05 * float(look.blotches) + 0.06 * float(look.age)
    melanin = float(look.melanin) * (1.0 + uneven * broad + 0.6 * uneven * patchy)
    melanin += 0.012 * fine + 0.10 * under_eyes * (0.6 + 0.6 * float(look.age))
    melanin += 0.06 * float(look.melanin) * (around_mouth + surface.weights["forehead"])
    return melanin + _spots(surface, look), blood


def _spots(surface: Surface, look: Look) -> Float[np.ndarray, " n"]:
    """Freckles, mostly over nose and cheeks, and a few moles: melanin."""
    generator = np.random.default_rng(int(look.seed) + 3)
    face = surface.weights["face"] + surface.weights["nose"]
    candidates = np.flatnonzero((face > 0.6) & surface.parts["skin"])
    if len(candidates) == 0:
        return np.zeros(len(surface.position))
    count = int(700 * float(look.freckles)) + 5
    centres = surface.position[generator.choice(candidates, count)]
    centres = centres + generator.normal(0.0, 0.001, centres.shape)
    radius = np.where(
        np.arange(count) < 5, 0.0011, generator.uniform(4e-4, 9e-4, count)
    )
    strength = np.where(
        np.arange(count) < 5,
        generator.uniform(0.0, 1.1, count) ** 2,
        generator.uniform(0.1, 0.55, count),
    )
    distance, nearest = scipy.spatial.cKDTree(centres).query(
        surface.position, distance_upper_bound=0.003
    )
    nearest = np.minimum(nearest, count - 1)
    edge = noise.smoothstep(1.4, 0.5, distance / radius[nearest])
    return np.where(np.isfinite(distance), strength[nearest] * edge, 0.0)


def _lips(
    surface: Surface, anatomy: Anatomy
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Vermilion and the dark line where the lips meet."""
    marks = anatomy.marks
    near = surface.position[:, 2] > marks[[48, 54], 2].mean() - 0.02
    uneven = 0.0004 * noise.value_noise(surface.position, wavelength=0.004, seed=5)
    distance = anatomy.lips.at(surface.position) + uneven
    vermilion = noise.smoothstep(0.0015, -0.0012, distance) * near
    slit = noise.smoothstep(0.0011, 0.0, anatomy.slit.at(surface.position))
    return vermilion, slit * near


def _nostrils(surface: Surface, anatomy: Anatomy) -> Float[np.ndarray, " n"]:
    """The dark of the nostrils, on what faces down under the wings of the nose."""
    marks = anatomy.marks
    dark = np.zeros(len(surface.position))
    for wing in (31, 35):
        centre = 0.45 * marks[wing] + 0.55 * marks[33]
        centre = centre + np.array([0.0, 0.001, 0.001])
        offset = (surface.position - centre) / np.array([0.0034, 0.0032, 0.0042])
        dark = np.maximum(dark, noise.smoothstep(1.25, 0.7, np.sum(offset**2, axis=1)))
    return dark * noise.smoothstep(0.05, -0.45, surface.normal[:, 1])


def _under_jaw(surface: Surface, anatomy: Anatomy) -> Float[np.ndarray, " n"]:
    """The throat, which the jaw shades: 1 under its edge, less down the neck."""
    edge = anatomy.marks[3:14]
    azimuth = np.arctan2(surface.position[:, 0], surface.position[:, 2])
    order = np.arctan2(edge[:, 0], edge[:, 2])
    below = np.interp(azimuth, order, edge[:, 1]) - surface.position[:, 1]
    inside = noise.smoothstep(order[-1] + 0.3, order[-1] - 0.1, np.abs(azimuth))
    shade = noise.smoothstep(0.003, 0.010, below) * inside
    return shade * (1.0 - 0.6 * noise.smoothstep(0.015, 0.07, below))


def _lids(
    surface: Surface, anatomy: Anatomy, look: Look, color: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Lash line, wet rim and the darker skin of the lids."""
    for eye in anatomy.eyes:
        distance = eye.opening.at(surface.position)
        ahead = surface.position[:, 2] > eye.centre[2] - 0.3 * eye.radius
        close = np.linalg.norm(surface.position - eye.centre, axis=1) < 2.2 * eye.radius
        zone = ahead & close & surface.parts["skin"]
        upper = noise.smoothstep(-0.002, 0.002, _above_corners(surface, eye.contour))
        shade = np.exp(-np.maximum(distance, 0.0) / 0.0045) * (0.12 + 0.10 * upper)
        fold = np.exp(-(((distance - 0.0050) / 0.0009) ** 2)) * upper
        away = np.linalg.norm(surface.position - eye.contour.mean(axis=0), axis=1)
        shade = shade + 0.16 * fold * noise.smoothstep(0.021, 0.012, away)
        reach = 0.0005 + 0.0011 * upper * float(look.lashes) / 0.009
        line = noise.smoothstep(2.2 * reach, 0.3 * reach, distance)
        strength = (0.30 + 0.58 * upper) * line * zone
        lash = np.array([0.025, 0.018, 0.015])
        color = color * (1.0 - shade * zone)[:, None] ** np.array([0.7, 1.0, 1.0])
        color = color + strength[:, None] * (lash - color)
    return color


def _above_corners(
    surface: Surface, contour: Float[np.ndarray, "6 3"]
) -> Float[np.ndarray, " n"]:
    """Height over the line through both eye corners."""
    right, left = contour[0], contour[3]
    t = (surface.position[:, 0] - right[0]) / (left[0] - right[0])
    return surface.position[:, 1] - (right[1] + t * (left[1] - right[1]))


def _hairs(
    surface: Surface, anatomy: Anatomy, look: Look, color: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Brows, stubble, and the scalp as seen through the hair."""
    skin = surface.parts["skin"]
    grey = np.full(len(skin), 0.8 * float(look.grey))
    hair = appearance.hair_color(look, white=grey)
    brow = np.zeros(len(skin))
    for points in (anatomy.marks[21:16:-1], anatomy.marks[22:27]):
        brow = np.maximum(brow, _brow(surface, points, look))
    dots = noise.fractal(surface.position, wavelength=0.0016, octaves=2, seed=77)
    # Under a beard the roots of all its hairs darken the skin, not only the drawn ones.
    roots = max(float(look.stubble), 1.4 * min(float(look.beard) / 0.004, 1.0))
    shadow = beard_zone(surface, anatomy) * roots
    shadow = shadow * np.clip(0.42 + 0.35 * dots, 0.0, 1.0)
    covered = np.clip(shadow + scalp_cover(surface, look), 0.0, 0.93) * skin
    color = color + covered[:, None] * (hair * np.array([0.8, 0.85, 0.9]) - color)
    return color + (brow * skin)[:, None] * (0.75 * hair - color)


def scalp_cover(surface: Surface, look: Look) -> Float[np.ndarray, " n"]:
    """How much hair hides of the scalp's skin, in [0, 1]."""
    if float(look.hair_length) < 0.001:
        return np.zeros(len(surface.position))
    inside = hairline(surface, look)
    ragged = 0.003 * noise.fractal(
        surface.position, wavelength=0.005, octaves=3, seed=int(look.seed) + 19
    )
    edge = noise.smoothstep(0.0, 0.014, inside + ragged)
    speckle = noise.fractal(
        surface.position, wavelength=0.0012, octaves=2, seed=int(look.seed) + 23
    )
    return (0.62 + 0.32 * float(look.hair_density)) * edge * (0.92 + 0.12 * speckle)


def hairline(surface: Surface, look: Look) -> Float[np.ndarray, " n"]:
    """Metres inside the look's own hairline: recession eats in from the temples."""
    ears = surface.weights["left_ear"] + surface.weights["right_ear"]
    bare = surface.hairline - 0.05 * np.minimum(4.0 * ears, 1.0)
    scalp = surface.position[surface.hairline > 0.0]
    if len(scalp) == 0:
        return bare
    top, side = scalp[:, 1].max(), np.abs(scalp[:, 0]).max()
    front = surface.position[:, 2] / max(scalp[:, 2].max(), 1e-3)
    height = (top - surface.position[:, 1]) / side
    temple = np.exp(-(((np.abs(surface.position[:, 0]) / side - 0.55) / 0.25) ** 2))
    eaten = 0.034 * temple + 0.012
    return bare - float(look.recession) * eaten * np.clip(
        1.2 * front + 0.3, 0.0, 1.0
    ) * np.clip(1.6 - height, 0.0, 1.0)


def beard_zone(surface: Surface, anatomy: Anatomy) -> Float[np.ndarray, " n"]:
    """Where a beard grows: moustache, cheeks below a line to the ears, jaw, throat."""
    marks, p = anatomy.marks, surface.position
    azimuth = np.arctan2(np.abs(p[:, 0]), p[:, 2])

    def place(index: int) -> tuple[float, float]:
        x, y, z = marks[index]
        return float(np.arctan2(abs(x), z)), float(y)

    corner, cheek, ear = place(54), place(13), place(15)
    middle = (0.5 * (cheek[0] + corner[0]), 0.65 * corner[1] + 0.35 * cheek[1])
    line = np.interp(
        azimuth,
        [corner[0], middle[0], ear[0]],
        [corner[1] + 0.006, middle[1], ear[1] - 0.004],
    )
    jaw = noise.smoothstep(0.003, -0.010, p[:, 1] - line)
    moustache = noise.smoothstep(0.004, -0.003, p[:, 1] - (marks[33, 1] - 0.001))
    moustache = moustache * noise.smoothstep(
        1.35, 1.0, np.abs(p[:, 0]) / abs(marks[54, 0])
    )
    throat = noise.smoothstep(-0.020, -0.005, p[:, 1] - marks[8, 1])
    behind = noise.smoothstep(ear[0] + 0.15, ear[0] - 0.05, azimuth)
    off_lips = noise.smoothstep(0.0005, 0.003, anatomy.lips.at(p))
    skin = surface.parts["skin"] & (surface.openness > 0.2)
    inside = np.where(p[:, 2] > marks[54, 2] - 0.02, off_lips, 1.0)
    return np.maximum(jaw, moustache) * throat * behind * inside * skin


def _brow(
    surface: Surface, points: Float[np.ndarray, "5 3"], look: Look
) -> Float[np.ndarray, " n"]:
    """One brow of single hairs, inner end first: coverage in [0, 1]."""
    side = np.sign(points[-1, 0])
    across = np.linalg.norm(np.diff(points[:, [0, 2]], axis=0), axis=1)
    arc = np.concatenate([[0.0], np.cumsum(across)])
    reach = np.abs(points[:, 0])
    along = np.interp(side * surface.position[:, 0], reach, arc)
    beyond = side * surface.position[:, 0]
    along += np.maximum(beyond - reach[-1], 0) - np.maximum(reach[0] - beyond, 0)
    curve = np.polynomial.Polynomial.fit(arc, points[:, 1], 3)
    # The points lie on the brow's upper edge, which is soft.
    above = surface.position[:, 1] - curve(np.clip(along, 0.0, arc[-1])) + 0.0038
    t = along / arc[-1]
    near = (np.abs(above) < 0.012) & (t > -0.15) & (t < 1.2)
    near &= surface.position[:, 2] > points[:, 2].min() - 0.012
    near &= side * surface.position[:, 0] > 0
    coverage = np.zeros(len(t))
    if near.any():
        plane = np.stack([along[near], above[near]], axis=-1)
        coverage[near] = _brow_hairs(plane, arc[-1], look, odd=bool(side > 0))
    return coverage


def _brow_hairs(
    plane: Float[np.ndarray, "n 2"], length: float, look: Look, *, odd: bool
) -> Float[np.ndarray, " n"]:
    """Hairs in the brow's own plane (along, above), metres."""
    generator = np.random.default_rng(int(look.seed) + 101 + odd)
    count = int(200 + 260 * float(look.brow_density))
    t = generator.uniform(0.0, 1.0, count)
    half = 0.5 * float(look.brow_thickness) * _brow_profile(t)
    offset = generator.uniform(-1.0, 1.0, count)
    root = np.stack([t * length, 0.85 * offset * half], axis=-1)
    angle = np.interp(t, [0.0, 0.12, 0.35, 0.7, 1.0], [1.35, 1.0, 0.5, 0.1, -0.2])
    angle = (
        angle - 0.4 * offset * np.clip(t * 3, 0, 1) + generator.normal(0, 0.12, count)
    )
    reach = generator.uniform(0.0045, 0.0075, count) * np.interp(t, [0, 1], [0.85, 0.7])
    step = reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    # A hair thinner than a texel still counts: its width is the texel's, faded.
    delta = plane[:, None] - root[None]
    s = np.clip(np.sum(delta * step, -1) / np.sum(step**2, -1), 0.0, 1.0)
    distance = np.linalg.norm(delta - s[..., None] * step, axis=-1)
    hair = noise.smoothstep(0.00032, 0.00006, distance) * (1.0 - 0.6 * s)
    clear = np.prod(1.0 - 0.55 * hair, axis=1)
    half_here = 0.5 * float(look.brow_thickness) * _brow_profile(plane[:, 0] / length)
    inside = noise.smoothstep(
        1.5, 0.3, np.abs(plane[:, 1]) / np.maximum(half_here, 1e-4)
    )
    inside = inside * (half_here > 2e-4)
    clear = clear * (1.0 - 0.38 * float(look.brow_density) * inside)
    return (1.0 - clear) * (0.55 + 0.4 * float(look.brow_density))


def _brow_profile(t: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Thickness along a brow (0 inner end, 1 outer), 1 at its thickest."""
    shape = np.interp(t, [-0.03, 0.04, 0.3, 0.65, 1.0, 1.05], [0, 0.8, 1, 0.8, 0.3, 0])
    return shape


def _relief(
    surface: Surface,
    look: Look,
    lips: Float[np.ndarray, " n"],
    wrinkles: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Height of pores, fine wrinkles and lip lines, metres."""
    seed = int(look.seed)
    pores = noise.fractal(
        surface.position, wavelength=0.0030, octaves=3, seed=seed + 29
    )
    lumps = noise.fractal(surface.position, wavelength=0.012, octaves=2, seed=seed + 31)
    across = surface.position * np.array([0.25, 1.0, 0.4])
    lines = noise.fractal(across, wavelength=0.005, octaves=2, seed=seed + 37)
    lines = lines * surface.weights["forehead"] * float(look.age)
    rough = 4.5e-5 + 4e-5 * float(look.age)
    height = rough * pores + 9e-5 * lumps + 1.2e-4 * lines
    return (height * (1.0 - lips) + 1.3e-4 * wrinkles * lips).astype(np.float32)
