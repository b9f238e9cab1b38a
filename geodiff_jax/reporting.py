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
        self._lines = path.open("ab", buffering=0)
        self._held = b""
        self._told = False
        self._events = _Events(self._folder, after=after) if tensorboard else None

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers; reading them off a device waits for it, so do it rarely.

        What the disk does not take is said once on stderr; lines are held back until
        it does, and TensorBoard goes without.
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._held += json.dumps({"step": step, **numbers}).encode() + b"\n"
        with self._forgiving():
            while self._held:
                self._held = self._held[self._lines.write(self._held) :]
        if self._events is not None:
            with self._forgiving():
                self._events.scalars(step, numbers)

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Records an image in [0, 1], for TensorBoard only."""
        if self._events is not None:
            with self._forgiving():
                self._events.image(step, name, image)

    def close(self) -> None:
        """Writes out what is held back."""
        with self._forgiving():
            self._lines.write(self._held)
        self._lines.close()
        if self._events is not None:
            with self._forgiving():
                self._events.close()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """A full disk must not end what is only reported."""
        try:
            yield
        except OSError as error:
            if not self._told:
                where = f"{self._folder}: {error.strerror or error}"
                print(f"Cannot log to {where}. Going on.", file=sys.stderr, flush=True)
            self._told = True


class _Events:
    """TensorBoard's file, written at once.

    tensorboardX's own writer has a thread, which ends at a full disk and leaves
    everyone waiting for it.
    """

    def __init__(self, folder: pathlib.Path, *, after: int | None) -> None:
        # Takes a second to import, and most runs do without.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._proto = summary, event_pb2
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        if after is not None:  # What was noted from there on is void.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(after + 1, session_log=start)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """All of a step's."""
        for name, number in numbers.items():
            self._write(step, summary=self._summary.scalar(name, number))
        self._writer.flush()

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """One, in [0, 1]."""
        drawn = self._summary.image(name, image, dataformats="HWC")
        self._write(step, summary=drawn)
        self._writer.flush()

    def close(self) -> None:
        """Lets go of the file."""
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), step=step, **what)
        self._writer.write_event(event)


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
