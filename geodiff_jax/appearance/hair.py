"""Hair, beard and lashes as ribbons that grow from the skin and ride on it.

A strand is grown on the resting head (combed, bent by gravity, kept off the skin),
stored in the frame of the triangle at its root, and follows that triangle. Ribbons
turn their flat side to the viewer, so the outline breaks up as hair does. One ribbon
stands for a lock of hairs. All numbers are ours.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
import scipy.spatial
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax import numerics
from geodiff_jax.appearance import look as appearance
from geodiff_jax.appearance import noise, skin
from geodiff_jax.appearance import surface as surfaces
from geodiff_jax.appearance.look import Look
from geodiff_jax.geometry import mesh
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.head.model import LandmarkEmbedding

SCALP_STRANDS = 7000
BEARD_STRANDS = 3600
LASHES = 72  # Per eye: two thirds of them on the upper lid.
POINTS = 16


@flax.struct.dataclass
class Hair:
    """`n` strands of `POINTS` points each; counts never depend on the look."""

    roots: LandmarkEmbedding
    """Where each strand grows."""
    points: Float[Array, "n p 3"]
    """In the frame of the root's triangle, metres from the root."""
    width: Float[Array, " n"]
    """Of the ribbon at its widest, metres; zero for a strand that is not there."""
    color: Float[Array, "n 3"]
    """Linear albedo."""


def grow(
    head: head_model.HeadModel,
    look: Look,
    *,
    identity: Float[Array, " i"] | None = None,
) -> Hair:
    """Grows the look's hair on a resting head; the mean head by default.

    The same look and identity always give the same strands.
    """
    params = head_model.neutral(head)
    if identity is not None:
        params = params.replace(identity=identity)
    vertices = head_model.rest_vertices(head, params)
    body = _Body(head, np.asarray(vertices))
    groups = [_scalp(body, look), _beard(body, look), _lashes(body, look)]
    roots, points, width, color = (
        np.concatenate([group[i] for group in groups]) for i in range(4)
    )
    embedding = LandmarkEmbedding(
        jnp.asarray(roots[:, 0], jnp.int32), jnp.asarray(roots[:, 1:], jnp.float32)
    )
    root = mesh.interpolate(
        vertices, head.faces, embedding.faces, embedding.barycentrics
    )
    rotation = mesh.triangle_frames(vertices, head.faces)[0][embedding.faces]
    local = jnp.einsum("nkl,npk->npl", rotation, jnp.asarray(points) - root[:, None])
    return Hair(embedding, local, jnp.asarray(width), jnp.asarray(color))


def pose(
    hair: Hair, vertices: Float[Array, "v 3"], faces: Int[Array, "f 3"]
) -> Float[Array, "n p 3"]:
    """Strand points where the posed mesh carries them."""
    root = mesh.interpolate(vertices, faces, hair.roots.faces, hair.roots.barycentrics)
    rotation = mesh.triangle_frames(vertices, faces)[0][hair.roots.faces]
    return root[:, None] + jnp.einsum("nkl,npl->npk", rotation, hair.points)


def tangents(points: Float[Array, "n p 3"]) -> Float[Array, "n p 3"]:
    """Unit directions from root to tip."""
    inner = points[:, 2:] - points[:, :-2]
    first, last = points[:, 1:2] - points[:, :1], points[:, -1:] - points[:, -2:-1]
    return numerics.normalize(jnp.concatenate([first, inner, last], axis=1))


def ribbons(
    points: Float[Array, "n p 3"],
    width: Float[Array, " n"],
    viewer: Float[Array, "*#n 3"],
) -> Float[Array, "m 3"]:
    """Vertices of flat strips, two per point, that face along `viewer` (unit).

    `viewer` is one direction, or one per strand. Strips narrow towards the tip.
    """
    along = tangents(points)
    if viewer.ndim == 2:
        viewer = viewer[:, None]
    across = numerics.normalize(jnp.cross(along, jnp.broadcast_to(viewer, along.shape)))
    t = jnp.linspace(0.0, 1.0, points.shape[1])
    half = 0.5 * width[:, None] * jnp.minimum(1.0, 0.6 + 2.0 * t) * jnp.sqrt(1.02 - t)
    sides = jnp.stack(
        [points - half[..., None] * across, points + half[..., None] * across], axis=2
    )
    return sides.reshape(-1, 3)


def ribbon_faces(strands: int, points: int) -> Int[np.ndarray, "f 3"]:
    """Triangles of `ribbons`."""
    start = 2 * np.arange(strands * points).reshape(strands, points)[:, :-1].reshape(-1)
    a, b, c, d = start, start + 1, start + 2, start + 3
    faces = np.stack([np.stack([a, b, c], -1), np.stack([b, d, c], -1)], axis=1)
    return faces.reshape(-1, 3).astype(np.int32)


# A group of strands: roots as (face, barycentrics), points, widths, colours.
_Strands = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _Body:
    """A resting head that strands grow on and keep off."""

    def __init__(self, head: head_model.HeadModel, vertices: Float[np.ndarray, "v 3"]):
        self.head, self.vertices = head, vertices
        self.faces = np.asarray(head.faces)
        self.surface = surfaces.of_vertices(head)
        self.anatomy = surfaces.anatomy(head)
        self.normals = np.asarray(
            mesh.vertex_normals(jnp.asarray(vertices), jnp.asarray(self.faces))
        )
        inside = self.surface.weights["mouth_interior"] > 0.01
        self.hull = self.surface.parts["skin"] & ~inside
        self.tree = scipy.spatial.cKDTree(vertices[self.hull])
        self.marks = np.asarray(landmarks.positions(head, jnp.asarray(vertices)))
        scalp = vertices[np.asarray(head.regions["scalp"])]
        self.centre = 0.5 * (scalp.min(axis=0) + scalp.max(axis=0))
        self.centre[1] = 0.6 * self.centre[1] + 0.4 * scalp[:, 1].max() - 0.03
        self.half_width = float(np.abs(scalp[:, 0]).max())
        self.top = float(scalp[:, 1].max())

    def roots(
        self, weight: Float[np.ndarray, " v"], count: int, seed: int
    ) -> Float[np.ndarray, "n 4"]:
        """Random surface points, as dense as the vertex weights say: face, weights."""
        generator = np.random.default_rng(seed)
        corners = np.asarray(self.head.template)[self.faces]
        area = np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]),
            axis=1,
        )
        density = area * weight[self.faces].mean(axis=1)
        if density.sum() <= 0:
            return np.zeros((count, 4)) + np.array([0, 1, 0, 0])
        face = generator.choice(len(density), count, p=density / density.sum())
        u, v = np.sqrt(generator.uniform(size=count)), generator.uniform(size=count)
        return np.stack([face, 1 - u, u * (1 - v), u * v], axis=-1)

    def at(
        self, roots: Float[np.ndarray, "n 4"], values: Float[np.ndarray, "v c"]
    ) -> Float[np.ndarray, "n c"]:
        """Vertex values at the roots."""
        corners = values[self.faces[roots[:, 0].astype(int)]]
        return np.sum(corners * roots[:, 1:, None], axis=1)

    def push_out(
        self, points: Float[np.ndarray, "n 3"], clearance: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
        """Points lifted to `clearance` off the skin or more, and the skin's normals."""
        distance, near = self.tree.query(points, k=3)
        weight = 1.0 / (distance + 1e-4)
        weight /= weight.sum(axis=1, keepdims=True)
        normals = np.einsum("nk,nkc->nc", weight, self.normals[self.hull][near])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
        base = np.einsum("nk,nkc->nc", weight, self.vertices[self.hull][near])
        height = np.sum((points - base) * normals, axis=1)
        lift = np.clip(clearance - height, 0.0, 0.03)
        return points + lift[:, None] * normals, normals


def _scalp(body: _Body, look: Look) -> _Strands:
    """The hair of the head."""
    seed, count = int(look.seed), SCALP_STRANDS
    generator = np.random.default_rng(seed + 200)
    inside = skin.hairline(body.surface, look)
    weight = noise.smoothstep(-0.001, 0.012, inside) * _clear_of_ears(body)
    roots = body.roots(weight * (inside > -0.002), count, seed + 201)
    length = float(look.hair_length) * generator.uniform(0.72, 1.0, count)
    edge = noise.smoothstep(0.0, 0.025, body.at(roots, inside[:, None])[:, 0])
    length *= 0.55 + 0.45 * edge
    length *= _taper(body, look, body.at(roots, body.vertices))
    points = _comb(body, look, roots, length, edge, generator)
    points = _curl(points, look, generator)
    alive = (float(look.hair_length) >= 0.001) & ~_crosses_face(body, points)
    thick = np.interp(
        float(look.hair_length),
        [0.0, 0.01, 0.03, 0.08, 0.3],
        [0.5, 0.65, 1.1, 1.5, 1.9],
    )
    width = 1e-3 * thick * generator.uniform(0.6, 1.2, count) * alive
    # Whole locks share a tint; single hairs differ from it.
    base = body.at(roots, body.vertices)
    lock = noise.fractal(base, wavelength=0.018, octaves=2, seed=seed + 210)
    tint = np.exp(0.13 * lock + 0.16 * generator.normal(size=count))
    grey = float(look.grey) * (1.0 + 0.5 * lock) + 0.12 * generator.normal(size=count)
    white = np.clip(grey, 0.0, 0.92) * (float(look.grey) > 0.02)
    color = appearance.hair_color(look, white=white) * tint[:, None]
    return roots, points, width, np.clip(color, 0.004, 0.9)


def _clear_of_ears(body: _Body) -> Float[np.ndarray, " v"]:
    """0 for skin close under the ears, where hair would grow through them."""
    regions = body.head.regions
    ears = np.asarray(regions["left_ear"]) | np.asarray(regions["right_ear"])
    if not ears.any():
        return np.ones(len(ears))
    template = np.asarray(body.head.template)
    distance = scipy.spatial.cKDTree(template[ears]).query(template)[0]
    return noise.smoothstep(0.005, 0.011, distance)


def _taper(
    body: _Body, look: Look, point: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, " n"]:
    """Short cuts are shorter over the ears and in the neck than on top."""
    crop = noise.smoothstep(0.13, 0.07, np.array(float(look.hair_length)))
    crop = crop * (1.0 - noise.smoothstep(0.4, 0.9, np.array(float(look.hair_curl))))
    crop = crop * (1.0 - float(look.hair_knot))
    ears = 0.5 * (body.marks[0, 1] + body.marks[16, 1])
    height = noise.smoothstep(ears + 0.01, 0.35 * ears + 0.65 * body.top, point[:, 1])
    return 1.0 - crop * (1.0 - (0.22 + 0.78 * height))


def _comb(
    body: _Body,
    look: Look,
    roots: Float[np.ndarray, "n 4"],
    length: Float[np.ndarray, " n"],
    edge: Float[np.ndarray, " n"],
    generator: np.random.Generator,
) -> Float[np.ndarray, "n p 3"]:
    """Follows the combing over the skull, then gravity."""
    count = len(roots)
    point = body.at(roots, body.vertices)
    normal = body.at(roots, body.normals)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    layer = generator.uniform(0.05, 1.0, count) ** 0.7
    volume = float(look.hair_volume) * (0.25 + 0.75 * edge)
    clearance = np.minimum(layer * volume, 0.6 * length)
    flow = _flow(body, look, point)
    wander = np.stack(
        [
            noise.fractal(
                point, wavelength=0.02, octaves=2, seed=int(look.seed) + 220 + i
            )
            for i in range(3)
        ],
        axis=-1,
    )
    flow = flow + 0.20 * wander + 0.06 * generator.normal(size=(count, 3))
    step = length / (POINTS - 1)
    points = [point]
    direction = normal
    for i in range(1, POINTS):
        travelled = i * step
        rise = np.exp(-travelled / np.maximum(1.1 * clearance, 1e-4))[:, None]
        fall = noise.smoothstep(0.03, 0.13, travelled)[:, None]
        steer = flow * (1.0 - 0.85 * fall) + fall * np.array([0.0, -1.0, 0.0])
        steer = steer + _off_face(body, look, point)
        steer = steer + float(look.hair_knot) * (_gather(body, point) - steer)
        steer = steer - np.sum(steer * normal, axis=1, keepdims=True) * normal * 0.8
        wish = steer + 2.0 * rise * normal
        direction = 0.35 * direction + 0.65 * _unit(wish)
        point = point + step[:, None] * _unit(direction)
        ramp = np.minimum(1.0, travelled / np.maximum(1.6 * clearance, 1e-4))
        point, normal = body.push_out(point, clearance * ramp + 0.0006)
        points.append(point)
    return np.stack(points, axis=1)


def _flow(
    body: _Body, look: Look, point: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Where hair at each root is combed."""
    outward = _unit(point - body.centre)
    crown = _unit(np.array([[0.0, 0.80, -0.60]]))
    away = _unit(outward * np.sum(outward * crown, axis=1, keepdims=True) - crown)
    front = noise.smoothstep(-0.2, 0.6, outward[:, 2:3])
    upper = noise.smoothstep(-0.1, 0.5, outward[:, 1:2])
    parting = float(look.hair_part) * body.half_width
    side = np.tanh((point[:, :1] - parting) / 0.006)
    sideways = side * np.array([1.0, -0.15, 0.0])
    back = float(look.hair_back)
    combed = front * upper * back * np.array([0.0, 0.15, -1.0])
    combed = combed + max(back, 0.0) * (1 - upper) * np.array([0.0, -0.25, -0.9])
    share = 1.0 - front * upper * min(1.0, max(back, 0.0) + 0.7 * float(look.hair_side))
    return _unit(share * away + 1.4 * combed + float(look.hair_side) * upper * sideways)


def _gather(
    body: _Body, point: Float[np.ndarray, "n 3"], *, radius: float = 0.022
) -> Float[np.ndarray, "n 3"]:
    """Towards a knot at the back of the head, and round it once there."""
    knot = body.centre + np.array([0.0, 0.25 * (body.top - body.centre[1]), 0.0])
    knot[2] = body.vertices[body.hull][:, 2].min() - 0.5 * radius
    offset = point - knot
    distance = np.linalg.norm(offset, axis=1, keepdims=True)
    outward = offset / np.maximum(distance, 1e-6)
    axis = _unit(np.sin(900.0 * outward[:, [1, 2, 0]]) + np.array([0.0, 0.3, 1.5]))
    winding = _unit(np.cross(axis, outward)) + 25.0 * (radius - distance) * outward
    there = noise.smoothstep(2.2 * radius, 1.1 * radius, distance)
    return -outward + there * (winding + outward)


def _off_face(
    body: _Body, look: Look, point: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """Pushes strands that hang before the face to its sides."""
    zone = _before_face(body, point)
    side = np.tanh((point[:, 0] - float(look.hair_part) * body.half_width) / 0.01)
    push = 3.0 * zone
    return push[:, None] * np.stack(
        [side, np.full(len(side), 0.15), np.full(len(side), -0.9)], axis=-1
    )


def _before_face(
    body: _Body, point: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, " n"]:
    """1 before brows, eyes and cheeks, fading over a few centimetres."""
    marks = body.marks
    reach = 1.12 * 0.5 * abs(marks[45, 0] - marks[36, 0])
    before = noise.smoothstep(marks[45, 2] - 0.035, marks[45, 2] - 0.012, point[:, 2])
    below = noise.smoothstep(marks[24, 1] + 0.055, marks[24, 1] + 0.015, point[:, 1])
    central = noise.smoothstep(1.25 * reach, 0.9 * reach, np.abs(point[:, 0]))
    return before * below * central


def _crosses_face(
    body: _Body, points: Float[np.ndarray, "n p 3"]
) -> Bool[np.ndarray, " n"]:
    """Strands that hang before the eyes: nobody lets them."""
    zone = _before_face(body, points.reshape(-1, 3)).reshape(points.shape[:2])
    low = points[..., 1] < body.marks[[19, 24], 1].mean() + 0.012
    return np.any(low & (zone > 0.5), axis=1)


def _curl(
    points: Float[np.ndarray, "n p 3"], look: Look, generator: np.random.Generator
) -> Float[np.ndarray, "n p 3"]:
    """Winds strands into waves or curls that widen from root to tip."""
    curl = float(look.hair_curl)
    if curl < 0.01:
        return points
    count, steps = points.shape[:2]
    along = _unit(np.gradient(points, axis=1).reshape(-1, 3)).reshape(points.shape)
    side = _unit(np.cross(along, [0.31, 0.92, 0.24]).reshape(-1, 3)).reshape(
        points.shape
    )
    other = np.cross(along, side)
    t = np.linspace(0.0, 1.0, steps)
    root_phase = 40.0 * points[:, 0, 0] + 55.0 * points[:, 0, 1]
    phase = root_phase + generator.uniform(0.0, 0.6 + 5.0 * curl, count)
    turns = np.interp(curl, [0.0, 0.3, 1.0], [1.0, 1.6, 2.4])
    angle = phase[:, None] + 2.0 * np.pi * turns * t
    # A short hair has no room for a wide turn.
    length = np.linalg.norm(np.diff(points, axis=1), axis=-1).sum(axis=1)
    room = np.minimum(1.0, length / 0.05)[:, None]
    radius = (0.0016 + 0.0065 * curl) * room * t**0.7
    wound = np.cos(angle)[..., None] * side + np.sin(angle)[..., None] * other
    return points + radius[..., None] * wound


def _beard(body: _Body, look: Look) -> _Strands:
    """Short hairs that follow the jaw downwards."""
    seed, count, length = int(look.seed), BEARD_STRANDS, float(look.beard)
    generator = np.random.default_rng(seed + 300)
    zone = skin.beard_zone(body.surface, body.anatomy)
    roots = body.roots(np.where(zone > 0.3, zone, 0.0), count, seed + 301)
    point = body.at(roots, body.vertices)
    normal = _unit(body.at(roots, body.normals))
    away = np.sign(point[:, :1]) * np.array([0.25, 0.0, 0.0])
    flow = away + np.array([0.0, -1.0, 0.12]) + 0.25 * generator.normal(size=(count, 3))
    reach = length * generator.uniform(0.5, 1.0, count)
    points = [point]
    for i in range(1, POINTS):
        t = i / (POINTS - 1)
        direction = _unit(flow + (1.3 - 0.8 * t) * normal)
        point = point + (reach / (POINTS - 1))[:, None] * direction
        points.append(point)
    kink = 0.05 + 0.12 * min(1.0, float(look.hair_curl) + 60.0 * length)
    points = _curl(np.stack(points, axis=1), look.replace(hair_curl=kink), generator)
    width = 0.8e-3 * generator.uniform(0.5, 1.0, count) * (length >= 0.001)
    white = 0.85 * (generator.uniform(size=count) < float(look.grey))
    tint = np.exp(0.2 * generator.normal(size=count))[:, None]
    color = appearance.hair_color(look, white=white) * tint
    return roots, points, width, np.clip(color, 0.004, 0.9)


def _lashes(body: _Body, look: Look) -> _Strands:
    """Lashes along the edge of what is seen of each eyeball."""
    groups = [_eye_lashes(body, look, eye) for eye in body.anatomy.eyes]
    roots, points = (np.concatenate([g[i] for g in groups]) for i in range(2))
    width = np.full(len(roots), 0.00034 if float(look.lashes) > 1e-4 else 0.0)
    color = np.broadcast_to([0.012, 0.009, 0.008], (len(roots), 3))
    return roots, points, width, color


def _eye_lashes(
    body: _Body, look: Look, eye: surfaces.Eye
) -> tuple[np.ndarray, np.ndarray]:
    corners = np.asarray(body.head.template)[body.faces]
    middle = corners.mean(axis=1)
    distance = eye.opening.at(middle)
    skin_face = body.surface.parts["skin"][body.faces].all(axis=1)
    near = np.linalg.norm(middle - eye.centre, axis=1) < 2.0 * eye.radius
    ahead = middle[:, 2] > eye.centre[2] + 0.2 * eye.radius
    margin = np.flatnonzero(skin_face & near & ahead & (distance < 0.0035))
    upper_count = (2 * LASHES) // 3
    right, left = eye.contour[0], eye.contour[3]
    roots, points = [], []
    for count, up in ((upper_count, 1.0), (LASHES - upper_count, -1.0)):
        t = np.linspace(0.06, 0.97, count)
        x = right[0] + t * (left[0] - right[0])
        outward = t if right[0] + left[0] > 0 else 1.0 - t
        root = _margin_roots(eye, middle[margin], margin, x, up)
        roots.append(root)
        reach = float(look.lashes) * (0.45 + 0.55 * np.sin(np.pi * outward**1.3))
        reach = reach * (1.0 if up > 0 else 0.38)
        reach = reach * (1.0 - 0.35 * np.random.default_rng(7).uniform(size=count))
        x = x + 0.0006 * np.random.default_rng(8).normal(size=count)
        points.append(_lash_curves(body, eye, root, reach, x, up))
    return np.concatenate(roots), np.concatenate(points)


def _margin_roots(
    eye: surfaces.Eye,
    middle: Float[np.ndarray, "m 3"],
    margin: Int[np.ndarray, " m"],
    x: Float[np.ndarray, " k"],
    up: float,
) -> Float[np.ndarray, "k 4"]:
    """For each x, the face of the lid's edge nearest to it."""
    if len(margin) == 0:
        return np.zeros((len(x), 4)) + np.array([0, 1, 0, 0])
    line = np.interp(middle[:, 0], eye.contour[[0, 3], 0], eye.contour[[0, 3], 1])
    wrong_side = np.where(up * (middle[:, 1] - line) < 0, 1.0, 0.0)
    cost = np.abs(middle[None, :, 0] - x[:, None]) + wrong_side
    cost = cost + 1.5 * np.abs(eye.opening.at(middle) - 0.0004)
    face = margin[np.argmin(cost, axis=1)]
    third = np.full(len(x), 1 / 3)
    return np.stack([face, third, third, third], axis=-1)


def _lash_curves(
    body: _Body,
    eye: surfaces.Eye,
    roots: Float[np.ndarray, "k 4"],
    reach: Float[np.ndarray, " k"],
    x: Float[np.ndarray, " k"],
    up: float,
) -> Float[np.ndarray, "k p 3"]:
    """Forwards first, then up (or down), fanned away from the middle of the eye."""
    start = body.at(roots, body.vertices)
    # One face bears several lashes: set them apart along the lid.
    start = start + (x - start[:, 0])[:, None] * np.array([0.7, 0.0, 0.0])
    middle = 0.5 * (eye.contour[0, 0] + eye.contour[3, 0])
    half = 0.5 * abs(eye.contour[3, 0] - eye.contour[0, 0])
    fan = 0.75 * (x - middle) / half
    t = np.linspace(0.0, 1.0, POINTS)[None, :, None]
    ahead = np.stack([0.6 * fan, np.full(len(x), -0.1 * up), np.ones(len(x))], -1)
    lift = np.stack([0.5 * fan, np.full(len(x), 0.95 * up), 0.1 * np.ones(len(x))], -1)
    curve = (t - 0.45 * t**2) * _unit(ahead)[:, None] + 0.75 * t**2 * lift[:, None]
    return start[:, None] + reach[:, None, None] * curve


def _unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
