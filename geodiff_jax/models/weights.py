"""Tensors of other people's checkpoints, put where our parameters are.

A table says for every name in a checkpoint where its tensor goes and how it is laid
out there; the tables themselves stand in the modules named `names_*`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
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
    padded: tuple[str, ...] = ()
    """Our kernels that have more inputs than the checkpoint's: these start at zero."""
    random: tuple[str, ...] = ()
    """Our variables that no tensor filled, by path."""


def conv(name: str, path: Path, *, bias: bool = True) -> Table:
    """The table of a convolution."""
    return _layer(name, path, "conv", bias)


def dense(name: str, path: Path, *, bias: bool = True) -> Table:
    """The table of a linear layer, or of a convolution of one pixel that we keep so."""
    return _layer(name, path, "dense", bias)


def norm(name: str, path: Path) -> Table:
    """The table of a norm's scale and bias."""
    return {
        f"{name}.weight": Entry(("params", *path, "scale")),
        f"{name}.bias": Entry(("params", *path, "bias")),
    }


def _layer(name: str, path: Path, layout: str, bias: bool) -> Table:
    table = {f"{name}.weight": Entry(("params", *path, "kernel"), layout)}
    if bias:
        table[f"{name}.bias"] = Entry(("params", *path, "bias"))
    return table


def scoped(table: Table, *, name: str = "", path: Path = ()) -> Table:
    """The table of a part: names get a prefix, paths one behind their collection."""
    return {
        name + key: dataclasses.replace(
            entry, path=(entry.path[0], *path, *entry.path[1:])
        )
        for key, entry in table.items()
    }


def fill(
    variables: Mapping[str, Any],
    table: Table,
    tensors: Mapping[str, np.ndarray],
    *,
    widened: Collection[Path] = (),
) -> tuple[dict[str, Any], Report]:
    """Variables with every tensor of the table in its place, and what was left over.

    Shapes and dtypes are those of `variables` (arrays, or ShapeDtypeStructs where all
    are to be filled): float16 tensors become what the module has. What is filled are
    arrays of numpy, views where possible, for the caller to place on devices. The
    kernels `widened` may have more inputs than their tensors, behind theirs: zeros.

    Raises:
      ValueError: a table that names a path which the variables lack.
    """
    flat: dict[Path, Any] = dict(flax.traverse_util.flatten_dict(dict(variables)))
    unknown = [e.path for e in table.values() if e.path not in flat]
    if unknown:
        raise ValueError(
            f"Expected paths of the module in the table, got {'/'.join(unknown[0])} "
            f"and {len(unknown) - 1} more that it lacks; table and module differ."
        )
    misshapen, padded, filled = [], [], set()
    for name in sorted(table.keys() & tensors.keys()):
        path, target = table[name].path, flat[table[name].path]
        value = _turned(tensors[name], table[name].layout)
        if path in widened and _is_narrower(value.shape, target.shape):
            more = target.shape[-2] - value.shape[-2]
            value = np.pad(value, [(0, 0)] * (value.ndim - 2) + [(0, more), (0, 0)])
            padded.append(f"{'/'.join(path)}: {more} of {target.shape[-2]} inputs")
        if value.shape != target.shape:
            misshapen.append(f"{name}: {list(value.shape)}, not {list(target.shape)}")
            continue
        flat[path] = value.astype(target.dtype, copy=False)
        filled.add(path)
    report = Report(
        missing=tuple(sorted(table.keys() - tensors.keys())),
        unused=tuple(sorted(tensors.keys() - table.keys())),
        misshapen=tuple(misshapen),
        padded=tuple(padded),
        random=tuple(sorted("/".join(p) for p in flat.keys() - filled)),
    )
    return flax.traverse_util.unflatten_dict(flat), report


def _turned(tensor: np.ndarray, layout: str) -> np.ndarray:
    """In our layout; as it is if it has not the axes for that."""
    try:
        return LAYOUTS[layout](np.asarray(tensor))
    except ValueError:
        return np.asarray(tensor)


def _is_narrower(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether only the axis of inputs, the last but one, is shorter."""
    if len(shape) != len(wanted) or len(shape) < 2 or shape[-2] >= wanted[-2]:
        return False
    return (*shape[:-2], shape[-1]) == (*wanted[:-2], wanted[-1])


def demand(report: Report, *, expected: Collection[str] = ()) -> None:
    """Refuses a checkpoint that does not fit.

    `expected` are names, or beginnings of names, that may be missing or unused.

    Raises:
      ValueError: anything else missing, unused or misshapen; all are named.
    """
    beginnings = tuple(expected)
    problems = {
        "misshapen": report.misshapen,
        "missing": [n for n in report.missing if not n.startswith(beginnings)],
        "unused": [n for n in report.unused if not n.startswith(beginnings)],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names)}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(
            "Expected a checkpoint that fits; is it of this model and these sizes? "
            f"Got {listed}."
        )


def summary(report: Report, variables: Mapping[str, Any], *, name: str) -> list[str]:
    """What came of filling the variables from `name`, by the shortest paths, to read.

    Unused names must be paths too, as in `adoption.adopt`.
    """
    every = flax.traverse_util.flatten_dict(dict(variables), sep="/").keys()
    filled = every - set(report.random)
    lines = [f"{len(filled):,} of {len(every):,} arrays are those of {name}."]
    for what, names in (
        ("stay as they are", branches(report.random, filled)),
        ("start at zero", report.padded),
        ("are not used", branches(report.unused, filled)),
    ):
        if names:
            lines.append(f"These {what}: {', '.join(names)}.")
    return lines


def branches(names: Collection[str], others: Collection[str]) -> tuple[str, ...]:
    """The shortest beginnings of paths below which lie all names and none of others."""
    taken = {path for other in others for path in _beginnings(other)}
    found = {
        next((path for path in _beginnings(name) if path not in taken), name)
        for name in names
    }
    return tuple(sorted(found))


def _beginnings(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def template(module: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """Shapes and dtypes of a module's variables; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *arguments, **keywords)
