"""Avatars on disk: our own folder, and the .ply that every 3DGS viewer reads."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from geodiff_jax import checkpoint
from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.gaussians import ply
from geodiff_jax.gaussians.binding import Binding
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.head import model as head_model

_HEAD_NAMES = (
    "identity_names",
    "expression_names",
    "version",
    "eyelids_after_skinning",
)


def save(
    path: str | os.PathLike,
    avatar: Avatar,
    *,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Writes the whole avatar, its personal head included, as a folder."""
    head = {name: getattr(avatar.head, name) for name in _HEAD_NAMES}
    facts = {"head": head, "provenance": dict(provenance or {})}
    checkpoint.save(path, avatar, metadata=facts)


def load(path: str | os.PathLike) -> Avatar:
    """Reads what `save` wrote. Raises ValueError in one sentence if it is damaged."""
    facts = checkpoint.read_metadata(path)
    tree: dict[str, Any] = jax.tree.map(jnp.asarray, checkpoint.restore(path))
    try:
        head = tree["head"]
        for marks in ("landmarks", "irises"):
            head[marks] = head_model.LandmarkEmbedding(**head[marks])
        names = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in facts["head"].items()
        }
        return Avatar(
            head=head_model.HeadModel(**head, **names),
            params=head_model.HeadParams(**tree["params"]),
            gaussians=Gaussians(**tree["gaussians"]),
            binding=Binding(**tree["binding"]),
            layer=tree["layer"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"Expected an avatar at {path}, got a checkpoint of something else "
            f"({error}); give the folder that create_avatar wrote."
        ) from error


def write_ply(
    path: str | os.PathLike,
    avatar: Avatar,
    *,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """The avatar in its source pose, in the world: y down, as 3DGS viewers expect."""
    lines = [f"{name}: {value}" for name, value in (provenance or {}).items()]
    ply.write_ply(path, avatar_model.pose(avatar, avatar.params), comments=lines)
