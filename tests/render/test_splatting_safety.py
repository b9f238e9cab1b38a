"""Splatting at its edges: clamped opacities, NaN features, kernels called wrongly."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.render import ffi, splatting
from tests.render import backends, test_splatting
from tests.render.backends import each_backend, each_kernel


@each_kernel
def test_opacities_above_one_meet_the_clamp(backend):
    """Where alpha is clamped, neither opacity nor place has a gradient."""
    arrays = test_splatting.scene(1, 1)
    arrays |= {
        "means": np.float32([[0.0, 0.0, 2.0]]),
        "scales": np.float32([[0.2, 0.2, 0.2]]),
        "opacities": np.float32([5.0]),
        "camera_from_world": np.eye(4, dtype=np.float32)[:3],
        "intrinsics": np.float32([50, 50, 20, 20]),
    }
    x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5)
    falloff = np.exp(-0.5 * (x**2 + y**2) / ((50 * 0.2 / 2) ** 2 + 0.3))
    alpha = np.where(5 * falloff < 1 / 255, 0.0, np.minimum(5 * falloff, 0.99))
    result = test_splatting.render(arrays, backend, depth="expected")
    np.testing.assert_allclose(result.alpha, alpha, atol=2e-6)
    assert (result.alpha == np.float32(0.99)).sum() > 50
    _, found = test_splatting.render_with_gradients(arrays, backend)
    random = np.random.default_rng(1)
    d_image, d_alpha = random.normal(size=(40, 40, 1)), random.normal(size=(40, 40))
    span = arrays["features"][0, 0] - arrays["background"][0]
    free = (alpha > 0) & (alpha < 0.99)
    expected = np.sum((d_image[..., 0] * span + d_alpha) * falloff * free)
    np.testing.assert_allclose(found["opacities"][0], expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@each_backend
def test_features_that_are_not_finite_stay_where_they_are_blended(backend, bad):
    arrays = test_splatting.scene()
    arrays["opacities"][:] = 0.3
    clean = test_splatting.render(arrays, backend)
    arrays["features"][7, 1] += 1e4
    shifted = test_splatting.render(arrays, backend)
    touched = (shifted.image != clean.image)[..., 1]
    arrays["features"][7, 1] = bad
    poisoned = test_splatting.render(arrays, backend)
    assert 20 < touched.sum() < 800
    np.testing.assert_array_equal(np.isfinite(poisoned.image[..., 1]), ~touched)
    np.testing.assert_array_equal(poisoned.image[~touched], clean.image[~touched])
    np.testing.assert_array_equal(poisoned.image[..., ::2], clean.image[..., ::2])
    np.testing.assert_array_equal(poisoned.alpha, clean.alpha)


# Right operands, as far as they go, for one camera before two Gaussians.
OPERANDS = ((2, 3), (2, 4), (2, 3), (2,), (2, 5), (1, 3, 4), (1, 4), (5,), (1, 0, 2))
RESULTS = ((1, 8, 8, 5), (1, 8, 8), (1, 0, 0))


def call_forward(operands, *, results=RESULTS, lead=()):
    results = [jax.ShapeDtypeStruct((*lead, *s), jnp.float32) for s in results]
    results.append(jax.ShapeDtypeStruct((*lead, 1, 2), jnp.bool_))
    options = {"near": np.float32(0.01), "antialiased": False}
    return ffi.call("splat_forward", results, *operands, **options)


@pytest.mark.parametrize("place", range(len(OPERANDS)))
def test_operands_of_another_shape_are_refused(kernels, place):
    """By the handler itself, whoever calls it."""
    assert ffi.available("cpu")
    operands = [jnp.ones(shape, jnp.float32) for shape in OPERANDS]
    assert np.isfinite(call_forward(operands)[0]).all()
    operands[place] = jnp.ones((*OPERANDS[place][:-1], 7), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="operands do not fit"):
        jax.block_until_ready(call_forward(operands))


@pytest.mark.parametrize("place", range(len(OPERANDS)))
def test_batches_of_another_length_are_refused(kernels, place):
    """Leading axes are the results', or 1: an axis of 2 holds no third set."""
    assert ffi.available("cpu")
    operands = [jnp.ones((1, *shape), jnp.float32) for shape in OPERANDS]
    assert np.isfinite(call_forward(operands, lead=(3,))[0]).all()
    operands[place] = jnp.ones((2, *OPERANDS[place]), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="operands do not fit"):
        jax.block_until_ready(call_forward(operands, lead=(3,)))


def test_an_image_of_other_channels_is_refused(kernels):
    assert ffi.available("cpu")
    operands = [jnp.ones(shape, jnp.float32) for shape in OPERANDS]
    with pytest.raises(jax.errors.JaxRuntimeError, match="operands do not fit"):
        results = ((1, 8, 8, 4), *RESULTS[1:])
        jax.block_until_ready(call_forward(operands, results=results))


def test_operands_of_another_type_are_refused(kernels):
    assert ffi.available("cpu")
    operands = [jnp.ones(shape, jnp.float32) for shape in OPERANDS]
    operands[0] = operands[0].astype(jnp.bfloat16)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)f32.*bf16|bf16.*f32"):
        jax.block_until_ready(call_forward(operands))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_vmap_is_one_launch(kernels, platform):
    """Over Gaussians, cameras and both; forwards and backwards."""
    if not ffi.available(platform):
        pytest.skip(f"there are no kernels for {platform}")
    arrays = {n: jnp.asarray(x) for n, x in test_splatting.scene(5).items()}

    def loss(means, pose):
        moved = arrays | {"means": means, "camera_from_world": pose}
        result = splatting.splat_arrays(**moved, width=8, height=8, backend=platform)
        return jnp.sum(result.image**2)

    sets = jnp.stack([arrays["means"]] * 3)
    poses = jnp.stack([arrays["camera_from_world"]] * 2)
    both = jax.value_and_grad(loss, argnums=(0, 1))
    mapped = jax.vmap(jax.vmap(both, (None, 0)), (0, None))
    traced = jax.jit(mapped).trace(sets, poses)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("@geodiff_jax_splat_") == 2 and "while" not in text


@pytest.mark.slow
def test_gradients_on_more_than_65535_tiles(kernels):
    """Those of the same scene on a small image: the rest of it is background."""
    arrays = test_splatting.scene(20, 1, size=64)
    options = {"near": 0.01, "backend": "cpu"}

    @jax.jit
    def gradients(arrays, weights):
        def loss(arrays):
            height, width = weights.shape
            result = splatting.splat_arrays(
                **arrays, width=width, height=height, **options
            )
            return jnp.sum(result.image[..., 0] * weights)

        return jax.grad(loss)(arrays)

    weights = jax.random.normal(jax.random.key(0), (64, 64))
    expected = gradients(arrays, weights)
    arrays["intrinsics"] = arrays["intrinsics"] + np.float32([0, 0, 4032, 4160])
    wide = jnp.zeros((4224, 4112)).at[4160:, 4032:4096].set(weights)
    found = gradients(arrays, wide)
    for name in test_splatting.NAMES[:6]:
        # 4096 pixels from the corner float32 resolves 2^-11 pixel.
        assert test_splatting.relative(found[name], expected[name]) < 5e-3, name


CROWDED = """
import functools, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, sys.argv[1])
from geodiff_jax.render import ffi, splatting_kernels as kernels
ffi.register(pathlib.Path(sys.argv[2]), ffi.TARGETS["cuda"], "cpu")
from tests.render import test_splatting as t
arrays = t.scene(300, size=70)
arrays["camera_from_world"] = arrays["camera_from_world"][None]
arrays["intrinsics"] = arrays["intrinsics"][None]
operands = (*(jnp.asarray(arrays[name]) for name in t.NAMES), jnp.zeros((1, 0, 2)))
shapes = (1, 53, 70, 3), (1, 53, 70), (1, 0, 0)
cotangents = tuple(jnp.ones(shape) for shape in shapes)
for capacity in (1, 7, 200, 5000):
    options = kernels.Options(70, 53, 0.01, False, False, capacity)
    # Arrays that cross from one program to the other have memory of their own.
    forward = jax.jit(functools.partial(kernels.forward_cuda, options))
    outputs, lists = forward(*operands)
    assert (int(outputs[-1]) > capacity) == (capacity < 5000)
    backward = jax.jit(functools.partial(kernels.backward_cuda, options))
    found = backward(operands, lists, cotangents)
    assert all(np.isfinite(x).all() for x in (*outputs[:2], *found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")
def test_without_room_cuda_kernels_stay_within_their_memory(tmp_path):
    """Emulated under ASAN, of which Python has to be told beforehand."""
    library = backends.compile_emulation(tmp_path, "-fsanitize=address", "-g1")
    runtimes = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    done = subprocess.run(
        [sys.executable, "-c", CROWDED, test_splatting.ROOT, str(library)],
        env=os.environ
        | {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
