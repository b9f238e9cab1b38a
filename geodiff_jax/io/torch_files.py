"""Files of torch.save, read without torch and without running what they hold.

Both layouts: zip archives, and the older sequence of pickles, which also stands inside
pickles that hold tensors (FLAME's landmark embeddings). See `pickles` for what is read.
"""

import io
import os
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from geodiff_jax.io import pickles

_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_VERSION = 1001

_DTYPES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}


def make_storage(note: pickles.Note, build: pickles.Builder) -> np.ndarray:
    """Numbers that tensors share, flat: of dtype, count, and what finds the bytes.

    In no table: only references make such notes, no pickle can name it.
    """
    dtype, count, find = note.items
    return pickles.array_of_bytes(find(), dtype, (count,), budget=build.budget)


def make_inner_storage(note: pickles.Note, build: pickles.Builder) -> np.ndarray:
    """A storage that torch.save wrote into a pickle, in its older layout."""
    content = build(build.arguments(note, 1, 1)[0])
    if type(content) is not bytes or not _is_old(content):
        raise ValueError("a storage is none")
    inner = _old_notes(content, _WITHOUT_INNER)
    if type(inner) is not pickles.Note or inner.kind is not make_storage:
        raise ValueError("a storage is none")
    return make_storage(inner, build)


def make_tensor(note: pickles.Note, build: pickles.Builder) -> np.ndarray:
    """A copy of what a tensor shows of its storage."""
    storage, offset, size, stride, *rest = build.arguments(note, 4, 7)
    kinds = (make_storage, ("torch.storage", "_load_from_bytes"))
    if type(storage) is not pickles.Note or storage.kind not in kinds:
        raise ValueError("a tensor has no storage")
    if len(rest) == 3 and build(rest[2]):
        raise ValueError("tensors that are conjugate or negated views are not read")
    values, size, stride = build(storage), build(size), build(stride)
    whole = [offset, *size, *stride]
    if any(type(n) is not int or n < 0 for n in whole) or len(size) != len(stride):
        raise ValueError("the size or stride of a tensor is none")
    build.budget.spend(tuple(size), values.dtype)
    if 0 in size:
        return np.zeros(size, values.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(values):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides).copy()


def make_parameter(note: pickles.Note, build: pickles.Builder) -> np.ndarray:
    """Its tensor."""
    return build(build.arguments(note, 1, 4)[0])


def make_size(note: pickles.Note, build: pickles.Builder) -> tuple:
    """torch.Size, a tuple."""
    return tuple(build(build.arguments(note, 1, 1)[0]))


def refuse_type(note: pickles.Note, build: pickles.Builder) -> Any:
    """Types of storages are named, never made."""
    del build
    raise ValueError(f"{note.kind[1]} stands for no data")


_WITHOUT_INNER = {
    **pickles.TABLE,
    **{("torch", name): refuse_type for name in _DTYPES},
    ("torch._utils", "_rebuild_tensor"): make_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): make_tensor,
    ("torch._utils", "_rebuild_parameter"): make_parameter,
    ("torch", "Size"): make_size,
}
TABLE = {**_WITHOUT_INNER, ("torch.storage", "_load_from_bytes"): make_inner_storage}
"""`pickles.TABLE` and tensors."""


def read(path: str | os.PathLike) -> Any:
    """What torch.save, or pickle with tensors inside, wrote; tensors as NumPy arrays.

    Takes .pt, .pth, .ckpt, .frame, and .npy and .pkl whose objects hold tensors.
    Tensors that share memory become arrays that do not.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is torn, none of these, or names something that is not in TABLE.
    """
    return load(pickles.file_bytes(path), name=os.fspath(path))


def load(content: bytes, *, name: str = "this file") -> Any:
    """As `read`, from memory; `name` is for messages."""
    if not content.startswith(b"PK") and not _is_old(content):
        return pickles.load(content, name=name, table=TABLE)
    with pickles.said_of(name):
        notes_of = _zip_notes if content.startswith(b"PK") else _old_notes
        notes = notes_of(content, TABLE)
        return pickles.Builder(TABLE, pickles.Budget(len(content)))(notes)


def _zip_notes(content: bytes, table: dict) -> Any:
    archive = zipfile.ZipFile(io.BytesIO(content))
    programs = [x for x in archive.namelist() if x.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError("it is an archive, but none that torch.save writes")
    folder = programs[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and _entry(archive, order) != b"little":
        raise ValueError("it is big-endian")
    program = io.BytesIO(_entry(archive, programs[0]))

    def finder(key: str) -> Callable[[], bytes]:
        return lambda: _entry(archive, f"{folder}data/{key}")

    references = _References(finder)
    return pickles.take_notes(program, table=table, persistent=references.note)


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Not compressed, as torch leaves it: no larger than the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its entries are compressed, which torch.save does not")
    return archive.read(info)


def _is_old(content: bytes) -> bool:
    # Pickled at protocol 2: LONG1 of ten bytes.
    return content.startswith(b"\x80\x02\x8a\x0a" + _OLD_MAGIC.to_bytes(10, "little"))


def _old_notes(content: bytes, table: dict) -> Any:
    """Magic, version and system; the object; the storages' names; their numbers."""
    stream = io.BytesIO(content)
    held: dict[str, bytes] = {}
    references = _References(lambda key: lambda: held[key])

    def following(persistent: Callable[[Any], Any] | None = None) -> Any:
        return pickles.take_notes(stream, table=table, persistent=persistent)

    _, version, _ = following(), following(), following()
    if version != _OLD_VERSION:
        raise ValueError("it was written by an unknown version of torch.save")
    notes = following(references.note)
    names = pickles.Builder({}, pickles.Budget(0))(following())
    for key in names if type(names) is list else []:
        if type(key) is not str or key not in references.storages:
            raise ValueError("it holds a storage that nothing refers to")
        dtype, count, _ = references.storages[key].items
        found = int.from_bytes(stream.read(8), "little")
        held[key] = stream.read(count * dtype.itemsize)
        if found != count or len(held[key]) != count * dtype.itemsize:
            raise ValueError("it is torn: a storage is not complete")
    return notes


class _References:
    """One note for each storage, however many tensors refer to it."""

    def __init__(self, finder: Callable[[str], Callable[[], bytes]]) -> None:
        self.finder = finder
        self.storages: dict[str, pickles.Note] = {}

    def note(self, pid: Any) -> pickles.Note:
        """("storage", type, key, device, count, and in old files a view, or None)."""
        items = pid.items if type(pid) is pickles.Note and pid.kind == "tuple" else []
        if (
            len(items) not in (5, 6)
            or items[0] != "storage"
            or items[5:] not in ([], [None])
        ):
            raise ValueError("a reference leads to no storage")
        _, of_type, key, _, count = items[:5]
        dtype = _DTYPES.get(pickles.name_of(of_type)[1])
        if dtype is None or type(key) is not str or type(count) is not int:
            raise ValueError("a reference leads to no storage")
        if not 0 <= count < 2**48:
            raise ValueError("the size of a storage is none")
        new = pickles.Note(make_storage, [dtype, count, self.finder(key)])
        old = self.storages.setdefault(key, new)
        if old.items[:2] != new.items[:2]:
            raise ValueError("a storage has two types or sizes")
        return old
