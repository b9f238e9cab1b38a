"""Splatting: goldens, laws, degenerate inputs, and reproducible bits."""

import functools
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from jax import test_util

from geodiff_jax.gaussians import model
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.render import ffi, splatting, splatting_reference
from tests import conftest
from tests.render import test_mesh_rasterizer as meshes
from tests.render.backends import EMULATED, each_backend, each_kernel

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
NAMES = ("means", "quaternions", "scales", "opacities", "features")
NAMES += ("camera_from_world", "intrinsics", "background")


def scene(count=60, channels=3, *, seed=0, size=40, dtype=np.float32):
    """Well-conditioned Gaussians before one camera, as keyword arguments."""
    random = np.random.default_rng(seed)
    pose = np.eye(4)[:3]
    pose[:, :3] = jaxlie.SO3.from_rpy_radians(0.1, -0.2, 0.3).as_matrix()
    pose[:, 3] = [0.1, -0.1, 4.0]
    arrays = {
        "means": random.normal(size=(count, 3)) * [1.0, 1.0, 0.5],
        "quaternions": random.normal(size=(count, 4)),
        "scales": np.exp(random.uniform(-2.8, -1.6, (count, 3))),
        "opacities": random.uniform(0.1, 0.95, count),
        "features": random.normal(size=(count, channels)),
        "camera_from_world": pose,
        "intrinsics": np.array([1.2 * size, 1.3 * size, 0.5 * size + 1.3, 0.5 * size]),
        "background": random.normal(size=channels),
    }
    return {name: np.asarray(array, dtype) for name, array in arrays.items()}


# Most of the time goes into compiling the reference: ask for little optimisation.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.partial(quick_jit, static_argnames=("options",))
def _render(arrays, options):
    return splatting.splat_arrays(**arrays, **dict(options))


def render(arrays, backend="cpu", *, width=40, height=40, **options):
    options |= {"width": width, "height": height, "backend": backend}
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    return jax.device_get(_render(arrays, tuple(options.items())))


@functools.partial(quick_jit, static_argnames=("options",))
def _render_with_gradients(arrays, cotangents, options):
    def outputs(arrays):
        result = splatting.splat_arrays(**arrays, **dict(options))
        return [x for x in result[:3] if x is not None], result[3:]

    found, pullback, rest = jax.vjp(outputs, arrays, has_aux=True)
    return found, rest, pullback(cotangents)[0]


def render_with_gradients(arrays, backend="cpu", *, width=40, height=40, **options):
    """The outputs, and the gradients of their products with fixed random weights."""
    random = np.random.default_rng(1)
    dtype, channels = arrays["means"].dtype, arrays["features"].shape[1]
    shapes = [(height, width, channels), (height, width), (height, width)]
    count = 3 if options.get("depth") else 2
    cotangents = [random.normal(size=s).astype(dtype) for s in shapes[:count]]
    options |= {"width": width, "height": height, "backend": backend}
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    found = _render_with_gradients(arrays, cotangents, tuple(options.items()))
    outputs, rest, gradients = jax.device_get(found)
    return splatting.Splat(*outputs, *[None] * (3 - count), *rest), gradients


def settle(arrays, width, height, *, antialiased):
    """Blanks Gaussians whose fate float32 cannot tell, as the goldens avoid them.

    Those with alpha within 1e-5 of 1/255 at some pixel, or with a depth within 1e-6 of
    the next: there any float32 result may differ by a whole splat.
    """
    with jax.enable_x64(True):
        exact = [np.float64(arrays[name]) for name in NAMES if name != "features"]
        projected = splatting_reference.project(
            *map(jnp.asarray, exact[:6]),
            width=width,
            height=height,
            near=0.01,
            antialiased=antialiased,
        )
        means, conics, depths, opacities, visible = jax.device_get(projected)
    y, x = np.divmod(np.arange(width * height), width)
    for i in range(len(depths)):
        dx, dy = x + 0.5 - means[i, 0], y + 0.5 - means[i, 1]
        a, b, c = conics[i]
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        if np.abs(np.log(255 * opacities[i]) - sigma).min() < 1e-5:
            arrays["opacities"][i] = 0.0
    order = np.flatnonzero(visible)
    order = order[np.argsort(depths[order])]
    gaps = np.diff(depths[order]) / depths[order][1:]
    arrays["opacities"][order[1:][gaps < 1e-6]] = 0.0
    assert (arrays["opacities"] > 0).mean() > 0.9


def relative(actual, expected):
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)


# Goldens -----------------------------------------------------------------------------

# (image, depth, gradients) for float32: about five times what gsplat's own arithmetic
# gives in float32; float64 is limited by the float32 storage of the goldens.
FLOAT32_TOLERANCES = {
    "a_random": (1e-5, 2e-5, 1e-4),
    "f_antialiased": (1e-5, 2e-5, 1e-4),
    "f2_antialiased_small": (1e-5, 5e-4, 1e-4),
    "b_head": (1e-5, 2e-5, 1e-4),
    "c_thin": (1e-4, 5e-4, 5e-4),
    "c2_thin_near02": (1e-4, 5e-4, 5e-4),
    "d_single": (1e-5, 2e-5, 1e-4),
    "e_saturation": (1e-5, 2e-5, 3e-4),
    "e2_saturation_tie": (1e-5, 2e-5, 3e-4),
}


@pytest.mark.parametrize("name", FLOAT32_TOLERANCES)
@each_backend
def test_golden(backend, name):
    golden = np.load(conftest.shared_data(f"goldens/{name}.npz"))
    with jax.enable_x64(backend == "reference"):
        _check_golden(golden, name, backend)


@functools.partial(quick_jit, static_argnames=("options",))
def _golden_results(arrays, cotangents, options):
    """Image, alpha, both depths; and their gradients for several cotangents."""

    def outputs(arrays):
        result = splatting.splat_arrays(**arrays, depth="accumulated", **dict(options))
        return *result[:3], result.depth / jnp.maximum(result.alpha, 1e-10)

    results, pullback = jax.vjp(outputs, arrays)
    return results, jax.vmap(lambda c: pullback(c)[0])(cotangents)


def _check_golden(golden, name, backend):
    exact = backend == "reference"
    tolerances = (1e-7, 5e-7, 2e-7) if exact else FLOAT32_TOLERANCES[name]
    image_tolerance, depth_tolerance, gradient_tolerance = tolerances
    keys = ("means", "quats", "scales", "opacities", "features")
    arrays = {n: golden[key] for n, key in zip(NAMES, keys, strict=False)}
    arrays["camera_from_world"] = golden["viewmat"][:3]
    arrays["intrinsics"] = golden["K"][[0, 1, 0, 1], [0, 1, 2, 2]]
    arrays["background"] = golden["background"]
    dtype = np.float64 if exact else np.float32
    arrays = {n: jnp.asarray(array, dtype) for n, array in arrays.items()}
    options = {
        "backend": backend,
        "width": int(golden["width"]),
        "height": int(golden["height"]),
        "near": float(golden["near_plane"]),
        "antialiased": bool(golden["antialiased"]),
    }
    w_image, w_alpha, w_depth = (golden[w] for w in ("w_img", "w_a", "w_d"))
    none, no_image = np.zeros_like(w_alpha), np.zeros_like(w_image)
    cotangents = (
        jnp.asarray([w_image, no_image, no_image], dtype),
        jnp.asarray([w_alpha, none, none], dtype),
        jnp.asarray([none, w_depth, none], dtype),
        jnp.asarray([none, none, w_depth], dtype),
    )
    results, found = jax.device_get(
        _golden_results(arrays, cotangents, tuple(options.items()))
    )
    image, alpha, accumulated, expected_depth = results
    assert np.abs(image - golden["image"]).max() <= image_tolerance
    assert np.abs(alpha - golden["alpha"]).max() <= image_tolerance
    scale = 1.0 if exact else max(1.0, float(golden["depth_expected"].max()))
    for depth, key in (
        (accumulated, "depth_accum"),
        (expected_depth, "depth_expected"),
    ):
        assert np.abs(depth - golden[key]).max() <= depth_tolerance * scale, key
    for i, prefix in enumerate(("grad_", "gradD_", "gradE_")):
        for n, key in zip(NAMES, (*keys, "viewmat", "K", "background"), strict=True):
            if prefix + key not in golden:
                continue
            expected = golden[prefix + key]
            if key == "viewmat":
                expected = expected[:3]
            if key == "K":
                expected = expected[[0, 1, 0, 1], [0, 1, 2, 2]]
            if np.linalg.norm(expected) < 1e-10:
                # A single splat's expected depth does not depend on its shape.
                limit = 1e-3 * np.linalg.norm(w_depth)
                assert np.abs(found[n][i]).max() <= limit, prefix + key
            else:
                error = relative(found[n][i], expected)
                assert error <= gradient_tolerance, prefix + key


# The kernel against float64 --------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "channels", "depth", "antialiased"),
    [
        (60, 3, None, False),
        (400, 1, "accumulated", True),
        (1500, 11, "expected", False),
        (300, 17, None, True),
        pytest.param(10_000, 4, "accumulated", False, marks=pytest.mark.slow),
    ],
)
@each_kernel
def test_kernel_agrees_with_float64(backend, count, channels, depth, antialiased):
    """Any float32 result is off by a few roundings of each of some 20 splats."""
    options = {"depth": depth, "antialiased": antialiased, "width": 70, "height": 53}
    arrays = scene(count, channels, seed=count, size=70)
    arrays["scales"] *= (60 / count) ** 0.3
    settle(arrays, 70, 53, antialiased=antialiased)
    kernel, found = render_with_gradients(arrays, backend, **options)
    with jax.enable_x64(True):
        exact = {name: array.astype(np.float64) for name, array in arrays.items()}
        expected, gradient = render_with_gradients(exact, "reference", **options)
    assert expected.alpha.mean() > 0.1
    # A GPU's exponential is good to 8 ulp.
    tolerance = 1e-5 if backend == "cpu" else 2e-5
    assert np.abs(kernel.image - expected.image).max() <= tolerance
    assert np.abs(kernel.alpha - expected.alpha).max() <= 1e-5
    if depth is not None:
        assert np.abs(kernel.depth - expected.depth).max() <= 1e-4
    for name in NAMES:
        assert relative(found[name], gradient[name]) <= 1e-4, name


@each_kernel
def test_kernel_agrees_beyond_the_clamp_of_the_jacobian(backend):
    """Wide splats far off the image: their slopes hang on the camera's limits."""
    arrays = scene(12, 2)
    arrays |= {
        "means": arrays["means"] * [1.0, 1.0, 0.3],
        "scales": arrays["scales"] + 0.4,
        "camera_from_world": np.concatenate([np.eye(3), [[0.0], [0.0], [3.0]]], axis=1),
    }
    arrays["means"][:, 0] = [-2.6, 2.6] * 6
    arrays["means"][:6, 1] = [-2.6, 2.6] * 3
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    _, found = render_with_gradients(arrays, backend)
    seen = np.abs(found["features"]).max(axis=1) > 0
    assert seen.sum() >= 8
    with jax.enable_x64(True):
        exact = {name: array.astype(np.float64) for name, array in arrays.items()}
        _, gradient = render_with_gradients(exact, "reference")
    for name in NAMES:
        assert relative(found[name], gradient[name]) <= 1e-4, name


def test_reference_gradients_match_finite_differences():
    """In float64, where a step of 1e-6 crosses no threshold of this scene."""
    with jax.enable_x64(True):
        arrays = scene(6, 2, dtype=np.float64, size=12)
        arrays["opacities"] *= 0.9

        def loss(*values):
            given = {n: jnp.asarray(v) for n, v in zip(NAMES, values, strict=True)}
            result = splatting.splat_arrays(
                **given, width=12, height=12, depth="accumulated", backend="reference"
            )
            return sum(jnp.sum(jnp.sin(3 * x + 1)) for x in result)

        values = tuple(arrays[name] for name in NAMES)
        test_util.check_grads(jax.jit(loss), values, 1, ("rev",), 1e-4, 1e-4, 1e-6)


# Laws ------------------------------------------------------------------------------


@each_backend
def test_one_gaussian_is_its_closed_form(backend):
    arrays = scene(1, 1)
    arrays |= {
        "means": np.float32([[0.0, 0.0, 2.0]]),
        "scales": np.float32([[0.2, 0.2, 0.2]]),
        "opacities": np.float32([0.8]),
        "features": np.float32([[1.0]]),
        "background": np.float32([0.0]),
        "camera_from_world": np.eye(4, dtype=np.float32)[:3],
        "intrinsics": np.float32([50, 50, 20, 20]),
    }
    x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5)
    # A sphere's image on the optical axis: (f s / z)^2 + blur.
    alpha = 0.8 * np.exp(-0.5 * (x**2 + y**2) / ((50 * 0.2 / 2) ** 2 + 0.3))
    alpha[alpha < 1 / 255] = 0
    result = render(arrays, backend, depth="expected")
    np.testing.assert_allclose(result.image[..., 0], alpha, atol=1e-6)
    np.testing.assert_allclose(result.alpha, alpha, atol=1e-6)
    np.testing.assert_allclose(result.depth, np.where(alpha > 0, 2.0, 0.0), rtol=1e-6)


@each_backend
def test_moving_world_and_camera_together_changes_nothing(backend):
    arrays = scene()
    motion = jaxlie.SE3.exp(jnp.asarray([0.3, -0.5, 0.2, 0.4, 1.0, -0.7]))
    rotation = motion.rotation()
    moved = arrays | {
        "means": np.asarray(jax.vmap(motion.apply)(arrays["means"])),
        "quaternions": np.asarray(
            jax.vmap(lambda q: (rotation @ jaxlie.SO3(q)).wxyz)(arrays["quaternions"])
        ),
        "camera_from_world": np.asarray(
            jnp.asarray(np.vstack([arrays["camera_from_world"], [[0, 0, 0, 1]]]))
            @ motion.inverse().as_matrix()
        )[:3],
    }
    image = render(arrays, backend).image
    # float32 poses of metres place splats to 1e-6 m, that is 1e-5 pixels; a pixel
    # whose alpha is 1/255 may show or not: at most 1/255 of a feature (4 here).
    error = np.abs(render(moved, backend).image - image)
    assert np.quantile(error, 0.99) < 1e-4 and error.max() < 4 / 255


@each_backend
def test_order_of_gaussians_does_not_matter(backend):
    arrays = scene()
    order = np.random.default_rng(5).permutation(60)
    shuffled = arrays | {name: arrays[name][order] for name in NAMES[:5]}
    # The same splats blend in the same order: even the bits agree.
    np.testing.assert_array_equal(
        render(shuffled, backend).image, render(arrays, backend).image
    )


@each_backend
def test_equal_depths_blend_in_order_of_index(backend):
    arrays = scene(2, 1)
    arrays |= {
        "means": np.zeros((2, 3), np.float32),
        "scales": np.full((2, 3), 0.3, np.float32),
        "opacities": np.float32([0.5, 0.5]),
        "features": np.float32([[1.0], [0.0]]),
    }
    front = render(arrays, backend).image
    back = render(arrays | {"features": np.float32([[0.0], [1.0]])}, backend).image
    seen = np.asarray(render(arrays, backend).alpha) > 0.5
    assert seen.any() and (np.asarray(front)[seen] > np.asarray(back)[seen]).all()


@each_backend
def test_faint_gaussians_leave_the_background(backend):
    arrays = scene()
    arrays["opacities"] = np.full(60, 0.99 / 255, np.float32)
    result = render(arrays, backend)
    np.testing.assert_array_equal(
        result.image, np.broadcast_to(arrays["background"], (40, 40, 3))
    )
    assert (np.asarray(result.alpha) == 0).all()


@each_backend
def test_crop_is_the_subimage(backend):
    """Also across tiles: 16-pixel ones start elsewhere in the crop."""
    arrays = scene(size=70)
    whole = render(arrays, backend, width=70, height=53)
    crop = arrays | {"intrinsics": arrays["intrinsics"] - np.float32([0, 0, 21, 9])}
    part = render(crop, backend, width=33, height=40)
    # The centres differ by a rounding; Jacobians are clamped at the image's frame plus
    # 15 %, where only splats that lie off the crop differ.
    error = np.abs(part.image - whole.image[9:49, 21:54])
    assert np.quantile(error, 0.99) < 1e-4 and error.max() < 4 / 255


@each_backend
def test_channels_are_independent(backend):
    arrays = scene(channels=13)
    together = render(arrays, backend).image
    for first, last in ((0, 1), (1, 5), (5, 13)):
        some = {n: arrays[n][..., first:last] for n in ("features", "background")}
        alone = render(arrays | some, backend).image
        np.testing.assert_allclose(together[..., first:last], alone, atol=1e-6)


@each_backend
def test_weights_sum_to_alpha(backend):
    ones = {"features": np.ones((60, 1)), "background": np.zeros(1)}
    result = render(
        scene() | {k: v.astype(np.float32) for k, v in ones.items()}, backend
    )
    np.testing.assert_allclose(result.image[..., 0], result.alpha, atol=1e-6)


@each_backend
def test_background_shows_where_alpha_does_not(backend):
    arrays = scene()
    black = render(arrays | {"background": np.zeros(3, np.float32)}, backend)
    left = (1 - black.alpha)[..., None] * arrays["background"]
    np.testing.assert_allclose(
        render(arrays, backend).image, black.image + left, atol=1e-6
    )


@each_backend
def test_camera_batch_and_vmap_equal_a_loop(backend):
    arrays = scene()
    poses = np.stack([arrays["camera_from_world"]] * 3)
    poses[:, 2, 3] += [0.0, 0.5, 1.0]
    intrinsics = np.stack([arrays["intrinsics"]] * 3)
    batch = {"camera_from_world": poses, "intrinsics": intrinsics}
    loop = [
        render(arrays | {n: x[i] for n, x in batch.items()}, backend, depth="expected")
        for i in range(3)
    ]
    native = render(arrays | batch, backend, depth="expected")
    rest = {n: jnp.asarray(x) for n, x in arrays.items() if n not in batch}

    def one(pose, k):
        return splatting.splat_arrays(
            **rest,
            camera_from_world=pose,
            intrinsics=k,
            width=40,
            height=40,
            depth="expected",
            backend=backend,
        )

    mapped = quick_jit(jax.vmap(one))(poses, intrinsics)
    for i in range(3):
        for field in ("image", "alpha", "depth"):
            expected = getattr(loop[i], field)
            for found in (native, mapped):
                np.testing.assert_allclose(
                    getattr(found, field)[i], expected, atol=1e-6
                )


@each_kernel
def test_gradient_of_a_camera_batch_is_the_sum_over_cameras(backend):
    arrays = {name: jnp.asarray(array) for name, array in scene(30, 2).items()}
    poses = jnp.stack([arrays["camera_from_world"]] * 3)
    poses = poses.at[:, 2, 3].add(jnp.asarray([0.0, 0.5, 1.0]))
    focal_lengths = jnp.asarray([1.0, 0.9, 1.2])[:, None] * arrays["intrinsics"]

    def loss(arrays):
        result = splatting.splat_arrays(**arrays, width=40, height=40, backend=backend)
        return jnp.sum(jnp.sin(result.image)) + jnp.sum(result.alpha**2)

    gradient = quick_jit(jax.grad(loss))
    batch = {"camera_from_world": poses, "intrinsics": focal_lengths}
    together = gradient(arrays | batch)
    alone = [gradient(arrays | {n: x[i] for n, x in batch.items()}) for i in range(3)]
    for name in NAMES:
        each = [found[name] for found in alone]
        expected = jnp.stack(each) if name in batch else sum(each)
        # Sums over pixels are taken in the same order, over cameras too.
        assert relative(together[name], expected) < 1e-6, name


@each_backend
def test_offsets_move_centres_and_their_gradient_is_the_screen_gradient(backend):
    """By one vector they move the principal point; and so do their gradients' sums."""
    arrays = {n: jnp.asarray(x) for n, x in scene(30, 2).items()}
    arrays["means"] *= 0.6  # Where the Jacobian is clamped the lens matters more.
    pose, lens = arrays.pop("camera_from_world"), arrays.pop("intrinsics")
    poses = jnp.stack([pose, pose.at[2, 3].add(0.7)])
    shift = jnp.asarray([[3.0, -1.5], [0.25, 2.0]])
    offsets = jnp.broadcast_to(shift[:, None], (2, 30, 2))

    def loss(offsets, lenses, poses, arrays=arrays):
        found = splatting.splat_arrays(
            **arrays,
            camera_from_world=poses,
            intrinsics=lenses,
            offsets=offsets,
            width=40,
            height=40,
            backend=backend,
        )
        return jnp.sum(jnp.sin(found.image)) + jnp.sum(found.alpha**2), found.image

    lenses = jnp.stack([lens] * 2)
    both = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, image), (d_offsets, d_lenses) = both(offsets, lenses, poses)
    moved = lenses.at[:, 2:].add(shift)
    (_, expected), _ = both(jnp.zeros_like(offsets), moved, poses)
    np.testing.assert_allclose(image, expected, atol=2e-5)
    assert relative(d_offsets.sum(axis=1), d_lenses[:, 2:]) < 1e-4
    mapped = quick_jit(jax.vmap(jax.grad(loss, has_aux=True)))
    one_by_one, _ = mapped(offsets, lenses, poses)
    assert relative(one_by_one, d_offsets) < 1e-5

    def of_means(means, offsets):
        moved = arrays | {"means": means}
        return loss(offsets, lenses, poses, moved)[0]

    # Sets of Gaussians that share their offsets.
    sets = jnp.stack([arrays["means"], 1.2 * arrays["means"]])
    slope = quick_jit(jax.grad(of_means, 1))
    found = quick_jit(jax.vmap(jax.grad(of_means, 1), (0, None)))(sets, offsets)
    for i in range(2):
        assert relative(found[i], slope(sets[i], offsets)) < 1e-5


@each_backend
def test_what_shows_is_visible_and_what_is_not_visible_has_no_gradient(backend):
    arrays = scene(300)
    arrays["means"] *= [2.5, 2.5, 6.0]  # Many beside and behind the camera.
    arrays["opacities"][::7] = 0.003
    found, gradients = render_with_gradients(arrays, backend)
    drawn = {name: jnp.asarray(array) for name, array in arrays.items()}

    def total(features):
        return splatting.splat_arrays(
            **(drawn | {"features": features}), width=40, height=40, backend=backend
        ).image.sum()

    shows = np.asarray(quick_jit(jax.grad(total))(drawn["features"]))[:, 0] != 0
    assert found.visible.shape == (300,)
    assert shows.sum() > 30
    assert not (shows & ~found.visible).any()
    # It may promise a little too much, at corners of the image.
    assert (found.visible & ~shows).sum() < 0.2 * shows.sum()
    for name in NAMES[:5]:
        assert not gradients[name][~found.visible].any(), name


@each_kernel
def test_vmap_over_gaussians_and_its_gradient_equal_a_loop(backend):
    """Sets of Gaussians before one shared pair of cameras."""
    arrays = scene(30, 2)
    poses = np.stack([arrays["camera_from_world"]] * 2)
    poses[1, 2, 3] += 0.5
    shared = arrays | {
        "camera_from_world": poses,
        "intrinsics": np.stack([arrays["intrinsics"]] * 2),
    }
    shared = {n: jnp.asarray(x) for n, x in shared.items()}
    sets = jnp.stack([shared["means"], shared["means"] + 0.2, shared["means"] * 0.5])

    def loss(means, pose):
        result = splatting.splat_arrays(
            **(shared | {"means": means, "camera_from_world": pose}),
            width=24,
            height=40,
            backend=backend,
        )
        return jnp.sum(jnp.sin(result.image)) + jnp.sum(result.alpha**2)

    both = jax.value_and_grad(loss, argnums=(0, 1))
    alone = quick_jit(both)
    loop = [alone(means, shared["camera_from_world"]) for means in sets]
    mapped = quick_jit(jax.vmap(both, in_axes=(0, None)))
    values, (d_means, d_poses) = mapped(sets, shared["camera_from_world"])
    summed = quick_jit(
        jax.grad(lambda s, p: jnp.sum(jax.vmap(loss, in_axes=(0, None))(s, p)), (0, 1))
    )(sets, shared["camera_from_world"])
    for i, (value, (d_mean, d_pose)) in enumerate(loop):
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        assert relative(d_means[i], d_mean) < 1e-5
        assert relative(d_poses[i], d_pose) < 1e-5
        assert relative(summed[0][i], d_mean) < 1e-5
    assert relative(summed[1], sum(d_pose for _, (_, d_pose) in loop)) < 1e-5


@each_backend
def test_jit_equals_eager(backend):
    arrays = {n: jnp.asarray(x) for n, x in scene(20).items()}
    eager = splatting.splat_arrays(**arrays, width=40, height=40, backend=backend)
    compiled = render(arrays, backend)
    np.testing.assert_allclose(compiled.image, eager.image, atol=1e-6)


def test_default_backend_is_the_kernel_on_cpu(kernels):
    arrays = scene()
    default, default_found = render_with_gradients(arrays, None)
    kernel, found = render_with_gradients(arrays, "cpu")
    np.testing.assert_array_equal(default.image, kernel.image)
    for name, gradient in found.items():
        np.testing.assert_array_equal(default_found[name], gradient)


@each_backend
def test_pytrees_go_through(backend):
    arrays = scene(channels=4)
    gaussians = model.Gaussians(
        means=jnp.asarray(arrays["means"]),
        quaternions=jnp.asarray(arrays["quaternions"]),
        log_scales=jnp.log(arrays["scales"]),
        opacity_logits=jnp.log(arrays["opacities"] / (1 - arrays["opacities"])),
        sh=jnp.zeros((60, 1, 3)),
        alive=jnp.arange(60) < 40,
    )
    camera = cameras.Camera(
        jaxlie.SE3.from_matrix(
            jnp.vstack([arrays["camera_from_world"], jnp.asarray([[0.0, 0, 0, 1]])])
        ),
        jnp.asarray(arrays["intrinsics"]),
        40,
        40,
    )
    found = splatting.splat(
        gaussians, jnp.asarray(arrays["features"]), camera, backend=backend
    )
    living = {n: x[:40] if n in NAMES[:5] else x for n, x in arrays.items()}
    living["background"] = np.zeros(4, np.float32)
    expected = render(living, backend)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-4)


# Degenerate inputs -----------------------------------------------------------------

BAD = {
    "nan mean": ("means", np.nan),
    "inf mean": ("means", np.inf),
    "huge mean": ("means", 1e30),
    "behind": ("means", [0, 0, -9]),
    "in the camera": ("means", "centre"),
    "zero quaternion": ("quaternions", 0.0),
    "nan quaternion": ("quaternions", np.nan),
    "inf quaternion": ("quaternions", np.inf),
    "nan scale": ("scales", np.nan),
    "inf scale": ("scales", np.inf),
    "huge scale": ("scales", 1e30),
    "nan opacity": ("opacities", np.nan),
    "inf opacity": ("opacities", np.inf),
    "zero opacity": ("opacities", 0.0),
    "negative opacity": ("opacities", -1.0),
}


@pytest.mark.parametrize("case", BAD)
@each_backend
def test_culled_gaussians_change_nothing_and_have_zero_gradient(backend, case):
    name, value = BAD[case]
    arrays = scene(20)
    if value == "centre":
        pose = arrays["camera_from_world"]
        value = -pose[:, :3].T @ pose[:, 3]
    expected = render(
        {n: x[1:] if n in NAMES[:5] else x for n, x in arrays.items()}, backend
    )
    arrays[name][0] = value
    arrays["features"][0] = np.nan
    result, found = render_with_gradients(arrays, backend)
    np.testing.assert_allclose(result.image, expected.image, atol=1e-6)
    for n in NAMES:
        assert np.isfinite(found[n]).all(), n
        if n in NAMES[:5]:
            assert (np.asarray(found[n])[0] == 0).all(), n


@pytest.mark.parametrize(
    "change",
    [
        {"scales": 0.0},
        {"scales": 1e3},
        {"scales": 1e10},
        {"opacities": 1.0},
        {"opacities": 5.0},
        {"means": 0.0},
        {"quaternions": 1e-15},
        {"intrinsics": 1e6},
        {"intrinsics": 0.0},
        {"camera_from_world": 0.0},
    ],
    ids=str,
)
@each_backend
def test_extreme_values_stay_finite(backend, change):
    arrays = scene(20)
    for name, value in change.items():
        arrays[name] = np.full_like(arrays[name], value)
    result, found = render_with_gradients(arrays, backend, depth="expected")
    assert all(np.isfinite(x).all() for x in result)
    for name in NAMES:
        assert np.isfinite(found[name]).all(), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45])
@each_kernel
def test_no_bit_pattern_crashes_the_kernel(backend, name, value):
    arrays = scene(40)
    flat = arrays[name].reshape(-1)
    flat[::3] = value
    render_with_gradients(arrays, backend, depth="expected")


SIZES = [(0, 3, 20, 20), (20, 0, 1, 1), (20, 3, 1, 1), (20, 3, 17, 5), (20, 3, 0, 4)]


@pytest.mark.parametrize(
    ("backend", "count", "channels", "width", "height"),
    [("reference", *size) for size in SIZES[:2]]
    + [(backend, *size) for backend in ("cpu", "cuda") for size in SIZES]
    + [pytest.param(EMULATED, *size, marks=pytest.mark.slow) for size in SIZES],
)
def test_odd_sizes(backend, count, channels, width, height):
    arrays = scene(count, channels, size=20)
    size = {"width": width, "height": height}
    result, found = render_with_gradients(arrays, backend, depth="accumulated", **size)
    assert result.image.shape == (height, width, channels)
    assert result.alpha.shape == result.depth.shape == (height, width)
    if count == 0:
        assert (np.asarray(result.image) == arrays["background"]).all()
    for name in NAMES:
        assert found[name].shape == arrays[name].shape
        assert np.isfinite(found[name]).all()


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_more_than_65535_tiles(backend):
    arrays = scene(20, 1, size=64)
    small = render(arrays, backend, width=64, height=64)
    shift = np.float32([0, 0, 4032, 4160])
    arrays["intrinsics"] += shift
    wide = render(arrays, backend, width=4112, height=4224)
    # 4096 pixels from the corner float32 resolves 2^-11 pixel.
    error = np.abs(wide.image[4160:, 4032:4096] - small.image)
    assert np.quantile(error, 0.99) < 2e-3
    assert (np.asarray(wide.image[:4000]) == arrays["background"]).all()


@pytest.mark.parametrize(
    "backend", ["cpu", "cuda", pytest.param(EMULATED, marks=pytest.mark.slow)]
)
def test_thousands_of_gaussians_in_one_tile(backend):
    arrays = scene(3000, 2, size=16)
    arrays["opacities"] *= 0.1
    size = {"width": 16, "height": 16}
    result, found = render_with_gradients(arrays, backend, **size)
    expected, wanted = render_with_gradients(arrays, "reference", **size)
    assert result.visible.sum() > 2000
    np.testing.assert_allclose(result.image, expected.image, atol=1e-5)
    for name in NAMES:
        assert relative(found[name], wanted[name]) < 1e-4, name


@pytest.mark.slow
def test_ten_million_pairs_of_a_gaussian_and_a_tile(kernels):
    arrays = scene(40_000, 1, size=256)
    arrays["scales"] = np.full_like(arrays["scales"], 50.0)
    arrays["opacities"] = np.full_like(arrays["opacities"], 0.02)
    size = {"width": 256, "height": 256}
    result, found = render_with_gradients(arrays, **size)
    assert np.all(result.alpha > 0.999)
    # Pixels are full after some hundred Gaussians: the rest might as well not be there.
    depths = arrays["means"] @ arrays["camera_from_world"][2, :3]
    nearest = np.sort(np.argsort(depths)[:1000])
    front = {
        name: array[nearest] if len(array) == 40_000 else array
        for name, array in arrays.items()
    }
    few, few_found = render_with_gradients(front, **size)
    np.testing.assert_array_equal(result.image, few.image)
    hidden = np.setdiff1d(np.arange(40_000), nearest)
    for name in ("means", "quaternions", "scales", "opacities", "features"):
        np.testing.assert_array_equal(found[name][nearest], few_found[name])
        assert not found[name][hidden].any()


def test_float64_runs_the_reference_unless_told_otherwise(kernels):
    with jax.enable_x64(True):
        arrays = scene(5, dtype=np.float64)
        assert render(arrays, None).image.dtype == jnp.float64
        assert render(arrays, "cpu").image.dtype == jnp.float32


def test_wrong_arguments_are_named():
    arrays = scene(5)
    with pytest.raises(ValueError, match=r"scales of shape \(5, 3\), got \(4, 3\)"):
        render(arrays | {"scales": arrays["scales"][:4]})
    with pytest.raises(ValueError, match="camera_from_world"):
        render(arrays | {"camera_from_world": np.eye(4)})
    with pytest.raises(ValueError, match="backend"):
        render(arrays, "gpu")
    with pytest.raises(ValueError, match="depth"):
        render(arrays, depth="median")
    with pytest.raises(ValueError, match=r"offsets of shape \(5, 2\), got \(1, 2\)"):
        render(arrays | {"offsets": np.zeros((1, 2))})
    with pytest.raises(TypeError, match="means to be real numbers, got complex64"):
        render(arrays | {"means": arrays["means"].astype(np.complex64)})


def test_whole_numbers_are_numbers():
    arrays = scene(5)
    whole = arrays | {"features": np.arange(15).reshape(5, 3)}
    same = arrays | {"features": np.arange(15.0).reshape(5, 3)}
    np.testing.assert_array_equal(render(whole).image, render(same).image)


# Reproducible bits -----------------------------------------------------------------

DIGEST = """
import hashlib, sys
import jax
sys.path[:0] = sys.argv[1:]
from tests.render import test_mesh_rasterizer as meshes
from tests.render import test_splatting as t
arrays = t.scene(3000, 5, size=200)
arrays["scales"] = arrays["scales"] * 0.4
options = {"width": 200, "height": 150, "depth": "expected"}
digests = set()
for _ in range(3):
    splats = t.render_with_gradients(arrays, "cpu", **options)
    mesh = meshes.crowd("cpu")
    leaves = jax.tree.leaves(jax.device_get((splats, mesh)))
    content = b"".join(leaf.tobytes() for leaf in leaves)
    digests.add(hashlib.sha256(content).hexdigest())
assert len(digests) == 1, "runs differ"
print(digests.pop())
"""


def run_python(program, **environment):
    """Runs a program in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bits_do_not_depend_on_run_or_threads(kernels):
    """NPROC sets the size of XLA's thread pool."""
    assert len({run_python(DIGEST, NPROC=n) for n in ("1", "2", "16")}) == 1


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
sys.path[:0] = sys.argv[1:]
from geodiff_jax.render import splatting
from tests.render import test_splatting as t
arrays = {name: jnp.asarray(array) for name, array in t.scene(200).items()}
pose, intrinsics = arrays.pop("camera_from_world"), arrays.pop("intrinsics")
poses = jnp.stack([pose.at[0, 3].add(0.1 * i) for i in range(4)])
weights = jax.random.normal(jax.random.key(0), (4, 40, 40, 3))
def render(arrays, poses):
    batch = jnp.broadcast_to(intrinsics, (len(poses), 4))
    cameras = {"camera_from_world": poses, "intrinsics": batch}
    return splatting.splat_arrays(**arrays, **cameras, width=40, height=40).image
specs = {"in_specs": (P(), P("view")), "out_specs": P("view")}
mesh = jax.make_mesh((2,), ("view",), axis_types=(jax.sharding.AxisType.Auto,))
sharded = jax.shard_map(render, mesh=mesh, check_vma=False, **specs)
image = jax.jit(sharded)(arrays, poses)
assert len(image.sharding.device_set) == 2
np.testing.assert_array_equal(image, render(arrays, poses))
def gradients(render):
    loss = lambda *x: jnp.vdot(render(*x), weights)
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(arrays, poses)
pairs = zip(*map(jax.tree.leaves, map(gradients, (sharded, render))), strict=True)
assert max(t.relative(*pair) for pair in pairs) < 1e-6
"""


def test_cameras_shared_among_devices_equal_one_device(kernels):
    run_python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=2")


BUILD = """
import pickle, sys
import jax
sys.path.insert(0, sys.argv[1])
from tests.render import test_mesh_rasterizer as meshes
from tests.render import test_splatting as t
arrays = t.scene(400, 3, size=60)
found = t.render_with_gradients(arrays, width=61, height=45, depth="accumulated")
mesh = jax.tree.leaves(jax.device_get(meshes.crowd("cpu")))
print(pickle.dumps((tuple(found[0]), found[1], mesh)).hex())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_build_of_the_kernels_agrees(kernels, isa):
    """With the best one, which is held to the reference elsewhere."""
    if isa not in ffi.instruction_sets():
        pytest.skip(f"this processor has no {isa}")
    found = pickle.loads(bytes.fromhex(run_python(BUILD, GEODIFF_JAX_ISA=isa)))
    best = render_with_gradients(
        scene(400, 3, size=60), width=61, height=45, depth="accumulated"
    )
    for output, expected in zip(found[0][:3], best[0][:3], strict=True):
        assert np.abs(output - expected).max() < 1e-5
    for name in NAMES:
        assert relative(found[1][name], best[1][name]) < 1e-4, name
    face, weights, depth = jax.tree.leaves(meshes.crowd("cpu"))
    np.testing.assert_array_equal(found[2][0], face)
    np.testing.assert_allclose(found[2][1], weights, atol=1e-5)
    np.testing.assert_allclose(found[2][2], depth, rtol=1e-5)


FALLBACK = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from tests.render import test_splatting as t
    result, gradients = t.render_with_gradients(t.scene(5), None)
    assert result.alpha.max() > 0.1 and abs(gradients["means"]).max() > 0
    try:
        t.render(t.scene(5), "cpu")
    except RuntimeError as error:
        assert "build_kernels" in str(error)
    else:
        raise AssertionError("no kernels, no error")
assert len(caught) == 1 and "no compiled kernels" in str(caught[0].message), caught
"""


def test_without_kernels_the_reference_runs_after_one_warning():
    run_python(FALLBACK, GEODIFF_JAX_ISA="unheard-of")


IMPORT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax", "jaxlie", "jaxtyping", "beartype"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
from geodiff_jax.render import splatting
import numpy as np
splatting.splat_arrays(
    np.zeros((1, 3)), np.ones((1, 4)), np.ones((1, 3)), np.ones(1), np.ones((1, 2)),
    np.eye(4)[:3], np.ones(4), width=4, height=4)
"""


def test_imports_with_jax_and_numpy_alone():
    run_python(IMPORT)
