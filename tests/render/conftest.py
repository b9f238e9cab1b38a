"""Skips what needs compiled kernels, or a GPU, where there are none."""

import shutil
import warnings

import jax
import pytest

from geodiff_jax.render import ffi
from tests.render import backends


@pytest.fixture
def kernels():
    """Asked for by tests that call the CPU kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not ffi.available("cpu"):
            pytest.skip("the kernels are not built")


@pytest.fixture(autouse=True)
def _kernels_for_backend(request, monkeypatch):
    parameters = getattr(request.node, "callspec", None)
    backend = parameters and parameters.params.get("backend")
    if isinstance(backend, backends.Emulated):
        if jax.default_backend() != "cpu" or not shutil.which("g++"):
            pytest.skip("emulation is for machines with g++ and without a GPU")
        backends.emulate_cuda()
        monkeypatch.setattr(ffi, "available", lambda platform: True)
    elif backend == "cuda":
        if jax.default_backend() != "gpu":
            pytest.skip("there is no GPU")
        if not ffi.available("cuda"):
            pytest.skip("the CUDA kernels are not built")
    elif backend == "cpu":
        request.getfixturevalue("kernels")
