"""The sheet of maps at its door."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("flag", "mentioned"),
    [("--expression=joy", "jawOpen"), ("--capture=.", "fit.npz (FlowFace)")],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, flag, mentioned):
    """In a process of its own, for its flags are named like those of other commands."""
    command = [sys.executable, "-m", "experiments.show_maps", flag]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'maps.png'}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("show_maps: ") and mentioned in said
    assert not list(tmp_path.iterdir())
