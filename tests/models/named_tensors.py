"""Random checkpoints that any program can draw again from names and shapes alone."""

import zlib

import flax.traverse_util
import numpy as np

from geodiff_jax.models import weights


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
