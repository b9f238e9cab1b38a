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


def states(count: int) -> list[dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    return [{"a": jnp.asarray(rng.normal(size=3000))} for _ in range(count)]


def series_of(folder: pathlib.Path, kept: list, *, keep: int = 3) -> None:
    series = checkpoint.Series(folder, keep=keep)
    for step, state in enumerate(kept):
        series.save(10 * step, state, metadata={"step": step}, own={"next": step})
    series.close()


def newest(folder: pathlib.Path) -> checkpoint.Found | None:
    series = checkpoint.Series(folder)
    found = series.restore(states(1)[0])
    series.close()
    return found


def test_a_series_keeps_the_newest(tmp_path):
    kept = states(4)
    series_of(tmp_path / "run", kept, keep=2)
    found = newest(tmp_path / "run")
    assert (found.step, found.metadata, found.own) == (30, {"step": 3}, [{"next": 3}])
    np.testing.assert_array_equal(found.tree["a"], kept[3]["a"])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "00000020",
        "00000030",
    ]
    alone = checkpoint.restore(tmp_path / "run" / "00000020", template=kept[0])
    np.testing.assert_array_equal(alone["a"], kept[2]["a"])


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    """The step after it gives the state's buffers away."""
    give_away = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
    )
    state = {"a": jnp.zeros(300_000)}
    series = checkpoint.Series(tmp_path)
    series.save(1, state)
    for _ in range(5):
        state = give_away(state)
    found = series.restore(state)
    series.close()
    assert (found.tree["a"] == 0).all()


@pytest.mark.parametrize("damage", ["flip", "cut", "unsealed"])
def test_the_step_before_a_damaged_one_is_found(tmp_path, capsys, damage):
    kept = states(2)
    series_of(tmp_path, kept)
    victim = largest_array_file(tmp_path / "00000010")
    if damage == "unsealed":  # Killed before it was finished, so nothing to tell.
        (tmp_path / "00000010" / "contents.json").unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content if damage == "flip" else content[:-7])
    found = newest(tmp_path)
    assert found.step == 0
    np.testing.assert_array_equal(found.tree["a"], kept[0]["a"])
    assert ("00000010" in capsys.readouterr().err) == (damage != "unsealed")
    series_of(tmp_path, kept)  # Saves over it.
    assert newest(tmp_path).step == 10


def test_a_series_without_an_intact_step_is_refused_unless_it_never_had_one(tmp_path):
    assert newest(tmp_path / "none") is None
    series_of(tmp_path / "run", states(1))
    largest_array_file(tmp_path / "run" / "00000000").unlink()
    with pytest.raises(ValueError, match="got 1 damaged ones"):
        newest(tmp_path / "run")


def test_another_configuration_is_no_reason_to_go_back(tmp_path):
    series_of(tmp_path, states(2))
    series = checkpoint.Series(tmp_path)
    with pytest.raises(ValueError, match=r"as a in the .*00000010.*1 more differ: b\)"):
        series.restore({"b": jnp.zeros(3)})
    series.close()


# Of orbax's own loop, closed before all of its writes had failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit", [100, 50_000])
def test_a_full_disk_is_told_and_the_last_good_step_stays(
    tmp_path, capsys, caplog, limit
):
    """Whether the arrays do not fit or not even their names."""
    noise = np.random.default_rng(0).random(100_000).astype(np.float32)
    series = checkpoint.Series(tmp_path)
    small = {"a": jnp.ones(2)}
    series.save(1, small)
    series.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        series.save(2, {"a": jnp.asarray(noise)})
        series.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Cannot save" in capsys.readouterr().err and not caplog.records
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    series.save(3, small)  # There is space again.
    assert series.restore(small).step == 3
    series.close()
    assert (tmp_path / "00000003" / "contents.json").exists()
