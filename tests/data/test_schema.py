"""The schema's door, and what goes to disk and comes back."""

import dataclasses

import numpy as np
import pytest

from geodiff_jax.data import building, schema
from tests.data import balls

GOOD = balls.example()


def changed(**values):
    return dataclasses.replace(GOOD, **values)


def test_a_ball_is_admitted():
    schema.check(GOOD, balls.SIZES, balls.HEAD)


def with_nan(values):
    spoilt = np.array(values)
    spoilt.flat[0] = np.nan
    return spoilt


FAULTS = {
    "image of shape": {"image": GOOD.image[:-1]},
    "finite normal": {"normal": with_nan(GOOD.normal)},
    "image in [0, 1]": {"image": GOOD.image * 255.0},
    "empty mask": {"mask": 0.0 * GOOD.mask, "image": 0.0 * GOOD.image + 1.0},
    "white": {"image": np.minimum(GOOD.image, 0.5)},
    "no normals outside": {"normal": GOOD.normal + 1e-3},
    "unit normals": {"normal": 0.9 * GOOD.normal},
    "without one": {"normal": GOOD.normal * (GOOD.normal[..., :1] > 0)},
    "a subject": {"subject": " "},
    "a licence": {"licence": ""},
    "track the recording": {"head_version": "flame2023"},
    "the maps": {"maps": {}},
    "unit quaternion": {"camera_from_world": 2.0 * GOOD.camera_from_world},
    "positive focal": {"intrinsics": -GOOD.intrinsics},
    "face box": {"face_box": GOOD.face_box[[2, 3, 0, 1]]},
    "meets the picture": {"face_box": GOOD.face_box + 100.0},
}


@pytest.mark.parametrize("words", FAULTS)
def test_faults_are_refused_in_a_sentence(words):
    with pytest.raises(ValueError) as refusal:
        schema.check(changed(**FAULTS[words]), balls.SIZES, balls.HEAD)
    sentence = str(refusal.value)
    assert words in sentence and "\n" not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("axis, word", enumerate(["x to", "y up", "z towards"]))
def test_flipped_normals_are_named_by_their_axis(axis, word):
    normal = GOOD.normal.copy()
    normal[..., axis] *= -1.0
    with pytest.raises(ValueError, match=word) as refusal:
        schema.check(changed(normal=normal), balls.SIZES, balls.HEAD)
    others = {"x to", "y up", "z towards"} - {word}
    assert not any(other in str(refusal.value) for other in others)


def test_unit_normals_are_unit_where_covered_and_zero_elsewhere():
    mask = np.linspace(0.0, 1.0, 25).reshape(5, 5)
    drawn = np.random.default_rng(0).normal(size=(5, 5, 3))
    normals = schema.unit_normals(drawn, mask)
    length = np.linalg.norm(normals, axis=-1)
    np.testing.assert_allclose(length, mask >= schema.COVERED, atol=1e-12)


def test_normals_survive_bytes_and_the_background_stays_zero():
    found = schema.normals_from_bytes(schema.bytes_from_normals(GOOD.normal))
    # Half a step of 1 / 127.
    np.testing.assert_allclose(found, GOOD.normal, atol=0.5 / 127 + 1e-6)
    assert not found[GOOD.mask == 0].any()


def test_the_disk_gives_back_what_was_encoded():
    features = schema.features(balls.SIZES, balls.HEAD)
    encoded = schema.encode(GOOD)
    written = features.serialize_example(building.to_record(encoded))
    found = features.deserialize_example_np(written)
    np.testing.assert_allclose(found["image"] / 255.0, GOOD.image, atol=0.5 / 255)
    np.testing.assert_array_equal(
        found["normal"], schema.bytes_from_normals(GOOD.normal)
    )
    np.testing.assert_array_equal(found["mask"][..., 0], 255 * GOOD.mask)
    for name in ("camera_from_world", "identity", "expression", "position_code"):
        np.testing.assert_array_equal(found[name], encoded[name])
    assert found["subject"] == b"ann" and found["synthetic"] is True
