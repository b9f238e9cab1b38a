"""Honest timings: many runs, CPU time beside wall time, and what the machine can do.

Every benchmark writes {"machine": {...}, "rows": [{"op", ..., "median_ms", "min_ms",
"p90_ms", "cpu_ms"}]}.
"""

import itertools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from geodiff_jax import reporting
from geodiff_jax.render import ffi

Row = Mapping[str, Any]


def measure(
    step: Callable[[], Any],
    *,
    runs: int = 50,
    seconds: float = 60.0,
    stages: Callable[[], dict[str, float]] = dict,
) -> dict[str, float]:
    """Times `step`, which returns arrays: median, min and 90th percentile of its wall
    time and its mean CPU time (all threads), in milliseconds.

    Makes `runs` runs, or at least ten when they would take longer than `seconds`. The
    first two, with compilation, do not count. `stages` gives running totals, in
    seconds, of which each run's share is added to the figures.
    """
    for _ in range(2):
        jax.block_until_ready(step())
    before = stages()
    walls: list[float] = []
    cpu_begin, begin = time.process_time(), time.perf_counter()
    while len(walls) < runs:
        if len(walls) >= 10 and time.perf_counter() - begin > seconds:
            break
        start = time.perf_counter()
        jax.block_until_ready(step())
        walls.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu_begin) / len(walls)
    parts = {
        f"{name}_ms": 1e3 * (total - before[name]) / len(walls)
        for name, total in stages().items()
    }
    return {
        "median_ms": 1e3 * float(np.median(walls)),
        "min_ms": 1e3 * min(walls),
        "p90_ms": 1e3 * float(np.percentile(walls, 90)),
        "cpu_ms": 1e3 * cpu,
        "runs": len(walls),
        **parts,
    }


def machine() -> dict[str, Any]:
    """The machine, its load, and its measured peaks, for the head of a report.

    `gflops` is that of a 1024² float32 matrix product, `copy_gbs` the bytes read and
    written per second by a copy of 256 MB.
    """
    matrix = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    block = jnp.ones(2**26, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    run = reporting.manifest()
    return {
        "started": run["started"],
        "git_revision": run["git_revision"],
        **run["versions"],
        **run["machine"],
        "cpu": _cpu_name(),
        "instruction_set": _instruction_set(),
        "load": round(os.getloadavg()[0], 2),
        "gflops": 2 * 1024**3 / _best(lambda: product(matrix)) / 1e9,
        "copy_gbs": 2 * block.nbytes / _best(lambda: copy(block)) / 1e9,
    }


def report(
    title: str,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    hidden: Sequence[str] = (),
    json_path: str | None = None,
) -> None:
    """Prints the table without its `hidden` columns; writes all as JSON if asked to."""
    table = rich.table.Table(title=title)
    shown = [
        name for name in dict.fromkeys(itertools.chain(*rows)) if name not in hidden
    ]
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in shown))
    console = rich.console.Console(width=None if os.isatty(1) else 160)
    console.print(", ".join(f"{k} {_cell(v)}" for k, v in about.items()))
    console.print(table)
    if json_path:
        write(json_path, about, rows)


def write(path: str, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes a report as JSON."""
    text = json.dumps({"machine": dict(about), "rows": list(rows)}, indent=1)
    pathlib.Path(path).write_text(text + "\n")


def _best(step: Callable[[], Any], *, runs: int = 10) -> float:
    """Shortest of some runs, seconds."""
    return measure(step, runs=runs)["min_ms"] / 1e3


def _cpu_name() -> str:
    listing = pathlib.Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _instruction_set() -> str:
    return ffi.instruction_sets()[-1] if ffi.available("cpu") else "none"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
