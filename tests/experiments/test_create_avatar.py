"""The main job's door: bad input is one sentence and status 2, and nothing is lost."""

import json
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from absl.testing import flagsaver

from experiments import create_avatar
from experiments.configs import avatar as avatar_config
from geodiff_jax.io import images
from geodiff_jax.tracking import mediapipe_models
from tests.experiments import launch

SMOKE = avatar_config.get_config("preset=smoke")
needs_mediapipe = pytest.mark.skipif(
    not mediapipe_models.installed(), reason="mediapipe is not installed"
)


def run(**values):
    """Runs main() with the given flags."""
    launch.parse_flags()
    with flagsaver.flagsaver(config=SMOKE, **values):
        create_avatar.main([])


def refusal(capsys, **values) -> str:
    """The one sentence with which main() refuses."""
    with pytest.raises(SystemExit) as stop:
        run(**values)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    sentence = lines[-1]
    assert sentence.startswith("create_avatar: ")
    assert "Traceback" not in "".join(lines)
    return sentence


def save(path, pixels):
    images.write_png(path, pixels)
    return str(path)


def test_what_is_no_image_is_refused(capsys, tmp_path):
    path = tmp_path / "photo.png"
    path.write_text("I am a poem.")
    out = tmp_path / "out"
    assert "Expected an image" in refusal(capsys, image=str(path), output_dir=str(out))
    assert not out.exists()


def test_a_missing_image_is_refused(capsys, tmp_path):
    path = str(tmp_path / "none.png")
    assert path in refusal(capsys, image=path, output_dir=str(tmp_path / "out"))


@needs_mediapipe
def test_a_photo_without_a_face_is_refused(capsys, tmp_path):
    path = save(tmp_path / "cat.png", skimage.data.chelsea() / 255)
    sentence = refusal(capsys, image=path, output_dir=str(tmp_path / "out"))
    assert "face" in sentence
    assert not (tmp_path / "out" / "fit.json").exists()


@needs_mediapipe
def test_a_small_face_is_refused(capsys, tmp_path):
    small = images.resize(skimage.data.astronaut() / 255, width=160, height=160)
    path = save(tmp_path / "small.png", small)
    sentence = refusal(capsys, image=path, output_dir=str(tmp_path / "out"))
    assert "64" in sentence or "no face" in sentence.lower()


def test_a_file_in_place_of_the_folder_is_refused_and_kept(capsys, tmp_path):
    out = tmp_path / "out"
    out.write_text("precious")
    path = save(tmp_path / "photo.png", skimage.data.astronaut() / 255)
    assert str(out) in refusal(capsys, image=path, output_dir=str(out))
    assert out.read_text() == "precious"


def test_a_folder_of_another_run_is_refused_and_kept(capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    record = {"photo_sha256": "other", "seconds": {}}
    (out / "run.json").write_text(json.dumps(record))
    path = save(tmp_path / "photo.png", skimage.data.astronaut() / 255)
    assert "another" in refusal(capsys, image=path, output_dir=str(out))
    assert json.loads((out / "run.json").read_text()) == record


@pytest.mark.parametrize("content", ["{", "[]", '{"seconds": 3}'])
def test_a_damaged_record_is_refused(capsys, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(content)
    path = save(tmp_path / "photo.png", skimage.data.astronaut() / 255)
    assert "run.json" in refusal(capsys, image=path, output_dir=str(out))


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="preset"):
        avatar_config.get_config("preset=huge")


@pytest.mark.slow
@needs_mediapipe
class TestWholeRun:
    """One smoke run, then what may happen to its folder."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        out = tmp_path_factory.mktemp("run") / "out"
        run(output_dir=str(out), consent="public")
        return out

    def test_every_file_is_there_and_stamped(self, folder):
        report = json.loads((folder / "report.json").read_text())
        assert report["consent"] == "public"
        assert report["notice"] == "synthetic media"
        for key in ("landmark_nme", "psnr", "ssim", "face_alpha_min", "peak_memory_mb"):
            assert np.isfinite(report[key])
        assert {"track", "avatar", "preview"} <= set(report["seconds"])
        header = (folder / "avatar.ply").read_bytes()[:2000].decode("latin1")
        assert report["photo_sha256"] in header
        assert report["photo_sha256"].encode() in (folder / "preview.mp4").read_bytes()
        for name in ("fit.json", "fit_overlay.png", "contact_sheet.png", "avatar"):
            assert (folder / name).exists()
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]

    def test_fit_json_describes_the_camera(self, folder):
        fitted = json.loads((folder / "fit.json").read_text())
        assert np.shape(fitted["camera_from_world"]) == (4, 4)
        assert np.shape(fitted["intrinsics"]) == (3, 3)
        assert (fitted["width"], fitted["height"]) == (512, 512)
        names = fitted["names"]["expression"]
        assert len(names) == len(fitted["params"]["expression"])

    def test_a_finished_stage_is_not_done_again(self, folder):
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
        run(output_dir=str(folder), consent="public")
        after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
        assert before == after

    def test_a_missing_stage_is_made_again(self, folder):
        (folder / "contact_sheet.png").unlink()
        run(output_dir=str(folder), consent="public")
        assert (folder / "contact_sheet.png").exists()

    def test_damaged_stage_files_are_refused(self, folder, capsys):
        intact = (folder / "fit.json").read_bytes()
        (folder / "fit.json").write_bytes(intact[: len(intact) // 2])
        sentence = refusal(capsys, output_dir=str(folder), consent="public")
        assert "fit.json" in sentence
        (folder / "fit.json").write_bytes(intact)


@pytest.mark.slow
@needs_mediapipe
def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path):
    out = tmp_path / "out"
    run_it = f"{sys.executable} -m experiments.create_avatar --output_dir={out}"
    config = "--config=experiments/configs/avatar.py:preset=smoke"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 200 && exec {run_it} {config}"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    names = {p.name for p in out.iterdir()}
    assert not names & {"avatar", "avatar.ply", "preview.mp4", "report.json"}
