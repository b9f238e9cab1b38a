"""Hair, beard and whatever else of the head lies outside its bare mesh.

One photo shows the outline of the hair but not its depth: the thickness seen along the
outline is spread over scalp and nape, and what is left becomes a roll about the
outline's depth. All rules here are ours.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, spatial

from geodiff_jax.avatar import coloring
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer


def hair_support(head: head_model.HeadModel) -> Bool[np.ndarray, " v"]:
    """Vertices that hair can lie on: the scalp, and the neck behind ears and chin."""
    scalp, neck = np.asarray(head.regions["scalp"]), np.asarray(head.regions["neck"])
    ears = _ears(head)
    template = np.asarray(head.template)
    if not ears.any():
        return scalp
    chin = template[np.asarray(head.regions["face"]), 1].min()
    behind = template[:, 2] < template[ears, 2].max()
    return scalp | (neck & behind & (template[:, 1] > chin))


def _ears(head: head_model.HeadModel) -> Bool[np.ndarray, " v"]:
    return np.asarray(head.regions["left_ear"]) | np.asarray(head.regions["right_ear"])


def hair_thickness(
    head: head_model.HeadModel,
    vertices: Float[np.ndarray, "v 3"],
    camera: Camera,
    image: Float[np.ndarray, "h w 3"],
    matte: Float[np.ndarray, "h w"],
) -> Float[np.ndarray, " v"]:
    """Metres of hair over each vertex along its normal; 0 off `hair_support`.

    Measured where the support is seen edge-on, by walking to the matte's border, and
    taken over to the mirror image. Elsewhere it is that of the measured vertex nearest
    in height, smoothed, and rises from the hairline. Negative where the photo's head is
    smaller than the fitted skull.
    """
    support = hair_support(head)
    scalp = np.asarray(head.regions["scalp"])
    normals = np.asarray(mesh.vertex_normals(jnp.asarray(vertices), head.faces))
    length, measured = _walk_to_border(head, vertices, normals, camera, matte)
    measured &= support
    if (measured & scalp).sum() < 8:
        return np.zeros(len(vertices))
    middle = vertices + 0.5 * length[:, None] * normals
    pixels = np.asarray(camera.project(jnp.asarray(middle))[0])
    colors = coloring.sample_colors(image, pixels)
    # Beside the neck also lie collars and shoulders.
    hair = scalp | coloring.resembles(colors, colors[measured & scalp])
    length = np.where(hair, length, np.minimum(length, 0.0))
    points = coloring.vertex_points(head, vertices)
    twin = coloring.mirror_lookup(points)
    length = np.where(measured, length, length[twin])
    known = support & (measured | measured[twin])
    edge_list = mesh.edges(np.asarray(head.faces))
    inner = edge_list[support[edge_list].all(axis=1)]
    # Hair ends at one height all round: what is known beside holds behind.
    level = np.asarray(head.template) * [0.3, 1.0, 0.3]
    beside = spatial.cKDTree(level[known]).query(level)[1]
    spread = mesh.smooth(
        jnp.asarray(length[known][beside][:, None]),
        jnp.asarray(inner),
        anchors=jnp.asarray(0.5 * known),
        iterations=30,
    )
    spread = np.asarray(spread, np.float64)[:, 0]
    share = np.where(known | (spread < 0), 1.0, _rise(head))
    return np.where(support, share * spread, 0.0)


def _rise(
    head: head_model.HeadModel,
    *,
    at_hairline: float = 0.8,
    from_face: float = 0.025,
    from_ears: float = 0.012,
) -> Float[np.ndarray, " v"]:
    """Share of the full thickness that hair has over each vertex: not like a wig.

    It is full `from_face` and `from_ears` metres away from bare skin.
    """
    template = np.asarray(head.template)
    share = np.ones(len(template))
    face = np.asarray(head.regions["face"])
    for skin, width in ((face, from_face), (_ears(head), from_ears)):
        if skin.any():
            distance = spatial.cKDTree(template[skin]).query(template)[0]
            share = np.minimum(share, np.clip(distance / width, 0.0, 1.0))
    return at_hairline + (1.0 - at_hairline) * share


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
    gap: float = 0.008,
) -> tuple[Float[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    """(signed distance along the normal to the matte's border, whether it counts).

    It counts for vertices seen edge-on whose walk leaves the bare head by `clear`.
    Between strands it crosses gaps of `gap` of the frame's height.
    """
    towards = np.asarray(camera.position) - vertices
    towards_length = np.linalg.norm(towards, axis=1, keepdims=True)
    towards /= towards_length
    edge_on = np.abs(np.sum(normals * towards, axis=1)) < 0.15
    bare = mesh_rasterizer.rasterize(jnp.asarray(vertices), head.faces, camera)
    covered = np.asarray(bare.face >= 0)
    reach = np.arange(-deepest, longest, step)
    walk = vertices[:, None] + reach[None, :, None] * normals[:, None]
    pixels = np.asarray(camera.project(jnp.asarray(walk.reshape(-1, 3)))[0])
    pixels = np.floor(pixels).astype(int).reshape(*walk.shape[:2], 2)
    in_frame = np.all((pixels >= 0) & (pixels < [camera.width, camera.height]), axis=2)
    column, row = np.moveaxis(np.where(in_frame[..., None], pixels, 0), 2, 0)
    solid = _closed(matte > 0.5, radius=round(gap * camera.height))
    person = solid[row, column] & in_frame
    steps = np.argmin(np.pad(person, ((0, 0), (0, 1))), axis=1)
    # A walk counts if it stays in the frame until it has left the person.
    reached = steps < reach.size
    each, last = np.arange(len(vertices)), np.minimum(steps, reach.size - 1)
    reached &= np.logical_and.accumulate(in_frame, axis=1)[each, last]
    end = np.maximum(steps - 1, 0)
    beside = ndimage.distance_transform_edt(~covered)
    beside *= np.median(towards_length) / float(camera.intrinsics[0])
    out = round((deepest + clear) / step)
    left = in_frame[:, out] & ~covered[row[:, out], column[:, out]]
    left |= beside[row[each, end], column[each, end]] > clear
    return reach[end], edge_on & left & reached


def _closed(mask: Bool[np.ndarray, "h w"], *, radius: int) -> Bool[np.ndarray, "h w"]:
    """Morphological closing by a disc, as if the frame's edge went on outside."""
    padded = np.pad(mask, radius, mode="edge")
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[radius : radius + mask.shape[0], radius : radius + mask.shape[1]]


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


def hanging(
    head: head_model.HeadModel,
    shell: Float[np.ndarray, "v 3"],
    camera: Camera,
    pixels: Float[np.ndarray, "n 2"],
    depth: Float[np.ndarray, " n"],
    reach: Float[np.ndarray, " n"],
    face: Int[np.ndarray, " n"],
    *,
    smoothing: float = 0.04,
    beard: float = 0.012,
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """What of `uncovered` lies beside jaw and neck, lower than the ears: (whether it
    does, depth, face).

    Collars, shoulders, long hair: a sheet that holds together when it turns, its depth
    smoothed over `smoothing` of the frame's height. Further than `beard` metres from
    the outline it moves with the neck, not with the jaw. Others keep depth and face.
    """
    faces, heights = np.asarray(head.faces), np.asarray(head.template)[:, 1]
    ears = _ears(head)
    if not ears.any():
        return np.zeros(len(face), bool), depth, face
    low = heights[faces[face]].mean(axis=1) < heights[ears].min()
    place = tuple(np.floor(pixels[low]).astype(int).T[::-1])
    total, count = np.zeros((2, camera.height, camera.width))
    total[place], count[place] = depth[low], 1.0
    total, count = (
        ndimage.gaussian_filter(x, smoothing * camera.height) for x in (total, count)
    )
    smooth = depth.copy()
    smooth[low] = total[place] / np.maximum(count[place], 1e-9)
    jaw = np.asarray(head.skinning_weights)[:, head_model.JOINTS.index("jaw")]
    still = np.flatnonzero(
        head_model.face_region(head, "neck") & (jaw[faces] < 0.01).all(axis=1)
    )
    carried = face.copy()
    far = low & (reach > beard)
    if far.any() and still.size:
        points = np.asarray(
            camera.unproject(jnp.asarray(pixels[far]), jnp.asarray(smooth[far]))
        )
        centres = shell[faces[still]].mean(axis=1)
        carried[far] = still[spatial.cKDTree(centres).query(points)[1]]
    return low, smooth, carried
