"""CAP4D's fits become tracks; the shared ones prove the axes."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import lbs
from geodiff_jax.tracking import flowface
from tests.conftest import shared_data
from tests.io import damage

FRAMES = 4


@pytest.fixture
def arrays():
    """A fit of two views and four frames, as handed out."""
    random = np.random.default_rng(0)
    poses = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    poses[1, 0, 3] = 0.1
    return {
        **{name: np.full((2, 1), 900.0) for name in ("fx", "fy")},
        "cx": np.full((2, 1), 320.0),
        "cy": np.full((2, 1), 240.0),
        "extr": poses,
        "resolutions": np.array([[480, 640], [480, 640]]),
        "shape": random.normal(size=150),
        "expr": random.normal(size=(FRAMES, 65)),
        "rot": 0.3 * random.normal(size=(FRAMES, 3)),
        "tra": random.normal(size=(FRAMES, 3)) * 0.02 + [0.0, 0.0, -1.2],
        "eye_rot": 0.2 * random.normal(size=(FRAMES, 3)),
        "fps": np.array(24),
    }


def write(folder, arrays):
    np.savez(folder / "fit.npz", **arrays)
    return folder


def test_a_fit_becomes_a_track(tmp_path, arrays):
    found = flowface.read(write(tmp_path, arrays))
    assert found.head_version == "flame2023_no_jaw" and found.num_frames == FRAMES
    assert (found.cameras.width, found.cameras.height) == (640, 480)
    np.testing.assert_allclose(found.cameras.intrinsics[1], [900, 900, 320, 240])
    np.testing.assert_allclose(found.params.expression, arrays["expr"], rtol=1e-6)
    np.testing.assert_allclose(found.params.identity[3], arrays["shape"], rtol=1e-6)
    np.testing.assert_allclose(found.params.eyes[:, 1], arrays["eye_rot"], rtol=1e-6)
    assert not found.params.neck.any() and not found.params.jaw.any()


def test_the_heads_world_is_turned_into_the_cameras(tmp_path, arrays):
    found = flowface.read(write(tmp_path, arrays)).params
    point = jnp.asarray([0.03, -0.02, 0.05])
    turn = np.diag([1.0, -1.0, -1.0])
    own = lbs.rotation_matrices(jnp.asarray(arrays["rot"], jnp.float32))
    wanted = (own @ point + arrays["tra"]) @ turn
    ours = lbs.rotation_matrices(found.rotation) @ point + found.translation
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert (ours[:, 2] > 1.0).all(), "before the camera"


def test_lincoln_lies_where_the_dense_alignment_saw_him():
    """Template and pose against FlowFace's own pixels of all 5,023 vertices.

    Without the licensed shapes some 8 pixels remain, and where the template's frame
    lies is unknown: it is fitted, and must lie inside. Wrong axes leave far more.
    """
    topology = shared_data("flame_topology/head_template_mesh.obj")
    folder = shared_data("cap4d_fits/lincoln")
    lines = (line.split() for line in topology.read_text().splitlines())
    template = np.array([x[1:4] for x in lines if x and x[0] == "v"], np.float64)
    with np.load(folder / "alignment.npz") as stored:
        seen = stored["vertex_coords"][0, 0].astype(np.float64)
    found = flowface.read(folder)
    assert (found.cameras.width, found.cameras.height) == (600, 800)
    error, shift = residual(found.frame(0), found.cameras, template, seen)
    assert error < 10
    # What was fitted is where the template's own frame lies: in its head.
    params = found.frame(0)
    turn = np.asarray(lbs.rotation_matrices(params.rotation), np.float64)
    origin = -turn.T @ (shift - np.asarray(params.translation, np.float64))
    inside = (template.min(axis=0) < origin) & (origin < template.max(axis=0))
    assert inside.all(), origin
    mirrored = found.params.replace(rotation=-found.params.rotation)
    wrong = found.replace(params=mirrored).frame(0)
    assert residual(wrong, found.cameras, template, seen)[0] > 2 * error


def residual(params, camera, template, seen):
    """(median distance in pixels, shift) after the best shift of the template."""
    rotation = np.asarray(lbs.rotation_matrices(params.rotation), np.float64)
    fx, fy, cx, cy = np.asarray(camera.intrinsics[0], np.float64)
    directions = (seen - [cx, cy]) / [fx, fy]
    turned = template @ rotation.T
    # (x + s_x) - u (z + s_z) = 0, and the same in y: least squares for the shift s.
    count = len(seen)
    zeros, ones = np.zeros(count), np.ones(count)
    rows = np.concatenate(
        [
            np.stack([ones, zeros, -directions[:, 0]], 1),
            np.stack([zeros, ones, -directions[:, 1]], 1),
        ]
    )
    sides = (directions * turned[:, 2:] - turned[:, :2]).T.reshape(-1)
    shift = np.linalg.lstsq(rows, sides, rcond=None)[0]
    moved = turned + shift
    pixels = moved[:, :2] / moved[:, 2:] * [fx, fy] + [cx, cy]
    return np.median(np.linalg.norm(pixels - seen, axis=1)), shift


@pytest.mark.parametrize(
    ("name", "frames"), [("sequence_00", 384), ("sequence_01", 576)]
)
def test_shared_sequences_and_their_orbits(name, frames):
    folder = shared_data(f"cap4d_fits/{name}")
    found = flowface.read(folder)
    assert found.num_frames == frames
    assert not found.params.identity.any(), "it has none: it drives"
    orbit = flowface.read_trajectory(folder / "orbit.npz")
    assert orbit.intrinsics.shape == (frames, 4)
    # The orbit's cameras look at the head.
    centre = jnp.mean(found.params.translation, axis=0)
    pixels, depth = orbit.project(jnp.broadcast_to(centre, (frames, 1, 3)))
    assert (depth > 0.3).all()
    middle = np.array([orbit.width, orbit.height]) / 2
    assert np.abs(np.median(pixels[:, 0], axis=0) - middle).max() < middle.min()


def test_the_shared_database_of_expressions():
    path = shared_data("cap4d_fits/expression_database.npz")
    expressions, eyes = flowface.read_expressions(path)
    assert expressions.shape == (1000, 65) and eyes.shape == (1000, 3)


def test_references_are_pairs(tmp_path):
    path = tmp_path / "reference_images.json"
    path.write_text(json.dumps([["cam0", 0], ["cam1", 7]]))
    assert flowface.read_references(path) == (("cam0", 0), ("cam1", 7))
    for wrong in ("[]", "{}", "[[1]]", '[["cam0", -1]]', "no json"):
        path.write_text(wrong)
        with pytest.raises(
            ValueError, match=r"Expected .* in .*reference_images\.json"
        ):
            flowface.read_references(path)


def without(name):
    return lambda x: {k: v for k, v in x.items() if k != name}


def with_(name, change):
    return lambda x: x | {name: change(x[name])}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("expr"), "Expected expr in"),
        (without("fx"), "Expected fx in"),
        (without("extr"), "as many cameras"),
        (with_("expr", lambda x: x[:, :50]), "expr of 65 numbers a row"),
        (with_("expr", lambda x: x[:0]), "expr of 65 numbers a row"),
        (with_("shape", lambda x: x[:100]), "shape of 150 numbers a row"),
        (with_("rot", lambda x: x[:2]), "rot for the 4 frames"),
        (with_("tra", lambda x: x * np.nan), "finite tra"),
        (with_("extr", lambda x: 2 * x), "rigid extr"),
        (with_("extr", lambda x: x * [1, 1, -1, 1]), "rigid extr"),
        (with_("extr", lambda x: x + np.nan), "finite extr"),
        (with_("extr", lambda x: x + [0, 0, 0, 0.5]), "rigid extr"),
        (with_("resolutions", lambda x: x + [[0, 0], [1, 0]]), "views of one size"),
        (with_("resolutions", lambda x: x - 640), "positive lenses and sizes"),
        (with_("resolutions", lambda x: x + 0.5), "whole pixels"),
        (with_("fy", lambda x: -x), "positive lenses and sizes"),
        (with_("expr", lambda x: x.astype(str)), "finite expr"),
        (with_("expr", lambda x: x + 1j), "finite expr"),
    ],
)
def test_damaged_fits_are_said_to_be(tmp_path, arrays, damage, message):
    with pytest.raises(ValueError, match=message):
        flowface.read(write(tmp_path, damage(arrays)))


def test_torn_and_missing_files(tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        flowface.read(tmp_path)
    write(tmp_path, arrays)
    whole = (tmp_path / "fit.npz").read_bytes()
    (tmp_path / "fit.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        flowface.read(tmp_path)
    np.savez_compressed(tmp_path / "fit.npz", **arrays)
    whole = (tmp_path / "fit.npz").read_bytes()
    for damaged in damage.copies(whole, count=100):
        (tmp_path / "fit.npz").write_bytes(damaged)
        with contextlib.suppress(ValueError):
            flowface.read(tmp_path)
    with (tmp_path / "fit.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(ValueError, match=r"Expected an \.npz"):
        flowface.read(tmp_path)


@pytest.mark.parametrize("frames", [1, 10_000])
def test_short_and_long_sequences(tmp_path, arrays, frames):
    names = ("expr", "rot", "tra", "eye_rot")
    long = {
        name: np.resize(arrays[name], (frames, arrays[name].shape[1])) for name in names
    }
    found = flowface.read(write(tmp_path, arrays | long))
    assert found.num_frames == frames
    assert isinstance(found.cameras, cameras.Camera)


def test_writing_inverts_reading(tmp_path, arrays):
    arrays |= {"neck_rot": arrays["eye_rot"] / 2, "jaw_rot": arrays["eye_rot"] / 3}
    (tmp_path / "given").mkdir()
    track = flowface.read(write(tmp_path / "given", arrays))
    flowface.write(tmp_path / "made", track, camera_names=["left", "right"])
    found = flowface.read(tmp_path / "made")
    assert jax.tree.structure(found) == jax.tree.structure(track)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, track)
    with np.load(tmp_path / "made" / "fit.npz") as stored:
        assert list(stored["camera_order"]) == ["left", "right"]
        np.testing.assert_allclose(stored["rot"], arrays["rot"], atol=1e-6)


def test_what_a_fit_has_no_room_for_is_refused(tmp_path, arrays):
    track = flowface.read(write(tmp_path, arrays))
    params = track.params
    for other, said in (
        (track.replace(head_version="flame2020"), "the head flame2023_no_jaw"),
        ({"eyelids": params.eyelids + 0.1}, "eyelids at rest"),
        ({"identity": params.identity.at[0].add(1.0)}, "one identity"),
        ({"eyes": params.eyes.at[:, 0].add(1.0)}, "both eyes turned alike"),
    ):
        if isinstance(other, dict):
            other = track.replace(params=params.replace(**other))
        with pytest.raises(ValueError, match=f"Expected {said}"):
            flowface.write(tmp_path / "out", other, camera_names=["a", "b"])
    assert not (tmp_path / "out").exists()


def test_references_are_found_beside_their_mattes(tmp_path, arrays):
    names = {"camera_order": np.array(["right", "left"])}
    track = flowface.read(write(tmp_path, arrays | names))
    for name in ("images/left/a.png", "images/left/b.png", "bg/left/0001.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = tmp_path / "reference_images.json"
    listed.write_text('[["left", 1], ["left", 0]]')
    left = tmp_path / "images" / "left"
    assert flowface.find_references(tmp_path, track) == (
        flowface.Reference(1, 1, left / "b.png", tmp_path / "bg/left/0001.png"),
        flowface.Reference(1, 0, left / "a.png", None),
    )
    for entry, error, said in (
        ('["top", 0]', ValueError, "got top, 0"),
        (f'["left", {FRAMES}]', ValueError, f"got left, {FRAMES}"),
        ('["left", 2]', FileNotFoundError, "no picture of frame 2"),
    ):
        listed.write_text(f"[{entry}]")
        with pytest.raises(error, match=said):
            flowface.find_references(tmp_path, track)
