"""The start of a training from other people's weights: what they know, and no more."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
from flax import linen as nn

from geodiff_jax.models import pretrained, weights


def initialise(
    variables: Mapping[str, Any], sources: Mapping[str, tuple[str, pretrained.Tensors]]
) -> tuple[dict[str, Any], weights.Report]:
    """Variables of a larger model, with what checkpoints know of its parts.

    `sources` are (layout, tensors) by the name of the submodule, such as "unet" or
    "reference_net"; "" is the model itself. Where a UNet takes more channels, these
    start at zero (`Report.padded`). `Report.random` is exactly what stays as it was;
    what the model has no place for is `unused`. Names are behind those of their part.
    Heads show in no shape: a UNet must have the checkpoint's.

    Raises:
      ValueError: another layout, and tensors that are missing or misshapen.
    """
    table, tensors, widened = {}, {}, []
    known = flax.traverse_util.flatten_dict(dict(variables)).keys()
    for part, (layout, given) in sources.items():
        path = (part,) if part else ()
        name = f"{part}/" if part else ""
        made = pretrained.plan(layout, given)
        own = weights.scoped(made.table, name=name, path=path)
        table |= {key: entry for key, entry in own.items() if entry.path in known}
        tensors |= {
            name + key: tensor
            for key, tensor in given.items()
            if not key.startswith(made.unused or ("\0",))
        }
        widened.append(("params", *path, "conv_in", "kernel"))
        if not any(name + key in table for key in made.table):
            raise ValueError(
                f"Expected a submodule {part!r} for {layout}, got none of its paths."
            )
    filled, report = weights.fill(variables, table, tensors, widened=widened)
    weights.demand(report, expected=report.unused)
    return filled, report


def adopt(
    network: nn.Module,
    variables: Mapping[str, Any],
    parts: Mapping[str, tuple[nn.Module, Mapping[str, Any]]],
) -> tuple[dict[str, Any], weights.Report]:
    """The network's variables, with what converted weights know of its submodules.

    `parts` are modules and variables by the name of the submodule, as
    `weight_files.load_modules` gives them. What the network has no place for, the
    parts it lacks included, is `unused`; all else is as in `initialise`.

    Raises:
      ValueError: variables that are misshapen, heads that are not the network's, and
        parts of which nothing is used.
    """
    known = flax.traverse_util.flatten_dict(dict(variables)).keys()
    table, tensors = {}, {}
    for part, (module, own) in parts.items():
        _check_heads(part, getattr(network, part, None), module)
        for path, value in flax.traverse_util.flatten_dict(dict(own)).items():
            entry = weights.Entry((path[0], part, *path[1:]))
            name = "/".join(entry.path)
            tensors[name] = value
            if entry.path in known:
                table[name] = entry
    if not table:
        raise ValueError(
            f"Expected weights of the network's submodules, got {', '.join(parts)}, of "
            "which it has none."
        )
    widened = [("params", part, "conv_in", "kernel") for part in parts]
    filled, report = weights.fill(variables, table, tensors, widened=widened)
    weights.demand(report, expected=report.unused)
    return filled, report


def _check_heads(part: str, ours: nn.Module | None, theirs: nn.Module) -> None:
    """Heads show in no shape. Raises ValueError where both have other ones."""
    names = ["heads"]
    if getattr(ours, "expression_modules", False):
        names += (
            ["module_heads"] if getattr(theirs, "expression_modules", False) else []
        )
    for name in names if ours is not None else ():
        wanted, found = getattr(ours, name, None), getattr(theirs, name, None)
        if wanted != found:
            raise ValueError(
                f"Expected weights of a {part} with {name} {wanted}, got one with "
                f"{found}; they are of another network."
            )
