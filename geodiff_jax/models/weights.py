"""Tensors of other people's checkpoints, put where our parameters are.

A table says for every name in a checkpoint where its tensor goes and how it is laid
out there; the tables themselves stand in the modules named `names_*`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

Path = tuple[str, ...]
"""Of a leaf in a module's variables, such as ("params", "conv_in", "kernel")."""


def _same(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _dense(tensor: np.ndarray) -> np.ndarray:
    """[out, in], or a convolution of one pixel [out, in, 1, 1], to [in, out]."""
    return tensor.reshape(tensor.shape[:2]).T


def _conv(tensor: np.ndarray) -> np.ndarray:
    """[out, in, height, width] to [height, width, in, out]."""
    return tensor.transpose(2, 3, 1, 0)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": _same,
    "dense": _dense,
    "conv": _conv,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one tensor goes."""

    path: Path
    layout: str = "same"
    """One of `LAYOUTS`: how it is turned on the way."""


Table = dict[str, Entry]
"""By the tensor's name in the checkpoint."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What did not come out even; all empty after a complete load."""

    missing: tuple[str, ...] = ()
    """Names of the table that the checkpoint lacks."""
    unused: tuple[str, ...] = ()
    """Names of the checkpoint that the table lacks."""
    misshapen: tuple[str, ...] = ()
    """Names with the shapes found and wanted."""
    random: tuple[str, ...] = ()
    """Our variables that no tensor filled, by path."""


def scoped(table: Table, *, name: str = "", path: Path = ()) -> Table:
    """The table of a part: names get a prefix, paths one behind their collection."""
    return {
        name + key: dataclasses.replace(
            entry, path=(entry.path[0], *path, *entry.path[1:])
        )
        for key, entry in table.items()
    }


def fill(
    variables: Mapping[str, Any], table: Table, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Report]:
    """Variables with every tensor of the table in its place, and what was left over.

    Shapes and dtypes are those of `variables` (arrays, or ShapeDtypeStructs where all
    are to be filled): float16 tensors become what the module has. Raises ValueError if
    the table names a path that the variables lack.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables))
    unknown = [e.path for e in table.values() if e.path not in flat]
    if unknown:
        raise ValueError(
            f"Expected paths of the module in the table, got {'/'.join(unknown[0])} "
            f"and {len(unknown) - 1} more that it lacks; table and module differ."
        )
    misshapen, filled = [], set()
    for name in table.keys() & tensors.keys():
        entry, target = table[name], flat[table[name].path]
        try:
            value = LAYOUTS[entry.layout](np.asarray(tensors[name]))
        except ValueError:
            value = np.asarray(tensors[name])
        if value.shape != target.shape:
            misshapen.append(f"{name}: {list(value.shape)}, not {list(target.shape)}")
            continue
        flat[entry.path] = jnp.asarray(value.astype(target.dtype))
        filled.add(entry.path)
    report = Report(
        missing=tuple(sorted(table.keys() - tensors.keys())),
        unused=tuple(sorted(tensors.keys() - table.keys())),
        misshapen=tuple(sorted(misshapen)),
        random=tuple(sorted("/".join(p) for p in flat.keys() - filled)),
    )
    return flax.traverse_util.unflatten_dict(flat), report


def demand(report: Report, *, expected: Collection[str] = ()) -> None:
    """Raises ValueError unless nothing is missing, unused or misshapen.

    `expected` are names, or beginnings of names, that may be missing or unused.
    """
    beginnings = tuple(expected)
    for kind in ("misshapen", "missing", "unused"):
        names = [
            name
            for name in getattr(report, kind)
            if kind == "misshapen" or not name.startswith(beginnings)
        ]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(
                f"Expected a checkpoint that fits, got {len(names)} {kind} tensors: "
                f"{shown}; is it of this model and these sizes?"
            )


def template(module: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """Shapes and dtypes of a module's variables; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *arguments, **keywords)
