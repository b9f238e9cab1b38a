"""GeoDiff4D (paper 001): portrait frames and their normals, jointly.

python -m experiments.train_denoiser --workdir=DIR \\
    --config=experiments/configs/geodiff4d.py:stage=1,size=paper

stage=1   images, no temporal modules: batches of 32, 80,000 steps (Sec 4.1).
stage=2   clips of 16 frames on stage 1's weights, temporal modules alone: batches of
          8, 20,000 steps (Sec 4.1; that the rest is frozen is ours).
size      tiny | small | paper: see `generator.SIZES`.
tokens    domain_spatial | spatial: the ablation "w/o domain attn." of Table 2.
domains   both | image: the ablation "w/o joint rep.".
cross_view  true | false: the ablation "w/o cv pairing".
clip      false | true: X-NeMo's embedding of the reference, for its weights.
"""

import dataclasses

import ml_collections

from experiments.configs import generator, parse
from geodiff_jax import synthesis

LEARNING_RATE = {"tiny": 1e-3, "small": 1e-4, "paper": 1e-5}
"""Ours: lost in the paper. 1e-5 is what Moore-AnimateAnyone fine-tunes with."""
STAGES = {
    "paper": {1: (32, 1, 80_000), 2: (8, 16, 20_000)},
    "small": {1: (16, 1, 20_000), 2: (2, 16, 5_000)},
    "tiny": {1: (8, 1, 3_000), 2: (2, 8, 500)},
}
"""Clips in a batch, frames in a clip, steps; ours but for the paper's size."""
PREDICTION = {"tiny": "v", "small": "v", "paper": "epsilon"}
"""On Stable Diffusion's schedule; ours. Its weights know noise. Who starts from nothing
learns v: where there is hardly anything but noise, a tenth of it is a whole picture."""
TOKENS = {"domain_spatial": ("domain", "h", "w"), "spatial": ("h", "w")}
DOMAINS = {"both": 2, "image": 1}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Settings of both stages; ablations are arguments."""
    choice = parse.arguments(
        argument,
        stage=1,
        size="tiny",
        tokens="domain_spatial",
        domains="both",
        cross_view=True,
        clip=False,
    )
    (batch, frames, steps), size = generator.stage_and_size(choice, STAGES)
    tokens = generator.choose("tokens", choice["tokens"], TOKENS)
    unet = {
        **size["unet"],
        "tokens": generator.attending(tokens, size),
        "middle_tokens": tokens,
        "cross_attention": choice["clip"],
        "expression_modules": True,
        "temporal_modules": choice["stage"] == 2,
        **generator.precision(choice["size"]),
    }
    # One image: no domains, no time, nothing to express.
    reference = {
        **unet,
        "out_channels": 0,
        "tokens": generator.attending(("h", "w"), size),
        "middle_tokens": ("h", "w"),
        "expression_modules": False,
        "temporal_modules": False,
    }
    # One token of CLIP's, as X-NeMo's weights want it.
    context = {"context": 768} if choice["clip"] else {}
    return ml_collections.ConfigDict(
        {
            **context,
            "seed": 0,
            "stage": choice["stage"],
            "batch": batch,
            "frames": frames,
            "views": 1,
            "steps": steps,
            "latents": size["latents"],
            "latent_channels": size["latent_channels"],
            "crop": size["crop"],
            "model": {
                "unet": unet,
                "reference_net": reference,
                "encoder": {**size["encoder"], "dtype": unet["dtype"]},
                "layout": "geodiff4d",
                "num_domains": generator.choose("domains", choice["domains"], DOMAINS),
            },
            "schedule": {
                "prediction": PREDICTION[choice["size"]],
                "shift": size["shift"],
            },
            "objective": {
                "drop": 0.1,
                "time_per_view": False,
                "min_snr": None,
                "alignment": 0.0,
                "aligned": "",
            },
            "mixture": generator.mixture(),
            # Decay, betas and clipping are ours, after Moore-AnimateAnyone.
            "optimizer": generator.optimizer(LEARNING_RATE[choice["size"]]),
            "trained": "temporal" if choice["stage"] == 2 else "",
            "cross_view": 0.5 if choice["cross_view"] else 0.0,
            # A.1: 25 steps of DDIM, guidance of 2.5 on both domains.
            "sampler": dataclasses.asdict(
                synthesis.ClipSampler(
                    steps=25, guidance=2.5, window=STAGES[choice["size"]][2][1]
                )
            ),
        }
    )
