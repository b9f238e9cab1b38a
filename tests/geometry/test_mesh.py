"""Laws of triangle meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from geodiff_jax.geometry import mesh

laws = settings(max_examples=20, deadline=None)
face_normals = jax.jit(mesh.face_normals)
vertex_normals = jax.jit(mesh.vertex_normals)
triangle_frames = jax.jit(mesh.triangle_frames)
face_areas = jax.jit(mesh.face_areas)
interpolate = jax.jit(mesh.interpolate)

TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
TETRAHEDRON_FACES = jnp.asarray([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def soup(seed: int) -> tuple[jax.Array, jax.Array]:
    """Random triangles within a head's size, slivers among them."""
    rng = np.random.default_rng(seed)
    vertices = jnp.asarray(0.1 * rng.normal(size=(12, 3)))
    return vertices, jnp.asarray([rng.permutation(12)[:3] for _ in range(20)])


def random_motion(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(rng.uniform(-2, 2, 3))
    return turn.as_matrix(), rng.uniform(-2, 2, 3)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of size x size vertices in z = 0, faces towards +z."""
    y, x = np.mgrid[:size, :size]
    corner = (np.arange(size - 1)[:, None] * size + np.arange(size - 1)).ravel()
    lower = np.stack([corner, corner + 1, corner + size + 1], axis=1)
    upper = np.stack([corner, corner + size + 1, corner + size], axis=1)
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(size**2)], axis=1)
    return vertices.astype(np.float32), np.concatenate([lower, upper])


def test_counter_clockwise_faces_look_outwards():
    normals = face_normals(jnp.asarray(TETRAHEDRON), TETRAHEDRON_FACES)
    slanted = np.ones(3) / np.sqrt(3)
    expected = [[0, 0, -1], [0, -1, 0], [-1, 0, 0], slanted]
    np.testing.assert_allclose(normals, expected, atol=1e-6)
    areas = face_areas(jnp.asarray(TETRAHEDRON), TETRAHEDRON_FACES)
    np.testing.assert_allclose(areas, [0.5, 0.5, 0.5, np.sqrt(3) / 2], rtol=1e-6)


@laws
@given(seed=st.integers(0, 10_000))
def test_normals_turn_with_the_mesh_and_areas_stay(seed):
    # Double precision: a sliver magnifies round-off by its edge over its height.
    with jax.enable_x64(True):
        vertices, faces = soup(seed)
        rotation, translation = random_motion(seed)
        moved = vertices @ rotation.T + translation
        for normals in (face_normals, vertex_normals):
            expected = normals(vertices, faces) @ rotation.T
            np.testing.assert_allclose(normals(moved, faces), expected, atol=1e-7)
        before, after = face_areas(vertices, faces), face_areas(moved, faces)
        np.testing.assert_allclose(after, before, atol=1e-14)


def sphere(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread points (a Fibonacci lattice) and their hull, faces outwards."""
    z = 1 - (2 * np.arange(count) + 1) / count
    azimuth = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    radius = np.sqrt(1 - z**2)
    points = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)
    faces = ConvexHull(points).simplices
    inwards = np.linalg.det(points[faces]) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return points.astype(np.float32), faces


def test_vertex_normals_of_a_sphere_point_outwards():
    points, faces = sphere(500)
    normals = vertex_normals(jnp.asarray(points), jnp.asarray(faces))
    # A third of an edge (0.16): area weights are fair only where triangles are alike.
    np.testing.assert_allclose(normals, points, atol=0.05)


@laws
@given(seed=st.integers(0, 10_000))
def test_frames_are_rotations_that_carry_the_triangle(seed):
    with jax.enable_x64(True):
        vertices, faces = soup(seed)
        rotation, scale, origin = triangle_frames(vertices, faces)
        normals, areas = face_normals(vertices, faces), face_areas(vertices, faces)
    rotation = np.asarray(rotation)
    identity = np.swapaxes(rotation, 1, 2) @ rotation
    expected = np.broadcast_to(np.eye(3), (20, 3, 3))
    np.testing.assert_allclose(identity, expected, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-9)
    np.testing.assert_allclose(rotation[:, :, 1], normals, atol=1e-9)
    corners = np.asarray(vertices)[np.asarray(faces)]
    np.testing.assert_allclose(origin, corners.mean(axis=1), atol=1e-15)
    edge = corners[:, 1] - corners[:, 0]
    length = np.linalg.norm(edge, axis=-1)
    np.testing.assert_allclose(rotation[:, :, 0] * length[:, None], edge, atol=1e-12)
    height = 2 * np.asarray(areas) / length
    np.testing.assert_allclose(scale, (length + height) / 2, rtol=1e-9)


@laws
@given(seed=st.integers(0, 10_000))
def test_frames_move_with_the_mesh(seed):
    with jax.enable_x64(True):
        vertices, faces = soup(seed)
        motion, translation = random_motion(seed)
        moved = vertices @ motion.T + translation
        before, after = triangle_frames(vertices, faces), triangle_frames(moved, faces)
    np.testing.assert_allclose(after[0], motion @ np.asarray(before[0]), atol=1e-7)
    np.testing.assert_allclose(after[1], before[1], atol=1e-13)
    expected = np.asarray(before[2]) @ motion.T + translation
    np.testing.assert_allclose(after[2], expected, atol=1e-13)


DEGENERATE = {
    "point": np.zeros((3, 3)),
    "line": np.array([[0, 0, 0], [1, 0, 0], [2.0, 0, 0]]),
    "first edge": np.array([[0, 0, 0], [0, 0, 0], [1.0, 0, 0]]),
    "second edge": np.array([[0, 0, 0], [1, 0, 0], [1.0, 0, 0]]),
    "sliver": np.array([[0, 0, 0], [1, 0, 0], [0.5, 1e-14, 0]]),
}


@jax.jit
@jax.value_and_grad
def everything(vertices: jax.Array) -> jax.Array:
    faces = jnp.asarray([[0, 1, 2]])
    results = (
        *mesh.triangle_frames(vertices, faces),
        mesh.face_normals(vertices, faces),
        mesh.vertex_normals(vertices, faces),
        mesh.face_areas(vertices, faces),
    )
    return sum((jnp.sum(jnp.sin(result)) for result in results), jnp.zeros(()))


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_triangles_give_finite_values_and_gradients(name):
    vertices = jnp.asarray(DEGENERATE[name], jnp.float32)
    value, gradient = everything(vertices)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    rotation, _, _ = triangle_frames(vertices, jnp.asarray([[0, 1, 2]]))
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-5)


def test_gradients_agree_with_differences():
    with jax.enable_x64(True):
        vertices, faces = soup(1)

        def total(moved):
            moved = jnp.asarray(moved)
            frames = mesh.triangle_frames(moved, faces)
            normals = mesh.vertex_normals(moved, faces)
            return sum(jnp.sum(jnp.sin(x)) for x in (*frames, normals))

        arguments = (10 * vertices,)
        check_grads(jax.jit(total), arguments, order=1, modes=["rev"], rtol=1e-4)


@laws
@given(seed=st.integers(0, 10_000))
def test_interpolation_is_linear_and_meets_the_corners(seed):
    vertices, faces = soup(seed)
    rng = np.random.default_rng(seed)
    chosen = jnp.asarray(rng.integers(0, 20, 9))
    weights = jnp.asarray(rng.dirichlet(np.ones(3), 9), jnp.float32)
    slope = rng.normal(size=(3, 2))
    attributes = jnp.asarray(vertices @ slope, jnp.float32)
    places = interpolate(vertices, faces, chosen, weights)
    found = interpolate(attributes, faces, chosen, weights)
    np.testing.assert_allclose(found, places @ slope, atol=1e-5)
    corner = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 0.0]), (9, 3))
    expected = vertices[faces[chosen, 1]]
    np.testing.assert_array_equal(
        interpolate(vertices, faces, chosen, corner), expected
    )


def test_edges_are_listed_once():
    found = mesh.edges(np.asarray(TETRAHEDRON_FACES))
    np.testing.assert_array_equal(
        found, [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    )
    vertices, faces = grid(6)
    # Euler: vertices - edges + faces = 1 for a disc.
    assert len(vertices) - len(mesh.edges(faces)) + len(faces) == 1


def test_smoothing_keeps_constants_and_anchors():
    vertices, faces = grid(7)
    edge_list = jnp.asarray(mesh.edges(faces))
    constant = jnp.full((49, 2), 3.0)
    free = jnp.zeros(49)
    found = mesh.smooth(constant, edge_list, anchors=free, iterations=20)
    np.testing.assert_allclose(found, constant, rtol=1e-6)
    values = jnp.asarray(np.random.default_rng(0).normal(size=(49, 1)), jnp.float32)
    found = mesh.smooth(values, edge_list, anchors=jnp.ones(49), iterations=20)
    np.testing.assert_array_equal(found, values)


def test_smoothing_keeps_harmonic_fields():
    # On this grid each inner vertex is the mean of its six neighbours in x and in y.
    vertices, faces = grid(7)
    values = jnp.asarray(vertices @ np.array([[1.0], [2.0], [0.0]]), jnp.float32)
    x, y = vertices[:, 0], vertices[:, 1]
    border = jnp.asarray((x == 0) | (y == 0) | (x == 6) | (y == 6), jnp.float32)
    edge_list = jnp.asarray(mesh.edges(faces))
    found = mesh.smooth(values, edge_list, anchors=border, iterations=50)
    np.testing.assert_allclose(found, values, atol=1e-5)


def test_smoothing_fills_the_free_part_from_the_anchors():
    vertices, faces = grid(7)
    truth = jnp.asarray(vertices[:, :1], jnp.float32)
    x, y = vertices[:, 0], vertices[:, 1]
    border = jnp.asarray((x == 0) | (y == 0) | (x == 6) | (y == 6), jnp.float32)
    found = mesh.smooth(
        truth * border[:, None],
        jnp.asarray(mesh.edges(faces)),
        anchors=border,
        iterations=400,
    )
    np.testing.assert_allclose(found, truth, atol=1e-4)


@laws
@given(seed=st.integers(0, 10_000), count=st.sampled_from([1, 17, 256]))
def test_samples_share_faces_by_weight(seed, count):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 1, 20) * (rng.random(20) < 0.7)
    weights[rng.integers(20)] = 1.0
    face, barycentric = mesh.sample_surface(jax.random.key(seed), weights, count=count)
    shares = np.bincount(face, minlength=20)
    # One systematic draw: cumulative shares are right to within one.
    assert np.abs(shares - count * weights / weights.sum()).max() < 1 + 1e-6
    assert (shares[weights == 0] == 0).all()
    np.testing.assert_allclose(barycentric.sum(axis=1), 1.0, atol=1e-12)
    assert barycentric.min() >= 0


def test_samples_are_uniform_within_a_face():
    _, barycentric = mesh.sample_surface(jax.random.key(0), np.ones(1), count=4000)
    # The quarter next to each corner; chance would stray by 0.007.
    np.testing.assert_allclose((barycentric > 0.5).mean(axis=0), 0.25, atol=0.004)


@pytest.mark.parametrize("seed", range(8))
def test_samples_leave_no_gaps_within_a_face(seed):
    _, barycentric = mesh.sample_surface(jax.random.key(seed), np.ones(1), count=400)
    # An equilateral triangle of area 1, whose 400th is a square of side 0.05.
    side = 2 / 3**0.25
    corners = side * np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    everywhere = np.random.default_rng(0).dirichlet(np.ones(3), 5000) @ corners
    away = everywhere[:, None] - barycentric @ corners
    # By chance 0.075 to 0.13 in these eight.
    assert np.linalg.norm(away, axis=-1).min(axis=1).max() < 0.085


def test_nothing_can_be_sampled_from_nothing():
    with pytest.raises(ValueError, match="positive area"):
        mesh.sample_surface(jax.random.key(0), np.zeros(3), count=2)
