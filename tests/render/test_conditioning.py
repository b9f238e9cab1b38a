"""Condition maps: closed forms on a sphere, invariances, and the contract's table."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.render import condition_maps as maps
from geodiff_jax.render import (
    conditioning,
    head_crop,
    splatted_features,
    uv,
)

draws = pytest.mark.usefixtures("kernels")
# Most of the time goes into compiling: ask for little optimisation.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
    },
)
RADIUS, DISTANCE = 0.1, 0.6


@functools.cache
def ball(columns: int = 40, rows: int = 24) -> head_model.HeadModel:
    """A head that is a sphere: the lower half is jaw, the lowest cap is neck."""
    # Columns run once round and close the chart's seam; poles are a ring of points.
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows))
    chart = np.float32(np.stack([u.ravel(), v.ravel()], -1))
    polar, around = np.pi * (1 - chart[:, 1]), 2 * np.pi * chart[:, 0]
    ring = np.sin(polar)
    unit = np.stack([-ring * np.sin(around), np.cos(polar), -ring * np.cos(around)], -1)
    corner = (np.arange(rows - 1)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    above = corner + columns + 1
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, above + 1], -1),
            np.stack([corner, above + 1, above], -1),
        ]
    )
    count = len(unit)
    weights = np.zeros((count, 5))
    weights[unit[:, 1] >= 0, 1] = 1.0
    weights[unit[:, 1] < 0, 2] = 1.0
    bumps = 0.01 * unit * (unit[:, 1:2] > 0.5)
    joints = np.zeros((5, 3))
    joints[2, 2] = -0.05
    marks = head_model.LandmarkEmbedding(
        faces=jnp.arange(400, 468), barycentrics=jnp.full((68, 3), 1.0 / 3.0)
    )
    masks = {name: np.zeros(count, bool) for name in head_model.REGIONS}
    masks["neck"] = unit[:, 1] < -0.8
    arrays = {
        "template": RADIUS * unit,
        "identity_basis": 0.1 * RADIUS * unit[None],
        "expression_basis": np.stack([bumps, -bumps]),
        "eyelid_basis": np.stack([bumps, bumps]),
        "joint_template": joints,
        "joint_identity_basis": np.zeros((1, 5, 3)),
        "joint_drivers": np.zeros((2, 5, 3)),
        "skinning_weights": weights,
        "uv": chart,
    }
    return head_model.HeadModel(
        **{name: jnp.asarray(np.float32(x)) for name, x in arrays.items()},
        faces=jnp.asarray(faces.astype(np.int32)),
        uv_faces=jnp.asarray(faces.astype(np.int32)),
        landmarks=marks,
        irises=marks,
        regions={name: jnp.asarray(mask) for name, mask in masks.items()},
        identity_names=("size",),
        expression_names=("swell", "shrink"),
        version="ball-1",
    )


@functools.cache
def lens(size: int = 64) -> cameras.Camera:
    """Looks at the ball along -z, as at a face; the ball has two thirds of it."""
    # Half a turn about x: the camera looks down the world's z, with y up.
    pose = np.float32([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, DISTANCE])
    intrinsics = np.float32([2 * size, 2 * size, size / 2, size / 2])
    return cameras.Camera(jaxlie.SE3(jnp.asarray(pose)), intrinsics, size, size)


def frame(**values) -> head_model.HeadParams:
    """One frame of the ball: at rest but for the values."""
    shapes = jax.eval_shape(head_model.neutral, ball())
    rest = {name: np.zeros(x.shape, np.float32) for name, x in vars(shapes).items()}
    given = {name: np.float32(value) for name, value in values.items()}
    return head_model.HeadParams(**{**rest, **given})


def stacked(*trees):
    """Frames, or cameras, along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


POSED = {"identity": [0.5], "rotation": [0.0, 0.3, 0.0]}
FACES = {
    "rest": {},
    "above": {},
    "swollen": {"expression": [1.0, 0.0]},
    "posed": POSED,
    "acting": {
        **POSED,
        "expression": [0.7, 0.0],
        "eyelids": [1.0, 1.0],
        "jaw": [0.3, 0.0, 0.0],
        "eyes": [[0.2, 0.0, 0.0], [0.0, 0.2, 0.0]],
    },
    "stranger": {**POSED, "identity": [-1.0]},
    "shifted": {"translation": [0.25, -0.125, 0.0]},
    "gone": {"translation": [0.0, 0.0, 5.0]},
}


@functools.cache
def hits(size: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, depth, hit) where the rays of `lens` meet the sphere, in closed form."""
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5 - size / 2) / (2 * size)])
    rays = np.stack([x, -y, -np.ones_like(x)], -1)
    a, b = (rays**2).sum(-1), rays[..., 2] * DISTANCE
    discriminant = b * b - a * (DISTANCE**2 - RADIUS**2)
    depth = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    # Inside the outline by more than what the facets cut off.
    points = rays * depth[..., None] + [0, 0, DISTANCE]
    return points, depth, discriminant > 0.1 * (a * RADIUS**2)


@dataclasses.dataclass
class Album:
    """All maps of all `FACES`, drawn by one program; `of` gives one face's."""

    cues: conditioning.Conditioning
    pose: conditioning.Conditioning
    cap4d: conditioning.Conditioning
    splatted: conditioning.Conditioning

    def of(self, kind: str, name: str, face: str) -> np.ndarray:
        """A map of a face, by the field that holds it."""
        return getattr(getattr(self, kind), name)[list(FACES).index(face)]


def field_of_one_feature(field):
    """Every Gaussian the same feature: what is drawn is that times the coverage."""
    row = np.linspace(-3.0, 3.0, 8, dtype=np.float32)
    return field.replace(features=np.broadcast_to(row, field.features.shape))


@functools.cache
def field() -> tuple[splatted_features.FeatureField, splatted_features.Texels]:
    chart = uv.rasterize_chart(ball().uv, ball().uv_faces, size=32)
    made = quick_jit(splatted_features.initial_field)(jax.random.key(0), ball(), chart)
    return made, splatted_features.covered_texels(chart)


@pytest.fixture(scope="module")
def album() -> Album:
    params = stacked(*(frame(**values) for values in FACES.values()))
    turn = functools.partial(cameras.orbit, yaw_radians=0.4, pitch_radians=0.9)
    turned = quick_jit(turn)(lens(), jnp.zeros(3))
    moved = np.asarray(lens().camera_from_world.parameters()) + np.float32(
        [0, 0, 0, 0, -0.25, -0.125, 0]  # Half a turn about x: y is down here.
    )
    poses = [lens().camera_from_world.parameters() for _ in FACES]
    poses[1], poses[6] = turned.camera_from_world.parameters(), moved
    view = conditioning.repeat_camera(lens(), len(FACES)).replace(
        camera_from_world=jaxlie.SE3(np.stack(poses))
    )

    @quick_jit
    def draw(model, params, view, reference, slots, field, texels):
        return Album(
            conditioning.visual_cues(model, params, view, size=64),
            conditioning.geodiff4d(model, params, view, size=16, supersampling=4),
            conditioning.cap4d(
                model, params, view, reference, reference_slots=slots, size=32
            ),
            conditioning.learn2control(field, texels, model, params, view, size=32),
        ).__dict__

    slots = np.arange(len(FACES)) == 0
    plain = field_of_one_feature(field()[0])
    found = draw(ball(), params, view, lens(), slots, plain, field()[1])
    return Album(**jax.device_get(found))


# Closed forms on a sphere.


@draws
def test_normals_of_a_sphere(album):
    points, _, hit = hits()
    normals = album.of("cues", "normals", "rest")
    # The camera looks along -z with y up, so its normals' axes are the world's. A
    # facet of 9 degrees, interpolated, is off by a share of a degree.
    np.testing.assert_allclose(normals[hit], points[hit] / RADIUS, atol=0.03)
    length = np.linalg.norm(normals, axis=-1)
    np.testing.assert_allclose(length[length > 0], 1.0, atol=1e-6)
    assert not length[0, 0]


@draws
def test_normals_are_the_viewers(album):
    """From anywhere the ball looks the same; poles are its coarsest places."""
    normals = album.of("cues", "normals", "above")
    points, _, hit = hits()
    np.testing.assert_allclose(normals[hit], points[hit] / RADIUS, atol=0.06)


@draws
def test_depth_of_a_sphere(album):
    _, depth, hit = hits()
    found = album.of("cues", "depth", "rest")[..., 0]
    # Facets lie up to 2 (1 - cos(4.5 degrees)) of the radius inside the sphere, both
    # ways counted, and rays meet them at cos = 0.3 at worst.
    np.testing.assert_allclose(found[hit], depth[hit], atol=2.1e-3)
    assert not found[0, 0]


@draws
def test_uv_coordinates_lead_to_the_points_seen(album):
    points, _, hit = hits()
    u, v = np.moveaxis(album.of("cues", "uv", "rest"), -1, 0)[:, hit]
    chart = uv.rasterize_chart(ball().uv, ball().uv_faces, size=256)
    surface = np.asarray(uv.position_map(chart, ball().faces, ball().template))
    found = surface[np.int32((1 - v) * 256), np.int32(u * 256)]
    # A texel is 2 pi 0.1 m / 256 = 2.5 mm wide.
    np.testing.assert_allclose(found, points[hit], atol=3e-3)


@draws
def test_position_code_of_a_sphere(album):
    code = album.of("cap4d", "position_code", "rest")
    points, _, hit = hits()
    template = np.asarray(ball().template, np.float64)
    centre = template.mean(axis=0)
    angles = ((points - centre) / (template - centre).max())[..., None] * 2.0 ** (
        np.arange(3)  # Facets blur the higher frequencies.
    )
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-2)
    means = waves.reshape(32, 2, 32, 2, 3, 2, 3).mean(axis=(1, 3))
    whole = hit.reshape(32, 2, 32, 2).all(axis=(1, 3))
    found = code.reshape(32, 32, 3, 2, 7)[..., :3]
    # 1 mm of the radius, as in depth, at frequency 4.
    np.testing.assert_allclose(found[whole], means[whole], atol=0.06)
    assert not code[0, 0].any(), "cosines of the background are masked too"


@draws
def test_expression_offset_of_a_swollen_ball(album):
    offset = album.of("cap4d", "expression_offset", "swollen")
    # 10 mm along the radius of the upper part, in units of 10.4 mm.
    largest = np.linalg.norm(offset, axis=-1).max()
    np.testing.assert_allclose(largest, 10 / 10.4, rtol=0.02)
    assert (offset[..., 1] >= 0).all() and not offset[20:].any()
    still = album.of("cap4d", "expression_offset", "rest")
    np.testing.assert_allclose(still, 0.0, atol=1e-5)


@draws
def test_a_surface_facing_the_camera_is_001():
    corners = jnp.asarray([[-1.0, -1, 2], [-1, 1, 2], [1, 1, 2], [1, -1, 2]])
    camera = cameras.pinhole(focal=8.0, width=16, height=16)

    @quick_jit
    def draw(faces):
        fragments = maps.rasterize(corners, faces, camera)
        return maps.normal_map(fragments, corners, faces, camera)

    towards = jnp.asarray([[0, 1, 2], [0, 2, 3]])
    normals = np.asarray(draw(towards))
    assert (normals[4:12, 4:12] == [0, 0, 1]).all()
    assert np.count_nonzero(normals) == 64
    assert not np.any(draw(towards[:, ::-1])), "back faces are culled"


@draws
def test_landmarks_peak_where_they_project(album):
    corners = np.asarray(ball().template)[ball().faces[ball().landmarks.faces]]
    x, y, z = corners.mean(axis=1).T
    columns, rows = (np.int32(32 + 128 * c / (DISTANCE - z)) for c in (x, -y))
    image = album.of("cues", "landmarks", "rest")[..., 0]
    # At most half a pixel off in x and y, with a deviation of 0.008 x 64 pixels.
    assert (image[rows, columns] > np.exp(-0.5 * 0.5 / 0.512**2) - 1e-5).all()
    assert image.max() <= 1.0 and image.mean() < 0.1


# Rays.


def test_rays_of_the_reference_are_its_own_grid():
    x, y = np.meshgrid(np.arange(8.0), np.arange(8.0))
    expected = np.stack([(x - 4) / 16, (y - 4) / 16, np.ones_like(x)], -1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    found = quick_jit(functools.partial(maps.ray_map, size=8))(lens(), lens())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_plucker_moments_do_not_know_the_origin():
    rotation = jaxlie.SO3(jnp.asarray([np.cos(0.2), 0.0, np.sin(0.2), 0.0]))
    pose = jaxlie.SE3.from_rotation_and_translation(
        rotation, jnp.asarray([0.1, 0.2, 0.3])
    )
    camera = lens().replace(camera_from_world=pose)

    @quick_jit
    def draw(camera, reference):
        rays = [maps.plucker_map(camera, c, size=8) for c in (reference, camera)]
        centre = reference.to_camera(camera.position[None])[0]
        # A point 2 m before the camera, through the middle of pixel (5, 2).
        point = camera.unproject(8.0 * jnp.asarray([[5.5, 2.5]]), 2.0 * jnp.ones(1))
        direction = rays[0][..., :3]
        slid = maps.plucker(centre + 3.0 * direction, 7.0 * direction)
        return *rays, slid, reference.to_camera(point)[0]

    rays, own, slid, point = (np.asarray(x) for x in draw(camera, lens()))
    direction, moment = rays[..., :3], rays[..., 3:]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.sum(direction * moment, -1), 0.0, atol=1e-6)
    np.testing.assert_allclose(slid, rays, atol=1e-6)
    np.testing.assert_allclose(own[..., 3:], 0.0, atol=1e-6)
    # A point lies on a ray where point x direction is the moment.
    miss = np.linalg.norm(np.cross(point, direction) - moment, axis=-1)
    assert miss[2, 5] < 2e-6 and np.partition(miss.ravel(), 1)[1] > 0.05


# What may and what may not change a map.


@draws
def test_head_pose_keeps_the_expression_out(album):
    posed, acting, stranger = (
        album.of("pose", "head_pose", face) for face in ("posed", "acting", "stranger")
    )
    assert posed.shape == (16, 16, 3) and posed.any()
    np.testing.assert_array_equal(acting, posed)
    assert (stranger != posed).any(), "identity is the reference's, and is drawn"
    normals = [album.of("cues", "normals", face) for face in ("posed", "acting")]
    assert (normals[0] != normals[1]).any()


def test_expression_offsets_know_neither_pose_nor_identity():
    acting = FACES["acting"]
    turned = {
        **acting,
        "rotation": [1.0, 1.0, 1.0],
        "translation": [1.0, 1.0, 1.0],
        "neck": [0.3, 0.3, 0.3],
    }
    still = {**turned, "expression": [0, 0], "eyelids": [0, 0], "jaw": [0, 0, 0]}
    still["eyes"] = np.zeros((2, 3))
    params = stacked(*(frame(**values) for values in (acting, turned, still)))
    draw = quick_jit(jax.vmap(lambda p: maps.expression_offsets(ball(), p)))
    offsets = np.asarray(draw(params))
    assert np.abs(offsets[0]).max() > 0.005
    np.testing.assert_allclose(offsets[1], offsets[0], atol=1e-7)
    np.testing.assert_allclose(offsets[2], 0.0, atol=1e-7)


@draws
def test_a_head_behind_the_camera_leaves_empty_maps(album):
    for kind, names in {
        "cues": ("normals", "depth", "landmarks", "uv"),
        "pose": ("head_pose",),
        "cap4d": ("position_code", "expression_offset"),
        "splatted": ("features",),
    }.items():
        for name in names:
            assert album.of(kind, name, "swollen").any(), name
            assert (album.of(kind, name, "gone") == 0.0).all(), name


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """(box, mask, pixels of the vertices) of a ball off the centre, and of one gone."""
    pose = lens().camera_from_world
    wide = cameras.Camera(pose, np.float32([300, 300, 200, 100]), 400, 200)

    @quick_jit
    @jax.vmap
    def crop(params):
        box = head_crop.head_box(ball(), params, wide, margin=0.3)
        camera = head_crop.crop_camera(wide, box, size=100)
        mask = head_crop.crop_mask(box, width=400, height=200, size=8)
        return box, mask, camera.project(head_model.vertices(ball(), params))[0]

    places = [[0.3, 0.0, 0.0], FACES["gone"]["translation"]]
    params = stacked(*(frame(translation=place) for place in places))
    return [np.asarray(x) for x in crop(params)]


def test_crop_holds_the_head_with_its_margin(crops):
    box, mask, pixels = (x[0] for x in crops)
    # Boxes are whole pixels of the photo, two of which are 2 % of this one.
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    np.testing.assert_allclose(max(high - low), 100 / 1.3, atol=2.0)
    np.testing.assert_allclose((low + high) / 2, 50.0, atol=2.0)
    outside = (box[2] - 400) / (box[2] - box[0])
    assert 0.1 < outside < 0.5 and box[1] > 0
    np.testing.assert_array_equal(mask[:, :, 0], mask[:1, :, 0].repeat(8, axis=0))
    np.testing.assert_allclose(1 - mask.mean(), outside, atol=0.5 / 8)


def test_a_head_behind_the_camera_has_no_crop(crops):
    box, mask, pixels = (x[1] for x in crops)
    assert not box.any() and not mask.any() and not np.isfinite(pixels).any()
    with pytest.raises(ValueError, match="Expected a box"):
        head_crop.crop_image(np.zeros((8, 8, 3), np.float32), box)
    with pytest.raises(ValueError, match="square image, got 400 x 200"):
        maps.ray_map(lens().replace(width=400, height=200), lens())


def test_the_lowest_neck_is_not_head():
    head = np.asarray(quick_jit(maps.head_vertices)(ball()))
    height = np.asarray(ball().template)[:, 1] / RADIUS
    assert head[height > -0.9].all() and not head[height < -0.95].any()


def test_reenactment_takes_the_identity_only():
    reference = frame(identity=[2.0], expression=[1.0, 1.0], rotation=[1.0, 0, 0])
    driver = stacked(*[frame(**FACES["acting"])] * 3)
    mixed = conditioning.reenact(reference, driver)
    np.testing.assert_array_equal(mixed.identity, np.full((3, 1), 2.0))
    for name in set(vars(driver)) - {"identity"}:
        assert getattr(mixed, name) is getattr(driver, name), name
    with pytest.raises(ValueError, match="Expected one reference frame"):
        conditioning.reenact(driver, driver)


# The contract's table: channels in order, what guidance drops, and what it keeps.
CONTRACT = {
    "geodiff4d": ({"head_pose": 3}, {"expression_tokens"}),
    "cap4d": (
        {
            "position_code": 42,
            "expression_offset": 3,
            "rays": 3,
            "reference_mask": 1,
            "crop_mask": 1,
        },
        {
            "position_code",
            "expression_offset",
            "rays",
            "reference_mask",
            "crop_mask",
            "reference_latents",
        },
    ),
    "geoface": ({"plucker": 6}, {"plucker", "reference_latents"}),
    "learn2control": ({"features": 8}, set()),
    "visual_cues": ({"landmarks": 1, "normals": 3, "depth": 1}, set()),
}


@pytest.mark.parametrize("paper", conditioning.LAYOUTS)
def test_channels_and_guidance_follow_the_contract(paper):
    channels, dropped = CONTRACT[paper]
    layout = conditioning.LAYOUTS[paper]
    shapes = {name: (2, 3, 4, 4, count) for name, count in channels.items()}
    shapes |= {
        "expression_tokens": (2, 3, 32, 16),
        "reference_latents": (2, 3, 4, 4, 4),
    }
    leaves = {
        name: jnp.full(shape, 1.0 + number)
        for number, (name, shape) in enumerate(shapes.items())
    }
    full = conditioning.Conditioning(**leaves, reference_slots=jnp.ones((2, 3), bool))
    found = conditioning.concatenate(full, layout)
    order = np.repeat(np.arange(len(channels)) + 1.0, list(channels.values()))
    np.testing.assert_array_equal(found[0, 0, 0, 0], order)
    without = conditioning.unconditional(full, layout)
    for name, value in vars(full).items():
        if value is not None:
            kept = value * (name not in dropped)
            np.testing.assert_array_equal(getattr(without, name), kept, err_msg=name)
    first = layout.maps[0]
    with pytest.raises(ValueError, match=f"got none for {first}"):
        conditioning.concatenate(full.replace(**{first: None}), layout)


@draws
def test_cap4d_frames_have_their_fifty_channels(album):
    layout = conditioning.LAYOUTS["cap4d"]
    found = np.asarray(conditioning.concatenate(album.cap4d, layout))
    assert found.shape == (len(FACES), 32, 32, 50) and np.isfinite(found).all()
    assert (found[0, ..., 48] == 1).all() and (found[1:, ..., 48] == 0).all()
    assert (found[..., 49] == 1).all()
    smaller = album.cap4d.replace(rays=album.cap4d.rays[:, :8])
    with pytest.raises(ValueError, match="maps of one size"):
        conditioning.concatenate(smaller, layout)


# Splatted features.


@draws
def test_features_cover_the_head_and_follow_it(album):
    rest = album.of("splatted", "features", "rest")
    hit = hits()[2].reshape(32, 2, 32, 2).all(axis=(1, 3))
    feature = np.tanh(np.linspace(-3.0, 3.0, 8))
    covered = rest[..., -1] / feature[-1]
    np.testing.assert_allclose(rest, covered[..., None] * feature, atol=1e-5)
    assert (covered[hit] > 0.5).all() and covered.max() <= 1.0
    assert not covered[0].any()
    # The shifts are sums of powers of two: round-off only.
    shifted = album.of("splatted", "features", "shifted")
    np.testing.assert_allclose(shifted, rest, atol=1e-4)


@draws
def test_gradients_reach_feature_opacity_and_scale():
    texels, chart = field()
    weights = np.random.default_rng(1).normal(size=(32, 32, 8)).astype(np.float32)

    @quick_jit
    @jax.value_and_grad
    def loss(texels):
        camera = lens().resize(width=32, height=32)
        found = splatted_features.feature_map(
            texels, chart, ball().template, ball().faces, camera
        )
        return jnp.sum(found * weights)

    _, gradient = loss(texels)
    for name, value in vars(gradient).items():
        assert np.isfinite(value).all() and np.any(value), name
    slope = sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(gradient))
    step = 1e-2 / slope
    up, down = (
        loss(jax.tree.map(lambda x, g, by=by: x + by * g, texels, gradient))[0]
        for by in (step, -step)
    )
    # Up the gradient by what should change the sum of some 2000 numbers by 0.02.
    np.testing.assert_allclose(up - down, 2 * step * slope, rtol=0.02)


@draws
def test_a_surface_is_all_that_a_field_is_drawn_with():
    """Oracle: the head itself. Off the chart are texels that nobody sees or moves."""
    made, texels = field()
    chart = uv.rasterize_chart(ball().uv, ball().uv_faces, size=32)
    # A hole in the chart, since the ball's covers all.
    hole = jnp.zeros((32, 32), bool).at[8:12, 3:9].set(True)
    chart = chart.replace(face=jnp.where(hole, -1, chart.face))
    texels = splatted_features.covered_texels(chart)
    turned = cameras.orbit(lens(), jnp.zeros(3), yaw_radians=0.4, pitch_radians=0.2)
    views = jax.tree.map(lambda *x: jnp.stack(x)[None], lens(), turned)
    # Rough, since the order of equal depths is rounding's.
    noise = jax.random.normal(jax.random.key(2), ball().template.shape)
    rough = ball().template + 0.005 * noise
    vertices = jnp.broadcast_to(rough, (1, 2, *rough.shape))
    weights = np.random.default_rng(1).normal(size=(1, 2, 64, 64, 8))

    @quick_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def by_head(made, *views):
        one = functools.partial(splatted_features.feature_map, made, texels)
        drawn = [one(rough, ball().faces, view) for view in views]
        drawn = jnp.stack(drawn)[None]
        return jnp.sum(drawn * np.float32(weights)), drawn

    @quick_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def by_surface(made):
        surface = splatted_features.surface_of(chart, ball().faces, vertices, views)
        drawn = splatted_features.feature_maps(made, surface)
        return jnp.sum(drawn * np.float32(weights)), drawn

    (_, wanted), wanted_slope = by_head(made, lens(), turned)
    (_, found), slope = by_surface(made)
    for name in ("features", "opacity_logits", "log_scales"):
        one, other = getattr(slope, name), getattr(wanted_slope, name)
        assert not np.any(one[hole]) and np.any(one), name
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_even_field_is_as_fine_as_the_heads_own():
    """Its spread is that of the built-in head, within the tolerance of what is ours."""
    head = procedural.load()
    chart = uv.rasterize_chart(head.uv, head.uv_faces, size=64)
    own = quick_jit(splatted_features.initial_field)(jax.random.key(0), head, chart)
    even = splatted_features.even_field(jax.random.key(0), size=64)
    np.testing.assert_array_equal(even.opacity_logits, own.opacity_logits)
    np.testing.assert_allclose(even.features, own.features, atol=1e-6)
    median = np.median(own.log_scales[np.asarray(chart.valid)])
    np.testing.assert_allclose(even.log_scales, median, atol=0.2)


def test_a_field_of_another_size_is_refused():
    texels, chart = field()
    with pytest.raises(ValueError, match="Expected a field of 16 x 16 texels"):
        splatted_features.feature_map(
            texels, chart.replace(size=16), ball().template, ball().faces, lens()
        )
    surface = splatted_features.Surface(jnp.zeros((16, 16, 3)), jnp.zeros(4), 8)
    with pytest.raises(ValueError, match="Expected a field of 16 x 16 texels"):
        splatted_features.feature_maps(texels, surface)


# The door.


def test_area_reduction_averages_blocks():
    image = jnp.arange(32.0).reshape(4, 4, 2)
    np.testing.assert_array_equal(maps.area_reduce(image, 4)[0, 0], [15.0, 16.0])
    with pytest.raises(ValueError, match="multiples of 3"):
        maps.area_reduce(image, 3)


BAD = {
    "at least one frame": lambda p, c: (jax.tree.map(lambda x: x[:0], p), c),
    "shape \\(1,\\)": lambda p, c: (jax.tree.map(lambda x: x[0], p), c),
    "infinity in jaw": lambda p, c: (p.replace(jaw=p.jaw * np.nan), c),
    "Expected expression of": lambda p, c: (p.replace(expression=p.jaw), c),
    "camera for each of 1": lambda p, c: (p, jax.tree.map(lambda x: x[[0, 0]], c)),
    "square image, got 9": lambda p, c: (p, c.replace(width=9)),
    "finite cameras": lambda p, c: (p, c.replace(intrinsics=c.intrinsics / 0.0)),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_cannot_be_drawn_is_refused(sentence):
    params, view = stacked(frame()), stacked(lens())
    conditioning.check(ball(), params, view)
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=sentence) as no:
        conditioning.check(ball(), *BAD[sentence](params, view))
    assert "\n" not in str(no.value)
