import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from geodiff_jax.io import images

HALF_STEP = 0.5 / 255 + 1e-6  # Eight bits cannot say it more precisely.


def gradient(height=12, width=20):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x / width, y / height, 0.5 + 0 * x], axis=-1)


def as_bytes(values):
    return np.round(values * 255).astype(np.uint8)


def saved(tmp_path, picture, name="photo.png", **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def test_pngs_carry_what_is_said_of_them(tmp_path):
    said = {"notice": "synthetic media", "consent": "self"}
    images.write_png(tmp_path / "photo.png", gradient(), metadata=said)
    with Image.open(tmp_path / "photo.png") as picture:
        assert picture.text == said


def test_png_round_trip_keeps_every_value(tmp_path):
    images.write_png(tmp_path / "photo.png", gradient())
    photo = images.read_image(tmp_path / "photo.png")
    assert photo.rgb.dtype == np.float32 and photo.alpha is None
    assert (photo.height, photo.width) == (12, 20)
    np.testing.assert_allclose(photo.rgb, gradient(), atol=HALF_STEP)
    content = (tmp_path / "photo.png").read_bytes()
    assert photo.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = "photo.jpg" if mode in ("CMYK", "YCbCr") else "photo.png"
    picture = Image.fromarray(as_bytes(gradient())).convert(mode)
    options = {"quality": 98, "subsampling": 0} if name.endswith("jpg") else {}
    photo = images.read_image(saved(tmp_path, picture, name, **options))
    expected = np.asarray(picture.convert("RGB")) / 255.0
    assert photo.rgb.shape == (12, 20, 3) and photo.alpha is None
    tolerance = 0.05 if name.endswith("jpg") else HALF_STEP  # JPEG loses a little.
    np.testing.assert_allclose(photo.rgb, expected, atol=tolerance)


def test_sixteen_bits_keep_their_range(tmp_path):
    grey = gradient()[..., 0]
    deep = Image.fromarray(np.round(grey * 65535).astype(np.uint16))
    for name in ("photo.png", "photo.tif"):
        photo = images.read_image(saved(tmp_path, deep, name))
        np.testing.assert_allclose(photo.rgb[..., 1], grey, atol=2 * HALF_STEP)


def test_sixteen_bit_colour_is_read(tmp_path):
    values = np.round(gradient() * 65535).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 20, 12, 16, 2, 0, 0, 0)
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    photo = images.read_image(tmp_path / "deep.png")
    np.testing.assert_allclose(photo.rgb, gradient(), atol=2 * HALF_STEP)


def test_float_tiff_is_read(tmp_path):
    grey = gradient()[..., 0].astype(np.float32)
    photo = images.read_image(saved(tmp_path, Image.fromarray(grey), "photo.tif"))
    np.testing.assert_allclose(photo.rgb[..., 0], grey, atol=2 * HALF_STEP)


def test_only_alpha_that_varies_counts(tmp_path):
    rgba = np.concatenate([gradient(), np.ones((12, 20, 1))], axis=-1)
    assert images.photo_from_array(rgba).alpha is None
    path = saved(tmp_path, Image.fromarray(as_bytes(rgba)))
    assert images.read_image(path).alpha is None
    rgba[3:5, :, 3] = 0.2
    path = saved(tmp_path, Image.fromarray(as_bytes(rgba)))
    alpha = images.read_image(path).alpha
    np.testing.assert_allclose(alpha, rgba[..., 3], atol=HALF_STEP)


def test_palette_with_transparency_gives_alpha(tmp_path):
    picture = Image.fromarray(as_bytes(gradient())).quantize(8)
    path = saved(tmp_path, picture, "photo.png", transparency=0)
    alpha = images.read_image(path).alpha
    assert set(np.unique(alpha)) == {0.0, 1.0}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """What a viewer shows is what we read, for all eight orientations."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose values.
    upright = Image.fromarray(as_bytes(gradient()))
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo = images.read_image(saved(tmp_path, stored, exif=exif))
    np.testing.assert_allclose(photo.rgb, gradient(), atol=HALF_STEP)


def exif_of(**tags):
    exif = Image.Exif()
    ifd = exif.get_ifd(ExifTags.IFD.Exif)
    for name, value in tags.items():
        ifd[getattr(ExifTags.Base, name)] = value
    return exif


@pytest.mark.parametrize("orientation", [1, 6])
def test_focal_length_of_film_equivalent(tmp_path, orientation):
    """50 mm on film: its diagonal of 43.27 mm is the image's diagonal."""
    exif = exif_of(FocalLengthIn35mmFilm=50)
    exif[ExifTags.Base.Orientation] = orientation
    picture = Image.new("RGB", (360, 240))
    photo = images.read_image(saved(tmp_path, picture, "photo.jpg", exif=exif))
    assert photo.focal_pixels == pytest.approx(500.0, rel=1e-6)


def test_focal_length_of_sensor_resolution(tmp_path):
    """10 mm at 100 pixels per mm are 1000 pixels, 500 once the photo is halved."""
    exif = exif_of(
        FocalLength=10.0,
        FocalPlaneXResolution=2540.0,
        FocalPlaneYResolution=2540.0,
        FocalPlaneResolutionUnit=2,
        ExifImageWidth=800,
        ExifImageHeight=600,
    )
    for width, expected in ((800, 1000.0), (400, 500.0)):
        picture = Image.new("RGB", (width, width * 3 // 4))
        photo = images.read_image(saved(tmp_path, picture, "photo.jpg", exif=exif))
        assert photo.focal_pixels == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"FocalLengthIn35mmFilm": 0},
        {"FocalLengthIn35mmFilm": 9999},
        {"FocalLengthIn35mmFilm": 50, "ExifImageWidth": 90, "ExifImageHeight": 10},
        {"FocalLength": 10.0, "FocalPlaneXResolution": 0.0},
    ],
    ids=["none", "zero", "absurd", "cropped", "no resolution"],
)
def test_focal_length_is_unknown_rather_than_wrong(tmp_path, tags):
    picture = Image.new("RGB", (360, 240))
    path = saved(tmp_path, picture, "photo.jpg", exif=exif_of(**tags))
    assert images.read_image(path).focal_pixels is None


def bad_files(tmp_path):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, format="PNG")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + huge
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    (tmp_path / "folder.png").mkdir()


@pytest.mark.parametrize("name", ["text", "empty", "cut", "bomb", "folder"])
def test_what_is_no_image_is_refused_in_one_sentence(tmp_path, name):
    bad_files(tmp_path)
    with pytest.raises(ValueError, match=f"{name}.png") as caught:
        images.read_image(tmp_path / f"{name}.png")
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.png"):
        images.read_image(tmp_path / "absent.png")


def test_halving_takes_the_mean_of_four():
    image = np.random.default_rng(0).random((8, 6, 3)).astype(np.float32)
    halved = images.resize(image, width=3, height=4)
    expected = image.reshape(4, 2, 3, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(halved, expected, atol=1e-6)
    assert images.resize(image[..., 0], width=12, height=16).shape == (16, 12)


def test_shrinking_carries_focal_length():
    photo = images.photo_from_array(gradient(40, 80), focal_pixels=160.0)
    small = images.shrink(photo, max_side=20)
    assert (small.width, small.height, small.focal_pixels) == (20, 10, 40.0)
    assert images.shrink(photo, max_side=500) is photo


def test_arrays_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="channels last"):
        images.photo_from_array(np.zeros((3, 5, 5)))
