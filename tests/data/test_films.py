"""Fits of films by two trackers, each with its mattes."""

import numpy as np
import pytest
from PIL import Image

from geodiff_jax.data import films, recordings
from geodiff_jax.tracking import flowface
from tests.head import random_head


@pytest.fixture
def fit(tmp_path):
    """As CAP4D's tracker leaves it: three frames, the last with a matte."""
    np.savez(
        tmp_path / "fit.npz",
        **{name: np.full((1, 1), 90.0) for name in ("fx", "fy", "cx", "cy")},
        extr=np.eye(4)[None],
        resolutions=np.array([[12, 16]]),
        shape=np.linspace(-1, 1, flowface.NUM_IDENTITY),
        expr=np.ones((3, flowface.NUM_EXPRESSIONS)),
        **{name: np.zeros((3, 3)) for name in ("rot", "tra", "eye_rot")},
    )
    (tmp_path / "bg" / "cam0").mkdir(parents=True)
    matte = np.zeros((12, 16), np.uint8)
    matte[:, 8:] = 255
    Image.fromarray(matte).save(tmp_path / "bg" / "cam0" / "0002.png")
    films.read_fit.cache_clear()
    return tmp_path


def head(version):
    return random_head.load().replace(
        version=version,
        identity_names=tuple(map(str, range(flowface.NUM_IDENTITY))),
        expression_names=tuple(map(str, range(flowface.NUM_EXPRESSIONS))),
    )


def test_cap4ds_fits_come_with_their_mattes(fit, monkeypatch):
    model = head(flowface.HEAD_VERSION)
    monkeypatch.setattr(recordings, "load_head", lambda path: model)
    found = films.read_fit(fit, None)
    assert found.track.frame_ids == (0, 1, 2) and not found.offsets.any()
    picture = np.zeros((6, 8, 3), np.float32)
    assert films.fitted_matte(fit, found, 0, 1, picture) is None
    matte = films.fitted_matte(fit, found, 0, 2, picture)
    np.testing.assert_array_equal(matte, np.repeat([[0, 1]], 4, axis=1).repeat(6, 0))


def test_fits_of_another_head_are_refused(fit, monkeypatch):
    model = head("flame2023")
    monkeypatch.setattr(recordings, "load_head", lambda path: model)
    with pytest.raises(ValueError, match="fit the recording again"):
        films.read_fit(fit, None)
