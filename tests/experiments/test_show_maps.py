"""The sheet of maps at its door."""

import subprocess
import sys


def test_an_expression_that_the_head_lacks_is_refused(tmp_path):
    """In a process of its own, for its flags are named like those of other commands."""
    command = [sys.executable, "-m", "experiments.show_maps", "--expression=joy"]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'maps.png'}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("show_maps: ") and "jawOpen" in said
    assert not list(tmp_path.iterdir())
