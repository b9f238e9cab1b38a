"""The benchmarks run, and say what they promise to say."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_splatting_is_timed(tmp_path):
    path = tmp_path / "table.json"
    sizes = ("--gaussians=300", "--channels=3,5", "--runs=4")
    done = run("splatting", *sizes, f"--json={path}")
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["machine"]["gflops"] > 0.1 and report["machine"]["copy_gbs"] > 0.1
    rows = report["rows"]
    named = {(r["scene"], r["channels"], r["pass"]) for r in rows}
    assert len(rows) == len(named) == 8
    for row in rows:
        assert (row["op"], row["gaussians"], row["size"]) == ("splat", 300, 512)
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["cpu_ms"] > 0 and row["runs"] == 4
        assert row["times_floor"] > 1
    if jax.default_backend() == "cpu":
        backward = [r for r in rows if r["pass"] == "forward_backward"]
        assert all(r["blend_adjoint_ms"] > 0 for r in backward)


def test_heads_are_timed(tmp_path):
    path = tmp_path / "table.json"
    done = run("heads", "--runs=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    named = [(r["op"], r["scene"], r["size"]) for r in rows]
    assert named == [
        ("mesh", "all", 512),
        ("mesh", "ids", 512),
        ("chart", "all", 1024),
        ("chart", "ids", 1024),
        ("avatar", "far", 512),
        ("avatar", "close", 512),
    ]
    assert rows[0]["faces"] == 10_000 and rows[4]["gaussians"] == 100_000
    assert all(0 < r["min_ms"] <= r["median_ms"] for r in rows)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_the_gpu_check_says_that_there_is_no_gpu():
    done = run("gpu_check")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("gpu_check: jax runs on cpu")


def test_a_comparison_that_cannot_be_made_is_refused():
    done = run("splatting", "--compare=gsplat", "--gaussians=300", "--runs=1")
    if done.returncode == 0:
        assert "gsplat over ours" in " ".join(done.stdout.split())
    else:
        assert "--compare=gsplat: " in done.stderr and "Traceback" not in done.stderr
