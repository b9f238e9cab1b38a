"""The autoencoder in a file, as functions between pictures and latents."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from geodiff_jax.data import latents
from geodiff_jax.models import vae, weight_files


def load(path: str | os.PathLike) -> tuple[vae.AutoencoderKL, dict[str, Any]]:
    """(module, variables) of a file by `train_vae` or `convert_weights`.

    Raises FileNotFoundError or ValueError for none, or one without an autoencoder.
    """
    parts, _ = weight_files.load_modules(path)
    for module, variables in parts.values():
        if isinstance(module, vae.AutoencoderKL):
            return module, jax.tree.map(jnp.asarray, variables)
    raise ValueError(
        f"Expected an autoencoder in {path}, got {', '.join(parts)}; train one with "
        "experiments.train_vae."
    )


def cache(
    data_path: str | os.PathLike, path: str | os.PathLike, *, splits: Sequence[str]
) -> pathlib.Path:
    """Encodes a finished dataset by a file's autoencoder; returns the folder to read.

    Encoding may be killed and goes on; another file gets a folder of its own. Raises
    FileNotFoundError or ValueError in one sentence.
    """
    module, variables = load(path)
    encode = jax.jit(lambda pixels: module.apply(variables, pixels, method="encode"))
    content = pathlib.Path(path).read_bytes()
    name = f"{pathlib.Path(path).stem}-{hashlib.sha256(content).hexdigest()[:8]}"
    return latents.cache(
        data_path, lambda pixels: encode(pixels).mean, name=name, splits=splits
    )


def images(
    codec: tuple[vae.AutoencoderKL, dict[str, Any]],
    encoded: Float[Array, "n h w c"],
) -> Float[Array, "n y x 3"]:
    """Latents decoded to [0, 1], one after the other; normals as they are stored."""
    module, variables = codec
    decode = functools.partial(module.apply, variables, method="decode")
    return vae.images_from_pixels(vae.frame_by_frame(decode, encoded))
