import dataclasses

import jax
import numpy as np
import pytest
import skimage.data

from geodiff_jax.head import landmarks, procedural, track
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.tracking import detect, fit, mediapipe_models
from tests.conftest import shared_data
from tests.tracking import synthetic

LINCOLN = "cap4d_fits/lincoln/images/cam0/abraham_lincoln.png"
needs_mediapipe = pytest.mark.skipif(
    not mediapipe_models.installed(), reason="mediapipe is not installed"
)


@pytest.fixture(scope="module")
def model():
    return procedural.load()


def fitted(model, shot, **options):
    return fit.fit(model, shot.photo, shot.detection, **options)


@pytest.fixture(scope="module")
def smiling(model):
    """(truth, fit) of a turned, smiling person."""
    params = synthetic.person(
        model,
        seed=1,
        yaw_degrees=12.0,
        roll_degrees=5.0,
        expression={"mouthSmile_L": 0.6, "mouthSmile_R": 0.6, "jawOpen": 0.3},
        eyes=[[0.1, 0.2, 0.0], [0.1, 0.2, 0.0]],
    )
    shot = synthetic.portrait(model, params)
    return shot, fitted(model, shot)


def test_landmarks_of_a_known_head_are_met(smiling):
    _, result = smiling
    assert result.landmark_nme_without_offsets < 0.006
    assert result.landmark_nme < 0.003


def test_pose_of_a_known_head_is_recovered(smiling):
    shot, result = smiling
    truth, found = shot.params, result.params
    yaw = synthetic.yaw_degrees(truth)
    # Identity and pose trade a little under the priors: degrees, not their tenths.
    assert abs(synthetic.yaw_degrees(found) - yaw) < 3.0
    assert np.degrees(result.yaw_radians) == pytest.approx(
        synthetic.yaw_degrees(found), abs=1e-3
    )
    np.testing.assert_allclose(found.translation, truth.translation, atol=0.05)


def test_expression_and_gaze_of_a_known_head_are_recovered(model, smiling):
    shot, result = smiling
    names = model.expression_names
    for name in ("mouthSmile_L", "mouthSmile_R", "jawOpen"):
        k = names.index(name)
        truth = float(shot.params.expression[k])
        assert float(result.params.expression[k]) == pytest.approx(truth, abs=0.3)
    np.testing.assert_allclose(result.params.eyes, shot.params.eyes, atol=0.08)


def test_outline_of_a_bald_head_is_met(smiling):
    """Landmarks alone do not see how wide a head is; the matte's skin edge does."""
    shot, result = smiling
    refitted = synthetic.portrait(result.head, result.params)
    chin = int(shot.detection.ibug[8, 1])
    covered = refitted.detection.matte[:chin] > 0.5
    truth = shot.detection.matte[:chin] > 0.5
    assert (covered & truth).sum() / (covered | truth).sum() > 0.96


def test_result_reproduces_its_own_landmarks(smiling):
    _, result = smiling
    vertices = head_model.vertices(result.head, result.params)
    pixels = result.camera.project(landmarks.positions(result.head, vertices))[0]
    np.testing.assert_allclose(pixels, result.projected, atol=0.02)  # float32
    error = landmarks.normalized_error(pixels, result.found)
    assert float(error) == pytest.approx(result.landmark_nme, abs=1e-4)


def test_mirrored_photo_gives_mirrored_fit(model, smiling):
    shot, result = smiling
    other = fitted(model, synthetic.mirrored(shot))
    projected = np.asarray(other.projected)[landmarks.IBUG_MIRROR]
    projected = projected * [-1, 1] + [shot.photo.width, 0]
    gap = np.linalg.norm(projected - np.asarray(result.projected), axis=1)
    # Rays and pixels of the outline are not mirrored exactly: jaws may differ more.
    assert gap[17:].mean() < 0.3 and gap.max() < 3.0
    assert other.yaw_radians == pytest.approx(-result.yaw_radians, abs=np.radians(1.0))


def test_scaled_photo_gives_the_same_head(model, smiling):
    shot, result = smiling
    double = synthetic.portrait(model, shot.params, focal=1600.0, width=800, height=880)
    other = fitted(model, double)
    gap = np.asarray(other.projected) / 2 - np.asarray(result.projected)
    # The outline is one of pixels, so it is finer in the larger photo.
    assert np.linalg.norm(gap, axis=1).mean() < 0.3
    np.testing.assert_allclose(
        other.params.translation, result.params.translation, atol=0.01
    )


def test_shifted_photo_gives_the_same_head(model, smiling):
    shot, result = smiling
    detection = dataclasses.replace(
        shot.detection,
        ibug=shot.detection.ibug + [30, -20],
        irises=shot.detection.irises + [30, -20],
        matte=np.roll(shot.detection.matte, (-20, 30), axis=(0, 1)),
    )
    photo = dataclasses.replace(
        shot.photo, rgb=np.roll(shot.photo.rgb, (-20, 30), axis=(0, 1))
    )
    other = fit.fit(model, photo, detection)
    gap = np.asarray(other.projected) - np.asarray(result.projected) - [30, -20]
    assert np.linalg.norm(gap[17:], axis=1).mean() < 1.0


def test_focal_length_comes_from_the_photo_else_from_the_config(model, smiling):
    shot, result = smiling
    assert float(result.camera.intrinsics[0]) == 800.0
    unknown = dataclasses.replace(shot.photo, focal_pixels=None)
    focal = fit._focal(unknown, shot.detection, fit.FitConfig())
    assert focal == 2.0 * 440
    near = fit._focal(unknown, shot.detection, fit.FitConfig(min_distance=2.0))
    assert near > 1000.0


def test_profile_is_refused(model):
    params = synthetic.person(model, yaw_degrees=75.0)
    shot = synthetic.portrait(model, params)
    with pytest.raises(ValueError, match="degrees") as error:
        fitted(model, shot)
    assert "\n" not in str(error.value)


def test_track_of_a_fit_belongs_to_the_head(model, smiling):
    _, result = smiling
    recording = fit.to_track(result)
    track.check(recording, model)
    same = jax.tree.map(np.array_equal, recording.frame(0), result.params)
    assert all(jax.tree.leaves(same))


@pytest.fixture(scope="module", params=["astronaut", "lincoln"])
def real(request, model):
    """(photo, detection, fit) of a real portrait; settings unchanged between them."""
    if request.param == "astronaut":
        photo = images.photo_from_array(skimage.data.astronaut())
    else:
        photo = images.read_image(shared_data(LINCOLN))
    detection = detect.detect(photo)
    return photo, detection, fit.fit(model, photo, detection)


@needs_mediapipe
class TestRealPortraits:
    def test_landmarks_are_met_within_bounds(self, real):
        _, _, result = real
        assert result.landmark_nme_without_offsets <= 0.025
        assert result.landmark_nme <= 0.015
        assert result.offsets_rms <= 2.5e-3 and result.offsets_max <= 5e-3

    def test_the_head_stays_plausible(self, real):
        _, _, result = real
        assert np.abs(result.params.identity).max() <= 4.0
        strengths = np.asarray(result.params.expression)
        assert strengths.min() >= -0.08 and strengths.max() <= 1.08
        assert 0.5 < float(result.params.translation[2]) < 3.0

    def test_pose_alone_would_not_do(self, model, real):
        """A negative control: the bound must tell a fit from a rigid head."""
        photo, detection, result = real
        with jax.enable_x64(True):
            view = fit._make_view(model, photo, detection, fit.FitConfig())
            posed = fit._solve_stage(view, fit._start(view), stage=0)
            pixels = fit._pixels(
                view, fit._at_marks(view.model, fit._pose(view, posed)[0])
            )
        assert fit._error(pixels, detection.ibug) > 0.025
