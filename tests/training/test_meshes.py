"""Meshes change where a step is computed, and nothing else."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.training import meshes

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
"""Compiled without LLVM's optimisations, which takes less and changes no law."""
MESHES = ("8x1x1", "2x2x2", "1x8x1", "1x1x8")


@pytest.fixture(scope="module")
def found():
    """What `meshes` prints, by stage and mesh."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.training.meshes", "1x1x1", *MESHES],
        env=os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
    )
    lines = map(json.loads, ended.stdout.splitlines())
    return {(line["stage"], line["mesh"]): line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("stage", meshes.STAGES)
def test_eight_devices_have_the_losses_of_one(found, stage, mesh):
    one = found[stage, "1x1x1"]["losses"]
    assert len(set(one)) == 5
    # Sums of other orders: their round-off, which five steps of Adam carry on.
    np.testing.assert_allclose(found[stage, mesh]["losses"], one, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_come_together_layer_by_layer(found, mesh):
    """The largest kernel has a tenth of them."""
    assert found["1", mesh]["largest"] < found["1", mesh]["parameters"] / 4


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ("1x1x1", *MESHES))
@pytest.mark.parametrize("stage", meshes.STAGES)
def test_a_state_goes_on_on_another_mesh(found, stage, mesh):
    assert found[stage, mesh]["restored"]
