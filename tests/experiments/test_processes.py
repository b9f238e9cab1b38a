"""Two processes train as one does, and if one of them is lost the other says so."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import latent_codec
from geodiff_jax import checkpoint
from tests.experiments import small_command, toy_codec
from tests.training import meshes

pytestmark = pytest.mark.slow
SENTENCE = "start all again by the same commands"


def start(folder, words, *, devices, module="tests.experiments.small_command"):
    """The command on so many devices; what it says lies in FOLDER/said.

    Without a cache of compiled programs: who is served from it waits for who is not,
    and Gloo, which joins CPUs, gives up after half a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", module, *words]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT
        )


def start_two(folder, words, **options):
    """One run of two processes with four devices each; the workdir is FOLDER/run."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    together = (
        f"--workdir={folder / 'run'}",
        "--mesh=2x4x1",
        f"--coordinator_address=localhost:{port}",
        "--num_processes=2",
    )
    return [
        start(
            folder / str(i),
            (*together, *words, f"--process_id={i}"),
            devices=4,
            **options,
        )
        for i in (0, 1)
    ]


def ended_well(process, folder):
    assert process.wait(600) == 0, (folder / "said").read_text()


def losses(workdir):
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def first_stages(tmp_path_factory):
    """A folder with two/run and one, the workdirs of both; one is a step ahead."""
    folder, words = tmp_path_factory.mktemp("stage1"), [*small_command.words()]
    pair = start_two(folder / "two", words)
    for i, process in enumerate(pair):
        ended_well(process, folder / "two" / str(i))
    words.append(f"--config.steps={meshes.STEPS + 1}")
    alone = (*words, f"--workdir={folder / 'one'}", "--mesh=1x1x1")
    ended_well(start(folder / "alone", alone, devices=1), folder / "alone")
    return folder


def check_same_losses(found, expected, *, steps=meshes.STEPS):
    assert len(set(found)) == len(found) == steps
    # Sums of other orders: their round-off, which five steps of Adam carry on.
    np.testing.assert_allclose(found, expected[:steps], rtol=1e-5)


def test_two_processes_have_the_losses_of_one_device(first_stages):
    check_same_losses(
        losses(first_stages / "two" / "run"), losses(first_stages / "one")
    )
    for i in (0, 1):
        assert SENTENCE not in (first_stages / "two" / str(i) / "said").read_text()


def test_processes_may_read_the_same_rows_of_a_batch(first_stages, tmp_path):
    """Those of a mesh that spreads each row over the devices of both."""
    pair = start_two(tmp_path, (*small_command.words(), "--mesh=1x1x8"))
    for i, process in enumerate(pair):
        ended_well(process, tmp_path / str(i))
    check_same_losses(losses(tmp_path / "run"), losses(first_stages / "one"))


def test_one_process_goes_on_where_two_ended(first_stages, tmp_path):
    run = shutil.copytree(first_stages / "two" / "run", tmp_path / "run")
    steps = meshes.STEPS + 1
    words = (*small_command.words(), f"--config.steps={steps}", f"--workdir={run}")
    ended_well(start(tmp_path, (*words, "--mesh=1x1x1"), devices=1), tmp_path)
    check_same_losses(losses(run), losses(first_stages / "one"), steps=steps)


def test_damaged_checkpoints_are_refused_by_both(first_stages, tmp_path):
    run = shutil.copytree(first_stages / "two" / "run", tmp_path / "run")
    for file in run.rglob("d/*"):
        file.write_bytes(b"")
    for i, process in enumerate(start_two(tmp_path, small_command.words())):
        assert process.wait(600) == 2
        assert "got 1 damaged ones" in (tmp_path / str(i) / "said").read_text()


def test_so_they_have_in_the_second_stage(first_stages, tmp_path):
    words = (*small_command.words(stage=2), f"--start={first_stages / 'one'}")
    pair = start_two(tmp_path / "two", words)
    for i, process in enumerate(pair):
        ended_well(process, tmp_path / "two" / str(i))
    alone = (*words, f"--workdir={tmp_path / 'one'}", "--mesh=1x1x1")
    ended_well(start(tmp_path / "alone", alone, devices=1), tmp_path / "alone")
    check_same_losses(losses(tmp_path / "two" / "run"), losses(tmp_path / "one"))


def test_an_autoencoder_is_looked_at_and_written_by_all(tmp_path):
    data = toy_codec.dataset(tmp_path / "data")
    fields = {"batch": 8, "image": 64, "steps": 2, "model.channels": 4}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    words = ["--config=experiments/configs/vae.py", *words, f"--data={data}"]
    pair = start_two(tmp_path, words, module="experiments.train_vae")
    for i, process in enumerate(pair):
        ended_well(process, tmp_path / str(i))
    run = tmp_path / "run"
    module, variables = latent_codec.load(run / "vae.safetensors")
    assert module.linear and np.isfinite(variables["params"]["linear_in"]["bias"]).all()
    assert len(list((run / "samples").iterdir())) == 1


def wait_until(reached, process):
    begin = time.monotonic()
    while not reached():
        assert process.poll() is None and time.monotonic() - begin < 600
        time.sleep(0.1)


def wait_for_steps(workdir, count, process):
    log = workdir / "log.jsonl"
    wait_until(lambda: log.exists() and len(losses(workdir)) >= count, process)


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_saves_and_exits_with_0(first_stages, tmp_path, count):
    """Any process of a run may get it, and all end after the same step."""
    words = [*small_command.words(), "--config.steps=100000"]
    if count == 1:
        alone = (*words, f"--workdir={tmp_path / 'run'}", "--mesh=1x1x1")
        folders = [tmp_path / "alone"]
        all_of_it = [start(folders[0], alone, devices=1)]
    else:
        folders = [tmp_path / str(i) for i in range(count)]
        all_of_it = start_two(tmp_path, words)
    wait_for_steps(tmp_path / "run", 2, all_of_it[0])
    all_of_it[-1].send_signal(signal.SIGTERM)
    for process, folder in zip(all_of_it, folders, strict=True):
        ended_well(process, folder)
        assert SENTENCE not in (folder / "said").read_text()
    found = losses(tmp_path / "run")
    saved = tmp_path / "run" / "checkpoints" / f"{len(found):08d}"
    assert (saved / "contents.json").exists()
    known = losses(first_stages / "one")[: len(found)]
    np.testing.assert_allclose(found[: len(known)], known, rtol=1e-5)


@pytest.mark.parametrize("lost", [0, 1])
def test_if_one_is_killed_the_other_ends_and_says_what_to_do(tmp_path, lost):
    words = [*small_command.words(), "--config.steps=100000"]
    pair = start_two(tmp_path, words)
    try:
        wait_for_steps(tmp_path / "run", 2, pair[0])
        pair[lost].send_signal(signal.SIGKILL)
        assert pair[1 - lost].wait(120) != 0
    finally:
        for process in pair:
            process.kill()
            process.wait()
    said = tmp_path / str(1 - lost) / "said"
    begin = time.monotonic()
    while SENTENCE not in said.read_text() and time.monotonic() - begin < 10:
        time.sleep(0.1)
    last = said.read_text().splitlines()[-1]
    assert f"Process {1 - lost} of 0 to 1 ended before its time" in last
    assert SENTENCE in last


def last_save(workdir):
    """The last step whose checkpoint is finished, 0 for none."""
    seals = workdir.glob("checkpoints/*/contents.json")
    return max((int(seal.parent.name) for seal in seals), default=0)


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path, full):
    """Where no folder can be made, and for one of two that write half of it each."""
    run, said = tmp_path / "run", [tmp_path / str(i) / "said" for i in (0, 1)]
    run.mkdir()
    (run / "checkpoints").touch()
    words = [*small_command.words(), "--config.steps=100000"]
    pair = start_two(tmp_path, [*words, "--mesh=1x8x1", "--save_every=1"])

    def wait_until_told(reason):
        for process, file in zip(pair, said, strict=True):
            wait_until(
                lambda file=file: f"{reason}. Going on" in file.read_text(), process
            )

    limits = resource.prlimit(pair[full].pid, resource.RLIMIT_FSIZE)
    try:
        wait_until_told("Not a directory")
        (run / "checkpoints").unlink()
        wait_until(lambda: last_save(run), pair[0])
        small = (100_000, limits[1])  # More than the logs, less than the arrays.
        resource.prlimit(pair[full].pid, resource.RLIMIT_FSIZE, small)
        wait_until_told("File too large")
        good = last_save(run)
        checkpoint.restore(run / "checkpoints" / f"{good:08d}")
        resource.prlimit(pair[full].pid, resource.RLIMIT_FSIZE, limits)
        wait_until(lambda: last_save(run) > good, pair[0])
        pair[full].send_signal(signal.SIGTERM)
        for process, file in zip(pair, said, strict=True):
            ended_well(process, file.parent)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert last_save(run) == len(losses(run))
