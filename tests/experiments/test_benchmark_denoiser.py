"""The benchmark of the denoiser runs, and says what it promises to say."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks import diffusers_twin

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.denoiser", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_denoiser_is_timed(tmp_path):
    path = tmp_path / "table.json"
    done = run("--sizes=tiny", "--runs=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    forward, train = report["rows"]
    assert (forward["size"], forward["pass"]) == ("tiny", "forward")
    assert (train["size"], train["pass"]) == ("tiny", "train")
    for row in (forward, train):
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["compile_s"] > 0 and row["cpu_ms"] > 0
        assert 0 < row["share_of_peak"] < 1.5  # The peak is measured, under load too.
        if diffusers_twin.missing() is None:
            assert row["over_torch"] == row["median_ms"] / row["torch_ms"]
        else:
            assert "torch_ms" not in row
    # A backward pass multiplies twice as much as a forward pass.
    assert 2.5 < train["gflop"] / forward["gflop"] < 3.5


@pytest.mark.slow
def test_unknown_sizes_are_refused():
    done = run("--sizes=tiny,vast")
    assert done.returncode == 2 and "--sizes: Expected size to be one of" in done.stderr
    assert "Traceback" not in done.stderr
