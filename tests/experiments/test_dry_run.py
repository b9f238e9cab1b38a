"""What a run would take on devices that are not here, by the command line."""

import os
import subprocess
import sys

import pytest

from experiments import paper_size
from experiments.configs import generator, geoface

DEVICES = 256 * 8


@pytest.fixture(scope="module")
def said():
    """What the command says, by name, with one device, no workdir and no data."""
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.train_denoiser", "--dry_run"]
        + ["--config=experiments/configs/geoface.py:size=tiny", "--mesh=256x8x1"]
        + [f"--config.batch={DEVICES}"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return {line[:30].strip(): line[30:] for line in ended.stdout.splitlines()}


def number(text, unit):
    value, found = text.split()
    assert found == unit
    return float(value)


def test_parameters_are_those_of_the_network(said):
    state = generator.state_shapes(geoface.get_config("size=tiny"))
    parameters = paper_size.count((state.params, state.resting))
    assert said["mesh"] == "data 256 fsdp 8 tensor 1"
    assert said["parameters"] == f"{parameters / 1e6:.2f} M"


def test_devices_share_the_state_and_the_work(said):
    """Figures have three decimals."""
    whole, held = (number(said[x], "GB") for x in ("state", "state per device"))
    assert whole / 8 - 1e-3 <= held <= whole / 4
    assert 0.0 < number(said["gradients per device"], "GB") < held
    assert number(said["batch per device"], "MB") > 0.0
    assert said["items per device"] == f"1 of {DEVICES}"
    names = ("operations of a step", "operations per device")
    step, own = (number(said[x], "TFLOP") for x in names)
    assert abs(own - step / DEVICES) < 1e-3 and step > 1.0
