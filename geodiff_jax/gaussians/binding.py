"""Gaussians that ride on triangles (GaussianAvatars, Sec 3).

A bound Gaussian lives in its triangle's frame, in units of the triangle's size, and
follows it: mean k R mu + T, scale k s, rotation R r.
"""

import flax.struct
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from geodiff_jax import numerics
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.geometry import mesh

_SMALLEST_SCALE = 1e-9
"""Metres: the least size of a triangle, so that logarithms stay finite."""


@flax.struct.dataclass
class Binding:
    """Which triangle carries which Gaussian."""

    face: Int[Array, " n"]


def to_world(
    local: Gaussians,
    binding: Binding,
    vertices: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
) -> Gaussians:
    """Bound Gaussians where the triangles stand now."""
    rotation, quaternion, scale, origin = _carried(binding, vertices, faces)
    means = scale[:, None] * _rotate(rotation, local.means) + origin
    return local.replace(
        means=means,
        quaternions=_multiply(quaternion, numerics.normalize(local.quaternions)),
        log_scales=local.log_scales + jnp.log(scale)[:, None],
    )


def to_local(
    world: Gaussians,
    binding: Binding,
    vertices: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
) -> Gaussians:
    """Binds world Gaussians to triangles: inverts `to_world`."""
    rotation, quaternion, scale, origin = _carried(binding, vertices, faces)
    transposed = jnp.swapaxes(rotation, -1, -2)
    inverse = quaternion * jnp.asarray([1.0, -1.0, -1.0, -1.0], quaternion.dtype)
    return world.replace(
        means=_rotate(transposed, world.means - origin) / scale[:, None],
        quaternions=_multiply(inverse, numerics.normalize(world.quaternions)),
        log_scales=world.log_scales - jnp.log(scale)[:, None],
    )


def seed(
    key: Key[Array, ""],
    vertices: Float[Array, "p 3"],
    faces: Int[Array, "f 3"],
    *,
    count: int,
    weights: Float[np.ndarray, " f"] | None = None,
    minimum: int = 1,
    spread: float = 0.6,
    flatness: float = 0.1,
    opacity: float = 0.1,
    sh_degree: int = 0,
) -> tuple[Gaussians, Binding]:
    """Grey Gaussians spread evenly over a mesh, bound to its triangles.

    Shares follow area times `weights` (CAP4D), at least `minimum` for a triangle, and
    sum to `count`. Each lies flat on its triangle: its standard deviation is `spread`
    of the spacing to its neighbours, and `flatness` of that along the normal (both
    ours). Runs outside jit: the shares depend on the mesh.
    """
    areas = np.asarray(mesh.face_areas(vertices, faces), np.float64)
    density = areas if weights is None else areas * np.asarray(weights)
    shares = _shares(density, count=count, minimum=minimum)
    face = np.repeat(np.arange(len(shares)), shares)
    corners = np.asarray(vertices)[np.asarray(faces)[face]]
    positions = np.sum(_stratified(key, shares)[..., None] * corners, axis=1)

    spacing = np.sqrt(areas / np.maximum(shares, 1))[face]
    deviation = np.maximum(spread * spacing, _SMALLEST_SCALE)
    # Second axis: the normal of the triangle's frame.
    scales = deviation[:, None] * np.array([1.0, flatness, 1.0])
    binding = Binding(jnp.asarray(face))
    dtype = vertices.dtype
    world = Gaussians(
        means=jnp.asarray(positions, dtype),
        quaternions=_carried(binding, vertices, faces)[1],
        log_scales=jnp.asarray(np.log(scales), dtype),
        opacity_logits=jnp.full(count, np.log(opacity / (1 - opacity)), dtype),
        sh=jnp.zeros((count, (sh_degree + 1) ** 2, 3), dtype),
        alive=jnp.ones(count, bool),
    )
    return to_local(world, binding, vertices, faces), binding


def position_loss(
    local: Gaussians,
    *,
    threshold: float = 1.0,
    visible: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean distance beyond `threshold` triangle sizes from the triangle's centre.

    GaussianAvatars' position loss; CAP4D uses a threshold of 2.
    """
    excess = jax.nn.relu(numerics.safe_norm(local.means) - threshold)
    return numerics.masked_mean(excess, _counted(local, visible))


def scale_loss(
    local: Gaussians,
    *,
    threshold: float = 0.6,
    visible: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean length of the scales' excess over `threshold` triangle sizes.

    GaussianAvatars' scaling loss; CAP4D uses a threshold of 1.
    """
    excess = numerics.safe_norm(jax.nn.relu(local.scales - threshold))
    return numerics.masked_mean(excess, _counted(local, visible))


def _counted(local: Gaussians, visible: Bool[Array, " n"] | None) -> Float[Array, " n"]:
    counted = local.alive if visible is None else local.alive & visible
    return counted.astype(local.means.dtype)


def _carried(
    binding: Binding, vertices: Float[Array, "p 3"], faces: Int[Array, "f 3"]
) -> tuple[
    Float[Array, "n 3 3"], Float[Array, "n 4"], Float[Array, " n"], Float[Array, "n 3"]
]:
    """World from triangle for every Gaussian: rotation, quaternion, scale, origin."""
    rotation, scale, origin = mesh.triangle_frames(vertices, faces)
    quaternion = jaxlie.SO3.from_matrix(rotation).wxyz
    scale = jnp.maximum(scale, _SMALLEST_SCALE)
    # One gather of whole rows: its adjoint is one scatter, which dominates on CPU.
    rows = jnp.concatenate(
        [rotation.reshape(-1, 9), quaternion, scale[:, None], origin], axis=-1
    )[binding.face]
    return rows[:, :9].reshape(-1, 3, 3), rows[:, 9:13], rows[:, 13], rows[:, 14:]


def _rotate(
    rotation: Float[Array, "n 3 3"], vectors: Float[Array, "n 3"]
) -> Float[Array, "n 3"]:
    # Sums, not a matmul: XLA:CPU does not vectorise batches of tiny products.
    return jnp.sum(rotation * vectors[:, None, :], axis=-1)


def _multiply(
    left: Float[Array, "n 4"], right: Float[Array, "n 4"]
) -> Float[Array, "n 4"]:
    """Hamilton product, wxyz."""
    lw, lx, ly, lz = jnp.moveaxis(left, -1, 0)
    rw, rx, ry, rz = jnp.moveaxis(right, -1, 0)
    product = [
        lw * rw - lx * rx - ly * ry - lz * rz,
        lw * rx + lx * rw + ly * rz - lz * ry,
        lw * ry - lx * rz + ly * rw + lz * rx,
        lw * rz + lx * ry - ly * rx + lz * rw,
    ]
    return jnp.stack(product, axis=-1)


def _shares(
    density: Float[np.ndarray, " f"], *, count: int, minimum: int
) -> Int[np.ndarray, " f"]:
    """Whole numbers that follow `density`, at least `minimum`, and sum to `count`."""
    if count < minimum * len(density):
        raise ValueError(
            f"Expected at least {minimum} Gaussians for each of {len(density)} "
            f"triangles, got {count}; raise `count` or lower `minimum`."
        )
    # Where the minimum binds, the others give: the level falls until the sum fits.
    low, high = 0.0, count / max(density.sum(), 1e-300)
    for _ in range(100):
        level = 0.5 * (low + high)
        too_many = np.maximum(density * level, minimum).sum() > count
        low, high = (low, level) if too_many else (level, high)
    exact = np.maximum(density * low, minimum)
    shares = np.floor(exact + 1e-9).astype(int)
    remainders = np.argsort(shares - exact, kind="stable")
    shares[remainders[: count - shares.sum()]] += 1
    return shares


def _stratified(
    key: Key[Array, ""], shares: Int[np.ndarray, " f"]
) -> Float[np.ndarray, "n 3"]:
    """Barycentric coordinates, evenly spread within each triangle.

    A golden (R2) sequence with a random start per triangle, folded from the square;
    folding keeps areas, so each coordinate triple is uniform.
    """
    starts = np.concatenate([[0], np.cumsum(shares)[:-1]])
    rank = np.arange(shares.sum()) - np.repeat(starts, shares)
    plastic = 1.32471795724474602596
    offsets = np.asarray(jax.random.uniform(key, (len(shares), 2)), np.float64)
    square = rank[:, None] * np.array([1 / plastic, 1 / plastic**2])
    square = (square + np.repeat(offsets, shares, axis=0)) % 1.0
    folded = np.where(square.sum(axis=1, keepdims=True) > 1, 1 - square, square)
    return np.concatenate([1 - folded.sum(axis=1, keepdims=True), folded], axis=1)
