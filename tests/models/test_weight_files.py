"""Weights in files: what is read is what was written, and nothing else passes."""

import numpy as np
import pytest
import safetensors.numpy

from geodiff_jax.models import weight_files

VARIABLES = {
    "unet": {"params": {"conv_in": {"kernel": np.arange(6.0, dtype=np.float32)}}},
    "vae": {
        "params": {"bias": np.zeros((2, 3), np.float16)},
        "batch_stats": {"mean": np.ones(2, np.float32)},
    },
}
FACTS = {"source": "sd15", "sizes": {"channels": 32, "heads": [2, 4]}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    weight_files.save(path, VARIABLES, metadata=FACTS)
    return path


def test_reading_inverts_writing(file):
    variables, facts = weight_files.load(file)
    assert facts == FACTS
    weight_files.check(variables, VARIABLES)
    for module, collections in VARIABLES.items():
        for name in collections:
            np.testing.assert_equal(variables[module][name], collections[name])


def test_equal_weights_are_equal_files(file, tmp_path):
    other = tmp_path / "other.safetensors"
    weight_files.save(other, VARIABLES, metadata=dict(reversed(FACTS.items())))
    assert other.read_bytes() == file.read_bytes()


def test_other_files_are_refused(tmp_path, file):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weight_files.load(tmp_path / "none.safetensors")
    plain = tmp_path / "plain.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(1)}, plain)
    with pytest.raises(ValueError, match="got another file"):
        weight_files.load(plain)
    plain.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        weight_files.load(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["vae"].pop("batch_stats"), "as vae/batch_stats/mean, got nothing"),
        (lambda v: v["unet"]["params"].update(x=np.zeros(1)), "Expected nothing as"),
        (lambda v: v["vae"]["params"].update(bias=np.zeros((2, 3))), "float64"),
    ],
)
def test_weights_of_another_network_are_named(file, change, message):
    variables, _ = weight_files.load(file)
    change(variables)
    with pytest.raises(ValueError, match=message):
        weight_files.check(variables, VARIABLES)


def test_slashes_in_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="without a slash"):
        weight_files.save(tmp_path / "x", {"a/b": {"c": np.zeros(1)}}, metadata={})
