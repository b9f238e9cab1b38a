"""Finite-gradient primitives: smooth where their naive forms are not."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_norm(
    vectors: Float[Array, "*b c"], *, epsilon: float = 1e-12
) -> Float[Array, "*b"]:
    """Euclidean length along the last axis; zero, and flat, below epsilon."""
    squared = jnp.sum(vectors * vectors, axis=-1)
    positive = squared > epsilon * epsilon
    # sqrt has infinite slope at 0; the inner where keeps reverse mode finite.
    root = jnp.sqrt(jnp.where(positive, squared, 1.0))
    return jnp.where(positive, root, 0.0)


def normalize(
    vectors: Float[Array, "*b c"], *, epsilon: float = 1e-12
) -> Float[Array, "*b c"]:
    """Unit vectors along the last axis; vectors shorter than epsilon become zero."""
    length = safe_norm(vectors, epsilon=epsilon)[..., None]
    return jnp.where(length > 0, vectors / jnp.where(length > 0, length, 1.0), 0.0)


def logit(
    probability: Float[Array, "*b"], *, epsilon: float = 1e-6
) -> Float[Array, "*b"]:
    """Inverse sigmoid, with the argument clamped to [epsilon, 1 - epsilon]."""
    clamped = jnp.clip(probability, epsilon, 1.0 - epsilon)
    return jnp.log(clamped) - jnp.log1p(-clamped)


def masked_mean(
    values: Float[Array, "*b"], mask: Float[Array, "*#b"]
) -> Float[Array, ""]:
    """Mean of values weighted by mask; zero where the mask is empty."""
    weights = jnp.broadcast_to(mask, values.shape)
    total = jnp.sum(weights)
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1.0)
