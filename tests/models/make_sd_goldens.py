"""Writes sd_unets.npz: what diffusers' UNets make of a few small latents.

Weights are drawn by name, so only inputs and outputs are kept. Needs torch and
diffusers: `python -m tests.models.make_sd_goldens` in the repository's root.
"""

import pathlib
from typing import Any

import diffusers
import numpy as np
import torch

from tests.models import named_tensors

TINY = {
    "sd15_unet": {"attention_head_dim": 8, "cross_attention_dim": 24},
    # diffusers' attention_head_dim is the number of heads, as in SD 2.1's own file.
    "sd21_unet": {
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}
FULL = {
    "sd15_unet": {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21_unet": TINY["sd21_unet"]
    | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
}


def network(
    layout: str, *, widths: tuple[int, ...], blocks: int, options: dict[str, Any]
) -> torch.nn.Module:
    """Stable Diffusion's UNet of any size, with weights drawn by name."""
    levels = len(widths)
    model = diffusers.UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        **options[layout],
    ).eval()
    for name, tensor in model.state_dict().items():
        drawn = named_tensors.draw(name, tuple(tensor.shape))
        tensor.copy_(torch.from_numpy(drawn))
    return model


def signals(
    layout: str, *, side: int, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(latents, times, context), channels last."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, side, 2 * side, 4)).astype(np.float32)
    width = options[layout]["cross_attention_dim"]
    context = rng.standard_normal((2, 5, width)).astype(np.float32)
    return latents, np.asarray([999, 21]), context


def predict(model: torch.nn.Module, *given: np.ndarray) -> np.ndarray:
    """Of (latents, times, context), channels last."""
    latents, times, context = (torch.from_numpy(x) for x in given)
    with torch.no_grad():
        out = model(latents.permute(0, 3, 1, 2), times, context).sample
    return out.permute(0, 2, 3, 1).numpy()


def main():
    arrays = {}
    for layout in TINY:
        model = network(layout, widths=(32, 64, 64), blocks=1, options=TINY)
        given = signals(layout, side=8, options=TINY)
        arrays |= dict(
            zip(
                (f"{layout}_{n}" for n in ("latents", "t", "context")),
                given,
                strict=True,
            )
        )
        arrays[f"{layout}_out"] = predict(model, *given)
    path = pathlib.Path(__file__).with_name("sd_unets.npz")
    np.savez_compressed(path, diffusers=diffusers.__version__, **arrays)


if __name__ == "__main__":
    main()
