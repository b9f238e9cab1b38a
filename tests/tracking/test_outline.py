import numpy as np
import pytest

from geodiff_jax.tracking import outline

CENTRE, RADIUS = np.array([60.3, 55.7]), 30.0


def disc(radius=RADIUS, height=110, width=120):
    y, x = np.mgrid[0:height, 0:width] + 0.5
    distance = np.hypot(x - CENTRE[0], y - CENTRE[1])
    return np.clip(radius - distance + 0.5, 0.0, 1.0)


def rays():
    angles = np.linspace(-np.pi, np.pi, outline.NUM_RAYS, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def face_points():
    """iBUG 68 inside the disc, jaw on a half circle; only roughly a face."""
    points = np.tile(CENTRE, (68, 1))
    bow = np.linspace(np.pi, 0.0, 17)
    points[:17] += 22.0 * np.stack([np.cos(bow), np.sin(bow)], axis=1)
    points[27] += [0.0, -8.0]
    points[36] += [-10.0, -8.0]
    points[45] += [10.0, -8.0]
    return points


def test_rays_leave_a_disc_at_its_radius():
    exits, found = outline._exits(disc(), CENTRE, rays())
    assert found.all()
    np.testing.assert_allclose(exits, RADIUS, atol=0.15)  # Pixels are squares.


def test_rays_that_end_at_the_frame_see_nothing():
    full = np.ones((110, 120))
    assert not outline._exits(full, CENTRE, rays())[1].any()
    cut = disc(radius=58.0)  # Leaves the frame above and below only.
    found = outline._exits(cut, CENTRE, rays())[1]
    direction = rays()
    assert found[np.abs(direction[:, 0]) > 0.99].all()
    assert not found[np.abs(direction[:, 1]) > 0.99].any()


def test_rays_that_start_outside_see_nothing():
    assert not outline._exits(np.zeros((110, 120)), CENTRE, rays())[1].any()


def portrait():
    """Skin below, dark hair above, on blue."""
    skin, hair, sky = [0.8, 0.6, 0.5], [0.15, 0.1, 0.08], [0.3, 0.5, 0.9]
    y = np.mgrid[0:110, 0:120][0] + 0.5
    inner = np.where((y > CENTRE[1] - 12)[..., None], skin, hair)
    return np.where(disc()[..., None] > 0.5, inner, sky)


def head_of(count=400, radius=25.0):
    """Pixels of a round head: a disc of points."""
    generator = np.random.default_rng(0)
    angle = generator.uniform(0, 2 * np.pi, count)
    reach = radius * np.sqrt(generator.uniform(0, 1, count))
    ring = np.linspace(0, 2 * np.pi, 144)
    angle, reach = np.append(angle, ring), np.append(reach, np.full(144, radius))
    return CENTRE + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)


def matte_lines(pixels=None):
    pixels = head_of() if pixels is None else pixels
    everywhere = np.ones(len(pixels), bool)
    return outline._matte_lines(
        everywhere, ~everywhere, pixels, face_points(), disc(), portrait(), 20.0
    )


def test_matte_is_tight_at_skin_and_an_outer_bound_at_hair():
    lines = matte_lines()
    seen = lines.weights > 0
    upwards = lines.normals[:, 1] < -0.7
    sideways = (np.abs(lines.normals[:, 0]) > 0.9) & (lines.normals[:, 1] > 0)
    assert lines.outer_only[seen & upwards].all()
    assert not lines.outer_only[seen & sideways].any()
    middle = face_points()[17:].mean(axis=0)
    ends = middle + (lines.targets - lines.normals @ middle)[:, None] * lines.normals
    reach = np.linalg.norm(ends - CENTRE, axis=1)
    np.testing.assert_allclose(reach[seen], RADIUS, atol=0.2)


def test_fair_hair_is_no_bald_head():
    """A bright streak at the crown's edge does not make the matte tight there."""
    image = portrait()
    y = np.mgrid[0:110, 0:120][0] + 0.5
    streak = (y < CENTRE[1] - 22) & (disc() > 0.5)
    image[streak] = [0.8, 0.6, 0.5]
    pixels = head_of()
    everywhere = np.ones(len(pixels), bool)
    lines = outline._matte_lines(
        everywhere, ~everywhere, pixels, face_points(), disc(), image, 20.0
    )
    upwards = lines.normals[:, 1] < -0.9
    assert lines.outer_only[upwards].all()
    bald = outline._matte_lines(
        everywhere,
        ~everywhere,
        pixels,
        face_points(),
        disc(),
        np.where(disc()[..., None] > 0.5, [0.8, 0.6, 0.5], [0.3, 0.5, 0.9]),
        20.0,
    )
    assert not bald.outer_only[upwards].any()


def test_below_the_chin_the_outline_is_left_alone():
    lines = matte_lines()
    assert (lines.weights[lines.normals[:, 1] > 0.8] == 0).all()
    assert (lines.weights[np.abs(lines.normals[:, 1]) < 0.7] > 0).all()


def test_each_ray_takes_the_outermost_vertex_near_it():
    pixels = head_of()
    lines = matte_lines(pixels)
    reach = np.linalg.norm(pixels[lines.vertices] - CENTRE, axis=1)
    np.testing.assert_allclose(reach, 25.0, atol=0.2)


def test_jaw_lines_touch_head_and_landmarks():
    pixels = head_of(radius=22.0)
    lines = outline._jaw_lines(np.ones(len(pixels), bool), pixels, face_points())
    reached = np.sum(lines.normals * pixels[lines.vertices], axis=1)
    # Both are circles of one radius: 17 and 144 corners cut them short by < 1 %.
    np.testing.assert_allclose(reached, lines.targets, atol=0.2)
    assert (lines.normals[:, 1] > 0).all()


@pytest.mark.parametrize("roll", [0.5, -1.0])
def test_jaw_lines_roll_with_the_face(roll):
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    points, pixels = face_points(), head_of(radius=22.0)
    upright = outline._jaw_lines(np.ones(len(pixels), bool), pixels, points)
    rolled = outline._jaw_lines(
        np.ones(len(pixels), bool),
        (pixels - CENTRE) @ turn.T + CENTRE,
        (points - CENTRE) @ turn.T + CENTRE,
    )
    np.testing.assert_allclose(rolled.normals, upright.normals @ turn.T, atol=1e-9)
    np.testing.assert_array_equal(rolled.vertices, upright.vertices)
