"""Pixel3DMM's checkpoints become tracks; archives of torch are written by hand here."""

import contextlib
import io
import shutil
import struct
import zipfile

import numpy as np
import pytest

from geodiff_jax.head import track as head_track
from geodiff_jax.tracking import pixel3dmm
from tests.io import damage
from tests.tracking import flame_like

FRAMES = 4


@pytest.fixture(scope="module")
def model():
    return flame_like.load("flame2020")


def pickled(value, storages):
    """Opcodes of pickle, protocol 2; arrays as torch notes its tensors."""

    def each(*values):
        return b"".join(pickled(x, storages) for x in values)

    match value:
        case dict():
            return b"}(" + each(*(x for pair in value.items() for x in pair)) + b"u"
        case str():
            return b"X" + struct.pack("<I", len(value)) + value.encode()
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case tuple():
            return b"(" + each(*value) + b"t"
        case np.ndarray():
            array = np.ascontiguousarray(value)
            key = str(len(storages))
            storages[key] = array
            kind = {"f": "Float", "d": "Double", "l": "Long"}[array.dtype.char]
            storage = b"(" + each("storage") + f"ctorch\n{kind}Storage\n".encode()
            storage += each(key, "cpu", array.size) + b"tQ"
            strides = tuple(x // array.itemsize for x in array.strides)
            arguments = b"(" + storage + each(0, array.shape, strides, False, {}) + b"t"
            return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    raise TypeError(type(value))


def save(path, value):
    """As torch.save."""
    storages = {}
    program = b"\x80\x02" + pickled(value, storages) + b"."
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())


def recorded(frame):
    """(contents of a .frame, the five joints' rotations) of a frame."""
    random = np.random.default_rng(frame)
    turns = [flame_like.rotation_matrix(x) for x in 0.5 * random.normal(size=(5, 3))]
    six = [np.float32(x[:2].reshape(1, 6)) for x in turns]
    exp = np.pad(random.normal(size=(1, 3)), ((0, 0), (0, 97)))
    shape = np.pad(np.random.default_rng(9).normal(size=(1, 4)), ((0, 0), (0, 296)))
    content = {
        "flame": {
            "exp": np.float32(exp),
            "shape": np.float32(shape),
            "eyes": np.concatenate(six[3:], axis=1),
            "eyelids": np.float32(random.random((1, 2))),
            "jaw": six[2],
            "neck": six[1],
            "R": six[0],
            "R_rotation_matrix": np.float32(turns[0])[None],
            "t": np.float32(0.05 * random.normal(size=(1, 3))),
        },
        "camera": {
            "R_base_0": np.float32(flame_like.rotation_matrix([0.1, 0.2, 0.0]))[None],
            "t_base_0": np.float32([[0.01, 0.02, -1.0]]),
            "fl": np.float32([[3.9]]),
            "pp": np.float32([[0.02, -0.01]]),
        },
        "joint_transforms": np.zeros((1, 5, 4, 4), np.float32),
        "img_size": 256,
        "frame_id": frame,
    }
    return content, turns


def write(folder, *, frames=FRAMES):
    for frame in range(frames):
        save(folder / f"checkpoint/{frame + 7:05d}.frame", recorded(frame)[0])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("result"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def vertices_by_hand(model, frame):
    """R v + t for what FLAME does with a root at rest; lids added last, unturned."""
    content, turns = recorded(frame)
    flame = content["flame"]
    posed = flame_like.posed(
        model,
        identity=flame["shape"][0, :4],
        expression=flame["exp"][0, :3],
        turns=[np.eye(3), *turns[1:]],
        translation=0.0,
    )
    lids = np.tensordot(flame["eyelids"][0], np.asarray(model.eyelid_basis), 1)
    return (posed + lids) @ turns[0].T + flame["t"]


def test_vertices_and_pixels_are_pixel3dmms(folder, model):
    found = pixel3dmm.read(folder, model)
    points = flame_like.vertices(model, found.params)
    pixels, depth = flame_like.project(found.cameras, points)
    pixels, depth = pixels.reshape(FRAMES, -1, 2), depth.reshape(FRAMES, -1)
    for frame in range(FRAMES):
        wanted = vertices_by_hand(model, frame)
        np.testing.assert_allclose(points[frame], wanted, atol=3e-6)
        camera = recorded(frame)[0]["camera"]
        local = wanted @ camera["R_base_0"][0].T.astype(np.float64) + camera["t_base_0"]
        assert (local[:, 2] < 0).all(), "OpenGL looks along -z"
        on_plane = 3.9 * 256 * local[:, :2] / -local[:, 2:] * [1, -1]
        centre = 128.5 + np.array([0.02, -0.01]) * 128.5
        np.testing.assert_allclose(pixels[frame], on_plane + centre, atol=5e-3)
        np.testing.assert_allclose(depth[frame], -local[:, 2], atol=3e-6)


def test_a_track_of_one_square_view(folder, model):
    found = pixel3dmm.read(folder, model)
    head_track.check(found, model)
    assert found.frame_ids == (7, 8, 9, 10) and found.head_version == "flame2020"
    assert (found.cameras.width, found.cameras.height) == (256, 256)
    assert found.cameras.intrinsics.shape == (1, 4)
    lids = [recorded(frame)[0]["flame"]["eyelids"][0] for frame in range(FRAMES)]
    np.testing.assert_array_equal(found.params.eyelids, lids)


def test_the_version_is_the_recipes(folder, model):
    with pytest.raises(ValueError, match=r"flame2023 .* got flame2020"):
        pixel3dmm.read(folder, model, head_version="flame2023")
    other = model.replace(version="flame2023")
    with pytest.raises(ValueError, match=r"flame2020 .* got flame2023"):
        pixel3dmm.read(folder, other)
    found = pixel3dmm.read(folder, other, head_version="flame2023")
    assert found.head_version == "flame2023"


def edit(folder, **changes):
    """Changes the last frame: section__name, or a top entry; None removes it."""
    content = recorded(FRAMES - 1)[0]
    for place, change in changes.items():
        *section, name = place.split("__")
        within = content[section[0]] if section else content
        value = within.pop(name)
        if change is not None:
            within[name] = change(value)
    save(folder / "checkpoint/00010.frame", content)


def swapped(six):
    """Two columns for two rows."""
    rows = six.reshape(2, 3).astype(np.float64)
    matrix = np.stack([*rows, np.cross(*rows)])
    return np.float32(matrix[:, :2].T.reshape(1, 6))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("flame", None, r"Expected flame in .*00010\.frame"),
        ("camera", lambda _: 3, "Expected camera in"),
        ("flame__eyelids", None, r"Expected eyelids in .*00010\.frame"),
        ("flame__eyelids", lambda _: "open", "Expected eyelids in"),
        ("flame__eyes", lambda x: x[:, :6], "eyes of 12 numbers a row"),
        ("flame__exp", lambda x: x[:, :50], r"exp of 100 numbers .*00010\.frame"),
        ("flame__shape", lambda x: x[:, :100], r"shape of 300 numbers .*00010\.frame"),
        ("flame__shape", lambda x: x + 1, "first 4 numbers of shape"),
        ("flame__exp", lambda x: x + 1, "first 3 numbers of exp"),
        ("flame__t", lambda x: x * np.nan, "finite t in"),
        ("flame__t", lambda x: np.tile(x, (2, 1)), "one t in"),
        ("flame__R", swapped, r"first two rows of R_rotation_matrix in .*00010\.frame"),
        ("flame__R_rotation_matrix", lambda x: 2 * x, "first two rows"),
        ("flame__R_rotation_matrix", lambda x: x[0], "R_rotation_matrix of 9"),
        ("flame__jaw", lambda x: 0 * x, r"rows of a rotation for jaw in .*00010"),
        ("flame__eyes", lambda x: x * 0 + 1, "rows of a rotation for left_eye"),
        ("camera__fl", lambda x: x + 1, r"one camera for all frames .*00010\.frame"),
        ("camera__R_base_0", lambda x: x[:, ::-1], "one camera for all frames"),
        ("camera__pp", None, "Expected pp in"),
        ("img_size", lambda _: 512, "one camera for all frames"),
        ("img_size", lambda _: (256, 128), "side of a square"),
        ("img_size", lambda _: "large", "side of a square"),
        ("img_size", None, "side of a square"),
    ],
)
def test_damaged_frames_are_said_to_be(copy, model, place, change, message):
    edit(copy, **{place: change})
    with pytest.raises(ValueError, match=message):
        pixel3dmm.read(copy, model)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("camera__R_base_0", lambda x: 2 * x, "rigid R_base_0"),
        ("camera__R_base_0", lambda x: x * [1, 1, -1], "rigid R_base_0"),
        ("camera__fl", lambda x: -x, "positive lenses"),
        ("img_size", lambda _: 0, "positive lenses and sizes"),
        ("img_size", lambda _: np.array([256.5]), "whole pixels"),
    ],
)
def test_what_is_no_camera_is_said_to_be(copy, model, place, change, message):
    for number in (7, 8, 9):
        (copy / f"checkpoint/{number:05d}.frame").unlink()
    edit(copy, **{place: change})
    with pytest.raises(ValueError, match=message):
        pixel3dmm.read(copy, model)


def test_rotations_need_not_be_normalised_and_sizes_may_be_pairs(copy, folder, model):
    edit(copy, flame__jaw=lambda x: 3 * x, img_size=lambda _: (256, 256))
    found, wanted = pixel3dmm.read(copy, model), pixel3dmm.read(folder, model)
    np.testing.assert_allclose(found.params.jaw, wanted.params.jaw, atol=1e-6)
    assert found.cameras.width == 256


def test_files_that_are_missing_torn_or_misnamed(copy, model):
    path = copy / "checkpoint/00010.frame"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"00010\.frame cannot be read"):
        pixel3dmm.read(copy, model)
    for damaged in damage.copies(whole, count=12):
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            pixel3dmm.read(copy, model)
    path.rename(path.with_name("last.frame"))
    with pytest.raises(ValueError, match=r"a number as the name of .*last\.frame"):
        pixel3dmm.read(copy, model)
    for name in ("checkpoint", "nothing"):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint/\*\.frame"):
            pixel3dmm.read(copy / name, model)


def test_many_frames_in_the_order_of_their_numbers(tmp_path, model):
    write(tmp_path, frames=1)
    first = tmp_path / "checkpoint/00007.frame"
    for frame in range(8, 60):
        shutil.copy(first, first.with_name(f"{frame:05d}.frame"))
    save(first.with_name("100000.frame"), recorded(1)[0])
    found = pixel3dmm.read(tmp_path, model)
    assert found.frame_ids == (*range(7, 60), 100_000)
    lids = recorded(1)[0]["flame"]["eyelids"][0]
    np.testing.assert_array_equal(found.params.eyelids[-1], lids)
