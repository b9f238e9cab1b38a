"""Image metrics agree with scikit-image, inside masks too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from skimage import metrics as oracle

from geodiff_jax.metrics import image as image_metrics


def pair(h: int = 40, w: int = 53) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w] / 9
    truth = 0.5 + 0.4 * np.stack([np.sin(x), np.sin(y), np.sin(x + y)], axis=-1)
    noisy = np.clip(truth + rng.normal(scale=0.1, size=truth.shape), 0, 1)
    return noisy.astype(np.float32), truth.astype(np.float32)


def oracle_ssim(image: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    return oracle.structural_similarity(
        image.astype(np.float64),
        truth.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )


def disc(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return (x - w / 2) ** 2 + (y - h / 2) ** 2 < 12**2


def test_ssim_agrees_with_scikit_image():
    image, truth = pair()
    expected, expected_map = oracle_ssim(image, truth)
    found = image_metrics.ssim_map(jnp.asarray(image), jnp.asarray(truth))
    # float32 variances of order 1e-2 against c2 = 9e-4.
    np.testing.assert_allclose(found, expected_map[5:-5, 5:-5], atol=2e-4)
    mean = image_metrics.ssim(jnp.asarray(image), jnp.asarray(truth))
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_masked_ssim_is_the_mean_of_the_map_inside():
    image, truth = pair()
    mask = disc(40, 53)
    expected = oracle_ssim(image, truth)[1][mask].mean()
    arrays = jnp.asarray(image), jnp.asarray(truth)
    found = image_metrics.ssim(*arrays, mask=jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_psnr_and_l1_agree_with_scikit_image(masked):
    image, truth = pair()
    mask = disc(40, 53) if masked else np.ones((40, 53), bool)
    arrays = jnp.asarray(image), jnp.asarray(truth)
    given = {"mask": jnp.asarray(mask)} if masked else {}
    expected = oracle.peak_signal_noise_ratio(truth[mask], image[mask], data_range=1)
    np.testing.assert_allclose(
        image_metrics.psnr(*arrays, **given), expected, rtol=1e-5
    )
    expected = np.abs(image[mask] - truth[mask]).mean()
    np.testing.assert_allclose(image_metrics.l1(*arrays, **given), expected, rtol=1e-5)


def test_equal_images_are_perfect():
    image = jnp.asarray(pair()[0])
    # Cancellation in the variances: 1e-7 over c2.
    np.testing.assert_allclose(image_metrics.ssim(image, image), 1.0, atol=1e-6)
    np.testing.assert_allclose(image_metrics.psnr(image, image), 100.0, rtol=1e-6)
    assert image_metrics.l1(image, image) == 0


def test_ssim_is_symmetric_and_falls_with_noise():
    image, truth = map(jnp.asarray, pair())
    forward, backward = (
        image_metrics.ssim(image, truth),
        image_metrics.ssim(truth, image),
    )
    np.testing.assert_allclose(forward, backward, atol=1e-6)
    worse = image + 0.1 * jnp.asarray(np.random.default_rng(1).normal(size=image.shape))
    assert image_metrics.ssim(worse, truth) < forward


def test_gradients_agree_with_differences():
    with jax.enable_x64(True):
        image, truth = (jnp.asarray(x[:16, :18], jnp.float64) for x in pair())
        mask = jnp.asarray(disc(40, 53)[12:28, 18:36])

        def total(one, other):
            one, other = jnp.asarray(one), jnp.asarray(other)
            return (
                image_metrics.ssim(one, other)
                + image_metrics.ssim(one, other, mask=mask)
                + 0.01 * image_metrics.psnr(one, other, mask=mask)
            )

        check_grads(jax.jit(total), (image, truth), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("metric", ["l1", "psnr", "ssim"])
def test_gradients_are_finite_for_flat_and_equal_images(metric):
    flat = jnp.full((16, 16, 3), 0.5)
    mask = jnp.zeros((16, 16), bool)
    function = getattr(image_metrics, metric)
    for given in ({}, {"mask": mask}):
        gradient = jax.grad(lambda x, given=given: function(x, flat, **given))
        assert np.isfinite(jax.jit(gradient)(flat)).all()


def test_batches_by_vmap():
    image, truth = map(jnp.asarray, pair())
    batch = jnp.stack([image, truth]), jnp.stack([truth, truth])
    gradient = jax.grad(image_metrics.ssim)
    found = jax.jit(jax.vmap(gradient))(*batch)
    expected = jax.jit(gradient)(image, truth)
    np.testing.assert_allclose(found[0], expected, atol=1e-7)


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        image_metrics.ssim(jnp.zeros((10, 40, 3)), jnp.zeros((10, 40, 3)))
