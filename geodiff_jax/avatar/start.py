"""The avatar before optimisation: Gaussians on the fitted head, photo-coloured.

Four layers. An underpainting of one opaque Gaussian per triangle closes every hole
under any expression; detail lies on the skin where the photo shows it; hair stands off
the scalp as far as the outline says. Everything here is ours; the papers start from
grey Gaussians and many generated views.
"""

import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from scipy import ndimage

from geodiff_jax import numerics
from geodiff_jax.avatar import coloring, outline
from geodiff_jax.avatar.model import HAIR, SKIN, Avatar
from geodiff_jax.gaussians import binding as gaussian_binding
from geodiff_jax.gaussians import spherical_harmonics
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Sizes of the layers; all values ours."""

    skin_count: int = 70_000
    hair_count: int = 16_000
    outline_count: int = 12_000
    detail_regions: tuple[str, ...] = (
        "lips",
        "left_eye_region",
        "right_eye_region",
        "left_eyeball",
        "right_eyeball",
    )
    detail_density: float = 3.0
    """Gaussians per area in `detail_regions`, relative to the rest of the face."""
    back_density: float = 0.12
    """The same where the photo sees nothing."""
    roll: float = 0.02
    """Metres: largest depth, to either side, of what lies beside the outline."""


@dataclasses.dataclass(frozen=True)
class _Layer:
    """World-space Gaussians with the faces they will ride on."""

    face: Int[np.ndarray, " n"]
    means: Float[np.ndarray, "n 3"]
    frames: Float[np.ndarray, "n 3 3"]
    """Columns are the Gaussians' axes in the world."""
    scales: Float[np.ndarray, "n 3"]
    """Standard deviations, metres."""
    opacity: float
    colors: Float[np.ndarray, "n 3"]
    kind: int

    def __getitem__(self, chosen: Bool[np.ndarray, " n"]) -> "_Layer":
        columns = ("face", "means", "frames", "scales", "colors")
        kept = {name: getattr(self, name)[chosen] for name in columns}
        return dataclasses.replace(self, **kept)


def start_avatar(
    key: Key[Array, ""],
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    image: Float[np.ndarray, "h w 3"],
    matte: Float[np.ndarray, "h w"],
    region: Bool[np.ndarray, "h w"],
    default_colors: Float[np.ndarray, "v 3"],
    *,
    config: StartConfig | None = None,
) -> Avatar:
    """An avatar that already resembles its photo, and is closed from every side.

    It ends at the neck's lower ring: what a head has of shoulders is not dressed.
    `region` bounds what counts as hair; `default_colors` are linear guesses for what
    no photo shows (teeth, the mouth's interior, the back of the eyes).
    """
    config = config or StartConfig()
    skin_key, hair_key, outline_key = jax.random.split(key, 3)
    faces = np.asarray(head.faces)
    vertices = np.asarray(head_model.vertices(head, params))
    thickness = outline.hair_thickness(head, vertices, camera, image, matte)
    normals = np.asarray(mesh.vertex_normals(jnp.asarray(vertices), head.faces))
    shell = vertices + thickness[:, None] * normals
    skull = vertices + np.minimum(thickness, 0.0)[:, None] * normals

    view = coloring.make_view(camera, image, matte, shell, head.faces)
    bare = coloring.make_view(camera, image, matte, skull, head.faces)
    unfolded = coloring.stretch_confidence(head, params)
    vertex_colors, vertex_confidence = _vertex_colors(
        head, skull, bare, unfolded, default_colors
    )
    layers = [
        _underpainting(faces, skull, vertex_colors)[head_model.own_faces(head)],
        _skin(
            skin_key,
            head,
            skull,
            bare,
            unfolded,
            vertex_colors,
            vertex_confidence,
            config,
        ),
    ]
    layers += _hair(hair_key, head, skull, shell, view, thickness, config)
    rest = _outline(outline_key, head, shell, view, region, config)
    if rest is not None:
        layers.append(rest)
    return _assemble(head, params, vertices, [_carved(x, head, view) for x in layers])


def _carved(
    layer: _Layer, head: head_model.HeadModel, view: coloring.View, *, slack: float = 2
) -> _Layer:
    """Without what would stand before the photo's background; the face stays whole.

    Centres may lie `slack` pixels outside: soft edges are for the optimisation to
    settle. What the photo does not show it cannot settle: that stays inside.
    """
    grown = ndimage.maximum_filter(view.matte, 2 * view.erosion + 1) > 0.5
    if grown.all():
        return layer
    within = ndimage.distance_transform_edt(grown)
    within -= ndimage.distance_transform_edt(~grown)
    pixels, depth = (
        np.asarray(x) for x in view.camera.project(jnp.asarray(layer.means))
    )
    cell = np.floor(pixels).astype(int)
    in_frame = np.all((cell >= 0) & (cell < view.matte.shape[::-1]), axis=1)
    in_frame &= depth > 0
    column, row = np.where(in_frame[:, None], cell, 0).T
    hidden = depth > view.depth[row, column] + 0.003
    radius = 2.0 * np.median(layer.scales, axis=1) / np.maximum(depth, 1e-6)
    margin = np.where(hidden, radius * float(view.camera.intrinsics[0]), -slack)
    keep = ~in_frame | (within[row, column] >= margin)
    keep |= head_model.face_region(head, "face")[layer.face]
    return layer[keep]


def _vertex_colors(
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    view: coloring.View,
    unfolded: Float[np.ndarray, " f"],
    default_colors: Float[np.ndarray, "v 3"],
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, " v"]]:
    normals = np.asarray(mesh.vertex_normals(jnp.asarray(vertices), head.faces))
    observed, confidence = coloring.look_up(view, vertices, normals)
    faces = np.asarray(head.faces)
    worst = np.ones(len(vertices))
    np.minimum.at(worst, faces.ravel(), np.repeat(unfolded, 3))
    confidence = confidence * worst
    completed = coloring.complete_vertices(head, observed, confidence, default_colors)
    return completed, confidence


def _underpainting(
    faces: Int[np.ndarray, "f 3"],
    vertices: Float[np.ndarray, "v 3"],
    vertex_colors: Float[np.ndarray, "v 3"],
    *,
    overlap: float = 1.5,
    sink: float = 0.12,
) -> _Layer:
    """One opaque Gaussian per triangle, with the triangle's own second moments.

    `overlap` scales them until neighbours close the seams; `sink`, in triangle scales,
    keeps them under the detail.
    """
    corners = vertices[faces]
    centre = corners.mean(axis=1)
    spread = corners - centre[:, None]
    covariance = np.einsum("fki,fkj->fij", spread, spread) / 12.0
    values, frames = np.linalg.eigh(covariance)
    frames[np.linalg.det(frames) < 0, :, 0] *= -1.0
    scales = overlap * np.sqrt(np.maximum(values, 0.0))
    size = np.sqrt(np.maximum(values[:, 1] * values[:, 2], 1e-16)) ** 0.5
    scales = np.maximum(scales, 0.25 * size[:, None])
    scales[:, 0] = 0.1 * size
    normal = np.cross(spread[:, 1] - spread[:, 0], spread[:, 2] - spread[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return _Layer(
        np.arange(len(faces)),
        centre - sink * size[:, None] * normal,
        frames,
        np.minimum(scales, 0.0045),
        0.99,
        vertex_colors[faces].mean(axis=1),
        SKIN,
    )


def _skin(
    key: Key[Array, ""],
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    view: coloring.View,
    unfolded: Float[np.ndarray, " f"],
    vertex_colors: Float[np.ndarray, "v 3"],
    vertex_confidence: Float[np.ndarray, " v"],
    config: StartConfig,
) -> _Layer:
    """Detail on the surface: dense where the photo sees, densest on eyes and lips."""
    faces = np.asarray(head.faces)
    seen = vertex_confidence[faces].mean(axis=1)
    density = config.back_density + (1.0 - config.back_density) * np.minimum(
        4.0 * seen, 1.0
    )
    detailed = np.any(
        [head_model.face_region(head, name) for name in config.detail_regions], axis=0
    )
    density = np.where(
        detailed & (seen > 0.05), density * config.detail_density, density
    )
    density = density * head_model.own_faces(head)
    areas = np.asarray(mesh.face_areas(jnp.asarray(vertices), head.faces))
    face, barycentrics = mesh.sample_surface(
        key, areas * density, count=config.skin_count
    )
    points = coloring.surface_points(head, vertices, face, barycentrics)
    observed, confidence = coloring.look_up(view, points.position, points.normal)
    confidence = confidence * unfolded[face]
    fill = (vertex_colors[faces[face]] * barycentrics[:, :, None]).sum(axis=1)
    fill = coloring.eye_colors(head, points, observed, confidence, fill)
    twin = coloring.mirror_lookup(points)
    mirrored = 0.8 * confidence[twin, None]
    unseen = mirrored * observed[twin] + (1.0 - mirrored) * fill
    colors = confidence[:, None] * observed + (1.0 - confidence[:, None]) * unseen

    per_face = np.bincount(face, minlength=len(faces))
    spacing = np.sqrt(areas[face] / np.maximum(per_face[face], 1))
    # Where the draw left one Gaussian for several triangles, its share is larger.
    share = np.sqrt(np.sum(areas * density) / config.skin_count / density[face])
    sigma = 0.62 * np.maximum(spacing, share)
    frames = _frames_with_normal(points.normal)
    scales = sigma[:, None] * np.array([1.0, 1.0, 0.15])
    return _Layer(face, points.position, frames, scales, 0.9, colors, SKIN)


def _hair(
    key: Key[Array, ""],
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    shell: Float[np.ndarray, "v 3"],
    view: coloring.View,
    thickness: Float[np.ndarray, " v"],
    config: StartConfig,
) -> list[_Layer]:
    """A solid core below the hair's surface and looser strands; none on bald heads."""
    faces = np.asarray(head.faces)
    thick = thickness[faces].mean(axis=1)
    on_scalp = head_model.face_region(head, "scalp")
    # Below the scalp lies hair where it is thick enough to hang there.
    on_hair = np.where(on_scalp, thick > 0.0015, thick > 0.006)
    on_hair &= head_model.own_faces(head)
    if not on_hair.any():
        return []
    areas = np.asarray(mesh.face_areas(jnp.asarray(shell), head.faces)) * on_hair
    place_key, depth_key, color_key = jax.random.split(key, 3)
    face, barycentrics = mesh.sample_surface(place_key, areas, count=config.hair_count)
    points = coloring.surface_points(head, shell, face, barycentrics)
    observed, confidence = coloring.look_up(view, points.position, points.normal)
    colors = coloring.hidden_hair(color_key, head, points, observed, confidence)
    local = np.maximum((thickness[faces[face]] * barycentrics).sum(axis=1), 0.0)
    depth = np.asarray(jax.random.uniform(depth_key, (len(face),)))
    spacing = np.sqrt(areas.sum() / config.hair_count)
    # Loose strands reach from the surface into the core.
    sink = depth**2 * np.minimum(0.35 * local, 0.004)
    means = points.position - sink[:, None] * points.normal
    frames = _frames_with_normal(points.normal)
    scales = np.broadcast_to(
        spacing * np.array([0.75, 0.75, 0.4]), (len(face), 3)
    ).copy()
    strands = _Layer(face, means, frames, scales, 0.85, colors, HAIR)

    kept = np.clip(1.0 - 0.005 / np.maximum(thickness, 1e-4), 0.2, 0.9)
    inner = vertices + kept[:, None] * (shell - vertices)
    total = np.zeros((len(faces), 3))
    count = np.bincount(face, minlength=len(faces))
    np.add.at(total, face, colors)
    core_colors = total / np.maximum(count, 1)[:, None]
    bare = on_hair & (count == 0)
    core_colors[bare] = colors.mean(axis=0)
    core = _underpainting(faces, inner, np.zeros_like(vertices))
    core = dataclasses.replace(core, colors=core_colors, kind=HAIR)
    return [core[on_hair], strands]


def _outline(
    key: Key[Array, ""],
    head: head_model.HeadModel,
    shell: Float[np.ndarray, "v 3"],
    view: coloring.View,
    region: Bool[np.ndarray, "h w"],
    config: StartConfig,
) -> _Layer | None:
    """What the region holds beside head and hair: a roll about their outline.

    As thick as it is wide, since hair is; one photo cannot tell. Below the ears it is a
    sheet instead. Blobs are a little longer along the line of sight, so that the roll
    stays closed when it turns.
    """
    pixels, depth, reach, face = outline.uncovered(head, shell, view.camera, region)
    if len(pixels) < 20:
        return None
    low, depth, face = outline.hanging(
        head, shell, view.camera, pixels, depth, reach, face
    )
    choice_key, depth_key = jax.random.split(key)
    chosen = np.asarray(jax.random.permutation(choice_key, len(pixels)))
    chosen = chosen[: config.outline_count]
    share = np.sqrt(len(pixels) / len(chosen))
    pixels, face, depth, reach, low = (
        x[chosen] for x in (pixels, face, depth, reach, low)
    )
    spread = np.asarray(jax.random.uniform(depth_key, depth.shape, minval=-1, maxval=1))
    depth = depth + ~low * spread * np.minimum(0.7 * reach, config.roll)
    means = np.asarray(view.camera.unproject(jnp.asarray(pixels), jnp.asarray(depth)))
    sigma = 0.6 * share * depth / float(view.camera.intrinsics[0])
    along = means - np.asarray(view.camera.position)
    frames = _frames_with_normal(along / np.linalg.norm(along, axis=1, keepdims=True))
    scales = np.stack([sigma, sigma, 1.5 * sigma], axis=1)
    colors = coloring.sample_colors(view.image, pixels)
    return _Layer(face, means, frames, scales, 0.9, colors, HAIR)


def _frames_with_normal(
    normals: Float[np.ndarray, "n 3"],
) -> Float[np.ndarray, "n 3 3"]:
    """Right-handed frames whose third axis is the given unit normal."""
    helper = np.where(
        np.abs(normals[:, 1:2]) < 0.9, np.array([[0.0, 1.0, 0.0]]), [[1.0, 0.0, 0.0]]
    )
    first = np.cross(helper, normals)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    return np.stack([first, np.cross(normals, first), normals], axis=2)


def _assemble(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    vertices: Float[np.ndarray, "v 3"],
    layers: list[_Layer],
) -> Avatar:
    def joined(values: list[np.ndarray]) -> Float[Array, "..."]:
        return jnp.asarray(np.concatenate(values), jnp.float32)

    total = sum(len(layer.face) for layer in layers)
    opacity = np.concatenate([np.full(len(x.face), x.opacity) for x in layers])
    world = Gaussians(
        means=joined([x.means for x in layers]),
        quaternions=jaxlie.SO3.from_matrix(joined([x.frames for x in layers])).wxyz,
        log_scales=jnp.log(joined([np.maximum(x.scales, 1e-5) for x in layers])),
        opacity_logits=numerics.logit(jnp.asarray(opacity, jnp.float32)),
        sh=spherical_harmonics.from_color(joined([x.colors for x in layers]))[:, None],
        alive=jnp.ones(total, bool),
    )
    face = np.concatenate([x.face for x in layers]).astype(np.int32)
    bound = gaussian_binding.Binding(face=jnp.asarray(face))
    local = gaussian_binding.to_local(world, bound, jnp.asarray(vertices), head.faces)
    layer = np.concatenate([np.full(len(x.face), x.kind, np.int32) for x in layers])
    return Avatar(head, params, local, bound, jnp.asarray(layer))
