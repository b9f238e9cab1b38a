"""Views by a converted checkpoint: a person's folder becomes one of many cameras."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from geodiff_jax.head import files as head_files
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.head import track as head_track
from geodiff_jax.io import images
from geodiff_jax.render import condition_maps
from geodiff_jax.tracking import flowface
from tests.experiments import toy_cap4d

VIEWS, SIZE = 12, 32


def resized(basis, count):
    """As many shapes as FLAME has; those that are missing move nothing."""
    own = basis[:count]
    return jnp.pad(own, [(0, count - len(own))] + [(0, 0)] * (basis.ndim - 1))


def flame_like() -> head_model.HeadModel:
    """The procedural head with FLAME's numbers of shapes, under its name."""
    head = procedural.load()
    identity, expression = flowface.NUM_IDENTITY, flowface.NUM_EXPRESSIONS
    return head.replace(
        identity_basis=resized(head.identity_basis, identity),
        joint_identity_basis=resized(head.joint_identity_basis, identity),
        expression_basis=resized(head.expression_basis, expression),
        joint_drivers=resized(head.joint_drivers, expression),
        identity_names=tuple(f"shape{i}" for i in range(identity)),
        expression_names=tuple(f"expr{i}" for i in range(expression)),
        version=flowface.HEAD_VERSION,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Weights, a head, and a person's folder of two frames, as flags."""
    folder = tmp_path_factory.mktemp("given")
    toy_cap4d.write(folder / "cap4d.safetensors")
    head_files.save(folder / "head.safetensors", flame_like())
    fit = folder / "fit"
    rng = np.random.default_rng(0)
    for frame in range(2):
        path = fit / "images" / "cam0" / f"{frame}.png"
        images.write_png(path, rng.random((60, 80, 3)))
    matte = np.zeros((60, 80))
    matte[:, 35:60] = 1.0
    images.write_png(fit / "bg" / "cam0" / "0001.png", matte)
    np.savez(
        fit / "fit.npz",
        fx=[[150.0]],
        fy=[[150.0]],
        cx=[[40.0]],
        cy=[[30.0]],
        extr=np.eye(4)[None],
        resolutions=[[60, 80]],
        shape=0.3 * rng.normal(size=150),
        expr=0.1 * rng.normal(size=(2, 65)),
        rot=[[0.0, 0.3, 0.0], [0.1, -0.2, 0.0]],
        tra=[[0.0, 0.0, -1.0], [0.02, 0.0, -1.0]],
        eye_rot=np.zeros((2, 3)),
    )
    (fit / "reference_images.json").write_text('[["cam0", 1], ["cam0", 0]]')
    return {
        "weights": folder / "cap4d.safetensors",
        "head": folder / "head.safetensors",
        "fit": fit,
    }


def run(given, output, *more):
    command = [sys.executable, "-m", "experiments.synthesize_views"]
    words = [f"--{name}={path}" for name, path in given.items()]
    options = [f"--views={VIEWS}", "--steps=2", f"--size={SIZE}", "--consent=synthetic"]
    return subprocess.run(
        [*command, *words, f"--output_dir={output}", *options, *more],
        capture_output=True,
        text=True,
        # Compiling takes the time.
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def made(given, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "views"
    done = run(given, output)
    assert done.returncode == 0, done.stderr
    return output


def pictures(folder):
    paths = sorted(folder.glob("images/*/0000.png"))
    return np.stack([images.read_image(path).rgb for path in paths])


@pytest.mark.slow
def test_every_file_is_there_and_stamped(given, made):
    assert pictures(made).shape == (VIEWS, SIZE, SIZE, 3)
    assert np.std(pictures(made), axis=0).min() > 0
    report = json.loads((made / "report.json").read_text())
    assert report["notice"] == "synthetic media" and report["consent"] == "synthetic"
    assert report["weights"]["source"] == "cap4d"
    names = [f"images/cam0/{i}.png" for i in (1, 0)]
    photos = [images.read_image(given["fit"] / name) for name in names]
    assert report["references"] == names
    assert report["photo_sha256"].split() == [photo.sha256 for photo in photos]
    for name in ("contact_sheet.png", "images/view_0003/0000.png"):
        with Image.open(made / name) as picture:
            assert picture.text["notice"] == "synthetic media"
            assert picture.text["photo_sha256"] == report["photo_sha256"]
    # The first reference has a matte: white beyond it.
    first, second = (
        images.read_image(made / f"references/000{i}.png").rgb for i in "01"
    )
    assert (first[:, 0] == 1).all() and (first[:, SIZE // 2] < 1).any()
    assert (second[:, 0] < 1).any()


@pytest.mark.slow
def test_the_folder_is_a_capture_whose_cameras_see_the_head(given, made):
    head, track = head_files.load(given["head"]), flowface.read(made)
    head_track.check(track, head)
    source = flowface.read(given["fit"])
    assert track.num_frames == 1 and track.cameras.intrinsics.shape == (VIEWS, 4)
    for name, value in vars(track.params).items():
        wanted = getattr(source.params, name)[1]
        np.testing.assert_allclose(value[0], wanted, atol=1e-6, err_msg=name)
    points = head_model.vertices(head, track.frame(0))
    shown = np.asarray(condition_maps.head_vertices(head))
    pixels, depth = track.cameras.project(
        jnp.broadcast_to(points, (VIEWS, *points.shape))
    )
    low, high = (f(pixels[:, shown], axis=1) for f in (np.min, np.max))
    # A crop of 1.2 times the head about it, cut to whole pixels of the photo.
    np.testing.assert_allclose((low + high) / 2, SIZE / 2, atol=3)
    np.testing.assert_allclose((high - low).max(axis=1), SIZE / 1.2, atol=3)
    assert (depth > 0).all()
    poses = np.asarray(track.cameras.camera_from_world.as_matrix())
    assert len(np.unique(poses.round(4), axis=0)) == VIEWS


@pytest.mark.slow
def test_the_seed_decides(given, made, tmp_path):
    assert run(given, tmp_path / "again").returncode == 0
    np.testing.assert_array_equal(pictures(tmp_path / "again"), pictures(made))
    assert run(given, tmp_path / "other", "--seed=1").returncode == 0
    assert (pictures(tmp_path / "other") != pictures(made)).any()


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--views=11", "groups of 6 divide, got 11; add 1"),
        ("--size=33", "33"),
        ("--weights={head}", "got another file"),
        ("--output_dir={fit}", "where something is"),
    ],
)
def test_what_does_not_fit_is_refused(given, tmp_path, flag, complaint):
    output = tmp_path / "out"
    done = run(given, output, flag.format(**given))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert lines[-1].startswith("synthesize_views: ") and complaint in lines[-1]
    assert not output.exists()
