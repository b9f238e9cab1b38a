"""What only the CUDA kernels have: lists of fixed capacity, and lowering without a GPU.

What they share with the other backends is tested over all of them in test_splatting.py.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.render import ffi, mesh_rasterizer, splatting, splatting_kernels
from tests.render import test_splatting
from tests.render.backends import each_cuda

SIZE = {"width": 70, "height": 53}


@pytest.fixture
def cuda_kernels():
    """They load, and register, without a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not ffi.available("cuda"):
            pytest.skip("the CUDA kernels are not built")


def lists(arrays, capacity):
    """What the forward pass leaves to its adjoint, and the capacity wanted."""
    options = splatting_kernels.Options(70, 53, 0.01, False, False, capacity)
    names = test_splatting.NAMES
    arrays = {name: jnp.asarray(arrays[name]) for name in names}
    arrays["camera_from_world"] = arrays["camera_from_world"][None]
    arrays["intrinsics"] = arrays["intrinsics"][None]
    forward = jax.jit(functools.partial(splatting_kernels.forward_cuda, options))
    operands = [*(arrays[name] for name in names), jnp.zeros((1, 0, 2))]
    outputs, found = jax.device_get(forward(*operands))
    return found, int(outputs[-1])


def scene(count=300, *, scale=1.0):
    arrays = test_splatting.scene(count, size=70)
    arrays["scales"] *= np.float32(scale)
    return arrays


def test_splatting_lowers_for_cuda_without_a_gpu(cuda_kernels):
    arrays = {name: jnp.asarray(array) for name, array in scene(5).items()}

    def loss(arrays):
        result = splatting.splat_arrays(**arrays, **SIZE, backend="cuda")
        return jnp.sum(result.image)

    traced = jax.jit(jax.grad(loss)).trace(arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@geodiff_jax_splat_forward_cuda(") == 1
    assert text.count("@geodiff_jax_splat_backward_cuda(") == 1


def test_meshes_lower_for_cuda_without_a_gpu(cuda_kernels):
    def draw(points):
        faces = jnp.asarray([[0, 1, 2]])
        return mesh_rasterizer.rasterize_pixels(
            points, faces, width=8, height=8, backend="cuda"
        )

    traced = jax.jit(draw).trace(jnp.zeros((3, 3)))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "@geodiff_jax_mesh_rasterize_cuda(" in text


def test_a_gpu_in_the_process_leaves_the_platform_open(monkeypatch, cuda_kernels):
    """One program then serves CPUs and GPUs, forwards and backwards."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arrays = {name: jnp.asarray(array) for name, array in scene(5).items()}

    def loss(arrays):
        return jnp.sum(splatting.splat_arrays(**arrays, **SIZE).image ** 2)

    traced = jax.jit(jax.grad(loss)).trace(arrays)
    for platform, expected in (("cpu", "forward("), ("cuda", "forward_cuda(")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("@geodiff_jax_splat_") == 2
        assert f"@geodiff_jax_splat_{expected}" in text


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
@each_cuda
def test_lists_hold_what_reaches_a_tile_and_little_else(backend, scale):
    """Against every pixel of every Gaussian, in order of depth."""
    arrays = scene(150, scale=scale)
    (records, slots, owners, entries, tile_begin, _, _), wanted = lists(arrays, 4000)
    assert wanted == slots[..., 1].sum() and 150 < wanted < 4000
    x, y, a, b, c, opacity, _, z = records[0].T[..., None, None]
    seen = slots[0, :, 1] > 0
    rows, columns = np.mgrid[:64, :80] + 0.5
    with np.errstate(all="ignore"):
        dx, dy = columns - x, rows - y
        sigma = a * dx * dx + b * dx * dy + c * dy * dy
        alpha = np.where(seen[:, None, None], opacity * np.exp(-sigma), 0.0)
    inside = (rows < 53) & (columns < 70)
    tiled = np.where(inside, alpha, 0.0).reshape(150, 4, 16, 5, 16).max((2, 4))
    needless = 0
    for tile in range(20):
        found = owners[entries[tile_begin[tile] : tile_begin[tile + 1]]]
        assert (np.diff(z[found, 0, 0]) >= 0).all()
        best = tiled.reshape(150, 20)[:, tile]
        assert set(np.flatnonzero(best >= 1 / 255)) <= set(found)
        assert len(set(found)) == len(found)
        needless += (best[found] < 1 / 255).sum()
    # A list may hold what passes between pixel centres, or is just too faint there.
    assert needless < 0.25 * wanted
    # Slots are those of their owners.
    first, count = slots[0].T
    for gaussian in np.flatnonzero(seen):
        span = slice(first[gaussian], first[gaussian] + count[gaussian])
        assert (owners[span] == gaussian).all()


@each_cuda
def test_enough_capacity_changes_nothing(backend):
    arrays = scene()
    _, wanted = lists(arrays, 1)
    plenty, gradients = test_splatting.render_with_gradients(arrays, backend, **SIZE)
    assert not plenty.overflow
    assert not plenty.overflow
    exact, found = test_splatting.render_with_gradients(
        arrays, backend, **SIZE, capacity=wanted
    )
    np.testing.assert_array_equal(exact.image, plenty.image)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(found[name], gradient)
    result = test_splatting.render(arrays, backend, **SIZE, capacity=wanted)
    assert not result.overflow
    result = test_splatting.render(arrays, backend, **SIZE, capacity=wanted - 1)
    assert result.overflow


@pytest.mark.parametrize("capacity", [1, 7, 200])
@each_cuda
def test_without_room_the_farthest_are_left_out(backend, capacity):
    arrays = scene()
    (_, slots, *_), wanted = lists(arrays, capacity)
    assert wanted > capacity
    result, gradients = test_splatting.render_with_gradients(
        arrays, backend, **SIZE, capacity=capacity
    )
    assert np.isfinite(result.image).all()
    first, count = slots[0].T.astype(np.int64)
    left_out = (count > 0) & (first >= capacity)
    whole = (count > 0) & (first + count <= capacity)
    for name in test_splatting.NAMES[:5]:
        assert (gradients[name][left_out] == 0).all()
    depths = arrays["means"] @ arrays["camera_from_world"][2, :3]
    if whole.any():
        assert depths[whole].max() <= depths[left_out].min()
        kept = arrays | {"opacities": np.where(left_out, 0, arrays["opacities"])}
        expected = test_splatting.render(kept, backend, **SIZE)
        # Of one Gaussian, some tiles have found room.
        different = np.abs(result.image - expected.image).max(-1) > 1e-6
        assert different.mean() < 0.5


@each_cuda
def test_required_capacity_is_what_is_wanted_and_a_margin(backend):
    arrays = scene()
    _, wanted = lists(arrays, 1)
    named = {n: jnp.asarray(arrays[n]) for n in test_splatting.NAMES[:4]}
    cameras = {n: jnp.asarray(arrays[n]) for n in test_splatting.NAMES[5:7]}
    found = splatting.required_capacity(
        **named, **cameras, **SIZE, margin=1.5, backend=backend
    )
    assert found == int(np.ceil(1.5 * wanted))


def test_what_needs_no_capacity_reports_the_default():
    arrays = scene()
    given = set(arrays) - {"features", "background"}
    named = {n: jnp.asarray(arrays[n]) for n in given}
    found = splatting.required_capacity(**named, **SIZE, backend="reference")
    assert found == splatting_kernels.default_capacity(300, 1, 70, 53)


@each_cuda
def test_vmapped_calls_share_their_capacity(backend):
    arrays = {name: jnp.asarray(array) for name, array in scene(100).items()}
    far = arrays["means"] + jnp.asarray([0.0, 0.0, 60.0])
    wanted = [
        lists(arrays | {"means": means}, 1)[1] for means in (arrays["means"], far)
    ]
    assert wanted[1] < wanted[0]

    def render(means, capacity):
        return splatting.splat_arrays(
            **(arrays | {"means": means}), **SIZE, capacity=capacity, backend=backend
        )

    sets = jnp.stack([arrays["means"], far])
    mean = -(-sum(wanted) // 2)
    enough = jax.vmap(functools.partial(render, capacity=mean))(sets)
    assert not enough.overflow.any()
    for i, means in enumerate(sets):
        np.testing.assert_array_equal(enough.image[i], render(means, 4000).image)
    assert jax.vmap(functools.partial(render, capacity=mean - 1))(sets).overflow.all()


@each_cuda
def test_large_gaussians_and_many_channels_agree_with_the_reference(backend):
    """More than 32 tiles each, listed by a whole warp; three groups of channels."""
    arrays = test_splatting.scene(6, 34, size=150)
    arrays["scales"] = arrays["scales"] * np.float32(6)
    options = {"width": 150, "height": 120, "depth": "accumulated"}
    kernel, found = test_splatting.render_with_gradients(arrays, backend, **options)
    expected, gradients = test_splatting.render_with_gradients(
        arrays, "reference", **options
    )
    assert np.abs(kernel.image - expected.image).max() < 3e-5
    for name, gradient in gradients.items():
        assert test_splatting.relative(found[name], gradient) < 1e-4, name


@each_cuda
def test_bits_are_the_same_in_every_run(backend):
    arrays = scene(1000, scale=0.5)
    runs = [
        test_splatting.render_with_gradients(arrays, backend, **SIZE) for _ in range(3)
    ]
    for run in runs[1:]:
        for leaf, expected in zip(
            jax.tree.leaves(run), jax.tree.leaves(runs[0]), strict=True
        ):
            np.testing.assert_array_equal(leaf, expected)
