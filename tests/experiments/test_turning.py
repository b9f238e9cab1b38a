"""Turned avatars against the truth: the pieces, and the bounds for one person."""

import dataclasses
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import turned_truth
from geodiff_jax import create
from geodiff_jax.avatar import preview
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import ict, landmarks, procedural
from geodiff_jax.head import model as head_model
from tests.conftest import shared_data

YAW = float(np.radians(30.0))


def test_a_photo_keeps_the_picture_and_its_lens():
    alpha = np.linspace(0.0, 1.0, 12).reshape(3, 4)
    color = np.array([0.8, 0.4, 0.1])
    picture = alpha[..., None] * color + (1.0 - alpha[..., None])
    camera = cameras.pinhole(focal=9.0, width=4, height=3)
    photo = turned_truth.as_photo(picture, alpha, camera)
    assert photo.focal_pixels == 9.0
    matte = np.asarray(photo.alpha)
    np.testing.assert_allclose(matte, alpha, atol=1 / 255)
    np.testing.assert_allclose(photo.rgb[alpha > 0.2] - color, 0.0, atol=1 / 255)


def test_a_larger_head_farther_away_is_seen_alike():
    head = procedural.load()
    params = head_model.neutral(head).replace(
        rotation=jnp.array([jnp.pi, 0.1, 0.0]), translation=jnp.array([0.0, 0.03, 1.1])
    )
    camera = cameras.pinhole(focal=100.0, width=50, height=50)
    subject = turned_truth.Subject(head, params, None, camera, None)
    larger = dataclasses.replace(
        subject,
        head=head.replace(
            template=1.3 * head.template, joint_template=1.3 * head.joint_template
        ),
        params=params.replace(translation=1.3 * params.translation),
    )
    side = preview.turned(camera, params, YAW)
    own = turned_truth.same_view(subject, side, _tracked(larger))
    seen, wanted = (
        c.project(landmarks.positions(x.head, head_model.vertices(x.head, x.params)))[0]
        for x, c in ((larger, own), (subject, side))
    )
    np.testing.assert_allclose(seen, wanted, atol=1e-3)  # Pixels, in float32.


class _Fit:
    def __init__(self, subject):
        self.head, self.params = subject.head, subject.params
        self.camera = subject.camera


def _tracked(subject):
    return create.Tracked(None, None, _Fit(subject))


def test_a_head_that_is_not_there_is_refused(tmp_path):
    command = (sys.executable, "-m", "experiments.benchmarks.turning")
    done = subprocess.run(
        (*command, f"--head={tmp_path / 'none.safetensors'}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("turning: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:SymbolDatabase")
def test_a_person_of_one_head_is_turned_by_the_other(tmp_path):
    """Smaller and shorter than the benchmark, to take minutes; at its bounds."""
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    with tarfile.open(shared_data("ict_facekit_subset.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    other = ict.load(tmp_path / "FaceXModel")
    config = create.CreateConfig(working_size=400)
    config = dataclasses.replace(
        config, reconstruction=dataclasses.replace(config.reconstruction, steps=100)
    )
    heads = (procedural.load(), other)
    for truth, fitted in (heads, heads[::-1]):
        subject = turned_truth.sample_subject(jax.random.key(201), truth)
        tracked = create.track(subject.photo, head=fitted, config=config)
        avatar = create.build(tracked, config=config)
        for yaw in (-YAW, YAW):
            side = turned_truth.turn(subject, tracked, avatar, yaw_radians=yaw)
            assert side.psnr >= 20.0
            assert side.landmark_error <= 0.06
