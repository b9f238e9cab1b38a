"""SynthHuman's samples: which are taken, and how fits are made on the way."""

import types

import numpy as np
import pytest

from geodiff_jax.data import framing, recordings, synth_human
from tests.data import synth_human_files

PICTURE = framing.Frame(np.full((16, 12, 3), 0.5, np.float32))


def job(source, track=recordings.FIT_HERE):
    return recordings.Job(source=source, track=track)


def test_only_samples_of_faces_are_taken(tmp_path):
    for number in (0, 199, 200, synth_human.FACES - 1, synth_human.FACES):
        (tmp_path / f"rgb_{number:07d}.png").touch()
    (tmp_path / "rgb_notes.png").touch()
    chunks = [recordings.split_name(x)[0] for x in synth_human.parts(job(tmp_path))]
    assert chunks == ["00000", "00001", "00490"]


def found_by(source):
    return lambda photo: types.SimpleNamespace(landmarks_source=source)


def test_fits_on_the_way_know_the_focal_length(monkeypatch, tmp_path):
    seen = []

    def fitted(head, photo, detection):
        seen.append(photo.focal_pixels)
        return synth_human_files.fit_of(0)

    monkeypatch.setattr(synth_human.fit, "fit", fitted)
    monkeypatch.setattr(synth_human.detect, "detect", found_by("mediapipe"))
    found = synth_human.fit_of(PICTURE, 123.0, "0000000", job(tmp_path))
    assert seen == [123.0]
    np.testing.assert_array_equal(
        found.params.rotation, synth_human_files.params(0).rotation
    )


def test_guessed_landmarks_make_no_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(synth_human.detect, "detect", found_by("average face"))
    with pytest.raises(ValueError, match="guessed"):
        synth_human.fit_of(PICTURE, 123.0, "0000000", job(tmp_path))
    with pytest.raises(FileNotFoundError):
        synth_human.fit_of(PICTURE, 123.0, "0000000", job(tmp_path, tmp_path))
