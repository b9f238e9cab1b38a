"""The CPU kernels under sanitizers, a fuzzer and another processor; see drive.cc.

`make sanitize` runs them for longer.
"""

import os
import pathlib
import shutil
import subprocess

import jax
import numpy as np
import pytest

from geodiff_jax.render import ffi

pytestmark = pytest.mark.slow

DRIVER = pathlib.Path(__file__).with_name("drive.cc")
SECONDS = os.environ.get("GEODIFF_JAX_SANITIZE_SECONDS", "5")
MEMORY = "address,undefined,float-cast-overflow"


def simd() -> list[str]:
    """Flags for the widest vectors that every sanitizer here can run."""
    return ["-mavx2", "-mfma"] if "avx2" in ffi.instruction_sets() else []


def build(folder: pathlib.Path, compiler: str, *flags: str, source=DRIVER) -> str:
    """The driver as compiled by `compiler`; skips by name without it."""
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    program = str(folder / f"drive_{compiler}")
    command = [compiler, "-std=c++17", "-g", "-O1", "-isystem", jax.ffi.include_dir()]
    command += [*flags, str(source), "-o", program, "-pthread"]
    subprocess.run(command, check=True)
    return program


def checks(sanitizers: str) -> list[str]:
    return [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize(
    ("sanitizers", "wide"), [(MEMORY, False), (MEMORY, True), ("thread", True)]
)
def test_kernels_pass_the_sanitizers(tmp_path, sanitizers, wide):
    program = build(tmp_path, "g++", *checks(sanitizers), *(simd() if wide else ()))
    done = subprocess.run([program, SECONDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 100, done.stdout


def test_the_driver_notices_what_it_is_for(tmp_path):
    """A Gaussian more than the caller has: found within a second."""
    wrong = tmp_path / "wrong.cc"
    text = DRIVER.read_text().replace(
        '"../../kernels/', f'"{DRIVER.parents[2]}/kernels/'
    )
    assert "scene.num_gaussians = n;" in text
    wrong.write_text(
        text.replace("scene.num_gaussians = n;", "scene.num_gaussians = n + 1;")
    )
    program = build(tmp_path, "g++", *checks(MEMORY), source=wrong)
    done = subprocess.run([program, "5"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_kernels_survive_a_fuzzer(tmp_path):
    program = build(tmp_path, "clang++", *checks(f"fuzzer,{MEMORY}"), "-DFUZZ", *simd())
    # Single allocations are bounded, not the process: Linux counts into its peak what
    # the process that started it held.
    limits = ["-rss_limit_mb=0", "-malloc_limit_mb=256"]
    command = [program, f"-max_total_time={SECONDS}", "-max_len=4096", *limits]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_another_processor_agrees_to_rounding(tmp_path):
    """NEON, under emulation, against what this machine computes with four lanes."""
    if not shutil.which("qemu-aarch64"):
        pytest.skip("there is no qemu-aarch64")
    arm = build(tmp_path, "aarch64-linux-gnu-g++", "-static")
    here = build(tmp_path, "g++")
    texts = [
        subprocess.run([*command, "print"], check=True, capture_output=True, text=True)
        for command in (["qemu-aarch64", arm], [here])
    ]
    found, expected = (
        [np.array(line.split(), float) for line in text.stdout.splitlines()]
        for text in texts
    )
    assert len(found) == 13
    for ours, theirs in zip(found, expected, strict=True):
        assert np.linalg.norm(theirs) > 0
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    subprocess.run(["qemu-aarch64", arm, "5"], check=True)
