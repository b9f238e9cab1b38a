"""Nothing that looks finished is partly written, and nothing old is lost."""

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

from geodiff_jax.io import atomic


def listing(folder: pathlib.Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@contextlib.contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_file_appears_with_its_content_and_usual_permissions(tmp_path):
    atomic.write_text(tmp_path / "deep" / "note.txt", "héllo")
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    written = tmp_path / "deep" / "note.txt"
    assert written.read_text(encoding="utf-8") == "héllo"
    assert written.stat().st_mode == plain.stat().st_mode
    assert listing(tmp_path / "deep") == ["note.txt"]


def test_hidden_name_keeps_the_suffix(tmp_path):
    with atomic.new_file(tmp_path / "movie.mp4") as temporary:
        assert temporary.suffix == ".mp4" and temporary.name.startswith(".")
        temporary.write_bytes(b"x")


def test_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.bin"
    atomic.write_bytes(target, b"old")
    with pytest.raises(RuntimeError), atomic.new_file(target) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError
    assert target.read_bytes() == b"old" and listing(tmp_path) == ["a.bin"]


def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.bin"
    atomic.write_bytes(target, b"old")
    with largest_file(1000), pytest.raises(OSError, match=r"^Cannot write .*file size"):
        atomic.write_bytes(target, b"n" * 5000)
    assert target.read_bytes() == b"old" and listing(tmp_path) == ["a.bin"]


def test_folder_replaces_the_old_one_as_a_whole(tmp_path):
    target = tmp_path / "deep" / "state"
    for name in ("first", "second"):
        with atomic.new_folder(target) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / name).write_text(name)
    assert listing(target / "inner") == ["second"]
    assert listing(tmp_path / "deep") == ["state"]


def test_failed_folder_keeps_the_old_one(tmp_path):
    target = tmp_path / "state"
    with atomic.new_folder(target) as temporary:
        (temporary / "old").touch()
    with pytest.raises(RuntimeError), atomic.new_folder(target) as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert listing(target) == ["old"] and listing(tmp_path) == ["state"]


def test_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "state"
    with atomic.new_folder(target) as temporary:
        (temporary / "old").touch()
    rename = pathlib.Path.rename

    def failing(self, other):
        if self.name.endswith(".unfinished"):
            raise OSError("the cable was pulled")
        return rename(self, other)

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with pytest.raises(OSError, match="cable"), atomic.new_folder(target):
        pass
    assert listing(target) == ["old"] and listing(tmp_path) == ["state"]


@pytest.mark.parametrize("maker", [atomic.new_file, atomic.new_folder])
def test_file_in_the_place_of_a_parent_is_one_sentence(tmp_path, maker):
    (tmp_path / "occupied").write_text("mine")
    with pytest.raises(OSError, match=r"^Cannot write .*; choose another folder\.$"):
        with maker(tmp_path / "occupied" / "out"):
            pass
    assert (tmp_path / "occupied").read_text() == "mine"


def test_wrong_kind_at_the_target_is_one_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="a folder has this name"):
        atomic.write_text(tmp_path / "folder", "x")
    with pytest.raises(NotADirectoryError, match="a file has this name"):
        with atomic.new_folder(tmp_path / "file"):
            pass


def test_errors_about_other_files_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.new_file(tmp_path / "a"):
        (tmp_path / "elsewhere" / "input").read_text()
    with pytest.raises(PermissionError, match="elsewhere"):
        with atomic.new_file(tmp_path / "a" / "b"):
            raise PermissionError(13, "denied", "/elsewhere/input")


@pytest.mark.parametrize("maker", ["new_file", "new_folder"])
def test_killed_writer_leaves_nothing_that_looks_finished(tmp_path, maker):
    script = f"""
        import os, pathlib, signal
        from geodiff_jax.io import atomic
        with atomic.{maker}({str(tmp_path / "target")!r}) as temporary:
            inside = temporary / "part" if temporary.is_dir() else temporary
            inside.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "target").exists()
    assert all(name.startswith(".") for name in listing(tmp_path))
