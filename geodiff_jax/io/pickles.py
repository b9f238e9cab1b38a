"""Pickles read as data: arrays, sparse matrices, numbers, text, containers of them.

A pickle is a program, and this reader runs none of it. Whatever class or function it
names is looked up in a table of stand-ins that only take notes; what the table lacks is
refused by name. Then the notes become NumPy arrays. Nothing that wrote the file, like
chumpy, scipy or Python 2, need be installed.
"""

import io
import math
import operator
import os
import pathlib
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

MOST_ELEMENTS = 2**28
"""Of one array: a few bytes can claim to be any number of zeros."""

Build = Callable[[Any], Any]
"""Makes what it is given, notes and containers of notes, into data."""


class Note:
    """What a pickle wants made: by which stand-in, from what, and with what state."""

    def __new__(cls, *arguments: Any) -> "Note":
        """Keeps the arguments, whatever they are."""
        note = super().__new__(cls)
        note.arguments, note.state = arguments, None
        return note

    def __setstate__(self, state: Any) -> None:
        """Keeps the state."""
        self.state = state

    def _made(self, build: Build) -> Any:
        """The data that this stands for."""
        raise ValueError(f"{type(self).__name__} stands for no data")


class _DType(Note):
    def _made(self, build: Build) -> np.dtype:
        code = self.arguments[0]
        if not re.fullmatch(r"[?biufcSUO]\d*", code):
            raise ValueError(f"arrays of {code!r} are not read")
        order = self.state[1] if self.state else "|"
        order = order.decode() if isinstance(order, bytes) else order
        return np.dtype(code).newbyteorder(order)


class _Array(Note):
    """By `_reconstruct`, which is told nothing: all is in the state."""

    def _made(self, build: Build) -> np.ndarray:
        _, shape, dtype, by_columns, data = self.state
        dtype = build(dtype)
        if dtype.hasobject:
            return _object_array(build(data), shape)
        order = "F" if by_columns else "C"
        return array_of_bytes(as_bytes(build(data)), dtype, shape, order=order)


class _BufferArray(Note):
    """By `_frombuffer` of pickle's protocol 5."""

    def _made(self, build: Build) -> np.ndarray:
        data, dtype, shape, order = self.arguments
        return array_of_bytes(as_bytes(build(data)), build(dtype), shape, order=order)


class _Scalar(Note):
    def _made(self, build: Build) -> np.generic:
        dtype, data = self.arguments
        return array_of_bytes(as_bytes(build(data)), build(dtype), ())[()]


class _Chumpy(Note):
    """chumpy.ch.Ch, an array with a gradient: the array is its `x`."""

    def _made(self, build: Build) -> np.ndarray:
        return build(self.state["x"])


class _Sparse(Note):
    by_columns: ClassVar[bool]

    def _made(self, build: Build) -> np.ndarray:
        """Dense."""
        state = self.state
        shape = build(state["_shape" if "_shape" in state else "shape"])
        starts, others, values = (
            build(state[k]) for k in ("indptr", "indices", "data")
        )
        rows, columns = (_checked_length(n) for n in shape)
        if rows * columns > MOST_ELEMENTS:
            raise ValueError(f"a sparse matrix of {rows} x {columns} is not read")
        counts = np.diff(starts)
        if starts[0] != 0 or starts[-1] != len(others) or np.any(counts < 0):
            raise ValueError("the indices of a sparse matrix do not fit")
        own = np.repeat(np.arange(len(counts)), counts)
        at = (others, own) if self.by_columns else (own, others)
        dense = np.zeros((rows, columns), values.dtype)
        np.add.at(dense, at, values)
        return dense


class _SparseColumns(_Sparse):
    by_columns = True


class _SparseRows(_Sparse):
    by_columns = False


class _Bytes(Note):
    """By codecs.encode or bytearray: how older protocols write bytes."""

    def _made(self, build: Build) -> bytes:
        if not self.arguments:
            return b""
        text, *encoding = map(build, self.arguments)
        if encoding not in ([], ["latin1"], ["latin-1"], ["utf-8"]):
            raise ValueError(f"bytes in {encoding} are not read")
        return text.encode(*encoding) if isinstance(text, str) else as_bytes(text)


class _OrderedDict(dict):
    """Attributes, as torch gives them to its state dicts, are dropped."""

    def __setstate__(self, state: Any) -> None:
        """Keeps nothing."""


class _EmptyArray(Note):
    """`_reconstruct`: an array that is told its content later."""

    def __new__(cls, *_: Any) -> Note:
        return _Array()


class _Empty(Note):
    """copyreg's `_reconstructor`: any other thing that is told its content later."""

    def __new__(cls, kind: type, *_: Any) -> Note:
        if not issubclass(kind, Note):
            raise ValueError(f"{kind.__name__} is nothing to build on")
        return kind()


TABLE: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _EmptyArray,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("chumpy.ch", "Ch"): _Chumpy,
    ("scipy.sparse.csc", "csc_matrix"): _SparseColumns,
    ("scipy.sparse.csc", "csc_array"): _SparseColumns,
    ("scipy.sparse.csr", "csr_matrix"): _SparseRows,
    ("scipy.sparse.csr", "csr_array"): _SparseRows,
    ("collections", "OrderedDict"): _OrderedDict,
    ("copyreg", "_reconstructor"): _Empty,
    ("builtins", "object"): object,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): _Bytes,
    ("builtins", "bytes"): _Bytes,
    ("_codecs", "encode"): _Bytes,
}
"""Stand-ins by (module, name). All are classes that no pickle can write to: their
attributes are Python's, or they take states as notes."""

_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "scipy.sparse._csc": "scipy.sparse.csc",
    "scipy.sparse._csr": "scipy.sparse.csr",
}
"""Python 2's names, and where later versions moved things."""


def read(path: str | os.PathLike) -> Any:
    """The content of a pickle, or of an .npy file of pickled objects.

    Arrays and scalars are NumPy's, in the machine's byte order; chumpy's arrays become
    plain ones, sparse matrices dense ones, ordered dicts dicts. Python 2's text is
    taken for latin-1, as FLAME's files need it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is torn, no pickle, or names something that is not in TABLE.
    """
    return load(file_bytes(path), name=os.fspath(path))


def load(
    content: bytes,
    *,
    name: str = "this pickle",
    table: Mapping[tuple[str, str], Any] = TABLE,
) -> Any:
    """As `read`, from memory; `name` is for messages, `table` says what is read."""
    stream = io.BytesIO(content)
    is_npy = content.startswith(np.lib.format.MAGIC_PREFIX)
    if is_npy:
        try:
            _skip_header(stream)
        except ValueError as error:
            raise ValueError(f"{name} is no .npy file of objects: {error}.") from error
    data = made_of(notes_of(stream, name=name, table=table), name=name)
    # NumPy wraps a dict in an array of no axes.
    return data.item() if is_npy and data.shape == () else data


def file_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of a file; says in a sentence if there is none."""
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {path}.") from None


def notes_of(
    stream: io.BytesIO,
    *,
    name: str,
    table: Mapping[tuple[str, str], Any] = TABLE,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """What the next pickle of a stream describes, as containers of notes.

    `persistent` answers persistent ids; without it they are refused.
    """
    try:
        _scan(stream)
        return _Reader(stream, table, persistent).load()
    except _RefusedError as refused:
        raise ValueError(
            f"{name} holds {refused}, and only arrays, numbers, text and containers of "
            "them are read; convert it in the program that wrote it."
        ) from None
    except Exception as error:
        raise ValueError(
            f"{name} is torn or no pickle ({type(error).__name__}: {error})."
        ) from error


def made_of(notes: Any, *, name: str) -> Any:
    """The data of notes that `notes_of` took."""
    try:
        return _Builder()(notes)
    except Exception as error:
        raise ValueError(
            f"{name} is torn, or holds what is not read "
            f"({type(error).__name__}: {error})."
        ) from error


def array_of_bytes(
    data: bytes, dtype: np.dtype, shape: tuple[int, ...], *, order: str = "C"
) -> np.ndarray:
    """An array of its own, in the machine's byte order; bytes and shape must agree."""
    shape = tuple(_checked_length(n) for n in shape)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fill {dtype} of shape {shape}")
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="), order="C")


def as_bytes(data: Any) -> bytes:
    """Bytes; Python 2's come as text of latin-1."""
    return data.encode("latin-1") if isinstance(data, str) else bytes(memoryview(data))


class _RefusedError(Exception):
    """The name of what is not in the table."""


class _Reader(pickle.Unpickler):
    """Python's own machine for pickles, with nothing to reach for but the table."""

    def __init__(
        self,
        stream: io.BytesIO,
        table: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._table, self._persistent = table, persistent

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in."""
        key = (_MODULES.get(module, module), name)
        if key not in self._table:
            raise _RefusedError(f"{module}.{name}")
        return self._table[key]

    def persistent_load(self, pid: Any) -> Any:
        """What the file's own layout keeps elsewhere."""
        if self._persistent is None:
            raise _RefusedError("references to things outside of it")
        return self._persistent(pid)


def _skip_header(stream: io.BytesIO) -> None:
    """Goes to the pickle in an .npy file of objects."""
    version = np.lib.format.read_magic(stream)
    reader = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if reader is None:
        raise ValueError(f"its version {version} is not read")
    _, _, dtype = reader(stream)
    if not dtype.hasobject:
        raise ValueError("it holds plain numbers; np.load reads them")


def _scan(stream: io.BytesIO) -> None:
    """Refuses what the machine would do before it asks the table; comes back."""
    start = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(start)
    for code, argument, _ in pickletools.genops(stream):
        if code.name.startswith("EXT"):
            raise _RefusedError("classes by number")
        if code.name.endswith("PUT") and argument > size:
            # Room is made for all numbers below it.
            raise ValueError(f"memo number {argument}")
    stream.seek(start)


class _Builder:
    """Each thing is made once, however often a pickle points to it."""

    def __init__(self) -> None:
        # With what was made from: as long as it lives, no other has its id.
        self._made: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(
            value, bool | int | float | complex | str | bytes
        ):
            return value
        if id(value) in self._made:
            return self._made[id(value)][1]
        if id(value) in self._open:
            raise ValueError("something contains itself")
        self._open.add(id(value))
        result = self._new(value)
        self._open.remove(id(value))
        self._made[id(value)] = (value, result)
        return result

    def _new(self, value: Any) -> Any:
        if isinstance(value, Note):
            return value._made(self)
        if type(value) in (dict, _OrderedDict):
            return {self(k): self(v) for k, v in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self(v) for v in value)
        if type(value) is bytearray:
            return bytes(value)
        raise ValueError(f"{value!r} is no data")


def _object_array(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array.reshape(shape)


def _checked_length(length: Any) -> int:
    if not 0 <= operator.index(length) <= MOST_ELEMENTS:
        raise ValueError(f"{length!r} is no length of an array")
    return operator.index(length)
