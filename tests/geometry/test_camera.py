"""Laws of pinhole cameras."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.geometry import camera as cameras

laws = settings(max_examples=25, deadline=None)
project = jax.jit(cameras.Camera.project)
unproject = jax.jit(cameras.Camera.unproject)
orbit = jax.jit(cameras.orbit)
look_at = jax.jit(cameras.look_at, static_argnames=("width", "height"))


def random_camera(seed: int) -> cameras.Camera:
    """Double precision, up to a metre from the origin, any direction."""
    rng = np.random.default_rng(seed)
    pose = jaxlie.SE3.exp(jnp.asarray(rng.uniform(-1, 1, 6)))
    focal, centre = rng.uniform(200, 900, 2), rng.uniform(50, 300, 2)
    return cameras.Camera(pose, jnp.asarray([*focal, *centre]), 320, 240)


def points_before(camera: cameras.Camera, seed: int) -> jax.Array:
    """World points that the camera sees at depths of 0.3 to 3 metres."""
    rng = np.random.default_rng(seed)
    pixels = jnp.asarray(rng.uniform(0, 300, (7, 2)))
    return unproject(camera, pixels, jnp.asarray(rng.uniform(0.3, 3, 7)))


@laws
@given(seed=st.integers(0, 10_000))
def test_project_inverts_unproject(seed):
    with jax.enable_x64(True):
        camera = random_camera(seed)
        rng = np.random.default_rng(seed + 1)
        pixels = rng.uniform(-100, 400, (7, 2))
        depth = rng.uniform(0.1, 5, 7)
        points = unproject(camera, jnp.asarray(pixels), jnp.asarray(depth))
        found_pixels, found_depth = project(camera, points)
        # Double precision: round-off only.
        np.testing.assert_allclose(found_pixels, pixels, atol=1e-9)
        np.testing.assert_allclose(found_depth, depth, rtol=1e-12)


@laws
@given(seed=st.integers(0, 10_000))
def test_projection_is_the_matrix_product(seed):
    with jax.enable_x64(True):
        camera = random_camera(seed)
        points = points_before(camera, seed)
        matrix = np.asarray(camera.camera_from_world.as_matrix())
        homogeneous = np.concatenate([points, np.ones((7, 1))], axis=1)
        image = (np.asarray(camera.matrix) @ (matrix @ homogeneous.T)[:3]).T
        pixels, depth = project(camera, points)
        np.testing.assert_allclose(pixels, image[:, :2] / image[:, 2:], atol=1e-9)
        np.testing.assert_allclose(depth, image[:, 2], rtol=1e-12)


def test_axes_are_those_of_opencv():
    camera = cameras.pinhole(focal=100.0, width=64, height=48)
    points = jnp.asarray([[0, 0, 2.0], [1, 0, 2.0], [0, 1, 2.0]])
    pixels, depth = camera.project(points)
    np.testing.assert_allclose(pixels, [[32, 24], [82, 24], [32, 74]])
    np.testing.assert_allclose(depth, 2.0)
    np.testing.assert_allclose(camera.position, 0.0)


def test_position_is_where_the_camera_frame_starts():
    with jax.enable_x64(True):
        camera = random_camera(3)
        local = camera.to_camera(camera.position[None])
        np.testing.assert_allclose(local, 0.0, atol=1e-12)


@laws
@given(seed=st.integers(0, 10_000), left=st.integers(-40, 80), top=st.integers(-40, 80))
def test_crop_shifts_pixels_and_keeps_depth(seed, left, top):
    with jax.enable_x64(True):
        camera = random_camera(seed)
        points = points_before(camera, seed)
        cropped = camera.crop(left=left, top=top, width=99, height=55)
        pixels, depth = project(camera, points)
        found_pixels, found_depth = project(cropped, points)
        np.testing.assert_allclose(found_pixels, pixels - np.array([left, top]))
        np.testing.assert_array_equal(found_depth, depth)
        assert (cropped.width, cropped.height) == (99, 55)


@laws
@given(seed=st.integers(0, 10_000), width=st.sampled_from([10, 640]))
def test_resize_scales_pixels_about_the_corner(seed, width):
    with jax.enable_x64(True):
        camera = random_camera(seed)
        points = points_before(camera, seed)
        resized = camera.resize(width=width, height=120)
        scale = np.array([width / 320, 120 / 240])
        expected = project(camera, points)[0] * scale
        np.testing.assert_allclose(project(resized, points)[0], expected, rtol=1e-9)
        back = resized.resize(width=320, height=240)
        np.testing.assert_allclose(back.intrinsics, camera.intrinsics, rtol=1e-12)


@laws
@given(seed=st.integers(0, 10_000), yaw=st.floats(-3, 3), pitch=st.floats(-1.5, 1.5))
def test_orbit_keeps_the_pivot_where_it_is_seen(seed, yaw, pitch):
    with jax.enable_x64(True):
        camera = random_camera(seed)
        pivot = points_before(camera, seed)[:1]
        moved = orbit(camera, pivot[0], yaw_radians=yaw, pitch_radians=pitch)
        for found, expected in zip(
            project(moved, pivot), project(camera, pivot), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=1e-8)
        before = jnp.linalg.norm(camera.position - pivot[0])
        after = jnp.linalg.norm(moved.position - pivot[0])
        np.testing.assert_allclose(after, before, rtol=1e-9)


def test_orbit_goes_right_with_yaw_and_up_with_pitch():
    camera = cameras.pinhole(focal=100.0, width=64, height=64)
    pivot = jnp.asarray([0.0, 0.0, 1.0])
    right = cameras.orbit(camera, pivot, yaw_radians=np.pi / 2)
    np.testing.assert_allclose(right.position, [1, 0, 1], atol=1e-6)
    up = cameras.orbit(camera, pivot, pitch_radians=np.pi / 4)
    assert up.position[1] < -0.5 and up.position[2] > 0


@laws
@given(seed=st.integers(0, 10_000))
def test_look_at_puts_the_target_in_the_centre_and_up_upwards(seed):
    rng = np.random.default_rng(seed)
    position = jnp.asarray(rng.uniform(-2, 2, 3), jnp.float32)
    target = position + jnp.asarray(rng.normal(size=3), jnp.float32)
    up = jnp.asarray([0.0, 1.0, 0.0])
    camera = look_at(position, target, up=up, focal=300.0, width=80, height=60)
    pixels, depth = project(camera, jnp.stack([target, target + 0.01 * up]))
    # float32, metres: 1e-6 of a metre at a distance of tenths is 1e-3 pixels.
    np.testing.assert_allclose(pixels[0], [40, 30], atol=0.02)
    distance = jnp.linalg.norm(target - position)
    np.testing.assert_allclose(depth[0], distance, rtol=1e-4)
    assert pixels[1, 1] < pixels[0, 1] and abs(pixels[1, 0] - 40) < 0.02
    np.testing.assert_allclose(camera.position, position, atol=1e-5)


def test_batches_of_cameras_project_like_each_alone():
    with jax.enable_x64(True):
        several = [random_camera(seed) for seed in range(3)]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
        points = jnp.stack([points_before(c, 5) for c in several])
        pixels, _ = project(batch, points)
        for index, camera in enumerate(several):
            expected, _ = project(camera, points[index])
            np.testing.assert_allclose(pixels[index], expected, rtol=1e-12)


def test_gradients_are_finite_at_and_behind_the_camera():
    camera = cameras.pinhole(focal=100.0, width=64, height=48)
    points = jnp.asarray([[0.0, 0, 0], [1, 1, 0], [0, 0, -1], [0.1, 0.2, 1e-12]])
    gradient = jax.grad(lambda p: jnp.sum(camera.project(p)[0]))
    assert np.isfinite(jax.jit(gradient)(points)).all()
