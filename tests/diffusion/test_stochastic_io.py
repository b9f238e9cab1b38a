"""CAP4D's sampling of many views, and windows over long videos."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.diffusion import ddim, grids, guidance, stochastic_io
from geodiff_jax.diffusion import schedule as schedules
from tests.conftest import shared_data
from tests.diffusion.test_schedule import cap4d


def latents(channels_first: np.ndarray) -> np.ndarray:
    """(..., view, c, h, w) as (..., batch, domain, view, time, h, w, c)."""
    x = np.moveaxis(channels_first, -3, -1)
    return x[..., None, None, :, None, :, :, :]


def toy_mmdm(x, t, conditions):
    """The goldens' denoiser: views see each other's mean."""
    pose, clean, mask = conditions

    def mean(values):
        return values.mean(axis=stochastic_io.VIEW, keepdims=True)

    return jnp.tanh(
        0.6 * x
        + 0.3 * mean(x)
        + 0.4 * pose[:, None, :, None, ..., :4]
        + 0.2 * mean(clean[:, None, :, None])
        + 0.5 * mask[:, None, :, None]
        + t / 1000
        - 0.3
    )


def conditions_of(pose, clean, *, reference: bool):
    """(pose, clean latents, mask) with axes (batch, view, h, w, c)."""
    mask = np.full((*clean.shape[:-1], 1), float(reference), np.float32)
    return tuple(jnp.asarray(a[None]) for a in (pose, clean, mask))


def unconditional(conditions):
    pose, clean, mask = conditions
    return jnp.zeros_like(pose), jnp.zeros_like(clean), mask


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_cap4d_sampler(case):
    golden = np.load(shared_data("goldens/cap4d_sampler_toy.npz"))
    g = {k[2:]: golden[k] for k in golden if k.startswith(case)}
    seen = []

    def guided(x, t, conditions):
        without = unconditional(conditions)
        scale = float(g["cfg_scale"])

        def net(x, t, both):
            seen.append(x.shape)
            return toy_mmdm(x, t, both)

        return guidance.guide(net, conditions, without, scale=scale)(x, t)

    clean = np.moveaxis(g["ref_z_input"], 1, -1)
    empty = np.zeros((len(g["init_noise"]), *clean.shape[1:]), np.float32)
    grouped = stochastic_io.beside_references(
        guided,
        jnp.asarray(latents(g["ref_z_input"])),
        conditions_of(g["ref_pos_enc"], clean, reference=True),
        conditions_of(g["gen_pos_enc"], empty, reference=False),
    )
    times = grids.strided(int(g["S"]))
    np.testing.assert_array_equal(times, g["step_t"])
    groups = stochastic_io.Groups(
        references=jnp.asarray(g["ref_batches"]), targets=jnp.asarray(g["gen_batches"])
    )
    schedule = cap4d()

    @jax.jit
    def run(start):
        return stochastic_io.sample(
            grouped, schedule, start, times, groups, trajectory=True
        )

    found = np.asarray(run(latents(g["init_noise"])))
    expected = latents(g["trajectory"])
    for step, latent in zip(found, expected, strict=True):
        np.testing.assert_allclose(step, latent, atol=1e-5 * np.abs(latent).max())
    # Never more than a group in the network, doubled where guidance asks for it.
    doubled = 1 if g["cfg_scale"] == 1 else 2
    assert {shape[:3] for shape in seen} == {(doubled, 1, int(g["V"]))}


def views_agree(x, t, references, targets):
    """Sees the others only through their mean, so the order of views is no matter."""
    del references, targets
    return jnp.tanh(0.6 * x + 0.3 * x.mean(stochastic_io.VIEW, keepdims=True) + t / 999)


def test_one_group_is_plain_ddim():
    schedule = schedules.make()
    times = grids.leading(5, offset=1)
    start = np.random.default_rng(0).normal(size=(2, 2, 4, 1, 2, 2, 3))

    def plain(x, t):
        return views_agree(x, t, None, None)

    @jax.jit
    def both(start):
        groups = stochastic_io.draw_groups(
            jax.random.key(1), num_steps=5, num_targets=4, num_references=4
        )
        assert groups.targets.shape == groups.references.shape == (5, 1, 4)
        return (
            stochastic_io.sample(views_agree, schedule, start, times, groups),
            ddim.sample(plain, schedule, start, times),
        )

    found, expected = both(start.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_views_return_to_their_places():
    """Each view's prediction names the view: none may reach another's latent."""
    schedule = schedules.make(prediction="x0")
    count = 12

    def name(x, t, references, targets):
        return jnp.zeros_like(x) + targets[:, None, None, None, None]

    @jax.jit
    def run(start):
        groups = stochastic_io.draw_groups(
            jax.random.key(1), num_steps=3, num_targets=count, num_references=4
        )
        return stochastic_io.sample(name, schedule, start, grids.trailing(3), groups)

    found = np.ravel(run(np.ones((1, 1, count, 1, 1, 1, 1), np.float32)))
    np.testing.assert_allclose(found, np.arange(count), rtol=1e-6)


def test_groups_hold_every_target_once_and_references_without_repeats():
    draw = functools.partial(
        stochastic_io.draw_groups,
        num_steps=40,
        num_targets=10,
        num_references=6,
        views=7,
        references_per_pass=2,
    )
    groups = jax.jit(draw)(jax.random.key(3))
    assert groups.targets.shape == (40, 2, 5)
    assert groups.references.shape == (40, 2, 2)
    targets = np.sort(np.asarray(groups.targets).reshape(40, 10))
    np.testing.assert_array_equal(targets, np.tile(np.arange(10), (40, 1)))
    references = np.asarray(groups.references)
    assert (references[..., 0] != references[..., 1]).all()
    # All serve, and neither steps nor groups repeat each other.
    assert set(references.ravel()) == set(range(6))
    assert len(np.unique(references.reshape(40, -1), axis=0)) > 30
    assert len(np.unique(np.asarray(groups.targets).reshape(40, -1), axis=0)) == 40


def test_at_most_four_references_unless_asked():
    for available, expected in ((1, 1), (3, 3), (4, 4), (10, 4)):
        shapes = jax.eval_shape(
            functools.partial(
                stochastic_io.draw_groups,
                num_steps=1,
                num_targets=2 * (8 - expected),
                num_references=available,
            ),
            jax.random.key(0),
        )
        assert shapes.references.shape == (1, 2, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_targets": 9}, "groups of 4 divide, got 9; add 3"),
        ({"num_targets": 0}, "groups of 4 divide, got 0"),
        ({"references_per_pass": 5}, "1 to 4 references in a pass of 8"),
        ({"references_per_pass": 0}, "1 to 4 references"),
        ({"views": 4}, "1 to 3 references in a pass of 4"),
    ],
)
def test_groups_that_cannot_be_are_refused(settings, message):
    base = {"num_steps": 2, "num_targets": 8, "num_references": 4}
    with pytest.raises(ValueError, match=message):
        stochastic_io.draw_groups(jax.random.key(0), **base | settings)


def test_groups_of_another_grid_are_refused():
    groups = stochastic_io.Groups(*(jnp.zeros((2, 1, 4), int) for _ in range(2)))
    start = jnp.zeros((1, 1, 4, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="groups for 3 steps, got 2"):
        stochastic_io.sample(
            views_agree, schedules.make(), start, grids.trailing(3), groups
        )


def test_xnemo_windows():
    golden = np.load(shared_data("goldens/xnemo_sampling.npz"))
    for name in [k for k in golden if k.startswith("context_frames")]:
        frames, offset = name.removeprefix("context_frames").split("_offset")
        found = stochastic_io.windows(
            int(frames), size=24, overlap=4, offset=int(offset)
        )
        np.testing.assert_array_equal(found, golden[name])


@pytest.mark.parametrize("overlap", [0, 4, 15])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 28, 29, 100])
def test_windows_hold_every_frame_and_none_twice(frames, overlap):
    for offset in (0, 5):
        found = np.asarray(
            stochastic_io.windows(frames, overlap=overlap, offset=offset)
        )
        assert set(found.ravel()) == set(range(frames))
        assert all(len(set(window)) == min(frames, 16) for window in found)


def test_windows_that_see_frames_alone_change_nothing():
    """Averages of equal predictions; a denoiser that looks aside is averaged."""
    x = np.random.default_rng(0).normal(size=(1, 2, 1, 20, 2, 2, 3)).astype(np.float32)
    t = np.int32(700)

    def alone(x, t, ids):
        return 0.3 * x + t / 1000 + ids[:, None, None, None]

    whole = stochastic_io.over_windows(
        jax.random.key(1), alone, num_frames=20, size=8, overlap=3
    )
    expected = alone(x, t, np.arange(20))
    np.testing.assert_allclose(jax.jit(whole)(x, t), expected, atol=1e-5)


def test_frames_in_several_windows_get_the_mean():
    x = np.zeros((1, 1, 1, 6, 1, 1, 1), np.float32)
    windows = jnp.asarray([[0, 1, 2, 3], [2, 3, 4, 5]])

    def first(x, t, ids):
        return jnp.zeros_like(x) + ids[0]

    average = jax.jit(lambda x, t: stochastic_io.average_windows(first, x, t, windows))
    np.testing.assert_allclose(np.ravel(average(x, 0)), [0, 0, 1, 1, 2, 2])


def test_offsets_differ_between_times_and_stay_with_them():
    def first(x, t, ids):
        return jnp.zeros_like(x) + ids[0]

    x = np.zeros((1, 1, 1, 40, 1, 1, 1), np.float32)
    make = stochastic_io.over_windows
    whole = jax.jit(make(jax.random.key(0), first, num_frames=40))
    seen = [np.ravel(whole(x, np.int32(t))) for t in range(0, 1000, 100)]
    assert len(np.unique(seen, axis=0)) > 5
    np.testing.assert_array_equal(np.ravel(whole(x, np.int32(100))), seen[1])


def test_an_overlap_as_long_as_the_window_is_refused():
    with pytest.raises(ValueError, match="below the window's 16 frames, got 16"):
        stochastic_io.windows(40, overlap=16)
