"""An avatar before its optimisation."""

import numpy as np

from geodiff_jax.head import model as head_model
from tests.avatar import toy_avatar


def test_an_avatar_ends_at_the_neck():
    avatar = toy_avatar.load()
    dressed = np.unique(np.asarray(avatar.binding.face))
    np.testing.assert_array_equal(
        dressed, np.flatnonzero(head_model.own_faces(avatar.head))
    )
