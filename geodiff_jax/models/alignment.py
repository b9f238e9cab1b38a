"""GeoFace's attention alignment: appearance and geometry find each other's tokens.

Paper 003 states that cross-attention between images and the slot of the UV position map
is supervised with correspondences from that map, and not how: the form here is ours.
The attention of an image token over the geometry slot is pulled to the texels that it
sees, and that of a texel over all images to the tokens that see it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Weights = Float[Array, "*b v p t"]


def correspondences(
    uv: Float[Array, "*b v h w 2"], visible: Bool[Array, "*b v h w"], *, size: int
) -> Weights:
    """Which texels the tokens of each view see: bilinear weights that sum to one.

    `uv` are chart coordinates (u to the right, v upwards, in [0, 1]) at the centres of
    the h x w = p tokens, sampled and never averaged, since they jump at seams. The
    slot's tokens are t = size x size texels, row 0 at v = 1. Rows of tokens that are
    not visible (background) are zero. What a view's surface hides is not in its map.
    """
    x = uv[..., 0] * size - 0.5
    y = (1.0 - uv[..., 1]) * size - 0.5
    across, down = (_hat(axis, size) for axis in (x, y))
    weights = down[..., :, None] * across[..., None, :]
    weights = jnp.where(visible[..., None, None], weights, 0.0)
    *lead, height, width = visible.shape
    return weights.reshape(*lead, height * width, size * size)


def alignment_loss(
    queries: Float[Array, "*b slots p heads c"],
    keys: Float[Array, "*b slots p heads c"],
    weights: Weights,
    *,
    least: float = 0.05,
) -> Float[Array, ""]:
    """Mean cross-entropy of both directions, over heads and the tokens that count.

    Queries and keys are those of one layer's joint attention; the last slot is the
    geometry's, whose tokens are the texels (t = p), the others are the v views. In
    either direction attention is renormalised over the other stream. Left out are
    image tokens that see no texel, and texels that no view sees with at least `least`
    of a token (ours). Zero where nothing counts. Logits are float32 in any precision.
    """
    scale = queries.shape[-1] ** -0.5
    views = queries.shape[-4] - 1
    images, geometry = slice(0, views), views
    to_geometry = scale * jnp.einsum(
        "...vphc,...thc->...hvpt",
        queries[..., images, :, :, :],
        keys[..., geometry, :, :, :],
        preferred_element_type=jnp.float32,
    )
    to_images = scale * jnp.einsum(
        "...thc,...vphc->...htvp",
        queries[..., geometry, :, :, :],
        keys[..., images, :, :, :],
        preferred_element_type=jnp.float32,
    )
    own = weights[..., None, :, :, :]
    first = _cross_entropy(to_geometry, own, least=0.5)
    flat = jnp.moveaxis(own, -1, -3)
    flat, logits = (x.reshape(*x.shape[:-2], -1) for x in (flat, to_images))
    return 0.5 * (first + _cross_entropy(logits, flat, least=least))


def hit_rate(
    queries: Float[Array, "*b slots p heads c"],
    keys: Float[Array, "*b slots p heads c"],
    weights: Weights,
) -> Float[Array, ""]:
    """Share of visible image tokens whose strongest texel, heads averaged, is theirs.

    A texel is theirs if it has any of their weight.
    """
    views = queries.shape[-4] - 1
    logits = jnp.einsum(
        "...vphc,...thc->...hvpt",
        queries[..., :views, :, :, :],
        keys[..., views, :, :, :],
        preferred_element_type=jnp.float32,
    )
    probability = jax.nn.softmax(queries.shape[-1] ** -0.5 * logits, axis=-1)
    best = jnp.argmax(jnp.mean(probability, axis=-4), axis=-1)
    seen = jnp.take_along_axis(weights, best[..., None], axis=-1)[..., 0] > 0
    visible = jnp.sum(weights, axis=-1) > 0.5
    return jnp.sum(seen & visible) / jnp.maximum(jnp.sum(visible), 1)


def _hat(position: Float[Array, "*b"], size: int) -> Float[Array, "*b s"]:
    """Linear interpolation between the nearest two of 0 .. size-1, clamped."""
    position = jnp.clip(position, 0.0, size - 1.0)
    return jnp.maximum(1.0 - jnp.abs(position[..., None] - jnp.arange(size)), 0.0)


def _cross_entropy(
    logits: Float[Array, "*#b k"], target: Float[Array, "*#b k"], *, least: float
) -> Float[Array, ""]:
    """Of rows whose target has at least `least` in sum, normalised."""
    total = jnp.sum(target, axis=-1)
    counted = jnp.broadcast_to(total >= least, logits.shape[:-1])
    target = target / jnp.where(total > 0, total, 1.0)[..., None]
    entropy = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
    return jnp.sum(jnp.where(counted, entropy, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
