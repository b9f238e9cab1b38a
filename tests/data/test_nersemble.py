"""NeRSemble's layout: its films' clock, its colours, its cameras and the fit's."""

import fractions
import json

import av
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from geodiff_jax.appearance import lighting
from geodiff_jax.data import color, films, nersemble, recordings, rigs
from geodiff_jax.geometry.camera import Camera
from tests.data import nersemble_files


@pytest.mark.parametrize("film_rate, track_rate", [(73, 25), (30, 25), (25, 25)])
def test_the_tracker_saw_the_frames_that_ffmpeg_kept(film_rate, track_rate):
    """FFmpeg's own filter, over frames whose grey is their number."""
    graph = av.filter.Graph()
    base = fractions.Fraction(1, film_rate)
    source = graph.add_buffer(width=16, height=16, format="gray", time_base=base)
    kept = graph.add("fps", f"fps={track_rate}")
    sink = graph.add("buffersink")
    source.link_to(kept)
    kept.link_to(sink)
    graph.configure()
    seen = []
    for number in range(60):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), number, np.uint8), "gray")
        frame.pts, frame.time_base = number, base
        graph.push(frame)
        while True:
            try:
                seen.append(int(graph.pull().to_ndarray()[0, 0]))
            except (av.error.BlockingIOError, av.error.EOFError):
                break
    assert len(seen) > 15
    rates = (float(track_rate), float(film_rate))
    assert seen == [films.film_frame(k, *rates) for k in range(len(seen))]


def test_a_tracker_that_saw_all_frames_counts_them_as_the_film():
    assert [films.film_frame(k, 0.0, 73.0) for k in range(5)] == list(range(5))


def test_colours_are_corrected_in_linear_light():
    picture = np.random.default_rng(0).uniform(0.1, 0.7, (4, 5, 3)).astype(np.float32)
    gain = nersemble_files.GAIN
    dark = nersemble_files.recorded(picture)
    for count, terms in color.TERMS.items():
        names = terms.split()
        assert len(names) == len(set(names)) == count
        matrix = np.zeros((3, count))
        matrix[:, :3] = np.diag(gain)
        found = color.correct(dark, matrix)
        np.testing.assert_allclose(found, picture, atol=2e-3)


def test_each_term_is_its_monomial():
    picture = np.full((1, 1, 3), 1.0, np.float32)
    picture[..., 1] = 0.0
    # Of red and blue at 1 and green at 0, only terms without green are left.
    for count, terms in color.TERMS.items():
        found = color.correct(picture, np.full((3, count), 0.01))
        alive = sum("g" not in name for name in terms.split())
        linear = np.full(3, 0.01 * alive)
        np.testing.assert_allclose(
            found[0, 0], lighting.srgb_from_linear(jnp.asarray(linear)), rtol=1e-4
        )


def rig_and_fit(*, inverted=False, scale=1.0):
    """Three cameras in two worlds; a rig with inverted poses, or in other units."""
    rng = np.random.default_rng(1)
    poses = jaxlie.SE3.exp(jnp.asarray(rng.normal(size=(3, 6)), jnp.float32))
    move = jaxlie.SE3.exp(jnp.asarray(rng.normal(size=6), jnp.float32))
    moved = jax.vmap(lambda p: (jaxlie.SE3(p) @ move).parameters())(poses.parameters())
    lens = np.tile(np.array([90.0, 90, 32, 48], np.float32), (3, 1))
    fitted = Camera(jaxlie.SE3(moved), jnp.asarray(lens), 64, 96)
    matrices = np.asarray(poses.as_matrix(), np.float64)
    matrices[:, :3, 3] *= scale
    matrices = np.linalg.inv(matrices) if inverted else matrices
    names = ("a", "b", "c")
    lenses = dict.fromkeys(names, 10.0 * lens[0])
    rig = rigs.Rig(dict(zip(names, matrices, strict=True)), lenses, 640, 960)
    return rig, fitted, names


def test_calibrated_cameras_go_where_the_fit_has_them():
    rig, fitted, names = rig_and_fit()
    found = rigs.in_world_of(rig, fitted, names)
    for i, name in enumerate(names):
        camera = found.camera(name, width=64, height=96)
        expected = fitted.camera_from_world.as_matrix()[i]
        np.testing.assert_allclose(
            camera.camera_from_world.as_matrix(), expected, atol=1e-5
        )
        np.testing.assert_allclose(camera.intrinsics, fitted.intrinsics[i], rtol=1e-6)


def test_cameras_that_the_tracker_left_out_come_along():
    rig, fitted, names = rig_and_fit()
    two = jax.tree.map(lambda x: x[1:], fitted)
    found = rigs.in_world_of(rig, two, names[1:])
    np.testing.assert_allclose(
        found.camera_from_world["a"],
        fitted.camera_from_world.as_matrix()[0],
        atol=1e-5,
    )


@pytest.mark.parametrize("fault", [{"inverted": True}, {"scale": 1000.0}])
def test_another_convention_is_refused(fault):
    with pytest.raises(ValueError, match="direction of the poses.*unit"):
        rigs.in_world_of(*rig_and_fit(**fault))


def test_intrinsics_of_another_size_are_refused():
    rig, fitted, names = rig_and_fit()
    halved = rigs.Rig(rig.camera_from_world, rig.intrinsics, 320, 480)
    with pytest.raises(ValueError, match="focal length"):
        rigs.in_world_of(halved, fitted, names)
    with pytest.raises(ValueError, match="fit of cameras"):
        rigs.in_world_of(rig, fitted, ("x", "y", "z"))


@pytest.mark.parametrize(
    "folders, clip, expected",
    [
        (["017_EXP-1_v16_DS4_whiteBg"], "EXP-1-head", 0),
        (["017_EXP-1_v16_DS4", "017/EXP-1-head"], "EXP-1-head", 1),
        (["017_SEN-1_v16"], "SEN-10-port_strong_smokey", None),
        (["018_EXP-1_v16_DS4"], "EXP-1-head", None),
        (["017_EXP_v16", "017_EXP-1-head_v16"], "EXP-1-head", 1),
    ],
)
def test_fits_are_found_by_vhaps_names(tmp_path, folders, clip, expected):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    found = recordings.find_fit(tmp_path, "017", clip)
    assert found == (None if expected is None else tmp_path / folders[expected])


def test_the_empty_set_is_no_sequence(tmp_path):
    for path in ("017/sequences/BACKGROUND", "017/sequences/EXP-1-head"):
        folder = tmp_path / path / "images"
        folder.mkdir(parents=True)
        (folder / "cam_222200036.mp4").touch()
    job = recordings.Job(tmp_path)
    assert nersemble.parts(job) == ["017~EXP-1-head~222200036"]
    with pytest.raises(ValueError, match="nersemble-data"):
        nersemble.parts(recordings.Job(tmp_path / "017"))


def test_torn_calibrations_are_refused(tmp_path):
    path = tmp_path / "camera_params.json"
    for text in ("{", "{}", json.dumps({"world_2_cam": [], "intrinsics": [[1]]})):
        path.write_text(text)
        nersemble.read_rig.cache_clear()
        with pytest.raises(ValueError, match="camera_params.json"):
            nersemble.read_rig(path)


def test_benchmark_subjects_are_held_out():
    names = [recordings.part_name(x, "EXP-1", "1") for x in ("017", "388", "018")]
    splits = recordings.split_parts(names, nersemble.HELD_OUT)
    assert splits["held_out"] == ["388~EXP-1~1"] and len(splits["train"]) == 2
    without = recordings.split_parts(names[::2], nersemble.HELD_OUT)
    assert without["held_out"] == ["018~EXP-1~1"]
