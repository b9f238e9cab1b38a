"""Weights in files: what is read is what was written, and nothing else passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from geodiff_jax.models import expression_encoder, unet, vae, weight_files, weights

VARIABLES = {
    "unet": {"params": {"conv_in": {"kernel": np.arange(6.0, dtype=np.float32)}}},
    "vae": {
        "params": {"bias": np.zeros((2, 3), np.float16)},
        "batch_stats": {"mean": np.ones(2, np.float32)},
    },
}
FACTS = {"source": "sd15", "sizes": {"channels": 32, "heads": [2, 4]}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.safetensors"
    weight_files.save(path, VARIABLES, metadata=FACTS)
    return path


def test_reading_inverts_writing(file):
    variables, facts = weight_files.load(file)
    assert facts == FACTS
    weight_files.check(variables, VARIABLES)
    for module, collections in VARIABLES.items():
        for name in collections:
            np.testing.assert_equal(variables[module][name], collections[name])


def test_equal_weights_are_equal_files(file, tmp_path):
    other = tmp_path / "other.safetensors"
    weight_files.save(other, VARIABLES, metadata=dict(reversed(FACTS.items())))
    assert other.read_bytes() == file.read_bytes()


def test_other_files_are_refused(tmp_path, file):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weight_files.load(tmp_path / "none.safetensors")
    plain = tmp_path / "plain.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(1)}, plain)
    with pytest.raises(ValueError, match="got another file"):
        weight_files.load(plain)
    plain.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        weight_files.load(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["vae"].pop("batch_stats"), "as vae/batch_stats/mean, got nothing"),
        (lambda v: v["unet"]["params"].update(x=np.zeros(1)), "Expected nothing as"),
        (lambda v: v["vae"]["params"].update(bias=np.zeros((2, 3))), "float64"),
    ],
)
def test_weights_of_another_network_are_named(file, change, message):
    variables, _ = weight_files.load(file)
    change(variables)
    with pytest.raises(ValueError, match=message):
        weight_files.check(variables, VARIABLES)


def test_slashes_in_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="without a slash"):
        weight_files.save(tmp_path / "x", {"a/b": {"c": np.zeros(1)}}, metadata={})


UNET = unet.UNet(
    channels=32,
    multipliers=(1, 1.5),
    blocks=1,
    tokens=(unet.IMAGE, ()),
    heads=(2, 3),
    expression_modules=True,
)
VAE = vae.AutoencoderKL(channels=32, multipliers=(1, 2), blocks=1)
ENCODER = expression_encoder.ExpressionEncoder(
    width=32,
    maps=4,
    depth=1,
    squeezed=3,
    heads=1,
    head_width=16,
    latent=16,
    tokens=4,
)


def modules():
    """A module of each kind, with variables of random numbers."""
    x, pixels = jnp.zeros((1, 1, 1, 1, 2, 2, 4)), jnp.zeros((1, 32, 32, 3))
    signals = {
        "context": jnp.zeros((1, 1, 1, 1, 1, 24)),
        "expression": jnp.zeros((1, 1, 1, 1, 4, 16)),
    }
    shapes = {
        "unet": (UNET, weights.template(UNET, x, jnp.zeros(()), **signals)),
        "vae": (VAE, weights.template(VAE, pixels)),
        "encoder": (ENCODER, weights.template(ENCODER, pixels)),
    }
    rng = np.random.default_rng(0)
    return {
        name: (module, jax.tree.map(lambda x: rng.random(x.shape, np.float32), own))
        for name, (module, own) in shapes.items()
    }


def write(path, parts):
    descriptions = {name: weight_files.describe(x) for name, (x, _) in parts.items()}
    variables = {name: own for name, (_, own) in parts.items()}
    weight_files.save(path, variables, metadata={"modules": descriptions})


def test_modules_are_made_again(tmp_path):
    """Equal to what was written, hashable, and with every number in its place."""
    path, parts = tmp_path / "weights.safetensors", modules()
    write(path, parts)
    found, _ = weight_files.load_modules(path)
    assert found.keys() == parts.keys()
    for name, (module, variables) in parts.items():
        made, own = found[name]
        assert made == module and hash(made) == hash(module)
        jax.tree.map(np.testing.assert_array_equal, own, variables)


def test_weights_that_are_not_what_they_are_said_to_be_are_refused(tmp_path, file):
    with pytest.raises(ValueError, match="description of the modules unet, vae"):
        weight_files.load_modules(file)
    path, (module, variables) = tmp_path / "weights.safetensors", modules()["unet"]
    for described, complaint in (
        (weight_files.describe(module.clone(blocks=2)), r"down0_attention1.*network"),
        (weight_files.describe(module.clone(expression_modules=False)), "network"),
        ({"class": "Dense", "fields": {"features": 3}}, "'Dense'"),
        ({"class": "UNet", "fields": {"colour": 3}}, "'colour'"),
        ({"class": "UNet"}, "'fields'"),
    ):
        weight_files.save(
            path, {"unet": variables}, metadata={"modules": {"unet": described}}
        )
        with pytest.raises(ValueError, match=f"for unet .*{complaint}"):
            weight_files.load_modules(path)
