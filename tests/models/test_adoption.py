"""What starts from other people's weights, and what is named as staying random."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.models import adoption, denoiser, pretrained, vae, weights
from tests.models import named_tensors


def test_initialising_names_exactly_what_stays_random():
    small, tensors = named_tensors.tiny()
    larger = small.clone(
        cross_attention=False, expression_modules=True, temporal_modules=True
    )
    shapes = weights.template(
        larger,
        jnp.zeros((1, 1, 1, 1, 8, 8, 7)),
        jnp.zeros(()),
        expression=jnp.zeros((1, 1, 1, 1, 1, 16)),
    )
    variables = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), shapes)
    model = {
        "params": {"unet": variables["params"], "label": {"embedding": np.ones(2)}}
    }
    filled, report = adoption.initialise(model, {"unet": ("sd15_unet", tensors)})
    assert report.padded == ("params/unet/conv_in/kernel: 3 of 7 inputs",)
    kernel = filled["params"]["unet"]["conv_in"]["kernel"]
    old = tensors["conv_in.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel[..., :4, :], old)
    assert not kernel[..., 4:, :].any()
    kinds = {path.split("/")[2].split("_")[-1][:-1] for path in report.random[1:]}
    assert report.random[0] == "params/label/embedding"
    assert kinds == {"expression", "temporal"}
    assert all(".attn2." in name or ".norm2." in name for name in report.unused)
    # All else is the checkpoint's, and what is named is as it was.
    flat, before = (
        flax.traverse_util.flatten_dict(x, sep="/") for x in (filled, model)
    )
    for path in before:
        is_as_it_was = np.array_equal(flat[path], before[path])
        assert is_as_it_was == (path in report.random), path


def test_initialising_a_part_that_is_not_there_is_refused():
    _, tensors = named_tensors.tiny()
    with pytest.raises(ValueError, match="submodule 'unet' for sd15_unet"):
        adoption.initialise({"params": {}}, {"unet": ("sd15_unet", tensors)})


def test_converted_weights_enter_as_their_checkpoint_does():
    """Into more channels and modules too; parts that the model lacks are unused."""
    small, tensors = named_tensors.tiny()
    larger = small.clone(cross_attention=False, temporal_modules=True)
    network = denoiser.Denoiser(unet=larger)
    shapes = weights.template(larger, jnp.zeros((1, 1, 1, 1, 8, 8, 7)), jnp.zeros(()))
    variables = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), shapes)
    model = {"params": {"unet": variables["params"]}}
    converted = {
        "unet": (small, pretrained.plan("sd15_unet", tensors).load(tensors)),
        "vae": (vae.AutoencoderKL(), {"params": {"quant": {"bias": np.zeros(8)}}}),
    }
    adopted, report = adoption.adopt(network, model, converted)
    wanted, other = adoption.initialise(model, {"unet": ("sd15_unet", tensors)})
    jax.tree.map(np.testing.assert_array_equal, adopted, wanted)
    assert (report.random, report.padded) == (other.random, other.padded)
    assert report.random and report.padded
    assert "params/vae/quant/bias" in report.unused
    for part, names in (("unet", ("across", "norm2")), ("vae", ("quant",))):
        unused = [x for x in report.unused if x.startswith(f"params/{part}/")]
        assert all(any(name in x for name in names) for x in unused)


def test_converted_weights_of_another_network_are_refused():
    small, tensors = named_tensors.tiny()
    own = pretrained.plan("sd15_unet", tensors).load(tensors)
    model = {"params": {"unet": own["params"]}}
    network = denoiser.Denoiser(unet=small)
    for parts, complaint in (
        (
            {"unet": (small.clone(heads=(2, 2)), own)},
            r"heads \(8, 8\), got .* \(2, 2\)",
        ),
        ({"vae": (vae.AutoencoderKL(), own)}, "submodules, got vae"),
        (
            {"unet": (small, {"params": {"conv_in": {"bias": np.zeros(3)}}})},
            r"params/unet/conv_in/bias: \[3\], not \[32\]",
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            adoption.adopt(network, model, parts)
    modules = {"cross_attention": False, "expression_modules": True}
    other = small.clone(**modules, module_heads=2)
    with pytest.raises(ValueError, match="module_heads 8, got"):
        adoption.adopt(
            denoiser.Denoiser(unet=small.clone(**modules)),
            model,
            {"unet": (other, own)},
        )
