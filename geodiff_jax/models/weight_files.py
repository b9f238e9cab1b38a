"""Variables of modules in safetensors, with where they come from and what they fit.

One file holds the variables of one or several modules, by name: a denoiser's, or a
UNet's and an autoencoder's.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from geodiff_jax.io import atomic

FORMAT = "geodiff_jax variables 1"


def save(
    path: str | os.PathLike,
    variables: Mapping[str, Mapping[str, Any]],
    *,
    metadata: Mapping[str, Any],
) -> None:
    """Writes variables by module; `metadata` is anything that JSON knows.

    Replaces what was there only once all of it is on disk. Raises ValueError for names
    with a slash, which separates the parts of a path.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    for parts in flat:
        if any("/" in part for part in parts):
            raise ValueError(f"Expected names without a slash, got {parts}.")
    tensors = {
        "/".join(parts): np.ascontiguousarray(value) for parts, value in flat.items()
    }
    entry = json.dumps({**metadata, "format": FORMAT}, sort_keys=True)
    with atomic.new_file(path) as temporary:
        # One entry: safetensors writes several in any order.
        safetensors.numpy.save_file(tensors, temporary, {"geodiff_jax": entry})


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables by module, metadata) that `save` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or holds something else.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There are no weights at {file}.")
    expected = f"Expected weights in {file}, as experiments.convert_weights writes them"
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            entry = json.loads((stored.metadata() or {}).get("geodiff_jax", "{}"))
            flat = {
                tuple(name.split("/")): stored.get_tensor(name)
                for name in stored.keys()
            }
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{expected}, got a damaged file ({error}).") from error
    if not isinstance(entry, dict) or entry.pop("format", None) != FORMAT:
        raise ValueError(f"{expected}, got another file.")
    return flax.traverse_util.unflatten_dict(flat), entry


def check(variables: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Raises ValueError unless variables have the names, shapes and types of a module.

    `shapes` are what `weights.template` gives.
    """
    own, wanted = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                tuple(leaf.shape),
                np.dtype(leaf.dtype).name,
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(tree))
        }
        for tree in (variables, shapes)
    )
    for name in sorted(own.keys() | wanted.keys()):
        if own.get(name) != wanted.get(name):
            raise ValueError(
                f"Expected {wanted.get(name, 'nothing')} as {name}, got "
                f"{own.get(name, 'nothing')}; these weights are of another network."
            )
