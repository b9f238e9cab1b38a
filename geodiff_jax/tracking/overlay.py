"""The picture to judge a fit by: mesh, landmarks and outline over the photo."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import ndimage

from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.render import mesh_rasterizer
from geodiff_jax.tracking import detect, fit

FOUND, PROJECTED, OUTLINE = (0.1, 0.9, 0.2), (1.0, 0.15, 0.1), (0.1, 0.45, 1.0)
_LIGHT = np.array([-0.35, -0.45, -0.82])  # Towards it, camera frame: upper left.


def overlay(
    photo: images.Photo,
    detection: detect.Detection,
    result: fit.Fit,
    *,
    size: int = 768,
    opacity: float = 0.45,
) -> Float[np.ndarray, "size 2*size 3"]:
    """Head and shoulders twice: left with landmarks, right with the shaded mesh.

    Landmarks found are green, the fitted head's are red; the matte's edge is blue.
    """
    left, top, side = _window(detection)
    rows = np.arange(top, top + side)
    columns = np.arange(left, left + side)
    inside = ((rows >= 0) & (rows < photo.height))[:, None]
    inside = inside & (columns >= 0) & (columns < photo.width)
    pick = np.ix_(
        np.clip(rows, 0, photo.height - 1), np.clip(columns, 0, photo.width - 1)
    )
    crop = np.where(inside[..., None], photo.rgb[pick], 1.0)
    picture = images.resize(crop, width=size, height=size)
    matte = images.resize(detection.matte[pick] * inside, width=size, height=size)
    camera = result.camera.crop(left=left, top=top, width=side, height=side)
    shading, covered = shade(
        result.head, result.params, camera.resize(width=size, height=size)
    )
    blend = (opacity * covered)[..., None]
    panels = [picture, (1.0 - blend) * picture + blend * shading]
    scale = size / side
    person = matte > 0.5
    edge = person & ~ndimage.binary_erosion(person, iterations=2, border_value=1)
    for panel in panels:
        panel[edge] = OUTLINE
        for points, colour in ((result.found, FOUND), (result.projected, PROJECTED)):
            _dots(panel, (np.asarray(points) - [left, top]) * scale, colour)
    return np.concatenate(panels, axis=1)


def shade(
    head: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """(clay look of a posed head, pixels that it covers)."""
    fragments, normals = _rasterized(head, params, camera)
    face = np.asarray(fragments.face)
    corners = np.asarray(head.faces)[np.maximum(face, 0)]
    rotation = np.asarray(camera.camera_from_world.rotation().as_matrix())
    facing = np.asarray(normals) @ rotation.T @ _LIGHT
    weights = np.asarray(fragments.barycentric)
    light = 0.25 + 0.75 * np.maximum(np.sum(facing[corners] * weights, axis=-1), 0.0)
    eyes = head_model.face_region(head, "left_eyeball", "right_eyeball")
    colour = np.where(
        eyes[np.maximum(face, 0)][..., None], [0.95, 0.95, 1.0], [0.87, 0.75, 0.68]
    )
    covered = face >= 0
    return np.where(covered[..., None], light[..., None] * colour, 1.0), covered


@jax.jit
def _rasterized(
    head: head_model.HeadModel, params: head_model.HeadParams, camera: Camera
) -> tuple[mesh_rasterizer.Fragments, Float[Array, "v 3"]]:
    vertices = head_model.vertices(head, params)
    fragments = mesh_rasterizer.rasterize(vertices, head.faces, camera)
    return fragments, mesh.vertex_normals(vertices, head.faces)


def _window(detection: detect.Detection) -> tuple[int, int, int]:
    """Left, top and side of a square with room for hair and neck."""
    size = float(np.max(detection.box[2:] - detection.box[:2]))
    centre = (detection.box[:2] + detection.box[2:]) / 2
    side = round(2.4 * size)
    left, top = np.round(centre - side * np.array([0.5, 0.52])).astype(int)
    return int(left), int(top), side


def _dots(
    panel: Float[np.ndarray, "h w 3"],
    points: Float[np.ndarray, "k 2"],
    colour: tuple[float, float, float],
) -> None:
    """Paints discs of 2 pixels' radius."""
    height, width = panel.shape[:2]
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    for point in points:
        near = (np.abs(x - point[0]) < 3)[None] & (np.abs(y - point[1]) < 3)
        if near.any():
            panel[near & (np.hypot(x - point[0], y - point[1]) < 2.0)] = colour
