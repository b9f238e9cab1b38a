"""The objective of the autoencoder: pictures come back from few numbers.

Images and normal maps pass the same network, one beside the other, so that the
generator's domains share a space of latents (GeoDiff4D, Sec 3.2).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from geodiff_jax.metrics import image as image_metrics
from geodiff_jax.models import vae
from geodiff_jax.training import state as states
from geodiff_jax.training import step

DOMAINS = ("image", "normal")
Codec = vae.AutoencoderKL | vae.PixelShuffle
Pictures = Float[Array, "batch domain h w 3"]
"""Pixels in [-1, 1], as `vae` takes them: white, or zero, where there is nothing."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """How the loss is made up; all but `divergence` is ours."""

    squared: float = 2.0
    """Weight of the mean squared difference, next to that of the absolute one."""
    divergence: float = 1e-6
    """Weight of the KL divergence in nats next to differences that are summed over the
    picture as it is (Rombach et al. 2022)."""


def loss(
    key: Key[Array, ""],
    module: vae.AutoencoderKL,
    variables: dict[str, Any],
    pictures: Pictures,
    *,
    objective: Objective,
) -> tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Any]]]:
    """(loss, (figures, no statistics)) of pictures decoded from sampled latents.

    Figures are `loss` and its parts; differences are told by domain.
    """
    variables = {"params": variables["params"]}
    posterior: Any = module.apply(variables, pictures, method="posterior")
    # Decoders take latents for diffusion, which are scaled.
    latents = module.scale * posterior.sample(key)
    decoded: Any = module.apply(variables, latents, method="decode")
    error = decoded - pictures
    absolute = jnp.mean(jnp.abs(error), axis=(0, -3, -2, -1))
    squared = jnp.mean(jnp.square(error))
    values = pictures[0, 0].size
    divergence = jnp.mean(posterior.kl_from_standard()) / values
    value = (
        jnp.mean(absolute)
        + objective.squared * squared
        + objective.divergence * divergence
    )
    figures = {f"loss/{n}": x for n, x in zip(DOMAINS, absolute, strict=True)}
    figures |= {"loss": value, "loss/squared": squared, "loss/divergence": divergence}
    return value, (figures, {})


def train_step(
    key: Key[Array, ""],
    state: states.TrainState,
    batch: Pictures,
    *,
    module: vae.AutoencoderKL,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    average: float = 0.999,
    accumulate: int = 1,
) -> tuple[states.TrainState, dict[str, Float[Array, ""]]]:
    """(state, figures) after one batch; jit it with all that stands after `*` bound.

    A gradient that is not finite changes nothing but the counters, as in `step.take`.
    """

    def of_batch(
        key: Key[Array, ""], variables: dict[str, Any], pictures: Pictures
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Any]]]:
        return loss(key, module, variables, pictures, objective=objective)

    return step.take(
        key,
        state,
        batch,
        loss=of_batch,
        optimizer=optimizer,
        average=average,
        accumulate=accumulate,
    )


def reconstruct(
    module: Codec, variables: dict[str, Any], pictures: Pictures
) -> tuple[Pictures, Float[Array, "batch domain"]]:
    """(pictures decoded from their most likely latents, in [-1, 1], PSNR in dB).

    PSNR takes both domains as they are stored, from 0 to 1.
    """
    decoded: Any = module.apply({"params": variables["params"]}, pictures)
    decoded = jnp.clip(decoded, -1.0, 1.0)
    stored, seen = (vae.images_from_pixels(x) for x in (pictures, decoded))
    return decoded, jax.vmap(jax.vmap(image_metrics.psnr))(seen, stored)


def latent_moments(
    module: vae.AutoencoderKL, variables: dict[str, Any], pictures: Pictures
) -> Float[Array, "2"]:
    """(mean, mean square) of sampled latents before their scale, over all of them."""
    posterior: Any = module.apply(
        {"params": variables["params"]}, pictures, method="posterior"
    )
    square = jnp.square(posterior.mean) + jnp.square(posterior.std())
    return jnp.stack([jnp.mean(posterior.mean), jnp.mean(square)])
