"""Anisotropic 3D Gaussians (3D Gaussian Splatting, Kerbl et al. 2023, Sec 4)."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from geodiff_jax import numerics


@flax.struct.dataclass
class Gaussians:
    """A set of fixed capacity n; slots that are not alive are empty."""

    means: Float[Array, "n 3"]
    """Metres in the world, or in units of the triangle when bound to one."""
    quaternions: Float[Array, "n 4"]
    """wxyz, of any length but zero: frame-from-own-axes."""
    log_scales: Float[Array, "n 3"]
    """Logarithm of the standard deviations along the own axes."""
    opacity_logits: Float[Array, " n"]
    sh: Float[Array, "n k 3"]
    """Coefficients of spherical harmonics, k = 1, 4, 9 or 16; see that module."""
    alive: Bool[Array, " n"]

    @property
    def capacity(self) -> int:
        """Number of slots, alive or not."""
        return self.means.shape[0]

    @property
    def scales(self) -> Float[Array, "n 3"]:
        """Standard deviations along the own axes."""
        return jnp.exp(self.log_scales)

    @property
    def opacities(self) -> Float[Array, " n"]:
        """In (0, 1); zero for empty slots."""
        return jnp.where(self.alive, jax.nn.sigmoid(self.opacity_logits), 0.0)

    def rotation(self) -> Float[Array, "n 3 3"]:
        """Rotation matrices; columns are the own axes."""
        return rotation_matrices(self.quaternions)

    def covariance(self) -> Float[Array, "n 3 3"]:
        """R S S^T R^T (Eq. 6)."""
        root = self.rotation() * self.scales[:, None, :]
        # One product per entry: XLA:CPU does not vectorise batches of tiny matmuls.
        return jnp.sum(root[:, :, None, :] * root[:, None, :, :], axis=-1)

    def shortest_axis(self) -> Float[Array, "n 3"]:
        """Unit direction of the smallest scale, of either sign: the splat's normal."""
        smallest = jax.nn.one_hot(jnp.argmin(self.log_scales, axis=-1), 3)
        return jnp.sum(self.rotation() * smallest[:, None, :], axis=-1)


def rotation_matrices(quaternions: Float[Array, "n 4"]) -> Float[Array, "n 3 3"]:
    """Rotation matrices of quaternions wxyz of any length; zeros for zero ones."""
    w, x, y, z = jnp.moveaxis(numerics.normalize(quaternions), -1, 0)
    norm = w * w + x * x + y * y + z * z
    rows = [
        [norm - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), norm - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), norm - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
