"""Gaussian splatting in jnp: the oracle and fallback of the kernels.

Dense and simple: every Gaussian meets every pixel, so it is meant for up to 1e4 of
them. It runs in the dtype of its arguments (float64 too), and automatic
differentiation gives its gradients. Memory stays bounded: pixels and Gaussians are
taken in chunks, and chunks are recomputed in the backward pass.
"""

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
    *,
    width: int,
    height: int,
    near: float,
    antialiased: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Image (b, h, w, c), alpha and accumulated depth (b, h, w), one per camera.

    Cameras (b, 3, 4) and intrinsics (b, 4); the rest as `splatting.splat_arrays`.
    """

    def render(camera: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        projected = project(
            means,
            quaternions,
            scales,
            opacities,
            *camera,
            width=width,
            height=height,
            near=near,
            antialiased=antialiased,
        )
        return blend(projected, features, background, width=width, height=height)

    return jax.lax.map(render, (cameras, intrinsics))


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
) -> Projected:
    """EWA projection with gsplat 1.6's conventions; camera (3, 4), intrinsics (4,)."""

    def attempt(
        local: jax.Array, q: jax.Array, s: jax.Array, o: jax.Array
    ) -> Projected:
        return _project_local(
            local, q, s, o, camera, intrinsics, width, height, near, antialiased
        )

    local = _matmul(means, camera[:, :3].T) + camera[:, 3]
    given = (local, quaternions, scales, opacities)
    visible = attempt(*jax.lax.stop_gradient(given)).visible
    # Culled ones are replaced before any arithmetic that may overflow, whose gradient
    # would be 0 * inf.
    harmless = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.5)
    safe = [
        jnp.where(
            visible.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.asarray(h, x.dtype)
        )
        for x, h in zip(given, harmless, strict=True)
    ]
    return attempt(*safe)._replace(visible=visible)


def _project_local(
    local: jax.Array,
    quaternions: jax.Array,
    scales: jax.Array,
    opacities: jax.Array,
    camera: jax.Array,
    intrinsics: jax.Array,
    width: int,
    height: int,
    near: float,
    antialiased: bool,
) -> Projected:
    """Projects Gaussians whose centres are in the camera's frame."""
    focal, centre = intrinsics[:2], intrinsics[2:]
    z = local[:, 2:]
    slope = local[:, :2] / z
    size = jnp.asarray([width, height], local.dtype)
    clamped = jnp.clip(
        slope, -(centre + 0.15 * size) / focal, (size - centre + 0.15 * size) / focal
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
    pixels = focal * slope + centre
    depths = z[:, 0]
    visible = (depths >= near) & (depths > 0) & (depths <= FAR_PLANE)
    visible &= (opacities >= MIN_ALPHA) & (opacities < 1e30)
    visible &= jnp.all(jnp.abs(pixels) < 1e30, -1) & (var_x < 1e30) & (var_y < 1e30)
    visible &= jnp.isfinite(conics[:, 1]) & (conics[:, 0] > 0) & (conics[:, 2] > 0)
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
    values = jnp.concatenate([features, projected.depths[:, None]], -1)
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
    indices = jnp.arange(width * height)
    indices = jnp.pad(indices, (0, -indices.size % _PIXELS)).reshape(-1, _PIXELS)

    @jax.checkpoint
    def pixels_chunk(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = (pixels % width).astype(rows.dtype) + 0.5
        y = (pixels // width).astype(rows.dtype) + 0.5

        @jax.checkpoint
        def step(
            carry: tuple[jax.Array, jax.Array], chunk: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            transmittance, sums = carry
            return _blend_chunk(transmittance, sums, x, y, chunk), None

        start = (
            jnp.ones((_PIXELS,), rows.dtype),
            jnp.zeros((_PIXELS, channels + 1), rows.dtype),
        )
        (transmittance, sums), _ = jax.lax.scan(step, start, rows)
        return jnp.abs(transmittance), sums

    transmittance, sums = jax.lax.map(pixels_chunk, indices)
    shape = (height, width)
    transmittance = transmittance.reshape(-1)[: width * height].reshape(shape)
    sums = sums.reshape(-1, channels + 1)[: width * height]
    sums = sums.reshape(*shape, channels + 1)
    image = sums[..., :channels] + transmittance[..., None] * background
    return image, 1.0 - transmittance, sums[..., channels]


def _blend_chunk(
    transmittance: jax.Array,
    sums: jax.Array,
    x: jax.Array,
    y: jax.Array,
    rows: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Blends a few Gaussians; a pixel that has stopped has negative transmittance."""
    dx, dy = x[:, None] - rows[:, 0], y[:, None] - rows[:, 1]
    a, b, c, opacity = rows[:, 2], rows[:, 3], rows[:, 4], rows[:, 5]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacity * jnp.exp(-jnp.maximum(sigma, 0.0))
    shows = (sigma >= 0) & (raw >= MIN_ALPHA)
    alpha = jnp.where(shows, jnp.where(raw > MAX_ALPHA, MAX_ALPHA, raw), 0.0)
    stopped = transmittance < 0
    left = jnp.abs(transmittance)[:, None] * jnp.cumprod(1.0 - alpha, axis=1)
    goes_on = left > MIN_TRANSMITTANCE
    shows &= goes_on & ~stopped[:, None]
    alpha = jnp.where(shows, alpha, 0.0)
    passed = jnp.cumprod(1.0 - alpha, axis=1)
    before = jnp.concatenate([jnp.ones_like(passed[:, :1]), passed[:, :-1]], 1)
    start = jnp.abs(transmittance)
    weights = alpha * before * start[:, None]
    sums = sums + _matmul(weights, rows[:, 6:])
    end = start * passed[:, -1]
    return jnp.where(stopped | ~jnp.all(goes_on, 1), -end, end), sums
