"""What the README shows works."""

import pathlib
import re

from experiments.configs import geodiff4d
from geodiff_jax import sharding
from tests import pods

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def test_the_rasterizer_example_fits_its_image():
    text = README.read_text()
    code = re.search(r"<!-- example: tested -->\n```python\n(.*?)```", text, re.S)
    assert code is not None
    names: dict = {}
    exec(code[1], names)  # The README is ours.
    # Grey everywhere has an error of 0.22.
    assert names["loss"] < 0.02
    assert len(code[1].splitlines()) <= 45


def test_the_meshes_of_the_pod_share_out_the_papers_batches():
    text = README.read_text()
    section = text[text.index("## Train on a pod") : text.index("## The rasterizer")]
    commands = [x for x in section.split("train_denoiser") if "--workdir=/" in x]
    devices = []
    for command in commands:
        mesh = re.search(r"--mesh=(\d+)x(\d+)x(\d+)", command)
        config = re.search(r"geodiff4d\.py:(\S+)", command)
        assert mesh is not None and config is not None
        shape = (int(mesh[1]), int(mesh[2]), int(mesh[3]))
        batch = geodiff4d.get_config(config[1]).batch
        sharding.check_batch(batch, sharding.abstract_mesh(shape))
        for kind in pods.SLICES if "--cluster" in command else ():
            slice_mesh = sharding.make_mesh(shape, devices=pods.chips(kind))
            assert batch % sharding.own_share(slice_mesh, process=0)[1] == 0
        devices.append(shape[0] * shape[1] * shape[2])
    # One host of eight, eight of them, and the slice in both stages.
    assert devices == [8, 64, 64, 64]
