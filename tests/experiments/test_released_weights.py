"""Configs at the papers' sizes are the networks whose weights are handed out."""

import numpy as np

from experiments.configs import cap4d, generator, geodiff4d
from geodiff_jax.models import pretrained
from tests.models import named_tensors

HOW = {"dtype": np.float32, "remat": None, "implementation": "auto"}
"""How a network computes, which changes nothing of what it computes."""


def test_cap4d_is_what_its_checkpoint_fits():
    plans = pretrained.cap4d_plans(named_tensors.released("cap4d_mmdm_100k"))
    module = plans["unet"][0].module
    for stage in (1, 2):
        config = cap4d.get_config(f"stage={stage},size=paper")
        assert generator.network(config).unet.clone(**HOW) == module.clone(**HOW)


def test_geodiff4d_is_what_x_nemos_checkpoints_fit():
    """But that its tokens are of all domains."""
    config = geodiff4d.get_config("stage=2,size=paper,clip=true,tokens=spatial")
    network = generator.network(config)
    encoder = network.encoder.clone(dtype=np.float32)
    reference_net = network.reference_net.clone(**HOW)
    for module, layout, files in (
        (encoder, "xnemo_motion_encoder", ()),
        (reference_net, "xnemo_reference_unet", ()),
        (
            network.unet.clone(**HOW),
            "xnemo_denoising_unet",
            ("xnemo_temporal_module",),
        ),
    ):
        tensors = named_tensors.released(layout, *files)
        assert pretrained.plan(layout, tensors).module == module
