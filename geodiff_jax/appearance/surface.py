"""Where colour is put: points of the mean head at rest, with all that a painter asks.

The same painter serves texels and vertices, so a texture and vertex colours agree.
Everything is measured on the template, so a look does not depend on identity.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.spatial
import skimage.draw
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax.appearance import lighting
from geodiff_jax.geometry import mesh
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer

PARTS = (
    "left_eyeball",
    "right_eyeball",
    "mouth_interior",
    "upper_teeth",
    "lower_teeth",
    "tongue",
)


@dataclasses.dataclass(frozen=True)
class FrontalField:
    """A signed distance over the frontal (x, y) plane: metres, negative inside."""

    values: Float[np.ndarray, "h w"]
    corner: Float[np.ndarray, "2"]
    """x and y of the centre of the first cell; y falls with the row."""
    pitch: float

    def at(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Distance below (x, y) of each point; the edge's value beyond the edge."""
        columns = (points[:, 0] - self.corner[0]) / self.pitch
        rows = (self.corner[1] - points[:, 1]) / self.pitch
        return scipy.ndimage.map_coordinates(
            self.values, np.stack([rows, columns]), order=1, mode="nearest"
        )


@dataclasses.dataclass(frozen=True)
class Eye:
    """One eye of the mean head, looking straight ahead."""

    centre: Float[np.ndarray, "3"]
    gaze: Float[np.ndarray, "3"]
    """Unit vector from the centre to the middle of the iris."""
    radius: float
    opening: FrontalField
    """The part of the eyeball seen from the front is inside."""
    contour: Float[np.ndarray, "6 3"]
    """Landmarks: the corner to the subject's right, then clockwise as seen."""


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Marks of the mean head that features are drawn from."""

    marks: Float[np.ndarray, "68 3"]
    eyes: tuple[Eye, Eye]
    """Left, right."""
    lips: FrontalField
    slit: FrontalField
    """The gap between the lips."""

    @property
    def unit(self) -> float:
        """Distance of the outer eye corners, metres: scales every feature."""
        right, left = landmarks.OUTER_EYE_CORNERS
        return float(np.linalg.norm(self.marks[left] - self.marks[right]))


@dataclasses.dataclass(frozen=True)
class Surface:
    """Points to be coloured."""

    position: Float[np.ndarray, "n 3"]
    """On the template, metres."""
    normal: Float[np.ndarray, "n 3"]
    weights: dict[str, Float[np.ndarray, " n"]]
    """Membership in each region, in [0, 1], blurred across its border."""
    parts: dict[str, Bool[np.ndarray, " n"]]
    """Membership in each of `PARTS`, sharp; "skin" is the rest."""
    hairline: Float[np.ndarray, " n"]
    """Metres inside the scalp's border, negative outside it."""
    openness: Float[np.ndarray, " n"]
    """Share of the sky that the point sees, in [0, 1]."""

    def select(self, chosen: Bool[np.ndarray, " n"]) -> "Surface":
        """The chosen points alone."""
        return Surface(
            self.position[chosen],
            self.normal[chosen],
            {name: value[chosen] for name, value in self.weights.items()},
            {name: value[chosen] for name, value in self.parts.items()},
            self.hairline[chosen],
            self.openness[chosen],
        )


def of_vertices(head: head_model.HeadModel) -> Surface:
    """One point per vertex."""
    template, faces = jnp.asarray(head.template), jnp.asarray(head.faces)
    position = np.asarray(template)
    parts = {name: np.asarray(head.regions[name]) for name in PARTS}
    skin = ~np.any(list(parts.values()), axis=0)
    edges = mesh.edges(np.asarray(head.faces))
    normal = np.asarray(mesh.vertex_normals(template, faces))
    weights = np.stack([np.asarray(head.regions[n]) for n in head_model.REGIONS], -1)
    blurred = _blur(weights.astype(np.float32), edges, iterations=2)
    hairline = _hairline(position, skin, np.asarray(head.regions["scalp"]))
    hairline = _blur(hairline[:, None], edges, iterations=3)[:, 0]
    openness = lighting.openness(template, faces, template, jnp.asarray(normal))
    openness = _blur(np.asarray(openness)[:, None], edges, iterations=1)[:, 0]
    return Surface(
        position,
        normal,
        {name: blurred[:, i] for i, name in enumerate(head_model.REGIONS)},
        {**parts, "skin": skin},
        hairline,
        np.clip(openness, 0.0, 1.0),
    )


def of_texels(
    head: head_model.HeadModel, *, size: int
) -> tuple[Surface, Bool[np.ndarray, "h w"]]:
    """The covered texels of the chart in row order, and which texels those are."""
    uv, uv_faces = jnp.asarray(head.uv), jnp.asarray(head.uv_faces)
    fragments = _rasterize_chart(uv, uv_faces, size)
    face = np.asarray(fragments.face)
    covered = face >= 0
    corners = np.asarray(head.faces)[face[covered]]
    weights = np.asarray(fragments.barycentric)[covered].astype(np.float32)
    vertices = of_vertices(head)
    names = list(vertices.weights)
    table = np.concatenate(
        [
            vertices.position,
            vertices.normal,
            vertices.hairline[:, None],
            vertices.openness[:, None],
            np.stack([vertices.weights[name] for name in names], -1),
        ],
        axis=1,
    ).astype(np.float32)
    values = np.einsum("nkc,nk->nc", table[corners], weights)
    parts = {n: np.all(m[corners], axis=1) for n, m in vertices.parts.items()}
    parts["skin"] = np.all([~parts[name] for name in PARTS], axis=0)
    normal = values[:, 3:6]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    soft = {name: values[:, 8 + i] for i, name in enumerate(names)}
    surface = Surface(values[:, :3], normal, soft, parts, values[:, 6], values[:, 7])
    return surface, covered


@functools.partial(jax.jit, static_argnums=2)
def _rasterize_chart(
    uv: Float[Array, "u 2"], uv_faces: Int[Array, "f 3"], size: int
) -> mesh_rasterizer.Fragments:
    points = jnp.stack(
        [uv[:, 0] * size, (1.0 - uv[:, 1]) * size, jnp.ones(len(uv))], -1
    )
    return mesh_rasterizer.rasterize_pixels(points, uv_faces, width=size, height=size)


def anatomy(head: head_model.HeadModel) -> Anatomy:
    """The marks of a head's template."""
    template = jnp.asarray(head.template)
    marks = np.asarray(landmarks.positions(head, template))
    irises = np.asarray(landmarks.iris_positions(head, template))
    # iBUG numbers the subject's right eye first.
    contours = (marks[42:48], marks[36:42])
    eyes = tuple(
        _eye(head, f"{side}_eyeball", joint, irises[i], contours[i])
        for i, (side, joint) in enumerate((("left", 3), ("right", 4)))
    )
    return Anatomy(
        marks, (eyes[0], eyes[1]), _enclosed(marks[48:60]), _enclosed(marks[60:68])
    )


def _eye(
    head: head_model.HeadModel,
    region: str,
    joint: int,
    iris: Float[np.ndarray, "3"],
    contour: Float[np.ndarray, "6 3"],
) -> Eye:
    centre = np.asarray(head.joint_template)[joint]
    eyeball = np.asarray(head.template)[np.asarray(head.regions[region])]
    radius = float(np.median(np.linalg.norm(eyeball - centre, axis=1)))
    gaze = (iris - centre) / np.linalg.norm(iris - centre)
    return Eye(centre, gaze, radius, _opening(head, region, contour), contour)


def _opening(
    head: head_model.HeadModel,
    region: str,
    contour: Float[np.ndarray, "6 3"],
    *,
    pitch: float = 0.0002,
) -> FrontalField:
    """What is seen of an eyeball between the lids, from straight ahead."""
    low = contour[:, :2].min(axis=0) - 0.012
    high = contour[:, :2].max(axis=0) + 0.012
    width, height = np.ceil((high - low) / pitch).astype(int)
    template = jnp.asarray(head.template)
    points = jnp.stack(
        [
            (template[:, 0] - low[0]) / pitch,
            (high[1] - template[:, 1]) / pitch,
            10.0 - template[:, 2],
        ],
        axis=-1,
    )
    fragments = mesh_rasterizer.rasterize_pixels(
        points, jnp.asarray(head.faces), width=int(width), height=int(height)
    )
    face = np.asarray(fragments.face)
    seen = head_model.face_region(head, region)[face] & (face >= 0)
    corner = np.array([low[0] + pitch / 2, high[1] - pitch / 2])
    return FrontalField(_signed_distance(seen) * pitch, corner, pitch)


def _enclosed(
    contour: Float[np.ndarray, "k 3"], *, pitch: float = 0.0002
) -> FrontalField:
    """Inside a smooth closed curve through the points."""
    curve = closed_spline(contour[:, :2], samples=16)
    low, high = curve.min(axis=0) - 0.02, curve.max(axis=0) + 0.02
    width, height = np.ceil((high - low) / pitch).astype(int)
    rows, columns = (high[1] - curve[:, 1]) / pitch, (curve[:, 0] - low[0]) / pitch
    inside = skimage.draw.polygon2mask((height, width), np.stack([rows, columns], -1))
    if not inside.any():  # Closed lips leave no gap: the curve itself is the inside.
        inside[rows.astype(int), columns.astype(int)] = True
    return FrontalField(
        _signed_distance(inside) * pitch, np.array([low[0], high[1]]), pitch
    )


def closed_spline(
    points: Float[np.ndarray, "k c"], *, samples: int
) -> Float[np.ndarray, "m c"]:
    """A closed curve through the points (centripetal effect by uniform Catmull-Rom)."""
    before, after = np.roll(points, 1, 0), np.roll(points, -1, 0)
    beyond = np.roll(points, -2, 0)
    t = np.linspace(0.0, 1.0, samples, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (before, points, after, beyond))
    curve = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    return curve.reshape(-1, points.shape[1])


def _signed_distance(inside: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """In cells, negative inside."""
    outside, within = (
        np.asarray(scipy.ndimage.distance_transform_edt(mask), np.float32)
        for mask in (~inside, inside)
    )
    return outside - within


def _hairline(
    position: Float[np.ndarray, "v 3"],
    skin: Bool[np.ndarray, " v"],
    scalp: Bool[np.ndarray, " v"],
) -> Float[np.ndarray, " v"]:
    distance = np.full(len(position), -0.1, np.float32)
    if not (scalp.any() and (skin & ~scalp).any()):
        return distance
    to_bare = scipy.spatial.cKDTree(position[skin & ~scalp]).query(position[scalp])[0]
    bare = skin & ~scalp
    distance[bare] = -scipy.spatial.cKDTree(position[scalp]).query(position[bare])[0]
    distance[scalp] = to_bare
    return distance


def _blur(
    values: Float[np.ndarray, "v c"], edges: Int[np.ndarray, "e 2"], *, iterations: int
) -> Float[np.ndarray, "v c"]:
    anchors = jnp.full(len(values), 0.4)
    smoothed = mesh.smooth(
        jnp.asarray(values), jnp.asarray(edges), anchors=anchors, iterations=iterations
    )
    return np.asarray(smoothed)
