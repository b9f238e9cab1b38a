"""The CPU kernels' gradients in double precision; see differentiate.cc."""

import subprocess

from tests.kernels import test_driver

OPERANDS = "means quaternions scales opacities features camera intrinsics"
OPERANDS += " background offsets"


def test_gradients_in_double_precision_are_finite_differences(tmp_path):
    """Three orders below what float32 allows."""
    source = test_driver.DRIVER.with_name("differentiate.cc")
    program = test_driver.build(tmp_path, "g++", source=source)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == 3 * OPERANDS.split()
    for name, norm, error, kinks in lines:
        assert float(norm) > 1, name
        assert float(error) < 1e-7 * float(norm), name
        assert int(kinks) <= 3, name
