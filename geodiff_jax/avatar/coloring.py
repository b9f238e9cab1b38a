"""Colours for the whole head from one photo: seen, mirrored, then diffused.

Runs once per avatar, in numpy. All rules here are ours; 001-004 generate the unseen
side instead of guessing it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from scipy import ndimage, spatial

from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer

FOLD = np.array([1.0, 1.0, 0.2])
"""Hidden hair looks like the seen hair that is nearest in this scaled frontal view."""
INTERIOR_REGIONS = ("mouth_interior", "upper_teeth", "lower_teeth", "tongue")


@dataclasses.dataclass(frozen=True)
class View:
    """One photo of a posed head, with what hides what."""

    camera: Camera
    image: Float[np.ndarray, "h w 3"]
    """The foreground's own colours, continued beyond its outline."""
    matte: Float[np.ndarray, "h w"]
    """Foreground, eroded so that no background colour passes for skin."""
    erosion: int
    """By how many pixels."""
    depth: Float[np.ndarray, "h w"]
    """Nearest surface, metres; inf where there is none."""


@dataclasses.dataclass(frozen=True)
class SurfacePoints:
    """Points on the head, with what is needed to look them up in a photo."""

    face: Int[np.ndarray, " n"]
    barycentrics: Float[np.ndarray, "n 3"]
    position: Float[np.ndarray, "n 3"]
    """World, metres."""
    normal: Float[np.ndarray, "n 3"]
    rest: Float[np.ndarray, "n 3"]
    """On the template, head frame: symmetric people have symmetric rest points."""
    rest_normal: Float[np.ndarray, "n 3"]


def make_view(
    camera: Camera,
    image: Float[np.ndarray, "h w 3"],
    matte: Float[np.ndarray, "h w"],
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[Array, "f 3"],
    *,
    erosion: int = 2,
) -> View:
    """Rasterises the surface once, to know what the photo can show."""
    posed = jnp.asarray(vertices)
    depth = np.asarray(mesh_rasterizer.rasterize(posed, faces, camera).depth)
    solid = ndimage.minimum_filter(matte, 2 * erosion + 1)
    return View(camera, bleed(image, solid), solid, erosion, depth)


def bleed(
    image: Float[np.ndarray, "h w 3"], solid: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Carries the colours of solid pixels outwards, so that no background mixes in."""
    if not (solid > 0.95).any():
        return image
    row, column = ndimage.distance_transform_edt(
        solid <= 0.95, return_distances=False, return_indices=True
    )
    return image[row, column]


def surface_points(
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    face: Int[np.ndarray, " n"],
    barycentrics: Float[np.ndarray, "n 3"],
) -> SurfacePoints:
    """Positions and normals of (face, barycentric) points, posed and at rest."""
    faces = np.asarray(head.faces)
    weights = barycentrics[:, :, None]

    def at(attributes: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "n 3"]:
        return (attributes[faces[face]] * weights).sum(axis=1)

    template = np.asarray(head.template)
    normals = np.asarray(mesh.vertex_normals(jnp.asarray(vertices), head.faces))
    rest_normals = np.asarray(mesh.vertex_normals(head.template, head.faces))
    return SurfacePoints(
        face, barycentrics, at(vertices), at(normals), at(template), at(rest_normals)
    )


def vertex_points(
    head: head_model.HeadModel, vertices: Float[np.ndarray, "v 3"]
) -> SurfacePoints:
    """The vertices themselves; their `face` is one of those around them."""
    faces = np.asarray(head.faces)
    face = np.zeros(len(vertices), int)
    face[faces] = np.arange(len(faces))[:, None]
    corner = faces[face] == np.arange(len(vertices))[:, None]
    return surface_points(head, vertices, face, corner.astype(np.float64))


def look_up(
    view: View,
    position: Float[np.ndarray, "n 3"],
    normal: Float[np.ndarray, "n 3"],
    *,
    tolerance: float = 0.003,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """(colour, confidence in [0, 1]) that the photo gives to points in the world.

    Confidence falls to 0 at grazing angles, behind nearer surfaces (by more than
    `tolerance` metres) and outside the matte.
    """
    pixels, depth = (np.asarray(x) for x in view.camera.project(jnp.asarray(position)))
    towards = np.asarray(view.camera.position) - position
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    facing = np.sum(normal * towards, axis=1)
    nearest = _sample(view.depth, pixels, order=0)
    in_front = (depth > 0) & (depth < nearest + tolerance)
    inside = np.all(
        (pixels > 1) & (pixels < [view.camera.width - 1, view.camera.height - 1]),
        axis=1,
    )
    confidence = _smoothstep(facing, 0.1, 0.4) * (in_front & inside)
    confidence *= _smoothstep(_sample(view.matte, pixels, order=1), 0.5, 0.95)
    return sample_colors(view.image, pixels), confidence


def sample_colors(
    image: Float[np.ndarray, "h w 3"], pixels: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 3"]:
    """Bilinear samples at pixel coordinates, clamped to the frame."""
    return np.stack([_sample(image[..., c], pixels, order=1) for c in range(3)], axis=1)


def mirror_lookup(points: SurfacePoints) -> Int[np.ndarray, " n"]:
    """For each point, the one nearest to its reflection in the plane x = 0."""
    flip = np.array([-1.0, 1.0, 1.0])
    # A normal's turn counts like 6 mm of distance: keeps upper lip from lower lip.
    own = np.concatenate([points.rest, 0.006 * points.rest_normal], axis=1)
    reflected = np.concatenate(
        [points.rest * flip, 0.006 * points.rest_normal * flip], axis=1
    )
    return spatial.cKDTree(own).query(reflected)[1]


def stretch_confidence(
    head: head_model.HeadModel, params: head_model.HeadParams
) -> Float[np.ndarray, " f"]:
    """How much of each face's largest area under any expression the photo shows.

    A lid folded above an open eye is a few pixels of lash: not what covers the eye
    when it closes. 1 for faces at their largest, 0 for those that unfold 6-fold.
    """
    rest = head_model.canonical(params)
    strengths = jnp.eye(len(head.expression_names), dtype=rest.expression.dtype)

    @jax.jit
    def areas(head: head_model.HeadModel) -> Float[Array, "e f"]:
        def of(strength: Float[Array, " e"]) -> Float[Array, " f"]:
            posed = head_model.head_vertices(head, rest.replace(expression=strength))
            return mesh.face_areas(posed, head.faces)

        return jax.lax.map(of, strengths)

    now = np.asarray(
        mesh.face_areas(head_model.head_vertices(head, params), head.faces)
    )
    largest = np.maximum(now, np.asarray(areas(head)).max(axis=0))
    return _smoothstep(now / np.maximum(largest, 1e-12), 0.16, 0.5)


def complete_vertices(
    head: head_model.HeadModel,
    observed: Float[np.ndarray, "v 3"],
    confidence: Float[np.ndarray, " v"],
    default: Float[np.ndarray, "v 3"],
) -> Float[np.ndarray, "v 3"]:
    """Vertex colours everywhere: observed, then their mirror image, then diffusion.

    Skin and scalp diffuse within themselves; lips, eyes and the mouth's interior keep
    `default`, in the light of the photo.
    """
    faces = np.asarray(head.faces)
    start = _in_photo_light(head, observed, confidence, default)
    template = np.asarray(head.template)
    twin = mirror_lookup(vertex_points(head, template))
    mirrored = 0.7 * confidence[twin] * (1.0 - confidence)
    anchors = confidence + mirrored
    seen = confidence[:, None] * observed + mirrored[:, None] * observed[twin]
    seen = seen / np.maximum(anchors, 1e-6)[:, None]
    blended = anchors[:, None] * seen + (1.0 - anchors[:, None]) * start

    group = _diffusion_group(head)
    edges = mesh.edges(faces)
    same = (group[edges[:, 0]] == group[edges[:, 1]]) & (group[edges[:, 0]] >= 0)
    result = blended
    for index in (0, 1):
        members = group == index
        if anchors[members].max(initial=0.0) < 0.5:
            continue
        # The hairline is where ears and forehead get into the hair's pixels.
        trust = anchors * inland(head, template) if index == 1 else anchors
        trust = trust if (trust[members] > 0.5).sum() > 20 else anchors
        known = (trust > 0.5) & members
        place = template * FOLD if index == 1 else template
        nearest = spatial.cKDTree(place[known]).query(place)[1]
        filled = seen[known][nearest]
        diffused = np.asarray(
            mesh.smooth(
                jnp.asarray(filled, jnp.float32),
                jnp.asarray(edges[same]),
                anchors=jnp.asarray(np.where(known, trust, 0.0), jnp.float32),
                iterations=150,
            )
        )
        mixed = trust[:, None] * seen + (1.0 - trust[:, None]) * diffused
        result = np.where(members[:, None], mixed, result)
    return np.clip(result, 0.0, 1.0)


def inland(
    head: head_model.HeadModel,
    rest: Float[np.ndarray, "n 3"],
    *,
    margin: float = 0.012,
) -> Bool[np.ndarray, " n"]:
    """Whether points of the scalp lie further than `margin` metres from bare skin."""
    skin = np.asarray(head.template)[_diffusion_group(head) == 0]
    return spatial.cKDTree(skin).query(rest)[0] > margin


def resembles(
    colors: Float[np.ndarray, "n 3"],
    samples: Float[np.ndarray, "m 3"],
    *,
    darkest: float = 0.15,
    lightest: float = 2.0,
    tint: float = 0.12,
) -> Bool[np.ndarray, " n"]:
    """Whether colours are those of the samples, in shade or light.

    `darkest` and `lightest` bound the brightness over that of the samples' median,
    `tint` the distance of what is left when brightness is divided out.
    """
    usual = np.median(samples, axis=0)
    brightness = colors.mean(axis=1)
    ratio = brightness / max(usual.mean(), 1e-3)
    tints = colors / np.maximum(brightness, 1e-3)[:, None] / 3.0
    far = np.linalg.norm(tints - usual / max(usual.sum(), 3e-3), axis=1)
    return (ratio > darkest) & (ratio < lightest) & (far < tint)


def hidden_hair(
    key: Key[Array, ""],
    head: head_model.HeadModel,
    points: SurfacePoints,
    observed: Float[np.ndarray, "n 3"],
    confidence: Float[np.ndarray, " n"],
    *,
    neighbours: int = 96,
    contrast: float = 0.6,
    darkest: float = 0.6,
) -> Float[np.ndarray, "n 3"]:
    """Colours of hidden hair: the seen hair, folded over to the back of the head.

    Each hidden point takes after one of the seen ones that are nearest in the frontal
    projection, drawn at random: hair keeps its drawing, at `contrast` of its strength,
    and no single strand spreads over what is far from any other. Turned away from the
    light it is darker, down to `darkest`.
    """
    clear = confidence > 0.8
    sure = clear & inland(head, points.rest)
    if sure.sum() < neighbours:
        return observed
    # Beside ears and neck only what is as coloured as the hair above.
    sure |= clear & resembles(observed, observed[sure], tint=0.04)
    seen = np.flatnonzero(sure)
    frontal = points.rest * FOLD
    near = seen[spatial.cKDTree(frontal[seen]).query(frontal, k=neighbours)[1]]
    draw = np.asarray(jax.random.randint(key, (len(near), 1), 0, neighbours))
    drawn = observed[np.take_along_axis(near, draw, axis=1)[:, 0]]
    usual = observed[near].mean(axis=1)
    light = _diffuse_light(points.normal, observed.mean(axis=1), sure)
    share = light / np.maximum(light[near].mean(axis=1), 1e-3)
    hidden = np.clip(share, darkest, 1.0)[:, None] * (
        usual + contrast * (drawn - usual)
    )
    weight = np.clip(2.0 * confidence, 0.0, 1.0)[:, None]
    return weight * observed + (1.0 - weight) * hidden


def _diffuse_light(
    normals: Float[np.ndarray, "n 3"],
    brightness: Float[np.ndarray, " n"],
    known: Bool[np.ndarray, " n"],
    *,
    damping: float = 0.02,
) -> Float[np.ndarray, " n"]:
    """Brightness as constant plus cosine (spherical harmonics of degree 1), fitted
    by least squares where it is known; `damping` holds the cosine back."""
    basis = np.concatenate([normals, np.ones((len(normals), 1))], axis=1)
    seen = basis[known]
    gram = seen.T @ seen + damping * len(seen) * np.diag([1.0, 1.0, 1.0, 0.0])
    return basis @ np.linalg.solve(gram, seen.T @ brightness[known])


def eye_colors(
    head: head_model.HeadModel,
    points: SurfacePoints,
    observed: Float[np.ndarray, "n 3"],
    confidence: Float[np.ndarray, " n"],
    fallback: Float[np.ndarray, "n 3"],
    *,
    rings: int = 48,
) -> Float[np.ndarray, "n 3"]:
    """Completes the eyes by their rotational symmetry about the pupil.

    Each hidden point of an eyeball takes the median colour seen at its angle from the
    pupil, on either eye; `fallback` where neither eye shows that angle.
    """
    result = fallback.copy()
    eyeballs = (("left_eyeball", 0, 3), ("right_eyeball", 1, 4))
    angles = np.full(len(points.face), np.inf)
    marks = head.irises
    pupils = np.asarray(
        mesh.interpolate(head.template, head.faces, marks.faces, marks.barycentrics)
    )
    for region, side, joint in eyeballs:
        on_ball = head_model.face_region(head, region)[points.face]
        centre = np.asarray(head.joint_template)[joint]
        axis = pupils[side] - centre
        ray = points.rest[on_ball] - centre
        cosine = ray @ axis / np.linalg.norm(ray, axis=1) / np.linalg.norm(axis)
        angles[on_ball] = np.arccos(np.clip(cosine, -1.0, 1.0))
    bins = np.minimum(angles / np.pi * 2.0, 1.0) * (rings - 1)
    bins = np.where(np.isfinite(angles), bins, -1).astype(int)
    for ring in range(rings):
        members = bins == ring
        seen = members & (confidence > 0.4)
        if seen.sum() >= 4:
            result[members] = np.median(observed[seen], axis=0)
    return result


def _diffusion_group(head: head_model.HeadModel) -> Int[np.ndarray, " v"]:
    """0 for skin, 1 for scalp, -1 for all that keeps its default colours."""
    group = np.zeros(head.num_vertices, int)
    group[np.asarray(head.regions["scalp"])] = 1
    for name in (*INTERIOR_REGIONS, "left_eyeball", "right_eyeball", "lips"):
        group[np.asarray(head.regions[name])] = -1
    return group


def _in_photo_light(
    head: head_model.HeadModel,
    observed: Float[np.ndarray, "v 3"],
    confidence: Float[np.ndarray, " v"],
    default: Float[np.ndarray, "v 3"],
) -> Float[np.ndarray, "v 3"]:
    """Default colours, as bright and as colourful as the photo's skin suggests.

    Brightness by half, in logarithms: a dark complexion is not a dark light. Saturation
    in proportion, so that a grey photo gets grey teeth.
    """
    face: Bool[np.ndarray, " v"] = np.asarray(head.regions["face"])
    seen = face & (confidence > 0.6)
    if seen.sum() < 20:
        return default
    skin, usual = np.median(observed[seen], axis=0), np.median(default[seen], axis=0)
    brightness = np.clip(np.sqrt(skin.mean() / usual.mean()), 0.5, 1.25)
    saturation = np.clip(np.ptp(skin) / max(np.ptp(usual), 1e-3), 0.0, 1.0)
    grey = default.mean(axis=1, keepdims=True)
    return np.clip(brightness * (grey + saturation * (default - grey)), 0.0, 1.0)


def _sample(
    image: Float[np.ndarray, "h w"], pixels: Float[np.ndarray, "n 2"], *, order: int
) -> Float[np.ndarray, " n"]:
    coordinates = pixels[:, ::-1].T - 0.5
    return ndimage.map_coordinates(image, coordinates, order=order, mode="nearest")


def _smoothstep(
    values: Float[np.ndarray, " n"], low: float, high: float
) -> Float[np.ndarray, " n"]:
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
