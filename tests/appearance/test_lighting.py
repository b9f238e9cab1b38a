"""Light: energy laws, shadows of known shapes, and the colour curve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.appearance import lighting, shading


def sphere(rows=24, columns=48, radius=0.1):
    """Vertices and outward faces of a ball about the origin."""
    polar = np.linspace(0.0, np.pi, rows)
    azimuth = np.linspace(0.0, 2 * np.pi, columns, endpoint=False)
    grid = np.stack(
        [
            np.sin(polar)[:, None] * np.sin(azimuth),
            np.broadcast_to(np.cos(polar)[:, None], (rows, columns)),
            np.sin(polar)[:, None] * np.cos(azimuth),
        ],
        axis=-1,
    ).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a = (i * columns + j).ravel()
    b = (i * columns + (j + 1) % columns).ravel()
    c, d = a + columns, b + columns
    faces = np.concatenate([np.stack([a, c, b], -1), np.stack([b, c, d], -1)])
    return jnp.asarray(radius * grid, jnp.float32), jnp.asarray(faces, jnp.int32)


def points(albedo, **changes):
    """Shading points that all face the viewer, unless changed."""
    count = 64
    normal = jnp.asarray(lighting.hemisphere(2 * count)[:count]) * jnp.asarray(
        [1, 1, -1]
    )
    normal = normal * jnp.sign(normal[:, 2:])
    view = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0]), (count, 3))
    full = jnp.ones(count)
    made = shading.Points(
        jnp.broadcast_to(jnp.asarray(albedo), (count, 3)),
        normal,
        normal,
        view,
        jnp.ones((count, 1)),
        full,
        0.5 * full,
        0.03 * full,
        full,
    )
    return made.replace(**changes)


@pytest.mark.parametrize("shade", [shading.surface, shading.eye])
def test_white_vanishes_in_even_light(shade):
    # The white furnace: what is not reflected by the surface leaves from below it.
    shown = shade(points([1.0, 1.0, 1.0]), lighting.constant(radiance=0.4))
    np.testing.assert_allclose(shown, 0.4, rtol=1e-5)


def test_matte_stuff_shows_its_albedo_in_even_light():
    albedo = jnp.asarray([0.5, 0.3, 0.2])
    matte = points(albedo, reflectance=jnp.zeros(64), roughness=jnp.ones(64))
    shown = shading.surface(matte, lighting.constant())
    np.testing.assert_allclose(shown, jnp.broadcast_to(albedo, (64, 3)), rtol=1e-5)


def test_a_lamp_shows_its_colour_on_a_white_surface_that_faces_it():
    lamp = lighting.constant(radiance=0.0).replace(
        colors=jnp.asarray([[0.7, 0.6, 0.5]])
    )
    facing = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0]), (64, 3))
    matte = points(
        [1.0, 1.0, 1.0],
        normal=facing,
        soft_normal=facing,
        reflectance=jnp.zeros(64),
        roughness=jnp.ones(64),
    )
    # Only the faint glossy lobe's edge term may add: reflectance 0 leaves Schlick's
    # (1 - cos)^5, which is 0 head on.
    np.testing.assert_allclose(
        shading.surface(matte, lamp)[0], [0.7, 0.6, 0.5], rtol=1e-4
    )


def test_light_adds_up():
    light = lighting.studio()
    first = light.replace(sky=jnp.zeros((4, 3)), colors=light.colors.at[1:].set(0.0))
    rest = light.replace(colors=light.colors.at[0].set(0.0))
    stuff = points([0.5, 0.4, 0.3], lamps=jnp.full((64, 3), 0.6))
    for shade in (shading.surface, shading.eye):
        together = shade(stuff, light)
        np.testing.assert_allclose(
            shade(stuff, first) + shade(stuff, rest), together, rtol=1e-4, atol=1e-6
        )


def test_a_ball_sees_all_its_sky_and_a_pit_does_not():
    vertices, faces = sphere()
    normals = vertices / 0.1
    outside = lighting.openness(vertices, faces, vertices * 1.001, normals)
    # Shadow maps are coarse (1 mm here) and biased, never brighter than full light.
    assert outside.min() > 0.93 and outside.max() <= 1.0 + 1e-5
    within = lighting.openness(vertices, faces, vertices * 0.8, -normals)
    assert within.max() < 0.05


def test_a_ball_shades_what_is_behind_it():
    vertices, faces = sphere()
    behind = jnp.asarray([[0.0, 0.0, -0.2], [0.0, 0.0, 0.2], [0.15, 0.0, -0.2]])
    seen = lighting.visibility(
        vertices[None], faces, behind, jnp.asarray([[0.0, 0.0, 1.0]])
    )
    np.testing.assert_allclose(seen[0], [0.0, 1.0, 1.0], atol=1e-6)


def test_srgb_curve_inverts():
    x = jnp.linspace(0.0, 1.0, 257)
    there_and_back = lighting.linear_from_srgb(lighting.srgb_from_linear(x))
    np.testing.assert_allclose(there_and_back, x, atol=2e-6)  # float32 powers


def test_exposure_keeps_mid_tones_and_never_clips():
    x = jnp.linspace(0.0, 6.0, 100)
    y = lighting.expose(x)
    np.testing.assert_array_equal(y[x < 0.7], x[x < 0.7])
    assert bool(jnp.all(jnp.diff(y) >= 0)) and float(y.max()) <= 1.0


def test_sampled_light_is_deterministic_and_comes_from_above_the_chin():
    first = lighting.sample_lighting(jax.random.key(3))
    again = lighting.sample_lighting(jax.random.key(3))
    other = lighting.sample_lighting(jax.random.key(4))
    np.testing.assert_array_equal(first.directions, again.directions)
    assert float(jnp.abs(first.directions - other.directions).max()) > 0.01
    np.testing.assert_allclose(
        jnp.linalg.norm(other.directions, axis=-1), 1.0, atol=1e-6
    )
    assert float(other.directions[:, 1].min()) > 0.0
