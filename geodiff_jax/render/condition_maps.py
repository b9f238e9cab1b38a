"""Condition maps: what one camera sees of a head, pixel by pixel.

Every function takes one frame and one camera; `jax.vmap` makes batches, and
`conditioning` has the sets that the papers use. One rasterisation serves any number of
maps. Whatever no face covers is zero, in every map.
"""

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax import numerics
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer
from geodiff_jax.render.mesh_rasterizer import Fragments

FREQUENCIES = 2.0 ** np.arange(7, dtype=np.float32)
"""Of the position code: L = 7 (CAP4D, Eq. 3), without a factor of pi."""
EXPRESSION_SCALE = 0.0104
"""Metres: CAP4D's standard deviation of expression offsets."""


def area_reduce(image: Float[Array, "h w c"], factor: int) -> Float[Array, "h2 w2 c"]:
    """Means over blocks of factor x factor pixels.

    Raises:
      ValueError: the image's sides are no multiples of the factor.
    """
    height, width, channels = image.shape
    if height % factor or width % factor:
        raise ValueError(
            f"Expected an image whose sides are multiples of {factor}, got "
            f"{width} x {height}; choose another size."
        )
    blocks = (height // factor, factor, width // factor, factor, channels)
    return jnp.mean(image.reshape(blocks), axis=(1, 3))


def head_vertices(model: head_model.HeadModel) -> Bool[Array, " v"]:
    """The head without the lowest third of its neck (ours).

    Stands in for CAP4D's list of FLAME's vertices, which cuts the lower neck too
    (supplement, Sec B.1): crops are fitted to them and its maps show no others.
    """
    height = model.template[:, 1]
    neck = model.regions["neck"] | model.regions["boundary"]
    lowest = jnp.min(jnp.where(neck, height, jnp.inf))
    highest = jnp.max(jnp.where(neck, height, -jnp.inf))
    return ~(neck & (height < lowest + (highest - lowest) / 3.0))


def touching_faces(
    faces: Int[Array, "f 3"], vertices: Bool[Array, " v"]
) -> Bool[Array, " f"]:
    """Faces with at least one of the vertices."""
    return jnp.any(vertices[faces], axis=-1)


def rasterize(
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "f 3"],
    camera: Camera,
    *,
    drawn: Bool[Array, " f"] | None = None,
    backend: str | None = None,
) -> Fragments:
    """What a camera sees of the faces `drawn` (all by default), back faces culled."""
    toward = jnp.sum(
        mesh.face_normals(vertices, faces) * (camera.position - vertices[faces[:, 0]]),
        axis=-1,
    )
    front = toward > 0 if drawn is None else (toward > 0) & drawn
    # A face that is one vertex thrice covers nothing, and the others keep their ids.
    shown = jnp.where(front[:, None], faces, 0)
    return mesh_rasterizer.rasterize(vertices, shown, camera, backend=backend)


def coverage(fragments: Fragments) -> Float[Array, "h w 1"]:
    """1 where there is a face, 0 elsewhere."""
    return (fragments.face >= 0)[..., None].astype(fragments.depth.dtype)


def normals_in_view(
    normals: Float[Array, "*b p 3"], camera: Camera
) -> Float[Array, "*b p 3"]:
    """World normals in the axes of normal maps: x right, y up, z towards the viewer."""
    rotation = camera.camera_from_world.rotation().as_matrix()
    flip = jnp.asarray([1.0, -1.0, -1.0], normals.dtype)
    return normals @ jnp.swapaxes(rotation, -1, -2) * flip


def normal_map(
    fragments: Fragments,
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "f 3"],
    camera: Camera,
) -> Float[Array, "h w 3"]:
    """Unit smooth normals: x right, y up, z towards the viewer."""
    normals = normals_in_view(mesh.vertex_normals(vertices, faces), camera)
    return numerics.normalize(mesh_rasterizer.interpolate(fragments, faces, normals))


def depth_map(fragments: Fragments) -> Float[Array, "h w 1"]:
    """Metres along the camera's z axis."""
    seen = fragments.face >= 0
    return jnp.where(seen, fragments.depth, 0.0)[..., None]


def uv_map(fragments: Fragments, model: head_model.HeadModel) -> Float[Array, "h w 2"]:
    """Chart coordinates (u, v) in [0, 1] of the surface seen."""
    return mesh_rasterizer.interpolate(fragments, model.uv_faces, model.uv)


def head_pose_map(
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    size: int = 64,
    supersampling: int = 8,
) -> Float[Array, "size size 3"]:
    """Normals of the expressionless head (GeoDiff4D, Sec 3.2), averaged over pixels.

    Expression, eyelids, jaw and eyes are set to zero; identity, neck, rotation and
    translation stay. Drawn at 512, the paper's resolution, and reduced by area (ours).
    """
    zeroed = {
        name: jnp.zeros_like(getattr(params, name))
        for name in ("expression", "eyelids", "jaw", "eyes")
    }
    vertices = head_model.vertices(model, params.replace(**zeroed))
    camera = square(camera, size=size * supersampling)
    fragments = rasterize(vertices, model.faces, camera)
    normals = normal_map(fragments, vertices, model.faces, camera)
    return area_reduce(normals, supersampling)


def template_positions(template: Float[Array, "v 3"]) -> Float[Array, "v 3"]:
    """CAP4D's vertex texture: centred at the mean, over the largest signed entry."""
    centred = template - jnp.mean(template, axis=0)
    return centred / jnp.max(centred)


def positions_like(
    template: Float[Array, "v 3"], released: Float[np.ndarray, "u 3"]
) -> Float[Array, "v 3"]:
    """A template's positions in units and about the centre of CAP4D's own texture.

    `released` are its first vertices, in their order: what follows, such as the mouth's
    inside, moves a mean, and by the highest frequency is a phase of more than a radian.
    """
    own = template[: len(released)]
    centred = template - jnp.mean(own, axis=0)
    mean = jnp.mean(released, axis=0)
    spread = jnp.std(released - mean) / jnp.std(centred[: len(released)])
    return centred * spread + mean


def position_code(positions: Float[Array, "*b 3"]) -> Float[Array, "*b 42"]:
    """Sines and cosines of positions (CAP4D, Eq. 3).

    Channels: 7 sines then 7 cosines of x, then of y, then of z.
    """
    angles = positions[..., None] * FREQUENCIES
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*positions.shape[:-1], 42)


def expression_offsets(
    model: head_model.HeadModel, params: head_model.HeadParams
) -> Float[Array, "v 3"]:
    """How expression, eyelids, jaw and eyes move each vertex, metres, head frame.

    Relative to the same person at rest (CAP4D, Sec 3.1). The neck is pose and moves
    nothing here (ours: CAP4D's conditioning has no neck joint).
    """
    moved = params.replace(neck=jnp.zeros_like(params.neck))
    # At rest no joint turns: what skinning would leave alone need not be skinned.
    at_rest = head_model.rest_vertices(model, head_model.canonical(params))
    return head_model.head_vertices(model, moved) - at_rest


def encode_surface(
    positions: Float[Array, "h w 3"],
    offsets: Float[Array, "h w 3"],
    mask: Float[Array, "h w 1"],
    *,
    supersampling: int = 2,
) -> tuple[Float[Array, "h2 w2 42"], Float[Array, "h2 w2 3"]]:
    """CAP4D's position code and expression offsets, from drawn vertex textures.

    Offsets are metres, and come out in units of `EXPRESSION_SCALE`. The mask comes
    before the reduction by area, so outlines fade.
    """
    code = area_reduce(position_code(positions) * mask, supersampling)
    moved = area_reduce(offsets / EXPRESSION_SCALE * mask, supersampling)
    return code, moved


def surface_maps(
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    size: int = 64,
    supersampling: int = 2,
    shown: Bool[Array, " v"] | None = None,
    positions: Float[Array, "v 3"] | None = None,
) -> tuple[Float[Array, "size size 42"], Float[Array, "size size 3"]]:
    """CAP4D's position code and expression offsets of a posed head, drawn once.

    `shown` are the vertices whose faces are drawn, `head_vertices` by default;
    `positions` what is encoded, `template_positions` by default. The half sphere that
    CAP4D adds behind the upper lip is the head's own business.
    """
    shown = head_vertices(model) if shown is None else shown
    fragments = rasterize(
        head_model.vertices(model, params),
        model.faces,
        square(camera, size=size * supersampling),
        drawn=touching_faces(model.faces, shown),
    )
    positions = template_positions(model.template) if positions is None else positions
    texture = jnp.concatenate([positions, expression_offsets(model, params)], -1)
    drawn = mesh_rasterizer.interpolate(fragments, model.faces, texture)
    return encode_surface(
        drawn[..., :3],
        drawn[..., 3:],
        coverage(fragments),
        supersampling=supersampling,
    )


def landmark_map(
    model: head_model.HeadModel,
    vertices: Float[Array, "v 3"],
    camera: Camera,
    *,
    radius: float = 0.008,
) -> Float[Array, "h w 1"]:
    """The 68 landmarks as soft discs: the sum of Gaussians, at most 1 (ours).

    `radius` is the standard deviation, in heights of the image. Landmarks on the far
    side are drawn too, as in drawings of detected ones; those behind the camera not.
    """
    points, depth = camera.project(landmarks.positions(model, vertices))
    sigma = radius * camera.height
    rows = jnp.arange(camera.height) + 0.5 - points[:, 1:]
    columns = jnp.arange(camera.width) + 0.5 - points[:, :1]
    # A Gaussian is a product of two, so their sum is a product of matrices.
    down = jnp.exp(-0.5 * jnp.square(rows / sigma)) * (depth > 0)[:, None]
    across = jnp.exp(-0.5 * jnp.square(columns / sigma))
    return jnp.minimum(down.T @ across, 1.0)[..., None]


def ray_map(
    camera: Camera, reference: Camera, *, size: int = 64
) -> Float[Array, "size size 3"]:
    """Unit directions of the rays, turned into the reference camera's axes (CAP4D).

    The grid is CAP4D's, on which its weights were trained: integer pixels 0 .. size-1
    of the crop, half a pixel off the centres that everything else here uses.
    """
    local = _directions(square(camera, size=size), offset=0.0)
    turn = _reference_from_camera(camera, reference).rotation().as_matrix()
    return numerics.normalize(local @ turn.T)


def plucker(
    origins: Float[Array, "*b 3"], directions: Float[Array, "*b 3"]
) -> Float[Array, "*b 6"]:
    """Plücker coordinates of rays: unit direction, then moment origin x direction.

    The moment, in metres, is the same for every origin along the ray.
    """
    unit = numerics.normalize(directions)
    return jnp.concatenate([unit, jnp.cross(origins, unit)], axis=-1)


def plucker_map(
    camera: Camera, reference: Camera, *, size: int = 64
) -> Float[Array, "size size 6"]:
    """Plücker rays through pixel centres, in the reference camera's frame (GeoFace)."""
    local = _directions(square(camera, size=size), offset=0.5)
    move = _reference_from_camera(camera, reference)
    directions = local @ move.rotation().as_matrix().T
    return plucker(jnp.broadcast_to(move.translation(), directions.shape), directions)


def square(camera: Camera, *, size: int) -> Camera:
    """A square camera at another resolution.

    Raises:
      ValueError: the camera's image is not square.
    """
    check_square(camera)
    return camera.resize(width=size, height=size)


def check_square(camera: Camera) -> None:
    """Raises ValueError unless the camera's image is square."""
    if camera.width != camera.height:
        raise ValueError(
            f"Expected a camera with a square image, got {camera.width} x "
            f"{camera.height}; crop it first (render/head_crop.py)."
        )


def _directions(camera: Camera, *, offset: float) -> Float[Array, "h w 3"]:
    """Rays in the camera's frame, z = 1, through pixels at integers plus offset."""
    fx, fy, cx, cy = camera.intrinsics
    x = (jnp.arange(camera.width) + offset - cx) / fx
    y = (jnp.arange(camera.height) + offset - cy) / fy
    x, y = jnp.meshgrid(x, y)
    return jnp.stack([x, y, jnp.ones_like(x)], axis=-1)


def _reference_from_camera(camera: Camera, reference: Camera) -> jaxlie.SE3:
    return reference.camera_from_world @ camera.camera_from_world.inverse()
