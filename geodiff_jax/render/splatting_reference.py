"""Gaussian splatting in jnp: the oracle and fallback of the kernels.

Dense and simple: every Gaussian meets every pixel, so it is meant for up to 1e4 of
them. It runs in the dtype of its arguments (float64 too), and automatic
differentiation gives its gradients. Memory stays bounded: pixels and Gaussians are
taken in chunks, and chunks are recomputed in the backward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLUR = 0.3
FAR_PLANE = 1e10
# Decisions are float32 ones: two clamped splats leave 9.99998e-5 <= 1e-4 there, but
# (1 - 0.99)^2 > 1e-4 in naive float64.
MAX_ALPHA = float(np.float32(0.99))
MIN_ALPHA = float(np.float32(1) / np.float32(255))
MIN_TRANSMITTANCE = float(np.float32(1e-4))
MIN_COMPENSATION = 0.005
_PIXELS = 4096
_GAUSSIANS = 64


class Projected(NamedTuple):
    """Gaussians as one image sees them."""

    means: jax.Array
    """(n, 2) centres, pixels."""
    conics: jax.Array
    """(n, 3) inverse covariance (a, b, c): a dx^2 + 2 b dx dy + c dy^2."""
    depths: jax.Array
    """(n,) metres along the camera's z axis."""
    opacities: jax.Array
    """(n,) opacity, dimmed by the blur if antialiased."""
    visible: jax.Array
    """(n,) bool; what is culled has harmless values here and zero gradients."""


def splat(
    means: jax.Array,
    quaternions: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    features: jax.Array,
    cameras: jax.Array,
    intrinsics: jax.Array,
    background: jax.Array,
    offsets: jax.Array,
    *,
    width: int,
    height: int,
    near: float,
    antialiased: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Image (b, h, w, c), alpha and accumulated depth (b, h, w), visible (b, n).

    Cameras (b, 3, 4), intrinsics (b, 4), and offsets (b, n, 2) or (b, 0, 2) for none;
    the rest as `splatting.splat_arrays`.
    """

    def render(view: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        camera, lens, shift = view
        projected = project(
            means,
            quaternions,
            scales,
            opacities,
            camera,
            lens,
            width=width,
            height=height,
            near=near,
            antialiased=antialiased,
            offsets=shift,
        )
        blended = blend(projected, features, background, width=width, height=height)
        return *blended, projected.visible

    return jax.lax.map(render, (cameras, intrinsics, offsets))


def project(
    means: jax.Array,
    quaternions: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    camera: jax.Array,
    intrinsics: jax.Array,
    *,
    width: int,
    height: int,
    near: float,
    antialiased: bool,
    offsets: jax.Array | None = None,
) -> Projected:
    """EWA projection with gsplat 1.6's conventions; camera (3, 4), intrinsics (4,).

    Offsets (n, 2) are added to the centres; None or empty ones are not.
    """
    if offsets is None or offsets.size == 0:
        offsets = jnp.zeros((means.shape[0], 2), means.dtype)
    given = (means, quaternions, scales, opacities, camera, intrinsics, offsets)
    attempt = functools.partial(
        _project, size=(width, height), near=near, antialiased=antialiased
    )
    visible = attempt(*jax.lax.stop_gradient(given), None).visible
    some, each = jnp.any(visible), visible[:, None]
    # What is culled is replaced before any arithmetic that may overflow, whose gradient
    # would be 0 * inf.
    safe = (
        jnp.where(each, means, 0.0),
        jnp.where(each, quaternions, 1.0),
        jnp.where(each, scales, 1.0),
        jnp.where(visible, opacities, 0.5),
        jnp.where(some, camera, 0.0),
        jnp.where(some, intrinsics, 1.0),
        jnp.where(each, offsets, 0.0),
    )
    return attempt(*safe, visible)


def _project(
    means: jax.Array,
    quaternions: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    camera: jax.Array,
    intrinsics: jax.Array,
    offsets: jax.Array,
    known_visible: jax.Array | None,
    *,
    size: tuple[int, int],
    near: float,
    antialiased: bool,
) -> Projected:
    """Projects; finds out what is visible unless that is known already."""
    local = _matmul(means, camera[:, :3].T) + camera[:, 3]
    if known_visible is not None:
        local = jnp.where(known_visible[:, None], local, jnp.eye(3)[2])
    focal, centre = intrinsics[:2], intrinsics[2:]
    z = local[:, 2:]
    slope = local[:, :2] / z
    end = jnp.asarray(size, local.dtype)
    margin = 0.15 * end
    clamped = jnp.clip(
        slope, -(centre + margin) / focal, (end - centre + margin) / focal
    )
    axes = _matmul(camera[:, :3], _rotations(quaternions))
    spread = (axes[:, :2] - clamped[..., None] * axes[:, 2:]) * scales[:, None, :]
    x_row, y_row = jnp.moveaxis(spread * (focal / z)[..., None], 1, 0)
    var_x, var_y = jnp.sum(x_row**2, -1), jnp.sum(y_row**2, -1)
    covariance = jnp.sum(x_row * y_row, -1)
    # Lagrange's identity: the determinant of a thin splat without cancellation.
    det = jnp.sum(jnp.cross(x_row, y_row) ** 2, -1)
    blurred = det + BLUR * (var_x + var_y) + BLUR**2
    conics = jnp.stack([var_y + BLUR, -covariance, var_x + BLUR], -1)
    conics = conics / blurred[:, None]
    if antialiased:
        ratio = det / blurred
        above = ratio > MIN_COMPENSATION**2
        root = jnp.sqrt(jnp.where(above, ratio, 1.0))
        opacities = opacities * jnp.where(above, root, MIN_COMPENSATION)
    pixels = focal * slope + centre + offsets
    depths = z[:, 0]
    if known_visible is not None:
        return Projected(pixels, conics, depths, opacities, known_visible)
    visible = (depths >= near) & (depths > 0) & (depths <= FAR_PLANE)
    visible &= (opacities >= MIN_ALPHA) & (opacities < 1e30)
    visible &= jnp.all(jnp.abs(pixels) < 1e30, -1) & (var_x < 1e30) & (var_y < 1e30)
    visible &= jnp.all(focal != 0)
    visible &= jnp.isfinite(conics[:, 1]) & (conics[:, 0] > 0) & (conics[:, 2] > 0)
    # Where alpha reaches 1/255, with some slack, the box of pixel centres begins.
    reach = 1.002 * jnp.log(jnp.maximum(opacities / MIN_ALPHA, 1.0)) + 0.001
    variances = jnp.stack([var_x, var_y], -1) + BLUR
    extent = 1.0001 * jnp.sqrt(2.0 * reach[:, None] * variances) + 0.001
    on_image = (pixels + extent >= 0.5) & (pixels - extent <= end - 0.5)
    visible &= jnp.all(on_image, -1)
    return Projected(pixels, conics, depths, opacities, visible)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _rotations(quaternions: jax.Array) -> jax.Array:
    """Rotation matrices (n, 3, 3) of unnormalised wxyz quaternions."""
    length = jnp.sqrt(jnp.sum(quaternions**2, -1, keepdims=True))
    w, x, y, z = jnp.moveaxis(quaternions / length, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def blend(
    projected: Projected,
    features: jax.Array,
    background: jax.Array,
    *,
    width: int,
    height: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Image (h, w, c), alpha (h, w) and accumulated depth (h, w), front to back."""
    visible = projected.visible
    order = jnp.argsort(jnp.where(visible, projected.depths, jnp.inf), stable=True)
    count, channels = features.shape
    depths = projected.depths[:, None]
    values = jnp.concatenate([features, depths, jnp.ones_like(depths)], -1)
    rows = jnp.concatenate(
        [
            projected.means,
            projected.conics,
            jnp.where(visible, projected.opacities, 0.0)[:, None],
            jnp.where(visible[:, None], values, 0.0),
        ],
        -1,
    )[order]
    # Padding has opacity 0 and shows nowhere.
    rows = jnp.pad(rows, ((0, -count % _GAUSSIANS), (0, 0)))
    rows = rows.reshape(-1, _GAUSSIANS, rows.shape[-1])
    chunk = max(1, min(_PIXELS, width * height))
    indices = jnp.arange(width * height)
    indices = jnp.pad(indices, (0, -indices.size % chunk)).reshape(-1, chunk)

    def blend_pixels(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = (pixels % width).astype(rows.dtype) + 0.5
        y = (pixels // width).astype(rows.dtype) + 0.5
        start = _Blended(
            jnp.ones((chunk,), rows.dtype),
            jnp.zeros((channels + 2, chunk), rows.dtype),
            jnp.zeros((chunk,), bool),
        )
        blend_one = functools.partial(_blend_one, x, y)
        # Only what stands between chunks is kept for the backward pass.
        blend_some = jax.checkpoint(lambda b, some: jax.lax.scan(blend_one, b, some))
        end, _ = jax.lax.scan(blend_some, start, rows)
        return end.transmittance, end.sums

    transmittance, sums = jax.lax.map(jax.checkpoint(blend_pixels), indices)
    transmittance = transmittance.reshape(-1)[: width * height, None]
    sums = jnp.moveaxis(sums, 1, 2).reshape(-1, channels + 2)[: width * height]
    image = sums[:, :channels] + transmittance * background
    depth, alpha = sums[:, channels:].reshape(height, width, 2).transpose(2, 0, 1)
    return image.reshape(height, width, channels), alpha, depth


class _Blended(NamedTuple):
    """Pixels on their way from front to back."""

    transmittance: jax.Array
    sums: jax.Array
    stopped: jax.Array


def _blend_one(
    x: jax.Array, y: jax.Array, pixels: _Blended, row: jax.Array
) -> tuple[_Blended, None]:
    """Blends one Gaussian: x, y, a, b, c, opacity, then what is to be summed."""
    dx, dy = x - row[0], y - row[1]
    sigma = 0.5 * (row[2] * dx * dx + row[4] * dy * dy) + row[3] * dx * dy
    raw = row[5] * jnp.exp(-jnp.maximum(sigma, 0.0))
    alpha = jnp.where(raw > MAX_ALPHA, MAX_ALPHA, raw)
    left = pixels.transmittance * (1.0 - alpha)
    shows = (sigma >= 0) & (raw >= MIN_ALPHA) & ~pixels.stopped
    goes_on = left > MIN_TRANSMITTANCE
    blends = shows & goes_on
    weights = jnp.where(blends, alpha * pixels.transmittance, 0.0)
    # What is not finite stays off pixels of weight 0, where it would be NaN.
    values = jnp.where(blends, row[6:, None], 0.0)
    blended = _Blended(
        jnp.where(blends, left, pixels.transmittance),
        pixels.sums + weights * values,
        pixels.stopped | (shows & ~goes_on),
    )
    return blended, None
