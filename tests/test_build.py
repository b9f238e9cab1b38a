"""The build of the kernels: without a compiler, and for GPUs that are not here."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def build(folder, **environment):
    """Builds the kernels from a copy of their sources."""
    shutil.copy(ROOT / "setup.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "kernels", folder / "kernels")
    return build_again(folder, **environment)


def build_again(folder, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "CXX"}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_kernels", "--inplace"],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_compiler_one_warning_and_no_failure(tmp_path):
    done = build(tmp_path, PATH=str(tmp_path))
    assert done.stderr.count("WARNING") == 1 and "compiler" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_arithmetic_is_that_of_the_standard():
    """No fast-math, by flag, pragma or attribute: NaN stays NaN, sums keep their order.

    -fno-math-errno and -fno-trapping-math change no value.
    """
    sources = [ROOT / "setup.py"]
    sources += [
        p for p in (ROOT / "kernels").iterdir() if p.suffix in {".cc", ".cu", ".h"}
    ]
    everything = "".join(path.read_text() for path in sources)
    assert "-fno-math-errno" in everything and "namespace geodiff" in everything
    loose = (
        r"fast[-_]math|Ofast|unsafe-math|finite-math|reciprocal-math|associative-math|"
        r"no-signed-zeros|no-honor|ftz=true|prec-\w+=false|float_control|fp reassociate"
    )
    assert not re.findall(loose, everything)


@pytest.mark.slow
def test_without_nvcc_one_warning_and_kernels_for_cpus(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("g++", "as", "ld"):
        if shutil.which(tool):
            (tools / tool).symlink_to(shutil.which(tool))
    done = build(tmp_path, PATH=str(tools))
    assert done.stderr.count("WARNING") == 1 and "nvcc" in done.stderr
    names = {path.name for path in tmp_path.rglob("*.so")}
    assert "_kernels_baseline.so" in names and "_kernels_cuda.so" not in names

    def times():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}

    before = times()
    build_again(tmp_path, PATH=str(tools))
    assert times() == before
    (tmp_path / "kernels" / "simd.h").touch()
    build_again(tmp_path, PATH=str(tools))
    assert all(after > before[name] for name, after in times().items())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
def test_cuda_kernels_compile_for_ampere_hopper_and_blackwell(tmp_path):
    architectures = ("80", "90", "100")
    wanted = " ".join(architectures)
    done = build(tmp_path, GEODIFF_JAX_CUDA_ARCHITECTURES=wanted)
    assert "warning" not in done.stderr.lower()
    (library,) = tmp_path.rglob("_kernels_cuda.so")
    content = library.read_bytes()
    for architecture in architectures:
        assert f"sm_{architecture}".encode() in content
