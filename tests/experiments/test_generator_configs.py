"""Configs of the generators: every setting makes networks that fit its batches."""

import functools
import math

import jax
import numpy as np
import pytest

from experiments import paper_size, random_batches
from experiments.configs import cap4d, generator, geodiff4d, geoface, learn2control
from geodiff_jax import sharding, synthesis
from geodiff_jax.data import building
from geodiff_jax.training import denoising
from geodiff_jax.training import state as states
from tests.experiments import launch, small
from tests.models import settings
from tests.training import gathers

prepare_data = launch.import_apart("experiments.prepare_data")

SETTINGS = [
    (geodiff4d, "stage=1"),
    (geodiff4d, "stage=2,tokens=spatial,domains=image"),
    (geodiff4d, "clip=true,cross_view=false"),
    (cap4d, ""),
    (geoface, ""),
    (geoface, "alignment=0"),
    (geoface, "size=small"),
    (learn2control, "stage=2"),
]


def shapes_of(config):
    """(network, batch, state) as shapes."""
    network, batch = generator.network(config), generator.batch_shapes(config)
    _, (_, state, _) = paper_size.step_of(config)
    return network, batch, state


def test_mixtures_name_the_datasets_that_there_are():
    builders = [
        builder.name
        for module in prepare_data.RECORDED.values()
        for builder in vars(module).values()
        if isinstance(builder, type) and issubclass(builder, building.PackedParts)
    ]
    known = set(builders) - {"synth_human"} | {"synthetic"}
    assert set(generator.mixture()["priorities"]) == known
    stages = [learn2control.get_config(f"stage={i},size=paper") for i in (1, 2)]
    for config, synthetic in zip(stages, (1.0, 0.0), strict=True):
        drawn = ("vfhq", "nersemble_v2", "mead", "synthetic")
        own = [config.mixture.priorities[name] for name in drawn]
        assert own == [1.0, 0.8, 0.2, synthetic] and not config.mixture.by_size


def names(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


@pytest.mark.parametrize(
    ("module", "argument"), SETTINGS, ids=lambda x: getattr(x, "__name__", x)
)
def test_networks_fit_their_batches(module, argument):
    config = module.get_config(argument)
    network, batch, state = shapes_of(config)
    variables = states.variables_of(state)
    loss = functools.partial(
        denoising.loss,
        apply=network.apply,
        schedule=generator.schedule(config),
        objective=generator.objective(config),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    value, _ = jax.eval_shape(loss, key, variables=variables, batch=batch)
    assert value.shape == ()
    temporal = [name for name in names(variables["params"]) if "temporal" in name]
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


@pytest.mark.parametrize("module", [geodiff4d, cap4d, geoface, learn2control])
def test_times_are_of_each_view_for_cap4d_alone(module):
    objective = generator.objective(module.get_config())
    assert objective.time_per_view == (module is cap4d)


def test_samplers_take_what_stages_train_on():
    """Clips have the frames of stage 2, passes the views of a batch."""
    for module in (geodiff4d, learn2control):
        config = module.get_config("stage=2,size=small")
        assert generator.sampler(config).window == config.frames
    assert generator.sampler(geodiff4d.get_config()).guidance == 2.5
    for module in (cap4d, geoface):
        config = module.get_config("size=small")
        assert generator.sampler(config).views == config.views
    assert generator.sampler(geoface.get_config()).geometry_slot
    config.sampler.update(step=3)
    with pytest.raises(TypeError, match="step"):
        generator.sampler(config)


def sample_clip(key, network, variables, batch, **options):
    """Beside the batch's reference, as its driving frames or its surface say."""
    signals = denoising.signals_of(variables["params"], batch)
    if batch.driving is not None:
        tokens = network.apply(variables, batch.driving, method="express")[1]
        signals = signals.replace(expression_tokens=tokens)
    bank = network.apply(variables, batch.reference, method="remember")
    reference = batch.latents[:, :, 0, 0]
    context = batch.reference.context
    denoise = functools.partial(network.apply, variables)
    options |= {"context": context, "layout": network.layout}
    return synthesis.clip(
        key, denoise, reference=reference, bank=bank, signals=signals, **options
    )


def sample_views(key, network, variables, batch, *, sampler, **options):
    """The batch's first views are the references; a batch of one group."""
    maps = batch.signals.replace(reference_latents=None, reference_slots=None)
    count = sampler.references
    return synthesis.views(
        key,
        functools.partial(network.apply, variables),
        references=batch.latents[:, 0, :count, 0],
        reference_signals=jax.tree.map(lambda x: x[:, :count], maps),
        target_signals=jax.tree.map(lambda x: x[:, count:], maps),
        layout=network.layout,
        sampler=sampler,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "argument", "sample", "shape"),
    [
        (geodiff4d, "stage=2", sample_clip, (1, 2, 8)),
        (geodiff4d, "clip=true", sample_clip, (1, 2, 1)),
        (learn2control, "stage=2", sample_clip, (1, 1, 7)),
        (cap4d, "stage=2", sample_views, (1, 4)),
        (geoface, "", sample_views, (1, 4)),
    ],
)
def test_every_network_is_sampled_by_its_configs_sampler(
    module, argument, sample, shape
):
    config = module.get_config(argument)
    config.batch, config.sampler.steps = 1, 2
    if argument == "clip=true":  # As X-NeMo.
        config.sampler.update(drops_reference=True, blur_sigma=18.0)
    network = generator.network(config)
    state = small.state(config)
    batch = next(random_batches.RandomBatches(generator.batch_shapes(config)))
    draw = functools.partial(
        sample,
        network=network,
        schedule=generator.schedule(config),
        sampler=generator.sampler(config),
    )
    found = jax.jit(draw, compiler_options=settings.QUICKLY)(
        jax.random.key(0), variables=states.variables_of(state), batch=batch
    )
    assert found.shape == (
        *shape,
        config.latents,
        config.latents,
        config.latent_channels,
    )
    assert np.isfinite(found).all() and np.std(found) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("stage", "lead", "meshes"),
    [
        (1, (32, 2, 1, 1), [(4, 8, 2), (4, 8, 8)]),
        (2, (8, 2, 1, 16), [(1, 8, 8), (8, 1, 32)]),
    ],
)
def test_the_papers_stages_lower_without_their_hardware(stage, lead, meshes, platform):
    """Of 32 images, and of 8 clips of 16 frames, both domains at 64 x 64 (Sec 4.1)."""
    config = geodiff4d.get_config(f"stage={stage},size=paper")
    assert generator.batch_shapes(config).latents.shape == (*lead, 64, 64, 4)
    config = paper_size.attending(config, paper_size.ATTENTION[platform])
    for shape in meshes:
        mesh = sharding.abstract_mesh(shape)
        with jax.sharding.use_abstract_mesh(mesh):
            traced = gathers.traced_step(config, mesh)
            lowered = traced.lower(lowering_platforms=(platform,))
        devices = math.prod(shape)
        assert f"mhlo.num_partitions = {devices} " in lowered.as_text()[:1000]
    state = shapes_of(config)[2]
    parameters = jax.tree.leaves((state.params, state.resting))
    counted = sum(math.prod(x.shape) for x in parameters)
    # Stable Diffusion's 860 M twice, and X-NeMo's 370 M, 454 M and 62 M of modules.
    assert 2.0e9 < counted < 3.0e9
    assert lowered.cost_analysis()["flops"] > 1e14
