"""Pytrees of arrays on disk: thin orbax, finished whole or not at all.

A checkpoint is a folder: orbax's `arrays`, and `contents.json` with the caller's own
facts and the digest of every file, since orbax does not notice flipped bits. A `Series`
is a folder of them by step, written while training goes on, by any number of processes
that see the same disk.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax._src import distributed  # Nothing public has its store of keys.
from jax.experimental import multihost_utils

from geodiff_jax.io import atomic

_SEAL = "contents.json"
_NUMBERS = itertools.count()
"""Of saves, the same for all processes."""


def save(
    path: str | os.PathLike, tree: Any, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a pytree of arrays; replaces the checkpoint that was there before.

    `metadata` is anything that JSON knows.
    """
    with atomic.new_folder(path) as temporary:
        _save_arrays(temporary.absolute() / "arrays", tree)
        _seal(temporary, dict(metadata or {}))


def restore(path: str | os.PathLike, *, template: Any = None) -> Any:
    """The pytree of a checkpoint.

    A template of arrays or ShapeDtypeStructs gives it its types, and its shardings
    where it has any; names, shapes and dtypes must agree. Without one, arrays come back
    on the host, dataclasses and tuples as dicts and lists. Raises ValueError for a
    damaged folder.
    """
    folder = pathlib.Path(path)
    _check_intact(folder)
    return _restore_arrays(folder, template)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The facts that were saved beside the arrays."""
    return _read_seal(pathlib.Path(path))["metadata"]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a series had kept."""

    step: int
    tree: Any
    metadata: dict[str, Any]
    own: list[Any]
    """What each process had added, in their order."""


class Series:
    """Checkpoints of a run by step, of which the newest are kept.

    A save that fails, for one process or for all, is said on stderr and costs nothing
    that was there before.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 3) -> None:
        self._folder = pathlib.Path(folder)
        self._keep = keep
        self._meeting = ""
        self._checkpointer = self._open()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None

    def save(
        self,
        step: int,
        tree: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        own: Any = None,
    ) -> None:
        """Returns as soon as the arrays are copied; the disk gets them meanwhile.

        All processes call it together. `metadata` is that of process 0, `own` what each
        process adds; both are anything that JSON knows. Waits for the save before.
        """
        self.wait()
        contents = {"metadata": dict(metadata or {}), "own": _gather(own)}
        target = self._folder / f"{step:08d}"
        self._meeting = f"checkpoint/{next(_NUMBERS)}"
        with self._told_on_stderr(target):
            _make_anew(target)
            with _plain_errors():
                self._checkpointer.save(target.absolute() / "arrays", tree)
            self._pending = self._thread.submit(self._finish, target, contents)

    def wait(self) -> None:
        """Until the last save is on disk, or failed and said so."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Waits, and lets go of threads."""
        self.wait()
        self._thread.shutdown()
        self._checkpointer.close()

    def restore(self, template: Any) -> Found | None:
        """The newest intact checkpoint, as in `restore`; None if none was finished.

        Says on stderr which damaged ones it passes over. Raises ValueError if all are
        damaged, or for the newest of another configuration.
        """
        self.wait()
        step = self._newest_intact()
        if step < 0:
            return None
        folder = self._folder / f"{step:08d}"
        contents = read_metadata(folder)
        tree = _restore_arrays(folder, template)
        return Found(step, tree, contents["metadata"], contents["own"])

    def _newest_intact(self) -> int:
        """Its step, the same for all processes; -1 for none."""
        own = self._search() if jax.process_index() == 0 else None
        step, damaged = _gather(own)[0]
        if step < 0 and damaged:
            raise ValueError(
                f"Expected an intact checkpoint in {self._folder}, got "
                f"{damaged} damaged ones; remove the folder to start anew."
            )
        return step

    def _search(self) -> tuple[int, int]:
        """The newest intact step, or -1, and how many newer ones are damaged."""
        finished = [path for path in self._steps() if (path / _SEAL).exists()]
        for damaged, folder in enumerate(finished):
            try:
                _check_intact(folder)
                return int(folder.name), damaged
            except ValueError as error:
                print(f"{error} Passed over.", file=sys.stderr, flush=True)
        return -1, len(finished)

    def _steps(self) -> list[pathlib.Path]:
        """Folders of all steps, finished or not, the newest first."""
        folders = self._folder.glob("[0-9]*")
        return sorted(folders, key=lambda p: int(p.name), reverse=True)

    def _finish(self, target: pathlib.Path, contents: dict[str, Any]) -> None:
        """In a thread: what makes a checkpoint of the arrays."""
        with self._told_on_stderr(target):
            try:
                with _plain_errors():
                    self._checkpointer.wait_until_finished()
            except OSError as error:
                self._meet(error.strerror or str(error))
                raise
            if jax.process_index() == 0:
                _seal(target, contents)
                self._prune()

    def _open(self) -> ocp.StandardCheckpointer:
        options = ocp.AsyncOptions(barrier_sync_fn=self._meet)
        return ocp.StandardCheckpointer(async_options=options)

    def _meet(
        self, problem: str = "", *, key: str = "", timeout_ms: int = 2_400_000
    ) -> None:
        """Waits until all processes have written; OSError if one had a problem.

        In threads, where collectives must not run. Orbax calls it as its two barriers,
        before process 0 commits and after: the second ends at once.
        """
        client = distributed.global_state.client
        if client is None:
            return
        own, count = jax.process_index(), jax.process_count()
        client.key_value_set(f"{self._meeting}/{own}", problem, allow_overwrite=True)
        _check_all(
            [
                client.blocking_key_value_get(f"{self._meeting}/{i}", timeout_ms)
                for i in range(count)
            ]
        )

    @contextlib.contextmanager
    def _told_on_stderr(self, target: pathlib.Path) -> Iterator[None]:
        """A failed save is removed and told, and nothing else."""
        try:
            yield
        except OSError as error:
            if jax.process_index() == 0:
                shutil.rmtree(target, ignore_errors=True)
            print(
                f"Cannot save {target}: {error.strerror or error}. Going on; the "
                "checkpoint before it stays.",
                file=sys.stderr,
                flush=True,
            )
            # Orbax's would raise the same again at the next save.
            with contextlib.suppress(OSError), _plain_errors():
                self._checkpointer.close()
            self._checkpointer = self._open()

    def _prune(self) -> None:
        finished = [path for path in self._steps() if (path / _SEAL).exists()]
        for folder in set(self._steps()) - set(finished[: self._keep]):
            # First the seal: half a folder must not pass for a damaged checkpoint.
            (folder / _SEAL).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _make_anew(folder: pathlib.Path) -> None:
    """By process 0; OSError for all if it cannot."""
    problem = ""
    if jax.process_index() == 0:
        # Of a run that was killed in this save, or found it damaged.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            problem = error.strerror
    _check_all(_gather(problem))


def _check_all(problems: list[str]) -> None:
    for problem in filter(None, problems):
        raise OSError(problem)


def _gather(own: Any) -> list[Any]:
    """What every process has, to all of them."""
    if jax.process_count() == 1:
        return [own]
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)
    ]


def _seal(folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    seal = {"metadata": metadata, "sha256": _digests(folder)}
    atomic.write_text(folder / _SEAL, json.dumps(seal, indent=1))


def _check_intact(folder: pathlib.Path) -> None:
    if _digests(folder) != _read_seal(folder).get("sha256"):
        raise ValueError(
            f"Expected an intact checkpoint at {folder}, got files that differ from "
            "what was saved; remove the folder to make it anew."
        )


def _restore_arrays(folder: pathlib.Path, template: Any) -> Any:
    arrays = folder.absolute() / "arrays"
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(arrays).item_metadata
        stored = getattr(stored, "tree", stored)
        if template is None:
            # On the host: the devices that saved it need not be here.
            own = jax.tree.map(
                lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), stored
            )
            return checkpointer.restore(arrays, own)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        _check_agreement(_signature(stored), abstract, folder)
        return checkpointer.restore(arrays, abstract)


def _save_arrays(path: pathlib.Path, tree: Any) -> None:
    with _plain_errors(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What orbax raises for the disk's failures as OSError, without its own log."""
    # Orbax logs the trace of what it raises too; its caller will say it in a sentence.
    # For good: of several threads that fail, some log after the first one was raised.
    logging.getLogger("absl").addFilter(_is_no_trace_of_orbax)
    try:
        yield
    except ValueError as error:
        # TensorStore reports a full disk as a ValueError with the number in its text.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _is_no_trace_of_orbax(record: logging.LogRecord) -> bool:
    return record.exc_info is None or "orbax" not in record.pathname


def _read_seal(folder: pathlib.Path) -> dict[str, Any]:
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint at {folder}.")
    try:
        seal = json.loads((folder / _SEAL).read_text())
        return {"metadata": dict(seal["metadata"]), "sha256": dict(seal["sha256"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"Expected a checkpoint at {folder}, got something without an intact "
            f"{_SEAL}; remove it to make it anew."
        ) from None


def _digests(folder: pathlib.Path) -> dict[str, str]:
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != _SEAL:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[file.relative_to(folder).as_posix()] = digest
    return digests


def _signature(tree: Any) -> dict[str, str]:
    """What each leaf is, by its name: dataclasses, dicts and lists read alike."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }


def _check_agreement(
    stored: Mapping[str, str], template: Any, folder: pathlib.Path
) -> None:
    wanted = _signature(template)
    differing = [
        name
        for name in sorted(wanted.keys() | stored.keys())
        if wanted.get(name) != stored.get(name)
    ]
    if differing:
        first, *others = differing
        more = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"Expected {wanted.get(first, 'nothing')} as {first} in the checkpoint "
            f"{folder}, got {stored.get(first, 'nothing')}; it was saved by another "
            "configuration"
            + (f" ({len(others)} more differ: {more})." if more else ".")
        )
