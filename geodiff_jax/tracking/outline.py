"""Where a fitted head's outline should lie: jaw by landmarks, the rest by the matte.

Landmarks 17-67 do not see how wide a head is. The matte does, but only where it ends
at skin (cheeks, ears, neck): elsewhere it ends at hair, and the head merely lies
inside. Each constraint asks one vertex to project onto a line in the image; which
vertex and which line is decided anew before every solve.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from skimage import color

from geodiff_jax.head import model as head_model

NUM_JAW, NUM_RAYS = 15, 72


class Lines(NamedTuple):
    """normal · projection(vertex) = target, in pixels, for k vertices."""

    vertices: Int[np.ndarray, " k"]
    normals: Float[np.ndarray, "k 2"]
    """Outwards, unit."""
    targets: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]
    """Zero where there is nothing to see."""
    outer_only: Bool[np.ndarray, " k"]
    """Whether only vertices outside the line count."""


def nothing() -> Lines:
    """As many lines as a photo gives, all without weight."""
    k = NUM_JAW + NUM_RAYS
    zeros = np.zeros(k)
    return Lines(np.zeros(k, int), np.zeros((k, 2)), zeros, zeros, np.zeros(k, bool))


def lines(
    model: head_model.HeadModel,
    pixels: Float[np.ndarray, "v 2"],
    ibug: Float[np.ndarray, "68 2"],
    matte: Float[np.ndarray, "h w"],
    image: Float[np.ndarray, "h w 3"],
    *,
    jaw_sigma: float,
    matte_sigma: float,
    matte_reach: float,
) -> Lines:
    """The constraints of one photo on a head whose vertices project to `pixels`.

    Sigmas and reach in units of the outer-eye distance. Lines of the matte that pass
    the head at more than `matte_reach` lose their weight (Geman-McClure).
    """
    unit = float(np.linalg.norm(ibug[45] - ibug[36]))
    jaw = _jaw_lines(np.asarray(model.regions["face"]), pixels, ibug)
    ending = np.asarray(model.regions["boundary"])
    rays = _matte_lines(_outer_skin(model), ending, pixels, ibug, matte, image, unit)
    gap = rays.targets - np.sum(rays.normals * pixels[rays.vertices], axis=1)
    trust = 1.0 / (1.0 + (gap / (matte_reach * unit)) ** 2)
    rays = rays._replace(weights=rays.weights * trust / (matte_sigma * unit))
    jaw = jaw._replace(weights=jaw.weights / (jaw_sigma * unit))
    return Lines(*(np.concatenate(pair) for pair in zip(jaw, rays, strict=True)))


def _jaw_lines(
    face: Bool[np.ndarray, " v"],
    pixels: Float[np.ndarray, "v 2"],
    ibug: Float[np.ndarray, "68 2"],
) -> Lines:
    """Supporting lines of the jaw: points may slide along it."""
    down = ibug[8] - ibug[27]
    down = down / max(np.linalg.norm(down), 1e-9)
    right = np.array([down[1], -down[0]])
    angles = np.radians(np.linspace(-80.0, 80.0, NUM_JAW))[:, None]
    normals = np.cos(angles) * down + np.sin(angles) * right
    candidates = np.flatnonzero(face)
    heights = normals @ pixels[candidates].T
    return Lines(
        vertices=candidates[heights.argmax(axis=1)],
        normals=normals,
        targets=np.max(normals @ ibug[:17].T, axis=1),
        weights=np.ones(NUM_JAW),
        outer_only=np.zeros(NUM_JAW, bool),
    )


def _outer_skin(model: head_model.HeadModel) -> Bool[np.ndarray, " v"]:
    hidden = ("left_eyeball", "right_eyeball", "mouth_interior", "upper_teeth")
    outer = np.ones(model.num_vertices, bool)
    for name in (*hidden, "lower_teeth", "tongue"):
        outer &= ~np.asarray(model.regions[name])
    return outer


def _matte_lines(
    outer: Bool[np.ndarray, " v"],
    ending: Bool[np.ndarray, " v"],
    pixels: Float[np.ndarray, "v 2"],
    ibug: Float[np.ndarray, "68 2"],
    matte: Float[np.ndarray, "h w"],
    image: Float[np.ndarray, "h w 3"],
    unit: float,
) -> Lines:
    """Where rays from the face leave the matte; tight if they leave it through skin."""
    centre = ibug[17:].mean(axis=0)
    angles = np.linspace(-np.pi, np.pi, NUM_RAYS, endpoint=False)
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    vertices, seen = _farthest(outer, pixels - centre)
    # Straight below lie clothes and the end of the neck: nothing of the head's outline.
    down = (ibug[8] - ibug[27]) / max(np.linalg.norm(ibug[8] - ibug[27]), 1e-9)
    seen &= normals @ down < np.cos(np.radians(40.0))
    seen &= ~ending[vertices]
    exits, found = _exits(matte, centre, normals)
    depths = unit * np.array([0.03, 0.05, 0.08])
    inside = centre + normals[:, None] * (exits[:, None] - depths)[..., None]
    is_skin = _skin_share(image, ibug, inside) > 0.5
    # Fair hair is as bright as skin here and there, a bald head is skin all the way.
    way = (
        centre
        + normals[:, None] * (exits[:, None] * np.linspace(0.5, 0.97, 12))[..., None]
    )
    bald = _skin_share(image, ibug, way) > 0.9
    is_skin &= bald | (normals @ down > -0.3)
    return Lines(
        vertices=vertices,
        normals=normals,
        targets=normals @ centre + exits,
        weights=(seen & found).astype(float),
        outer_only=~is_skin,
    )


def _farthest(
    outer: Bool[np.ndarray, " v"], local: Float[np.ndarray, "v 2"]
) -> tuple[Int[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """(the outermost vertex near each ray, whether there is one)."""
    step = 2 * np.pi / NUM_RAYS
    candidates = np.flatnonzero(outer)
    angle = np.arctan2(local[candidates, 1], local[candidates, 0])
    ray = np.round((angle + np.pi) / step).astype(int) % NUM_RAYS
    distance = np.linalg.norm(local[candidates], axis=1)
    order = np.argsort(distance)
    chosen = np.zeros(NUM_RAYS, int)
    chosen[ray[order]] = candidates[order]  # The farthest of each ray is written last.
    return chosen, np.bincount(ray, minlength=NUM_RAYS) > 0


def _exits(
    matte: Float[np.ndarray, "h w"],
    centre: Float[np.ndarray, "2"],
    normals: Float[np.ndarray, "k 2"],
) -> tuple[Float[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """(distance at which each ray first leaves the matte, whether it does in frame)."""
    height, width = matte.shape
    steps = np.arange(0.0, np.hypot(height, width), 0.5)
    points = centre + normals[:, None] * steps[:, None]
    values = _sample(matte, points)
    framed = ((points >= 0.5) & (points <= [width - 0.5, height - 0.5])).all(axis=-1)
    below = values < 0.5
    first = below.argmax(axis=1)
    rows = np.arange(len(normals))
    found = below.any(axis=1) & (first > 0) & framed[rows, first]
    before = values[rows, np.maximum(first - 1, 0)]
    after = values[rows, first]
    share = (before - 0.5) / np.maximum(before - after, 1e-6)
    return np.where(found, steps[first] - 0.5 + 0.5 * share, 0.0), found


def _skin_share(
    image: Float[np.ndarray, "h w 3"],
    ibug: Float[np.ndarray, "68 2"],
    points: Float[np.ndarray, "k s 2"],
) -> Float[np.ndarray, " k"]:
    """Share of each row of points that has the colour of the cheeks and nose."""
    share = np.linspace(0.25, 0.75, 9)[:, None, None]
    cheeks = ibug[[1, 2, 3, 13, 14, 15]] * share + ibug[[30]] * (1.0 - share)
    nose = ibug[[27]] * share + ibug[[30]] * (1.0 - share)
    samples = np.concatenate([cheeks.reshape(-1, 2), nose.reshape(-1, 2)])
    skin = _lab(image, samples)
    middle = np.median(skin, axis=0)
    spread = 1.5 * np.median(np.abs(skin - middle), axis=0)
    # Shading changes lightness more than hue; floors keep flat skin from being picky.
    spread = np.maximum(spread, [10.0, 5.0, 5.0])
    distance = np.linalg.norm((_lab(image, points) - middle) / spread, axis=-1)
    return np.mean(distance < 3.0, axis=-1)


def _lab(
    image: Float[np.ndarray, "h w 3"], points: Float[np.ndarray, "*k 2"]
) -> Float[np.ndarray, "*k 3"]:
    rgb = np.stack([_sample(image[..., c], points) for c in range(3)], axis=-1)
    return color.rgb2lab(np.clip(rgb, 0.0, 1.0))


def _sample(
    image: Float[np.ndarray, "h w"], points: Float[np.ndarray, "*k 2"]
) -> Float[np.ndarray, "*k"]:
    """Bilinear values; pixel centres at +0.5."""
    coordinates = np.moveaxis(points, -1, 0)[::-1] - 0.5
    return ndimage.map_coordinates(image, coordinates, order=1, mode="nearest")
