"""Write, then rename: a killed or failed writer leaves what was there before.

The new content grows beside its target under a hidden name, reaches the disk,
and takes the target's name in one step.
"""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a hidden path to write; it becomes `path` if the block succeeds.

    Makes the parent folders. Raises OSError in one sentence where writing fails.
    """
    target = pathlib.Path(path)
    if target.is_dir():
        raise IsADirectoryError(
            f"Cannot write the file {target}: a folder has this name; "
            "move it away or choose another name."
        )
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: writers choose their format by it.
        temporary = _beside(target, "unfinished", suffix=target.suffix)
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a hidden folder to fill; it becomes `path` if the block succeeds.

    A folder that was there before is replaced as a whole: it steps aside, the new
    one moves in, the old one goes. Killed between those two renames, the old one
    survives beside the target under a hidden name that ends in `.old`.
    """
    target = pathlib.Path(path)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(
            f"Cannot write the folder {target}: a file has this name; "
            "move it away or choose another name."
        )
    with _explained(target):
        temporary = _beside(target, "unfinished")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for entry in temporary.rglob("*"):
                _flush(entry)
            _flush(temporary)
            _replace_folder(temporary, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Writes a whole file in UTF-8."""
    write_bytes(path, content.encode())


def _beside(target: pathlib.Path, word: str, *, suffix: str = "") -> pathlib.Path:
    # On the target's own disk, or the rename would have to copy.
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{word}{suffix}")


def _replace_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    # A rename cannot land on a folder that has content, so the old one steps aside.
    if not target.exists():
        source.rename(target)
        return
    aside = target.rename(_beside(target, "old"))
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _flush(path: pathlib.Path) -> None:
    """Waits until the disk has it: a full disk must be noticed before the rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EFBIG: "it outgrows the allowed file size; raise `ulimit -f`",
    errno.EACCES: "permission is denied; choose a folder that you may write to",
    errno.EPERM: "permission is denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOTDIR: "a part of its path is a file; choose another folder",
    errno.EEXIST: "a part of its path is a file; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextlib.contextmanager
def _explained(target: pathlib.Path) -> Iterator[None]:
    """Says in one sentence what the system's errors about `target` mean."""
    try:
        yield
    except OSError as error:
        named = pathlib.Path(error.filename) if error.filename else target
        about_target = named in target.parents or target.parent in named.parents
        if error.errno not in _REMEDIES or not about_target:
            raise
        raise OSError(f"Cannot write {target}: {_REMEDIES[error.errno]}.") from error
