"""CAP4D's morphable multi-view diffusion model (paper 002): views around references.

python -m experiments.train_denoiser --workdir=DIR \\
    --config=experiments/configs/cap4d.py:stage=1,size=paper

stage=1   one reference among eight views, 80,000 steps of 64 images (Sec 3.1).
stage=2   one to four references, 20,000 steps more.
size      tiny | small | paper: see `generator.SIZES`; paper is Stable Diffusion 2.1's,
          so that the released checkpoint fits (`experiments.convert_weights`).
"""

import dataclasses

import ml_collections

from experiments.configs import generator, parse
from geodiff_jax import synthesis

VIEWS = 8
STEPS = {"paper": {1: 80_000, 2: 20_000}, "small": {1: 20_000, 2: 5_000}}
STEPS["tiny"] = {1: 2_000, 2: 500}
BATCH = {"paper": 64, "small": 8, "tiny": 2}
"""Ours but for the paper's."""
HEADS = {"tiny": (2, 2), "small": (2, 4, 8), "paper": (5, 10, 20, 20)}
JOINT = ("view", "h", "w")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Settings of both stages, which differ in the number of references alone."""
    choice = parse.arguments(argument, stage=1, size="tiny")
    steps, size = generator.stage_and_size(choice, STEPS)
    unet = {
        **size["unet"],
        # Each view alone at the full resolution, all views together below it.
        "tokens": (("h", "w"), *generator.attending(JOINT, size)[1:]),
        "middle_tokens": JOINT,
        "heads": HEADS[choice["size"]],
        "cross_attention": False,
        "maps": True,
        **generator.precision(choice["size"]),
    }
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "stage": choice["stage"],
            "batch": BATCH[choice["size"]],
            "frames": 1,
            "views": VIEWS,
            "references": 1 if choice["stage"] == 1 else 4,
            "steps": steps,
            "latents": size["latents"],
            "latent_channels": size["latent_channels"],
            "model": {"unet": unet, "layout": "cap4d"},
            "schedule": {
                "prediction": "epsilon",
                "zero_terminal": True,
                "largest_beta": 0.99,
                "num_views": VIEWS,
                "shift": size["shift"],
                "ends_clean": False,
            },
            "objective": {
                "drop": 0.1,
                "time_per_view": True,
                "min_snr": None,
                "alignment": 0.0,
                "aligned": "",
            },
            "mixture": generator.mixture(),
            # Sec A of the supplement; decay and clipping are ours.
            "optimizer": generator.optimizer(1e-4),
            "trained": "",
            # The released code's; the paper has 250 steps.
            "sampler": dataclasses.asdict(
                synthesis.ViewSampler(
                    steps=100, guidance=2.0, views=VIEWS, references=4
                )
            ),
        }
    )
