"""Files of torch.save come back as arrays; without torch, so the test writes them."""

import collections
import contextlib
import io
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from geodiff_jax.io import torch_files
from tests.conftest import shared_data
from tests.io import damage

DTYPES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


class Tensor:
    """What torch pickles of a tensor, from a view of a NumPy array."""

    def __init__(self, array, *, storage=None, offset=0):
        self.array = np.asarray(array)
        self.storage = Storage(self.array if storage is None else storage)
        self.offset = offset

    def __reduce__(self):
        step = self.array.itemsize
        strides = tuple(s // step for s in self.array.strides)
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        shape = self.array.shape
        return rebuild, (self.storage, self.offset, shape, strides, False, {})


class Storage:
    """The numbers below a tensor."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array)

    @property
    def kind(self):
        (kind,) = (k for k, v in DTYPES.items() if v == self.array.dtype)
        return getattr(sys.modules["torch"], f"{kind}Storage")

    @property
    def key(self):
        return str(self.array.__array_interface__["data"][0])

    def __reduce__(self):
        """As torch's, where a tensor meets a plain pickle."""
        load = sys.modules["torch.storage"]._load_from_bytes
        return load, (old_file(self),)


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """Names for pickle to find; nothing behind them."""

    def named(module, name):
        thing = type(name, (), {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, thing)

    for module in ("torch", "torch._utils", "torch.storage"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for kind in DTYPES:
        named("torch", f"{kind}Storage")
    named("torch._utils", "_rebuild_tensor_v2")
    named("torch.storage", "_load_from_bytes")


def pickled(value, *, old):
    """(pickle of the value, its storages by key)."""
    storages, stream = {}, io.BytesIO()

    class Writer(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            storages[thing.key] = thing.array
            view = (None,) if old else ()
            return ("storage", thing.kind, thing.key, "cpu", thing.array.size, *view)

    Writer(stream, protocol=2).dump(value)
    return stream.getvalue(), storages


def zip_file(value):
    program, storages = pickled(value, old=False)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"model/data/{key}", array.tobytes())
        archive.writestr("model/version", "3\n")
    return stream.getvalue()


def old_file(value):
    program, storages = pickled(value, old=True)
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(x, protocol=2) for x in head]
    parts += [program, pickle.dumps(list(storages), protocol=2)]
    for array in storages.values():
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    return b"".join(parts)


def plain_pickle(value):
    return pickle.dumps(value, protocol=4)


each_layout = pytest.mark.parametrize("write", [zip_file, old_file, plain_pickle])


@each_layout
@pytest.mark.parametrize("kind", DTYPES)
def test_tensors_come_back_in_every_layout_and_type(write, kind):
    array = (np.arange(12) % 5).reshape(3, 4).astype(DTYPES[kind])
    state = {"state_dict": {"weight": Tensor(array)}, "step": 7, "name": "x"}
    found = torch_files.load(write(state))
    assert found["step"] == 7 and found["name"] == "x"
    weight = found["state_dict"]["weight"]
    assert weight.dtype == array.dtype
    np.testing.assert_array_equal(weight, array)


@each_layout
def test_state_dicts_lose_their_attributes(write):
    state = collections.OrderedDict(weight=Tensor(np.ones(2)))
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    found = torch_files.load(write(state))
    assert type(found) is dict
    np.testing.assert_array_equal(found.pop("weight"), [1, 1])
    assert not found


@each_layout
def test_views_share_a_storage(write):
    base = np.arange(24, dtype=np.float32)
    table = base.reshape(4, 6)
    views = {
        "turned": Tensor(table.T, storage=base),
        "part": Tensor(table[1:3, ::2], storage=base, offset=6),
        "repeated": Tensor(np.broadcast_to(base[5:6], (3,)), storage=base, offset=5),
        "scalar": Tensor(base[3].reshape(()), storage=base, offset=3),
        "empty": Tensor(base[:0], storage=base, offset=24),
    }
    found = torch_files.load(write(views))
    for name, view in views.items():
        np.testing.assert_array_equal(found[name], view.array)


@each_layout
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 20}, "reaches beyond its storage"),
        ({"offset": -1}, "the size or stride of a tensor is none"),
    ],
)
def test_views_beyond_their_storage_are_refused(write, change, message):
    base = np.arange(24, dtype=np.float32)
    tensor = Tensor(base[:6].reshape(2, 3), storage=base, **change)
    with pytest.raises(ValueError, match=message):
        torch_files.load(write([tensor]), name="x.pt")


@pytest.mark.parametrize("write", [zip_file, old_file])
def test_torn_files_are_said_to_be(write):
    whole = write({"weight": Tensor(np.arange(50.0))})
    for length in range(0, len(whole), 41):
        with pytest.raises(ValueError):
            torch_files.load(whole[:length])


def test_archives_of_others_are_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"x\.zip cannot be read: it is an archive"):
        torch_files.load(stream.getvalue(), name="x.zip")


def test_storages_of_another_size_are_refused():
    class Longer(Storage):
        kind = property(lambda self: sys.modules["torch"].DoubleStorage)

    tensor = Tensor(np.arange(6, dtype=np.float32))
    tensor.storage = Longer(tensor.array)
    with pytest.raises(ValueError, match="24 bytes do not fill an array of float64"):
        torch_files.load(zip_file([tensor]))


class Rebuilt:
    """A tensor of anything."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


NARROW = (np.uint8(16), np.uint8(16))  # Their product is 0 in eight bits.


@each_layout
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((200, 0)), 0, (199,), (1,), False, {}), "has no storage"),
        ((np.array([None] * 4), 0, (4,), (1,), False, {}), "has no storage"),
        ((Storage(np.zeros(1)), 0, NARROW, (1, 1), False, {}), "is none"),
        ((Storage(np.zeros(1)), np.int64(0), (1,), (1,), False, {}), "is none"),
        ((Storage(np.zeros(9)), 0, (9,), (1,), False, {}, {"neg": True}), "negated"),
        ((Storage(np.zeros(1)), 0, (2**28,), (0,), False, {}), "larger than the file"),
        ((Storage(np.zeros(1)), 0, (2**800,) * 30, (0,) * 30, False, {}), "be read"),
        ((Storage(np.zeros(1)), 0, (), (1,), False, {}), "is none"),
    ],
)
def test_no_tensor_reaches_memory_of_others(write, arguments, message):
    with pytest.raises(ValueError, match=message):
        torch_files.load(write([Rebuilt(*arguments)]))


@each_layout
def test_many_views_of_a_byte_are_too_many(write):
    base = np.zeros(1, np.uint8)
    views = [Tensor(np.broadcast_to(base, (2**22,)), storage=base) for _ in range(40)]
    with pytest.raises(ValueError, match="far larger than the file"):
        torch_files.load(write(views))


def test_storages_do_not_nest():
    inside = plain_pickle(Tensor(np.zeros(3)))
    assert torch_files.load(inside).shape == (3,)
    storage = Storage(np.frombuffer(inside, np.uint8))
    nested = old_file([Rebuilt(storage, 0, (3,), (1,), False, {})]).replace(
        b"torch\nByteStorage", b"torch.storage\n_load_from_bytes"
    )
    with pytest.raises(ValueError):
        torch_files.load(nested)


@pytest.mark.parametrize("system", [None, [], {"little_endian": True}])
@pytest.mark.parametrize("names", [None, 3, [[]], ["other"], {}])
def test_old_files_of_other_parts_are_refused(system, names):
    program, _ = pickled({"weight": Tensor(np.ones(2))}, old=True)
    parts = (0x1950A86A20F9469CFC6C, 1001, system, program, names)
    content = b"".join(
        x if isinstance(x, bytes) else pickle.dumps(x, protocol=2) for x in parts
    )
    with pytest.raises(ValueError):
        torch_files.load(content)


@pytest.mark.parametrize("write", [zip_file, old_file, plain_pickle])
def test_damage_is_an_error_and_nothing_else(write):
    whole = write({"weight": Tensor(np.arange(9.0)), "step": 3})
    for damaged in damage.copies(whole, count=300):
        with contextlib.suppress(ValueError):
            torch_files.load(damaged)


@each_layout
def test_what_is_no_tensor_is_refused_by_name(write):
    with pytest.raises(ValueError, match=r"holds pathlib\.\w+, and only"):
        torch_files.load(write({"path": __import__("pathlib").Path("x")}))


def test_flames_own_landmarks():
    path = shared_data("flame_topology/landmark_embedding_with_eyes.npy")
    found = torch_files.read(path)
    assert found["full_lmk_faces_idx"].shape == (1, 70)
    assert found["dynamic_lmk_bary_coords"].shape == (79, 17, 3)
    for name in ("static", "dynamic", "full"):
        weights = found[f"{name}_lmk_bary_coords"]
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
        assert 0 <= found[f"{name}_lmk_faces_idx"].min()
        assert found[f"{name}_lmk_faces_idx"].max() < 9976
