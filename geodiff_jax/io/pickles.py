"""Pickles read as data: arrays, sparse matrices, numbers, text, containers of them.

A pickle is a program for a small stack machine. The machine here only takes notes: it
calls, imports and hashes nothing, and refuses by name whatever its table of makers
lacks. Then the makers turn notes into NumPy arrays, within a budget that grows with the
file. Nothing that wrote it, like chumpy, scipy or Python 2, is needed.
"""

import codecs
import contextlib
import io
import math
import os
import pathlib
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

DEEPEST = 100
"""Containers in containers."""
SPARE_BYTES, BYTES_PER_BYTE = 2**26, 16
"""What arrays may take: so much, and so much for each byte of the file."""

Name = tuple[str, str]
"""Module and name."""


class Note:
    """What a pickle wants made: of which kind, from which items, with which state.

    `pairs` holds the keys and values of dicts, one after the other.
    """

    __slots__ = ("items", "kind", "pairs", "state")

    def __init__(self, kind: "str | Name | Maker", items: list[Any]) -> None:
        """A container ("list", "tuple", "set", "dict"), or made as `TABLE` says; or by
        a maker that no table has, and so no pickle can ask for."""
        self.kind, self.items = kind, items
        self.pairs: list[Any] = []
        self.state: Any = None


class _Named:
    """A class or function, by its name alone."""

    __slots__ = ("name",)

    def __init__(self, name: Name) -> None:
        self.name = name


class Budget:
    """Bytes that arrays may still take."""

    def __init__(self, file_bytes: int) -> None:
        """For a file of so many bytes."""
        self.left = SPARE_BYTES + BYTES_PER_BYTE * file_bytes

    def spend(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Raises ValueError once arrays take more than the file can mean."""
        if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32:
            raise ValueError("the shape of an array is none")
        size = max(dtype.itemsize, 1)
        for n in shape:
            size *= n
            if size > self.left:
                raise ValueError("arrays are far larger than the file")
        self.left -= size


class Builder:
    """Notes to data; each is made once, however often the pickle points to it."""

    def __init__(self, table: "Mapping[Name, Maker]", budget: Budget) -> None:
        """Without notes of its own: they must outlive it."""
        self.table, self.budget = table, budget
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()

    def __call__(self, value: Any) -> Any:
        """The data of a note; what is no note is data already."""
        if type(value) is _Named:
            raise ValueError(f"{'.'.join(value.name)} is no data")
        if type(value) is not Note:
            return value
        if id(value) not in self._made:
            if id(value) in self._open:
                raise ValueError("something contains itself")
            if len(self._open) >= DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST}")
            self._open.add(id(value))
            self._made[id(value)] = self._new(value)
            self._open.remove(id(value))
        return self._made[id(value)]

    def arguments(self, note: Note, least: int, most: int) -> list[Any]:
        """The items of a note, unmade; raises if there are too few or too many."""
        if not least <= len(note.items) <= most:
            raise ValueError(f"{len(note.items)} arguments do not fit")
        return note.items

    def dict_of(self, pairs: list[Any]) -> dict:
        """Of notes, keys and values in turn."""
        together = zip(pairs[::2], pairs[1::2], strict=True)
        return {_hashable(self(key)): self(value) for key, value in together}

    def _new(self, note: Note) -> Any:
        if note.kind == "list":
            return [self(x) for x in note.items]
        if note.kind == "tuple":
            return tuple(self(x) for x in note.items)
        if note.kind == "set":
            return {_hashable(self(x)) for x in note.items}
        if note.kind == "dict":
            return self.dict_of(note.pairs)
        maker = note.kind if callable(note.kind) else self.table[note.kind]
        return maker(note, self)


Maker = Callable[[Note, Builder], Any]
"""Makes a note of one kind."""


def make_dtype(note: Note, build: Builder) -> np.dtype:
    """numpy.dtype: numbers, flags and text of fixed length, or objects."""
    code = build(build.arguments(note, 1, 3)[0])
    if type(code) is not str or not re.fullmatch(r"[?biufcSUO]\d{0,9}", code):
        raise ValueError("arrays of records, dates or unknown types are not read")
    order = "|" if note.state is None else build(_items(note.state, 3, 9)[1])
    order = order.decode("latin-1") if type(order) is bytes else order
    if order not in ("<", ">", "|", "="):
        raise ValueError("an array's byte order is none")
    return np.dtype(code).newbyteorder(order)


def make_array(note: Note, build: Builder) -> np.ndarray:
    """numpy.ndarray: all is in the state."""
    _, shape, dtype, by_columns, data = _items(note.state, 5, 5)
    shape, dtype, data = build(shape), _dtype(build(dtype)), build(data)
    order = "F" if by_columns else "C"
    if not dtype.hasobject:
        return array_of_bytes(data, dtype, shape, budget=build.budget, order=order)
    build.budget.spend(shape, dtype)
    if type(data) is not list or len(data) != math.prod(shape):
        raise ValueError("the objects of an array do not fill it")
    array = np.empty(len(data), object)
    for i, value in enumerate(data):
        array[i] = value
    return array.reshape(shape)  # NumPy lists objects row by row, whatever their order.


def make_buffer_array(note: Note, build: Builder) -> np.ndarray:
    """numpy's _frombuffer, of pickle's protocol 5."""
    data, dtype, shape, order, *axes = (build(x) for x in build.arguments(note, 4, 5))
    if order == "K" and axes and axes[0] is not None:
        array = array_of_bytes(data, _dtype(dtype), shape, budget=build.budget)
        return array.transpose(axes[0])
    if order not in ("C", "F"):
        raise ValueError("the order of an array is none")
    return array_of_bytes(data, _dtype(dtype), shape, budget=build.budget, order=order)


def make_scalar(note: Note, build: Builder) -> np.generic:
    """numpy's scalar."""
    dtype, data = (build(x) for x in build.arguments(note, 2, 2))
    return array_of_bytes(data, _dtype(dtype), (), budget=build.budget)[()]


def make_chumpy(note: Note, build: Builder) -> np.ndarray:
    """chumpy.ch.Ch, an array with a gradient: the array is its x."""
    array = _fields(note.state, build, "x")[0]
    if type(array) is not np.ndarray:
        raise ValueError("a chumpy array holds no array")
    return array


def make_sparse(note: Note, build: Builder) -> np.ndarray:
    """scipy's compressed columns or rows, dense."""
    (shape,) = _fields(note.state, build, "_shape", "shape", most=1)
    starts, others, values = _fields(note.state, build, "indptr", "indices", "data")
    by_columns = note.kind[1].startswith("csc")
    arrays = (starts, others, values)
    if any(type(x) is not np.ndarray or x.ndim != 1 for x in arrays):
        raise ValueError("a sparse matrix lacks its arrays")
    shape = tuple(int(n) for n in shape)
    build.budget.spend(shape, values.dtype)
    rows, columns = shape
    own_count, other_count = (columns, rows) if by_columns else (rows, columns)
    starts, others = starts.astype(np.int64), others.astype(np.int64)
    counts = np.diff(starts)
    whole = (
        len(counts) == own_count
        and starts[0] == 0
        and starts[-1] == len(others) == len(values)
        and (counts >= 0).all()
        and ((others >= 0) & (others < other_count)).all()
    )
    if not whole or values.dtype.kind not in "?biufc":
        raise ValueError("the indices of a sparse matrix do not fit")
    own = np.repeat(np.arange(own_count), counts)
    dense = np.zeros(shape, values.dtype)
    np.add.at(dense, (others, own) if by_columns else (own, others), values)
    return dense


def make_bytes(note: Note, build: Builder) -> bytes:
    """bytes, bytearray and codecs.encode: how older protocols write bytes."""
    match [build(x) for x in note.items]:
        case []:
            return b""
        case [bytes() as data]:
            return data
        case [str() as text, "latin1" | "latin-1" | "utf-8" as encoding]:
            return text.encode(encoding)
    raise ValueError("bytes are written in an unknown way")


def make_set(note: Note, build: Builder) -> set:
    """set and frozenset of older protocols."""
    items = build.arguments(note, 0, 1)
    return {_hashable(build(x)) for x in (_items(items[0], 0) if items else [])}


def make_complex(note: Note, build: Builder) -> complex:
    """complex."""
    real, imaginary = (build(x) for x in build.arguments(note, 2, 2))
    if type(real) is not float or type(imaginary) is not float:
        raise ValueError("a complex number is none")
    return complex(real, imaginary)


def make_ordered_dict(note: Note, build: Builder) -> dict:
    """collections.OrderedDict; attributes, as torch gives its own, are dropped."""
    items = build.arguments(note, 0, 1)
    pairs: list[Any] = []
    for pair in _items(items[0], 0) if items else []:
        pairs += _items(pair, 2, 2)
    return build.dict_of(pairs + note.pairs)


TABLE: Mapping[Name, Maker] = {
    ("numpy", "ndarray"): make_array,
    ("numpy", "dtype"): make_dtype,
    ("numpy.core.multiarray", "scalar"): make_scalar,
    ("numpy.core.numeric", "_frombuffer"): make_buffer_array,
    ("chumpy.ch", "Ch"): make_chumpy,
    ("scipy.sparse.csc", "csc_matrix"): make_sparse,
    ("scipy.sparse.csc", "csc_array"): make_sparse,
    ("scipy.sparse.csr", "csr_matrix"): make_sparse,
    ("scipy.sparse.csr", "csr_array"): make_sparse,
    ("collections", "OrderedDict"): make_ordered_dict,
    ("builtins", "set"): make_set,
    ("builtins", "frozenset"): make_set,
    ("builtins", "complex"): make_complex,
    ("builtins", "bytearray"): make_bytes,
    ("builtins", "bytes"): make_bytes,
    ("_codecs", "encode"): make_bytes,
}
"""Makers by module and name."""

_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "scipy.sparse._csc": "scipy.sparse.csc",
    "scipy.sparse._csr": "scipy.sparse.csr",
}
"""Python 2's names, and where later versions moved things."""

_EMPTY = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("copyreg", "_reconstructor"),
}
"""Make an empty thing of the class that is their first argument; its state follows."""


def read(path: str | os.PathLike) -> Any:
    """The content of a pickle, or of an .npy file of pickled objects.

    Arrays and scalars are NumPy's, in the machine's byte order; chumpy's arrays become
    plain ones, sparse matrices dense ones, ordered dicts dicts, frozen sets sets,
    bytearrays bytes. Python 2's text is taken for latin-1, as FLAME's files need it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is torn, no pickle, or names something that is not in TABLE.
    """
    return load(file_bytes(path), name=os.fspath(path))


def load(
    content: bytes, *, name: str = "this pickle", table: Mapping[Name, Maker] = TABLE
) -> Any:
    """As `read`, from memory; `name` is for messages, `table` says what is read."""
    with said_of(name):
        stream = io.BytesIO(content)
        is_npy = content.startswith(np.lib.format.MAGIC_PREFIX)
        if is_npy:
            _skip_header(stream)
        note = take_notes(stream, table=table)
        data = Builder(table, Budget(len(content)))(note)
        if is_npy and not isinstance(data, np.ndarray):
            raise ValueError("its object is no array")
        # NumPy wraps a dict in an array of no axes.
        return data.item() if is_npy and data.shape == () else data


def file_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of a file; says in a sentence if there is none."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"There is no file at {path} that can be read.") from None


@contextlib.contextmanager
def said_of(name: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one sentence, a ValueError, about `name`."""
    try:
        yield
    except RefusedError as refused:
        raise ValueError(
            f"{name} holds {refused}, and only arrays, numbers, text and containers of "
            "them are read; convert it in the program that wrote it."
        ) from None
    except Exception as error:
        said = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{name} cannot be read: {said}.") from error


class RefusedError(Exception):
    """The name of what the table lacks."""


def array_of_bytes(
    data: Any,
    dtype: np.dtype,
    shape: tuple[int, ...],
    *,
    budget: Budget,
    order: str = "C",
) -> np.ndarray:
    """An array of its own, in the machine's byte order; bytes and shape must agree."""
    data = data.encode("latin-1") if type(data) is str else data
    if type(data) is not bytes or dtype.hasobject or type(shape) is not tuple:
        raise ValueError("the bytes of an array are none")
    budget.spend(shape, dtype)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fill an array of {dtype}")
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="), order="C")


def take_notes(
    stream: io.BytesIO,
    *,
    table: Mapping[Name, Maker] = TABLE,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """What the next pickle of a stream describes; `persistent` answers its references.

    Raises RefusedError for names that the table lacks, and much else for torn ones.
    """
    return _Machine(table, persistent).run(stream)


class _Machine:
    """A stack, marks in it, and a memo."""

    def __init__(
        self, table: Mapping[Name, Maker], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.table, self.persistent = table, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """Until STOP."""
        while True:
            code = pickletools.code2op.get(stream.read(1).decode("latin-1"))
            if code is None:
                raise ValueError("it is torn or no pickle")
            if code.name == "STRING":
                raw = pickletools.read_stringnl(stream, decode=False)
                argument = codecs.escape_decode(raw)[0].decode("latin-1")
            else:
                argument = None if code.arg is None else code.arg.reader(stream)
            if code.name == "STOP":
                return self.pop()
            self.step(code.name, argument)

    def pop(self) -> Any:
        """From above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("its stack is empty")
        return self.stack.pop()

    def popped(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "POP" if self.marks and len(self.stack) == self.marks[-1]:
                self.marks.pop()
            case "POP":
                self.pop()
            case "POP_MARK":
                self.popped()
            case "DUP":
                push(self.stack[-1])
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET" | "EMPTY_DICT":
                push(Note(name.removeprefix("EMPTY_").lower(), []))
            case "LIST" | "TUPLE":
                push(Note(name.lower(), self.popped()))
            case "FROZENSET":
                push(Note("set", self.popped()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(Note("tuple", [self.pop() for _ in range(int(name[-1]))][::-1]))
            case "DICT":
                note = Note("dict", [])
                note.pairs = self.popped()
                push(note)
            case "APPEND":
                item = self.pop()
                self.top("list").items.append(item)
            case "APPENDS" | "ADDITEMS":
                items = self.popped()
                self.top("list" if name == "APPENDS" else "set").items.extend(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.top("dict", ("collections", "OrderedDict")).pairs += [key, value]
            case "SETITEMS":
                items = self.popped()
                self.top("dict", ("collections", "OrderedDict")).pairs += items
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                push(self.named(module, attribute))
            case "INST":
                push(self.called(self.named(*argument.split(" ", 1)), self.popped()))
            case "OBJ":
                function, *items = self.popped()
                push(self.called(function, items))
            case "REDUCE" | "NEWOBJ":
                items = _items(self.pop(), 0)
                push(self.called(self.pop(), items))
            case "BUILD":
                state = self.pop()
                note = self.stack[-1]
                if type(note) is not Note or type(note.kind) is str:
                    raise ValueError("a state has nothing to belong to")
                note.state = state
            case "PERSID" | "BINPERSID":
                if self.persistent is None:
                    raise RefusedError("references to things outside of it")
                push(self.persistent(argument if name == "PERSID" else self.pop()))
            case _ if name.startswith(("EXT", "NEXT_B", "READONLY_B", "NEWOBJ_EX")):
                raise RefusedError(f"what {name} makes")
            case _ if type(argument) in (bool, int, float, str, bytes, bytearray):
                if type(argument) is int and argument.bit_length() > 128:
                    raise ValueError("it holds a number of too many digits")
                is_array = type(argument) is bytearray
                push(bytes(argument) if is_array else argument)
            case _:
                raise ValueError(f"its instruction {name} is unknown")

    def top(self, *kinds: "str | Name") -> Note:
        """What is added to; it must be of one of these kinds."""
        note = self.stack[-1]
        if type(note) is not Note or note.kind not in kinds:
            raise ValueError("it adds to what is no container")
        return note

    def named(self, module: Any, name: Any) -> _Named:
        """A name from the table."""
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name is no text")
        key = (_MODULES.get(module, module), name)
        known = key in self.table or key in _EMPTY or key == ("builtins", "object")
        if not known:
            raise RefusedError(f"{module}.{name}"[:100])
        return _Named(key)

    def called(self, function: Any, items: list[Any]) -> Note:
        """What a named function or class would make of these."""
        if type(function) is not _Named:
            raise ValueError("it calls what is no function")
        name = function.name
        if name in _EMPTY:
            if not items or type(items[0]) is not _Named:
                raise ValueError("it makes an empty thing of no class")
            name, items = items[0].name, []
        if name not in self.table:
            raise RefusedError(".".join(name))
        return Note(name, list(items))


def name_of(value: Any) -> Name:
    """The name that a pickle gives where it names a class; empty for all else."""
    return value.name if type(value) is _Named else ("", "")


def _items(note: Any, least: int, most: int | None = None) -> list[Any]:
    """Of a list or tuple."""
    if type(note) is not Note or note.kind not in ("list", "tuple"):
        raise ValueError("a list or tuple is none")
    if len(note.items) < least or (most is not None and len(note.items) > most):
        raise ValueError(f"a list or tuple has {len(note.items)} items")
    return note.items


def _fields(note: Any, build: Builder, *names: str, most: int | None = None) -> list:
    """Values of a dict of attributes; the first `most` that are there, or all."""
    if type(note) is not Note or note.kind != "dict":
        raise ValueError("attributes are no dict")
    found = dict(zip(map(_text, note.pairs[::2]), note.pairs[1::2], strict=True))
    there = [name for name in names if name in found]
    if len(there) < (most or len(names)):
        raise ValueError(f"{' and '.join(names)} are missing")
    return [build(found[name]) for name in there[:most]]


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _hashable(value: Any) -> Any:
    """A key: numbers, text, bytes, short tuples of them."""
    plain = (str, bytes, int, float, bool, type(None))
    parts = value if type(value) is tuple else (value,)
    if len(parts) > 16 or any(not isinstance(x, (*plain, np.generic)) for x in parts):
        raise ValueError("a key is no number or text")
    return value


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, np.dtype):
        raise ValueError("the type of an array is none")
    return value


def _skip_header(stream: io.BytesIO) -> None:
    """Goes to the pickle in an .npy file of objects."""
    version = np.lib.format.read_magic(stream)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    _, _, dtype = header(stream)
    if not dtype.hasobject:
        raise ValueError("it holds plain numbers, no objects; np.load reads them")
