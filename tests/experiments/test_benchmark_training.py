"""The benchmark of training runs, and says what it promises to say."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.training", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_data_and_saves_are_timed(tmp_path):
    path = tmp_path / "table.json"
    parts = ("--parts=pipeline,checkpoint", "--workers=0", "--seconds=0.1")
    done = run(*parts, "--side=8", f"--json={path}")
    assert done.returncode == 0, done.stderr
    *read, kept = json.loads(path.read_text())["rows"]
    assert [row["of"] for row in read] == ["latents", "frames", "clips"]
    assert all(row["per_s"] > 0 and row["per_cpu_s"] > 0 for row in read)
    # A clip has sixteen crops where a pair has none.
    assert read[0]["per_cpu_s"] > 4 * read[2]["per_cpu_s"]
    assert 0 < kept["pause_s"] <= kept["saved_s"] and kept["restore_s"] > 0
    assert kept["mb"] > 1


def test_steps_are_timed_on_records_and_on_two_devices(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    path = tmp_path / "table.json"
    done = run("--parts=step,scaling", "--devices=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(row["part"], row["devices"]) for row in rows] == [
        ("step", 1),
        ("scaling", 2),
    ]
    assert all(row["images_per_s"] > row["steps_per_s"] > 0 for row in rows)
    assert all(0 <= row["data_wait_share"] < 1 for row in rows)


def test_unknown_parts_are_refused():
    done = run("--parts=pipeline,all")
    assert done.returncode == 2 and "--parts are pipeline" in done.stderr
