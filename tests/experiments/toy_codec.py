"""An autoencoder of no use in a file, and a dataset of balls for it to encode."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from experiments.configs import generator
from geodiff_jax.data import procedural_heads
from geodiff_jax.head import procedural
from geodiff_jax.models import vae, weight_files
from tests.data import balls
from tests.experiments import launch
from tests.models import settings

prepare_data = launch.import_apart("experiments.prepare_data")

CHANNELS = generator.SIZES["tiny"]["latent_channels"]
MODULE = vae.AutoencoderKL(4, (1, 1, 1, 1), 1, latent_channels=CHANNELS, scale=0.5)


def write(path: pathlib.Path) -> pathlib.Path:
    """Random weights, as `train_vae` writes trained ones."""
    init = jax.jit(MODULE.init, compiler_options=settings.QUICKLY)
    variables = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    facts = {"modules": {"vae": weight_files.describe(MODULE)}}
    weight_files.save(path, {"vae": variables}, metadata=facts)
    return path


def render_balls(patch: pytest.MonkeyPatch) -> None:
    """Two frames from two sides, of the toy plan's sizes, in place of heads."""

    def examples(name, plan):
        for frame in range(2):
            for view in ("left", "right"):
                yield balls.example(name, "clip0", frame, view, sizes=plan.sizes)

    patch.setattr(procedural, "load", lambda: balls.HEAD)
    patch.setattr(procedural_heads, "examples", examples)


def dataset(folder: pathlib.Path) -> str:
    """Both splits, of 64 x 64 pictures and maps of 8 x 8."""
    with pytest.MonkeyPatch.context() as patch:
        render_balls(patch)
        return str(prepare_data.prepare(str(folder), "toy", workers=1)[0])
