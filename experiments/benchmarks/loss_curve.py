"""Draws the losses that training runs have logged, one run after the other.

python -m experiments.benchmarks.loss_curve --workdirs=runs/stage1,runs/stage2
    --output=curve.png

Needs matplotlib, which the `portrait` extra brings.
"""

import json
import pathlib
from collections.abc import Sequence

from absl import app, flags

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Of training runs, in their order.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG file that is written.")

DOMAINS = {"loss/domain0": "image", "loss/domain1": "normals"}


def main(argv: list[str]) -> None:
    """Reads the logs, and draws."""
    del argv
    if not _WORKDIRS.value or not _OUTPUT.value:
        raise app.UsageError("--workdirs=DIR,... and --output=FILE are needed.")
    try:
        runs = [losses(workdir) for workdir in _WORKDIRS.value]
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    draw(runs, _OUTPUT.value)


def losses(workdir: str) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) by domain. Raises ValueError for a workdir without a log of them."""
    log = pathlib.Path(workdir) / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    entries = [json.loads(line) for line in lines]
    found = {
        name: [(x["step"], x[key]) for x in entries if key in x]
        for key, name in DOMAINS.items()
    }
    if not any(found.values()):
        raise ValueError(
            f"Expected a log with losses by domain in {workdir}, got none; give the "
            "workdirs of experiments.train_denoiser."
        )
    return found


def draw(runs: Sequence[dict[str, list[tuple[int, float]]]], path: str) -> None:
    """One panel per run, on one scale."""
    from matplotlib import figure

    shown = figure.Figure(figsize=(7.0, 2.6), layout="constrained")
    panels = shown.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for number, (panel, run) in enumerate(zip(panels, runs, strict=True), 1):
        for name, points in run.items():
            panel.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        panel.set(xlabel="step", title=f"stage {number}" if len(runs) > 1 else "")
        panel.set_yscale("log")
        panel.grid(which="both", alpha=0.2)
    panels[0].set_ylabel("denoising loss")
    panels[0].legend(frameon=False)
    shown.savefig(path, dpi=110)


if __name__ == "__main__":
    app.run(main)
