"""The procedural head is a proper mesh, a person, and moves like one."""

import numpy as np
import pytest

from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural


@pytest.fixture(scope="module")
def model() -> head_model.HeadModel:
    return procedural.load()


def test_size_and_names(model):
    assert 4_000 <= model.num_vertices <= 12_000
    for names, basis in (
        (model.identity_names, model.identity_basis),
        (model.expression_names, model.expression_basis),
    ):
        assert len(names) >= 40
        assert len(set(names)) == len(names) == len(basis)
        assert (np.abs(basis).max(axis=(1, 2)) > 1e-5)[
            [not n.startswith(("jaw", "eyeLook")) for n in names]
        ].all()


def test_every_region_is_there(model):
    assert set(model.regions) == set(head_model.REGIONS)
    assert all(np.asarray(mask).any() for mask in model.regions.values())


def test_skinning_weights_sum_to_one(model):
    weights = np.asarray(model.skinning_weights)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)  # Round-off.


def test_template_is_mirror_symmetric(model):
    points = np.round(np.asarray(model.template) * 1e6).astype(int)
    mirrored = points * np.array([-1, 1, 1])
    assert {*map(tuple, points)} == {*map(tuple, mirrored)}
