"""Checkpoints of names and shapes alone: random ones, and released ones of zeros."""

import functools
import json
import zlib

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from geodiff_jax.models import (
    attention,
    names_unet,
    names_vae,
    pretrained,
    unet,
    weights,
)
from tests.conftest import shared_data


def layout_of(*files: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of every tensor in released files."""
    found = {}
    for file in files:
        stored = json.loads(shared_data(f"weight_layouts/{file}.json").read_text())
        found |= {name: (tuple(x["shape"]), x["dtype"]) for name, x in stored.items()}
    return found


def released(*files: str) -> dict[str, np.ndarray]:
    """Tensors of full size that take no memory: zeros, but for positions in time."""
    return {
        name: attention.frame_positions(*shape[1:])[None]
        if name.endswith(".pe")
        else np.broadcast_to(np.zeros((), dtype), shape)
        for name, (shape, dtype) in layout_of(*files).items()
    }


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels keep the variance of their input, scales are about 1, biases about 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return normal / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(name.endswith("weight")) + np.float32(0.1) * normal


def checkpoint(table: weights.Table, variables: dict) -> dict[str, np.ndarray]:
    """All tensors of a table, in the checkpoint's layout, for a module's variables."""
    flat = flax.traverse_util.flatten_dict(variables)
    orders = {"same": (0,), "dense": (1, 0), "conv": (3, 2, 0, 1)}
    tensors = {}
    for name, entry in table.items():
        shape = flat[entry.path].shape
        tensors[name] = draw(name, tuple(shape[i] for i in orders[entry.layout]))
    return tensors


def of_diffusers(
    module: unet.UNet, *, channels: int, context: int
) -> dict[str, np.ndarray]:
    """All tensors of a UNet in diffusers' layout."""
    shapes = weights.template(
        module,
        jnp.zeros((1, 1, 1, 1, 8, 8, channels)),
        jnp.zeros(()),
        context=jnp.zeros((1, 1, 1, 1, 1, context)),
    )
    return checkpoint(names_unet.diffusers_table(module), shapes)


@functools.cache
def tiny() -> tuple[unet.UNet, dict[str, np.ndarray]]:
    """The smallest UNet, and a checkpoint of it."""
    module = unet.UNet(
        channels=32, multipliers=(1, 1), blocks=1, tokens=(unet.IMAGE, ()), heads=(8, 8)
    )
    return module, of_diffusers(module, channels=4, context=24)


def cap4d(parts: dict[str, tuple]) -> dict[str, np.ndarray]:
    """CAP4D's checkpoint of other sizes; `parts` are modules and their variables."""
    tensors = {}
    for part, (module, variables) in parts.items():
        table = (
            names_unet.compvis_table(module)
            if part == "unet"
            else names_vae.vae_table(module, names_vae.COMPVIS)
        )
        table = weights.scoped(table, name=pretrained.CAP4D_PARTS[part])
        tensors |= checkpoint(table, variables)
    return tensors
