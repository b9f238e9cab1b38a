"""Textures: colours in range, the same for the same look, at home where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.appearance import look as appearance
from geodiff_jax.appearance import noise, surface, texture


def test_bake_is_a_colour_everywhere(maps):
    assert maps.albedo.shape == (192, 192, 3)
    assert bool(jnp.all(jnp.isfinite(maps.albedo)))
    assert float(maps.albedo.min()) >= 0.0 and float(maps.albedo.max()) <= 1.0
    assert float(jnp.abs(maps.relief).max()) < 0.001  # Pores, not bumps.


def test_bake_repeats_for_a_look_and_differs_between_looks(head, look, maps):
    again = texture.bake(head, look, size=192)
    np.testing.assert_array_equal(again, maps.albedo)
    other = texture.bake(head, appearance.sample_look(jax.random.key(2)), size=192)
    assert float(jnp.abs(other - again).mean()) > 0.02


def test_texture_and_vertex_colors_agree(head, look):
    colors = np.asarray(texture.vertex_colors(head, look))
    assert colors.min() >= 0.0 and colors.max() <= 1.0
    image = np.asarray(texture.bake(head, look, size=512))
    flat = np.asarray(head.regions["face"])[np.asarray(head.faces)].all(axis=1)
    uv = np.asarray(head.uv)[np.asarray(head.uv_faces)[flat]].mean(axis=1)
    rows, columns = ((1 - uv[:, 1]) * 512).astype(int), (uv[:, 0] * 512).astype(int)
    corners = colors[np.asarray(head.faces)[flat]].mean(axis=1)
    difference = np.abs(image[rows, columns] - corners).mean(axis=1)
    # Freckles, brow hairs and stubble are finer than vertices; plain skin is not.
    assert np.median(difference) < 0.03


def test_parts_have_their_colours(head, look):
    colors = np.asarray(
        texture.vertex_colors(head, look.replace(melanin=jnp.array(0.2)))
    )
    regions = {name: np.asarray(mask) for name, mask in head.regions.items()}

    def mean(mask):
        return colors[mask].mean(axis=0)

    lips, face = mean(regions["lips"]), mean(regions["face"] & ~regions["lips"])
    assert lips[0] / lips[1] > 1.05 * face[0] / face[1]  # redder
    for name in ("tongue", "mouth_interior"):
        red, green, blue = mean(regions[name])
        assert red > 1.2 * green and red > 1.2 * blue
    for name in ("upper_teeth", "lower_teeth"):
        crown = np.sort(colors[regions[name]].mean(axis=1))[-10:]
        assert crown.mean() > 0.55
    anatomy = surface.anatomy(head)
    for eye, name in zip(anatomy.eyes, ("left_eyeball", "right_eyeball"), strict=True):
        ball = np.asarray(head.template)[regions[name]] - eye.centre
        angle = np.arccos(ball @ eye.gaze / np.linalg.norm(ball, axis=1))
        shade = colors[regions[name]].mean(axis=1)
        assert shade[angle < 0.08].mean() < 0.15  # pupil
        assert shade[angle > 0.8].mean() > 0.45  # white of the eye


def test_melanin_darkens_the_face(head, look):
    light, dark = (
        np.asarray(texture.vertex_colors(head, look.replace(melanin=jnp.array(m))))
        for m in (0.2, 1.8)
    )
    face = np.asarray(head.regions["face"])
    assert dark[face].mean() < 0.6 * light[face].mean()


def test_brows_lie_on_their_landmarks(head, look):
    hairy = look.replace(
        brow_density=jnp.array(1.0), eumelanin=jnp.array(3.5), melanin=jnp.array(0.1)
    )
    painted = surface.of_vertices(head)
    linear, _ = texture.paint(painted, surface.anatomy(head), hairy)
    marks = surface.anatomy(head).marks
    near = np.linalg.norm(painted.position - marks[19], axis=1) < 0.006
    brow = linear[near].mean(axis=1).min()
    forehead = linear[np.asarray(head.regions["forehead"])].mean(axis=1)
    assert brow < 0.5 * np.median(forehead)


@pytest.mark.parametrize("wavelength", [0.001, 0.02])
def test_noise_is_bounded_smooth_and_decorrelates(wavelength):
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (4000, 3))
    at = noise.value_noise(points, wavelength=wavelength, seed=3)
    near = noise.value_noise(points + 0.01 * wavelength, wavelength=wavelength, seed=3)
    far = noise.value_noise(points + 5.3 * wavelength, wavelength=wavelength, seed=3)
    assert np.abs(at).max() <= 1.0 and at.std() > 0.15
    assert np.abs(at - near).max() < 0.1
    assert abs(np.corrcoef(at, far)[0, 1]) < 0.1
