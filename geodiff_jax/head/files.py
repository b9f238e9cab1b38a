"""A head in one file: safetensors, nothing that executes, sealed with a hash.

Sources take seconds to read and may need many files; this is read in a tenth of one.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import safetensors
import safetensors.numpy

from geodiff_jax.head import model as head_model
from geodiff_jax.io import atomic

FORMAT = "geodiff_jax head 1"

_SHAPES = {
    "template": "v 3",
    "identity_basis": "i v 3",
    "expression_basis": "e v 3",
    "eyelid_basis": "2 v 3",
    "joint_template": "5 3",
    "joint_identity_basis": "i 5 3",
    "joint_drivers": "e 5 3",
    "skinning_weights": "v 5",
    "faces": "f 3",
    "uv": "u 2",
    "uv_faces": "f 3",
    "landmarks.faces": "68",
    "landmarks.barycentrics": "68 3",
    "irises.faces": "2",
    "irises.barycentrics": "2 3",
    "joint_expression_basis": "e 5 3",
    "pose_basis": "36 v 3",
} | {f"regions.{name}": "v" for name in head_model.REGIONS}
_OPTIONAL = ("joint_expression_basis", "pose_basis")
_INDICES = {
    "faces": "v",
    "uv_faces": "u",
    "landmarks.faces": "f",
    "irises.faces": "f",
}
"""What each array of indices points to."""


def save(path: str | os.PathLike, model: head_model.HeadModel) -> None:
    """Writes a head; replaces what was there only once all of it is on disk."""
    arrays = _arrays(model)
    names = ("version", "identity_names", "expression_names", "eyelids_after_skinning")
    facts = {name: getattr(model, name) for name in names}
    # One entry: safetensors writes several in any order, and equal heads must be equal
    # files.
    entry = {**facts, "format": FORMAT, "sha256": _digest(arrays, facts)}
    with atomic.new_file(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, {"head": json.dumps(entry)})


def load(path: str | os.PathLike) -> head_model.HeadModel:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or no head.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no head at {file}.")
    expected = f"Expected a head in {file}, as experiments.prepare_head writes it"
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            entry = (stored.metadata() or {}).get("head", "{}")
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}
        facts = json.loads(entry)
        kind, seal = facts.pop("format", "something else"), facts.pop("sha256", None)
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise ValueError(f"{expected}, got a damaged file ({error}).") from error
    if kind != FORMAT:
        raise ValueError(f"{expected}, got {kind}.")
    if seal != _digest(arrays, facts):
        raise ValueError(f"{expected}, got a file that was changed; prepare it again.")
    try:
        sizes = {"i": len(facts["identity_names"]), "e": len(facts["expression_names"])}
        _check(arrays, sizes)
        return _model(arrays, facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got one without its parts ({error}).") from error


def _arrays(model: head_model.HeadModel) -> dict[str, np.ndarray]:
    arrays = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        parts = value if isinstance(value, Mapping) else {}
        if isinstance(value, head_model.LandmarkEmbedding):
            parts = vars(value)
        if isinstance(value, jax.Array | np.ndarray):
            arrays[field.name] = value
        arrays |= {f"{field.name}.{name}": part for name, part in parts.items()}
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def _model(arrays: Mapping[str, np.ndarray], facts: dict) -> head_model.HeadModel:
    placed = jax.device_put(dict(arrays))  # Compiles nothing.
    whole = {name: value for name, value in placed.items() if "." not in name}
    for group in ("landmarks", "irises"):
        whole[group] = head_model.LandmarkEmbedding(
            placed[f"{group}.faces"], placed[f"{group}.barycentrics"]
        )
    whole["regions"] = {name: placed[f"regions.{name}"] for name in head_model.REGIONS}
    return head_model.HeadModel(
        **whole,
        version=str(facts["version"]),
        identity_names=tuple(facts["identity_names"]),
        expression_names=tuple(facts["expression_names"]),
        eyelids_after_skinning=bool(facts["eyelids_after_skinning"]),
    )


def _check(arrays: Mapping[str, np.ndarray], sizes: dict[str, int]) -> None:
    """Raises ValueError where arrays do not fit together; `sizes` grows with them."""
    for name, shape in _SHAPES.items():
        if name not in arrays:
            if name in _OPTIONAL:
                continue
            raise ValueError(f"no {name}")
        array, axes = arrays[name], shape.split()
        kind = "b" if name.startswith("regions.") else "i" if name in _INDICES else "f"
        fits = len(axes) == array.ndim and array.dtype.kind == kind
        for axis, size in zip(axes, array.shape, strict=False):
            known = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            fits = fits and known == size
        if not fits:
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
    unknown = sorted(set(arrays) - set(_SHAPES))
    if unknown:
        raise ValueError(f"nothing knows {', '.join(unknown)}")
    for name, target in _INDICES.items():
        array = arrays[name]
        if array.size and not (0 <= array.min() and array.max() < sizes[target]):
            raise ValueError(f"{name} point beyond their {sizes[target]}")


def _digest(arrays: Mapping[str, np.ndarray], facts: Mapping) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
