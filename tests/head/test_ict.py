"""The ICT-FaceKit head does what its files say, and turns where they only move."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.head import ict, ict_regions, ict_rig, landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer
from tests.head import ict_data

SIDES = ("left", "right")
PARTS = ("face", "scalp", "neck", "left_ear", "right_ear", "left_eyeball")
PARTS += ("right_eyeball", "mouth_interior", "upper_teeth", "lower_teeth", "tongue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return ict_data.unpack(tmp_path_factory.mktemp("ict"))


@pytest.fixture(scope="module")
def files():
    """What was read for `head`: the neutral mesh and the vertices of shapes."""
    return {}


@pytest.fixture(scope="module")
def head(folder, files) -> head_model.HeadModel:
    read, read_vertices = ict.obj.read, ict.obj.read_vertices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ict.obj, "read", lambda path: keep(files, path, read))
        patch.setattr(
            ict.obj, "read_vertices", lambda path: keep(files, path, read_vertices)
        )
        return ict.load(folder)


def keep(files, path, read):
    return files.setdefault(path.stem, read(path))


@pytest.fixture
def known_files(head, files, monkeypatch):
    """Reads nothing twice."""
    known = dict(files)
    read_vertices = ict.obj.read_vertices
    for name, read in (("read", ict.obj.read), ("read_vertices", read_vertices)):
        monkeypatch.setattr(
            ict.obj,
            name,
            lambda path, read=read: (
                known[path.stem] if path.stem in known else read(path)
            ),
        )
    return known


@pytest.fixture(scope="module")
def moved_files(files):
    """How far each file lies from the neutral one, metres."""
    neutral = files[ict_data.NEUTRAL].vertices
    shapes = {n: v for n, v in files.items() if n != ict_data.NEUTRAL}
    return {name: (v - neutral)[ict.KEPT] * 0.01 for name, v in shapes.items()}


@pytest.fixture(scope="module")
def posed(head):
    """Vertices of each expression and identity alone at full strength, of no
    parameters, and of an open jaw."""
    names = (*head.expression_names, *head.identity_names, "nothing", "jaw")
    rows = np.eye(len(names), dtype=np.float32)
    count = len(head.expression_names)
    params = head_model.neutral(head, batch=(len(names),)).replace(
        expression=jnp.asarray(rows[:, :count]),
        identity=jnp.asarray(rows[:, count:-2]),
        jaw=jnp.asarray(rows[:, -1:] * np.array([0.35, 0.0, 0.0], np.float32)),
    )
    vertices = np.asarray(jax.jit(head_model.head_vertices)(head, params))
    return dict(zip(names, vertices, strict=True))


def template(head):
    return np.asarray(head.template)


def points(head, marks, vertices):
    corners = vertices[np.asarray(head.faces)[np.asarray(marks.faces)]]
    return np.einsum("kcx,kc->kx", corners, np.asarray(marks.barycentrics))


def gazing_eyeball(head, name):
    """The eyeball that an expression turns, which its file leaves where it is."""
    if name not in ict_rig.GAZES:
        return np.zeros(head.num_vertices, bool)
    side = {"L": "left", "R": "right"}[name[-1]]
    return np.asarray(head.regions[f"{side}_eyeball"])


def test_each_shape_alone_is_its_file(head, posed, moved_files):
    for name in (*head.expression_names, *head.identity_names):
        error = posed[name] - template(head) - moved_files[name]
        error = np.linalg.norm(error, axis=1)[~gazing_eyeball(head, name)]
        assert error.max() < 1e-6, name  # float32.


def test_no_parameters_give_the_neutral_file(head, posed, files):
    np.testing.assert_allclose(posed["nothing"], template(head), atol=1e-7)
    neutral = files[ict_data.NEUTRAL].vertices[ict.KEPT] * 0.01
    shift = template(head) - neutral
    np.testing.assert_allclose(shift, shift[:1].repeat(len(shift), 0), atol=1e-6)


def test_names(head):
    assert head.identity_names == ict_data.IDENTITIES
    assert sorted(head.expression_names) == sorted(ict_data.EXPRESSIONS)
    assert head.version.startswith("ict-2-")


def test_eyes_lie_where_the_built_in_head_has_them(head):
    joints = np.asarray(head.joint_template)
    np.testing.assert_allclose(joints[3:].mean(0), [0.0, 0.0, 0.069], atol=1e-6)
    assert 0.055 < joints[3, 0] - joints[4, 0] < 0.07


def test_eyeballs_turn_rigidly_about_their_centres(head, posed):
    for name, (joint, degrees) in ict_rig.GAZES.items():
        ball = gazing_eyeball(head, name)
        centre = np.asarray(head.joint_template[joint])
        before, after = template(head)[ball] - centre, posed[name][ball] - centre
        np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-9)
        turn, shift = ict_rig.rigid_motion(before, after)
        np.testing.assert_allclose(np.degrees(turn.as_rotvec()), degrees, atol=1e-3)
        np.testing.assert_allclose(shift, 0.0, atol=1e-6)


def test_looking_left_moves_both_irises_to_the_left(head, posed):
    rest = points(head, head.irises, template(head))
    for name, eye, way in (
        ("eyeLookOut_L", 0, [1, 0]),
        ("eyeLookIn_R", 1, [1, 0]),
        ("eyeLookUp_L", 0, [0, 1]),
        ("eyeLookDown_R", 1, [0, -1]),
    ):
        moved = points(head, head.irises, posed[name]) - rest
        assert moved[eye, :2] @ np.array(way) > 0.005, name


def test_irises_are_in_front_of_their_eyes(head):
    irises = points(head, head.irises, template(head))
    offset = irises - np.asarray(head.joint_template)[3:]
    assert (offset[:, 2] > 0.99 * np.linalg.norm(offset, axis=1)).all()
    np.testing.assert_allclose(irises[0] * [-1, 1, 1], irises[1], atol=1e-5)


def test_eyeballs_are_about_spheres(head):
    for i, side in enumerate(SIDES):
        ball = template(head)[np.asarray(head.regions[f"{side}_eyeball"])]
        radii = np.linalg.norm(ball - np.asarray(head.joint_template[3 + i]), axis=1)
        assert radii.min() > 0.0143 and radii.max() < 0.0168  # The cornea stands out.


def test_the_open_jaw_turns_about_a_hinge_below_the_ears(head, posed):
    driver = np.asarray(head.joint_drivers)[head.expression_names.index("jawOpen"), 2]
    assert 20 < np.degrees(driver[0]) < 30
    np.testing.assert_allclose(driver[1:], 0.0, atol=1e-3)
    hinge = np.asarray(head.joint_template[2])
    ears = template(head)[np.asarray(head.regions["left_ear"])]
    assert abs(hinge[2] - ears[:, 2].max()) < 0.02
    assert ears[:, 1].min() - 0.02 < hinge[1] < ears[:, 1].max()


def test_lower_teeth_follow_the_jaw_and_upper_ones_stay(head, posed):
    upper, lower, tongue = (
        np.asarray(head.regions[name])
        for name in ("upper_teeth", "lower_teeth", "tongue")
    )
    moved = np.linalg.norm(posed["jawOpen"] - template(head), axis=1)
    assert moved[upper].max() < 1e-4
    assert moved[lower].min() > 0.015 and moved[tongue].min() > 0.005
    weights = np.asarray(head.skinning_weights)
    np.testing.assert_array_equal(weights[lower, 2], 1.0)
    np.testing.assert_array_equal(weights[upper, 2], 0.0)
    # What the turn leaves to the basis is a tenth of what it does.
    left_over = np.asarray(head.expression_basis)
    left_over = left_over[head.expression_names.index("jawOpen")]
    assert np.linalg.norm(left_over, axis=1)[lower].max() < 3e-4


def test_lips_part_by_the_jaw_alone(head, posed):
    rest = points(head, head.landmarks, template(head))[[62, 66]]
    inner = points(head, head.landmarks, posed["jaw"])[[62, 66]]
    assert np.linalg.norm(inner[0] - rest[0]) < 0.002
    assert inner[0, 1] - inner[1, 1] > 0.02


def test_sides(head, posed):
    """Expressions of one side move it, and are the mirror image of the other's."""
    x = template(head)[:, 0]
    for stem in ("eyeBlink", "mouthSmile"):
        for side, sign in (("L", 1.0), ("R", -1.0)):
            moved = posed[f"{stem}_{side}"] - template(head)
            strong = np.linalg.norm(moved, axis=1) > 2e-3
            assert (sign * x[strong]).mean() > 0.02, (stem, side)
    jaw = (posed["jawLeft"] - template(head))[np.asarray(head.regions["lower_teeth"])]
    assert jaw[:, 0].min() > 0.002
    for name in ("ear", "eyeball", "eye_region"):
        for side, sign in (("left", 1.0), ("right", -1.0)):
            assert (sign * x[np.asarray(head.regions[f"{side}_{name}"])]).min() > 0


def test_eyelids_are_the_blinks(head, posed):
    for i, side in enumerate("LR"):
        lid = template(head) + np.asarray(head.eyelid_basis[i])
        np.testing.assert_allclose(lid, posed[f"eyeBlink_{side}"], atol=1e-6)


def test_landmarks_are_mirror_images(head):
    marks = points(head, head.landmarks, template(head))
    mirrored = marks[landmarks.IBUG_MIRROR] * [-1, 1, 1]
    assert np.linalg.norm(mirrored - marks, axis=1).max() < 1e-5  # As the files are.
    assert marks[16, 0] > 0.05 and marks[45, 0] > marks[42, 0] > 0  # Left is x > 0.
    assert (np.diff(marks[[27, 30, 33, 51, 57, 8], 1]) < 0).all()


def test_marks_lie_on_the_skin_where_they_are_detected(folder, head):
    """As far from the files' marks, seen from the front, as the table says."""
    vertices = json.loads((folder / "vertex_indices.json").read_text())
    before = template(head)[vertices["idx_to_landmark_verts"]]
    moved = points(head, head.landmarks, template(head)) - before
    for mark in range(68):
        aside, up = ict_regions.DETECTED.get(mark, (0.0, 0.0))
        twin = landmarks.IBUG_MIRROR[mark]
        if twin in ict_regions.DETECTED and twin != mark:
            aside, up = ict_regions.DETECTED[twin] * np.array([-1.0, 1.0])
        np.testing.assert_allclose(1e3 * moved[mark, :2], (aside, up), atol=0.01)
    assert np.abs(moved[:, 2]).max() < 0.006  # From the bridge of the nose upwards.
    faces = np.asarray(head.faces)[np.asarray(head.landmarks.faces)]
    assert faces.max() < ict_rig.FACE.stop


def test_weights_are_shares(head):
    weights = np.asarray(head.skinning_weights)
    assert weights.min() >= 0 and weights.max() <= 1
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    boundary = np.asarray(head.regions["boundary"])
    assert weights[boundary, 0].mean() > 0.9
    scalp = np.asarray(head.regions["scalp"])
    assert weights[scalp, 1].mean() > 0.95


def test_joints_follow_heads_that_are_scaled_turned_and_moved(head):
    rest = template(head).astype(np.float64)
    joints = np.asarray(head.joint_template, np.float64)
    anchors = ict_rig._anchors(rest, joints)
    change = np.array([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.0], [0.0, 0.1, 1.3]])
    shift = np.array([0.1, -0.2, 0.3])
    moved = anchors @ (rest @ change.T + shift)
    np.testing.assert_allclose(moved, joints @ change.T + shift, atol=1e-12)
    assert np.abs(np.asarray(head.joint_identity_basis)).max() < 0.02


def test_regions(head):
    assert set(head.regions) == set(head_model.REGIONS)
    masks = {name: np.asarray(mask) for name, mask in head.regions.items()}
    assert all(mask.sum() >= 20 for mask in masks.values())
    parts = np.sum([masks[name] for name in PARTS], axis=0)
    np.testing.assert_array_equal(parts, 1)  # The head falls into these.
    for name in ("forehead", "nose", "lips", "left_eye_region", "right_eye_region"):
        assert not (masks[name] & ~masks["face"]).any(), name
    assert not (masks["boundary"] & ~masks["neck"]).any()


def test_regions_are_mirror_images(head):
    skin = template(head)[: ict_rig.BACK.stop]
    for name in ("face", "scalp", "neck", "lips", "nose", "forehead"):
        chosen = skin[np.asarray(head.regions[name])[: len(skin)]]
        aside = chosen[:, 0]
        assert abs((aside > 1e-4).sum() - (aside < -1e-4).sum()) <= 0.01 * len(aside)


def test_skin_faces_outwards(head):
    """By area: nostrils, lids and lips have many small faces that look inwards."""
    for names in (("face", "scalp"), ("left_eyeball",), ("right_eyeball",)):
        faces = np.asarray(head.faces)[head_model.face_region(head, *names)]
        first, second, third = (template(head)[faces[:, k]] for k in range(3))
        normals = np.cross(second - first, third - first)
        area = np.linalg.norm(normals, axis=1)
        away = first - template(head)[np.unique(faces)].mean(axis=0)
        outwards = (away * normals).sum(axis=1) > 0
        assert area[outwards].sum() > 0.9 * area.sum()


def test_every_vertex_is_used(head):
    faces = np.asarray(head.faces)
    assert set(np.unique(faces)) == set(range(head.num_vertices))
    assert set(np.unique(np.asarray(head.uv_faces))) == set(range(len(head.uv)))


def test_chart_covers_nothing_twice(head):
    """Areas that sum to what is covered leave nothing to cover twice."""
    uv, uv_faces, size = np.asarray(head.uv), np.asarray(head.uv_faces), 512
    assert uv.min() > 0 and uv.max() < 1
    pixels = np.concatenate([uv * size, np.ones((len(uv), 1), np.float32)], axis=1)
    fragments = mesh_rasterizer.rasterize_pixels(
        jnp.asarray(pixels), head.uv_faces, width=size, height=size
    )
    covered = (np.asarray(fragments.face) >= 0).mean()
    first, second, third = (uv[uv_faces[:, k]].astype(float) for k in range(3))
    one, two = second - first, third - first
    areas = 0.5 * np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0])
    # Texels at borders are in or out as a whole; the file's eyelids overlap a little.
    assert abs(areas.sum() - covered) < 2e-3


def test_each_point_of_the_chart_belongs_to_one_vertex(head):
    owner = np.full(len(head.uv), -1)
    owner[np.asarray(head.uv_faces)] = np.asarray(head.faces)
    np.testing.assert_array_equal(owner[np.asarray(head.uv_faces)], head.faces)


def test_version_tells_shapes_apart(folder, head, known_files):
    assert ict.load(folder).version == head.version
    known_files["identity000"] = known_files["identity000"] + 1e-6
    assert ict.load(folder).version != head.version


def test_hinge_and_turn_are_found_again():
    """A jaw that turns about a known hinge gives that hinge."""
    points = np.random.default_rng(0).normal(size=(50, 3))
    turn = ict_rig.transform.Rotation.from_rotvec([0.4, 0.0, 0.0])
    hinge = np.array([0.0, -0.04, 0.01])
    found, shift = ict_rig.rigid_motion(points, turn.apply(points - hinge) + hinge)
    np.testing.assert_allclose(found.as_rotvec(), [0.4, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(ict_rig._hinge(found, shift), hinge, atol=1e-12)


def test_sphere_centre():
    directions = np.random.default_rng(1).normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = 0.7 * directions + [1.0, 2.0, 3.0]
    np.testing.assert_allclose(ict_rig.sphere_centre(points), [1, 2, 3], atol=1e-12)


@pytest.fixture
def broken(folder, tmp_path) -> pathlib.Path:
    """A folder of links, to be damaged."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def replace(folder, name, text):
    (folder / name).unlink()
    (folder / name).write_text(text)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="FaceXModel folder at .*nowhere"):
        ict.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["generic_neutral_mesh.obj", "vertex_indices.json"])
def test_missing_file(broken, name):
    (broken / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file at .*{name}"):
        ict.load(broken)


def test_missing_expression(broken):
    (broken / "jawOpen.obj").unlink()
    with pytest.raises(FileNotFoundError, match="Expected jawOpen.obj in"):
        ict.load(broken)


def test_no_identities(broken):
    for name in ict_data.IDENTITIES:
        (broken / f"{name}.obj").unlink()
    with pytest.raises(FileNotFoundError, match="identity000.obj and so on"):
        ict.load(broken)


def test_neutral_of_another_head(broken):
    replace(broken, "generic_neutral_mesh.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(ValueError, match="26719 vertices .*generic.*, found 3"):
        ict.load(broken)


def test_neutral_without_chart(broken, known_files):
    bare = dataclasses.replace(
        known_files[ict_data.NEUTRAL], uv_faces=np.zeros((0, 3), int)
    )
    known_files[ict_data.NEUTRAL] = bare
    with pytest.raises(ValueError, match="faces with a chart in .*generic"):
        ict.load(broken)


def test_shape_of_another_head(broken, known_files):
    del known_files["identity000"]
    replace(broken, "identity000.obj", "v 0 0 0\n")
    with pytest.raises(ValueError, match="26719 vertices .*identity000.*, found 1"):
        ict.load(broken)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"expressions": []}, "names under 'expressions'"),
        ({"expressions": [1]}, "names under 'expressions'"),
        ({"expressions": ["jawOpen"]}, "eyeBlink_L, eyeBlink_R, jawLeft, jawRight"),
        ({"expressions": [*ict_data.EXPRESSIONS, "jawOpen"]}, "each name once"),
        ({"idx_to_landmark_verts": [1, 2]}, "68 vertices of the face"),
        ({"idx_to_landmark_verts": [20_000] * 68}, "68 vertices of the face"),
    ],
)
def test_damaged_index(broken, change, words):
    index = json.loads((broken / ict_data.INDEX).read_text())
    replace(broken, ict_data.INDEX, json.dumps(index | change))
    with pytest.raises(ValueError, match=words):
        ict.load(broken)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_index_of_something_else(broken, text):
    replace(broken, ict_data.INDEX, text)
    with pytest.raises(ValueError, match="vertex_indices.json"):
        ict.load(broken)
