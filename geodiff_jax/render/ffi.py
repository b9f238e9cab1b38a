"""Finds, registers and calls the compiled kernels; nothing else touches `jax.ffi`.

`setup.py` builds one shared library per instruction set, `_kernels_<isa>.so`, beside
this file. The one that fits the processor is loaded; without any, the jnp
references run. `GEODIFF_JAX_ISA` (baseline, avx2, avx512) forces a build.
"""

import ctypes
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

TARGETS = ("mesh_rasterize", "splat_forward", "splat_backward")
BACKENDS = (None, "reference", "cpu")
_FOLDER = pathlib.Path(__file__).parent
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


@functools.cache
def available(platform: str) -> bool:
    """Whether compiled kernels run on `platform`; loads them, warns once if not."""
    if platform != "cpu":
        return False
    try:
        library = _load_library()
    except OSError as error:
        warnings.warn(
            f"geodiff_jax has no compiled kernels ({error}): the slow reference "
            "rasterizers run instead; install a C++ compiler, then run "
            "`python setup.py build_kernels --inplace`.",
            stacklevel=2,
        )
        return False
    for target in TARGETS:
        jax.ffi.register_ffi_target(
            f"geodiff_jax_{target}",
            jax.ffi.pycapsule(getattr(library, target)),
            platform="cpu",
        )
    return True


def instruction_sets() -> tuple[str, ...]:
    """Builds of the kernels that this processor can run, the best one last.

    Raises OSError if the kernels were not built.
    """
    baseline = ctypes.CDLL(str(_FOLDER / "_kernels_baseline.so"))
    baseline.kernels_best_isa.restype = ctypes.c_char_p
    best = baseline.kernels_best_isa().decode()
    return _INSTRUCTION_SETS[: _INSTRUCTION_SETS.index(best) + 1]


def _load_library() -> ctypes.CDLL:
    isa = os.environ.get("GEODIFF_JAX_ISA") or instruction_sets()[-1]
    return ctypes.CDLL(str(_FOLDER / f"_kernels_{isa}.so"))


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


def dispatch(
    *operands: Any, backend: str | None, cpu: Callable, reference: Callable
) -> Any:
    """Runs the kernel or its reference twin on the operands.

    None chooses by the platform that the program is compiled for. "cpu" raises
    RuntimeError if the kernels were not built.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}.")
    if backend == "reference":
        return reference(*operands)
    compiled = available("cpu")
    if backend == "cpu" and not compiled:
        raise RuntimeError(
            'backend="cpu" needs the compiled kernels; run '
            "`python setup.py build_kernels --inplace` with a C++ compiler."
        )
    if not compiled:
        return reference(*operands)
    # Where there are only CPUs, spare the time to trace a reference that nobody runs.
    if backend == "cpu" or jax.default_backend() == "cpu":
        return cpu(*operands)
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=reference)
