"""A head survives its file, and nothing else passes for one."""

import json
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

from geodiff_jax.head import files, procedural
from geodiff_jax.head import model as head_model
from tests.head import random_head


@pytest.mark.parametrize("correctives", [True, False])
def test_a_head_survives_its_file(tmp_path, correctives):
    head = random_head.load().replace(eyelids_after_skinning=correctives)
    if not correctives:
        head = head.replace(pose_basis=None, joint_expression_basis=None)
    files.save(tmp_path / "head.safetensors", head)
    again = files.load(tmp_path / "head.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(head)
    for before, after in zip(
        jax.tree.leaves(head), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


def test_equal_heads_make_equal_files(tmp_path):
    for name in "ab":
        files.save(tmp_path / name, random_head.load())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_head_loads_at_once(tmp_path):
    files.save(tmp_path / "head", procedural.load())
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(files.load(tmp_path / "head"))
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.2


def test_any_changed_byte_is_found(tmp_path):
    path = tmp_path / "head"
    files.save(path, random_head.load())
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="Expected a head"):
            files.load(path)
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="damaged"):
        files.load(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no head at"):
        files.load(tmp_path / "none")
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"template": np.zeros((3, 3))}, path)
    with pytest.raises(ValueError, match="something else"):
        files.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uv": None}, "no uv"),
        ({"uv": np.zeros((30, 3), np.float32)}, "uv is float32"),
        ({"faces": np.full((40, 3), 30)}, "faces point beyond their 30"),
        ({"regions.face": np.zeros(30)}, "regions.face is float64"),
        ({"identity_basis": np.zeros((9, 30, 3))}, "identity_basis is"),
        ({"more": np.zeros(3)}, "nothing knows more"),
    ],
)
def test_heads_whose_parts_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "head"
    files.save(path, random_head.load())
    with safetensors.safe_open(path, framework="numpy") as stored:
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}
        facts = json.loads(stored.metadata()["head"])
    arrays = {k: v for k, v in (arrays | change).items() if v is not None}
    unsealed = {k: v for k, v in facts.items() if k not in ("format", "sha256")}
    facts["sha256"] = files._digest(arrays, unsealed)  # Sealed by whoever made it.
    safetensors.numpy.save_file(arrays, path, {"head": json.dumps(facts)})
    with pytest.raises(ValueError, match=message):
        files.load(path)


def test_every_field_of_a_head_is_in_the_file():
    """So that a field that is added to the model is not forgotten here."""
    fields = set(head_model.HeadModel.__dataclass_fields__)
    static = {"version", "identity_names", "expression_names", "eyelids_after_skinning"}
    stored = {name.partition(".")[0] for name in files._SHAPES}
    assert stored == fields - static
