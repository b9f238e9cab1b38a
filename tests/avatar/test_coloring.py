"""Colours of what no photo shows: laws on a ball with a face."""

import jax
import numpy as np

from geodiff_jax.avatar import coloring
from geodiff_jax.head import model as head_model
from tests.avatar import toy_head


def scalp_points():
    """Points on the scalp of the toy head, and whether its front shows them."""
    head = toy_head.load()
    vertices = np.asarray(head_model.vertices(head, toy_head.params(head)))
    points = coloring.vertex_points(head, vertices)
    scalp = np.asarray(head.regions["scalp"])
    kept = coloring.SurfacePoints(
        *(getattr(points, name)[scalp] for name in points.__dataclass_fields__)
    )
    return head, kept, (kept.rest_normal[:, 2] > 0.0).astype(float)


def test_hidden_hair_looks_like_the_seen():
    head, points, seen = scalp_points()
    random = np.random.default_rng(0).uniform(0.2, 0.3, (len(seen), 3))
    observed = np.where(seen[:, None] > 0, random, 0.9)
    colors = coloring.hidden_hair(jax.random.key(0), head, points, observed, seen)
    np.testing.assert_array_equal(colors[seen > 0], observed[seen > 0])
    hidden = colors[seen == 0]
    assert hidden.max() < 0.31  # None of what the photo shows there instead.
    # Drawing, not one flat mean: 0.6 of the seen contrast, 0.017 when shaded fully.
    assert 0.6 * 0.6 * 0.029 < hidden.std(axis=0).min() < 0.029


def test_hidden_hair_is_darker_away_from_the_light():
    head, points, seen = scalp_points()
    lit = 0.3 + 0.1 * points.normal @ np.array([0.0, 0.0, -1.0])
    observed = np.repeat(lit[:, None], 3, axis=1)
    colors = coloring.hidden_hair(jax.random.key(0), head, points, observed, seen)
    back = points.rest_normal[:, 2] < -0.7
    assert back.sum() > 20
    shown = np.median(observed[seen > 0])
    assert np.median(colors[back]) < 0.85 * shown
    # With light that comes from nowhere there is no shade.
    flat = np.full_like(observed, 0.3)
    same = coloring.hidden_hair(jax.random.key(0), head, points, flat, seen)
    np.testing.assert_allclose(same, 0.3, rtol=1e-6)


def test_resembling_forgives_shade_but_not_tint():
    brown = np.array([[0.3, 0.2, 0.1]])
    samples = np.repeat(brown, 9, axis=0)
    colors = np.concatenate([0.5 * brown, 1.5 * brown, brown[:, ::-1], 0.05 * brown])
    found = coloring.resembles(colors, samples)
    np.testing.assert_array_equal(found, [True, True, False, False])
