"""Where an image metric looks: the head, not the body nor the background."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer


def head_region(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    matte: Float[np.ndarray, "h w"],
    *,
    dilation: float = 0.15,
    edge: int = 6,
) -> Bool[np.ndarray, "h w"]:
    """Matte ∩ projected head dilated by a share of its height, cut at the neck's ring.

    `edge` pixels next to the frame are left out: half of SSIM's window (ours).
    """
    covered = cover(head, params, camera)
    if not covered.any():
        return covered
    rows = np.flatnonzero(covered.any(axis=1))
    radius = dilation * (rows[-1] - rows[0] + 1)
    near = ndimage.distance_transform_edt(~covered) <= radius
    region = near & (matte > 0.5) & above_neck_ring(head, params, camera)
    inner = np.zeros_like(region)
    inner[edge : camera.height - edge, edge : camera.width - edge] = True
    return region & inner


def cover(
    head: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> Bool[np.ndarray, "h w"]:
    """Pixels that show head or neck, but no shoulders, where a head has them."""
    vertices = head_model.vertices(head, params)
    face = np.asarray(mesh_rasterizer.rasterize(vertices, head.faces, camera).face)
    return (face >= 0) & head_model.own_faces(head)[face]


def above_neck_ring(
    head: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> Bool[np.ndarray, "h w"]:
    """Pixels on the head's side of the line through the neck's lower ring."""
    vertices = head_model.vertices(head, params)
    pixels = np.asarray(camera.project(vertices)[0])
    ring = pixels[np.asarray(head.regions["boundary"])]
    centre = ring.mean(axis=0)
    up = pixels[np.asarray(head.regions["face"])].mean(axis=0) - centre
    up = up / max(np.linalg.norm(up), 1e-9)
    # The ring is seen from slightly above or below: its upper arc is the clean cut.
    cut = np.max((ring - centre) @ up)
    columns = np.arange(camera.width) + 0.5 - centre[0]
    lines = np.arange(camera.height) + 0.5 - centre[1]
    return columns[None, :] * up[0] + lines[:, None] * up[1] > cut


def face_mask(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    erosion: int = 2,
) -> Bool[np.ndarray, "h w"]:
    """Pixels whose nearest triangle is skin of the face, eroded."""
    return face_triangles(head, params, camera, erosion=erosion) >= 0


def face_triangles(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: Camera,
    *,
    erosion: int = 2,
) -> Int[np.ndarray, "h w"]:
    """The triangle that each pixel of `face_mask` sees, -1 in all others."""
    vertices = head_model.vertices(head, params)
    fragments = mesh_rasterizer.rasterize(vertices, head.faces, camera)
    is_face = head_model.face_region(head, "face")
    visible = np.asarray(fragments.face)
    mask = (visible >= 0) & is_face[np.maximum(visible, 0)]
    if erosion > 0:
        mask = ndimage.binary_erosion(mask, iterations=erosion)
    return np.where(mask, visible, -1)
