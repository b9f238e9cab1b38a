"""What a fit left thin is closed, and nothing else is touched."""

import jax.numpy as jnp
import numpy as np

from geodiff_jax.avatar import closing
from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.metrics import region as metric_region
from tests.avatar import toy_avatar, toy_head


def thinnest(avatar):
    camera = toy_head.camera(96)
    mask = metric_region.face_mask(avatar.head, avatar.params, camera)
    assert mask.sum() > 100
    alpha = avatar_model.render(avatar, avatar.params, camera).alpha
    return np.asarray(alpha)[mask].min()


def with_hole():
    """The toy avatar without detail, whose closing discs round one vertex shrank."""
    avatar = toy_avatar.load()
    bound = np.asarray(avatar.binding.face)
    first = np.zeros(len(bound), bool)
    first[np.unique(bound, return_index=True)[1]] = True
    corners = np.asarray(avatar.head.faces)[bound]
    # The vertex nearest to the camera.
    tip = int(np.argmax(np.asarray(avatar.head.template)[:, 2]))
    shrunk = first & (corners == tip).any(axis=1)
    gaussians = avatar.gaussians
    logits = jnp.where(jnp.asarray(first), gaussians.opacity_logits, -20.0)
    scales = gaussians.log_scales + jnp.where(jnp.asarray(shrunk), -1.2, 0.4)[:, None]
    return avatar.replace(
        gaussians=gaussians.replace(opacity_logits=logits, log_scales=scales)
    )


def test_thin_spots_of_the_face_are_closed_and_the_rest_stays():
    avatar = with_hole()
    assert thinnest(avatar) < 0.98
    closed = closing.close_face(avatar, [toy_head.camera(96)], longest=0.05, rounds=20)
    assert thinnest(closed) >= 0.985
    grown = np.asarray(closed.gaussians.log_scales - avatar.gaussians.log_scales)
    assert 0 < (grown > 0).any(axis=1).sum() < 20 and grown.min() >= 0
    again = closing.close_face(closed, [toy_head.camera(96)], longest=0.05)
    np.testing.assert_array_equal(
        again.gaussians.log_scales, closed.gaussians.log_scales
    )


def test_nothing_grows_beyond_the_longest():
    avatar = with_hole()
    longest = 0.01
    closed = closing.close_face(avatar, [toy_head.camera(96)], longest=longest)
    before, after = (
        np.exp(avatar_model.pose(a, a.params).log_scales) for a in (avatar, closed)
    )
    assert np.all(after <= np.maximum(before, longest) * (1 + 1e-5))
