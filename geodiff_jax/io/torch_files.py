"""Files of torch.save, read without torch and without running what they hold.

Both layouts: zip archives, and the older sequence of pickles, which also stands inside
pickles that hold tensors (FLAME's landmark embeddings). See `pickles` for what is read.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from geodiff_jax.io import pickles

_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_VERSION = 1001

Finder = Callable[[], bytes]
"""Finds a storage's bytes, once they have been read."""

_DTYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": ml_dtypes.bfloat16,
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


class _StorageType(pickles.Note):
    """Named, but never made."""

    dtype: np.dtype


def _storage_type(name: str) -> type[_StorageType]:
    return type(f"{name}Storage", (_StorageType,), {"dtype": np.dtype(_DTYPES[name])})


class _Storage(pickles.Note):
    """(its bytes, or what finds them; type) of numbers that tensors share."""

    def _made(self, build: pickles.Build) -> np.ndarray:
        find, dtype = self.arguments
        data = find()
        if len(data) % dtype.itemsize:
            raise ValueError(f"{len(data)} bytes are no {dtype}")
        shape = (len(data) // dtype.itemsize,)
        return pickles.array_of_bytes(data, dtype, shape)


class _StorageOfBytes(pickles.Note):
    """A storage that torch.save wrote into a pickle."""

    def _made(self, build: pickles.Build) -> np.ndarray:
        return load(build(self.arguments[0]), name="a storage")


class _Tensor(pickles.Note):
    def _made(self, build: pickles.Build) -> np.ndarray:
        storage, offset, size, stride = (build(x) for x in self.arguments[:4])
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise ValueError(f"no tensor has size {size} and stride {stride}")
        if math.prod(size) > pickles.MOST_ELEMENTS:
            raise ValueError(f"a tensor of {size} is not read")
        steps = zip(size, stride, strict=True)
        last = offset + sum((n - 1) * step for n, step in steps)
        if math.prod(size) and last >= len(storage):
            raise ValueError(f"a tensor of {size} reaches beyond its storage")
        strides = [step * storage.itemsize for step in stride]
        # An empty tensor may start at the end.
        start = storage[min(offset, len(storage)) :]
        return np.lib.stride_tricks.as_strided(start, size, strides).copy()


class _Parameter(pickles.Note):
    def _made(self, build: pickles.Build) -> np.ndarray:
        return build(self.arguments[0])


TABLE = {
    **pickles.TABLE,
    **{("torch", f"{name}Storage"): _storage_type(name) for name in _DTYPES},
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch.storage", "_load_from_bytes"): _StorageOfBytes,
    ("torch", "Size"): tuple,
}
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
    if content.startswith(b"PK"):
        return _load_zip(io.BytesIO(content), name)
    if _is_old(content):
        return _load_old(io.BytesIO(content), name)
    return pickles.load(content, name=name, table=TABLE)


def _load_zip(stream: io.BytesIO, name: str) -> Any:
    try:
        archive = zipfile.ZipFile(stream)
        (program,) = (x for x in archive.namelist() if x.endswith("/data.pkl"))
        folder = program.removesuffix("data.pkl")
        content = _entry(archive, program)
        order = f"{folder}byteorder"
        if order in archive.namelist() and _entry(archive, order) != b"little":
            raise ValueError("big-endian")
    except Exception as error:  # zipfile raises a dozen kinds.
        raise ValueError(
            f"{name} is an archive, but none that torch.save writes here ({error})."
        ) from error

    def finder(key: str, count: int, item_size: int) -> Finder:
        return lambda: _entry(archive, f"{folder}data/{key}", size=count * item_size)

    notes = pickles.notes_of(
        io.BytesIO(content),
        name=name,
        table=TABLE,
        persistent=lambda pid: _storage(pid, finder),
    )
    return pickles.made_of(notes, name=name)


def _entry(archive: zipfile.ZipFile, name: str, *, size: int | None = None) -> bytes:
    """An entry, of `size` bytes; torch does not compress."""
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise ValueError(f"{name} is missing") from error
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    if size is not None and info.file_size != size:
        raise ValueError(f"{name} has {info.file_size} bytes, not {size}")
    return archive.read(info)


def _is_old(content: bytes) -> bool:
    # Pickled at protocol 2: LONG1 of ten bytes.
    return content.startswith(b"\x80\x02\x8a\x0a" + _OLD_MAGIC.to_bytes(10, "little"))


def _load_old(stream: io.BytesIO, name: str) -> Any:
    """Magic, version and system; the object; the storages' names; their numbers."""
    held: dict[str, bytes] = {}
    sizes: dict[str, tuple[int, int]] = {}

    def finder(key: str, count: int, item_size: int) -> Finder:
        sizes[key] = (count, item_size)
        return lambda: held[key]

    def following(persistent: Callable[[Any], Any] | None = None) -> Any:
        return pickles.notes_of(stream, name=name, table=TABLE, persistent=persistent)

    _, version, system = following(), following(), following()
    if version != _OLD_VERSION or not system.get("little_endian", True):
        raise ValueError(f"{name} was written by an unknown version, or big-endian.")
    notes = following(lambda pid: _storage(pid, finder))
    for key in following():
        count, item_size = sizes.get(key, (0, 0))
        found = int.from_bytes(stream.read(8), "little")
        held[key] = stream.read(count * item_size)
        if found != count or len(held[key]) != count * item_size:
            raise ValueError(f"{name} is torn: its storage {key} is not complete.")
    return pickles.made_of(notes, name=name)


def _storage(pid: Any, finder: Callable[[str, int, int], Finder]) -> _Storage:
    """("storage", type, key, device, count, and in old files what it is a view of)."""
    kind, of_type, key, _, count, *view = pid
    if kind != "storage" or not issubclass(of_type, _StorageType) or any(view):
        raise ValueError(f"{pid[:1]} is no reference to a storage")
    dtype = of_type.dtype
    return _Storage(finder(str(key), count, dtype.itemsize), dtype)
