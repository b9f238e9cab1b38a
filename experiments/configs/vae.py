"""The autoencoder of the generator's latents, for images and normals alike.

python -m experiments.train_vae --workdir=DIR --data=FOLDER,... \\
    --config=experiments/configs/vae.py:size=tiny

size   tiny | small: pictures of 64 and 256 pixels, for the generators' sizes of the
       same name, whose latents are 16 x 16 and 32 x 32. The paper's size uses Stable
       Diffusion's.

All values are ours. On a CPU nearly all of the time of an autoencoder goes into the two
levels of the most pixels: tiny takes squares of 2 x 2 pixels instead, and starts from
principal components, which a network of its size would take hours to learn. Both have
more latent channels than Stable Diffusion's: they learn from few pictures.
"""

import dataclasses

import ml_collections

from experiments.configs import generator, parse
from geodiff_jax.models import vae
from geodiff_jax.training import autoencoding
from geodiff_jax.training import optimizer as optimizers

SIZES = {
    "tiny": {
        "image": 64,
        "batch": 4,
        "steps": 500,
        "model": {
            "channels": 64,
            "multipliers": (1, 2),
            "blocks": 1,
            "patch": 2,
            "linear": True,
        },
        "squared": 10.0,
        "learning_rate": 1e-3,
    },
    "small": {
        "image": 256,
        "batch": 16,
        "steps": 40_000,
        "model": {"channels": 64, "multipliers": (1, 2, 4, 4), "blocks": 2},
        "squared": 2.0,
        "learning_rate": 5e-4,
    },
}
"""`batch` counts records, an image and its normals each."""


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Settings of a size."""
    choice = parse.arguments(argument, size="tiny")
    size = generator.choose("size", choice["size"], SIZES)
    latent_channels = generator.SIZES[choice["size"]]["latent_channels"]
    settings = dataclasses.asdict(
        optimizers.Settings(
            learning_rate=size["learning_rate"],
            warmup=generator.WARMUP,
            weight_decay=0.0,
            second_moment=0.99,
            average=0.998,
        )
    )
    # It ends with the run, however long that is.
    del settings["decay"]
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch": size["batch"],
            "steps": size["steps"],
            "image": size["image"],
            "model": {**size["model"], "latent_channels": latent_channels},
            "objective": dataclasses.asdict(
                autoencoding.Objective(squared=size["squared"])
            ),
            "optimizer": settings,
        }
    )


def network(config: ml_collections.ConfigDict) -> vae.AutoencoderKL:
    """The autoencoder of a config's `model`, its latents not yet scaled."""
    return vae.AutoencoderKL(**config.model.to_dict(), scale=1.0)


def optimizer_settings(config: ml_collections.ConfigDict) -> optimizers.Settings:
    """How parameters follow their gradients, to the config's last step."""
    fields = config.optimizer.to_dict()
    decay = max(config.steps - fields["warmup"], 1)
    return optimizers.Settings(**fields, decay=decay)
