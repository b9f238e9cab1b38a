"""Finds, registers and calls the compiled kernels; nothing else touches `jax.ffi`.

`setup.py` builds one shared library per instruction set, `_kernels_<isa>.so`, and with
nvcc `_kernels_cuda.so`, beside this file. The one that fits the processor is loaded;
without any, the jnp references run. `GEODIFF_JAX_ISA` (baseline, avx2, avx512) forces
a build.
"""

import ctypes
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

TARGETS = {
    "cpu": ("mesh_rasterize", "mesh_interpolate", "splat_forward", "splat_backward"),
    "cuda": ("mesh_rasterize_cuda", "splat_forward_cuda", "splat_backward_cuda"),
}
BACKENDS = (None, "reference", "cpu", "cuda")
_FOLDER = pathlib.Path(__file__).parent
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_COMPILERS = {"cpu": "a C++ compiler", "cuda": "nvcc"}
# As in kernels/stages.h.
_STAGES = ("project", "sort", "bin", "blend", "blend_adjoint", "project_adjoint")


@functools.cache
def available(platform: str) -> bool:
    """Whether compiled kernels for `platform` are here; loads them, warns once if not.

    That "cuda" kernels load says nothing about a GPU: programs may be lowered for one
    that is elsewhere.
    """
    if platform not in TARGETS:
        return False
    try:
        register(_library_path(platform), TARGETS[platform], platform)
    except OSError as error:
        warnings.warn(
            f"geodiff_jax has no compiled kernels for {platform} ({error}): the slow "
            f"reference rasterizers run instead; install {_COMPILERS[platform]}, then "
            "run `python setup.py build_kernels --inplace`.",
            stacklevel=2,
        )
        return False
    return True


def register(library: pathlib.Path, targets: Sequence[str], platform: str) -> None:
    """Loads a library and registers its handlers with XLA."""
    loaded = ctypes.CDLL(str(library))
    for target in targets:
        jax.ffi.register_ffi_target(
            f"geodiff_jax_{target}",
            jax.ffi.pycapsule(getattr(loaded, target)),
            platform={"cpu": "cpu", "cuda": "CUDA"}[platform],
        )


def instruction_sets() -> tuple[str, ...]:
    """Builds of the kernels that this processor can run, the best one last.

    Raises OSError if the kernels were not built.
    """
    baseline = ctypes.CDLL(str(_FOLDER / "_kernels_baseline.so"))
    baseline.kernels_best_isa.restype = ctypes.c_char_p
    best = baseline.kernels_best_isa().decode()
    return _INSTRUCTION_SETS[: _INSTRUCTION_SETS.index(best) + 1]


def stage_seconds() -> dict[str, float]:
    """Wall seconds that this process has spent in each stage of splatting on the CPU.

    Raises OSError if the kernels were not built.
    """
    library = ctypes.CDLL(str(_library_path("cpu")))
    seconds = (ctypes.c_double * len(_STAGES))()
    library.splat_stage_seconds(seconds)
    return dict(zip(_STAGES, seconds, strict=True))


def _library_path(platform: str) -> pathlib.Path:
    if platform == "cuda":
        return _FOLDER / "_kernels_cuda.so"
    isa = os.environ.get("GEODIFF_JAX_ISA") or instruction_sets()[-1]
    return _FOLDER / f"_kernels_{isa}.so"


def call(
    target: str,
    results: Sequence[jax.ShapeDtypeStruct],
    *operands: jax.Array,
    **attributes: Any,
) -> Sequence[jax.Array]:
    """Calls a kernel; under vmap it receives all images at once, with leading axes."""
    kernel = jax.ffi.ffi_call(
        f"geodiff_jax_{target}", tuple(results), vmap_method="expand_dims"
    )
    return kernel(*operands, **attributes)


def implementations(backend: str | None) -> dict[str, str]:
    """What runs where: "cpu", "cuda" or "reference" by platform, "default" elsewhere.

    None chooses by the platform that the program is compiled for; without a GPU in
    this process that is never CUDA. "cpu" and "cuda" raise RuntimeError if their
    kernels were not built.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}.")
    if backend == "reference":
        return {"default": "reference"}
    if backend is not None:
        if not available(backend):
            raise RuntimeError(
                f'backend="{backend}" needs the compiled kernels; run `python setup.py '
                f"build_kernels --inplace` with {_COMPILERS[backend]}."
            )
        return {"default": backend}
    platform = jax.default_backend()
    cpu = "cpu" if available("cpu") else "reference"
    # Where there are only CPUs, spare the time to trace what nobody runs.
    if platform == "cpu":
        return {"default": cpu}
    if platform == "gpu":
        return {"cpu": cpu, "cuda": "cuda" if available("cuda") else "reference"}
    return {"cpu": cpu, "default": "reference"}


def dispatch(*operands: Any, backend: str | None, **kernels: Callable) -> Any:
    """Runs the kernel or its reference twin on the operands.

    `kernels` are by name: cpu, cuda and reference.
    """
    chosen = implementations(backend)
    if set(chosen) == {"default"}:
        return kernels[chosen["default"]](*operands)
    by_platform = {platform: kernels[name] for platform, name in chosen.items()}
    return jax.lax.platform_dependent(*operands, **by_platform)
