"""The generator's objective: what counts, what is shared, and that it can be learnt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.models import alignment
from geodiff_jax.render import splatted_features
from geodiff_jax.render.conditioning import Conditioning
from geodiff_jax.training import denoising
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states
from tests.models import settings
from tests.training import toy

SCHEDULE = schedules.make()
KEY = jax.random.key(3)


def echo(variables, x, t, signals, *, dropped, **others):
    """A network whose prediction is its input, and less where guidance drops."""
    del signals, others
    there = dropped.reshape(-1, *(1,) * (x.ndim - 1))
    return variables["params"]["gain"] * x + 100.0 * there, {}


UNDROPPED = denoising.Objective(drop=0.0)
compute = jax.jit(
    functools.partial(denoising.loss, apply=echo), static_argnames="objective"
)


def linear_loss(batch, *, gain=0.5, objective=UNDROPPED, schedule=SCHEDULE):
    variables = {"params": {"gain": jnp.asarray(gain)}}
    return compute(
        KEY, variables=variables, schedule=schedule, batch=batch, objective=objective
    )


def clips(*, views=1, frames=2, seed=0):
    shape = (4, 2, views, frames, 3, 3, 2)
    latents = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(latents, jnp.float32)


def test_a_perfect_prediction_costs_nothing():
    """At no signal at all the noised latents are the noise: gain 1 is right."""
    silent = schedules.from_alpha_bar(np.linspace(1e-12, 0.0, 4))
    batch = denoising.Batch(clips(), Conditioning())
    value, _ = linear_loss(batch, gain=1.0, schedule=silent)
    assert value < 1e-9


@pytest.mark.parametrize("part", ["reference", "padding"])
def test_only_targets_and_frames_count(part):
    latents = clips(views=3)
    signals, frames = Conditioning(), None
    ignored = latents
    if part == "reference":
        slots = jnp.zeros((4, 3, 2), bool).at[:, 1].set(True)
        signals = Conditioning(reference_slots=slots, reference_latents=latents[:, 0])
        ignored = latents.at[:, :, 1].add(5.0)
    else:
        frames = jnp.asarray([[True, False]] * 4)
        ignored = latents.at[:, :, :, 1].add(5.0)
    one, other = (
        linear_loss(denoising.Batch(x, signals, frames=frames))[0]
        for x in (latents, ignored)
    )
    np.testing.assert_array_equal(one, other)
    whole = linear_loss(denoising.Batch(latents, Conditioning()))[0]
    assert abs(whole - one) > 1e-3


def test_nothing_to_predict_is_no_loss():
    batch = denoising.Batch(clips(), Conditioning(), frames=jnp.zeros((4, 2), bool))
    assert linear_loss(batch)[0] == 0


def test_domains_share_their_noise():
    """Equal latents in both domains then have equal losses."""
    latents = clips().at[:, 1].set(clips()[:, 0])
    _, (figures, _) = linear_loss(denoising.Batch(latents, Conditioning()))
    np.testing.assert_array_equal(figures["loss/domain0"], figures["loss/domain1"])


def test_noise_is_of_its_own_for_all_but_domains():
    """The network is handed the noise alone where there is no signal."""

    def handed(variables, x, t, signals, **others):
        return x, {"batch_stats": {"noise": x}}

    silent = schedules.from_alpha_bar(np.linspace(1e-12, 0.0, 4))
    batch = denoising.Batch(clips(views=3), Conditioning())
    _, (_, found) = denoising.loss(
        KEY, handed, {"params": {}}, silent, batch, objective=UNDROPPED
    )
    noise = np.asarray(found["noise"])
    np.testing.assert_allclose(noise[:, 0], noise[:, 1], atol=1e-5)
    images = noise[:, 0].reshape(4 * 3 * 2, -1)
    # Some 18 numbers each: alike by chance beyond three quarters is one in 10,000.
    assert np.abs(np.corrcoef(images) - np.eye(len(images))).max() < 0.8


def test_items_are_dropped_as_often_as_asked():
    """A dropped item costs about 100 squared, so the mean tells their share."""
    latents = jnp.tile(clips(), (250, 1, 1, 1, 1, 1, 1))
    objective = denoising.Objective(drop=0.1)
    value, _ = linear_loss(
        denoising.Batch(latents, Conditioning()), objective=objective
    )
    # A thousand items: three standard deviations of the share are 0.028.
    assert abs(value / 100.0**2 - 0.1) < 0.03


@pytest.mark.parametrize("per_view", [False, True])
def test_times_are_drawn_for_items_or_for_views(per_view):
    times = denoising.draw_times(KEY, clips(views=3), SCHEDULE, per_view=per_view)
    assert times.shape == (4, 1, 3 if per_view else 1, 1)
    assert len(np.unique(times)) == times.size
    assert times.min() >= 0 and times.max() < 1000


def test_parts_of_diffusion_time_are_told_apart():
    """Their losses, weighed by how many items have such a time, make up the whole."""
    batch = denoising.Batch(clips(), Conditioning())
    _, (figures, _) = linear_loss(batch)
    time_key = jax.random.split(KEY, 4)[1]
    times = denoising.draw_times(time_key, batch.latents, SCHEDULE)
    counts = np.bincount(np.ravel(times) // 250, minlength=denoising.TIME_BUCKETS)
    for domain in (0, 1):
        parts = np.asarray(
            [figures[f"loss/time{i}_domain{domain}"] for i in range(len(counts))]
        )
        np.testing.assert_array_equal(np.isnan(parts), counts == 0)
        whole = np.nansum(parts * counts) / counts.sum()
        np.testing.assert_allclose(whole, figures[f"loss/domain{domain}"], rtol=1e-6)


@functools.partial(jax.jit, static_argnames=("accumulate",))
def scaling_step(key, state, batch, accumulate=1):
    return denoising.train_step(
        key,
        state,
        batch,
        apply=toy.scaling,
        schedule=SCHEDULE,
        optimizer=optimizers.make(RATES),
        objective=UNDROPPED,
        accumulate=accumulate,
    )


RATES = optimizers.Settings(learning_rate=0.1)


def scaling_state(trained=""):
    gains = {name: {"gain": jnp.asarray(0.25)} for name in ("early", "late")}
    optimizer = optimizers.make(RATES)
    return states.initial_state(KEY, {"params": gains}, optimizer, trained=trained)


def test_a_stage_trains_what_it_names_alone():
    state = scaling_state("late")
    assert set(state.params) == set(state.average) == {"late"}
    assert len(jax.tree.leaves(state.optimizer)) == 4  # Two moments, two counts.
    new, figures = scaling_step(KEY, state, denoising.Batch(clips(), Conditioning()))
    assert new.params["late"]["gain"] != state.params["late"]["gain"]
    assert new.resting["early"]["gain"] == 0.25
    assert figures["gradient_norm"] > 0
    assert set(states.variables_of(new)["params"]) == {"early", "late"}
    with pytest.raises(ValueError, match="'temporal', got none"):
        scaling_state("temporal")


def test_the_average_follows_and_forgets_where_it_began():
    state, batch = scaling_state(), denoising.Batch(clips(), Conditioning())
    gains = [0.25]
    expected = 0.25
    for number in range(3):
        state, _ = scaling_step(KEY, state, batch)
        gains.append(float(state.params["late"]["gain"]))
        decay = min(0.9999, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * gains[-1]
    average = states.variables_of(state, averaged=True)["params"]["late"]["gain"]
    np.testing.assert_allclose(average, expected, rtol=1e-6)
    assert len(set(gains)) == 4


def test_a_gradient_that_is_not_finite_changes_nothing_but_counts():
    good = denoising.Batch(clips(), Conditioning())
    bad = good.replace(latents=good.latents.at[1, 0, 0, 0, 0, 0, 0].set(jnp.nan))
    before, _ = scaling_step(KEY, scaling_state(), good)
    state = before
    for _ in range(2):
        state, figures = scaling_step(KEY, state, bad)
        assert np.isnan(figures["loss"])
    assert (state.step, state.skipped, state.failing) == (3, 2, 2)
    counters = {"step": before.step, "skipped": before.skipped}
    unchanged = state.replace(failing=before.failing, **counters)
    jax.tree.map(np.testing.assert_array_equal, unchanged, before)
    state, _ = scaling_step(KEY, state, good)
    assert (state.step, state.skipped, state.failing) == (4, 2, 0)


def test_parts_of_a_batch_add_up_to_their_mean():
    """Oracle: each part alone, its items dealt in turn, as one batch."""
    state, latents = scaling_state(), clips()
    _, together = scaling_step(
        KEY, state, denoising.Batch(latents, Conditioning()), accumulate=2
    )
    losses = [
        scaling_step(key, state, denoising.Batch(latents[i::2], Conditioning()))[1]
        for i, key in enumerate(jax.random.split(KEY, 2))
    ]
    for name in ("loss", "loss/domain0"):
        mean = np.mean([figures[name] for figures in losses])
        np.testing.assert_allclose(together[name], mean, rtol=1e-6)
    # The gradient is linear in one direction: norms of parts of one sign add up.
    norm = np.mean([figures["gradient_norm"] for figures in losses])
    np.testing.assert_allclose(together["gradient_norm"], norm, rtol=1e-5)


def painting(variables, x, t, signals, **others):
    """A network that predicts the mean of the features it is shown."""
    del t, others
    shown = jnp.mean(signals.features[:, None], axis=(-3, -2), keepdims=True)
    gain = sum(jax.tree.leaves(variables["params"]["temporal"]))
    return gain * x + jnp.broadcast_to(shown, x.shape), {}


def painted_state(trained=""):
    field = splatted_features.even_field(KEY, size=4, channels=2)
    field = field.replace(log_scales=field.log_scales + 1.0)
    params = {states.FIELD: vars(field), "temporal": {"gain": jnp.asarray(0.25)}}
    optimizer = optimizers.make(RATES)
    return states.initial_state(KEY, {"params": params}, optimizer, trained=trained)


def surface(*lead, side):
    """4 x 4 texels scattered before the camera; one column lies off the chart."""
    positions = 0.1 * jax.random.normal(KEY, (*lead, 4, 4, 3))
    positions = positions.at[..., 2].add(1.0).at[..., 0, :].set(0.0)
    lens = side * jnp.broadcast_to(jnp.asarray([2.0, 2.0, 0.5, 0.5]), (*lead, 4))
    return splatted_features.Surface(positions, lens, side)


def painted_batch():
    return denoising.Batch(clips(), Conditioning(), surface=surface(4, 1, 2, side=8))


@functools.cache
def painting_step():
    options = {"schedule": SCHEDULE, "optimizer": optimizers.make(RATES)}
    step = functools.partial(
        denoising.train_step, apply=painting, objective=UNDROPPED, **options
    )
    return jax.jit(step, compiler_options=settings.QUICKLY)


def test_features_learn_with_the_network():
    """All three attributes of what is seen, drawn anew in each step."""
    state, batch = painted_state(), painted_batch()
    new, first = painting_step()(KEY, state, batch)
    moments = new.optimizer[1][0].mu[states.FIELD]
    assert set(moments) == {"features", "opacity_logits", "log_scales"}
    for name, gradient in moments.items():
        assert np.any(gradient[:, 1:]) and not np.any(gradient[:, 0]), name
    _, second = painting_step()(KEY, new, batch)
    alone = new.replace(params={**new.params, states.FIELD: state.params[states.FIELD]})
    _, other = painting_step()(KEY, alone, batch)
    assert second["loss"] < first["loss"] and other["loss"] != second["loss"]


def test_features_rest_in_the_second_stage():
    state, batch = painted_state("temporal"), painted_batch()
    new, _ = painting_step()(KEY, state, batch)
    assert set(new.params) == {"temporal"} and set(new.resting) == {states.FIELD}
    jax.tree.map(np.testing.assert_array_equal, new.resting, state.resting)
    assert new.params["temporal"]["gain"] != state.params["temporal"]["gain"]


def batch_of(paper):
    given = settings.inputs(paper)
    uv = None
    if paper == "geoface":
        side = settings.SIDE // 2
        uv = jax.random.uniform(KEY, (2, 2, side, side, 3)).at[..., 2].set(1.0)
    signals, drawn = given["signals"], None
    if paper == "learn2control":
        lead = (settings.BATCH, 1, settings.FRAMES)
        drawn = surface(*lead, side=signals.features.shape[-2])
        signals = signals.replace(features=None)
    return denoising.Batch(
        given["latents"],
        signals,
        surface=drawn,
        reference=given.get("reference"),
        synthetic=given.get("synthetic"),
        uv=uv,
    )


def test_alignment_is_that_of_tokens_that_see_something():
    """As `alignment` has it of the weights; what u and v are elsewhere is nothing."""
    side, rng = 2, np.random.default_rng(0)
    uv = rng.random((2, 3, side, side, 3), np.float32)
    uv[..., 2] = rng.random(uv.shape[:-1]) < 0.5
    hidden = np.where(uv[..., 2:] == 1.0, uv, 0.0)
    uv, hidden = jnp.asarray(uv), jnp.asarray(hidden)
    sown = {
        name: [jnp.asarray(rng.normal(size=(2, 1, 4 * side**2, 2, 5)), jnp.float32)]
        for name in ("query", "key")
    }
    attention = {"block": {"along": {"attention": sown}}}

    def aligned(uv):
        batch = denoising.Batch(jnp.zeros((2, 1, 4, 1, 4, 4, 1)), Conditioning(), uv=uv)
        return denoising._alignment({"unet": {"this": attention}}, batch, "this")

    queries, keys = (
        sown[name][0].reshape(2, 4, side**2, 2, 5) for name in ("query", "key")
    )
    weights = alignment.correspondences(uv[..., :2], uv[..., 2] == 1.0, size=side)
    expected = alignment.alignment_loss(queries, keys, weights)
    for given in (uv, hidden):
        np.testing.assert_allclose(aligned(given), expected, rtol=1e-6)
    assert abs(aligned(uv[..., jnp.array([1, 0, 2])]) - expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("paper", settings.PAPERS)
def test_every_parameter_learns(paper):
    """From random parameters, since zeros stop gradients; then Adam fits one batch."""
    network = settings.network(paper)
    given = settings.inputs(paper)
    variables = settings.variables(network, given)
    objective = denoising.Objective(drop=0.0, time_per_view=paper == "cap4d")
    if paper == "geoface":
        objective = denoising.Objective(
            drop=0.0, alignment=0.1, aligned="up1_attention0"
        )
    batch = batch_of(paper)
    if paper == "learn2control":
        field = splatted_features.even_field(KEY, size=4)
        variables["params"][states.FIELD] = vars(field)
    if paper == "geodiff4d":
        lead = (settings.BATCH, 1, settings.FRAMES)
        crops = jax.random.uniform(KEY, (*lead, settings.CROP, settings.CROP, 3))
        batch = batch.replace(driving=crops)

    optimizer = optax.adam(1e-3)
    step = jax.jit(
        functools.partial(
            denoising.train_step,
            apply=network.apply,
            schedule=SCHEDULE,
            optimizer=optimizer,
            objective=objective,
        ),
        compiler_options=settings.QUICKLY,
    )
    state, first = step(KEY, states.initial_state(KEY, variables, optimizer), batch)
    gradient = state.optimizer[0].mu  # A tenth of it, after the first step.
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.abs(leaf).max() > 0
    ]
    # Group norms take a channel's bias away again, no box is given, and the reference
    # net's last layers come after its last bank.
    excused = ("bias", "['box", "['reference_net']['up0")
    assert not [n for n in still if not any(part in n for part in excused)]
    for _ in range(15):
        state, figures = step(KEY, state, batch)
    assert figures["loss"] < first["loss"] and np.isfinite(figures["gradient_norm"])
