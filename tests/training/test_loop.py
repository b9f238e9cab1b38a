"""Runs go on where they ended, whatever ended them, and tell what they do."""

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from geodiff_jax import checkpoint
from geodiff_jax.training import loop
from tests.training import toy

TIMED = ("_per_s", "data_wait_share", "memory_mb")


def lines_of(folder):
    return [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]


def curve(folder):
    """What the log says but for times and memory."""
    return [
        {k: v for k, v in line.items() if not k.endswith(TIMED)}
        for line in lines_of(folder)
    ]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, toy.run(folder, 10)


def test_a_log_tells_losses_rates_and_counters(uninterrupted):
    folder, state = uninterrupted
    assert state.step == 10
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == list(range(1, 11))
    known = {"loss", "loss/domain0", "gradient_norm", "learning_rate", "skipped"}
    known |= {"steps_per_s", "images_per_s", "tflops_per_s", "data_wait_share"}
    known |= {"replaced"}
    assert known | {"memory_mb"} <= set(lines[-1])
    last = lines[-1]
    assert last["images_per_s"] == pytest.approx(4 * last["steps_per_s"])
    assert last["tflops_per_s"] == pytest.approx(3e-6 * last["steps_per_s"])
    rates = [line["learning_rate"] for line in lines]
    expected = 0.01 * np.minimum((1 + np.arange(10)) / 6, 1)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_lines_are_means_since_the_line_before(uninterrupted, tmp_path):
    folder, _ = uninterrupted
    toy.run(tmp_path, 10, log_every=4)
    each, means = lines_of(folder), lines_of(tmp_path)
    assert [line["step"] for line in means] == [4, 8, 10]
    for line, steps in zip(means, (each[:4], each[4:8], each[8:]), strict=True):
        for name in ("loss", "loss/time0_domain0"):
            # No item of a step may have such a time; the rest still have a mean.
            values = [step[name] for step in steps if name in step]
            assert line.get(name) == (
                pytest.approx(np.mean(values)) if values else None
            )


def test_a_run_goes_on_as_if_it_had_not_ended(uninterrupted, tmp_path):
    folder, state = uninterrupted
    toy.run(tmp_path, 6)
    assert_same(toy.run(tmp_path, 10), state)
    assert curve(tmp_path) == curve(folder)


def test_what_was_noted_after_the_last_save_is_noted_once(uninterrupted, tmp_path):
    """As if killed at step 6: the last checkpoint is of step 4."""
    folder, state = uninterrupted
    toy.run(tmp_path, 6)
    newest = tmp_path / "checkpoints" / "00000006" / "contents.json"
    newest.unlink()
    assert_same(toy.run(tmp_path, 10), state)
    assert curve(tmp_path) == curve(folder)


def test_one_looks_at_every_so_many_steps_and_at_the_last(uninterrupted, tmp_path):
    folder, state = uninterrupted
    seen = []

    def look(number, state, log):
        seen.append(number)
        assert number == state.step
        log.scalars(number, {"held_out": number})

    options = {"look_every": 4, "look": look}
    toy.run(tmp_path, 6, **options)
    assert_same(toy.run(tmp_path, 10, **options), state)
    # The first run's last step, and from there on.
    assert seen == [4, 6, 8, 10]
    noted = [line for line in curve(tmp_path) if "held_out" in line]
    assert [line["step"] for line in noted] == seen
    assert [line for line in curve(tmp_path) if line not in noted] == curve(folder)


@pytest.mark.parametrize("steps", [(3, 4), (9, 99)])
def test_steps_are_traced_and_the_run_is_the_same(uninterrupted, tmp_path, steps):
    """Also where the run ends before they do."""
    _, state = uninterrupted
    profile = loop.Profile(tmp_path / "profile", *steps)
    assert_same(toy.run(tmp_path, 10, profile=profile), state)
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found = {e["args"]["step_num"] for e in events if e.get("name") == "train"}
    assert found == {str(x) for x in range(1, 11) if steps[0] <= x <= steps[1]}


class Terminating(toy.Batches):
    """Someone ends the process while it reads the sixth batch."""

    def __next__(self):
        if self.number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__next__()


def test_sigterm_saves_and_ends(uninterrupted, tmp_path):
    folder, state = uninterrupted
    before = signal.getsignal(signal.SIGTERM)
    assert toy.run(tmp_path, 10, batches=Terminating()).step == 6
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints" / "00000006" / "contents.json").exists()
    assert_same(toy.run(tmp_path, 10), state)
    assert curve(tmp_path) == curve(folder)


class Filling(toy.Batches):
    """The disk is full when the eighth step is logged and saved, and then no more."""

    def __init__(self, folder):
        super().__init__()
        self.saves = folder / "checkpoints"

    def __next__(self):
        if self.number in (7, 8):  # Saving goes on beside the steps: wait for its end.
            last = self.saves / "00000004" / "contents.json"
            while not last.exists() or (self.saves / "00000008").exists():
                time.sleep(0.01)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            limit = 100 if self.number == 7 else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return super().__next__()


# Of orbax's own loop, closed before all of its writes had failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(
    uninterrupted, tmp_path, capsys
):
    folder, state = uninterrupted
    assert_same(toy.run(tmp_path, 10, batches=Filling(tmp_path)), state)
    assert curve(tmp_path) == curve(folder)
    said = capsys.readouterr().err
    assert said.count("Cannot log to") == said.count("00000008: File too large") == 1
    saved = sorted(x.name for x in (tmp_path / "checkpoints").iterdir())
    assert saved == ["00000004", "00000010"]


def test_bad_steps_are_counted_and_too_many_end_the_run(tmp_path):
    state = toy.run(tmp_path / "some", 10, batches=toy.Batches(range(3, 5)))
    assert (state.skipped, state.failing) == (2, 0)
    assert [line["skipped"] for line in lines_of(tmp_path / "some")[2:6]] == [
        0,
        1,
        2,
        2,
    ]
    assert "loss" not in lines_of(tmp_path / "some")[3]
    with pytest.raises(FloatingPointError, match="in the last 3 steps up to 6"):
        toy.run(tmp_path / "many", 10, batches=toy.Batches(range(3, 9)), most_failing=3)


def test_other_numbers_of_processes_are_refused_if_their_data_differed(tmp_path):
    toy.run(tmp_path, 4)
    seal = tmp_path / "checkpoints" / "00000004" / "contents.json"
    contents = json.loads(seal.read_text())
    contents["metadata"]["own"] = [{"next": 4}, {"next": 4}]
    seal.write_text(json.dumps(contents))
    assert toy.run(tmp_path, 5).step == 5
    contents["metadata"]["own"] = [{"next": 4}, {"next": 5}]
    seal.write_text(json.dumps(contents))
    (tmp_path / "checkpoints" / "00000005" / "contents.json").unlink()
    with pytest.raises(ValueError, match="Expected 2 processes"):
        toy.run(tmp_path, 5)


@pytest.mark.slow
def test_killed_at_any_moment_the_curve_goes_on_bit_for_bit(tmp_path):
    """Kills fall into steps and saves alike, as there is a save at each fourth step."""
    steps, folder = 400, tmp_path / "killed"
    command = [sys.executable, "-m", "tests.training.toy"]
    toy.run(tmp_path / "whole", steps)
    chance, kills = random.Random(0), 0
    while kills < 3:
        process = subprocess.Popen([*command, folder, str(steps)])
        begun = _saves(folder)
        while _saves(folder) <= begun and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break
    assert kills
    subprocess.run([*command, folder, str(steps)], check=True)
    assert curve(folder) == curve(tmp_path / "whole")
    series = [
        checkpoint.Series(x / "checkpoints") for x in (folder, tmp_path / "whole")
    ]
    ends = [each.restore(toy.first_state()).tree for each in series]
    assert_same(*ends)


def _saves(folder):
    """The step of the newest save, whether it is finished or not."""
    return max((int(x.name) for x in folder.glob("checkpoints/0*")), default=0)
