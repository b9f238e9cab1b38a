"""Mesh rasterization: exact coverage, perspective, and finite gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import test_util

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.render import ffi, mesh_rasterizer
from tests.render.backends import each_backend, each_kernel


def sphere(columns: int = 48, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere of latitude and longitude."""
    u = np.arange(columns) * 2 * np.pi / columns
    v = np.linspace(0.0, np.pi, rows)[:, None]
    xyz = np.stack([np.sin(v) * np.cos(u), np.cos(v) + 0 * u, np.sin(v) * np.sin(u)])
    i = np.arange((rows - 1) * columns)
    right = np.where(i % columns == columns - 1, i + 1 - columns, i + 1)
    below, corner = i + columns, right + columns
    faces = np.concatenate(
        [np.stack([i, below, right]), np.stack([right, below, corner])], 1
    )
    return xyz.reshape(3, -1).T.astype(np.float32), faces.T.astype(np.int32)


def pinhole(size: int = 64, focal: float = 80.0) -> cameras.Camera:
    return cameras.pinhole(focal=focal, width=size, height=size)


def draw(points, faces, backend, *, width=32, height=32):
    return _draw(
        jnp.asarray(points, jnp.float32),
        jnp.asarray(faces, jnp.int32),
        width=width,
        height=height,
        backend=backend,
    )


# Compiled once per shape: eager loops of the reference would compile at every call.
@functools.partial(jax.jit, static_argnames=("width", "height", "backend"))
def _draw(points, faces, *, width, height, backend):
    return mesh_rasterizer.rasterize_pixels(
        points, faces, width=width, height=height, backend=backend
    )


def crowd(backend):
    """5000 small faces that hide each other, over several bands of rows."""
    random = np.random.default_rng(0)
    centre = random.uniform(-5, 205, (5000, 1, 3))
    points = centre + random.uniform(-6, 6, (5000, 3, 3))
    points[..., 2] = 1 + random.random((5000, 3))
    faces = np.arange(15000).reshape(-1, 3)
    return draw(points.reshape(-1, 3), faces, backend, width=200, height=150)


@each_backend
def test_sphere_depth_is_the_rays_hit(backend):
    vertices, faces = sphere(160, 120)
    centre = np.float32([0.1, -0.05, 3.0])
    camera = pinhole()
    fragments = mesh_rasterizer.rasterize(
        jnp.asarray(vertices + centre), jnp.asarray(faces), camera, backend=backend
    )
    x, y = np.meshgrid(np.arange(64) + 0.5 - 32, np.arange(64) + 0.5 - 32)
    rays = np.stack([x / 80, y / 80, np.ones_like(x)], -1)
    a, b = (rays**2).sum(-1), rays @ centre
    discriminant = b * b - a * (centre @ centre - 1)
    # Inside the silhouette by more than the chords of the mesh cut off.
    hit = discriminant > 0.05 * a
    expected = (b - np.sqrt(np.where(hit, discriminant, 0))) / a
    assert (np.asarray(fragments.face)[hit] >= 0).all()
    assert (np.asarray(fragments.face)[discriminant < 0] == -1).all()
    # Facets of 160 x 120 lie up to 1 - cos(pi / 160) = 2e-4 below the sphere, along a
    # ray that meets them at worst at cos = 0.22.
    np.testing.assert_allclose(fragments.depth[hit], expected[hit], atol=2e-3)


@each_backend
def test_shared_edges_are_covered_exactly_once(backend):
    """A fan on the pixel grid: its edges pass through many pixel centres."""
    angles = [(8, 0), (8, 8), (0, 8), (-8, 8), (-8, 0), (-8, -8), (0, -8), (8, -8)]
    ring = np.float32([(16.5 + dx, 16.5 + dy, 1) for dx, dy in angles])
    points = np.concatenate([np.float32([[16.5, 16.5, 1]]), ring])
    faces = [(0, i + 1, (i + 1) % 8 + 1) for i in range(8)]
    counts = np.zeros((32, 32), int)
    for face in faces:
        for corners in (face, face[::-1]):
            counts += np.asarray(draw(points, [corners], backend).face) >= 0
    # Twice: each face was drawn from both sides. Top-left: the first row and column
    # of centres belong to the square, the last do not.
    expected = np.zeros((32, 32), int)
    expected[8:24, 8:24] = 2
    np.testing.assert_array_equal(counts, expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
@each_backend
def test_triangulated_square_has_no_hole_and_no_overlap(backend, seed):
    """Random inner points, among them slivers and points on pixel centres."""
    random = np.random.default_rng(seed)
    inner = random.uniform(4, 28, (2, 2)).astype(np.float32)
    inner = np.where(random.random((2, 2)) < 0.5, np.floor(inner) + 0.5, inner)
    (x, y), (u, v) = inner
    square = [(2, 2), (30, 2), (30, 30), (2, 30)]
    points = np.float32([(*p, 1) for p in [*square, (x, y)]])
    faces = np.array([(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)])
    counts = sum(
        (np.asarray(draw(points, faces[i : i + 1], backend).face) >= 0).astype(int)
        for i in range(4)
    )
    expected = np.zeros((32, 32), int)
    expected[2:30, 2:30] = 1
    np.testing.assert_array_equal(counts, expected)


@each_backend
def test_barycentrics_sum_to_one_and_interpolate_positions(backend):
    """Perspective-correct weights give back the ray that they were seen along."""
    vertices, faces = sphere()
    vertices = jnp.asarray(vertices + np.float32([0.2, 0.1, 2.5]))
    camera = pinhole()
    fragments = mesh_rasterizer.rasterize(
        vertices, jnp.asarray(faces), camera, backend=backend
    )
    seen = np.asarray(fragments.face) >= 0
    total = np.asarray(fragments.barycentric.sum(-1))
    np.testing.assert_allclose(total[seen], 1.0, atol=1e-6)
    assert (total[~seen] == 0).all() and np.isinf(fragments.depth[~seen]).all()
    positions = mesh_rasterizer.interpolate(fragments, jnp.asarray(faces), vertices)
    pixels, depth = camera.project(positions.reshape(-1, 3))
    pixels = np.asarray(pixels).reshape(64, 64, 2)[seen]
    rows, columns = np.nonzero(seen)
    # Clipping to the triangle moves a point by at most the rounding of vertices,
    # 1/512 pixel, more where the surface is seen edge on.
    error = np.abs(pixels - np.stack([columns, rows], -1) - 0.5).max(-1)
    assert error.max() < 0.02 and np.median(error) < 1e-4
    np.testing.assert_allclose(
        np.asarray(depth).reshape(64, 64)[seen], fragments.depth[seen], rtol=1e-5
    )


@each_backend
def test_weights_halve_at_the_middle_in_space_not_in_the_image(backend):
    vertices = jnp.asarray([[-1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [3.0, 0.0, 3.0]])
    camera = cameras.pinhole(focal=32.0, width=65, height=65)
    faces = jnp.asarray([[0, 1, 2]])
    fragments = mesh_rasterizer.rasterize(vertices, faces, camera, backend=backend)
    # Half way in space lies (1, 0, 2), seen at x = 32 * 0.5 + 32.5.
    column = int(32 * 0.5 + 32.5 - 0.5)
    np.testing.assert_allclose(
        fragments.barycentric[32, column], [0.25, 0.25, 0.5], atol=1e-5
    )
    np.testing.assert_allclose(fragments.depth[32, column], 2.0, rtol=1e-5)


@each_backend
def test_ties_go_to_the_lower_index(backend):
    points = [(0, 0, 1), (40, 0, 1), (0, 40, 1), (0, 0, 2), (40, 0, 2), (0, 40, 2)]
    faces = [(3, 4, 5), (0, 1, 2), (0, 1, 2)]
    face = np.asarray(draw(points, faces, backend).face)
    assert set(np.unique(face)) == {-1, 1}


@each_backend
def test_faces_at_and_behind_the_near_plane_are_dropped(backend):
    vertices = jnp.asarray([[-1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [0.0, 1.0, 0.005]])
    fragments = mesh_rasterizer.rasterize(
        vertices, jnp.asarray([[0, 1, 2]]), pinhole(), backend=backend
    )
    assert (np.asarray(fragments.face) == -1).all()


@each_backend
@pytest.mark.parametrize(
    ("axis", "bad"),
    [(axis, bad) for axis in range(3) for bad in (np.nan, np.inf, -np.inf, -1e30)]
    + [(0, 1e30), (1, 32769.0), (2, 0.0), (2, -1.0)],
)
def test_degenerate_vertices_draw_nothing_and_leave_the_rest(backend, axis, bad):
    points = np.float32([(1, 1, 1), (31, 1, 1), (1, 31, 1), (9, 9, 0.5)])
    faces = [(0, 1, 2), (0, 1, 3), (0, 0, 1), (1, 7, 2), (-1, 0, 1)]
    good = draw(points, faces[:1], backend)
    points[3, axis] = bad
    both = draw(points, faces, backend)
    np.testing.assert_array_equal(both.face, good.face)
    np.testing.assert_array_equal(both.depth, good.depth)


@each_backend
def test_empty_meshes_and_images(backend):
    empty = draw(np.zeros((0, 3)), np.zeros((0, 3)), backend, width=5, height=3)
    assert empty.face.shape == (3, 5) and (np.asarray(empty.face) == -1).all()
    assert draw(np.ones((3, 3)), [[0, 1, 2]], backend, width=0).face.shape == (32, 0)
    one = draw(
        [(0, 0, 1), (9, 0, 1), (0, 9, 1)], [[0, 1, 2]], backend, width=1, height=1
    )
    assert one.face.item() == 0


def test_huge_images_are_refused():
    with pytest.raises(ValueError, match="32768"):
        draw(np.ones((3, 3)), [[0, 1, 2]], "reference", width=40000)


@each_backend
def test_gradients_match_finite_differences(backend):
    """Depth in float64: away from silhouettes ids do not move under a small step."""
    with jax.enable_x64(True):
        vertices = jnp.asarray([[-3.0, -2.0, 2.0], [3.0, -2.5, 3.0], [0.2, 3.0, 4.0]])
        faces, camera = jnp.asarray([[0, 1, 2]]), pinhole(16, 20.0)
        weights = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)))

        def loss(vertices):
            fragments = mesh_rasterizer.rasterize(
                jnp.asarray(vertices), faces, camera, backend=backend
            )
            depth = jnp.where(fragments.face >= 0, fragments.depth, 0.0)
            return jnp.sum(weights * (depth + jnp.sin(fragments.barycentric[..., 0])))

        # Curvature of the loss times the step squared, and round-off over the step.
        test_util.check_grads(loss, (vertices,), 1, ("rev",), 1e-5, 1e-5, 1e-5)


@each_backend
def test_gradients_are_finite_at_degenerate_triangles(backend):
    points = jnp.asarray(
        [(1.0, 1.0, 1.0), (31.0, 1.0, 1.0), (31.0, 1.002, 2.0), (1.0, 31.0, 1.0)]
        + [(5.0, 5.0, 1.0), (5.0, 5.0, 1.0), (9.0, 9.0, -1.0), (jnp.nan, 0.0, 1.0)]
    )
    # The first one stands in for the background's.
    faces = jnp.asarray([(0, 1, 7), (0, 1, 2), (0, 1, 3), (4, 5, 0), (0, 1, 6)])

    def loss(points):
        fragments = mesh_rasterizer.rasterize_pixels(
            points, faces, width=32, height=32, backend=backend
        )
        depth = jnp.where(fragments.face >= 0, fragments.depth, 0.0)
        return jnp.sum(depth) + jnp.sum(fragments.barycentric**2)

    assert np.isfinite(jax.grad(loss)(points)).all()


@each_backend
def test_slivers_that_only_rounding_makes_visible_have_bounded_gradients(backend):
    """Collinear vertices: rounded to 1/256 pixel, some of them cover a pixel."""
    random = np.random.default_rng(0)
    along = random.uniform(0, 32, (2000, 3))
    slope = random.uniform(0.2, 1, (2000, 1))
    points = np.stack([along, slope * along, np.ones_like(along)], -1)
    points = jnp.asarray(points.reshape(-1, 3), jnp.float32)
    faces = jnp.arange(6000).reshape(-1, 3)

    def loss(points):
        fragments = mesh_rasterizer.rasterize_pixels(
            points, faces, width=32, height=32, backend=backend
        )
        return jnp.sum(fragments.barycentric**2), fragments.face

    gradient, face = jax.grad(loss, has_aux=True)(points)
    assert (np.asarray(face) >= 0).sum() > 5
    # The extent of a triangle over the least area that counts, 32 / 1e-4.
    assert np.abs(gradient).max() < 1e6


@each_backend
def test_vmap_equals_loop_and_jit_equals_eager(backend):
    # XLA contracts products otherwise in each program, which single precision shows.
    with jax.enable_x64(backend == "reference"):
        vertices, faces = sphere(16, 12)
        # A batch of one set of faces, and of two.
        faces = jnp.stack([jnp.asarray(faces), jnp.asarray(faces)[::-1]])
        batch = jnp.stack(
            [jnp.asarray(vertices) + jnp.asarray([x, 0.0, 3.0]) for x in (0, 1)]
        )

        def view(vertices, faces):
            camera = pinhole(40)
            return mesh_rasterizer.rasterize(vertices, faces, camera, backend=backend)

        compiled = jax.jit(view)
        for axis in (None, 0):
            each = [faces[0], faces[0] if axis is None else faces[1]]
            given = faces[0] if axis is None else faces
            loop = [compiled(v, f) for v, f in zip(batch, each, strict=True)]
            mapped = jax.jit(jax.vmap(view, (0, axis)))(batch, given)
            for i, alone in enumerate(loop):
                for name in ("face", "barycentric", "depth"):
                    found, expected = getattr(mapped, name)[i], getattr(alone, name)
                    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.asarray(loop[0].face >= 0).mean() > 0.05
    if backend == "cpu":  # Eager loops of the reference compile for long.
        np.testing.assert_array_equal(view(batch[0], faces[0]).face, loop[0].face)


@each_backend
def test_float32_stays_float32_beside_float64(backend):
    with jax.enable_x64(True):
        points = jnp.asarray([[1, 1, 1], [14, 2, 2], [3, 12, 1.5]], jnp.float32)

        def loss(points):
            return mesh_rasterizer.rasterize_pixels(
                points, jnp.asarray([[0, 1, 2]]), width=16, height=16, backend=backend
            ).barycentric.sum()

        value, gradient = jax.value_and_grad(loss)(points)
    assert value.dtype == gradient.dtype == jnp.float32
    assert value > 50 and np.isfinite(gradient).all()


@pytest.mark.parametrize("scene", ["here", "as far as points may lie", "flat"])
@each_kernel
def test_kernel_agrees_with_reference(backend, scene):
    random = np.random.default_rng(3)
    points = random.uniform(-20, 120, (120, 3)).astype(np.float32)
    if scene == "as far as points may lie":  # Edge values fill 49 bits.
        points[::2] = random.uniform(-32768, 32768, (60, 3))
    points[:, 2] = 2.0 if scene == "flat" else random.uniform(0.5, 3, 120)
    faces = random.integers(0, 120, (200, 3))
    kernel = draw(points, faces, backend, width=100, height=75)
    reference = draw(points, faces, "reference", width=100, height=75)
    different = np.asarray(kernel.face != reference.face)
    # Coverage is exact in both; depths are float32, so that only faces which cross
    # within round-off may be told apart differently.
    np.testing.assert_array_equal(kernel.face < 0, reference.face < 0)
    np.testing.assert_allclose(
        kernel.depth[different], reference.depth[different], rtol=1e-5
    )
    assert different.mean() < 1e-3
    same = ~different
    for name in ("barycentric", "depth"):
        found, expected = getattr(kernel, name)[same], getattr(reference, name)[same]
        np.testing.assert_allclose(found, expected, atol=1e-5)


# Right operands of the two kernels, before images of 8 x 8 pixels.
OPERANDS = {"rasterize": ((3, 3), (1, 3)), "interpolate": ((3, 3), (1, 3), (8, 8))}


def call_kernel(name, shapes, *, lead=(), width=8, dtypes=None):
    dtypes = dtypes or ("float32", "int32", "int32")
    results = [jax.ShapeDtypeStruct((*lead, 8, width), jnp.int32)]
    if name == "interpolate":
        results = [
            jax.ShapeDtypeStruct((*lead, 8, width, *inner), jnp.float32)
            for inner in ((3,), ())
        ]
    operands = [jnp.zeros(s, d) for s, d in zip(shapes, dtypes, strict=False)]
    return jax.block_until_ready(ffi.call(f"mesh_{name}", results, *operands))


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, i) for name in OPERANDS for i in range(len(OPERANDS[name]))],
)
def test_operands_of_another_shape_are_refused(kernels, name, place):
    """By the handlers themselves, whoever calls them."""
    assert ffi.available("cpu")
    call_kernel(name, OPERANDS[name])
    shapes = list(OPERANDS[name])
    for wrong in ((*shapes[place][:-1], 4), shapes[place][:-1], (1, *shapes[place])):
        shapes[place] = wrong
        with pytest.raises(jax.errors.JaxRuntimeError, match="mesh: expected points"):
            call_kernel(name, shapes)
    batched = [(1, *shape) for shape in OPERANDS[name]]
    call_kernel(name, batched, lead=(3,))
    batched[place] = (2, *OPERANDS[name][place])
    with pytest.raises(jax.errors.JaxRuntimeError, match="mesh: expected points"):
        call_kernel(name, batched, lead=(3,))


@pytest.mark.parametrize("name", OPERANDS)
def test_operands_of_another_type_are_refused(kernels, name):
    assert ffi.available("cpu")
    for dtypes in (("bfloat16", "int32", "int32"), ("float32", "uint32", "int32")):
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)bf16|u32"):
            call_kernel(name, OPERANDS[name], dtypes=dtypes)
