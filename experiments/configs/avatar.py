"""The main job: one portrait to an avatar.

python -m experiments.create_avatar --image=photo.jpg --output_dir=out/me \
    --config=experiments/configs/avatar.py:preset=preview

preset=preview  about 2 minutes and 2 GB on a 2-core laptop; the default.
preset=high     twice the Gaussians, three times the steps.
preset=smoke    seconds; for checking an installation, not for looking at.
Every field of the result can be overridden: --config.reconstruction.steps=500.
"""

import dataclasses

import ml_collections

from experiments.configs import parse
from geodiff_jax import create

PRESETS = {
    "preview": {},
    "high": {
        "working_size": 1024,
        "start": {"skin_count": 80_000, "hair_count": 30_000, "outline_count": 16_000},
        "reconstruction": {"steps": 900},
    },
    "smoke": {
        "working_size": 192,
        "side_size": 96,
        "preview_size": 128,
        "preview_fps": 6,
        "start": {"skin_count": 6_000, "hair_count": 2_000, "outline_count": 1_000},
        "reconstruction": {"steps": 10},
    },
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The settings of `geodiff_jax.create.CreateConfig`, as a ConfigDict."""
    choice = parse.arguments(argument, preset="preview")
    if choice["preset"] not in PRESETS:
        raise ValueError(
            f"Expected preset to be one of {sorted(PRESETS)}, got {choice['preset']!r}."
        )
    config = ml_collections.ConfigDict(dataclasses.asdict(create.CreateConfig()))
    config.update(PRESETS[choice["preset"]])
    return config
