"""Sharded parameters come together layer by layer; where they do not, it is seen."""

import json
import os
import subprocess
import sys

import pytest

from tests.training import hlo

DEVICES = 8
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


def figures(word):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.training.gathers", word],
        env=os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(ended.stdout)


@pytest.fixture(scope="module", params=["layers", "up_front", "unsharded"])
def found(request):
    return request.param, figures(request.param)


@pytest.mark.slow
def test_only_a_device_with_all_rules_holds_its_share(found):
    word, sizes = found
    share = 1.1 * sizes["state"] / DEVICES
    assert (sizes["held"] <= share) == (word != "unsharded")


@pytest.mark.slow
def test_only_what_is_gathered_up_front_is_gathered_at_once(found):
    """The largest kernel has a tenth of the parameters."""
    word, sizes = found
    at_once = sizes["largest"] > sizes["parameters"] / 4
    assert at_once == (word == "up_front")


def test_an_all_gather_counts_with_all_of_its_results():
    text = """
  %a = f32[4,8]{1,0} all-gather(f32[4]{0} %p), dimensions={0}
  %b = (bf16[64]{0}, f32[]) all-gather-done(%q)
  %c = f32[999]{0} add(%p, %p)
"""
    assert hlo.largest_gather(text) == 132
    assert hlo.largest_gather("%c = f32[999]{0} add(%all-gather, %p)") == 0
