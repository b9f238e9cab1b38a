"""Linear blend skinning over a short chain of joints (SMPL, Sec 3; FLAME, Sec 3)."""

import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float


def rotation_matrices(axis_angles: Float[Array, "*b 3"]) -> Float[Array, "*b 3 3"]:
    """Rotation matrices of axis-angle vectors in radians."""
    return jaxlie.SO3.exp(axis_angles).as_matrix()


def joint_transforms(
    rotations: Float[Array, "*b j 3 3"],
    joints: Float[Array, "*b j 3"],
    parents: tuple[int, ...],
) -> tuple[Float[Array, "*b j 3 3"], Float[Array, "*b j 3"]]:
    """Posed-from-rest transforms (rotation, translation) of each joint.

    `parents[j] < j`, and -1 for a root. A joint rotates about its own rest position
    and carries its children.
    """
    world_rotations: list[Float[Array, "*b 3 3"]] = []
    world_translations: list[Float[Array, "*b 3"]] = []
    for j, parent in enumerate(parents):
        rotation, joint = rotations[..., j, :, :], joints[..., j, :]
        translation = joint - _apply(rotation, joint)
        if parent >= 0:
            translation = (
                _apply(world_rotations[parent], translation)
                + world_translations[parent]
            )
            rotation = world_rotations[parent] @ rotation
        world_rotations.append(rotation)
        world_translations.append(translation)
    return jnp.stack(world_rotations, axis=-3), jnp.stack(world_translations, axis=-2)


def skin(
    vertices: Float[Array, "*b v 3"],
    weights: Float[Array, "v j"],
    rotations: Float[Array, "*b j 3 3"],
    translations: Float[Array, "*b j 3"],
) -> Float[Array, "*b v 3"]:
    """Blends the joints' posed-from-rest transforms at every vertex."""
    blended = jnp.einsum("vj,...jkl->...vkl", weights, rotations)
    offset = jnp.einsum("vj,...jk->...vk", weights, translations)
    return jnp.einsum("...vkl,...vl->...vk", blended, vertices) + offset


def _apply(
    rotation: Float[Array, "*b 3 3"], vector: Float[Array, "*b 3"]
) -> Float[Array, "*b 3"]:
    return jnp.einsum("...kl,...l->...k", rotation, vector)
