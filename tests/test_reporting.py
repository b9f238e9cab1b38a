"""Runs tell where they are, and leave a record."""

import json
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiff_jax
from geodiff_jax import reporting


def test_where_no_one_watches_there_is_a_line_per_tenth(capsys):
    with reporting.progress("Fitting", 250) as advance:
        for _ in range(250):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("Fitting: 25 of 250, ") and lines[-1].endswith(
        "0 s left"
    )


def test_short_stages_and_large_steps_are_counted(capsys):
    with reporting.progress("Short", 3) as advance:
        advance(2)
        advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Short: 2 of 3", "Short: 3 of 3"]


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with reporting.progress("Fitting", 4) as advance:
        for _ in range(4):
            advance()
    shown = capsys.readouterr().err
    assert "Fitting" in shown and "4/4" in shown and "100%" in shown


def test_log_keeps_a_line_per_call(tmp_path):
    log = reporting.Log(tmp_path / "run")
    log.scalars(1, {"loss": jnp.asarray(0.5)})
    log.image(1, "seen", np.zeros((4, 4, 3)))
    log.close()
    log = reporting.Log(tmp_path / "run")
    log.scalars(2, {"loss": 0.25, "psnr": np.float32(20)})
    log.close()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "psnr": 20.0},
    ]


def test_a_run_that_goes_on_drops_what_it_will_note_again(tmp_path):
    log = reporting.Log(tmp_path)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": step})
    log.close()
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # Killed while it wrote.
    log = reporting.Log(tmp_path, after=2)
    log.scalars(3, {"loss": 0})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 0)]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_log_feeds_tensorboard_if_asked(tmp_path):
    log = reporting.Log(tmp_path, tensorboard=True)
    log.scalars(1, {"loss": 1.0})
    log.image(1, "seen", np.full((4, 4, 3), 0.5))
    log.close()
    content = b"".join(p.read_bytes() for p in tmp_path.glob("events.*"))
    assert b"loss" in content and b"seen" in content and b"PNG" in content


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_told_once_and_lines_wait_for_space(
    tmp_path, capsys, tensorboard
):
    log = reporting.Log(tmp_path, tensorboard=tensorboard)
    log.scalars(0, {"loss": 0.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))  # Within the second line.
    try:
        for step in range(1, 100):
            log.scalars(step, {"loss": float(step), "psnr": 20.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("Cannot log to") == 1
    log.scalars(100, {"loss": 100.0})
    log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == list(range(101))


def test_manifest_is_json_with_the_versions():
    record = json.loads(json.dumps(reporting.manifest(config={"steps": 3})))
    assert record["versions"]["geodiff_jax"] == geodiff_jax.__version__
    assert record["versions"]["jax"] == jax.__version__
    assert record["config"] == {"steps": 3} and record["machine"]["cores"] >= 1


def test_no_revision_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert reporting.git_revision() is None


def test_peak_memory_is_what_the_system_says():
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux keeps a second account of it")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    expected = float(lines["VmHWM"].split()[0]) * 1024 / 1e6
    assert reporting.peak_memory_mb() == pytest.approx(expected, rel=0.02)
