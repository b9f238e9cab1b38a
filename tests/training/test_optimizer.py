"""Learning rates over a run."""

import numpy as np
import pytest

from geodiff_jax.training import optimizer as optimizers


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_grows_then_falls_to_nothing(warmup):
    settings = optimizers.Settings(learning_rate=0.5, warmup=warmup, decay=10)
    rate = optimizers.learning_rate(settings)
    rates = np.asarray([rate(step) for step in range(warmup + 12)])
    assert rates[0] > 0 and rates.argmax() == warmup and rates.max() == 0.5
    assert (np.diff(rates[: warmup + 1]) > 0).all()
    assert (np.diff(rates[warmup:-1]) < 0).all()
    # Half way it is half, at the end nothing, and nothing it stays.
    np.testing.assert_allclose(rates[warmup + 5], 0.25, rtol=1e-6)
    np.testing.assert_allclose(rates[-2:], 0.0, atol=1e-7)


def test_without_an_end_it_stays():
    rate = optimizers.learning_rate(optimizers.Settings(learning_rate=0.5, warmup=2))
    assert float(rate(2)) == float(rate(10_000)) == 0.5
