"""CAP4D's square crop round the head (supplement, Sec A.2): box, image, camera, mask.

Boxes are integers (left, top, right, bottom) in pixels of the whole image; they may
reach beyond it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.render import condition_maps


def head_box(
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    margin: float = 0.2,
    head: Bool[Array, " v"] | None = None,
) -> Int[Array, "*b 4"]:
    """The square box round the projected head, for frames and their cameras.

    `head` says which vertices count, `condition_maps.head_vertices` by default. The
    margin is that of CAP4D's code; its paper says 0.3. A head behind its camera gives
    an empty box, whose camera sees nothing.
    """
    head = condition_maps.head_vertices(model) if head is None else head
    pixels, depth = camera.project(head_model.vertices(model, params))
    return square_box(bounding_box(pixels, head & (depth > 0)), margin=margin)


def bounding_box(
    pixels: Float[Array, "*b p 2"], counted: Bool[Array, "*b p"]
) -> Int[Array, "*b 4"]:
    """The box of the points that count, cut to whole pixels as in CAP4D; or zeros."""
    inside = counted[..., None]
    lower = jnp.min(jnp.where(inside, pixels, jnp.inf), axis=-2)
    upper = jnp.max(jnp.where(inside, pixels, -jnp.inf), axis=-2)
    box = jnp.concatenate([lower, upper], axis=-1)
    return jnp.where(jnp.isfinite(box), jnp.trunc(box), 0.0).astype(jnp.int32)


def square_box(box: Int[Array, "*b 4"], *, margin: float = 0.2) -> Int[Array, "*b 4"]:
    """A square about the box's centre, 1 + margin times its longer side."""
    lower, upper = box[..., :2], box[..., 2:]
    centre = (lower + upper) // 2
    longer = jnp.max(upper - lower, axis=-1, keepdims=True)
    half = jnp.floor(longer * (0.5 * (1.0 + margin))).astype(box.dtype)
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def crop_camera(camera: Camera, box: Int[Array, "*b 4"], *, size: int = 512) -> Camera:
    """The camera of the crop, resampled to size x size."""
    dtype = camera.intrinsics.dtype
    scale = size / (box[..., 2:] - box[..., :2]).astype(dtype)
    focal = camera.intrinsics[..., :2] * scale
    centre = (camera.intrinsics[..., 2:] - box[..., :2]) * scale
    return camera.replace(
        intrinsics=jnp.concatenate([focal, centre], axis=-1), width=size, height=size
    )


def crop_image(
    image: Float[np.ndarray, "h w c"], box: Int[np.ndarray, "4"], *, size: int = 512
) -> Float[np.ndarray, "size size c"]:
    """The crop at size x size; white where the box leaves the image.

    Shrinks by area, enlarges bilinearly.

    Raises:
      ValueError: the box is empty.
    """
    left, top, right, bottom = (int(x) for x in box)
    if right <= left or bottom <= top:
        raise ValueError(
            f"Expected a box (left, top, right, bottom) with an area, got "
            f"{[left, top, right, bottom]}; is the head before its camera?"
        )
    crop = np.ones((bottom - top, right - left, image.shape[2]), image.dtype)
    height, width = image.shape[:2]
    rows = slice(min(max(top, 0), height), max(min(bottom, height), 0))
    columns = slice(min(max(left, 0), width), max(min(right, width), 0))
    part = image[rows, columns]
    row, column = rows.start - top, columns.start - left
    crop[row : row + part.shape[0], column : column + part.shape[1]] = part
    return images.resize(crop, width=size, height=size)


def crop_mask(
    box: Int[Array, "*b 4"],
    *,
    width: int,
    height: int,
    size: int = 64,
    binary: bool = True,
) -> Float[Array, "*b size size 1"]:
    """1 inside the image of width x height, 0 where the crop was padded.

    The share of each pixel's area, rounded if `binary`, as CAP4D does for references.
    Generated frames have no padding: theirs is all ones.
    """
    across = _covered(box[..., 0], box[..., 2], width, size)
    down = _covered(box[..., 1], box[..., 3], height, size)
    share = (down[..., :, None] * across[..., None, :])[..., None]
    return jnp.round(share) if binary else share


def _covered(
    start: Int[Array, "*b"], stop: Int[Array, "*b"], length: int, size: int
) -> Float[Array, "*b size"]:
    """Share of each of `size` equal parts of [start, stop] that is in [0, length].

    Zero for empty intervals.
    """
    step = ((stop - start) / size)[..., None]
    lower = start[..., None] + step * jnp.arange(size)
    upper = lower + step
    inside = jnp.clip(upper, 0, length) - jnp.clip(lower, 0, length)
    return inside / jnp.where(step > 0, step, 1.0)
