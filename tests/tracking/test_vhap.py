"""VHAP's folders become tracks, tracks become such folders, and FLAME stays itself."""

import contextlib
import json
import shutil

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head import track as head_track
from geodiff_jax.tracking import vhap
from tests.head import random_head
from tests.io import damage
from tests.tracking import flame_like

FRAMES, VIEWS, TEETH = 4, 3, 5
SIZE = (640, 480)
PLAIN = {"camera_angle_x": 2 * np.arctan(320 / 900), "w": 640, "h": 480}


@pytest.fixture(scope="module")
def model():
    return flame_like.load("flame2023")


def recorded(frames=FRAMES, seed=0):
    """Parameters of some frames, as VHAP's result holds them; zeros beyond our head."""
    random = np.random.default_rng(seed)

    def padded(values, width):
        return np.pad(values, (*[(0, 0)] * (values.ndim - 1), (0, width)))

    points = random_head.NUM_VERTICES + TEETH
    return {
        "translation": random.normal(size=(frames, 3)) * 0.02,
        "rotation": random.normal(size=(frames, 3)),
        "neck_pose": 0.3 * random.normal(size=(frames, 3)),
        "jaw_pose": 0.3 * random.normal(size=(frames, 3)),
        "eyes_pose": 0.3 * random.normal(size=(frames, 6)),
        "shape": padded(random.normal(size=flame_like.NUM_IDENTITIES), 296),
        "expr": padded(random.normal(size=(frames, flame_like.NUM_EXPRESSIONS)), 97),
        "static_offset": 0.01 * random.normal(size=(1, points, 3)),
        "dynamic_offset": np.zeros((1, points, 3)),
    }


def poses(seed=0):
    """World from camera of each view, OpenGL's axes, about a metre away."""
    random = np.random.default_rng(seed)
    found = []
    for axis_angle in random.normal(size=(VIEWS, 3)):
        turn = flame_like.turned(flame_like.rotation_matrix(axis_angle))
        found.append(turn @ flame_like.moved([0.02, -0.03, 1.0]))
    return found


LENSES = [(900.0 + 10 * i, 910.0, 322.0 - i, 239.0) for i in range(VIEWS)]


def write(folder, *, frames=FRAMES, files=("transforms.json",), views=VIEWS):
    """A capture as VHAP leaves it, with room for one change."""
    values = recorded(frames)
    shared = ("shape", "static_offset", "dynamic_offset")
    (folder / "flame_param").mkdir(parents=True, exist_ok=True)
    for t in range(frames):
        own = {k: v if k in shared else v[t : t + 1] for k, v in values.items()}
        np.savez(folder / f"flame_param/{t:05d}.npz", **own)
    np.savez(folder / "canonical_flame_param.npz", shape=values["shape"])
    entries = []
    for t in range(frames):
        for c, (pose, lens) in enumerate(zip(poses(), LENSES, strict=True)):
            entries.append(
                {
                    "timestep_index": t,
                    "timestep_index_original": 3 * t + 10,
                    "timestep_id": f"{3 * t + 10:05d}",
                    "camera_index": 2 * c,
                    "camera_id": f"22223{c}",
                    **dict(zip(("fl_x", "fl_y", "cx", "cy"), lens, strict=True)),
                    "w": SIZE[0],
                    "h": SIZE[1],
                    "transform_matrix": pose.tolist(),
                    "file_path": f"images/{t:05d}_{c:02d}.png",
                    "fg_mask_path": f"fg_masks/{t:05d}_{c:02d}.png",
                    "flame_param_path": f"flame_param/{t:05d}.npz",
                }
            )
    entries = [x for x in entries if x["camera_index"] < 2 * views]
    for i, name in enumerate(files):
        part = entries[i :: len(files)]
        (folder / name).write_text(json.dumps({"frames": part, "cx": 1.0}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("capture"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def vertices_by_hand(model, values, t, *, offsets=0.0):
    turns = [values["rotation"][t], values["neck_pose"][t], values["jaw_pose"][t]]
    turns += [values["eyes_pose"][t, :3], values["eyes_pose"][t, 3:]]
    return flame_like.posed(
        model,
        identity=values["shape"][: flame_like.NUM_IDENTITIES],
        expression=values["expr"][t, : flame_like.NUM_EXPRESSIONS],
        turns=[flame_like.rotation_matrix(x) for x in turns],
        translation=values["translation"][t],
        offsets=offsets,
    )


def test_vertices_lie_where_flames_skinning_puts_them(folder, model):
    """VHAP turns the root inside the skinning; a track turns the finished head."""
    found, values = vhap.read(folder, model), recorded()
    offsets = found.offsets[: model.num_vertices]
    points = flame_like.vertices(
        head_model.with_offsets(model, jnp.asarray(offsets)), found.track.params
    )
    assert not np.allclose(found.track.params.translation, values["translation"])
    for t in range(FRAMES):
        wanted = vertices_by_hand(model, values, t, offsets=offsets)
        np.testing.assert_allclose(points[t], wanted, atol=2e-6)


def test_cameras_see_what_opengls_saw(folder, model):
    found = vhap.read(folder, model).track
    points = (
        np.random.default_rng(1).normal(size=(FRAMES * random_head.NUM_VERTICES, 3))
        * 0.1
    )
    pixels, depth = flame_like.project(found.cameras, points)
    for view, (pose, lens) in enumerate(zip(poses(), LENSES, strict=True)):
        wanted = flame_like.seen(points, pose, lens)
        assert (wanted[:, 2] > 0).all()
        np.testing.assert_allclose(pixels[view], wanted[:, :2], atol=2e-3)
        np.testing.assert_allclose(depth[view], wanted[:, 2], atol=1e-5)


def test_what_else_a_capture_tells(folder, model):
    found = vhap.read(folder, model)
    head_track.check(found.track, model)
    assert found.track.frame_ids == (10, 13, 16, 19)
    assert (found.track.cameras.width, found.track.cameras.height) == SIZE
    assert len(found.images) == len(found.masks) == FRAMES * VIEWS
    assert found.images[13, 2] == "images/00001_02.png"
    assert found.masks[13, 2] == "fg_masks/00001_02.png"
    np.testing.assert_allclose(found.offsets, recorded()["static_offset"][0], rtol=1e-6)
    assert not found.track.params.eyelids.any()


def test_parts_are_as_good_as_the_whole(tmp_path, folder, model):
    parts = [f"transforms_{name}.json" for name in ("train", "val", "test")]
    apart = vhap.read(write(tmp_path, files=parts), model)
    whole = vhap.read(folder, model)
    assert apart.images == whole.images
    same(apart.track, whole.track, atol=0)


def same(ours, theirs, *, atol):
    assert ours.frame_ids == theirs.frame_ids
    assert ours.head_version == theirs.head_version
    for name, value in vars(theirs.params).items():
        np.testing.assert_allclose(getattr(ours.params, name), value, atol=atol)
    np.testing.assert_array_equal(ours.cameras.intrinsics, theirs.cameras.intrinsics)


@pytest.mark.parametrize("seed", range(3))
def test_writing_and_reading_change_nothing(tmp_path, seed):
    """Micrometres, and hundredths of a pixel: float32 at 5 m and 900 px."""
    model = flame_like.load("flame2023", seed=seed)
    random = np.random.default_rng(seed)
    params = random_head.params(seed, (FRAMES,))
    params = params.replace(
        identity=jnp.broadcast_to(params.identity[:1], params.identity.shape),
        eyelids=jnp.zeros_like(params.eyelids),
        translation=params.translation + jnp.asarray([0.0, 0.0, 5.0]),
    )
    quaternions = random.normal(size=(VIEWS, 4)) * 0.05 + [1, 0, 0, 0]
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    cameras = Camera(
        jaxlie.SE3(jnp.asarray(np.c_[quaternions, np.eye(3)], jnp.float32)),
        jnp.asarray(900 + random.normal(size=(VIEWS, 4)), jnp.float32),
        *SIZE,
    )
    track = head_track.Track(params, cameras, (5, 7, 8, 12), "flame2023")
    offsets = random.normal(size=(model.num_vertices, 3)).astype(np.float32)
    vhap.write(tmp_path / "out", track, model, offsets=offsets)
    found = vhap.read(tmp_path / "out", model)
    same(found.track, track, atol=2e-6)
    np.testing.assert_array_equal(found.offsets, offsets)
    ours, wanted = (
        flame_like.vertices(model, found.track.params),
        flame_like.vertices(model, params),
    )
    np.testing.assert_allclose(ours, wanted, atol=5e-6)
    pixels, depth = flame_like.project(cameras, wanted)
    assert (depth > 1).all()
    np.testing.assert_allclose(
        flame_like.project(found.track.cameras, ours)[0], pixels, atol=1e-2
    )


def test_one_frame(tmp_path, folder, model):
    alone = first_frames(vhap.read(folder, model).track, 1)
    vhap.write(tmp_path / "out", alone, model)
    same(vhap.read(tmp_path / "out", model).track, alone, atol=2e-6)
    parts = ("train", "val", "test")
    files = [tmp_path / f"out/transforms_{x}.json" for x in parts]
    counts = [len(json.loads(file.read_text())["frames"]) for file in files]
    assert counts == [VIEWS, 0, 0], "nothing trains without frames"


def first_frames(track, frames):
    params = {k: np.asarray(x)[:frames] for k, x in vars(track.params).items()}
    return track.replace(
        params=head_model.HeadParams(**params), frame_ids=track.frame_ids[:frames]
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory, folder, model):
    """What write makes of four frames and three views."""
    target = tmp_path_factory.mktemp("out") / "capture"
    vhap.write(target, vhap.read(folder, model).track, model, validation_views=[1])
    return target


def test_splits_follow_the_rule(written):
    """Training and validation share 70 % of the timesteps: two of these four."""
    pairs = {}
    for name in ("", "_train", "_val", "_test"):
        content = json.loads((written / f"transforms{name}.json").read_text())
        pairs[name] = {
            (x["timestep_index"], x["camera_index"]) for x in content["frames"]
        }
        assert {t for t, _ in pairs[name]} == set(content["timestep_indices"])
        assert {c for _, c in pairs[name]} == set(content["camera_indices"])
    assert pairs["_train"] == {(t, c) for t in range(2) for c in (0, 2)}
    assert pairs["_val"] == {(t, 1) for t in range(2)}
    assert pairs["_test"] == {(t, c) for t in range(2, 4) for c in range(3)}
    assert pairs[""] == pairs["_train"] | pairs["_val"] | pairs["_test"]


def test_the_layout_is_gaussian_avatars(written, model):
    entry = json.loads((written / "transforms.json").read_text())["frames"][4]
    assert entry["file_path"] == "images/00001_01.png"
    assert entry["flame_param_path"] == "flame_param/00001.npz"
    tangents = [np.tan(entry[f"camera_angle_{axis}"] / 2) for axis in "xy"]
    assert tangents[0] == pytest.approx(640 / 2 / entry["fl_x"])
    assert tangents[1] == pytest.approx(480 / 2 / entry["fl_y"])
    shapes = {
        "translation": (1, 3),
        "rotation": (1, 3),
        "neck_pose": (1, 3),
        "jaw_pose": (1, 3),
        "eyes_pose": (1, 6),
        "shape": (300,),
        "expr": (1, 100),
        "static_offset": (1, model.num_vertices, 3),
    }
    for name in ("flame_param/00003.npz", "canonical_flame_param.npz"):
        with np.load(written / name) as stored:
            assert {key: stored[key].shape for key in stored.files} == shapes
    with np.load(written / "canonical_flame_param.npz") as stored:
        np.testing.assert_allclose(stored["jaw_pose"], [[0.3, 0, 0]])
        assert not any(stored[x].any() for x in ("rotation", "translation", "expr"))


def test_images_outlive_a_second_track(tmp_path, track, model):
    vhap.write(tmp_path / "out", track, model)
    vhap.write(tmp_path / "out", track, model)
    (tmp_path / "out/images").mkdir()
    with pytest.raises(FileExistsError, match="no images in"):
        vhap.write(tmp_path / "out", track, model)
    assert (tmp_path / "out/images").exists()


@pytest.fixture
def track(folder, model):
    return vhap.read(folder, model).track


def changed(track, name, change):
    value = jnp.asarray(change(np.array(getattr(track.params, name))))
    return track.replace(params=track.params.replace(**{name: value}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("eyelids", lambda x: x + 0.5, "open eyelids"),
        ("identity", lambda x: x + np.arange(FRAMES)[:, None], "one identity"),
        ("jaw", lambda x: x * np.nan, "finite jaw"),
        ("jaw", lambda x: x[:, :2], "jaw of shape"),
    ],
)
def test_what_vhap_cannot_say_is_not_written(
    tmp_path, track, model, name, change, message
):
    with pytest.raises(ValueError, match=message):
        vhap.write(tmp_path / "out", changed(track, name, change), model)
    assert not (tmp_path / "out").exists()


def test_writing_to_the_wrong_terms_is_refused(tmp_path, track, model, monkeypatch):
    def attempt(track, model, **options):
        vhap.write(tmp_path / "out", track, model, **options)

    other = flame_like.load("flame2020")
    with pytest.raises(ValueError, match=r"flame2023 .* got flame2020"):
        attempt(track, other)
    with pytest.raises(ValueError, match="track of the head flame2023, got"):
        attempt(track.replace(head_version="flame2020"), model)
    for views in ([0, 1, 2], [3], [-1]):
        with pytest.raises(ValueError, match="validation views"):
            attempt(track, model, validation_views=views)
    with pytest.raises(ValueError, match="finite offsets"):
        attempt(track, model, offsets=np.full((30, 3), np.nan))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="first 2 num"):
        patch.setattr(vhap, "NUM_EXPRESSIONS", 2)
        attempt(track, model)
    alone = track.cameras.replace(intrinsics=track.cameras.intrinsics[0])
    with pytest.raises(ValueError, match="one axis of views"):
        attempt(track.replace(cameras=alone), model)
    with pytest.raises(ValueError, match="track with frames"):
        attempt(first_frames(track, 0), model)
    assert not (tmp_path / "out").exists()


def edit_npz(path, **changes):
    """Changes arrays by name; None removes one."""
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored.files}
    for name, change in changes.items():
        value = content.pop(name)
        if change is not None:
            content[name] = change(value)
    np.savez(path, **content)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("expr", None, r"Expected expr in .*00002\.npz"),
        ("jaw_pose", None, r"Expected jaw_pose in .*00002\.npz"),
        ("jaw_pose", lambda x: x * np.nan, "finite jaw_pose"),
        ("jaw_pose", lambda x: x.astype(str), "finite jaw_pose"),
        ("jaw_pose", lambda x: x + 1e60, "finite jaw_pose"),
        ("eyes_pose", lambda x: x[:, :3], "eyes_pose of 6 numbers a row"),
        ("rotation", lambda x: np.tile(x, (2, 1)), "one rotation in"),
        ("expr", lambda x: x[:, :50], r"expr of 100 numbers a row in .*00002\.npz"),
        ("shape", lambda x: x[:100], r"shape of 300 numbers a row in .*00002\.npz"),
        ("shape", lambda x: x + 1, "one shape in all files"),
        ("static_offset", lambda x: x + 1, "one static_offset in all files"),
        ("static_offset", None, "one static_offset in all files"),
        ("dynamic_offset", lambda x: x + 1, "no dynamic_offset"),
        ("dynamic_offset", lambda x: x + np.nan, "no dynamic_offset"),
    ],
)
def test_damaged_parameters_are_said_to_be(copy, model, name, change, message):
    edit_npz(copy / "flame_param/00002.npz", **{name: change})
    with pytest.raises(ValueError, match=message):
        vhap.read(copy, model)


@pytest.mark.parametrize(("name", "count"), [("shape", 4), ("expr", 3)])
def test_no_shape_is_dropped_that_the_head_lacks(copy, model, name, count):
    for path in (copy / "flame_param").iterdir():
        edit_npz(path, **{name: lambda x: x + 1})
    with pytest.raises(ValueError, match=f"first {count} numbers of {name}"):
        vhap.read(copy, model)


@pytest.mark.parametrize("name", ["shape", "expr"])
def test_shapes_that_a_file_lacks_are_zero(copy, model, name):
    for path in (copy / "flame_param").iterdir():
        edit_npz(path, **{name: lambda x: x[..., :2]})
    params = vhap.read(copy, model).track.params
    found = params.identity if name == "shape" else params.expression
    assert found[:, :2].all() and not found[:, 2:].any()


def each_frame(change):
    """A change of all entries, by place in the file."""

    def changed(content):
        frames = [x | change(i, x) for i, x in enumerate(content["frames"])]
        return content | {"frames": frames}

    return changed


def frame(index, **values):
    return each_frame(lambda i, _: values if i == index else {})


def without(*names):
    def changed(content):
        frames = [
            {k: v for k, v in x.items() if k not in names} for x in content["frames"]
        ]
        return {"frames": frames}

    return changed


MIRROR = np.diag([1.0, 1.0, -1.0, 1.0]).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "a list of frames"),
        (lambda _: {"frames": 3}, "a list of frames"),
        (lambda _: {"frames": [3]}, "a list of frames"),
        (lambda _: {"frames": []}, "Expected frames in"),
        (without("timestep_index"), "finite number timestep_index"),
        (without("w"), "finite number w"),
        (without("fl_x"), "finite number camera_angle_x"),
        (without("transform_matrix"), "transform_matrix of 4 x 4"),
        (without("file_path"), "a path file_path"),
        (without("flame_param_path"), "a path flame_param_path"),
        (without("camera_index"), "contradict each other"),
        (frame(4, transform_matrix=MIRROR), "stand still .* camera_index 2"),
        (frame(4, fl_x=950.0), "stand still .* timestep 1"),
        (frame(4, flame_param_path="flame_param/00000.npz"), "contradict each other"),
        (frame(4, timestep_index_original=11), "contradict each other"),
        (frame(4, timestep_index=-1), "Expected timestep_index 0, 1"),
        (frame(4, timestep_index=10**400), "finite number timestep_index"),
        (frame(4, timestep_index=0.5), "Expected timestep_index 0, 1"),
        (frame(4, fl_y="wide"), "finite number fl_y"),
        (frame(4, cx=np.nan), "finite number cx"),
        (each_frame(lambda i, x: {"transform_matrix": MIRROR}), "rigid transform_mat"),
        (
            each_frame(lambda i, x: {"transform_matrix": np.zeros((4, 4)).tolist()}),
            "rigid transform_matrix",
        ),
        (frame(4, transform_matrix=[["a"]]), "4 x 4 finite"),
        (frame(4, transform_matrix=[[10**400] * 4] * 4), "4 x 4 finite"),
        (frame(4, transform_matrix=[[np.nan] * 4] * 4), "4 x 4 finite"),
        (
            each_frame(lambda i, x: {"w": 600 + x["camera_index"]}),
            "views of one size",
        ),
        (frame(4, w=641), "views of one size"),
        (each_frame(lambda i, x: {"h": 0}), "positive lenses and sizes"),
        (each_frame(lambda i, x: {"h": 480.5}), "whole pixels"),
        (each_frame(lambda i, x: {"fl_x": -1.0}), "positive lenses and sizes"),
        (
            each_frame(lambda i, x: {"timestep_index_original": 9 - i // VIEWS}),
            "ascends",
        ),
    ],
)
def test_damaged_transforms_are_said_to_be(copy, model, change, message):
    path = copy / "transforms.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        vhap.read(copy, model)


def test_lenses_may_be_angles_and_stand_above_the_frames(copy, model):
    path = copy / "transforms.json"
    names = ("fl_x", "fl_y", "cx", "cy", "w", "h")
    content = without(*names)(json.loads(path.read_text())) | PLAIN
    path.write_text(json.dumps(content))
    cameras = vhap.read(copy, model).track.cameras
    np.testing.assert_allclose(
        cameras.intrinsics, [[900, 900, 320, 240]] * VIEWS, rtol=1e-6
    )
    path.write_text(json.dumps(content | {"camera_angle_x": np.pi}))
    with pytest.raises(ValueError, match="between 0 and pi"):
        vhap.read(copy, model)


def test_an_image_may_be_missing(copy, model):
    path = copy / "transforms.json"
    content = json.loads(path.read_text())
    content["frames"] = content["frames"][1:]
    path.write_text(json.dumps(content))
    found = vhap.read(copy, model)
    assert found.track.num_frames == FRAMES and (10, 0) not in found.images


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("canonical_flame_param.npz", "Expected canonical_flame_param"),
        ("transforms.json", r"There is no transforms\.json"),
        ("flame_param/00003.npz", r"There is no file at .*00003\.npz"),
    ],
)
def test_missing_files_are_named(copy, model, name, message):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        vhap.read(copy, model)


def test_other_heads_are_refused(folder, tmp_path):
    other = flame_like.load("flame2023_no_jaw")
    for read in (vhap.read, vhap.read_result):
        with pytest.raises(ValueError, match=r"flame2023 .* got flame2023_no_jaw"):
            read(folder, other)


def test_damage_is_an_error_and_nothing_else(copy, model):
    for name in ("transforms.json", "flame_param/00001.npz"):
        whole = (copy / name).read_bytes()
        for damaged in damage.copies(whole, count=12):
            (copy / name).write_bytes(damaged)
            with contextlib.suppress(ValueError, FileNotFoundError):
                vhap.read(copy, model)
        (copy / name).write_bytes(whole)


def test_many_frames(tmp_path, model):
    write(tmp_path, frames=100, views=1, files=("transforms_train.json",))
    found = vhap.read(tmp_path, model).track
    assert found.num_frames == 100 and found.cameras.intrinsics.shape == (1, 4)


def result(**changes):
    return {
        **recorded(),
        "tex_extra": np.zeros((3, 2, 2)),
        "lights": np.zeros((9, 3)),
        "focal_length": np.array([1.5]),
        "image_size": np.array([480, 640]),
        "timestep_id": np.array(["000003", "000004", "000007", "000008"]),
    } | changes


def read_result(folder, model, content):
    np.savez(folder / "result.npz", **content)
    return vhap.read_result(folder / "result.npz", model)


def test_a_result_before_the_export(tmp_path, model):
    found, values = read_result(tmp_path, model, result()), recorded()
    track = found.track
    assert track.frame_ids == (3, 4, 7, 8) and not found.images
    assert (track.cameras.width, track.cameras.height) == (640, 480)
    points = flame_like.vertices(model, track.params)
    pixels, depth = (
        np.asarray(x)[0] for x in flame_like.project(track.cameras, points)
    )
    by_hand = [vertices_by_hand(model, values, t) for t in range(FRAMES)]
    pose = flame_like.moved([0.0, 0.0, 1.0])
    lens = (960.0, 960.0, 320.0, 240.0)
    wanted = flame_like.seen(np.concatenate(by_hand), pose, lens)
    np.testing.assert_allclose(pixels, wanted[:, :2], atol=3e-3)
    np.testing.assert_allclose(depth, wanted[:, 2], atol=1e-5)
    # Ids that are no numbers in order only name the frames.
    for names in (["a", "b", "c", "d"], [3, 1, 2, 0], [1, 1, 2, 3], [1, 2]):
        content = result(timestep_id=np.array(names))
        assert read_result(tmp_path, model, content).track.frame_ids == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotation": np.zeros((3, 3))}, "rotation for the 4 frames"),
        ({"shape": np.zeros((2, 300))}, "one shape"),
        ({"image_size": np.array([480])}, "image_size of 2"),
        ({"image_size": np.array([[480, 640]] * 2)}, "one focal_length and image_size"),
        ({"focal_length": np.array([-1.0])}, "positive lenses"),
        ({"static_offset": np.zeros((2, 30, 3))}, "static_offset of 3 numbers"),
        ({"dynamic_offset": np.ones((1, 30, 3))}, "no dynamic_offset"),
    ],
)
def test_damaged_results_are_said_to_be(tmp_path, model, changes, message):
    with pytest.raises(ValueError, match=message):
        read_result(tmp_path, model, result(**changes))


def test_calibrated_results_need_their_export(tmp_path, model):
    content = result()
    del content["focal_length"]
    with pytest.raises(ValueError, match="export the capture"):
        read_result(tmp_path, model, content)
