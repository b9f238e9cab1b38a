"""Squares round heads: what the frame shows and what the fit draws stay together."""

import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.data import framing, recordings, schema
from geodiff_jax.head import landmarks
from geodiff_jax.head import model as head_model
from geodiff_jax.models import alignment
from tests.data import portraits

SIZE = 64
CAMERA = portraits.camera(0.3)
PARAMS = portraits.params()
SIZES = schema.Sizes(SIZE, 16, surface=64)


@pytest.fixture(scope="module")
def placed():
    return [np.asarray(x) for x in framing.place(portraits.head(), PARAMS, CAMERA)]


def test_a_landmark_lands_where_the_square_shows_it(placed):
    """The frame's colours are its coordinates: they tell which pixel came where."""
    box, share, pixels = placed
    assert share == 1.0
    x = (np.arange(CAMERA.width) + 0.5) / CAMERA.width
    y = (np.arange(CAMERA.height) + 0.5) / CAMERA.height
    rows, columns = np.meshgrid(y, x, indexing="ij")
    image = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.float32)
    square = framing.cut(framing.Frame(image), box, CAMERA, size=SIZE)
    vertices = head_model.vertices(portraits.head(), PARAMS)
    marks, _ = square.camera.project(landmarks.positions(portraits.head(), vertices))
    inner = np.asarray(marks)[17:]
    cells = np.floor(inner).astype(int)
    shown = square.image[cells[:, 1], cells[:, 0], :2]
    found = shown * [CAMERA.width, CAMERA.height]
    # Half a pixel of the square each way, and the resampling's half.
    step = (box[2] - box[0]) / SIZE
    np.testing.assert_allclose(found, pixels[17:], atol=step)


def test_the_outline_has_nothing_of_the_wall(placed):
    box = placed[0]
    image, matte, _ = portraits.shot(PARAMS, CAMERA)
    person = np.full_like(image, 0.25)
    frame = person * matte[..., None] + portraits.GREEN * (1 - matte[..., None])
    hard = (matte > 0).astype(np.float32)  # Where the wall shines through, too.
    whole = np.where(hard[..., None] > 0, person, frame)
    square = framing.cut(framing.Frame(whole, hard), box, CAMERA, size=SIZE)
    expected = 0.25 * square.matte + 1.0 - square.matte
    for channel in np.moveaxis(square.over_white, -1, 0):
        np.testing.assert_allclose(channel, expected, atol=1e-5)


def test_beyond_the_frame_it_is_white_and_nobody():
    camera = portraits.camera(0.0, width=60, height=120)
    image, matte, normals = portraits.shot(PARAMS, camera)
    box = np.array([-30, 0, 90, 120])
    frame = framing.Frame(image, np.ones_like(matte), normals)
    square = framing.cut(frame, box, camera, size=SIZE)
    beyond = square.inside == 0.0
    # A quarter of the square's width lies on either side.
    assert beyond[:, :16].all() and beyond[:, -16:].all() and beyond.mean() == 0.5
    assert (square.image[beyond] == 1.0).all() and (square.matte[beyond] == 0.0).all()
    assert (square.over_white[beyond] == 1.0).all()
    assert (square.normal[beyond] == 0.0).all()


def test_pictures_of_another_size_than_their_camera_are_refused(placed):
    frame = framing.Frame(np.zeros((60, 48, 3), np.float32))
    with pytest.raises(ValueError, match="96 x 120"):
        framing.cut(frame, placed[0], CAMERA, size=SIZE)


def test_drawn_normals_point_right_up_and_to_the_viewer():
    camera = portraits.camera(0.0, width=64, height=64, away=0.7)
    normals, covered, face = (
        np.asarray(x) for x in framing.draw_head(portraits.head(), PARAMS, camera)
    )
    seen = covered > 0.99
    np.testing.assert_allclose(np.linalg.norm(normals[seen], axis=-1), 1.0, atol=1e-5)
    rows, columns = np.nonzero(seen)
    x, y, z = normals[seen].T
    assert np.corrcoef(x, columns)[0, 1] > 0.7
    assert np.corrcoef(y, -rows)[0, 1] > 0.4
    assert (z > -0.05).all()
    assert face.any() and (covered[face] > 0.5).all()
    assert normals[face].mean(axis=0)[2] > 0.5


def test_normals_carried_on_fill_the_mask_and_no_more():
    camera = portraits.camera(0.0, width=64, height=64)
    normals, covered, _ = (
        np.asarray(x) for x in framing.draw_head(portraits.head(), PARAMS, camera)
    )
    mask = np.zeros((64, 64))
    mask[5:60, 8:56] = 1.0
    filled = framing.extend(normals, covered, mask)
    length = np.linalg.norm(filled, axis=-1)
    np.testing.assert_allclose(length, mask, atol=1e-5)
    kept = (covered >= schema.COVERED) & (mask > 0)
    np.testing.assert_allclose(filled[kept], normals[kept], atol=1e-5)
    assert not framing.extend(normals, 0 * covered, mask).any()


def test_maps_and_pictures_share_the_camera(placed):
    box = placed[0]
    image, matte, normals = portraits.shot(PARAMS, CAMERA)
    frame = framing.Frame(image, matte, normals)
    square = framing.cut(frame, box, CAMERA, size=SIZE)
    maps, face_box = framing.maps(portraits.head(), PARAMS, square.camera, SIZES)
    drawn = np.linalg.norm(np.asarray(maps["head_pose"]), axis=-1)
    covered = square.matte.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    # The lowest neck is in the map and not in this matte.
    inner, covered = drawn[:10] > 0.9, covered[:10]
    assert np.all(covered[inner] > 0.85) and inner.sum() > 20
    seen = maps["surface"][maps["surface"].any(axis=-1)]
    assert len(seen) > 0.2 * SIZES.surface**2
    pixels = np.asarray(square.camera.project(jnp.asarray(seen))[0])
    # On the head but for the neck's end, which is cut off in no map.
    assert np.mean((pixels > 0.0) & (pixels < SIZE)) > 0.95
    left, top, right, bottom = np.asarray(face_box).astype(int)
    assert square.matte[top:bottom, left:right].mean() > 0.7
    # The head fills the box but for the margin.
    rows = np.flatnonzero(square.matte.max(axis=1) > 0.5)
    assert jnp.ptp(rows) / SIZE > 0.75


def test_tokens_see_the_texels_that_project_onto_them(placed):
    """In the precision in which maps are stored, positions weighted as in the loss."""
    frame = framing.Frame(np.ones((CAMERA.height, CAMERA.width, 3), np.float32))
    camera = framing.cut(frame, placed[0], CAMERA, size=SIZE).camera
    drawn, _ = framing.maps(portraits.head(), PARAMS, camera, SIZES)
    stored = {name: np.float16(x).astype(np.float32) for name, x in drawn.items()}
    side = len(stored["uv"])
    seen = stored["uv"][..., 2] > 0.5
    coordinates = jnp.asarray(stored["uv"][None, ..., :2])
    (weights,) = alignment.correspondences(
        coordinates, jnp.asarray(seen)[None], size=SIZES.surface
    )
    positions = stored["surface"].reshape(-1, 3)
    onto = np.asarray(weights) @ (positions != 0.0).any(axis=-1)
    points = np.asarray(weights) @ positions
    # Where a token's four texels are all on the chart.
    whole = onto > 0.999
    assert whole.sum() > 0.9 * seen.sum() > 0.3 * side**2
    pixels, _ = camera.project(jnp.asarray(points[whole]))
    centres = np.stack(np.meshgrid(*2 * [np.arange(side) + 0.5]), axis=-1)
    away = np.asarray(pixels) * side / SIZE - centres.reshape(-1, 2)[whole]
    assert np.abs(away).max() < 1.0 and np.abs(away).mean() < 0.1


def test_stored_coordinates_are_right_to_a_hundredth_of_a_texel():
    camera = portraits.camera(0.0, width=SIZE, height=SIZE)
    drawn, _ = framing.maps(portraits.head(), PARAMS, camera, SIZES)
    off = np.abs(np.float16(drawn["uv"]) - drawn["uv"])
    assert off.max() <= 1 / 4096 and set(np.unique(drawn["uv"][..., 2])) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["surface", "uv"])
def test_heads_without_a_chart_have_no_map_of_it(name):
    bare = portraits.head().replace(
        uv=jnp.zeros((0, 2)), uv_faces=jnp.zeros((0, 3), int), version="bare"
    )
    sizes = schema.Sizes(SIZE, 16, (name,), surface=16)
    with pytest.raises(ValueError, match="unwrap its mesh"):
        framing.maps(bare, PARAMS, CAMERA, sizes)
    assert recordings.drawn_of(bare, sizes).maps == ()
