"""White under pictures is taken away once, and comes back the same."""

import numpy as np

from geodiff_jax.data import captures, framing


def test_white_that_was_laid_once_is_not_laid_twice():
    rng = np.random.default_rng(0)
    person = rng.uniform(0.0, 1.0, (8, 9, 3)).astype(np.float32)
    matte = np.linspace(0.0, 1.0, 72, dtype=np.float32).reshape(8, 9)
    on_white = person * matte[..., None] + 1.0 - matte[..., None]
    found = captures.before_white(on_white, matte)
    np.testing.assert_allclose(framing.lay_on_white(found, matte), on_white, atol=1e-6)
    solid = matte > 0.1
    np.testing.assert_allclose(found[solid], person[solid], atol=1e-5)


def test_pictures_with_a_wall_stay_as_they_are():
    matte = np.array([[0.0, 1.0]], np.float32)
    picture = np.full((1, 2, 3), 0.4, np.float32)
    assert captures.before_white(picture, matte) is picture
    assert captures.before_white(picture, matte + 0.5) is picture
