"""What fills in for a dataset: axes told by the face, folders, networks, refusals."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from geodiff_jax.data import estimates, framing
from geodiff_jax.io import images
from tests.data import onnx_files, portraits

PARAMS = portraits.params(yaw=0.3)
CAMERA = portraits.camera(0.0, width=64, height=64, away=0.7)


@pytest.fixture(scope="module")
def drawn():
    found = framing.draw_head(portraits.head(), PARAMS, CAMERA)
    return [np.asarray(x) for x in found]


@pytest.mark.parametrize("signs", itertools.product([1, -1], repeat=3))
def test_a_face_tells_the_axes_of_any_estimator(drawn, signs):
    normals, covered, face = drawn
    noise = np.random.default_rng(0).normal(size=normals.shape)
    estimated = 3.0 * normals * signs + 0.3 * noise * covered[..., None]
    for channels in (slice(None), slice(None, None, -1)):
        found = estimates.in_house_axes(estimated[..., channels], normals, face)
        cosine = np.sum(found * normals, axis=-1)[face]
        assert np.median(cosine) > 0.97


def test_what_is_no_face_is_refused(drawn):
    normals, _, face = drawn
    nonsense = np.random.default_rng(0).normal(size=normals.shape)
    with pytest.raises(ValueError, match="disagree"):
        estimates.in_house_axes(nonsense, normals, face)
    with pytest.raises(ValueError, match="no face"):
        estimates.in_house_axes(normals, normals, face & False)


def test_folders_are_read_by_their_labels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 3)).astype(np.uint8)
    folder = tmp_path / "ann" / "talk" / "left"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "000012.png")
    found = estimates.read_picture(str(tmp_path), "ann", "talk", "left", 12)
    np.testing.assert_allclose(found, pixels / 255.0, atol=1e-6)
    with pytest.raises(FileNotFoundError):
        estimates.read_picture(str(tmp_path), "ann", "talk", "left", 13)
    assert estimates.read_picture("fit", "ann", "talk", "left", 12) is None


@pytest.mark.parametrize("side", [None, 32])
def test_networks_see_the_picture_at_their_own_size(tmp_path, side, drawn):
    pytest.importorskip("onnxruntime")
    onnx_files.write_identity(tmp_path / "same.onnx", side=side)
    source = str(tmp_path / "same.onnx")
    estimates.check_source(source, what="normals")
    normals, _, face = drawn
    picture = 0.5 + 0.5 * normals
    found = estimates.estimate_normals(source, picture.astype(np.float32))
    assert found.shape == (64, 64, 3)
    cosine = np.sum(estimates.in_house_axes(found, normals, face) * normals, -1)[face]
    assert np.median(cosine) > (0.999 if side is None else 0.98)
    with pytest.raises(ValueError, match="one channel"):
        square = framing.Square(picture, picture[..., 0], None, None, None, CAMERA)
        estimates.estimate_matte(source, square, np.zeros(4), picture[..., 0])


def test_networks_need_the_runtime_and_say_so(tmp_path, monkeypatch):
    onnx_files.write_identity(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="pip install"):
        estimates.check_source(str(tmp_path / "a.onnx"), what="normals")


def test_torn_networks_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    with pytest.raises(ValueError, match="ONNX network"):
        estimates.check_source(str(tmp_path / "torn.onnx"), what="normals")


@pytest.mark.parametrize("what", ["normals", "matte"])
def test_networks_of_grey_pictures_are_refused(tmp_path, what):
    pytest.importorskip("onnxruntime")
    onnx_files.write_identity(tmp_path / "grey.onnx", channels=1)
    with pytest.raises(ValueError, match="RGB pictures"):
        estimates.check_source(str(tmp_path / "grey.onnx"), what=what)


def test_the_fits_own_matte_ends_with_the_frame(drawn):
    _, covered, _ = drawn
    inside = np.ones((64, 64), np.float32)
    inside[:, :32] = 0.0
    picture = np.ones((64, 64, 3), np.float32)
    square = framing.Square(picture, inside, None, None, None, CAMERA)
    found = estimates.estimate_matte("fit", square, np.zeros(4), covered)
    np.testing.assert_array_equal(found[:, 32:], covered[:, 32:])
    assert not found[:, :32].any()


def test_exr_files_keep_what_pngs_cannot(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 9, 3)).astype(np.float32)
    portraits.write_exr(tmp_path / "a.exr", values)
    np.testing.assert_array_equal(images.read_exr(tmp_path / "a.exr"), values)
    (tmp_path / "b.exr").write_bytes(b"torn")
    with pytest.raises(ValueError, match="b.exr"):
        images.read_exr(tmp_path / "b.exr")
    with pytest.raises(FileNotFoundError):
        images.read_exr(tmp_path / "c.exr")
