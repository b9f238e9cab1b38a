"""Hair, beard and whatever else of the head lies outside its bare mesh.

One photo shows the outline of the hair but not its depth: the thickness seen along the
outline is spread over the scalp, and what is left becomes a layer at the outline's
depth. All rules here are ours.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from geodiff_jax.avatar import coloring
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer


def hair_thickness(
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    camera: Camera,
    matte: Float[np.ndarray, "h w"],
) -> Float[np.ndarray, " v"]:
    """Metres of hair over each vertex along its normal; 0 off the scalp.

    Measured where the scalp is seen edge-on, by walking to the matte's border; between
    those vertices and their mirror images it is harmonic. Negative where the photo's
    head is smaller than the fitted skull.
    """
    scalp = np.asarray(head.regions["scalp"])
    normals = np.asarray(mesh.vertex_normals(jnp.asarray(vertices), head.faces))
    length, measured = _walk_to_border(head, vertices, normals, camera, matte)
    measured &= scalp
    if measured.sum() < 8:
        return np.zeros(len(vertices))
    points = coloring.vertex_points(head, vertices)
    twin = coloring.mirror_lookup(points)
    length = np.where(measured, length, length[twin])
    known = scalp & (measured | measured[twin])

    edge_list = mesh.edges(np.asarray(head.faces))
    ends = scalp[edge_list]
    border = np.zeros(len(vertices), bool)
    border[edge_list[ends[:, 0] != ends[:, 1]].ravel()] = True
    border &= scalp & ~known
    values = np.where(known, length, np.median(length[known]))
    # Hair begins thin: at the hairline it does not stand off like a wig.
    values = np.where(border, np.minimum(values, 0.003), values)
    spread = mesh.smooth(
        jnp.asarray(values[:, None], jnp.float32),
        jnp.asarray(edge_list[ends.all(axis=1)]),
        anchors=jnp.asarray(0.5 * known + 0.15 * border, jnp.float32),
        iterations=300,
    )
    return np.where(scalp, np.asarray(spread)[:, 0], 0.0)


def _walk_to_border(
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    normals: Float[np.ndarray, "v 3"],
    camera: Camera,
    matte: Float[np.ndarray, "h w"],
    *,
    deepest: float = 0.03,
    longest: float = 0.06,
    step: float = 0.001,
    clear: float = 0.008,
) -> tuple[Float[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    """(signed distance along the normal to the matte's border, whether it counts).

    It counts for vertices seen edge-on whose walk leaves the bare head by `clear`.
    """
    towards = np.asarray(camera.position) - vertices
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    edge_on = np.abs(np.sum(normals * towards, axis=1)) < 0.15
    bare = mesh_rasterizer.rasterize(jnp.asarray(vertices), head.faces, camera)
    covered = np.asarray(bare.face >= 0)
    reach = np.arange(-deepest, longest, step)
    walk = vertices[:, None] + reach[None, :, None] * normals[:, None]
    pixels = np.asarray(camera.project(jnp.asarray(walk.reshape(-1, 3)))[0])
    pixels = np.floor(pixels).astype(int).reshape(*walk.shape[:2], 2)
    in_frame = np.all((pixels >= 0) & (pixels < [camera.width, camera.height]), axis=2)
    column, row = np.moveaxis(np.where(in_frame[..., None], pixels, 0), 2, 0)
    person = (matte[row, column] > 0.5) & in_frame
    steps = np.argmin(np.pad(person, ((0, 0), (0, 1))), axis=1)
    outside = round((deepest + clear) / step)
    left = ~covered[row[:, outside], column[:, outside]]
    return reach[np.maximum(steps - 1, 0)], edge_on & left & in_frame.all(axis=1)


def uncovered(
    head: head_model.HeadModel,
    shell: Float[np.ndarray, "v 3"],
    camera: Camera,
    region: Bool[np.ndarray, "h w"],
    *,
    overlap: float = 0.006,
) -> tuple[
    Float[np.ndarray, "n 2"],
    Float[np.ndarray, " n"],
    Float[np.ndarray, " n"],
    Int[np.ndarray, " n"],
]:
    """(pixel centre, depth, reach, face) of the region's pixels that the shell misses.

    Depth is that of the nearest outline of the shell in the image, reach the distance
    from it, both in metres; face is the one at that outline. Pixels up to `overlap` of
    the frame's height inside the shell come along: from another side no gap may open.
    """
    fragments = mesh_rasterizer.rasterize(jnp.asarray(shell), head.faces, camera)
    face, depth = np.asarray(fragments.face), np.asarray(fragments.depth)
    missing = region & (face < 0)
    # Strays of a pixel are the raster's, not the person's.
    missing = ndimage.binary_opening(missing, iterations=1)
    if missing.any():
        beside = ndimage.distance_transform_edt(~missing) < overlap * camera.height
        missing |= beside & region
    distance, nearest = ndimage.distance_transform_edt(face < 0, return_indices=True)
    rows, columns = np.nonzero(missing)
    row, column = nearest[:, rows, columns]
    pixels = np.stack([columns + 0.5, rows + 0.5], axis=1)
    reach = distance[rows, columns] * depth[row, column] / float(camera.intrinsics[0])
    return pixels, depth[row, column], reach, face[row, column]
