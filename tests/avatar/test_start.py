"""An avatar before its optimisation."""

import numpy as np

from geodiff_jax.head import model as head_model
from tests.avatar import toy_avatar


def test_an_avatar_ends_at_the_neck():
    """No Gaussian beyond its ring; of what is before it, the outline carves a part."""
    avatar = toy_avatar.load()
    own = head_model.own_faces(avatar.head)
    assert own.any() and not own.all()
    dressed = np.unique(np.asarray(avatar.binding.face))
    assert own[dressed].all()
    assert len(dressed) > 0.8 * own.sum()
