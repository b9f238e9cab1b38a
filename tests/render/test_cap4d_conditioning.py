"""CAP4D's own numbers for its conditioning; tolerances are those of the goldens."""

import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.render import condition_maps as maps
from geodiff_jax.render import conditioning, head_crop
from tests.conftest import shared_data

quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
    },
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    path = shared_data("goldens/cap4d_conditioning.npz")
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def test_position_code_is_cap4ds(golden):
    code = quick_jit(maps.position_code)(jnp.asarray(golden["pe_in"]))
    np.testing.assert_allclose(code, golden["pe_out"], atol=1e-6)
    np.testing.assert_array_equal(maps.FREQUENCIES, golden["pe_freqs"])


def test_vertex_textures_and_drawn_faces_are_cap4ds(golden):
    texture = quick_jit(maps.template_positions)(jnp.asarray(golden["mesh_verts"]))
    np.testing.assert_allclose(texture, golden["mesh_props"], atol=1e-6)
    shown = np.zeros(len(texture), bool)
    shown[golden["mesh_head_vertex_ids"]] = True
    shown[-int(golden["mesh_n_mouth_verts"]) :] = True
    faces = jnp.asarray(golden["mesh_faces"].astype(np.int32))
    found = quick_jit(maps.touching_faces)(faces, jnp.asarray(shown))
    np.testing.assert_array_equal(found, golden["mesh_face_mask"])


def test_vertex_textures_are_cap4ds_whatever_fills_the_mouth(golden):
    """Of a template with other vertices behind those that both have."""
    count = len(golden["mesh_verts"]) - int(golden["mesh_n_mouth_verts"])
    theirs = golden["mesh_verts"][:count].astype(np.float32)
    mouth = theirs[:7] + np.float32([0.0, -0.03, 0.05])
    template = jnp.asarray(np.concatenate([theirs, mouth]))
    texture = maps.positions_like(template, golden["mesh_props"][:count])
    np.testing.assert_allclose(texture[:count], golden["mesh_props"][:count], atol=1e-5)
    alone = maps.template_positions(template)[:count]
    assert np.abs(alone - golden["mesh_props"][:count]).max() > 1e-2


@pytest.fixture(scope="module")
def cap4d_golden(golden) -> conditioning.Conditioning:
    """Our conditioning of the six golden frames, from their drawn textures."""
    code, offset = quick_jit(jax.vmap(maps.encode_surface))(
        jnp.asarray(golden["cond_raster_pose_map"]),
        jnp.asarray(golden["cond_raster_offsets_metres"]),
        jnp.asarray(golden["cond_raster_mask"], jnp.float32),
    )

    def frames(name):
        return jnp.asarray(golden[name]).reshape(2, 3, 8, 8, -1)

    return conditioning.Conditioning(
        position_code=code.reshape(2, 3, 8, 8, 42),
        expression_offset=offset.reshape(2, 3, 8, 8, 3),
        rays=jnp.moveaxis(jnp.asarray(golden["cond_ray_map"]), 2, -1),
        reference_mask=frames("cond_reference_mask"),
        crop_mask=frames("cond_crop_mask"),
        reference_latents=jnp.moveaxis(jnp.asarray(golden["cond_z"]), 2, -1),
        reference_slots=jnp.asarray(golden["cond_reference_mask"][..., 0, 0] > 0),
    )


def test_channels_are_cap4ds(golden, cap4d_golden):
    found = conditioning.concatenate(cap4d_golden, conditioning.LAYOUTS["cap4d"])
    np.testing.assert_allclose(found, golden["cond_out_pos_enc"], atol=1e-6)


def test_unconditional_branch_is_cap4ds(golden, cap4d_golden):
    layout = conditioning.LAYOUTS["cap4d"]
    without = conditioning.unconditional(cap4d_golden, layout)
    found = conditioning.concatenate(without, layout)
    np.testing.assert_array_equal(found, golden["uncond_out_pos_enc"])
    latents = jnp.moveaxis(without.reference_latents, -1, 2)
    np.testing.assert_array_equal(latents, golden["uncond_out_z_input"])
    mask = golden["uncond_out_ref_mask"][..., 0, 0, 0] > 0
    np.testing.assert_array_equal(without.reference_slots, mask)


def golden_camera(golden, extrinsics: str) -> cameras.Camera:
    matrix = golden["f64_ray_K"]
    intrinsics = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    pose = jaxlie.SE3.from_matrix(jnp.asarray(golden[extrinsics], jnp.float32))
    return cameras.Camera(pose, jnp.asarray(intrinsics, jnp.float32), 1000, 1000)


def test_ray_map_is_cap4ds(golden):
    box = jnp.asarray(golden["ray_crop_box"].astype(np.int32))
    reference = golden_camera(golden, "f64_ray_ref_extr")
    world = reference.replace(camera_from_world=jaxlie.SE3.identity())

    @functools.partial(quick_jit, static_argnames="size")
    def draw(camera, size):
        cropped = head_crop.crop_camera(camera, box)
        return [maps.ray_map(cropped, axes, size=size) for axes in (world, reference)]

    camera = golden_camera(golden, "f64_ray_extr")
    drawn = draw(camera, size=int(golden["ray_resolution"]))
    for found, name in zip(drawn, ("map", "map_in_ref_frame"), strict=True):
        expected = np.moveaxis(golden[f"f64_ray_{name}"], 0, -1)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_boxes_are_cap4ds(golden):
    counted = np.zeros(80, bool)
    counted[golden["box_head_ids"]] = True
    pixels = jnp.asarray(golden["f64_box_verts_px"][:, :2], jnp.float32)
    box = quick_jit(head_crop.bounding_box)(pixels, jnp.asarray(counted))
    squared = quick_jit(head_crop.square_box)
    np.testing.assert_array_equal(squared(box), golden["box_crop"])
    boxes = jnp.asarray(golden["sqbox_in"].astype(np.int32))
    np.testing.assert_array_equal(squared(boxes), golden["sqbox_max"])


def test_cropped_camera_draws_where_cap4d_draws(golden):
    """Its rasteriser's coordinates: x to the left, y up, the image from -1 to 1."""
    camera = cameras.pinhole(focal=700.0, width=1000, height=1000)
    points = jnp.asarray(golden["f64_box_verts_px"], jnp.float32)
    box = jnp.asarray(golden["box_crop"].astype(np.int32))

    @quick_jit
    def project(points):
        world = camera.unproject(points[:, :2], points[:, 2])
        return head_crop.crop_camera(camera, box, size=128).project(world)

    pixels, depth = project(points)
    expected = golden["f64_box_verts_ndc"]
    # Round-off of pixels near 900 in float32, over half of 788 pixels.
    np.testing.assert_allclose(1 - pixels / 64, expected[:, :2], atol=2e-6)
    np.testing.assert_allclose(depth, expected[:, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "name"), [(44, "crop_out"), (22, "rescale_down"), (88, "rescale_up")]
)
def test_crop_is_cap4ds(golden, size, name):
    image = golden["crop_img"].astype(np.float32) / 255
    found = head_crop.crop_image(image, golden["crop_box"], size=size)
    # CAP4D resizes bytes: half a level of rounding there, one here.
    np.testing.assert_allclose(255 * found, golden[name], atol=1.0 + 1e-3)


def test_crop_mask_is_cap4ds(golden):
    box = jnp.asarray(golden["crop_box"].astype(np.int32))
    options = {"width": 50, "height": 40, "size": 8}
    masks = quick_jit(
        lambda box: [
            head_crop.crop_mask(box, binary=binary, **options)[..., 0]
            for binary in (False, True)
        ]
    )
    share, found = masks(box)
    np.testing.assert_allclose(share, golden["f64_get_crop_mask_8"], atol=1e-6)
    np.testing.assert_array_equal(found, golden["crop_mask_rescaled_8"])
