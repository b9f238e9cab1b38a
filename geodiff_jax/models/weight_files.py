"""Variables of modules in safetensors, with where they come from and what they fit.

One file holds the variables of one or several modules, by name: a denoiser's, or a
UNet's and an autoencoder's. Where its metadata describes the modules, as those of
`experiments.convert_weights` do, they are made again with it.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from geodiff_jax.io import atomic
from geodiff_jax.models import expression_encoder, pretrained, unet, vae, weights

FORMAT = "geodiff_jax variables 1"
MODULES = {
    kind.__name__: kind
    for kind in (unet.UNet, vae.AutoencoderKL, expression_encoder.ExpressionEncoder)
}
"""That a file can describe, by class."""
Part = tuple[nn.Module, dict[str, Any]]
"""A module and its variables, arrays of numpy."""


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


def describe(module: nn.Module) -> dict[str, Any]:
    """What the module is, for `metadata["modules"]`, so that it can be made again.

    Precision is no part of it: that is the reader's to choose.
    """
    own = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name", "dtype")
    }
    return {"class": type(module).__name__, "fields": own}


def load_modules(
    path: str | os.PathLike,
) -> tuple[dict[str, Part], dict[str, Any]]:
    """(modules and their variables by name, metadata) of a file that describes them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, holds something else, or does not fit its description.
    """
    variables, facts = load(path)
    described = facts.get("modules")
    if not isinstance(described, dict) or described.keys() != variables.keys():
        raise ValueError(
            f"Expected a description of the modules {', '.join(sorted(variables))} in "
            f"{path}, got none; convert the checkpoint again."
        )
    parts = {}
    for name, own in variables.items():
        try:
            module = _made(described[name])
            check(own, _template(module, own["params"]))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected weights that fit their description in {path}, got others "
                f"for {name} ({error}); convert the checkpoint again."
            ) from error
        parts[name] = module, own
    return parts, facts


def _made(description: Mapping[str, Any]) -> nn.Module:
    fields = {name: _hashable(x) for name, x in description["fields"].items()}
    return MODULES[description["class"]](**fields)


def _hashable(value: Any) -> Any:
    """JSON knows no tuples, of which modules are made."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _template(module: nn.Module, params: Mapping[str, Any]) -> dict[str, Any]:
    """The module's variables; what it takes is read off its parameters."""
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")

    def inputs(part: str, ending: str) -> int | None:
        found = (
            x for name, x in flat.items() if part in name and name.endswith(ending)
        )
        kernel = next(found, None)
        return None if kernel is None else kernel.shape[-2]

    if isinstance(module, unet.UNet):
        signals = {
            "context": inputs("_attention", "/across/to_k/kernel"),
            "expression": inputs("_expression", "/attention1/to_k/kernel"),
            "maps": inputs("maps_in", "/kernel"),
        }
        channels = flat["conv_in/kernel"].shape[-2]
        return pretrained.unet_template(module, channels, signals)
    if isinstance(module, vae.AutoencoderKL):
        pixels = (module.factor, module.factor)
    else:
        # All channels of an eighth of the crop are what `to_latent` takes.
        numbers = flat["to_latent/kernel"].shape[-2]
        pixels = (8 * math.isqrt(numbers // module.squeezed),) * 2
    return weights.template(module, jnp.zeros((1, *pixels, 3)))
