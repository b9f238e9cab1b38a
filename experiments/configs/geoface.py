"""GeoFace (paper 003): views of a face, and the map of its positions on the chart.

python -m experiments.train_denoiser --workdir=DIR \\
    --config=experiments/configs/geoface.py:size=paper

size       tiny | small | paper: see `generator.SIZES`.
alignment  weight of the attention alignment loss; 0 is the ablation without it.

Of the paper only its abstract, figures and a third party's summary are public: views,
tokens, objective, steps and weights below are ours.
"""

import dataclasses

import ml_collections

from experiments.configs import generator, parse
from geodiff_jax import synthesis

VIEWS = 4
"""Images, of which the first is the reference; the geometry slot comes after them."""
BATCH = {"paper": 16, "small": 4, "tiny": 2}
STEPS = {"paper": 50_000, "small": 10_000, "tiny": 2_000}
JOINT = ("view", "h", "w")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Settings of the one stage."""
    choice = parse.arguments(argument, size="tiny", alignment=0.1)
    size = generator.size(choice["size"])
    unet = {
        **size["unet"],
        "tokens": generator.attending(JOINT, size),
        "middle_tokens": JOINT,
        "cross_attention": False,
        **generator.precision(choice["size"]),
    }
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "stage": 1,
            "batch": BATCH[choice["size"]],
            "frames": 1,
            "views": VIEWS + 1,
            "references": 1,
            "steps": STEPS[choice["size"]],
            "latents": size["latents"],
            "latent_channels": size["latent_channels"],
            "model": {"unet": unet, "layout": "geoface", "geometry_slot": True},
            "schedule": {
                "prediction": "v",
                "zero_terminal": True,
                "shift": size["shift"],
            },
            "objective": {
                "drop": 0.1,
                "time_per_view": False,
                "min_snr": None,
                "alignment": choice["alignment"],
                # Layer 10 of 16, counted from 0 (Fig. 10): the finest but one.
                "aligned": "up1_attention0",
            },
            "mixture": generator.mixture(),
            "optimizer": generator.optimizer(1e-4),
            "trained": "",
            "sampler": dataclasses.asdict(
                synthesis.ViewSampler(
                    steps=50,
                    guidance=2.0,
                    views=VIEWS + 1,
                    references=1,
                    grid="trailing",
                    geometry_slot=True,
                )
            ),
        }
    )
