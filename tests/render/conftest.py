"""Skips what needs compiled kernels where they were not built."""

import warnings

import pytest

from geodiff_jax.render import ffi


@pytest.fixture
def kernels():
    """Asked for by tests that call the kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not ffi.available("cpu"):
            pytest.skip("the kernels are not built")


@pytest.fixture(autouse=True)
def _kernels_for_backend(request):
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params.get("backend") == "cpu":
        request.getfixturevalue("kernels")
