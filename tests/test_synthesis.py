"""Views and clips: denoisers that know the answer give it, whatever the way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax import synthesis
from geodiff_jax.diffusion import ddim
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.render import conditioning
from tests.models import settings

KEY = jax.random.key(0)
compiled = functools.partial(jax.jit, compiler_options=settings.QUICKLY)
CAP4D = schedules.make(
    zero_terminal=True, largest_beta=0.99, num_views=8, ends_clean=False
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def noise_towards(schedule, x, x0, t):
    """The prediction of a network that is sure of x0."""
    signal, noise = schedule.rates(t, ndim=x.ndim)
    return (x - signal * x0) / noise


def cap4d_signals(count, *, seed=0, side=4):
    lead = (1, count, 1, side, side)
    widths = {"position_code": 42, "expression_offset": 3, "rays": 3}
    widths |= {"reference_mask": 1, "crop_mask": 1}
    made = {name: normal(seed, *lead, width) for name, width in widths.items()}
    return conditioning.Conditioning(**made)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_views_become_what_references_and_maps_say(scale):
    """A target is the mean of all references, here alike, plus its own map; guidance
    doubles both, since without its signals the network is sure of zero."""

    def denoise(x, t, signals):
        held = signals.reference_latents[:, None]
        slots = signals.reference_slots[:, None, ..., None, None, None]
        mean = jnp.sum(held * slots, axis=2, keepdims=True) / jnp.sum(
            slots, axis=2, keepdims=True
        )
        x0 = mean + signals.rays[:, None, ..., :1]
        return noise_towards(CAP4D, x, x0, t)

    references = jnp.repeat(normal(1, 1, 1, 4, 4, 2), 3, axis=1)
    targets = cap4d_signals(6, seed=2)
    sampler = synthesis.ViewSampler(steps=10, guidance=scale, views=5, references=2)
    found = compiled(
        functools.partial(
            synthesis.views,
            denoise=denoise,
            schedule=CAP4D,
            layout=conditioning.LAYOUTS["cap4d"],
            sampler=sampler,
        )
    )(
        KEY,
        references=references,
        reference_signals=cap4d_signals(3),
        target_signals=targets,
    )
    wanted = scale * (references[:, :1] + targets.rays[:, :, 0, ..., :1])
    # The last step ends at time 0, where 0.6 % of the variance is noise: here none is
    # left but what rounding makes of it.
    rate = CAP4D.signal_rate[0]
    np.testing.assert_allclose(found, rate * wanted, atol=0.2)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("frames", [3, 10])
def test_clips_show_each_frame_what_it_is_told(frames):
    """Also where frames are in several windows, and without their neighbours' say."""
    schedule = schedules.make()

    def denoise(x, t, signals, *, bank, **nothing):
        assert all(value is None for value in nothing.values())
        pose = signals.head_pose[:, None, ..., :2]
        tokens = signals.expression_tokens.mean((-2, -1))[
            :, None, ..., None, None, None
        ]
        return noise_towards(schedule, x, pose + tokens + bank["all"][0, 0, 0], t)

    signals = conditioning.Conditioning(
        head_pose=normal(1, 1, 1, frames, 4, 4, 3),
        expression_tokens=normal(2, 1, 1, frames, 3, 5),
    )
    found = compiled(
        functools.partial(
            synthesis.clip,
            denoise=denoise,
            schedule=schedule,
            sampler=synthesis.ClipSampler(steps=8, window=4, overlap=1),
        )
    )(
        KEY,
        reference=normal(3, 1, 2, 4, 4, 2),
        bank={"all": jnp.full((1, 1, 1), 0.5)},
        signals=signals,
    )
    tokens = signals.expression_tokens.mean((-2, -1))[:, 0, :, None, None, None]
    wanted = signals.head_pose[:, 0, ..., :2] + 2.5 * tokens + 0.5
    assert found.shape == (1, 2, frames, 4, 4, 2)
    for domain in range(2):
        np.testing.assert_allclose(found[:, domain], wanted, atol=1e-3)


def test_x_nemos_guidance_is_away_from_the_portrait_itself():
    """Without its bank and its context, and with its own expression."""
    schedule = schedules.make()

    def denoise(x, t, signals, *, bank, context, reads_bank):
        tokens = signals.expression_tokens.mean((-2, -1))
        known = tokens + (reads_bank * bank["all"][:, 0, 0])[:, None, None]
        known = known + context.mean((-2, -1))[:, None, None]
        return noise_towards(schedule, x, known[:, None, ..., None, None, None], t)

    sampler = dataclasses.replace(
        synthesis.X_NEMO, steps=4, window=4, overlap=1, blur_sigma=None
    )
    driven, own, context = normal(1, 2, 1, 6, 3, 5), normal(2, 2, 3, 5), normal(3, 2, 1)
    found = compiled(
        functools.partial(
            synthesis.clip, denoise=denoise, schedule=schedule, sampler=sampler
        )
    )(
        KEY,
        reference=normal(4, 2, 1, 4, 4, 2),
        bank={"all": jnp.asarray([0.5, 2.0])[:, None, None]},
        signals=conditioning.Conditioning(expression_tokens=driven),
        context=context[:, None],
        own_expression=own,
    )
    seen = jnp.asarray([0.5, 2.0]) + context[:, 0]
    given = driven.mean((-2, -1))[:, 0] + seen[:, None]
    wanted = given + 1.5 * (given - own.mean((-2, -1))[:, None])
    wanted = jnp.broadcast_to(wanted[:, None, :, None, None, None], found.shape)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("start", ["reference", "blurred", "noise"])
def test_clips_start_from_their_reference_or_from_noise(start):
    """Where nothing is denoised, two references are as far apart as they started."""
    sampler = synthesis.ClipSampler(
        steps=1,
        from_reference=start != "noise",
        blur_sigma=18.0 if start == "blurred" else None,
    )
    sample = compiled(
        functools.partial(
            synthesis.clip,
            denoise=lambda x, t, signals, **others: jnp.zeros_like(x),
            schedule=schedules.make(),
            bank={},
            signals=conditioning.Conditioning(head_pose=jnp.zeros((1, 1, 3, 9, 9, 3))),
            sampler=sampler,
        )
    )
    one, other = normal(1, 1, 2, 9, 9, 4), normal(2, 1, 2, 9, 9, 4)
    apart = sample(KEY, reference=one) - sample(KEY, reference=other)
    wanted = one - other
    if start == "blurred":
        wanted = ddim.blur(wanted, sigma=18.0)
    wanted = jnp.broadcast_to(wanted[:, :, None] * sampler.from_reference, apart.shape)
    np.testing.assert_allclose(apart, wanted, atol=1e-4)
    alone = sample(KEY, reference=jnp.zeros_like(one))
    np.testing.assert_array_equal(alone[:, 0], alone[:, 1])
    assert (np.std(alone, axis=2) > 0).all()


GEOFACE = synthesis.ViewSampler(
    steps=1, guidance=1.0, views=5, references=1, grid="trailing", geometry_slot=True
)


def geoface_views(denoise, num_targets):
    rays = normal(2, 2, num_targets, 1, 4, 4, 6)
    sample = compiled(
        functools.partial(
            synthesis.views,
            denoise=denoise,
            schedule=schedules.make(prediction="v", zero_terminal=True),
            layout=conditioning.LAYOUTS["geoface"],
            sampler=GEOFACE,
        )
    )
    reference = conditioning.Conditioning(plucker=normal(1, 2, 1, 1, 4, 4, 6))
    targets = conditioning.Conditioning(plucker=rays)
    references = normal(3, 2, 1, 4, 4, 2)
    found = sample(
        KEY,
        references=references,
        reference_signals=reference,
        target_signals=targets,
    )
    return found, references, rays[:, :, 0]


def test_a_map_of_positions_comes_last_and_with_all_views():
    """One step from the last time, where velocity is the signal's negative."""

    def denoise(x, t, signals):
        assert x.shape[2] == 5
        x0 = signals.reference_latents[:, None, :1] + signals.plucker[:, None, ..., :2]
        x0 = x0.at[:, :, -1].set(7.0)
        return -x0 - (999 - t)

    found, references, rays = geoface_views(denoise, 4)
    np.testing.assert_allclose(
        found[:, :-1], references + rays[:, :-1, ..., :2], atol=1e-5
    )
    np.testing.assert_allclose(found[:, -1], 7.0, atol=1e-5)


def test_a_map_of_positions_is_in_no_second_pass():
    with pytest.raises(ValueError, match="5 views in all.* 1 references and 8 targets"):
        geoface_views(lambda x, t, signals: x, 8)


@pytest.mark.slow
def test_a_multi_view_network_samples_groups_of_views():
    """Two steps over two groups; views of a group differ by their maps."""
    network = settings.network("cap4d")
    variables = settings.variables(network, settings.inputs("cap4d"))
    sampler = synthesis.ViewSampler(steps=2, views=4, references=2)
    side = settings.SIDE
    found = compiled(
        functools.partial(
            synthesis.views,
            denoise=functools.partial(network.apply, variables),
            schedule=CAP4D,
            layout=network.layout,
            sampler=sampler,
        )
    )(
        KEY,
        references=normal(1, 1, 2, side, side, settings.CHANNELS),
        reference_signals=cap4d_signals(2, side=side),
        target_signals=cap4d_signals(4, seed=5, side=side),
    )
    assert found.shape == (1, 4, side, side, settings.CHANNELS)
    assert jnp.isfinite(found).all() and jnp.std(found, axis=1).min() > 0
