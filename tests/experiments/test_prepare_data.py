"""Datasets by the command line: finished, repeated, refused."""

import dataclasses
import json

import pytest

from geodiff_jax.data import building, loading, pairing, pipeline, procedural_heads
from geodiff_jax.head import procedural
from tests.data import balls
from tests.experiments import launch

prepare_data = launch.import_apart("experiments.prepare_data")


def run(**values):
    launch.run_apart(prepare_data, **values)


@pytest.fixture
def balls_for_heads(monkeypatch):
    """Nothing is rendered: balls of the toy's sizes, one of them skipped."""
    plan = procedural_heads.PLANS["toy"]
    monkeypatch.setattr(procedural, "load", lambda: balls.HEAD)
    made = []

    def examples(name, plan):
        made.append(name)
        for frame in range(2):
            yield balls.example(name, "clip0", frame, "view0", sizes=plan.sizes)
        yield building.Skipped(f"{name}/clip0/2/view0", "out of the picture")

    monkeypatch.setattr(procedural_heads, "examples", examples)
    return plan, made


def test_a_dataset_is_made_once_and_read(balls_for_heads, capsys, tmp_path):
    plan, made = balls_for_heads
    for _ in range(2):
        run(data_dir=str(tmp_path), plan="toy")
        said = capsys.readouterr().out
        assert "train: 4 examples" in said and "held_out: 2 examples" in said
        assert "2 skipped: out of the picture" in said
    assert made == sum(plan.parts().values(), [])
    assert not list(tmp_path.glob(".*parts"))
    (report,) = tmp_path.rglob("report.json")
    assert json.loads(report.read_text())["train"]["examples"] == 4
    contents = loading.Contents(side=plan.sizes.map, crop=16)
    source = loading.open_source(report.parent, "held_out", contents)
    batch = pipeline.batches([source], pairing.Pairing(), contents, batch=2)[0]
    assert batch["image"].shape == (2, 1, 1, 64, 64, 3)
    assert batch["synthetic"].all() and not batch["replaced"].any()


def run_killed(monkeypatch, **values):
    """All parts are made, none is packed."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(**values)


def test_what_was_made_before_a_kill_is_kept(balls_for_heads, monkeypatch, tmp_path):
    _, made = balls_for_heads
    run_killed(monkeypatch, data_dir=str(tmp_path), plan="toy")
    before = list(made)
    run(data_dir=str(tmp_path), plan="toy")
    assert made == before


@pytest.mark.parametrize("finished", [False, True])
def test_people_of_another_plan_are_not_taken_for_this_ones(
    balls_for_heads, monkeypatch, capsys, tmp_path, finished
):
    plan, made = balls_for_heads
    if finished:
        run(data_dir=str(tmp_path), plan="toy")
    else:
        run_killed(monkeypatch, data_dir=str(tmp_path), plan="toy")
    before = list(made)
    other = dataclasses.replace(plan, views=5)
    monkeypatch.setitem(procedural_heads.PLANS, "toy", other)
    with pytest.raises(SystemExit) as stop:
        run(data_dir=str(tmp_path), plan="toy")
    assert stop.value.code == 2 and "Expected the options" in capsys.readouterr().err
    assert made == before


def test_bad_folders_are_refused(balls_for_heads, capsys, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit) as stop:
        run(data_dir=str(tmp_path / "file" / "data"), plan="toy")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("prepare_data: ")


@pytest.mark.slow
def test_heads_are_rendered_and_packed(tmp_path):
    run(data_dir=str(tmp_path), plan="toy")
    (report,) = tmp_path.rglob("report.json")
    found = json.loads(report.read_text())
    plan = procedural_heads.PLANS["toy"]
    each = plan.clips * plan.frames * plan.views
    for split, names in plan.parts().items():
        left_out = len(found[split]["skipped"])
        assert found[split]["examples"] + left_out == each * len(names)
        assert found[split]["examples"] > 0
