"""Everyone's weights: numbers of their own modules, and files that must fit."""

import functools
import math
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax import synthesis
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.models import (
    attention,
    denoiser,
    expression_encoder,
    pretrained,
    unet,
    vae,
)
from geodiff_jax.render import conditioning
from tests.conftest import shared_data
from tests.models import named_tensors


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(tensors, everything else) of a file."""
    arrays = np.load(shared_data(f"goldens/{name}.npz"))
    return (
        {k.removeprefix("sd/"): arrays[k] for k in arrays.files if k.startswith("sd/")},
        {k: arrays[k] for k in arrays.files if not k.startswith("sd/")},
    )


def run(module, variables, captured: tuple[str, ...], *arguments, **keywords):
    """Outputs and what the named submodules returned, as precise as XLA can."""

    # Compiled in half the time: each program runs once.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @jax.default_matmul_precision("highest")
    def apply(variables, arguments, keywords):
        return module.apply(
            variables,
            *arguments,
            **keywords,
            record=True,
            capture_intermediates=lambda child, _: child.name in captured,
            mutable=["intermediates"],
        )

    (out, bank), state = apply(variables, arguments, keywords)
    taps = state.get("intermediates", {})
    return out, bank, {name: taps[name]["__call__"][0] for name in captured}


def of_views(x: np.ndarray) -> np.ndarray:
    """(batch, view, h, w, c) as our latents."""
    return x[:, None, :, None]


def of_frames(x: np.ndarray) -> np.ndarray:
    """(batch, c, time, h, w) as our latents."""
    return x.transpose(0, 2, 3, 4, 1)[:, None, None]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -3, -1)


def our_block(name: str) -> str:
    """Of X-NeMo's `down_blocks.0.attentions.1.transformer_blocks.0`, say."""
    where, *numbers = name.split(".")
    if where == "mid_block":
        return f"middle_attention{numbers[1]}"
    level, i = numbers[0], numbers[2]
    side = where.removesuffix("_blocks")
    return f"{side}{level if side == 'down' else 3 - int(level)}_attention{i}"


def bank_of(known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        our_block(name.removeprefix("bank/")): x
        for name, x in known.items()
        if name.startswith("bank/")
    }


def test_mmdm_agrees_with_cap4d():
    tensors, known = golden("cap4d_mmdm_unet_small")
    width = int(known["hp_num_head_channels"])
    module, variables = pretrained.build(
        "cap4d_mmdm_100k", tensors, {"head_width": width}
    )
    latents, clean = (of_views(channels_last(known[n])) for n in ("x", "z_input"))
    slots = of_views(channels_last(known["ref_mask"])) == 1
    captured = ("time2", "maps_in", "conv_in", "up2_upsample", "middle_residual1")
    predicted, _, taps = run(
        module,
        variables,
        captured,
        np.where(slots, clean, latents),
        known["timesteps"][:, None, :, None],
        maps=of_views(known["pos_enc"]),
    )
    # CAP4D's: what slots hold beyond the clean latents stands for their noise.
    out = np.where(slots, latents - clean, predicted)
    expected = of_views(channels_last(known["out"]))
    # Stated with the goldens, with a margin over float32's own error.
    np.testing.assert_allclose(out, expected, atol=1e-4, rtol=1e-4)
    for name, theirs in (
        ("time2", known["tap_time_embed"]),
        ("maps_in", known["tap_cond_linear"]),
        ("conv_in", channels_last(known["tap_input_blocks.0"])),
        ("middle_residual1", channels_last(known["tap_middle_block"])),
        ("up2_upsample", channels_last(known["tap_output_blocks.2"])),
    ):
        # Of the conditional item: the other one's references are constant maps, whose
        # norms divide round-off by the root of epsilon.
        found, theirs = (x.reshape(2, -1)[1] for x in (taps[name], theirs))
        np.testing.assert_allclose(found, theirs, atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_reference_net_agrees_with_xnemo():
    tensors, known = golden("xnemo_reference_unet_small")
    module, variables = pretrained.build("xnemo_reference_unet", tensors, {})
    out, bank, _ = run(
        module,
        variables,
        (),
        channels_last(known["ref_latents"])[:, None, None, None],
        known["timestep"],
        context=known["encoder_hidden_states"][:, None, None, None],
    )
    expected = bank_of(known)
    assert bank.keys() == expected.keys()
    for name, states in bank.items():
        np.testing.assert_allclose(states, expected[name], atol=2e-4, err_msg=name)
    last = channels_last(known["return_value_0"])
    np.testing.assert_allclose(out[:, 0, 0, 0], last, atol=2e-4)


def denoise_like_xnemo(tensors, known, captured, **sizes):
    module, variables = pretrained.build("xnemo_denoising_unet", tensors, {})
    signals = {"expression": known["motion_tokens"][:, None, None]}
    if sizes:
        module, signals = module.clone(**sizes), {}
    return run(
        module,
        variables,
        captured,
        of_frames(known["latents"]),
        known["timestep"],
        context=known["clip_tokens"][:, None, None, None],
        bank=bank_of(known),
        reads_bank=np.asarray([False, True]),
        **signals,
    )


@pytest.mark.slow
def test_denoiser_agrees_with_xnemo():
    tensors, known = golden("xnemo_denoising_unet_small")
    names = {
        "time2": "time_embedding",
        "down0_residual0": "down_blocks.0.resnets.0",
        "down0_expression0": "down_blocks.0.motion_modules.0",
        "down0_temporal0": "down_blocks.0.temporal_modules.0",
        "down0_downsample": "down_blocks.0",
        "up3_upsample": "up_blocks.0",
        "up2_upsample": "up_blocks.1",
    }
    out, _, taps = denoise_like_xnemo(tensors, known, tuple(names))
    np.testing.assert_allclose(out, of_frames(known["out"]), atol=5e-5)
    # Items never mix, so the conditional half is what it is alone.
    alone = of_frames(known["out_single_item_no_cfg"])
    np.testing.assert_allclose(out[1:], alone, atol=5e-5)
    for ours, theirs in names.items():
        expected = known[f"tap_{theirs}"]
        expected = of_frames(expected) if expected.ndim == 5 else expected
        found = np.broadcast_to(np.squeeze(taps[ours]), np.squeeze(expected).shape)
        np.testing.assert_allclose(found, np.squeeze(expected), atol=2e-4, err_msg=ours)


@pytest.mark.slow
def test_denoiser_without_its_modules_agrees_with_xnemo():
    tensors, known = golden("xnemo_denoising_unet_small")
    out, *_ = denoise_like_xnemo(
        tensors, known, (), expression_modules=False, temporal_modules=False
    )
    expected = of_frames(known["out_without_motion_and_temporal_modules"])
    np.testing.assert_allclose(out, expected, atol=5e-5)


TINY = {
    "channels": 32,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "tokens": (unet.IMAGE, unet.IMAGE, ()),
}
"""Of Stable Diffusion's UNets in `sd_unets.npz`."""


@pytest.mark.parametrize(
    ("layout", "heads", "sizes"),
    [("sd15_unet", (8, 8, 8), {}), ("sd21_unet", (2, 4, 4), {"head_width": 16})],
)
def test_tiny_unets_agree_with_diffusers(layout, heads, sizes):
    arrays = np.load(pathlib.Path(__file__).with_name("sd_unets.npz"))
    names = ("latents", "t", "context", "out")
    latents, t, context, out = (arrays[f"{layout}_{name}"] for name in names)
    tensors = named_tensors.of_diffusers(
        unet.UNet(**TINY, heads=heads), channels=4, context=context.shape[-1]
    )
    module, variables = pretrained.build(layout, tensors, sizes)
    assert module == unet.UNet(**TINY, heads=heads)
    found, *_ = run(
        module,
        variables,
        (),
        latents[:, None, None, None],
        t[:, None, None, None],
        context=context[:, None, None, None],
    )
    np.testing.assert_allclose(found[:, 0, 0, 0], out, atol=2e-5)


@pytest.mark.parametrize(
    ("layout", "files", "heads"),
    [
        pytest.param("sd15_unet", ("sd15_unet",), (8, 8, 8, 8), marks=pytest.mark.slow),
        ("sd21_unet", ("sd21_unet",), (5, 10, 20, 20)),
        pytest.param(
            "xnemo_reference_unet",
            ("xnemo_reference_unet",),
            (8, 8, 8, 8),
            marks=pytest.mark.slow,
        ),
        (
            "xnemo_denoising_unet",
            ("xnemo_denoising_unet", "xnemo_temporal_module"),
            (8, 8, 8, 8),
        ),
    ],
)
def test_released_unets_fill_the_full_size(layout, files, heads):
    tensors = named_tensors.released(*files)
    made = pretrained.plan(layout, tensors)
    assert made.module.heads == heads
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(made.template))
    named = sum(x.size for name, x in tensors.items() if not name.endswith(".pe"))
    assert count == named
    made.load(tensors)


def test_released_mmdm_fills_the_full_size_and_nothing_else_is_let_pass():
    tensors = named_tensors.released("cap4d_mmdm_100k")
    plans = pretrained.cap4d_plans(tensors)
    for made, own in plans.values():
        made.load(own)
    net = plans["unet"][0].module
    joint = ("view", "h", "w")
    assert net.tokens == (("h", "w"), joint, joint, ())
    assert net.middle_tokens == joint and net.heads == (5, 10, 20, 20)
    assert plans["vae"][0].module == vae.AutoencoderKL()
    with pytest.raises(ValueError, match=r"1 unused: model_ema\.decay"):
        pretrained.cap4d_plans(tensors | {"model_ema.decay": np.zeros(())})
    with pytest.raises(ValueError, match="is it CAP4D's"):
        pretrained.cap4d_plans({"logvar": tensors["logvar"]})


BLOCK = "transformer_blocks.0.attn1"
ALONG = "attention0/block/along/attention"
CAP4D_SQUARES = {
    "unet": {
        "time_embed.2": "time2",
        "middle_block.1.proj_in": "middle_attention0/proj_in",
        f"input_blocks.4.1.{BLOCK}.to_q": f"down1_{ALONG}/to_q",
        f"input_blocks.4.1.{BLOCK}.to_k": f"down1_{ALONG}/to_k",
        f"output_blocks.11.1.{BLOCK}.to_v": "up0_attention2/block/along/attention/to_v",
        f"output_blocks.3.1.{BLOCK}.to_out.0": f"up2_{ALONG}/to_out",
        "output_blocks.5.2.conv": "up2_upsample/conv",
    },
    "vae": {
        "encoder.mid.attn_1.q": "encoder/middle/attention/to_q",
        "decoder.up.0.block.2.conv2": "decoder/up0_2/conv2",
    },
}
"""Kernels of CAP4D's checkpoint whose shapes do not tell a transpose, and ours."""


def check_places(
    squares: dict[str, str], tensors: dict[str, np.ndarray], variables: dict
) -> None:
    """Kernels of a checkpoint lie at our paths, inputs and outputs not swapped."""
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    for name, path in squares.items():
        tensor = tensors[f"{name}.weight"]
        found = flat[f"{path}/kernel"]
        assert tensor.shape[0] == tensor.shape[1], name
        turned = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        np.testing.assert_array_equal(found, turned.reshape(found.shape), name)


@pytest.mark.slow
def test_the_full_mmdm_is_loaded_in_place_and_generates_views():
    """Random tensors of the released names and sizes: 2 steps over 2 groups of views.

    A minute, and 8 GB.
    """
    layout = named_tensors.layout_of("cap4d_mmdm_100k")
    tensors = named_tensors.released("cap4d_mmdm_100k") | {
        name: named_tensors.draw(name, shape)
        for name, (shape, dtype) in layout.items()
        if dtype == "float32"
    }
    modules, variables = pretrained.build("cap4d_mmdm_100k", tensors)
    for part, squares in CAP4D_SQUARES.items():
        prefix = pretrained.CAP4D_PARTS[part]
        named = {prefix + name: path for name, path in squares.items()}
        check_places(named, tensors, variables[part])
    del tensors  # As large as the variables.
    views = generate(modules["unet"], variables["unet"]["params"], references=2)
    assert np.isfinite(views).all() and 0.1 < np.std(views) < 10.0
    # Each view has maps of its own, which reach it.
    assert np.std(views, axis=1).min() > 1e-3


def generate(module: unet.UNet, params: dict, *, references: int) -> np.ndarray:
    """Latents of two groups of views, 8 x 8, in two steps."""
    keys = iter(jax.random.split(jax.random.key(0), 12))

    def maps(views: int) -> conditioning.Conditioning:
        widths = {"position_code": 42, "expression_offset": 3, "rays": 3}
        widths |= {"reference_mask": 1, "crop_mask": 1}
        return conditioning.Conditioning(
            **{
                name: jax.random.normal(next(keys), (1, views, 1, 8, 8, width))
                for name, width in widths.items()
            }
        )

    network = denoiser.Denoiser(module, conditioning.LAYOUTS["cap4d"])
    sampler = synthesis.ViewSampler(steps=2, references=references)
    targets = 2 * (sampler.views - references)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def sample(params, held, own, others):
        return synthesis.views(
            jax.random.key(1),
            functools.partial(network.apply, {"params": {"unet": params}}),
            schedules.make(
                zero_terminal=True, largest_beta=0.99, num_views=8, ends_clean=False
            ),
            held,
            own,
            others,
            layout=network.layout,
            sampler=sampler,
        )

    held = jax.random.normal(next(keys), (1, references, 8, 8, 4))
    views = np.asarray(sample(params, held, maps(references), maps(targets)))
    assert views.shape == (1, targets, 8, 8, 4)
    return views


NET_SQUARES = {
    "time_embedding.linear_2": "time2",
    f"down_blocks.1.attentions.0.{BLOCK}.to_q": f"down1_{ALONG}/to_q",
    f"down_blocks.1.attentions.0.{BLOCK}.to_out.0": f"down1_{ALONG}/to_out",
    "down_blocks.1.downsamplers.0.conv": "down1_downsample/conv",
    "up_blocks.1.resnets.0.time_emb_proj": "up2_residual0/embedding",
}
MODULE = "temporal_transformer.transformer_blocks.0.attention_blocks"
X_NEMO_SQUARES = {
    "xnemo_reference_unet": NET_SQUARES,
    "xnemo_denoising_unet": NET_SQUARES
    | {
        f"down_blocks.1.motion_modules.0.{MODULE}.0.to_q": (
            "down1_expression0/block/attention1/to_q"
        ),
        f"down_blocks.1.motion_modules.1.{MODULE}.1.to_out.0": (
            "down1_expression1/block/attention2/to_out"
        ),
        f"down_blocks.1.temporal_modules.0.{MODULE}.0.to_k": (
            "down1_temporal0/block/attention1/to_k"
        ),
        f"down_blocks.1.temporal_modules.1.{MODULE}.1.to_v": (
            "down1_temporal1/block/attention2/to_v"
        ),
    },
    "xnemo_motion_encoder": {
        "model.conv4.conv1": "block3/conv1",
        "model.m0.b3_1.conv3": "hourglass/up1/conv3",
        "model.att_1.transformer_blocks.0.attention_blocks.0.to_q": (
            "attention1/attention/to_q"
        ),
    },
}
"""The same of X-NeMo's."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", X_NEMO_SQUARES)
def test_random_tensors_of_x_nemos_sizes_are_loaded_in_place(layout):
    """In half precision, so that 10 GB are enough."""
    files = (layout, *(("xnemo_temporal_module",) if "denoising" in layout else ()))
    tensors = named_tensors.released(*files) | {
        name: named_tensors.draw(name, shape).astype(np.float16)
        for name, (shape, dtype) in named_tensors.layout_of(*files).items()
        if dtype == "float32" and not name.endswith(".pe")
    }
    _, variables = pretrained.build(layout, tensors)
    check_places(X_NEMO_SQUARES[layout], tensors, variables)


def test_released_motion_encoder_fills_the_full_size():
    tensors = named_tensors.released("xnemo_motion_encoder")
    made = pretrained.plan("xnemo_motion_encoder", tensors)
    assert made.module == expression_encoder.ExpressionEncoder()
    made.load(tensors)


def test_half_a_file_is_refused_by_name():
    _, tensors = named_tensors.tiny()
    for broken, complaint in (
        ({**tensors, "extra.weight": np.zeros(3)}, "1 unused: extra.weight"),
        ({**tensors, "conv_in.bias": np.zeros(3)}, r"conv_in.bias: \[3\], not \[32\]"),
        (without(tensors, "conv_out."), "2 missing: conv_out.bias, conv_out.weight"),
        (without(tensors, "conv_in."), "Expected a UNet's checkpoint with conv_in"),
        (
            without(tensors, "down_blocks.0.attentions.0.transformer_blocks.0.attn2."),
            "5 missing: down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        ),
        (without(tensors, "up_blocks.1."), "missing: up_blocks.1.attentions.0.norm"),
    ):
        with pytest.raises(ValueError, match=complaint):
            pretrained.plan("sd15_unet", broken).load(broken)
    # A whole file of another kind.
    with pytest.raises(ValueError, match="unused: conv_norm_out.bias"):
        pretrained.plan("xnemo_reference_unet", tensors).load(tensors)
    with pytest.raises(ValueError, match=r"missing: .*\.motion_modules\."):
        pretrained.plan("xnemo_denoising_unet", tensors).load(tensors)


def without(tensors: dict[str, np.ndarray], beginning: str) -> dict[str, np.ndarray]:
    return {k: x for k, x in tensors.items() if not k.startswith(beginning)}


def test_layouts_and_sizes_that_do_not_exist_are_refused():
    _, tensors = named_tensors.tiny()
    with pytest.raises(ValueError, match="sd15_unet.*got 'sd3'"):
        pretrained.build("sd3", tensors)
    with pytest.raises(ValueError, match="head_width.*got {'depth'}"):
        pretrained.build("sd15_unet", tensors, {"depth": 3})


def test_heads_and_uneven_widths_are_sizes():
    _, tensors = named_tensors.tiny()
    uneven = unet.UNet(
        channels=64,
        multipliers=(1, 1.5),
        blocks=1,
        tokens=(unet.IMAGE, ()),
        heads=(4, 6),
    )
    drawn = named_tensors.of_diffusers(uneven, channels=4, context=24)
    assert pretrained.plan("sd15_unet", drawn, {"head_width": 16}).module == uneven
    for sizes, heads in (({"heads": 2}, (2, 2)), ({"heads": [2, 4]}, (2, 4))):
        assert pretrained.plan("sd21_unet", tensors, sizes).module.heads == heads


def test_half_precision_is_accepted():
    module, tensors = named_tensors.tiny()
    halves = {name: x.astype(np.float16) for name, x in tensors.items()}
    found, variables = pretrained.build("sd15_unet", halves)
    assert found == module
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    kernel = variables["params"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(
        kernel, halves["conv_in.weight"].transpose(2, 3, 1, 0).astype(np.float32)
    )


def test_positions_that_are_no_sinusoids_are_refused():
    name = "attention_blocks.0.pos_encoder.pe"
    stored = np.asarray(attention.frame_positions(32, 24))[None]
    pretrained.check_positions(name, {name: stored.astype(np.float16)})
    with pytest.raises(ValueError, match=name):
        pretrained.check_positions(name, {name: stored[:, ::-1]})
