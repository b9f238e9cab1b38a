import json

import numpy as np
import pytest
import skimage.data

from geodiff_jax.head import landmarks, procedural
from geodiff_jax.io import images
from geodiff_jax.tracking import detect, mediapipe_models

needs_mediapipe = pytest.mark.skipif(
    not mediapipe_models.installed(), reason="mediapipe is not installed"
)


@pytest.fixture(scope="module")
def astronaut():
    return images.photo_from_array(skimage.data.astronaut())


@pytest.fixture(scope="module")
def found(astronaut):
    return detect.detect(astronaut)


def outer_eye_distance(detection):
    right, left = detection.ibug[list(landmarks.OUTER_EYE_CORNERS)]
    return np.linalg.norm(left - right)


def differences(detection, points):
    """Over iBUG 17-67, in outer-eye distances."""
    gap = np.linalg.norm(detection.ibug[17:] - points[17:], axis=1)
    return gap / outer_eye_distance(detection)


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and message.count(". ") == 0
    return message


def without_mediapipe(monkeypatch):
    monkeypatch.setattr(mediapipe_models, "installed", lambda: False)


@needs_mediapipe
class TestAstronaut:
    def test_face_is_where_it_is(self, found):
        np.testing.assert_allclose(found.box, [179, 71, 271, 177], atol=4)
        assert not found.degraded and found.warnings == ()
        assert (found.landmarks_source, found.matte_source) == (
            "mediapipe",
            "mediapipe",
        )

    def test_left_is_the_subjects_left(self, found):
        assert found.ibug[45, 0] > found.ibug[36, 0]
        assert found.irises[0, 0] > found.irises[1, 0]
        for iris, corners in zip(found.irises, ((42, 45), (39, 36)), strict=True):
            inner, outer = found.ibug[list(corners)]
            share = (iris - inner) @ (outer - inner) / np.sum((outer - inner) ** 2)
            assert 0.2 < share < 0.8

    def test_matte_keeps_the_person_and_drops_the_wall(self, found):
        assert found.matte[60:150, 205:250].min() > 0.95
        assert found.matte[:60, 320:370].max() < 0.05

    def test_mirrored_photo_gives_mirrored_landmarks(self, astronaut, found):
        flipped = detect.detect(images.photo_from_array(astronaut.rgb[:, ::-1]))
        points = flipped.ibug[landmarks.IBUG_MIRROR] * [-1, 1] + [astronaut.width, 0]
        # Crops are placed in whole pixels, else the two runs would be the same.
        assert differences(found, points).mean() < 0.004

    def test_landmarks_move_with_the_photo(self, astronaut, found):
        moved = detect.detect(images.photo_from_array(astronaut.rgb[13:, 21:]))
        assert differences(found, moved.ibug + [21, 13]).mean() < 0.004

    def test_landmarks_scale_with_the_photo(self, astronaut, found):
        large = images.resize(astronaut.rgb, width=900, height=900)
        detection = detect.detect(images.photo_from_array(large))
        # The detector repeats within 0.7 %; averaging over crops halves that.
        assert differences(found, detection.ibug * 512 / 900).mean() < 0.005

    def test_small_face_in_a_large_photo_is_found(self, astronaut, found):
        canvas = np.full((1500, 2500, 3), 0.5, np.float32)
        canvas[700:1212, 1800:2312] = astronaut.rgb
        detection = detect.detect(images.photo_from_array(canvas))
        assert differences(found, detection.ibug - [1800, 700]).mean() < 0.005

    def test_the_largest_of_several_faces_is_taken_and_said(self, astronaut, found):
        small = images.resize(astronaut.rgb, width=380, height=380)
        canvas = np.ones((512, 900, 3), np.float32)
        canvas[:380, :380], canvas[:, 388:] = small, astronaut.rgb
        detection = detect.detect(images.photo_from_array(canvas))
        assert differences(found, detection.ibug - [388, 0]).mean() < 0.01
        assert "2 faces" in detection.warnings[0]

    def test_too_small_a_face_is_refused(self, astronaut):
        small = images.shrink(astronaut, max_side=300)
        with pytest.raises(ValueError, match="64 pixels") as error:
            detect.detect(small)
        one_sentence(error)

    def test_alpha_wins_over_the_network(self, astronaut):
        alpha = np.zeros((512, 512, 1), np.float32)
        alpha[20:300, 120:330] = 1.0
        photo = images.photo_from_array(np.concatenate([astronaut.rgb, alpha], -1))
        detection = detect.detect(photo)
        assert detection.matte_source == "alpha"
        np.testing.assert_array_equal(detection.matte, alpha[..., 0])

    def test_nothing_is_printed(self, astronaut, capfd):
        detect.detect(images.shrink(astronaut, max_side=400))
        assert capfd.readouterr() == ("", "")


@needs_mediapipe
@pytest.mark.parametrize("kind", ["black", "noise"])
def test_photo_without_a_face_is_refused(kind):
    image = np.zeros((200, 300, 3))
    if kind == "noise":
        image = np.random.default_rng(0).random(image.shape)
    with pytest.raises(ValueError, match="no face") as error:
        detect.detect(images.photo_from_array(image))
    one_sentence(error)


@needs_mediapipe
def test_missing_companion_is_named_with_its_remedy(monkeypatch, astronaut):
    monkeypatch.setitem(mediapipe_models._COMPANIONS, "no_such_companion", "pip it")

    def fail(name):
        raise ImportError(f"No module named {name}")

    monkeypatch.setattr(mediapipe_models.importlib, "import_module", fail)
    with pytest.raises(OSError, match="no_such_companion.*pip it") as error:
        detect.detect(astronaut)
    one_sentence(error)


def test_without_mediapipe_an_average_face_stands_in(monkeypatch, astronaut):
    without_mediapipe(monkeypatch)
    detection = detect.detect(astronaut)
    assert detection.degraded and detection.irises is None
    assert (detection.landmarks_source, detection.matte_source) == (
        "average face",
        "ellipse",
    )
    assert len(detection.warnings) == 2 and "degraded" in detection.warnings[0]
    eyes = detection.ibug[36:48].mean(axis=0)
    np.testing.assert_allclose(eyes, [225, 102], atol=12)


def test_without_mediapipe_no_face_is_refused_too(monkeypatch):
    without_mediapipe(monkeypatch)
    with pytest.raises(ValueError, match="no face") as error:
        detect.detect(images.photo_from_array(np.zeros((200, 200, 3))))
    one_sentence(error)


def landmarks_file(tmp_path, content):
    path = tmp_path / "landmarks.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_landmarks_file_wins_over_all(monkeypatch, tmp_path, astronaut):
    without_mediapipe(monkeypatch)
    points = detect.AVERAGE_FACE * 120 + [250, 200]
    irises = [[280.0, 200.0], [220.0, 200.0]]
    path = landmarks_file(tmp_path, {"ibug68": points.tolist(), "irises": irises})
    detection = detect.detect(astronaut, landmarks_file=path)
    np.testing.assert_array_equal(detection.ibug, points)
    np.testing.assert_array_equal(detection.irises, irises)
    assert detection.landmarks_source == "file"


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        [1, 2, 3],
        {"points": []},
        {"ibug68": [[1, 2]] * 67},
        {"ibug68": [[1, None]] * 68},
        {"ibug68": [["a", "b"]] * 68},
        {"ibug68": [[5000, 5000]] * 68},
        {"ibug68": [[float("nan"), 1]] * 68},
        {"ibug68": [[100, 100]] * 68},
        {"ibug68": (detect.AVERAGE_FACE * 120 + 250).tolist(), "irises": [[1, 2]]},
    ],
    ids=[
        *("text", "list", "other", "few", "null", "words"),
        *("outside", "nan", "one point", "irises"),
    ],
)
def test_wrong_landmarks_files_are_refused(monkeypatch, tmp_path, astronaut, content):
    without_mediapipe(monkeypatch)
    with pytest.raises(ValueError) as error:
        detect.detect(astronaut, landmarks_file=landmarks_file(tmp_path, content))
    one_sentence(error)


def test_missing_landmarks_file_is_named(tmp_path, astronaut):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        detect.detect(astronaut, landmarks_file=tmp_path / "absent.json")


def test_mirror_of_landmarks_is_an_involution_that_mirrors_the_average_face():
    mirror = landmarks.IBUG_MIRROR
    np.testing.assert_array_equal(mirror[mirror], np.arange(68))
    np.testing.assert_array_equal(
        detect.AVERAGE_FACE[mirror] * [-1, 1], detect.AVERAGE_FACE
    )


def test_the_average_face_is_the_built_in_heads():
    head = procedural.load()
    marks = np.asarray(landmarks.positions(head, head.template))[:, :2] * [1, -1]
    right, left = marks[list(landmarks.OUTER_EYE_CORNERS)]
    marks = (marks - (left + right) / 2) / np.linalg.norm(left - right)
    np.testing.assert_allclose(detect.AVERAGE_FACE, marks, atol=0.02)
