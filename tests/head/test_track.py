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
