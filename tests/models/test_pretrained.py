"""Everyone's weights: numbers of their own modules, and files that must fit."""

import functools

import jax
import numpy as np
import pytest

from geodiff_jax.models import pretrained
from tests.conftest import shared_data


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
