"""The procedural head is a proper mesh, a person, and moves like one."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.head import landmarks, procedural
from geodiff_jax.head import model as head_model
from geodiff_jax.head.procedural_anatomy import SKIN_ISLAND

SKIN = ("face", "neck", "scalp", "lips")


@pytest.fixture(scope="module")
def model() -> head_model.HeadModel:
    return procedural.load()


@pytest.fixture(scope="module")
def pose(model):
    """Posed vertices, in the head frame, for expressions by name and an identity."""
    vertices = jax.jit(lambda params: head_model.head_vertices(model, params))

    def posed(*, identity=None, **strengths):
        params = head_model.neutral(model)
        expression = np.zeros(len(model.expression_names), np.float32)
        for name, strength in strengths.items():
            expression[model.expression_names.index(name)] = strength
        params = params.replace(expression=jnp.asarray(expression))
        if identity is not None:
            params = params.replace(identity=jnp.asarray(identity, jnp.float32))
        return np.asarray(vertices(params))

    return posed


def normals(model, vertices):
    corners = vertices[np.asarray(model.faces)]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def flipped(model, vertices):
    """Faces that point away from where they point at rest."""
    rest = normals(model, np.asarray(model.template))
    return (rest * normals(model, vertices)).sum(axis=1) <= 0


def test_builds_in_time(model):
    procedural.load.cache_clear()
    start = time.process_time()
    procedural.load()
    # Under 2 s of one core by itself; run-time shape checks and neighbours add.
    assert time.process_time() - start < 6.0


def test_size_and_names(model):
    assert 4_000 <= model.num_vertices <= 12_000
    for names, basis in (
        (model.identity_names, model.identity_basis),
        (model.expression_names, model.expression_basis),
    ):
        assert len(names) >= 40
        assert len(set(names)) == len(names) == len(basis)


def test_every_direction_does_something(model):
    assert (np.abs(model.identity_basis).max(axis=(1, 2)) > 3e-4).all()
    moves = np.abs(model.expression_basis).max(axis=(1, 2)) > 3e-4
    turns = np.abs(model.joint_drivers).max(axis=(1, 2)) > 0.05
    assert (moves | turns).all()


def test_edges_are_shared_by_at_most_two_faces_that_agree(model):
    faces = np.asarray(model.faces)
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, counts = np.unique(directed, axis=0, return_counts=True)
    assert (counts == 1).all()


def test_surface_is_open_only_where_nobody_sees(model):
    """At the neck's lower ring, behind the lids, and where loose parts end."""
    faces = np.asarray(model.faces)
    edges, counts = np.unique(
        np.sort(_edges(faces), axis=1), axis=0, return_counts=True
    )
    border = np.zeros(model.num_vertices, bool)
    border[edges[counts == 1]] = True
    joints = np.asarray(model.joint_template)[3:]
    template = np.asarray(model.template)
    from_eyes = np.linalg.norm(template[:, None] - joints, axis=-1).min(axis=1)
    allowed = from_eyes < 0.0118  # Inside the eyeballs, whose radius is 12 mm.
    loose = ("left_ear", "right_ear", "left_eyeball", "right_eyeball")
    loose = (*loose, "upper_teeth", "lower_teeth", "tongue")
    for name in ("boundary", "mouth_interior", *loose):
        allowed |= np.asarray(model.regions[name])
    assert not (border & ~allowed).any()


def _edges(faces):
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def test_faces_point_outwards(model):
    template = np.asarray(model.template)
    for names in (SKIN, ("left_eyeball",), ("right_eyeball",)):
        inside = head_model.face_region(model, *names)
        faces = np.asarray(model.faces)[inside]
        centre = template[np.unique(faces)].mean(axis=0)
        away = template[faces].mean(axis=1) - centre
        outwards = (away * normals(model, template)[inside]).sum(axis=1) > 0
        assert outwards.mean() > 0.9


def test_no_face_is_degenerate(model):
    areas = 0.5 * np.linalg.norm(normals(model, np.asarray(model.template)), axis=1)
    assert areas.min() > 1e-10  # 1e-4 square millimetres.


def test_chart_has_no_overlap(model):
    corners = np.asarray(model.uv, np.float64)[np.asarray(model.uv_faces)]
    assert corners.min() >= 0 and corners.max() <= 1
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = 0.5 * (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0])
    assert (areas > 0).all()
    # Areas that sum to what is covered leave nothing to cover twice.
    size = 1024
    covered = np.zeros((size, size), np.int32)
    for triangle in corners * size:
        _add_pixel_centres(covered, triangle)
    assert covered.max() == 1
    assert abs(areas.sum() - covered.mean()) < 2e-3


def _add_pixel_centres(covered, triangle):
    """Counts the pixel centres strictly inside a counter-clockwise triangle."""
    low = np.maximum(np.floor(triangle.min(axis=0)).astype(int), 0)
    high = np.ceil(triangle.max(axis=0)).astype(int)
    x, y = np.meshgrid(
        np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5
    )
    inside = np.ones(x.shape, bool)
    for k in range(3):
        start, end = triangle[k], triangle[(k + 1) % 3]
        side = (end[0] - start[0]) * (y - start[1]) - (end[1] - start[1]) * (
            x - start[0]
        )
        inside &= side > 1e-6
    covered[low[1] : high[1], low[0] : high[0]][inside[: covered.shape[0]]] += 1


def test_islands_keep_their_distance(model):
    faces = np.asarray(model.uv_faces)
    label = np.arange(len(model.uv))
    for _ in range(200):  # Connected components by spreading the lowest label.
        lowest = label[faces].min(axis=1)
        spread = label.copy()
        for corner in range(3):
            np.minimum.at(spread, faces[:, corner], lowest)
        if (spread == label).all():
            break
        label = spread
    islands = [np.asarray(model.uv)[label == i] for i in np.unique(label[faces])]
    assert len(islands) == 9
    boxes = [(i.min(axis=0), i.max(axis=0)) for i in islands]
    for a in range(len(boxes)):
        for b in range(a):
            apart = np.maximum(boxes[a][0] - boxes[b][1], boxes[b][0] - boxes[a][1])
            assert apart.max() * 1024 >= 4


def test_face_takes_most_of_the_chart(model):
    face = np.unique(np.asarray(model.uv_faces)[head_model.face_region(model, "face")])
    u = np.asarray(model.uv)[face, 0]
    assert np.ptp(u) > 0.6 * (SKIN_ISLAND[2] - SKIN_ISLAND[0])


def test_every_region_is_there(model):
    assert set(model.regions) == set(head_model.REGIONS)
    assert all(np.asarray(mask).any() for mask in model.regions.values())


def test_skinning_weights_sum_to_one(model):
    weights = np.asarray(model.skinning_weights)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)  # Round-off.


def mirror(model):
    """The vertex across the midline, of each vertex."""
    points = np.round(np.asarray(model.template) * 1e7).astype(int)
    place = {tuple(point): i for i, point in enumerate(points)}
    return np.array([place[(-x, y, z)] for x, y, z in points])


def test_head_is_mirror_symmetric(model):
    across = mirror(model)
    flip = np.array([-1.0, 1.0, 1.0])
    basis = np.asarray(model.expression_basis)
    names = model.expression_names
    for i, name in enumerate(names):
        twin = (
            name[:-1] + {"L": "R", "R": "L"}[name[-1]]
            if name[-2:] in ("_L", "_R")
            else name
        )
        twin = {"jawLeft": "jawRight", "jawRight": "jawLeft"}.get(twin, twin)
        twin = {"mouthLeft": "mouthRight", "mouthRight": "mouthLeft"}.get(twin, twin)
        other = basis[names.index(twin)][across] * flip
        np.testing.assert_allclose(basis[i], other, atol=1e-7, err_msg=name)
    for name, moves in zip(
        model.identity_names, np.asarray(model.identity_basis), strict=True
    ):
        if not name.endswith("asymmetry"):
            other = np.asarray(moves)[across] * flip
            np.testing.assert_allclose(moves, other, atol=1e-7, err_msg=name)
    weights = np.asarray(model.skinning_weights)
    np.testing.assert_allclose(weights[across][:, [0, 1, 2, 4, 3]], weights, atol=1e-6)
    marks = np.asarray(landmarks.positions(model, model.template))
    # The two sides may pick different faces beside the point: less than 0.1 mm.
    np.testing.assert_allclose(marks[landmarks.IBUG_MIRROR] * flip, marks, atol=1e-4)


def test_proportions_are_human(model):
    """Means of both sexes, within two standard deviations (NIOSH 2003)."""
    points = np.asarray(landmarks.positions(model, model.template)) * 1e3
    irises = np.asarray(landmarks.iris_positions(model, model.template)) * 1e3
    template = np.asarray(model.template) * 1e3
    skull = template[
        ~np.asarray(model.regions["left_ear"] | model.regions["right_ear"])
    ]
    skull = skull[skull[:, 1] > -20]
    expected = {
        "pupils": (irises[0, 0] - irises[1, 0], 63.2, 7.0),
        "mouth": (points[54, 0] - points[48, 0], 49.5, 8.0),
        "breadth": (np.ptp(skull[:, 0]), 150.0, 12.0),
        "length": (np.ptp(skull[skull[:, 1] > 15][:, 2]), 192.0, 14.0),
        "eye to vertex": (template[:, 1].max() - irises[0, 1], 115.0, 8.0),
        "eye to chin": (irises[0, 1] - points[8, 1], 112.0, 12.0),
    }
    for name, (found, mean, two_deviations) in expected.items():
        assert abs(found - mean) < two_deviations, f"{name}: {found}"


def test_random_people_have_no_folds(model, pose):
    skin = head_model.face_region(model, *SKIN)
    shares = []
    for seed in range(24):
        identity = procedural.sample_identity(jax.random.key(seed), model)
        shares.append(flipped(model, pose(identity=identity))[skin].mean())
    assert np.mean(shares) < 3e-4 and np.max(shares) < 3e-3


def test_no_single_expression_folds_the_skin(model, pose):
    skin = head_model.face_region(model, *SKIN)
    for name in model.expression_names:
        assert flipped(model, pose(**{name: 1.0}))[skin].sum() == 0, name


@pytest.mark.parametrize("side", ["L", "R"])
def test_lids_close_and_never_sink_into_the_eyeball(model, pose, side):
    centre = np.asarray(model.joint_template)[3 if side == "L" else 4]
    region = {"L": "left_eye_region", "R": "right_eye_region"}[side]
    lids = np.asarray(model.regions[region])
    front = lids & (np.asarray(model.template)[:, 2] > centre[2] + 0.004)
    marks = range(42, 48) if side == "L" else range(36, 42)
    gaps = []
    for level in np.linspace(0.0, 1.0, 6):
        posed = pose(**{f"eyeBlink_{side}": level})
        points = np.asarray(landmarks.positions(model, jnp.asarray(posed)))[list(marks)]
        gaps.append(points[1:3, 1].mean() - points[4:, 1].mean())
        # The cornea reaches 12.45 mm.
        outer = np.linalg.norm((posed - centre)[front & _outer_skin(model)], axis=1)
        assert outer.min() > 0.01255, level
    assert (np.diff(gaps) < 0).all()
    assert gaps[-1] < 5e-4 < gaps[0]


def _outer_skin(model):
    """Skin that is at least the lids' thickness away from both eyeballs' centres."""
    template, joints = np.asarray(model.template), np.asarray(model.joint_template)
    distance = np.linalg.norm(template[:, None] - joints[3:], axis=-1).min(axis=1)
    return distance > 0.0131


def test_eyelids_are_the_blinks(model):
    names = model.expression_names
    blinks = [names.index("eyeBlink_L"), names.index("eyeBlink_R")]
    np.testing.assert_array_equal(
        model.eyelid_basis, np.asarray(model.expression_basis)[blinks]
    )


def test_lower_teeth_follow_the_jaw_and_upper_the_skull(model, pose):
    moved = pose(jawOpen=1.0) - np.asarray(model.template)
    upper, lower = (np.asarray(model.regions[f"{k}_teeth"]) for k in ("upper", "lower"))
    np.testing.assert_allclose(moved[upper], 0.0, atol=1e-6)
    assert (moved[lower][:, 1] < -0.01).all()
    marks = np.asarray(landmarks.positions(model, jnp.asarray(moved)))
    opening = marks[62, 1] - marks[66, 1]
    assert 0.02 < opening < 0.045  # Wide open: two to three fingers.


def test_gaze_turns_eyeballs_about_their_centres(model, pose):
    ball = np.asarray(model.regions["left_eyeball"])
    centre = np.asarray(model.joint_template)[3]
    rest = np.linalg.norm(np.asarray(model.template)[ball] - centre, axis=1)
    for name in ("eyeLookUp_L", "eyeLookDown_L", "eyeLookIn_L", "eyeLookOut_L"):
        posed = pose(**{name: 1.0})
        found = np.linalg.norm(posed[ball] - centre, axis=1)
        np.testing.assert_allclose(found, rest, atol=1e-6)
        iris = (
            np.asarray(landmarks.iris_positions(model, jnp.asarray(posed)))[0] - centre
        )
        way = {"Up": iris[1], "Down": -iris[1], "In": -iris[0], "Out": iris[0]}
        assert way[name[7:-2]] > 0.003, name


def test_smile_raises_and_widens_the_corners(model, pose):
    smile = pose(mouthSmile_L=1.0, mouthSmile_R=1.0) - np.asarray(model.template)
    corner = np.asarray(landmarks.positions(model, jnp.asarray(smile)))[54]
    assert corner[0] > 0.003 and corner[1] > 0.004 and corner[2] < -0.001


def test_eyeballs_follow_identity(model, pose):
    """Whatever moves an eye's joint moves its eyeball as one piece."""
    ball = np.asarray(model.regions["left_eyeball"])
    moved = np.asarray(model.identity_basis)[:, ball]
    joints = np.asarray(model.joint_identity_basis)[:, 3]
    np.testing.assert_allclose(
        moved, np.broadcast_to(joints[:, None], moved.shape), atol=1e-7
    )


def test_samples_are_plausible(model):
    draw = jax.jit(jax.vmap(lambda k: procedural.sample_identity(k, model)))
    people = draw(jax.random.split(jax.random.key(0), 500))
    assert np.abs(people).max() <= 2.5
    assert abs(float(people.std()) - 1.0) < 0.05
    draw = jax.jit(jax.vmap(lambda k: procedural.sample_expression(k, model)))
    faces = draw(jax.random.split(jax.random.key(1), 500))
    assert faces.min() >= 0 and faces.max() <= 1
    assert 2.0 < float((faces > 0).sum(axis=1).mean()) < 8.0
