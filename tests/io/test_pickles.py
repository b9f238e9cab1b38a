"""Pickles are read as data: what comes back, and what never runs."""

import collections
import contextlib
import io
import os
import pickle
import sys
import types

import hypothesis
import numpy as np
import pytest
import scipy.sparse
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geodiff_jax.io import pickles, torch_files
from tests.io import damage

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray) and expected.dtype.hasobject:
        assert_same(found.tolist(), expected.tolist())
    else:
        np.testing.assert_array_equal(found, expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(data=st.data())
def test_arrays_come_back_as_they_were(protocol, data):
    kinds = st.sampled_from(["f4", "f8", "i4", "u1", "?", "c16", "S3", "U2"])
    array = data.draw(arrays.arrays(kinds, arrays.array_shapes(min_dims=0, min_side=0)))
    assert_same(pickles.load(pickle.dumps(array, protocol)), array)
    by_columns = np.asfortranarray(array)
    assert_same(pickles.load(pickle.dumps(by_columns, protocol)), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_scalars_and_shared_parts_come_back(protocol):
    shared = np.arange(3)
    value = {
        "list": [1, 2.5, "text", None, True, b"\x00\xff", shared],
        ("a", 1): (shared, {"deep": [[shared]]}),
        "scalar": np.float32(3.5),
        "objects": np.array([{"k": 1}, "x", shared], object),
    }
    found = pickles.load(pickle.dumps(value, protocol))
    assert_same(found, value)
    assert found["list"][-1] is found["a", 1][0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_byte_orders_and_ordered_dicts(protocol):
    big = np.arange(4, dtype=">f8")
    value = collections.OrderedDict(first=big, second={1, 2})
    found = pickles.load(pickle.dumps(value, protocol))
    assert_same(found, {"first": np.arange(4.0), "second": {1, 2}})


@pytest.mark.parametrize("kind", ["csc_matrix", "csr_matrix", "csc_array"])
@pytest.mark.parametrize("old", [True, False])
def test_sparse_matrices_become_dense(kind, old):
    dense = np.random.default_rng(0).normal(size=(5, 40)) * (np.arange(40) % 7 == 0)
    written = pickle.dumps(getattr(scipy.sparse, kind)(dense), protocol=2)
    if old:
        name = kind[:3].encode()
        written = written.replace(b"scipy.sparse._" + name, b"scipy.sparse." + name)
    assert_same(pickles.load(written), dense)


@pytest.fixture
def chumpy(monkeypatch):
    """A module that pickles as chumpy's does."""

    class Ch:
        def __init__(self, x):
            self.x = x
            self._dirty_vars = set()

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    module = types.ModuleType("chumpy.ch")
    module.Ch = Ch
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
        patch.setitem(sys.modules, "chumpy.ch", module)
        yield module


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_chumpy_arrays_become_plain(chumpy, monkeypatch, protocol):
    value = np.arange(12.0).reshape(3, 4)
    written = pickle.dumps({"shapedirs": chumpy.Ch(value)}, protocol)
    monkeypatch.delitem(sys.modules, "chumpy.ch")
    assert_same(pickles.load(written), {"shapedirs": value})


def test_python_2_writes_arrays_as_text():
    numbers = np.array([[1.5, -2.0, 3e300]])
    data = numbers.tobytes()
    written = (
        b"\x80\x02}U\nv_templatecnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x03\x86"
        b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data
    ) + b"tbs."
    assert_same(pickles.load(written), {"v_template": numbers})


def test_python_2_at_its_oldest_protocol():
    numbers = np.array([1.5, -2.0])
    data = repr(numbers.tobytes())[1:].encode()
    written = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n"
        b"(I0\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\ntp6\ncnumpy\ndtype\np7\n"
        b"(S'f8'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\n"
        b"bI00\nS" + data + b"\np13\ntp14\nb."
    )
    np.testing.assert_array_equal(pickle.loads(written, encoding="latin1"), numbers)
    assert_same(pickles.load(written), numbers)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_turned_arrays_come_back(protocol):
    turned = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2)
    assert_same(pickles.load(pickle.dumps(turned, protocol)), turned)
    objects = np.asfortranarray(np.arange(6).reshape(2, 3).astype(object))
    assert_same(pickles.load(pickle.dumps(objects, protocol)), objects)


def test_npy_files_of_objects_are_unwrapped(tmp_path):
    path = tmp_path / "embedding.npy"
    value = {"faces": np.arange(5), "weights": np.ones((5, 3), np.float32)}
    np.save(path, np.array(value, object), allow_pickle=True)
    assert_same(pickles.read(path), value)
    np.save(path, np.arange(3))
    with pytest.raises(ValueError, match=r"plain numbers, no objects; np\.load"):
        pickles.read(path)


class Touch:
    """Runs a command when an ordinary reader meets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_malicious_pickle_does_nothing(tmp_path, protocol):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Touch(mark), protocol))
    assert mark.exists(), "the test's own attack works"
    mark.unlink()
    hidden = np.array([1, Touch(mark)], object)
    for attack in (Touch(mark), [Touch(mark)], {"v_template": hidden}):
        with pytest.raises(ValueError, match=r"x\.pkl holds \w+\.system, and only"):
            pickles.load(pickle.dumps(attack, protocol), name="x.pkl")
    assert not mark.exists()


@pytest.mark.parametrize(
    "function",
    [eval, exec, getattr, __import__, open, np.load, np.fromfile, io.FileIO, type],
)
def test_functions_are_refused_by_name(function):
    written = pickle.dumps(Call(function, "1"))
    with pytest.raises(ValueError, match=rf"holds [\w.]+{function.__name__}, and only"):
        pickles.load(written)


@pytest.mark.parametrize("table", [pickles.TABLE, torch_files.TABLE])
def test_no_name_can_be_written_to(table):
    for module, name in table:
        # BUILD, with attributes to set, on the class itself.
        written = f"\x80\x02c{module}\n{name}\nN}}U\x05valueK\x01s\x86b."
        with pytest.raises(ValueError, match="nothing to belong to"):
            pickles.load(written.encode("latin-1"), table=table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "torn or no pickle"),
        (b"\x00\x01", "torn or no pickle"),
        (b"\x80\x02\x82\x01.", "holds what EXT1 makes"),
        (b"\x80\x02})" + b"\x85" * 150_000 + b"Ns.", "nested deeper than 100"),
        (b"\x80\x02})" + b"2\x86" * 40 + b"Ns.", "a key is no number or text"),
        (b"\x80\x02]q\x00h\x00a.", "contains itself"),
        (b"cbuiltins\nobject\n.", "is no data"),
        (b"\x80\x02Pfile\n.", "references to things outside"),
        (pickle.dumps(np.zeros(2, [("a", "f4")])), "arrays of records"),
        (pickle.dumps(np.array("2020", "M8[Y]")), "arrays of records, dates"),
    ],
)
def test_what_is_not_read_is_said(content, message):
    with pytest.raises(ValueError, match=message):
        pickles.load(content)


def test_claims_of_size_are_checked():
    small = pickle.dumps(np.zeros(3, np.uint8), protocol=2)
    assert small.count(b"K\x03\x85") == 1
    with pytest.raises(ValueError, match="3 bytes do not fill an array of uint8"):
        pickles.load(small.replace(b"K\x03\x85", b"J\xff\xff\x00\x00\x85"))
    matrix = pickle.dumps(scipy.sparse.csc_matrix((70_000, 2)), protocol=2)
    wide = matrix.replace(b"K\x02\x86", b"J\xff\xff\xff\x0f\x86")
    with pytest.raises(ValueError, match="far larger than the file"):
        pickles.load(wide)


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([0, 1, -1])},
        {"indices": np.array([0, 1, 3])},
        {"indptr": np.array([0, 3])},
        {"indptr": np.array([0, 2**32 - 1, 1, 3], np.uint32)},
        {"indptr": np.array([0, 2, 1, 3])},
        {"data": np.array([1.0])},
        {"data": np.ones((3, 1))},
        {"data": 3.0},
    ],
)
def test_sparse_matrices_must_fit(change):
    matrix = scipy.sparse.csc_matrix(np.eye(3))
    matrix.__dict__.update(change)
    with pytest.raises(ValueError, match="sparse matrix"):
        pickles.load(pickle.dumps(matrix))


class RawArray:
    """An array of numbers by its parts, sound or not."""

    def __init__(self, data, shape, dtype):
        self.state = (1, shape, np.dtype(dtype), False, data)

    def __reduce__(self):
        made, arguments, _ = np.zeros(0).__reduce__()
        return made, arguments, self.state


@pytest.mark.parametrize("protocol", PROTOCOLS[3:])
def test_many_copies_of_few_bytes_are_too_many(protocol):
    shared = bytes(2**20)
    one = pickle.dumps([RawArray(shared, (2**20,), "u1")], protocol)
    assert pickles.load(one)[0].shape == (2**20,)
    many = [RawArray(shared, (2**20,), "u1") for _ in range(200)]
    with pytest.raises(ValueError, match="far larger than the file"):
        pickles.load(pickle.dumps(many, protocol))


@pytest.mark.parametrize("data", [np.array([None], object), [1], None, 3, np.ones(1)])
def test_only_bytes_are_the_bytes_of_an_array(data):
    written = pickle.dumps(RawArray(data, (1,), "u8"))
    with pytest.raises(ValueError, match="the bytes of an array are none"):
        pickles.load(written)


def test_torn_and_damaged_files_are_errors_and_nothing_else():
    value = {"a": np.arange(9.0), "b": scipy.sparse.csc_matrix(np.eye(3)), "c": ["x"]}
    whole = pickle.dumps(value)
    for length in range(0, len(whole), 7):
        with pytest.raises(ValueError):
            pickles.load(whole[:length])
    for damaged in damage.copies(whole, count=300):
        with contextlib.suppress(ValueError):
            pickles.load(damaged)


def test_damaged_npy_files_are_errors_and_nothing_else():
    stream = io.BytesIO()
    np.save(stream, np.array({"a": np.arange(3)}, object), allow_pickle=True)
    whole = stream.getvalue()
    for damaged in damage.copies(whole, count=2000):
        with contextlib.suppress(ValueError):
            pickles.load(damaged)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file at"):
        pickles.read(tmp_path / "flame2023.pkl")
