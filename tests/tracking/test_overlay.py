import jax.numpy as jnp
import numpy as np

from geodiff_jax.head import procedural
from geodiff_jax.tracking import fit, overlay
from tests.tracking import synthetic


def test_overlay_shows_landmarks_where_they_are():
    model = procedural.load()
    shot = synthetic.portrait(model, synthetic.person(model))
    found = jnp.asarray(shot.detection.ibug, jnp.float32)
    result = fit.Fit(
        head=model,
        params=shot.params,
        camera=shot.camera,
        offsets=jnp.zeros((model.num_vertices, 3)),
        found=found,
        projected=found + 10_000.0,  # Out of the picture.
        landmark_nme=0.0,
        landmark_nme_without_offsets=0.0,
        offsets_rms=0.0,
        offsets_max=0.0,
        yaw_radians=0.0,
    )
    picture = overlay.overlay(shot.photo, shot.detection, result, size=300)
    assert picture.shape == (300, 600, 3)
    assert picture.min() >= 0.0 and picture.max() <= 1.0
    left, top, side = overlay._window(shot.detection)
    column, row = ((shot.detection.ibug[30] - [left, top]) * 300 / side).astype(int)
    np.testing.assert_allclose(picture[row, column], overlay.FOUND)
    swapped = result.replace(found=result.projected, projected=result.found)
    picture = overlay.overlay(shot.photo, shot.detection, swapped, size=300)
    np.testing.assert_allclose(picture[row, column], overlay.PROJECTED)
    shading, covered = overlay.shade(model, shot.params, shot.camera)
    np.testing.assert_array_equal(covered, shot.detection.matte > 0.5)
    assert (shading[~covered] == 1.0).all()
