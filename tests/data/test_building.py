"""Datasets in the making: killed, resumed, packed and reported."""

import functools
import itertools
import multiprocessing
import os
import pathlib
import signal
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from geodiff_jax.data import building, loading
from tests.data import balls

NAMES = ["ann", "bob", "cleo"]


def make_all(folder, *, names=NAMES, make=balls.examples, workers=1):
    building.make_parts(names, make, folder, workers=workers)


def same(found, expected):
    (examples, skipped), (others, left_out) = found, expected
    assert skipped == left_out and len(examples) == len(others)
    for one, other in zip(examples, others, strict=True):
        assert set(one) == set(other)
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_a_broken_run_goes_on_where_it_stood(tmp_path):
    made = []

    def failing(name):
        made.append(name)
        for number, example in enumerate(balls.examples(name)):
            if name == "bob" and made.count("bob") == 1 and number == 2:
                raise KeyboardInterrupt
            yield example

    with pytest.raises(KeyboardInterrupt):
        make_all(tmp_path / "parts", make=failing)
    make_all(tmp_path / "parts", make=failing)
    assert made == ["ann", "bob", "bob", "cleo"]
    make_all(tmp_path / "whole")
    for name in NAMES:
        read = [building.read_part(tmp_path / x, name) for x in ("parts", "whole")]
        same(*read)


def slowly(name):
    for example in balls.examples(name):
        time.sleep(0.1)
        yield example


def is_running(pid):
    """Whether a process is there and no zombie, which waits for its parent alone."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def tell_and_make(name, *, folder):
    (folder / f"{os.getpid()}.worker").touch()
    yield from slowly(name)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_runs_leave_whole_parts_only(tmp_path, workers):
    spawn = multiprocessing.get_context("spawn")
    names = [f"one{number}" for number in range(20)]
    make = functools.partial(tell_and_make, folder=tmp_path)
    options = {"names": names, "make": make, "workers": workers}
    run = spawn.Process(target=make_all, args=(tmp_path,), kwargs=options)
    run.start()
    limit = time.monotonic() + 60.0
    while time.monotonic() < limit and (
        len(list(tmp_path.glob("one*.npz"))) < 2
        or len(list(tmp_path.glob("*.worker"))) < workers
    ):
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    workers_found = [int(path.stem) for path in tmp_path.glob("*.worker")]
    assert len(workers_found) == workers
    limit = time.monotonic() + 60.0
    while any(map(is_running, workers_found)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(map(is_running, workers_found))
    left = sorted(path.stem for path in tmp_path.glob("one*.npz"))
    assert 2 <= len(left) < len(names)
    for name in left:
        assert len(building.read_part(tmp_path, name)[0]) == 4
    make_all(tmp_path, names=names, workers=workers)
    assert {path.stem for path in tmp_path.glob("one*.npz")} == set(names)


def packed(folder: pathlib.Path) -> tuple[pathlib.Path, dict]:
    make_all(folder / "parts")
    builder = balls.Balls(
        parts=folder / "parts",
        names=NAMES,
        data_dir=folder,
        file_format="array_record",
    )
    report = building.finish(builder, {"train": NAMES}, folder / "parts")
    return pathlib.Path(builder.data_path), report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balls")
    unfinished = folder / "balls" / "incomplete.AAAAAA_1.0.0"
    unfinished.mkdir(parents=True)
    path, report = packed(folder)
    assert not unfinished.exists() and not (folder / "parts").exists()
    return path, report


def test_the_report_names_what_was_skipped(finished):
    path, report = finished
    assert report == building.read_report(path)
    assert report["train"]["examples"] == 12
    assert [one["name"] for one in report["train"]["skipped"]] == [
        f"{name}/talk/2/left" for name in NAMES
    ]


def test_the_index_tells_what_each_record_shows(finished):
    path, _ = finished
    index = building.read_index(path, "train")
    stored = tfds.builder_from_directory(str(path)).as_data_source("train")
    assert len(stored) == len(index) == 12
    names = [(x["subject"], x["view"]) for x in stored]
    frames = [x["frame"] for x in stored]
    np.testing.assert_array_equal(index.frame, frames)
    for one, other in itertools.combinations(range(12), 2):
        for codes, place in ((index.subject, 0), (index.view, 1)):
            equal = names[one][place] == names[other][place]
            assert (codes[one] == codes[other]) == equal
    np.testing.assert_array_equal(index.clip, index.subject)


def test_only_what_is_asked_for_is_read(finished):
    contents = loading.Contents(side=4, crop=None, domains=("normal",))
    source = loading.open_source(finished[0], "train", contents)
    assert set(source.records[3]) == {"head_pose", "normal", "synthetic"}
    assert source.image == balls.SIZES.image and len(source.records) == 12


def test_unfinished_and_unfit_datasets_are_refused(finished, tmp_path):
    contents = loading.Contents(side=4)
    for path, wanted in (
        (tmp_path, contents),
        (finished[0], loading.Contents(latents=True)),
    ):
        with pytest.raises(ValueError, match="prepare"):
            loading.open_source(path, "train", wanted)
    assert building.read_report(tmp_path) is None
