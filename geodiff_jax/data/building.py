"""How a dataset is made: part by part, by several processes, resumable after a kill.

A part (a subject, a recording) is one file of encoded examples that appears whole or
not at all. When all are there they are packed into ArrayRecords, in order, with an
index that tells what each record shows; the parts then go.
"""

import collections
import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from geodiff_jax import reporting
from geodiff_jax.data import schema
from geodiff_jax.head.model import HeadModel
from geodiff_jax.io import atomic

PICTURES = ("image", "normal", "mask", "face")
LABELS = ("subject", "clip", "frame", "view")
OPTIONS = "options.json"
"""Beside parts and beside records: what they were made with."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What was left out, and why, in one sentence."""

    name: str
    reason: str


Make = Callable[[str], Iterator[schema.Example | Skipped]]
"""Makes the examples of a part by its name; picklable, and the same at every call."""


@dataclasses.dataclass(frozen=True)
class Index:
    """What each record of a split shows, in the records' order."""

    subject: Int[np.ndarray, " n"]
    """Codes: equal where the subject is."""
    clip: Int[np.ndarray, " n"]
    """Codes of (subject, clip)."""
    frame: Int[np.ndarray, " n"]
    view: Int[np.ndarray, " n"]
    """Codes of names of cameras."""

    def __len__(self) -> int:
        return len(self.frame)


def index_of(labels: Sequence[tuple[str, str, int, str]]) -> Index:
    """The index of records with these (subject, clip, frame, view)."""
    subjects, clips, frames, views = ([x[i] for x in labels] for i in range(4))

    def codes(names: list) -> Int[np.ndarray, " n"]:
        order = {name: code for code, name in enumerate(sorted(set(names)))}
        return np.array([order[name] for name in names], np.int64)

    pairs = list(zip(subjects, clips, strict=True))
    return Index(codes(subjects), codes(pairs), np.array(frames, int), codes(views))


def make_parts(
    names: Sequence[str],
    make: Make,
    folder: pathlib.Path,
    *,
    workers: int = 1,
    title: str = "Making",
) -> None:
    """Makes the parts that are not there yet; safe to kill and to run again."""
    missing = [name for name in names if not _part(folder, name).exists()]
    # What an earlier run made took no time of this one.
    with reporting.progress(title, len(missing)) as advance:
        if workers <= 1:
            for name in missing:
                _make_part(name, make, folder)
                advance()
            return
        # Spawned: a fork would share the threads that JAX has started.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_end_with_parent
        )
        with pool:
            tasks = [pool.submit(_make_part, name, make, folder) for name in missing]
            try:
                for task in concurrent.futures.as_completed(tasks):
                    task.result()
                    advance()
            finally:
                pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Lets no worker outlive a run that was killed, waiting for parts for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def read_part(
    folder: pathlib.Path, name: str
) -> tuple[list[dict[str, np.ndarray]], list[Skipped]]:
    """Encoded examples of a part, and what was skipped."""
    with np.load(_part(folder, name), allow_pickle=False) as stored:
        examples: dict[int, dict[str, np.ndarray]] = {}
        for key in stored.files:
            number, _, field = key.partition(".")
            if number != "skipped":
                examples.setdefault(int(number), {})[field] = stored[key]
        skipped = [Skipped(*pair) for pair in json.loads(str(stored["skipped"]))]
    return [examples[number] for number in sorted(examples)], skipped


def claim(folder: pathlib.Path, options: dict[str, Any]) -> None:
    """Notes with which options a folder is filled; the first run decides.

    Raises ValueError where it was begun with others: records would be mixed.
    """
    path = folder / OPTIONS
    text = json.dumps(options, indent=1, sort_keys=True)
    if not path.exists():
        atomic.write_text(path, text)
        return
    begun = json.loads(path.read_text())
    now = json.loads(text)
    other = sorted(k for k in begun | now if begun.get(k) != now.get(k))
    if other:
        told = ", ".join(f"{k}={begun.get(k)!r}, now {now.get(k)!r}" for k in other)
        raise ValueError(
            f"Expected the options with which {folder} was begun, got others ({told}); "
            "remove it or choose another --data_dir."
        )


def count_examples(
    folder: pathlib.Path, names: Sequence[str]
) -> tuple[int, collections.Counter[str]]:
    """Examples in finished parts, and how often each reason for leaving some out."""
    found, reasons = 0, collections.Counter()
    for name in names:
        with np.load(_part(folder, name), allow_pickle=False) as stored:
            found += len({x.partition(".")[0] for x in stored.files} - {"skipped"})
            left_out = json.loads(str(stored["skipped"]))
        reasons.update(reason for _, reason in left_out)
    return found, reasons


def to_record(encoded: dict[str, np.ndarray]) -> dict[str, object]:
    """What `schema.features` encodes: PNGs as streams, labels as Python values."""
    return {
        name: io.BytesIO(value.tobytes())
        if name in PICTURES
        else (value if value.ndim else value.item())
        for name, value in encoded.items()
    }


class PackedParts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Packs finished parts; each dataset's builder is one of these, under its name."""

    VERSION = tfds.core.Version("1.0.0")
    LICENCE = ""

    def __init__(
        self,
        *,
        parts: pathlib.Path,
        splits: dict[str, list[str]],
        sizes: schema.Sizes,
        head: HeadModel,
        **kwargs,
    ) -> None:
        self._parts, self._splits = parts, splits
        self._sizes, self._head = sizes, head
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=schema.features(self._sizes, self._head),
            license=self.LICENCE,
            # Records lie in the order in which their index counts them.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {
            split: self._generate_examples(names)
            for split, names in self._splits.items()
            # TFDS refuses splits without a record.
            if count_examples(self._parts, names)[0]
        }

    def _generate_examples(self, names: list[str]) -> Iterator[tuple[int, dict]]:
        number = 0
        for name in names:
            for encoded in read_part(self._parts, name)[0]:
                yield number, to_record(encoded)
                number += 1


def packed_config(size: str) -> tfds.core.BuilderConfig:
    """The configuration of `PackedParts` that a plan of sizes gives its name."""
    return tfds.core.BuilderConfig(name=size)


def finish(
    builder: tfds.core.DatasetBuilder, parts: dict[str, list[str]], folder: pathlib.Path
) -> dict[str, dict]:
    """Packs parts by split, writes the indices and the report, and removes the parts.

    What the parts' folder is claimed for, the records' is then. Returns the report:
    examples of each split, and what was skipped and why.
    """
    folder_of_records = pathlib.Path(builder.data_path)
    for unfinished in folder_of_records.parent.glob("incomplete.*"):
        shutil.rmtree(unfinished)  # What a killed run was packing.
    builder.download_and_prepare()
    report: dict[str, dict] = {}
    for split, names in parts.items():
        labels, skipped = [], []
        for name in names:
            examples, left_out = read_part(folder, name)
            labels += [tuple(e[label].item() for label in LABELS) for e in examples]
            skipped += [dataclasses.asdict(one) for one in left_out]
        with atomic.new_file(folder_of_records / f"index-{split}.npz") as path:
            np.savez(path, **vars(index_of(labels)))
        report[split] = {"examples": len(labels), "skipped": skipped}
    if (folder / OPTIONS).exists():
        atomic.write_text(folder_of_records / OPTIONS, (folder / OPTIONS).read_text())
    # Last: where it stands, everything else does.
    text = json.dumps(report, indent=1)
    atomic.write_text(folder_of_records / "report.json", text)
    shutil.rmtree(folder, ignore_errors=True)
    return report


def read_report(data_path: str | os.PathLike) -> dict[str, dict] | None:
    """What `finish` returned; None where the dataset is not finished."""
    path = pathlib.Path(data_path) / "report.json"
    return json.loads(path.read_text()) if path.exists() else None


def read_index(data_path: str | os.PathLike, split: str) -> Index:
    """The index of a finished split. Raises ValueError where there is none."""
    path = pathlib.Path(data_path) / f"index-{split}.npz"
    if not path.exists():
        raise ValueError(
            f"Expected a finished dataset with {path.name} in {data_path}, got none; "
            "run experiments.prepare_data to its end."
        )
    with np.load(path, allow_pickle=False) as stored:
        return Index(**{name: stored[name] for name in stored.files})


def _part(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.npz"


def _make_part(name: str, make: Make, folder: pathlib.Path) -> None:
    stored: dict[str, Any] = {}
    skipped: list[tuple[str, str]] = []
    number = 0
    for one in make(name):
        if isinstance(one, Skipped):
            skipped.append((one.name, one.reason))
            continue
        for field, value in schema.encode(one).items():
            stored[f"{number}.{field}"] = value
        number += 1
    with atomic.new_file(_part(folder, name)) as path:
        np.savez(path, skipped=np.asarray(json.dumps(skipped)), **stored)
