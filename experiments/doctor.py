"""What this machine has for the main job, and the one line that mends each lack.

python -m experiments.doctor

Takes a few seconds. Exit status 0 if `experiments.create_avatar` can run, 1 if not.
"""

import ctypes
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import warnings

import jax
import rich.console
import rich.markup
import rich.table

from geodiff_jax.render import ffi
from geodiff_jax.tracking import mediapipe_models

MEMORY_GB = 4.0
"""What the main job may take; ours."""
DISK_GB = 0.2
INSTRUCTION_SETS = ("avx512f", "avx2", "asimd")
"""As Linux names them, best first; the last is arm64's NEON."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    remedy: str = ""
    """The line that mends it; empty if all is well."""
    blocks: bool = False
    """Whether the main job cannot run without it."""


def examine(folder: pathlib.Path) -> list[Finding]:
    """Looks at everything; `folder` is where outputs would go."""
    return [
        software(),
        compiler(),
        instruction_set(),
        kernels(),
        *portrait(),
        libgl(),
        accelerator(),
        memory(memory_gb()),
        disk(shutil.disk_usage(folder).free / 1e9),
    ]


def software() -> Finding:
    """Python and jax within the range that is tested."""
    found = f"Python {platform.python_version()}, jax {jax.__version__}"
    tested = (0, 10) <= jax.__version_info__[:2] < (0, 12)
    remedy = "" if tested else 'pip install "jax>=0.10,<0.12"'
    return Finding("software", found, remedy)


def compiler() -> Finding:
    """A C++ compiler, which only building the kernels needs."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    paths = [path for path in map(shutil.which, filter(None, names)) if path]
    if paths:
        return Finding("C++ compiler", paths[0])
    return Finding("C++ compiler", "none", "apt-get install g++")


def instruction_set() -> Finding:
    """The widest vectors that the processor offers."""
    source = pathlib.Path("/proc/cpuinfo")
    words = set(source.read_text().split()) if source.exists() else set()
    known = [name for name in INSTRUCTION_SETS if name in words]
    return Finding("instruction set", known[0] if known else platform.machine())


def kernels() -> Finding:
    """The compiled rasterizers; without them all works, hours instead of minutes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ffi.available("cpu"):
            return Finding("kernels", "compiled")
    remedy = "python setup.py build_kernels --inplace"
    return Finding("kernels", "none: the slow reference runs instead", remedy)


def portrait() -> list[Finding]:
    """mediapipe and what it needs; without it faces are only found roughly."""
    if not mediapipe_models.installed():
        remedy = "pip install 'geodiff_jax[portrait]'"
        return [Finding("mediapipe", "none: landmarks will be rough", remedy)]
    version = importlib.metadata.version("mediapipe")
    findings = [Finding("mediapipe", version)]
    if version != "0.10.14":
        found = f"{version}: only 0.10.14 is known to work"
        findings = [Finding("mediapipe", found, "pip install mediapipe==0.10.14")]
    for name, remedy in mediapipe_models.missing_companions().items():
        if name != "libGL":
            findings.append(Finding(name, "missing", remedy, blocks=True))
    return findings


def libgl() -> Finding:
    """The library that OpenCV, and so mediapipe, loads on Linux."""
    try:
        ctypes.CDLL("libGL.so.1")
    except OSError:
        if sys.platform == "linux":
            remedy = "apt-get install libgl1 libglib2.0-0"
            needed = mediapipe_models.installed()
            return Finding("libGL", "none: mediapipe needs it", remedy, blocks=needed)
        return Finding("libGL", "none, and none is needed")
    return Finding("libGL", "found")


def accelerator() -> Finding:
    """A GPU, if jax sees one; nothing here needs it."""
    kinds = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    if not kinds and shutil.which("nvidia-smi"):
        remedy = "pip install 'geodiff_jax[cuda13]'"
        return Finding("GPU", "present, but this jax runs on the CPU only", remedy)
    return Finding("GPU", ", ".join(kinds) or "none, and none is needed")


def memory(available_gb: float) -> Finding:
    """Free memory against what the main job takes."""
    found = f"{available_gb:.1f} GB free of the {MEMORY_GB:.0f} GB that may be needed"
    if available_gb >= MEMORY_GB:
        return Finding("memory", found)
    return Finding("memory", found, "close other programs", blocks=True)


def disk(free_gb: float) -> Finding:
    """Room for one avatar."""
    found = f"{free_gb:.1f} GB free"
    if free_gb >= DISK_GB:
        return Finding("disk", found)
    return Finding("disk", found, "choose an --output_dir on another disk", blocks=True)


def memory_gb() -> float:
    """Memory that a new process may take; all there is, where the system won't say."""
    source = pathlib.Path("/proc/meminfo")
    if source.exists():
        lines = dict(line.split(":", 1) for line in source.read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def table(findings: list[Finding]) -> rich.table.Table:
    """One row per finding."""
    rows = rich.table.Table("", "looked for", "found")
    for finding in findings:
        mark = "[green]ok"
        if finding.remedy:
            mark = "[red]no" if finding.blocks else "[yellow]!"
        rows.add_row(mark, finding.name, rich.markup.escape(finding.found))
    return rows


def main() -> int:
    """Prints the table and a line to copy for each lack; returns the exit status."""
    findings = examine(pathlib.Path.cwd())
    rich.console.Console().print(table(findings))
    for finding in findings:
        if finding.remedy:
            print(f"{finding.name}: {finding.remedy}")
    blocked = any(finding.blocks for finding in findings)
    verdict = "cannot run yet" if blocked else "can run"
    print(f"python -m experiments.create_avatar {verdict} here.")
    return int(blocked)


if __name__ == "__main__":
    sys.exit(main())
