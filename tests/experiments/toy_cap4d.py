"""CAP4D's checkpoint of a tiny network, with the names of the released one."""

import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.configs import cap4d, generator
from geodiff_jax.models import pretrained, unet, vae, weight_files, weights
from tests.models import named_tensors

HEAD_WIDTH = 32
VAE = vae.AutoencoderKL(channels=32, multipliers=(1, 2), blocks=1)


def network() -> unet.UNet:
    """That of the tiny config, of Stable Diffusion's latents."""
    config = cap4d.get_config("size=tiny")
    config.latent_channels = 4
    return generator.network(config).unet


def checkpoint() -> dict[str, np.ndarray]:
    """Of random numbers: the same ones every time."""
    x, maps = jnp.zeros((1, 1, 1, 1, 4, 4, 4)), jnp.zeros((1, 1, 1, 1, 4, 4, 50))
    shapes = weights.template(network(), x, jnp.zeros(()), maps=maps)
    pixels = weights.template(VAE, jnp.zeros((1, 4, 4, 3)))
    return named_tensors.cap4d({"unet": (network(), shapes), "vae": (VAE, pixels)})


def write(path: pathlib.Path) -> None:
    """What convert_weights makes of it, but for its origin."""
    plans = pretrained.cap4d_plans(checkpoint(), {"head_width": HEAD_WIDTH})
    described = {
        k: weight_files.describe(made.module) for k, (made, _) in plans.items()
    }
    rng = np.random.default_rng(0)
    described["unet"]["positions"] = rng.normal(size=(5223, 3)).tolist()
    facts = {"source": "cap4d", "licence": "none", "modules": described}
    variables = {k: made.load(own) for k, (made, own) in plans.items()}
    weight_files.save(path, variables, metadata=facts)
