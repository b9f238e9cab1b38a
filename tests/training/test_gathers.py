"""Sharded parameters come together layer by layer; where they do not, it is seen."""

import functools
import json
import os
import subprocess
import sys
import time

import jax
import pytest

from experiments.configs import generator, geodiff4d
from tests.training import hlo

DEVICES = 8
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

PARTITIONED = "after_spmd-partitioning"


@functools.cache
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


def partitioned(word, folder):
    """The program once XLA has split it over devices, which is where gathers are made;
    then its CPU backend takes longer than anyone would wait."""
    dump = f"--xla_dump_to={folder} --xla_dump_hlo_pass_re=spmd-partitioning"
    only = "--xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.gathers", word],
        env=os.environ
        | {"XLA_FLAGS": f"{FLAGS} {dump} {only}", "JAX_PLATFORMS": "cpu"},
    )
    seen = -1
    try:
        while True:
            time.sleep(3.0)
            assert process.poll() is None
            sizes = [x.stat().st_size for x in folder.glob(f"*{PARTITIONED}*")]
            if sizes and sizes[0] == seen:
                break
            seen = sizes[0] if sizes else -1
    finally:
        process.kill()
        process.wait()
    (found,) = folder.glob(f"*{PARTITIONED}*")
    return found.read_text()


@pytest.mark.slow
def test_the_small_size_is_gathered_layer_by_layer(tmp_path):
    state = generator.state_shapes(geodiff4d.get_config("stage=1,size=small"))
    parameters = [4 * x.size for x in jax.tree.leaves(state.params)]
    largest = hlo.largest_gather(partitioned("small", tmp_path))
    assert 0 < largest <= max(parameters) < sum(parameters) / 40


@pytest.mark.slow
def test_up_front_is_seen_in_what_is_partitioned(tmp_path):
    text = partitioned("up_front", tmp_path)
    assert hlo.largest_gather(text) >= figures("up_front")["parameters"]


def test_an_all_gather_counts_with_all_of_its_results():
    text = """
  %a = f32[4,8]{1,0} all-gather(f32[4]{0} %p), dimensions={0}
  %b = (bf16[64]{0}, f32[]) all-gather-done(%q)
  %c = f32[999]{0} add(%p, %p)
"""
    assert hlo.largest_gather(text) == 132
    assert hlo.largest_gather("%c = f32[999]{0} add(%all-gather, %p)") == 0
