r"""Other people's checkpoints into one safe file with our parameters.

python -m experiments.convert_weights --source=cap4d \
    --path=cap4d_mmdm_100k.ckpt --output=cap4d.safetensors

| source | what --path is | modules in the file |
|---|---|---|
| sd15, sd21 | diffusers' folder of Stable Diffusion, with unet/ and vae/ | unet, vae |
| cap4d | cap4d_mmdm_100k.ckpt | unet, vae |
| xnemo | the folder of X-NeMo's xnemo_*.pth | unet, reference_net, encoder |

Nothing in a file is executed, and torch is not needed. A tensor that is missing, unused
or of another shape is named and stops the conversion; `--unused=prefix,prefix` says
what may be left over. Takes a minute, and memory for twice the file.
"""

import hashlib
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import app, flags, logging

from geodiff_jax import reporting
from geodiff_jax.io import torch_files
from geodiff_jax.models import pretrained, weight_files

_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
SOURCES = {
    "sd15": {"unet": ("sd15_unet", ["unet"]), "vae": ("sd15_vae", ["vae"])},
    "sd21": {"unet": ("sd21_unet", ["unet"]), "vae": ("sd21_vae", ["vae"])},
    "cap4d": {"": ("cap4d_mmdm_100k", ["cap4d_mmdm_100k.ckpt"])},
    "xnemo": {
        "unet": (
            "xnemo_denoising_unet",
            ["xnemo_denoising_unet.pth", "xnemo_temporal_module.pth"],
        ),
        "reference_net": ("xnemo_reference_unet", ["xnemo_reference_unet.pth"]),
        "encoder": ("xnemo_motion_encoder", ["xnemo_motion_encoder.pth"]),
    },
}
"""By source and our module: the layout, and the files or folders that it is in."""
LICENCES = {
    "sd15": "CreativeML Open RAIL-M",
    "sd21": "CreativeML Open RAIL++-M",
    "cap4d": "CC BY-NC 4.0",
    "xnemo": "CC BY-NC 4.0",
}
"""As their owners state them; read them before you publish anything made with them."""

POSITIONS = "cond_stage_model.renderer.props"
"""CAP4D's: where on FLAME's template each vertex lies, as its position code has it."""

_SOURCE = flags.DEFINE_enum("source", None, list(SOURCES), "Whose.", required=True)
_PATH = flags.DEFINE_string("path", None, "Its file or folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write.", required=True)
_UNUSED = flags.DEFINE_list("unused", [], "Beginnings of names that may be left over.")


def main(argv: list[str]) -> None:
    """Reads, checks, writes, and says what it was."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        converted = dict(modules(_SOURCE.value, pathlib.Path(_PATH.value)))
        variables = {name: part["variables"] for name, part in converted.items()}
        facts = {
            "source": _SOURCE.value,
            "licence": LICENCES[_SOURCE.value],
            "made_with": reporting.manifest()["versions"]["geodiff_jax"],
            "modules": {name: part["facts"] for name, part in converted.items()},
        }
        weight_files.save(_OUTPUT.value, variables, metadata=facts)
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        print(f"convert_weights: {said or error}", file=sys.stderr)
        sys.exit(2)
    for name, tree in variables.items():
        count = sum(np.size(x) for x in jax.tree.leaves(tree))
        print(f"{name}: {count:,} parameters")
    print(f"{_OUTPUT.value}; licence of the weights: {facts['licence']}")


def modules(source: str, path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, variables and facts) of every module of a source.

    Raises ValueError or OSError in one sentence.
    """
    for name, (layout, places) in SOURCES[source].items():
        files = [find(path, place) for place in places]
        tensors: dict[str, np.ndarray] = {}
        for file in files:
            tensors |= read(file)
        leftover = tuple(_UNUSED.value)
        tensors = {
            key: x for key, x in tensors.items() if not key.startswith(leftover or "\0")
        }
        origin: dict[str, Any] = {
            "layout": layout,
            "files": {file.name: digest(file) for file in files},
        }
        if POSITIONS in tensors:
            origin["positions"] = np.float32(tensors[POSITIONS]).tolist()
        if name:
            plans = {name: (pretrained.plan(layout, tensors), tensors)}
        else:
            plans = pretrained.cap4d_plans(tensors)
        for part, (plan, own) in plans.items():
            facts = origin | weight_files.describe(plan.module)
            yield part, {"variables": plan.load(own), "facts": facts}


def find(path: pathlib.Path, place: str) -> pathlib.Path:
    """The file of a place, below the path or the path itself."""
    if path.is_file():
        return path
    names = [place] if "." in place else [f"{place}/{name}" for name in _DIFFUSERS]
    for name in names:
        found = sorted(path.rglob(name))
        if found:
            return found[0]
    raise FileNotFoundError(2, f"There is no {' or '.join(names)} in {path}.")


def read(file: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Tensors by name, of safetensors or of torch's files."""
    expected = f"Expected tensors by name in {file}"
    if file.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(file)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{expected}, got a damaged file ({error}).") from error
    content = torch_files.read(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(x, np.ndarray | np.generic) for x in content.values()
    ):
        raise ValueError(f"{expected}, got something else.")
    return content


def digest(file: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    app.run(main)
