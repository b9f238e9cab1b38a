"""What was saved comes back, and nothing else does."""

import pathlib
import resource

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax import checkpoint


@flax.struct.dataclass
class Pair:
    left: jax.Array
    right: dict[str, jax.Array]
    name: str = flax.struct.field(pytree_node=False)


def example() -> Pair:
    return Pair(
        left=jnp.arange(6.0).reshape(2, 3),
        right={"a": jnp.asarray(True), "b": jnp.ones(3, jnp.bfloat16)},
        name="example",
    )


def test_restore_inverts_save(tmp_path):
    checkpoint.save(tmp_path / "state", example(), metadata={"head": "x 1", "n": [1]})
    found = checkpoint.restore(tmp_path / "state", template=example())
    assert jax.tree.structure(found) == jax.tree.structure(example())
    jax.tree.map(np.testing.assert_array_equal, found, example())
    assert found.right["b"].dtype == jnp.bfloat16
    assert checkpoint.read_metadata(tmp_path / "state") == {"head": "x 1", "n": [1]}


def test_restore_needs_no_template(tmp_path):
    checkpoint.save(tmp_path / "state", example())
    found = checkpoint.restore(tmp_path / "state")
    np.testing.assert_array_equal(found["left"], example().left)
    assert set(found["right"]) == {"a", "b"}


def test_saving_again_replaces(tmp_path):
    checkpoint.save(tmp_path / "state", {"old": jnp.zeros(2), "a": jnp.zeros(2)})
    checkpoint.save(tmp_path / "state", {"a": jnp.ones(2)})
    found = checkpoint.restore(tmp_path / "state")
    assert list(found) == ["a"] and (found["a"] == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_relative_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("state", {"a": jnp.ones(2)})
    assert (checkpoint.restore("state")["a"] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"left": jnp.zeros((2, 4))},
            r"float32\[2, 4\] as left .* got float32\[2, 3\]",
        ),
        ({"left": jnp.zeros((2, 3), int)}, r"int32\[2, 3\] as left"),
        ({"right": {"a": jnp.asarray(True)}}, r"nothing as right.b .* bfloat16\[3\]"),
    ],
)
def test_another_structure_is_refused_in_one_sentence(tmp_path, change, message):
    checkpoint.save(tmp_path / "state", example())
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "state", template=example().replace(**change))


def largest_array_file(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.rglob("d/*"), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "unsealed", "empty"])
def test_damaged_folders_are_refused_in_one_sentence(tmp_path, damage):
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    checkpoint.save(tmp_path / "state", {"a": jnp.asarray(values)})
    victim = largest_array_file(tmp_path / "state")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flip":
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[:-7])
    elif damage == "gone":
        victim.unlink()
    elif damage == "unsealed":
        (tmp_path / "state" / "contents.json").unlink()
    else:
        (tmp_path / "state" / "contents.json").write_text("")
    with pytest.raises(ValueError, match=r"^Expected a.* anew\.$"):
        checkpoint.restore(tmp_path / "state")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint at"):
        checkpoint.restore(tmp_path / "state")


def test_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(tmp_path, caplog):
    checkpoint.save(tmp_path / "state", {"a": jnp.ones(2)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).random(100_000).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"^Cannot write .*file size"):
            checkpoint.save(tmp_path / "state", {"a": jnp.asarray(noise)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not caplog.records
    assert (checkpoint.restore(tmp_path / "state")["a"] == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
