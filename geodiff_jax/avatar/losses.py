"""What keeps an avatar's Gaussians close to the head while they follow the photo."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from geodiff_jax import numerics
from geodiff_jax.avatar.model import SKIN, Avatar
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.metrics import image as image_metrics


@flax.struct.dataclass
class View:
    """One photo at one resolution, and where it counts."""

    camera: Camera
    image: Float[Array, "h w 3"]
    """The photo's own colours, in [0, 1]."""
    matte: Float[Array, "h w"]
    """How much of each pixel is the person."""
    region: Bool[Array, "h w"]
    """Where the avatar must equal the photo."""
    empty: Bool[Array, "h w"]
    """The photo's background, soft outline included: the avatar must let it through."""


def photometric(
    rendered: Float[Array, "h w 3"],
    view: View,
    *,
    background: Float[Array, "3"],
    ssim_weight: float = 0.2,
) -> Float[Array, ""]:
    """(1 - w) L1 + w (1 - SSIM) (GaussianAvatars, Eq. 4: w = 0.2).

    `rendered` lies over `background`. A new one at every step leaves no colour that
    could pass for transparency; L1 then also judges where the photo is empty.
    """
    region = view.region.astype(rendered.dtype)[..., None]
    matte = view.matte[..., None]
    truth = matte * view.image + (1.0 - matte) * background
    judged = jnp.maximum(region, view.empty[..., None])
    absolute = jnp.sum(judged * jnp.abs(rendered - truth)) / (3.0 * jnp.sum(region))
    # The background on both sides of the border: it must not pull at the inside.
    seen = judged * rendered + (1.0 - judged) * background
    wanted = judged * truth + (1.0 - judged) * background
    structure = image_metrics.ssim(seen, wanted, mask=view.region)
    return (1.0 - ssim_weight) * absolute + ssim_weight * (1.0 - structure)


def holes(alpha: Float[Array, "h w"], solid: Bool[Array, "h w"]) -> Float[Array, ""]:
    """Mean transparency inside a mask that must be solid."""
    return numerics.masked_mean(1.0 - alpha, solid.astype(alpha.dtype))


def drift(
    avatar: Avatar, start: Gaussians, *, skin_limit: float, hair_limit: float
) -> Float[Array, ""]:
    """Mean squared distance from the start beyond a limit, in triangle scales.

    The position loss of GaussianAvatars (Sec 3.4), about the start instead of the
    triangle's centre, so that hair may stand off while nothing wanders.
    """
    limit = jnp.where(avatar.layer == SKIN, skin_limit, hair_limit)
    moved = numerics.safe_norm(avatar.gaussians.means - start.means)
    return jnp.mean(jax.nn.relu(moved - limit) ** 2)


def swelling(
    gaussians: Gaussians, start: Gaussians, *, factor: float, needle: float
) -> Float[Array, ""]:
    """Penalises axes that outgrow `factor` times their start, and needles.

    The scale loss of GaussianAvatars (Sec 3.4) relative to the start; `needle` bounds
    the ratio of the largest to the middle axis.
    """
    growth = jax.nn.relu(gaussians.log_scales - start.log_scales - jnp.log(factor))
    ordered = jnp.sort(gaussians.log_scales, axis=-1)
    ratio = jax.nn.relu(ordered[:, 2] - ordered[:, 1] - jnp.log(needle))
    return jnp.mean(jnp.sum(growth**2, axis=-1) + ratio**2)


def recoloring(gaussians: Gaussians, start: Gaussians) -> Float[Array, ""]:
    """Mean squared change of colour: what no view asks for keeps its colour."""
    change = jnp.sum((gaussians.sh - start.sh) ** 2, axis=(-2, -1))
    return jnp.mean(change)
