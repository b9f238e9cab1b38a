"""From a whole frame and a fitted head to the schema's square picture.

All that is drawn (condition maps, the face's box, normals where none are given) comes
from the fitted head; the picture comes from the frame. Both use one camera.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from geodiff_jax import numerics
from geodiff_jax.data import schema
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.head.model import HeadModel, HeadParams
from geodiff_jax.render import condition_maps, head_crop, uv

FACE_MARGIN = 1.1
"""The face's box over that of its landmarks, as in X-NeMo's driving crops."""
CROP_MARGIN = 0.2
"""Of the square round the projected head, see `head_crop.head_box`."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A whole picture, as a dataset has it, upright and without distortion."""

    image: Float[np.ndarray, "h w 3"]
    """sRGB in [0, 1]."""
    matte: Float[np.ndarray, "h w"] | None = None
    """Share of each pixel that is the person; None where the dataset has none."""
    normal: Float[np.ndarray, "h w 3"] | None = None
    """Of any length and axes, see `estimates.in_house_axes`; or none."""


@dataclasses.dataclass(frozen=True)
class Square:
    """The part of a frame round the head, not yet laid on white."""

    image: Float[np.ndarray, "s s 3"]
    """As photographed; white beyond the frame."""
    inside: Float[np.ndarray, "s s"]
    """Share of each pixel that the frame covers."""
    over_white: Float[np.ndarray, "s s 3"] | None
    """The person on white, and the matte; None where the frame has no matte."""
    matte: Float[np.ndarray, "s s"] | None
    normal: Float[np.ndarray, "s s 3"] | None
    camera: Camera
    """Of this square."""


def cut(
    frame: Frame, box: Int[np.ndarray, "4"], camera: Camera, *, size: int
) -> Square:
    """The square `box` of a frame seen by `camera`, at size x size.

    Colours are weighted by the matte before they are averaged, so that no background
    bleeds into the outline.

    Raises:
      ValueError: the box is empty, or the frame is not of the camera's size.
    """
    height, width = frame.image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise ValueError(
            f"Expected a picture of {camera.width} x {camera.height} for its camera, "
            f"got {width} x {height}; scale the intrinsics to the picture."
        )
    resized = functools.partial(head_crop.crop_image, box=box, size=size)
    matte = over_white = None
    if frame.matte is not None:
        alpha = frame.matte[..., None]
        # The crop is padded with ones: whatever is zero out there goes in negated.
        matte = _unit(1.0 - resized(1.0 - alpha)[..., 0])
        over_white = _unit(resized(frame.image * alpha + 1.0 - alpha))
    normal = None
    if frame.normal is not None:
        weight = 1.0 if frame.matte is None else frame.matte[..., None]
        normal = 1.0 - resized(1.0 - frame.normal * weight)
    covered = head_crop.crop_mask(
        jnp.asarray(box), width=width, height=height, size=size, binary=False
    )
    return Square(
        image=_unit(resized(frame.image)),
        inside=_unit(np.asarray(covered[..., 0])),
        over_white=over_white,
        matte=matte,
        normal=normal,
        camera=head_crop.crop_camera(camera, jnp.asarray(box), size=size),
    )


def lay_on_white(
    image: Float[np.ndarray, "h w 3"], matte: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """What the matte says is the person, before white."""
    return _unit(image * matte[..., None] + 1.0 - matte[..., None])


@jax.jit
def place(
    head: HeadModel, params: HeadParams, camera: Camera
) -> tuple[Int[Array, "4"], Float[Array, ""], Float[Array, "68 2"]]:
    """Square box of the head, its `share_inside` the picture, pixels of landmarks."""
    box = head_crop.head_box(head, params, camera, margin=CROP_MARGIN)
    marks = landmarks.positions(head, head_model.vertices(head, params))
    return box, share_inside(head, params, camera), camera.project(marks)[0]


@jax.jit
def share_inside(
    head: HeadModel, params: HeadParams, camera: Camera
) -> Float[Array, ""]:
    """Share of the head's vertices that project into the picture."""
    pixels, depth = camera.project(head_model.vertices(head, params))
    size = jnp.asarray([camera.width, camera.height])
    inside = jnp.all((pixels >= 0) & (pixels <= size), axis=-1) & (depth > 0)
    counted = condition_maps.head_vertices(head)
    return jnp.sum(inside & counted) / jnp.sum(counted)


def maps(
    head: HeadModel, params: HeadParams, camera: Camera, sizes: schema.Sizes
) -> tuple[dict[str, Float[np.ndarray, "_ _ c"]], Float[np.ndarray, "4"]]:
    """What is drawn of `schema.MAPS`, by name, and the box of the face.

    Raises ValueError for one `OF_CHART` of a head without UV coordinates.
    """
    if not set(schema.OF_CHART).isdisjoint(sizes.maps):
        uv.check_chart(head.uv, head.uv_faces)
    drawn, box = _maps(head, params, camera, size=sizes.map)
    if "uv" in sizes.maps:
        drawn["uv"] = _uv(head, params, camera, size=sizes.of_map("uv")[0])
    if "surface" in sizes.maps:
        drawn["surface"] = _surface(_chart(head, sizes.surface), head, params)
    return {name: np.asarray(drawn[name]) for name in sizes.maps}, np.asarray(box)


_CHARTS: dict[tuple[str, int], uv.Chart] = {}


def _chart(head: HeadModel, size: int) -> uv.Chart:
    """Made once for a head, which no cache of functions could hash."""
    key = head.version, size
    if key not in _CHARTS:
        _CHARTS[key] = uv.rasterize_chart(head.uv, head.uv_faces, size=size)
    return _CHARTS[key]


@jax.jit
def _surface(
    chart: uv.Chart, head: HeadModel, params: HeadParams
) -> Float[Array, "s s 3"]:
    return uv.position_map(chart, head.faces, head_model.vertices(head, params))


@functools.partial(jax.jit, static_argnames=("size",))
def _uv(
    head: HeadModel, params: HeadParams, camera: Camera, *, size: int
) -> Float[Array, "s s 3"]:
    """u, v and visibility at pixels' centres: means of jumps would lie nowhere."""
    vertices = head_model.vertices(head, params)
    fragments = condition_maps.rasterize(
        vertices, head.faces, condition_maps.square(camera, size=size)
    )
    seen = condition_maps.coverage(fragments)
    return jnp.concatenate([condition_maps.uv_map(fragments, head), seen], axis=-1)


@functools.partial(jax.jit, static_argnames=("size",))
def _maps(
    head: HeadModel, params: HeadParams, camera: Camera, *, size: int
) -> tuple[dict[str, Float[Array, "m m c"]], Float[Array, "4"]]:
    code, offset = condition_maps.surface_maps(head, params, camera, size=size)
    pose = condition_maps.head_pose_map(head, params, camera, size=size)
    drawn = {"head_pose": pose, "position_code": code, "expression_offset": offset}
    marks = landmarks.positions(head, head_model.vertices(head, params))
    return drawn, _face_box(camera.project(marks)[0])


@jax.jit
def draw_head(
    head: HeadModel, params: HeadParams, camera: Camera
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Bool[Array, "h w"]]:
    """Normals of the fitted head, how much of each pixel it covers, where its face is.

    House axes, averaged over four samples a pixel; the lower neck is left out.
    """
    fine = camera.resize(width=2 * camera.width, height=2 * camera.height)
    vertices = head_model.vertices(head, params)
    shown = condition_maps.head_vertices(head)
    drawn = condition_maps.touching_faces(head.faces, shown)
    fragments = condition_maps.rasterize(vertices, head.faces, fine, drawn=drawn)
    normals = condition_maps.normal_map(fragments, vertices, head.faces, fine)
    covered = condition_maps.coverage(fragments)
    of_face = jnp.all(head.regions["face"][head.faces], axis=-1)
    face = of_face[jnp.maximum(fragments.face, 0)][..., None] * covered
    reduced = condition_maps.area_reduce(
        jnp.concatenate([normals, covered, face], axis=-1), 2
    )
    return (
        numerics.normalize(reduced[..., :3]),
        reduced[..., 3],
        reduced[..., 4] > 0.5,
    )


def extend(
    normals: Float[np.ndarray, "s s 3"],
    covered: Float[np.ndarray, "s s"],
    mask: Float[np.ndarray, "s s"],
) -> Float[np.ndarray, "s s 3"]:
    """Normals of a bare head carried on to hair and shoulders (ours).

    Each pixel of the mask that the head leaves bare takes the normal of the covered
    pixel nearest to it: right on the outline, a guess beyond; an estimator knows more.
    """
    seen = covered >= schema.COVERED
    if not seen.any():
        return np.zeros_like(normals)
    nearest = ndimage.distance_transform_edt(
        ~seen, return_distances=False, return_indices=True
    )
    rows, columns = np.asarray(nearest)
    return schema.unit_normals(normals[rows, columns], mask)


def _face_box(pixels: Float[Array, "68 2"]) -> Float[Array, "4"]:
    lower, upper = jnp.min(pixels, axis=0), jnp.max(pixels, axis=0)
    middle, half = (lower + upper) / 2, FACE_MARGIN * jnp.max(upper - lower) / 2
    return jnp.concatenate([middle - half, middle + half])


def _unit(values: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    return np.clip(values, 0.0, 1.0)
