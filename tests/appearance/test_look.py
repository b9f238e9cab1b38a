"""Looks: pigments that behave like pigments, and a population that is diverse."""

import jax
import numpy as np

from geodiff_jax.appearance import look as appearance


def test_more_pigment_is_darker_and_stays_a_colour():
    amounts = np.linspace(0.0, 2.5, 20)
    for melanin, blood in ((amounts, 0.3 + 0 * amounts), (0.2 + 0 * amounts, amounts)):
        color = appearance.skin_color(melanin, blood)
        assert color.min() > 0.0 and color.max() < 1.0
        assert np.all(np.diff(color, axis=0) < 0.0)


def test_blood_reddens_and_melanin_browns():
    pale = appearance.skin_color(np.array(0.1), np.array(0.1))
    flushed = appearance.skin_color(np.array(0.1), np.array(0.6))
    tanned = appearance.skin_color(np.array(0.9), np.array(0.1))
    assert flushed[1] / pale[1] < flushed[2] / pale[2] < flushed[0] / pale[0]
    assert tanned[2] / pale[2] < tanned[1] / pale[1] < tanned[0] / pale[0]


def test_hair_without_pigment_is_nearly_white():
    look = appearance.sample_look(jax.random.key(0))
    white = appearance.hair_color(look, white=np.array(1.0))
    dark = appearance.hair_color(look, white=np.array(0.0))
    assert white.min() > 0.5 and dark.mean() < white.mean()


def test_looks_repeat_and_differ():
    first = appearance.sample_look(jax.random.key(5))
    again = appearance.sample_look(jax.random.key(5))
    other = appearance.sample_look(jax.random.key(6))
    assert jax.tree.leaves(first) == jax.tree.leaves(again)
    assert jax.tree.leaves(first) != jax.tree.leaves(other)


def test_hair_is_of_the_styles_asked_for():
    keys = jax.random.split(jax.random.key(3), 40)
    people = [appearance.sample_look(k, styles=("cropped", "tied")) for k in keys]
    tied = np.array([float(p.hair_knot) for p in people]) == 1.0
    length = np.array([float(p.hair_length) for p in people])
    assert 8 < tied.sum() < 32
    assert (length[tied] > 0.19).all() and (length[~tied] < 0.011).all()


def test_population_is_diverse_and_plausible():
    people = [appearance.sample_look(jax.random.key(i)) for i in range(200)]
    skin = np.array([float(p.melanin) for p in people])
    assert skin.min() < 0.15 and skin.max() > 1.6
    share = {
        "beards": np.mean([float(p.beard) > 0.001 for p in people]),
        "long hair": np.mean([float(p.hair_length) > 0.15 for p in people]),
        "blue eyes": np.mean([float(p.iris_melanin) < 0.25 for p in people]),
        "grey": np.mean([float(p.grey) > 0.3 for p in people]),
    }
    assert all(0.05 < value < 0.6 for value in share.values()), share
    for p in people:  # Blond hair does not come with the darkest skin.
        assert float(p.eumelanin) > 1.5 or float(p.melanin) < 1.2
        loose = float(p.hair_length) * (1.0 - float(p.hair_knot))
        assert not (float(p.beard) > 0.001 and loose > 0.15)
