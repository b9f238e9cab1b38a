"""Photographs: outlines, backgrounds, light that stays with the head."""

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.appearance import hair, lighting, studio, texture
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer

SIZE = 96


@pytest.fixture(scope="module")
def camera():
    return cameras.look_at(
        jnp.asarray([0.0, -0.02, 0.9]),
        jnp.asarray([0.0, -0.02, 0.0]),
        up=jnp.asarray([0.0, 1.0, 0.0]),
        focal=2.4 * SIZE,
        width=SIZE,
        height=SIZE,
    )


@pytest.fixture(scope="module")
def take(head, look, maps, locks, camera):
    """A photograph of the neutral head, with anything changed."""

    def photograph(**changes):
        given = {
            "params": head_model.neutral(head),
            "lighting": lighting.studio(),
            "camera": camera,
            "maps": maps,
            "hair": locks,
            "supersample": 1,
        } | changes
        ordered = [given.pop(name) for name in ("params", "lighting", "camera")]
        return studio.photograph(head, ordered[0], look, *ordered[1:], **given)

    return photograph


def test_photograph_is_finite_and_in_range(take):
    image, alpha = take()
    assert image.shape == (SIZE, SIZE, 3) and alpha.shape == (SIZE, SIZE)
    for values in (image, alpha):
        assert np.all(np.isfinite(values)) and values.min() >= 0 and values.max() <= 1


def test_alpha_is_the_silhouette_of_head_and_hair(head, locks, take, camera):
    _, alpha = take()
    points = hair.pose(locks, head.template, head.faces)
    viewer = camera.position - points[:, 0]
    viewer = viewer / jnp.linalg.norm(viewer, axis=-1, keepdims=True)
    ribbons = hair.ribbons(points, locks.width, viewer)
    faces = hair.ribbon_faces(*points.shape[:2]) + head.num_vertices
    seen = mesh_rasterizer.rasterize(
        jnp.concatenate([head.template, ribbons]),
        jnp.concatenate([head.faces, faces]),
        camera,
    ).face
    # Skinning at rest moves vertices by float32 round-off: a pixel may flip.
    assert np.mean(alpha != np.asarray(seen >= 0)) < 1e-3


def test_finer_samples_average_to_the_same_picture(take):
    coarse, alpha = take()
    fine, finer_alpha = take(supersample=2)
    assert abs(alpha.mean() - finer_alpha.mean()) < 0.005
    assert np.mean(np.abs(coarse - fine)) < 0.02


def test_background_shows_where_alpha_is_zero(take):
    white, alpha = take(background=1.0)
    teal = np.array([0.1, 0.5, 0.5])
    other, _ = take(background=teal)
    np.testing.assert_allclose(
        other, white + (1.0 - alpha[..., None]) * (teal - 1.0), atol=1e-6
    )


def test_turning_the_head_is_moving_the_camera(take, head, camera):
    turn = jaxlie.SE3.from_rotation(jaxlie.SO3.exp(jnp.asarray([0.0, 0.4, 0.0])))
    params = head_model.neutral(head).replace(rotation=jnp.asarray([0.0, 0.4, 0.0]))
    turned, _ = take(params=params)
    moved, _ = take(
        camera=camera.replace(camera_from_world=camera.camera_from_world @ turn)
    )
    # Outlines of hairs may fall on the other side of a sample by round-off.
    assert np.mean(np.abs(turned - moved)) < 2e-3


def test_twice_the_light_is_never_darker(take):
    light = lighting.studio()
    dim, _ = take(
        lighting=light.replace(colors=0.5 * light.colors, sky=0.5 * light.sky)
    )
    full, _ = take(lighting=light)
    assert np.min(full - dim) > -1e-5 and np.mean(full - dim) > 0.01


def test_a_texture_of_ones_own_is_shown(take):
    green = texture.Maps(
        jnp.broadcast_to(jnp.asarray([0.1, 0.8, 0.1]), (192, 192, 3)),
        jnp.zeros((192, 192)),
    )
    image, alpha = take(maps=green)
    cheek = image[SIZE // 2 + 4, SIZE // 2 + 8]
    assert alpha[SIZE // 2 + 4, SIZE // 2 + 8] == 1.0
    assert cheek[1] > 1.5 * cheek[0] and cheek[1] > 1.5 * cheek[2]


def test_eyes_catch_the_light(take, head, look):
    """A lamp before the face gives each eye a small bright spot."""
    near = cameras.look_at(
        jnp.asarray([0.032, 0.0, 0.5]),
        jnp.asarray(np.asarray(head.joint_template[3])),
        up=jnp.asarray([0.0, 1.0, 0.0]),
        focal=12.0 * SIZE,
        width=SIZE,
        height=SIZE,
    )
    lamp = lighting.Lighting(
        directions=jnp.asarray([[0.10, 0.10, 0.99]] * 3),
        colors=jnp.zeros((3, 3)).at[0].set(1.0),
        sizes=jnp.full(3, 0.15),
        sky=jnp.zeros((4, 3)),
    )
    black = texture.Maps(jnp.full((192, 192, 3), 0.03), jnp.zeros((192, 192)))
    image, _ = take(camera=near, lighting=lamp, maps=black)
    share = np.mean(image.mean(axis=-1) > 0.5)
    assert 0.0005 < share < 0.05
