"""The backends that every rasterizer test runs over.

"cuda" needs a GPU. "emulated" is the same CUDA source compiled for the host
(kernels/device_on_host.h), registered under the same names: slow, but it runs anywhere.
"""

import functools
import pathlib
import subprocess
import tempfile

import jax
import pytest

from geodiff_jax.render import ffi

KERNELS = pathlib.Path(__file__).resolve().parents[2] / "kernels"


class Emulated(str):
    """The name "cuda" of a test that runs on the emulation."""


EMULATED = Emulated("cuda")
_CUDA = ("cuda", pytest.param(EMULATED, id="emulated", marks=pytest.mark.slow))
each_backend = pytest.mark.parametrize("backend", ("reference", "cpu", *_CUDA))
each_kernel = pytest.mark.parametrize("backend", ("cpu", *_CUDA))
each_cuda = pytest.mark.parametrize("backend", _CUDA)


@functools.cache
def emulate_cuda() -> None:
    """Compiles the CUDA kernels for the host and registers them as CPU kernels."""
    library = compile_emulation(pathlib.Path(tempfile.mkdtemp()))
    ffi.register(library, ffi.TARGETS["cuda"], "cpu")


def compile_emulation(folder: pathlib.Path, *flags: str) -> pathlib.Path:
    """The CUDA kernels as a library for the host."""
    everything = folder / "everything.cc"
    sources = sorted(KERNELS.glob("*.cu"))
    everything.write_text("".join(f'#include "{source}"\n' for source in sources))
    library = folder / "emulated.so"
    command = "g++ -std=c++17 -O1 -fPIC -shared -fvisibility=hidden -isystem".split()
    command += [jax.ffi.include_dir(), *flags, str(everything), "-o", str(library)]
    subprocess.run(command, check=True)
    return library
