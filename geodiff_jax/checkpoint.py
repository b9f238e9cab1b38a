"""Pytrees of arrays on disk: thin orbax, finished whole or not at all.

A checkpoint is a folder: orbax's `arrays`, and `contents.json` with the caller's own
facts and the digest of every file, since orbax does not notice flipped bits.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from geodiff_jax.io import atomic

_SEAL = "contents.json"


def save(
    path: str | os.PathLike, tree: Any, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a pytree of arrays; replaces the checkpoint that was there before.

    `metadata` is anything that JSON knows.
    """
    with atomic.new_folder(path) as temporary:
        _save_arrays(temporary.absolute() / "arrays", tree)
        seal = {"metadata": dict(metadata or {}), "sha256": _digests(temporary)}
        (temporary / _SEAL).write_text(json.dumps(seal, indent=1))


def restore(path: str | os.PathLike, *, template: Any = None) -> Any:
    """The pytree of a checkpoint.

    A template of arrays or ShapeDtypeStructs gives it its types, and its shardings
    where it has any; names, shapes and dtypes must agree. Without one, dataclasses and
    tuples come back as dicts and lists. Raises ValueError for a damaged folder.
    """
    folder = pathlib.Path(path)
    if _digests(folder) != _read_seal(folder).get("sha256"):
        raise ValueError(
            f"Expected an intact checkpoint at {folder}, got files that differ from "
            "what was saved; remove the folder to make it anew."
        )
    arrays = folder.absolute() / "arrays"
    with ocp.StandardCheckpointer() as checkpointer:
        if template is None:
            return checkpointer.restore(arrays)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        stored = checkpointer.metadata(arrays).item_metadata
        _check_agreement(_signature(getattr(stored, "tree", stored)), abstract, folder)
        return checkpointer.restore(arrays, abstract)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The facts that were saved beside the arrays."""
    return _read_seal(pathlib.Path(path))["metadata"]


def _save_arrays(path: pathlib.Path, tree: Any) -> None:
    # Orbax logs the trace of what it raises too; its caller will say it in a sentence.
    logger = logging.getLogger("absl")
    logger.addFilter(_carries_no_trace)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
    except ValueError as error:
        # TensorStore reports a full disk as a ValueError with the number in its text.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    finally:
        logger.removeFilter(_carries_no_trace)


def _carries_no_trace(record: logging.LogRecord) -> bool:
    return record.exc_info is None


def _read_seal(folder: pathlib.Path) -> dict[str, Any]:
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint at {folder}.")
    try:
        seal = json.loads((folder / _SEAL).read_text())
        return {"metadata": dict(seal["metadata"]), "sha256": dict(seal["sha256"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"Expected a checkpoint at {folder}, got something without an intact "
            f"{_SEAL}; remove it to make it anew."
        ) from None


def _digests(folder: pathlib.Path) -> dict[str, str]:
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != _SEAL:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[file.relative_to(folder).as_posix()] = digest
    return digests


def _signature(tree: Any) -> dict[str, str]:
    """What each leaf is, by its name: dataclasses, dicts and lists read alike."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }


def _check_agreement(
    stored: Mapping[str, str], template: Any, folder: pathlib.Path
) -> None:
    wanted = _signature(template)
    for name in sorted(wanted.keys() | stored.keys()):
        expected, found = wanted.get(name, "nothing"), stored.get(name, "nothing")
        if expected != found:
            raise ValueError(
                f"Expected {expected} as {name} in the checkpoint {folder}, got "
                f"{found}; it was saved by another configuration."
            )
