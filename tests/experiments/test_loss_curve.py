"""The picture of what training runs have logged."""

import json

import pytest
from PIL import Image

from tests.experiments import launch

loss_curve = launch.import_apart("experiments.benchmarks.loss_curve")


def test_runs_are_drawn_from_their_logs(tmp_path):
    for run, start in (("one", 1.0), ("two", 0.5)):
        lines = [
            {"step": step, "loss/domain0": start / step, "loss/domain1": start / step}
            for step in (1, 2, 4)
        ]
        lines.append(
            {"step": 4, "held_out/psnr": 30.0}
        )  # Looks have lines of their own.
        (tmp_path / run).mkdir()
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / run / "log.jsonl").write_text(text)
    found = loss_curve.losses(str(tmp_path / "two"))
    assert found["image"] == found["normals"] == [(1, 0.5), (2, 0.25), (4, 0.125)]
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    output = tmp_path / "curve.png"
    launch.run_apart(loss_curve, workdirs=runs, output=str(output))
    with Image.open(output) as drawn:
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 10  # Two lines, not an empty page.


def test_a_workdir_without_losses_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"a log with losses by domain in .*, got none"
    ):
        loss_curve.losses(str(tmp_path))
