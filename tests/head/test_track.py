import jax
import jaxlie
import numpy as np
import pytest

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural, track


@pytest.fixture
def heads():
    model = procedural.load()
    params = head_model.neutral(model, batch=(3,))
    pinhole = cameras.pinhole(
        focal=100.0, width=64, height=64, camera_from_world=jaxlie.SE3.identity()
    )
    view = jax.tree.map(lambda x: x[None], pinhole)
    return model, track.Track(params, view, (0, 5, 7), model.version)


def test_a_frame_has_no_leading_axis(heads):
    model, recording = heads
    assert recording.num_frames == 3
    frame = recording.frame(1)
    assert frame.rotation.shape == (3,) and frame.eyes.shape == (2, 3)
    track.check(recording, model)


def test_tracks_of_another_head_are_refused(heads):
    model, recording = heads
    other = model.replace(version="another head")
    with pytest.raises(ValueError, match="another head"):
        track.check(recording, other)


def test_frames_that_are_missing_are_noticed(heads):
    model, recording = heads
    with pytest.raises(ValueError, match="shape"):
        track.check(recording.replace(frame_ids=(0, 5)), model)


def test_track_passes_through_jit(heads):
    _, recording = heads
    same = jax.jit(lambda t: t)(recording)
    np.testing.assert_array_equal(same.params.rotation, recording.params.rotation)
    assert same.frame_ids == (0, 5, 7)


def seen(heads, *, translation, rotation=(np.pi, 0.0, 0.0)):
    model, recording = heads
    params = recording.params.replace(
        translation=jax.numpy.tile(jax.numpy.asarray(translation), (3, 1)),
        rotation=jax.numpy.tile(jax.numpy.asarray(rotation), (3, 1)),
    )
    return recording.replace(params=params)


def test_a_head_before_the_camera_is_seen(heads):
    track.check_cameras(seen(heads, translation=(0.0, 0.0, 1.0)), heads[0])


@pytest.mark.parametrize(
    ("translation", "message"),
    [
        ((0.0, 0.0, -1.0), "in frame 0; the head lies behind it for camera 0"),
        ((1.0, 0.0, 1.0), "outside its image for camera 0, at x, y, z = .*metres"),
        ((0.0, 0.0, np.nan), "finite parameters in frame 0"),
    ],
)
def test_a_head_that_no_camera_sees_is_refused(heads, translation, message):
    with pytest.raises(ValueError, match=message):
        track.check_cameras(seen(heads, translation=translation), heads[0])


def test_one_camera_of_several_is_enough(heads):
    model, recording = heads
    good = seen(heads, translation=(0.0, 0.0, 1.0))
    away = jaxlie.SE3.from_translation(jax.numpy.asarray([[9.0, 0.0, 0.0], [0.0] * 3]))
    lens = jax.numpy.tile(recording.cameras.intrinsics, (2, 1))
    both = recording.cameras.replace(camera_from_world=away, intrinsics=lens)
    track.check_cameras(good.replace(cameras=both), model)
