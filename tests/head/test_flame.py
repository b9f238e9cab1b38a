"""FLAME's files become the head that their arithmetic means, and run nothing."""

import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import transform

from geodiff_jax.geometry import mesh
from geodiff_jax.head import flame, landmarks, mouth
from geodiff_jax.head import model as head_model
from geodiff_jax.render import mesh_rasterizer
from tests.head import flame_files

FLAME = slice(0, flame.NUM_VERTICES)


@pytest.fixture(scope="module")
def arrays():
    return flame_files.arrays()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("flame")
    flame_files.write(path, name="generic_model.pkl", content=arrays)
    return path


@pytest.fixture(scope="module")
def head(folder):
    return flame.load(folder)


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def by_hand(arrays, params):
    """Vertices as FLAME's paper has them (Eqs. 1 to 3), in numpy."""
    coefficients = np.concatenate([params.identity, params.expression])
    shaped = arrays["v_template"] + arrays["shapedirs"] @ coefficients
    joints = arrays["J_regressor"] @ shaped
    angles = np.stack([np.zeros(3), params.neck, params.jaw, *params.eyes])
    turns = transform.Rotation.from_rotvec(angles).as_matrix()
    shaped += arrays["posedirs"] @ (turns[1:] - np.eye(3)).ravel()
    pose = np.zeros((5, 4, 4))
    for j, parent in enumerate((-1, 0, 1, 1, 1)):
        own = np.eye(4)
        own[:3, :3] = turns[j]
        own[:3, 3] = joints[j] - turns[j] @ joints[j]
        pose[j] = own if parent < 0 else pose[parent] @ own
    blended = np.einsum("vj,jab->vab", arrays["weights"], pose)
    posed = np.einsum("vab,vb->va", blended[:, :3, :3], shaped) + blended[:, :3, 3]
    lids = [
        np.load(flame_files.shared_data(f"flame_topology/{s}_eyelid.npy")) for s in "lr"
    ]
    return posed + np.tensordot(params.eyelids, lids, 1)


def person(head, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {k: v.shape for k, v in vars(head_model.neutral(head)).items()}
    scales = {"identity": 1.0, "expression": 1.0, "eyelids": 0.5, "translation": 0.0}
    return head_model.HeadParams(
        **{
            name: jnp.asarray(
                scales.get(name, 0.3) * rng.normal(size=shape), jnp.float32
            )
            for name, shape in shapes.items()
        }
    )


@pytest.mark.parametrize("seed", range(3))
def test_posed_as_the_paper_says(head, arrays, seed):
    params = person(head, seed)
    found = head_model.head_vertices(head, params)
    np.testing.assert_allclose(found[FLAME], by_hand(arrays, params), atol=2e-6)


def test_the_neutral_head_is_the_template(head, arrays):
    found = head_model.vertices(head, head_model.neutral(head))
    np.testing.assert_allclose(found[FLAME], arrays["v_template"], atol=1e-7)
    np.testing.assert_array_equal(head.faces[: flame.NUM_FACES], arrays["f"])
    assert set(head.regions) == set(head_model.REGIONS)
    assert (head.version, head.eyelids_after_skinning) == ("flame2020", True)


def test_left_is_where_x_is_positive(head):
    for name, mask in head.regions.items():
        for side, sign in (("left", 1), ("right", -1)):
            if name.startswith(side):
                assert (sign * np.asarray(head.template)[mask, 0] > 0).mean() > 0.95, (
                    name
                )
    for lid, sign in zip(head.eyelid_basis, (1, -1), strict=True):
        moved = np.abs(lid).max(axis=1) > 1e-4
        assert (sign * head.template[moved, 0] > 0).all()
    irises = landmarks.iris_positions(head, head.template)
    assert irises[0, 0] > 0.02 and irises[1, 0] < -0.02
    marks = landmarks.positions(head, head.template)
    mirrored = marks[landmarks.IBUG_MIRROR] * jnp.array([-1.0, 1.0, 1.0])
    assert np.linalg.norm(marks - mirrored, axis=1).max() < 5e-3


def test_teeth_follow_the_skull_and_the_jaw(head):
    rest = head_model.neutral(head)
    talking = person(head).replace(eyelids=rest.eyelids)
    still = talking.replace(jaw=rest.jaw)
    upper, lower = (np.asarray(head.regions[f"{k}_teeth"]) for k in ("upper", "lower"))
    moved, before = (head_model.head_vertices(head, p) for p in (talking, still))
    np.testing.assert_allclose(moved[upper], before[upper], atol=1e-6)
    assert np.linalg.norm(moved[lower] - before[lower], axis=1).min() > 1e-3
    for teeth in (upper, lower):
        person_only = head_model.canonical(talking)
        own = head_model.head_vertices(head, person_only)[teeth]
        np.testing.assert_allclose(distances(moved[teeth]), distances(own), atol=1e-6)


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_the_mouth_moves_along_with_a_shift_of_the_head(head):
    """Its vertices are affine in the lips', wherever those are."""
    shifted = head.replace(
        identity_basis=jnp.ones_like(head.identity_basis[:1]) * 0.01,
        identity_names=("shift",),
    )
    bare = flame_part(shifted)
    charts = dict(upper_chart=flame.UPPER_CHART, lower_chart=flame.LOWER_CHART)
    again = mouth.attach(bare, **charts)
    np.testing.assert_allclose(again.identity_basis, 0.01, rtol=1e-5)


def flame_part(head):
    """The head without its mouth."""
    cut = {
        name: getattr(head, name)[..., FLAME, :]
        for name in ("template", "identity_basis", "expression_basis")
        + ("eyelid_basis", "pose_basis", "skinning_weights")
    }
    regions = {name: mask[FLAME] for name, mask in head.regions.items()}
    faces, uv_faces = (x[: flame.NUM_FACES] for x in (head.faces, head.uv_faces))
    return head.replace(
        faces=faces, uv_faces=uv_faces, uv=head.uv[:5118], regions=regions, **cut
    )


def test_the_bag_closes_the_mouth(head):
    """The skin ends at the neck alone, and neighbours agree on what is outside."""
    bag = np.asarray(head.regions["mouth_interior"])
    teeth = np.asarray(head.regions["upper_teeth"] | head.regions["lower_teeth"])
    faces = np.asarray(head.faces)
    skin = faces[~teeth[faces].any(axis=1)]
    (neck,) = mouth.open_loops(skin)
    assert (
        head.regions["boundary"][neck].all()
        and bag[flame.NUM_VERTICES :].sum() == 4 * 32 + 1
    )
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed)


def test_teeth_face_outwards_and_hide_behind_the_lips(head):
    normals = mesh.face_normals(head.template, head.faces)
    marks = landmarks.positions(head, head.template)
    for name, way in (("upper_teeth", 1), ("lower_teeth", -1)):
        own = np.asarray(head.regions[name])
        front = own[np.asarray(head.faces)].all(axis=1) & (
            np.asarray(normals)[:, 2] > 0.6
        )
        assert front.sum() > 10
        points = np.asarray(head.template)[own]
        assert points[:, 2].max() < marks[62, 2] - 2e-3
        assert way * (points[:, 1].mean() - marks[62, 1]) > 0


def test_new_parts_have_charts_of_their_own(head):
    size = 1024
    uv = np.asarray(head.uv)
    points = np.stack(
        [size * uv[:, 0], size * (1 - uv[:, 1]), np.ones(len(uv))], axis=1
    )
    covered = [
        np.asarray(
            mesh_rasterizer.rasterize_pixels(
                jnp.asarray(points, jnp.float32), part, width=size, height=size
            ).face
        )
        >= 0
        for part in (head.uv_faces[: flame.NUM_FACES], head.uv_faces[flame.NUM_FACES :])
    ]
    assert covered[1].sum() > 5000 and not (covered[0] & covered[1]).any()


def test_without_a_jaw_the_chin_carries_the_lower_teeth(copy, arrays):
    shutil.move(copy / "generic_model.pkl", copy / "flame2023_no_jaw.pkl")
    head = flame.load(copy)
    assert head.version == "flame2023_no_jaw"
    assert (len(head.identity_names), len(head.expression_names)) == (150, 65)
    blink = np.load(copy / "blink_blendshape.npy")
    np.testing.assert_allclose(head.expression_basis[-1, FLAME], blink, atol=1e-7)
    lower = np.asarray(head.regions["lower_teeth"])
    chin = landmarks.positions(head, head.expression_basis)[:, 7:10].mean(axis=1)
    moved = np.asarray(head.expression_basis)[:, lower]
    np.testing.assert_allclose(
        moved, np.broadcast_to(chin[:, None], moved.shape), atol=1e-7
    )


def test_other_names_need_a_version(copy):
    shutil.move(copy / "generic_model.pkl", copy / "mine.pkl")
    with pytest.raises(ValueError, match="say which of flame2020"):
        flame.load(copy / "mine.pkl")
    assert flame.load(copy / "mine.pkl", version="flame2023").version == "flame2023"
    with pytest.raises(ValueError, match="no generic_model.pkl"):
        flame.load(copy)
    shutil.copy(copy / "mine.pkl", copy / "flame2023.pkl")
    with pytest.raises(ValueError, match="got flame2023.pkl, which is flame2023"):
        flame.load(copy / "flame2023.pkl", version="flame2020")
    shutil.copy(copy / "mine.pkl", copy / "generic_model.pkl")
    with pytest.raises(ValueError, match="name one of them"):
        flame.load(copy)
    with pytest.raises(ValueError, match="got flame1"):
        flame.load(copy, version="flame1")


@pytest.mark.parametrize(
    "name",
    ["FLAME_masks.pkl", "head_template_mesh.obj", "landmark_embedding_with_eyes.npy"],
)
def test_missing_files_are_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        flame.load(copy)


def test_eyelids_are_optional(copy):
    (copy / "l_eyelid.npy").unlink()
    assert not np.asarray(flame.load(copy).eyelid_basis).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_template": np.zeros((5022, 3))}, r"\(5023, 3\).*\(5022, 3\)"),
        ({"weights": np.full((5023, 5), np.nan)}, "finite weights"),
        ({"weights": "text"}, "FLAME's weights.*no array"),
        ({"shapedirs": None}, "FLAME's shapedirs.*none among J_regressor"),
        ({"shapedirs": np.zeros((5023, 3, 300))}, "all its shapes"),
    ],
)
def test_other_models_are_refused(copy, arrays, change, message):
    small = {k: v for k, v in arrays.items() if k != "shapedirs"}
    content = {k: v for k, v in (small | change).items() if v is not None}
    flame_files.write_model(copy / "generic_model.pkl", content)
    with pytest.raises(ValueError, match=message):
        flame.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kintree_table": np.zeros((2, 5), int)}, "FLAME's joints"),
        ({"f": np.zeros((9976, 3), int)}, "another mesh"),
    ],
)
def test_other_skeletons_and_meshes_are_refused(copy, arrays, change, message):
    flame_files.write_model(copy / "generic_model.pkl", arrays | change)
    with pytest.raises(ValueError, match=message):
        flame.load(copy)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("name", ["generic_model.pkl", "FLAME_masks.pkl"])
def test_a_malicious_pickle_does_nothing(copy, name, capsys):
    (copy / name).write_bytes(pickle.dumps({"v_template": Malicious()}))
    with pytest.raises(ValueError, match="print"):
        flame.load(copy)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"face": np.array([9999])}, "FLAME's vertices in face"),
        ({}, "masks face"),
        ([], "masks"),
    ],
)
def test_masks_of_something_else_are_refused(copy, content, message):
    (copy / "FLAME_masks.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        flame.load(copy)
