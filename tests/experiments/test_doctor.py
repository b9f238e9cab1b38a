"""The doctor names every lack with the line that mends it."""

import pathlib

import pytest

from experiments import doctor
from geodiff_jax.render import ffi
from geodiff_jax.tracking import mediapipe_models


def finding(findings: list[doctor.Finding], name: str) -> doctor.Finding:
    return next(f for f in findings if f.name == name)


def test_everything_is_looked_at():
    names = {f.name for f in doctor.examine(pathlib.Path.cwd())}
    expected = {"software", "C++ compiler", "instruction set", "kernels", "mediapipe"}
    assert expected | {"libGL", "GPU", "memory", "disk"} <= names


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.compiler().remedy == "apt-get install g++"


def test_no_kernels(monkeypatch):
    monkeypatch.setattr(ffi, "available", lambda platform: False)
    found = doctor.kernels()
    assert "build_kernels" in found.remedy and not found.blocks


def test_no_mediapipe_degrades(monkeypatch):
    monkeypatch.setattr(mediapipe_models, "installed", lambda: False)
    (found,) = doctor.portrait()
    assert "geodiff_jax[portrait]" in found.remedy and not found.blocks


@pytest.mark.parametrize("installed", [False, True])
def test_no_libgl_blocks_where_mediapipe_is(monkeypatch, installed):
    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(mediapipe_models, "installed", lambda: installed)
    monkeypatch.setattr(doctor.ctypes, "CDLL", refuse)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    found = doctor.libgl()
    assert found.remedy.startswith("apt-get install libgl1")
    assert found.blocks == installed


def test_missing_companions_block(monkeypatch):
    lack = {"tensorflow_metadata": "pip install tensorflow-metadata==1.16.1"}
    monkeypatch.setattr(mediapipe_models, "installed", lambda: True)
    monkeypatch.setattr(mediapipe_models, "missing_companions", lambda: lack)
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.10.14")
    found = finding(doctor.portrait(), "tensorflow_metadata")
    assert found.remedy == lack["tensorflow_metadata"] and found.blocks


def test_another_mediapipe_is_named(monkeypatch):
    monkeypatch.setattr(mediapipe_models, "installed", lambda: True)
    monkeypatch.setattr(mediapipe_models, "missing_companions", dict)
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "1.2.2")
    found = finding(doctor.portrait(), "mediapipe")
    assert found.remedy == "pip install mediapipe==0.10.14"


def test_little_memory_or_disk_blocks():
    assert doctor.memory(1.0).blocks and not doctor.memory(8.0).remedy
    assert doctor.disk(0.01).blocks and not doctor.disk(50.0).remedy
    assert doctor.memory_gb() > 0.1


@pytest.mark.parametrize("blocked", [False, True])
def test_exit_status_and_table(monkeypatch, capsys, blocked):
    lack = doctor.Finding(
        "libGL", "missing", "apt-get [install] libgl1", blocks=blocked
    )
    monkeypatch.setattr(doctor, "examine", lambda folder: [lack])
    assert doctor.main() == int(blocked)
    shown = capsys.readouterr().out
    assert "apt-get [install] libgl1" in shown
    assert ("cannot run yet here" in shown) == blocked
