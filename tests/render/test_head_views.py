"""Views round a head: in front of the face, at the distance, in the ellipse."""

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.render import head_views
from tests.head import random_head

HEAD = random_head.load()
COUNT = 400


@pytest.fixture(scope="module")
def posed():
    """A head that looks aside, and a camera that sees it off its centre."""
    params = head_model.neutral(HEAD).replace(
        rotation=jnp.asarray([0.2, 0.9, -0.3]), translation=jnp.asarray([0.1, 0.2, 0.0])
    )
    lens = cameras.look_at(
        jnp.asarray([0.5, 0.3, 1.4]),
        jnp.asarray([0.2, 0.1, 0.0]),
        up=jnp.asarray([0.0, 1.0, 0.0]),
        focal=900.0,
        width=600,
        height=400,
    )
    return params, lens


def seen(camera, params):
    """(pixel, depth) of the head's centre."""
    pixels, depth = camera.project(head_views.centre(HEAD, params)[None])
    return np.append(pixels[0], depth)


def angles(camera, params):
    """(yaw, pitch) from which the head is seen, in its own axes."""
    own = camera.camera_from_world.rotation() @ jaxlie.SO3.exp(params.rotation)
    towards = -own.as_matrix()[..., 2, :]  # The camera's z axis, backwards.
    yaw = np.arctan2(towards[..., 0], towards[..., 2])
    return yaw, np.arcsin(towards[..., 1])


def test_the_front_is_upright_and_keeps_the_heads_place(posed):
    params, lens = posed
    front = head_views.frontal(HEAD, params, lens)
    own = front.camera_from_world.rotation() @ jaxlie.SO3.exp(params.rotation)
    # The subject's left is to the right of the image, its top at the top.
    wanted = np.diag([1.0, -1.0, -1.0])
    np.testing.assert_allclose(own.as_matrix(), wanted, atol=1e-6)
    np.testing.assert_allclose(seen(front, params), seen(lens, params), atol=1e-3)


def test_views_fill_the_ellipse_about_the_front(posed):
    params, lens = posed
    drawn = head_views.draw(jax.random.key(0), HEAD, params, lens, count=COUNT)
    assert drawn.intrinsics.shape == (COUNT, 4)
    for i in (0, COUNT - 1):
        one = jax.tree.map(lambda x, i=i: x[i], drawn)
        np.testing.assert_allclose(seen(one, params), seen(lens, params), atol=1e-3)
    yaw, pitch = (np.degrees(x) for x in angles(drawn, params))
    radius = np.hypot(yaw / 55.0, pitch / 20.0)
    # An orbit pitches in the camera's own axes: at the side that is less than it says.
    assert radius.max() < 1.05
    # Uniform: a quarter lies within half the radius.
    assert abs((radius < 0.5).mean() - 0.25) < 0.08
    assert min(yaw.max(), -yaw.min()) > 45.0 and min(pitch.max(), -pitch.min()) > 15.0


def test_the_key_decides(posed):
    params, lens = posed
    first, same, other = (
        head_views.draw(jax.random.key(seed), HEAD, params, lens, count=3)
        for seed in (0, 0, 1)
    )
    for drawn, alike in ((same, True), (other, False)):
        found = drawn.position == first.position
        assert bool(jnp.all(found)) == alike
