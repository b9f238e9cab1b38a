"""Codecs: numbers of diffusers and CAP4D, exact inverses, and Gaussians of latents."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.models import names_vae, vae, weights
from tests.conftest import shared_data
from tests.models import named_tensors
from tests.models.settings import QUICKLY

# The sizes of both goldens, so that one compiled program serves them.
TINY = vae.AutoencoderKL(channels=32, multipliers=(1, 2, 2), blocks=1)
SPELLINGS = (names_vae.DIFFUSERS, names_vae.OLD_DIFFUSERS, names_vae.COMPVIS)


@functools.cache
def template() -> dict:
    return weights.template(TINY, jnp.zeros((1, 32, 48, 3)))


@functools.cache
def run():
    """(variables, pixels, latents) -> posterior, distribution of latents, pixels."""

    @jax.default_matmul_precision("highest")
    def both_ways(variables, pixels, latents):
        posterior = TINY.apply(variables, pixels, method="posterior")
        encoded = TINY.apply(variables, pixels, method="encode")
        return posterior, encoded, TINY.apply(variables, latents, method="decode")

    return jax.jit(both_ways)


def load(tensors: dict) -> dict:
    table = names_vae.vae_table(TINY, names_vae.spelling_of(tensors))
    variables, report = weights.fill(template(), table, tensors)
    weights.demand(report)
    assert not report.random
    return variables


def golden() -> dict:
    return dict(np.load(pathlib.Path(__file__).with_name("sd_vae.npz")))


@functools.cache
def variables() -> dict:
    return load(named_tensors.checkpoint(names_vae.vae_table(TINY), template()))


def with_axes(x: np.ndarray) -> np.ndarray:
    """Two images as (domain, view): any axes may lead."""
    return np.broadcast_to(x, (2, *x.shape[1:]))[:, None]


def test_tiny_autoencoder_agrees_with_diffusers():
    known = golden()
    posterior, encoded, decoded = run()(
        variables(),
        with_axes(known["pixels"]),
        TINY.scale * with_axes(known["latents"]),
    )
    for found, name in (
        (posterior.mean, "mean"),
        (posterior.log_variance, "log_variance"),
        (decoded, "decoded"),
    ):
        np.testing.assert_allclose(found[:, 0], known[name], atol=2e-5)
    np.testing.assert_allclose(encoded.mean, 0.18215 * posterior.mean, rtol=1e-6)
    np.testing.assert_allclose(encoded.std(), 0.18215 * posterior.std(), rtol=1e-5)


def test_first_stage_agrees_with_cap4d():
    known = np.load(shared_data("goldens/cap4d_vae_small.npz"))
    prefix = "sd/first_stage_model."
    tensors = {
        name.removeprefix(prefix): known[name]
        for name in known.files
        if name.startswith(prefix)
    }
    pixels, latents = (known[n].transpose(0, 2, 3, 1) for n in ("image", "z"))
    posterior, _, decoded = run()(
        load(tensors), with_axes(pixels), TINY.scale * with_axes(latents)
    )
    for found, name in (
        (posterior.mean, "mean"),
        (posterior.log_variance, "logvar"),
        (posterior.std(), "std"),
        (decoded, "decoded"),
    ):
        # Stated with the goldens: a margin over float32's own error of 3e-6.
        expected = known[name].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found[:, 0], with_axes(expected)[:, 0], atol=5e-5)


def test_log_variance_is_clipped():
    known, extreme = golden(), dict(variables()["params"])
    bias = np.repeat([0.0, 1e3], TINY.latent_channels)
    extreme["quant"] = {**extreme["quant"], "bias": np.float32(bias)}
    inputs = with_axes(known["pixels"]), with_axes(known["latents"])
    posterior, *_ = run()({"params": extreme}, *inputs)
    assert (posterior.log_variance == 20.0).all()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_fills_the_same_parameters(spelling):
    table = names_vae.vae_table(TINY, spelling)
    assert names_vae.spelling_of(table) == spelling
    paths = {e.path: e.layout for e in table.values()}
    standard = {e.path: e.layout for e in names_vae.vae_table(TINY).values()}
    assert paths == standard and len(paths) == len(table)
    _, report = weights.fill(template(), table, {})
    assert len(report.random) == len(table), "the module has nothing else"


def test_linear_layers_may_be_stored_as_convolutions_of_one_pixel():
    tensors = named_tensors.checkpoint(names_vae.vae_table(TINY), template())
    pixelwise = {
        name: x[..., None, None] if x.ndim == 2 else x for name, x in tensors.items()
    }
    jax.tree.map(np.testing.assert_array_equal, load(pixelwise), variables())


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        ("sd15_vae", ""),
        ("sd21_vae", ""),
        ("cap4d_mmdm_100k", "first_stage_model."),
    ],
)
def test_released_files_fill_the_full_size(layout, prefix):
    path = shared_data(f"weight_layouts/{layout}.json")
    tensors = {
        name.removeprefix(prefix): np.broadcast_to(np.float32(0), tensor["shape"])
        for name, tensor in json.loads(path.read_text()).items()
        if name.startswith(prefix)
    }
    full = vae.AutoencoderKL()
    table = names_vae.vae_table(full, names_vae.spelling_of(tensors))
    shapes = weights.template(full, jnp.zeros((1, 8, 8, 3)))
    _, report = weights.fill(shapes, table, tensors)
    assert report == weights.Report()


@pytest.mark.slow
def test_full_size_agrees_with_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    tensors = {
        name: named_tensors.draw(name, tuple(tensor.shape))
        for name, tensor in theirs.state_dict().items()
    }
    theirs.load_state_dict({n: torch.from_numpy(x) for n, x in tensors.items()})
    ours = vae.AutoencoderKL()
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    shapes = weights.template(ours, jnp.asarray(pixels))
    filled, report = weights.fill(shapes, names_vae.vae_table(ours), tensors)
    weights.demand(report)

    with torch.no_grad():
        planes = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        posterior = theirs.encode(planes).latent_dist
        expected = theirs.decode(posterior.mean).sample
    # Both decode the same latents: what rounding did to ours would be amplified.
    latents = ours.scale * posterior.mean.numpy().transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        encoded = jax.jit(functools.partial(ours.apply, method="posterior"))(
            filled, pixels
        )
        decoded = jax.jit(functools.partial(ours.apply, method="decode"))(
            filled, latents
        )
    for found, known in (
        (encoded.mean, posterior.mean),
        (encoded.log_variance, posterior.logvar),
        (decoded, expected),
    ):
        known = known.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, known, atol=2e-5)


@settings(deadline=None, max_examples=8)
@given(
    factor=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    batch=st.lists(st.integers(1, 2), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_pixel_shuffle_is_inverted_exactly(factor, rows, columns, batch, seed):
    codec = vae.PixelShuffle(factor)
    shape = (*batch, rows * factor, columns * factor, 3)
    pixels = jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)
    encoded = codec.apply({}, pixels, method="encode")
    assert encoded.mean.shape == (*batch, rows, columns, codec.latent_channels)
    decoded = codec.apply({}, encoded.mean, method="decode")
    np.testing.assert_array_equal(decoded, pixels)


def test_samples_of_pixel_shuffle_are_squares_of_pixels():
    pixels = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 9, 3)), jnp.float32)
    encoded = vae.PixelShuffle(3).apply({}, pixels, method="encode")
    latents = encoded.sample(jax.random.key(0))  # Certain, so the mean.
    for row in range(2):
        for column in range(3):
            square = pixels[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(latents[row, column], square.ravel())


SQUARES = vae.AutoencoderKL(
    channels=4, multipliers=(1, 1), blocks=1, latent_channels=16, patch=4, linear=True
)


@pytest.mark.parametrize("codec", [vae.AutoencoderKL(), vae.PixelShuffle(), SQUARES])
def test_codecs_agree_about_shapes_and_refuse_what_they_cannot_halve(codec):
    assert codec.factor == 8
    pixels = jnp.zeros((1, 2, 1, 3, 16, 24, 3))
    shapes = weights.template(codec, pixels)
    encoded = jax.eval_shape(
        functools.partial(codec.apply, method="encode"), shapes, pixels
    )
    assert encoded.mean.shape == (1, 2, 1, 3, 2, 3, codec.latent_channels)
    decoded = jax.eval_shape(
        functools.partial(codec.apply, method="decode"), shapes, encoded.mean
    )
    assert decoded.shape == pixels.shape
    with pytest.raises(ValueError, match="multiples of 8 pixels, got 16 x 20"):
        weights.template(codec, jnp.zeros((1, 16, 20, 3)))


@pytest.mark.parametrize("count", [16, 192])
def test_a_linear_codec_starts_with_principal_components(count):
    """Its error is what they leave out, by the singular values of the squares."""
    codec = SQUARES.clone(latent_channels=count)
    colours = np.random.default_rng(0).normal(size=(3, 16, 24, 2))
    pixels = jnp.float32(colours @ [[0.3, 0.1, 0.0], [0.0, 0.2, 0.5]])
    quickly = {"compiler_options": QUICKLY}
    init = jax.jit(codec.init, **quickly)
    run = jax.jit(codec.apply, static_argnames="method", **quickly)
    linear = vae.principal_squares(codec, np.asarray(pixels))
    variables = {"params": init(jax.random.key(0), pixels)["params"] | linear}
    found = run(variables, pixels)
    shuffle = vae.PixelShuffle(8)
    squares = shuffle.apply({}, jnp.asarray(pixels), method="encode").mean
    squares = np.float64(squares).reshape(-1, 192)
    kept = np.linalg.svd(squares - squares.mean(axis=0))[1]
    error = np.sum(np.square(np.float64(found) - pixels))
    np.testing.assert_allclose(error, np.sum(kept[count:] ** 2), rtol=1e-4, atol=1e-6)
    # A latent's deviation is its component's.
    latents = run(variables, pixels, method="posterior").mean.reshape(-1, count)
    rank = min(count, len(squares) - 1)
    np.testing.assert_allclose(
        latents[:, :rank].std(axis=0, ddof=1),
        kept[:rank] / np.sqrt(len(squares) - 1),
        rtol=1e-3,
    )


def test_other_autoencoders_have_no_linear_codec():
    with pytest.raises(ValueError, match="linear"):
        vae.principal_squares(TINY, np.zeros((8, 8, 3), np.float32))


def test_a_linear_codec_has_no_more_latents_than_numbers():
    codec = SQUARES.clone(latent_channels=193)
    with pytest.raises(ValueError, match="at most 192 latent channels.*got 193"):
        vae.principal_squares(codec, np.zeros((16, 16, 3), np.float32))


def test_frame_by_frame_is_all_at_once():
    frames = jax.random.uniform(jax.random.key(0), (2, 1, 3, 8, 16, 3))
    codec = vae.PixelShuffle(4)
    encode = functools.partial(codec.apply, {}, method="encode")
    for at_once in (1, 4):  # Four leaves two over.
        found = vae.frame_by_frame(encode, frames, at_once=at_once)
        jax.tree.map(np.testing.assert_array_equal, found, encode(frames))


def gaussian() -> vae.Gaussian:
    mean, log_variance = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4))
    return vae.Gaussian(*(jnp.asarray(x, jnp.float32) for x in (mean, log_variance)))


def test_divergence_is_the_expected_ratio_of_densities():
    latents = gaussian()
    # Gauss-Hermite quadrature is exact for the quadratic log(q / p).
    nodes, share = np.polynomial.hermite_e.hermegauss(4)
    mean, std = (np.asarray(x)[..., None] for x in (latents.mean, latents.std()))
    x = mean + std * nodes
    log_ratio = -0.5 * nodes**2 - np.log(std) + 0.5 * x**2
    expected = (log_ratio * share).sum(-1).sum((-3, -2, -1)) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(latents.kl_from_standard(), expected, rtol=1e-5)
    standard = vae.Gaussian(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2, 4)))
    assert standard.kl_from_standard() == 0.0


def test_samples_have_the_mean_and_deviation():
    latents, count = gaussian(), 4000
    keys = jax.random.split(jax.random.key(0), count)
    samples = np.asarray(jax.vmap(latents.sample)(keys))
    # Five standard errors, over 48 latents.
    error = 5 * np.asarray(latents.std()) / np.sqrt(count)
    assert (np.abs(samples.mean(0) - latents.mean) < error).all()
    assert (np.abs(samples.std(0) - latents.std()) < error).all()


def test_scaling_a_distribution_scales_its_samples():
    key, latents = jax.random.key(0), gaussian()
    np.testing.assert_allclose(
        latents.scaled(0.3).sample(key), 0.3 * latents.sample(key), rtol=1e-5, atol=1e-6
    )


def test_white_and_no_normal_are_background_both_ways():
    ramp = jnp.linspace(0.0, 1.0, 12).reshape(2, 2, 3)
    pixels = vae.pixels_from_images(ramp)
    assert pixels.min() == -1.0 and pixels.max() == 1.0
    np.testing.assert_allclose(vae.images_from_pixels(pixels), ramp, atol=1e-7)
    assert (vae.images_from_pixels(1.3 * jnp.ones((1, 1, 3))) == 1.0).all()

    decoded = jnp.asarray([[[0.1, 0.2, -0.1], [0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]])
    normals = vae.normals_from_pixels(decoded * jnp.asarray([1.0, 1.0, 1.1]))
    assert (normals[0, :2] == 0.0).all()
    np.testing.assert_allclose(jnp.linalg.norm(normals[0, 2]), 1.0, rtol=1e-6)
    slope = jax.grad(lambda x: vae.normals_from_pixels(x).sum())(decoded)
    assert np.isfinite(slope).all()
