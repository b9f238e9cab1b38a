"""Everything of this project that needs a GPU, in one command: tests, then timings.

python -m experiments.benchmarks.gpu_check [--json=FILE]

Exit status 1 if a test fails, 2 without a GPU or kernels for it.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import jax
from absl import app, flags

from experiments.benchmarks import heads, splatting, timing
from geodiff_jax.render import ffi

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ("tests/render", "-k", "cuda", "-m", "not slow")


def run_tests() -> dict[str, int]:
    """How many of the GPU's tests ran, failed and were skipped.

    In a process of its own, which takes GPU memory as it needs it: by default jax
    takes most of it at once, and this process has done so already.
    """
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "found.xml"
        command = [sys.executable, "-m", "pytest", *TESTS, f"--junitxml={found}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        suite = xml.etree.ElementTree.parse(found).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "skipped")}
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    return {**counts, "failed": failed}


def refusal() -> str | None:
    """Why this machine cannot be checked, and what mends it."""
    if jax.default_backend() != "gpu":
        return f"jax runs on {jax.default_backend()} here; install jax[cuda13]."
    if not ffi.available("cuda"):
        return "the CUDA kernels are not built; run `make kernels` where nvcc is found."
    return None


def main(argv: list[str]) -> None:
    """Tests, measures, prints, writes."""
    del argv
    if reason := refusal():
        print(f"gpu_check: {reason}", file=sys.stderr)
        sys.exit(2)
    tests = run_tests()
    about = {**timing.machine(), **{f"gpu_{k}": v for k, v in tests.items()}}
    values = flags.FLAGS
    rows = list(splatting.rows(about))
    rows += heads.rows(backend=values.backend, runs=values.runs)
    timing.report(
        "On this GPU", about, rows, hidden=splatting.HIDDEN, json_path=values.json
    )
    sys.exit(1 if tests["failed"] else 0)


if __name__ == "__main__":
    app.run(main)
