"""Heads on their way into a file, and into the main job."""

import jax
import numpy as np
import pytest
import skimage.data
from absl.testing import flagsaver

from experiments import create_avatar, prepare_head
from geodiff_jax.head import files, flame, procedural
from geodiff_jax.io import images
from tests.experiments import launch
from tests.head import flame_files


def run(**values):
    launch.parse_flags()
    with flagsaver.flagsaver(**values):
        prepare_head.main([])


def refusal(capsys, **values) -> str:
    with pytest.raises(SystemExit) as stop:
        run(**values)
    assert stop.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("prepare_head: ")
    return sentence


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_built_in_head_becomes_a_file(capsys, tmp_path):
    path = tmp_path / "head.safetensors"
    run(source="procedural", output=str(path))
    assert procedural.VERSION in capsys.readouterr().out
    assert_same(files.load(path), procedural.load())


def test_flame_becomes_a_file(tmp_path):
    flame_files.write(tmp_path, name="mine.pkl")
    output = tmp_path / "head.safetensors"
    model = str(tmp_path / "mine.pkl")
    run(source="flame", path=model, version="flame2023", output=str(output))
    head = files.load(output)
    assert head.version == "flame2023" and head.num_vertices > flame.NUM_VERTICES


def test_bad_sources_are_refused(capsys, tmp_path):
    output = str(tmp_path / "head")
    for source in ("flame", "ict"):
        assert "--path" in refusal(capsys, source=source, output=output)
        missing = refusal(
            capsys, source=source, path=str(tmp_path / "none"), output=output
        )
        assert "none" in missing
    for others in ({"path": str(tmp_path)}, {"version": "flame2020"}):
        values = {"source": "procedural", "output": output} | others
        assert "Expected no --" in refusal(capsys, **values)
    (tmp_path / "file").write_text("precious")
    beyond = str(tmp_path / "file" / "head")
    assert refusal(capsys, source="procedural", output=beyond)
    assert not (tmp_path / "head").exists()


def test_the_main_job_refuses_what_is_no_head(capsys, tmp_path):
    images.write_png(tmp_path / "photo.png", skimage.data.astronaut() / 255)
    (tmp_path / "head.safetensors").write_text("I am a poem.")
    launch.parse_flags()
    values = {"image": str(tmp_path / "photo.png"), "output_dir": str(tmp_path / "out")}
    with (
        flagsaver.flagsaver(head=str(tmp_path / "head.safetensors"), **values),
        pytest.raises(SystemExit) as stop,
    ):
        create_avatar.main([])
    assert stop.value.code == 2
    assert "Expected a head in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
