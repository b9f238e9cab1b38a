"""The regularisers: silent at the start, louder the further from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.avatar import losses
from tests.avatar import toy_avatar


def test_regularisers_are_zero_at_the_start():
    avatar = toy_avatar.load()
    start = avatar.gaussians
    assert losses.drift(avatar, start, skin_limit=0.0, hair_limit=0.0) == 0
    assert losses.swelling(start, start, factor=1.0, needle=1e3) == 0
    assert losses.recoloring(start, start) == 0


@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_drift_is_the_squared_excess(distance: float):
    avatar = toy_avatar.load()
    start = avatar.gaussians
    moved = start.means + jnp.array([distance, 0.0, 0.0])
    avatar = avatar.replace(gaussians=start.replace(means=moved))
    value = losses.drift(avatar, start, skin_limit=1.0, hair_limit=1.0)
    np.testing.assert_allclose(value, max(distance - 1.0, 0.0) ** 2, rtol=1e-5)


def test_needles_are_penalised_and_discs_are_not():
    start = toy_avatar.load().gaussians
    disc = start.replace(log_scales=start.log_scales * 0 + jnp.array([0.0, 0.0, -5.0]))
    needle = start.replace(log_scales=disc.log_scales + jnp.array([3.0, 0.0, 0.0]))
    assert losses.swelling(disc, disc, factor=2.0, needle=3.0) == 0
    assert losses.swelling(needle, needle, factor=2.0, needle=3.0) > 1


def test_gradients_are_finite_at_the_start():
    avatar = toy_avatar.load()
    start = avatar.gaussians

    def total(gaussians):
        moved = avatar.replace(gaussians=gaussians)
        return (
            losses.drift(moved, start, skin_limit=0.0, hair_limit=0.0)
            + losses.swelling(gaussians, start, factor=1.0, needle=1.0)
            + losses.recoloring(gaussians, start)
        )

    gradient = jax.grad(total, allow_int=True)(start)
    for leaf in (gradient.means, gradient.log_scales, gradient.sh):
        assert np.all(np.isfinite(leaf))


def test_only_region_and_background_are_judged():
    view = toy_avatar.view(48)
    view = view.replace(region=view.region.at[30:].set(False))  # As below the neck.
    background = jnp.array([0.2, 0.9, 0.4])
    matte = view.matte[..., None]
    truth = matte * view.image + (1 - matte) * background
    ignored = ~(view.region | view.empty)[..., None]
    assert ignored.any()
    elsewhere = jnp.where(ignored, 1 - truth, truth)
    assert losses.photometric(elsewhere, view, background=background) < 1e-6


@pytest.mark.parametrize("where", ["region", "empty"])
def test_errors_in_region_and_background_are_seen(where: str):
    view = toy_avatar.view(48)
    background = jnp.array([0.2, 0.9, 0.4])
    matte = view.matte[..., None]
    truth = matte * view.image + (1 - matte) * background
    wrong = jnp.where(getattr(view, where)[..., None], 1 - truth, truth)
    assert losses.photometric(wrong, view, background=background) > 0.1
