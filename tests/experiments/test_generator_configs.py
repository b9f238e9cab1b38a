"""Configs of the generators: every setting makes networks that fit its batches."""

import functools
import math

import jax
import pytest

from experiments import paper_size
from experiments.configs import cap4d, generator, geodiff4d, geoface, learn2control
from geodiff_jax.training import denoising

SETTINGS = [
    (geodiff4d, "stage=1"),
    (geodiff4d, "stage=2,tokens=spatial,domains=image"),
    (geodiff4d, "clip=true,cross_view=false"),
    (cap4d, ""),
    (geoface, ""),
    (geoface, "alignment=0"),
    (learn2control, "stage=2"),
]


def shapes_of(config):
    """(network, batch, state) as shapes."""
    network, batch = generator.network(config), generator.batch_shapes(config)
    _, (_, state, _) = paper_size.step_of(config)
    return network, batch, state


def names(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


@pytest.mark.parametrize(
    ("module", "argument"), SETTINGS, ids=lambda x: getattr(x, "__name__", x)
)
def test_networks_fit_their_batches(module, argument):
    config = module.get_config(argument)
    network, batch, state = shapes_of(config)
    variables = {"params": state.params, "batch_stats": state.statistics}
    loss = functools.partial(
        denoising.loss,
        apply=network.apply,
        schedule=generator.schedule(config),
        objective=generator.objective(config),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    value, _ = jax.eval_shape(loss, key, variables=variables, batch=batch)
    assert value.shape == ()
    temporal = [name for name in names(state.params) if "temporal" in name]
    assert bool(temporal) == (config.trained == "temporal")


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        (geodiff4d, "stages=1", "stage"),
        (geodiff4d, "stage=3", "stage"),
        (geodiff4d, "tokens=time", "tokens"),
        (cap4d, "size=large", "size"),
        (geoface, "stage=2", "alignment, size"),
    ],
)
def test_unknown_settings_are_refused(module, argument, message):
    with pytest.raises(ValueError, match=message):
        module.get_config(argument)


def test_ablations_change_what_table_2_names_and_nothing_else():
    full = geodiff4d.get_config("size=small")
    without = geodiff4d.get_config("size=small,tokens=spatial")
    assert full.model.unet.tokens[0] == ("domain", "h", "w")
    assert without.model.unet.tokens[0] == ("h", "w")
    assert full.model.reference_net == without.model.reference_net
    alone = geodiff4d.get_config("size=small,domains=image")
    assert (full.model.num_domains, alone.model.num_domains) == (2, 1)
    assert geodiff4d.get_config("cross_view=false").cross_view == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_papers_second_stage_lowers_without_its_hardware(platform):
    """Eight clips of 16 frames of both domains at 64 x 64 (Sec 4.1)."""
    config = geodiff4d.get_config("stage=2,size=paper")
    batch = generator.batch_shapes(config)
    assert batch.latents.shape == (8, 2, 1, 16, 64, 64, 4)
    lowered = paper_size.lower(config, platform)
    counted = sum(
        math.prod(x.shape) for x in jax.tree.leaves(shapes_of(config)[2].params)
    )
    # Stable Diffusion's 860 M twice, and X-NeMo's 370 M, 454 M and 62 M of modules.
    assert 2.0e9 < counted < 3.0e9
    assert lowered.cost_analysis()["flops"] > 1e14
