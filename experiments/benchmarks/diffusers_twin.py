"""The same UNet by diffusers (Apache-2.0, PyTorch), to be timed beside ours on CPUs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from geodiff_jax.models import unet

Step = Callable[[], Any]


def missing() -> str | None:
    """Why diffusers cannot be compared with here; None if it can."""
    if jax.default_backend() != "cpu":
        return "it is timed on CPUs only"
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except Exception as error:  # What does not fit together raises much else.
        return f"{error}; install the extra `parity`."
    return None


def passes(
    net: unet.UNet, latents: np.ndarray, context: np.ndarray, *, learning_rate: float
) -> dict[str, Step]:
    """What `denoiser.passes` times, of the same name and with as many threads.

    Raises:
      ValueError: a network of more than Stable Diffusion's parts.
    """
    import diffusers
    import torch

    if net.expression_modules or net.temporal_modules or net.maps:
        raise ValueError("Expected a UNet of Stable Diffusion's parts alone.")
    kinds = ["CrossAttn" if tokens else "" for tokens in net.tokens]
    theirs = diffusers.UNet2DConditionModel(
        sample_size=latents.shape[-2],
        block_out_channels=[net.channels * m for m in net.multipliers],
        layers_per_block=net.blocks,
        attention_head_dim=net.heads,
        cross_attention_dim=context.shape[-1],
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
    )
    side, channels = latents.shape[-2:]
    flat = torch.from_numpy(latents.reshape(-1, side, side, channels))
    x = flat.permute(0, 3, 1, 2).contiguous()
    tokens = torch.from_numpy(context.reshape(-1, *context.shape[-2:]))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=learning_rate)

    def forward() -> Any:
        with torch.no_grad():
            return theirs(x, 500, tokens).sample

    def train() -> Any:
        optimizer.zero_grad()
        loss = ((theirs(x, 500, tokens).sample - x) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"forward": forward, "train": train}
