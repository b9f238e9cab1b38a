"""Configs at the papers' sizes are the networks whose weights are handed out."""

import flax.traverse_util
import numpy as np
import pytest

from experiments.configs import cap4d, generator, geodiff4d
from geodiff_jax.models import adoption, pretrained, weights
from geodiff_jax.training import state as states
from tests.experiments import launch
from tests.models import named_tensors

train_denoiser = launch.import_apart("experiments.train_denoiser")

HOW = {"dtype": np.float32, "remat": None, "implementation": "auto"}
"""How a network computes, which changes nothing of what it computes."""


def test_cap4d_is_what_its_checkpoint_fits():
    plans = pretrained.cap4d_plans(named_tensors.released("cap4d_mmdm_100k"))
    module = plans["unet"][0].module
    for stage in (1, 2):
        config = cap4d.get_config(f"stage={stage},size=paper")
        assert generator.network(config).unet.clone(**HOW) == module.clone(**HOW)


@pytest.mark.slow
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


def random_after(argument, sources):
    """(what stays random, what starts at zero) of the paper's GeoDiff4D."""
    config = geodiff4d.get_config(f"size=paper,{argument}")
    state = generator.state_shapes(config)
    variables = states.variables_of(state)
    filled, report = adoption.initialise(variables, sources)
    every = flax.traverse_util.flatten_dict(filled, sep="/").keys()
    return weights.branches(report.random, every - set(report.random)), report.padded


PADDED = tuple(
    f"params/{net}/conv_in/kernel: 3 of 7 inputs" for net in ("reference_net", "unet")
)


@pytest.mark.slow
def test_stable_diffusion_leaves_what_it_does_not_know_random():
    tensors = named_tensors.released("sd15_unet")
    sources = {name: ("sd15_unet", tensors) for name in ("unet", "reference_net")}
    random, padded = random_after("stage=1", sources)
    assert random[:3] == ("batch_stats", "params/domain_label", "params/encoder")
    # One module behind each residual block: 2 + 3 per level and the middle's.
    assert len(random[3:]) == 4 * (2 + 3) + 1
    assert all("params/unet/" in x and "_expression" in x for x in random[3:])
    assert set(padded) == set(PADDED)


@pytest.mark.slow
def test_x_nemo_leaves_the_label_of_domains_random():
    files = ("xnemo_denoising_unet", "xnemo_temporal_module")
    layouts = {
        "unet": (files[0], files),
        "reference_net": ("xnemo_reference_unet", ("xnemo_reference_unet",)),
        "encoder": ("xnemo_motion_encoder", ("xnemo_motion_encoder",)),
    }
    sources = {
        part: (layout, named_tensors.released(*own))
        for part, (layout, own) in layouts.items()
    }
    random, padded = random_after("stage=2,clip=true", sources)
    assert random == ("params/domain_label",) and set(padded) == set(PADDED)
