"""Writes sd_vae.npz: what diffusers' AutoencoderKL makes of a few small images.

Weights are drawn by name, so only inputs and outputs are kept. Needs torch and
diffusers: `python -m tests.models.make_sd_vae_golden` in the repository's root.
"""

import pathlib

import diffusers
import numpy as np
import torch

from tests.models import named_tensors


def main():
    model = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
    ).eval()
    drawn = {
        name: torch.from_numpy(named_tensors.draw(name, tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(drawn)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, 3, 32, 48)).astype(np.float32)
    latents = rng.standard_normal((2, 4, 8, 12)).astype(np.float32)
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(pixels)).latent_dist
        decoded = model.decode(torch.from_numpy(latents)).sample
    arrays = {
        "pixels": pixels,
        "mean": posterior.mean.numpy(),
        "log_variance": posterior.logvar.numpy(),
        "latents": latents,
        "decoded": decoded.numpy(),
    }
    channels_last = {name: x.transpose(0, 2, 3, 1) for name, x in arrays.items()}
    np.savez_compressed(
        pathlib.Path(__file__).with_name("sd_vae.npz"),
        diffusers=diffusers.__version__,
        **channels_last,
    )


if __name__ == "__main__":
    main()
