"""Learn2Control (paper 004): a head driven by learnt features, splatted.

python -m experiments.train_denoiser --workdir=DIR \\
    --config=experiments/configs/learn2control.py:stage=1,size=paper

stage=1   images, real and synthetic (Sec 3.4); the splatted features learn too.
stage=2   clips of 14 frames, at paper size of real recordings; temporal modules alone.
size      tiny | small | paper: see `generator.SIZES`.
"""

import dataclasses

import ml_collections

from experiments.configs import generator, parse
from geodiff_jax import synthesis

STAGES = {
    "paper": {1: (32, 1, 100_000), 2: (8, 14, 30_000)},
    "small": {1: (16, 1, 20_000), 2: (2, 14, 5_000)},
    "tiny": {1: (8, 1, 2_000), 2: (2, 7, 1_000)},
}
"""Clips in a batch, frames in a clip, steps; ours but for the 14 frames."""
MIXTURE = {"vfhq": 1.0, "nersemble_v2": 0.8, "mead": 0.2}
"""Beside 1 of synthetic heads in the first stage, and none in the second (Sec B)."""
CONTEXT = {"paper": 768, "small": 64, "tiny": 32}
"""Channels of the token of origin: Stable Diffusion's text, or ours."""


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Settings of both stages."""
    choice = parse.arguments(argument, stage=1, size="tiny")
    (batch, frames, steps), size = generator.stage_and_size(choice, STAGES)
    unet = {
        **size["unet"],
        "tokens": generator.attending(("h", "w"), size),
        "middle_tokens": ("h", "w"),
        "cross_attention": True,
        "temporal_modules": choice["stage"] == 2,
        **generator.precision(choice["size"]),
    }
    reference = {**unet, "out_channels": 0, "temporal_modules": False}
    # Who trains a smaller one may have nothing else.
    real = choice["stage"] == 2 and choice["size"] == "paper"
    synthetic = 0.0 if real else 1.0
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "stage": choice["stage"],
            "batch": batch,
            "frames": frames,
            "views": 1,
            "steps": steps,
            "latents": size["latents"],
            "latent_channels": size["latent_channels"],
            # Of the field on the chart, and of the images it is splatted to.
            "features": {
                "channels": 8,
                "size": 256 if choice["size"] == "paper" else 64,
            },
            "feature_image": 8 * size["latents"],
            "model": {
                "unet": unet,
                "reference_net": reference,
                "guide": {
                    "features": size["unet"].get("channels", 320),
                    "dtype": unet["dtype"],
                },
                "layout": "learn2control",
                "origin_width": CONTEXT[choice["size"]],
            },
            "schedule": {"prediction": "v", "shift": size["shift"]},
            "objective": {
                "drop": 0.0,
                "time_per_view": False,
                "min_snr": None,
                "alignment": 0.0,
                "aligned": "",
            },
            "mixture": generator.mixture(by_size=False, **MIXTURE, synthetic=synthetic),
            "optimizer": generator.optimizer(1e-5),
            "trained": "temporal" if choice["stage"] == 2 else "",
            # From noise, as its preliminaries say; the rest is ours, without guidance.
            "sampler": dataclasses.asdict(
                synthesis.ClipSampler(
                    steps=25,
                    guidance=1.0,
                    window=STAGES[choice["size"]][2][1],
                    from_reference=False,
                )
            ),
        }
    )
