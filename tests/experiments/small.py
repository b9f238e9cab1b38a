"""A generator with every kind of layer, as small as such a thing can be."""

import zlib
from typing import Any

import jax
import numpy as np

from experiments.configs import generator, geodiff4d
from tests.experiments import launch

train_denoiser = launch.import_apart("experiments.train_denoiser")

ITEMS = 8


def config() -> Any:
    """GeoDiff4D's with its temporal modules, all of which learn."""
    made = geodiff4d.get_config("stage=2")
    made.trained = ""
    made.batch, made.frames, made.latents, made.crop = ITEMS, 2, 8, 32
    for net in (made.model.unet, made.model.reference_net):
        net.update(channels=32, multipliers=(1, 2), blocks=1)
    made.model.encoder.update(
        width=32, maps=4, depth=1, heads=1, head_width=16, latent=16, tokens=4
    )
    made.optimizer.update(learning_rate=1e-3, warmup=0)
    return made


def state(config: Any) -> Any:
    """Random also where training starts at zero, since zeros stop gradients."""
    shapes = generator.state_shapes(config)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.split("/")[0] not in ("params", "average"):
            ones = name.endswith("var")
            return np.full(leaf.shape, 1 if ones else 0, leaf.dtype)
        if name.endswith("scale"):
            return np.ones(leaf.shape, leaf.dtype)
        if name.endswith("log_scales"):
            return np.full(leaf.shape, -5.0, leaf.dtype)
        rng = np.random.default_rng(zlib.crc32(name.partition("/")[2].encode()))
        fan = max(int(np.prod(leaf.shape[:-1])), 1) if "kernel" in name else 100
        return (rng.standard_normal(leaf.shape) / np.sqrt(fan)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
