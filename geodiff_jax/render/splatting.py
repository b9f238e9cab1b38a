"""Differentiable Gaussian splatting: any channels, any batch of cameras.

`splat_arrays` is the operation, on plain arrays; `splat` feeds it our pytrees. The
conventions are gsplat 1.6's. This module needs jax and numpy only.
"""

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.render import ffi, splatting_kernels, splatting_reference

if TYPE_CHECKING:
    from geodiff_jax.gaussians import model
    from geodiff_jax.geometry import camera as cameras


class Splat(NamedTuple):
    """A rendered view, or a batch with leading axes `*b`."""

    image: jax.Array
    """(*b, h, w, c) blended features over the background."""
    alpha: jax.Array
    """(*b, h, w) coverage in [0, 1)."""
    depth: jax.Array | None
    """(*b, h, w) metres along the camera's z axis, if asked for."""
    overflow: jax.Array
    """() bool: whether `capacity` left out Gaussians, the farthest first."""
    visible: jax.Array
    """(*b, n) bool: False where culled or no pixel can be reached; True may promise a
    little too much, at corners, and on CUDA for what `capacity` left out."""


def splat(
    gaussians: "model.Gaussians",
    features: jax.Array,
    camera: "cameras.Camera",
    *,
    background: jax.Array | None = None,
    offsets: jax.Array | None = None,
    near: float = 0.01,
    antialiased: bool = False,
    depth: str | None = None,
    capacity: int | None = None,
    backend: str | None = None,
) -> Splat:
    """Renders features (n, c) of Gaussians through one camera or a batch of them.

    Options as in `splat_arrays`. Gaussians that are not alive are not drawn.
    """
    opacities = jax.nn.sigmoid(gaussians.opacity_logits)
    return splat_arrays(
        gaussians.means,
        gaussians.quaternions,
        jnp.exp(gaussians.log_scales),
        jnp.where(gaussians.alive, opacities, 0.0),
        features,
        camera.camera_from_world.as_matrix()[..., :3, :],
        camera.intrinsics,
        width=camera.width,
        height=camera.height,
        background=background,
        offsets=offsets,
        near=near,
        antialiased=antialiased,
        depth=depth,
        capacity=capacity,
        backend=backend,
    )


def splat_arrays(
    means: jax.Array,
    quaternions: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    features: jax.Array,
    camera_from_world: jax.Array,
    intrinsics: jax.Array,
    *,
    width: int,
    height: int,
    background: jax.Array | None = None,
    offsets: jax.Array | None = None,
    near: float = 0.01,
    antialiased: bool = False,
    depth: str | None = None,
    capacity: int | None = None,
    backend: str | None = None,
) -> Splat:
    """Blends Gaussians front to back; differentiable in every array.

    Args:
      means: (n, 3) centres in the world.
      quaternions: (n, 4) wxyz, of any length but 0.
      scales: (n, 3) standard deviations along the axes, linear.
      opacities: (n,) in (0, 1], linear; below 1/255 nothing is drawn.
      features: (n, c) colours or anything else, any number of channels. What is not
        finite reaches the pixels that it is blended into, and no others; gradients
        then have no meaning.
      camera_from_world: (*b, 3, 4) OpenCV poses (x right, y down, z forward).
      intrinsics: (*b, 4) fx, fy, cx, cy in pixels; pixel centres are at +0.5.
      width: of the images, pixels.
      height: of the images, pixels.
      background: (c,) what shows through; zeros by default.
      offsets: (*b, n, 2) pixels added to the projected centres. Where zeros are given,
        their gradient is what densification goes by (3DGS, Sec 5.2): its norm, averaged
        over the views in which a Gaussian is `visible`; times half the image's size
        for thresholds in normalised device coordinates.
      near: Gaussians with centres at z < near are culled.
      antialiased: dims splats by what the blur of 0.3 px^2 adds to their area.
      depth: None, "accumulated" (sum of weight times z) or "expected" (that over
        alpha).
      capacity: how many pairs of a Gaussian and a tile of 16 x 16 pixels the CUDA
        kernels make room for, all views together; see `required_capacity`. Under vmap
        every call adds its capacity to one pool. The CPU needs none.
      backend: None chooses by platform; "cpu", "cuda" or "reference" insist.

    Culled Gaussians (behind, too faint, not finite, off the image) have exactly zero
    gradients. Kernels compute in float32; float64 means run the jnp reference, unless
    backend says otherwise. Reverse mode only, except for backend "reference". Share
    cameras among devices by `jax.shard_map(..., check_vma=False)`: kernels do not say
    over which axes their results vary.

    Raises:
      ValueError: shapes or options that do not fit; which, and what was expected.
      TypeError: arrays of complex numbers or of no numbers.
    """
    if depth not in (None, "accumulated", "expected"):
        raise ValueError(
            f'depth must be None, "accumulated" or "expected", got {depth!r}.'
        )
    means = jnp.asarray(means)
    background = jnp.zeros(features.shape[1:]) if background is None else background
    _check(
        means=(means, (None, 3)),
        quaternions=(quaternions, (means.shape[0], 4)),
        scales=(scales, (means.shape[0], 3)),
        opacities=(opacities, (means.shape[0],)),
        features=(features, (means.shape[0], None)),
        background=(background, features.shape[1:]),
        camera_from_world=(camera_from_world, (*intrinsics.shape[:-1], 3, 4)),
        intrinsics=(intrinsics, (*camera_from_world.shape[:-2], 4)),
    )
    batch = intrinsics.shape[:-1]
    if offsets is None:
        offsets = jnp.zeros((*batch, 0, 2))  # The kernels take the hint.
    else:
        _check(offsets=(offsets, (*batch, means.shape[0], 2)))
    exact = means.dtype == jnp.float64 and backend not in ("cpu", "cuda")
    operands = [
        jnp.asarray(x, jnp.float64 if exact else jnp.float32)
        for x in (
            means,
            quaternions,
            scales,
            opacities,
            features,
            camera_from_world.reshape(-1, 3, 4),
            intrinsics.reshape(-1, 4),
            background,
            offsets.reshape(math.prod(batch), offsets.shape[-2], 2),
        )
    ]
    sizes = (means.shape[0], operands[5].shape[0], width, height)
    capacity = (
        splatting_kernels.default_capacity(*sizes)
        if capacity is None
        else max(1, capacity)
    )
    options = splatting_kernels.Options(
        width, height, float(near), antialiased, depth is not None, capacity
    )
    if exact or backend == "reference":
        outputs = _reference(options, *operands)
    else:
        outputs = _splat(options, backend, *operands)
    image, alpha, weighted, visible, wanted = outputs
    return Splat(
        image.reshape(*batch, height, width, features.shape[1]),
        alpha.reshape(*batch, height, width),
        _depth(weighted, alpha, depth, (*batch, height, width)),
        wanted > capacity,
        visible.reshape(*batch, means.shape[0]),
    )


def required_capacity(
    means: jax.Array,
    quaternions: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    camera_from_world: jax.Array,
    intrinsics: jax.Array,
    *,
    width: int,
    height: int,
    near: float = 0.01,
    antialiased: bool = False,
    margin: float = 1.25,
    backend: str | None = None,
) -> int:
    """The capacity that `splat_arrays` needs for these Gaussians and cameras.

    Waits for the device, so call it outside jit: before training and whenever
    `overflow` came up. What does not run on CUDA needs none and gets the default.

    Args:
      means: as the other arrays and options, those of `splat_arrays`.
      quaternions: (n, 4).
      scales: (n, 3).
      opacities: (n,).
      camera_from_world: (*b, 3, 4).
      intrinsics: (*b, 4).
      width: of the images, pixels.
      height: of the images, pixels.
      near: as there.
      antialiased: as there.
      margin: room to grow, a factor.
      backend: as there.
    """
    views = math.prod(intrinsics.shape[:-1])
    if "cuda" not in ffi.implementations(backend).values():
        return splatting_kernels.default_capacity(means.shape[0], views, width, height)
    options = splatting_kernels.Options(
        width, height, float(near), antialiased, False, 1
    )
    operands = [
        jnp.asarray(x, jnp.float32)
        for x in (
            means,
            quaternions,
            scales,
            opacities,
            jnp.zeros((means.shape[0], 0)),
            camera_from_world.reshape(-1, 3, 4),
            intrinsics.reshape(-1, 4),
            jnp.zeros(0),
            jnp.zeros((views, 0, 2)),
        )
    ]
    wanted = _splat(options, backend, *operands)[4]
    return max(1, int(np.ceil(int(wanted) * margin)))


def _check(**arrays: tuple[jax.Array, tuple[int | None, ...]]) -> None:
    for name, (array, expected) in arrays.items():
        shape = tuple(array.shape)
        if len(shape) != len(expected) or any(
            e is not None and s != e for s, e in zip(shape, expected, strict=True)
        ):
            wanted = tuple("any" if e is None else e for e in expected)
            raise ValueError(f"Expected {name} of shape {wanted}, got {shape}.")
        if not jnp.isdtype(array.dtype, ("bool", "integral", "real floating")):
            raise TypeError(f"Expected {name} to be real numbers, got {array.dtype}.")


def _depth(
    weighted: jax.Array, alpha: jax.Array, kind: str | None, shape: tuple[int, ...]
) -> jax.Array | None:
    if kind is None:
        return None
    if kind == "expected":
        weighted = weighted / jnp.maximum(alpha, 1e-10)
    return weighted.reshape(shape)


def _forward(
    options: splatting_kernels.Options, backend: str | None, *operands: jax.Array
) -> splatting_kernels.Outputs:
    return _forward_rule(options, backend, *operands)[0]


def _forward_rule(
    options: splatting_kernels.Options, backend: str | None, *operands: jax.Array
) -> tuple[
    splatting_kernels.Outputs, tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
]:
    """Outputs; operands and what else the adjoint may take over (CUDA's lists)."""
    # Where the platform is open, every program returns arrays of the same shapes.
    padded = ffi.implementations(backend).get("cuda") == "cuda"
    shapes = splatting_kernels.list_shapes(options, operands) if padded else []
    rest = tuple(jnp.zeros(x.shape, x.dtype) for x in shapes)
    outputs, lists = ffi.dispatch(
        *operands,
        backend=backend,
        cpu=lambda *x: (splatting_kernels.forward_cpu(options, *x), rest),
        cuda=functools.partial(splatting_kernels.forward_cuda, options),
        reference=lambda *x: (_reference(options, *x), rest),
    )
    # Offsets nobody asked for are made again: XLA 0.11 cannot shard what is empty.
    kept = operands if operands[-1].shape[1] else operands[:-1]
    return outputs, (kept, lists)


def _backward_rule(
    options: splatting_kernels.Options,
    backend: str | None,
    residuals: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    operands, lists = residuals
    if len(operands) == 8:
        views = operands[5].shape[0]
        operands = (*operands, jnp.zeros((views, 0, 2), operands[0].dtype))
    return ffi.dispatch(
        operands,
        lists,
        cotangents[:3],
        backend=backend,
        cpu=functools.partial(splatting_kernels.backward_cpu, options),
        cuda=functools.partial(splatting_kernels.backward_cuda, options),
        reference=functools.partial(_backward_reference, options),
    )


_splat = jax.custom_vjp(_forward, nondiff_argnums=(0, 1))
_splat.defvjp(_forward_rule, _backward_rule)


def _reference(
    options: splatting_kernels.Options, *operands: jax.Array
) -> splatting_kernels.Outputs:
    image, alpha, depth, visible = splatting_reference.splat(
        *operands,
        width=options.width,
        height=options.height,
        near=options.near,
        antialiased=options.antialiased,
    )
    depth = depth if options.has_depth else depth[:, :0, :0]
    return image, alpha, depth, visible, jnp.zeros((), jnp.int32)


def _backward_reference(
    options: splatting_kernels.Options,
    operands: tuple[jax.Array, ...],
    lists: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    del lists  # There are none.
    _, vjp = jax.vjp(lambda *x: _reference(options, *x)[:3], *operands)
    return vjp(cotangents)
