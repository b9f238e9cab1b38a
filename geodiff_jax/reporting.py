"""What a run says while it works, and what it leaves on record."""

import contextlib
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
from jaxtyping import Float

from geodiff_jax import __version__

CONSENTS = ("self", "licensed", "public", "synthetic")
"""On what grounds a face may be used."""

Advance = Callable[..., None]
"""`advance(count=1)` says that more of a stage is done."""


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A bar with the time that is left; where no one watches, a line per tenth.

    Calls of the yielded `advance` never wait for a device.
    """
    console = rich.console.Console(stderr=True)
    if console.is_terminal:
        columns = (
            *rich.progress.Progress.get_default_columns(),
            rich.progress.MofNCompleteColumn(),
        )
        with rich.progress.Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count=1: bar.advance(task, count)
    else:
        yield _line_per_tenth(title, total)


def _line_per_tenth(title: str, total: int) -> Advance:
    start, done = time.monotonic(), 0

    def advance(count: int = 1) -> None:
        nonlocal done
        before, done = done, done + count
        if done * 10 // max(total, 1) > before * 10 // max(total, 1):
            spent = time.monotonic() - start
            left = spent * max(total - done, 0) / done
            line = f"{title}: {done} of {total}, {spent:.0f} s spent, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    return advance


class Log:
    """Scalars and images of a run: a line of JSON each, and TensorBoard if asked.

    A run that goes on from a step gives it as `after`: what an earlier one had noted
    beyond it will be noted again, and is dropped.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        tensorboard: bool = False,
        after: int | None = None,
    ) -> None:
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "log.jsonl"
        if after is not None and path.exists():
            _cut(path, after=after)
        self._lines = path.open("a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            # Takes a second to import, and most runs do without.
            import tensorboardX

            self._writer = tensorboardX.SummaryWriter(
                str(self._folder), purge_step=None if after is None else after + 1
            )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers; reading them off a device waits for it, so do it rarely."""
        numbers = {name: float(value) for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **numbers}) + "\n")
        self._lines.flush()
        if self._writer is not None:
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, step)

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Records an image in [0, 1], for TensorBoard only."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is held back."""
        self._lines.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: pathlib.Path, *, after: int) -> None:
    """Drops later steps, and a line that someone was killed in."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):
            if json.loads(line)["step"] <= after:
                kept.append(line + "\n")
    shorter = path.with_suffix(".unfinished")
    shorter.write_text("".join(kept), encoding="utf-8")
    shorter.replace(path)


def manifest(*, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is needed to run the same again: versions, revision, machine, settings."""
    names = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "mediapipe")
    versions = {"geodiff_jax": __version__, "python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "versions": versions,
        "git_revision": git_revision(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "config": dict(config or {}),
    }


def provenance(*, consent: str, photo_sha256: str) -> dict[str, str]:
    """What every output carries: whose photo, on what ground, and that it is made."""
    return {
        "notice": "synthetic media",
        "consent": consent,
        "photo_sha256": photo_sha256,
        "generator": f"geodiff_jax {__version__}",
    }


def git_revision() -> str | None:
    """The checkout's commit, "-dirty" if it was edited; None outside a checkout."""
    package = pathlib.Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # An installed copy may lie inside some other project's checkout.
        if pathlib.Path(ask("rev-parse", "--show-toplevel")) != package.parent:
            return None
        return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return round(peak * bytes_per_unit / 1e6, 1)
