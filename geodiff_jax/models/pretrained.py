"""Other people's checkpoints as modules of ours.

A layout is the kind of file: which names it has, and what it does not tell of sizes.

| layout | module | sizes it does not tell, by default |
|---|---|---|
| sd15_unet, sd21_unet | UNet | heads 8; head_width 64 |
| sd15_vae, sd21_vae | AutoencoderKL | |
| cap4d_mmdm_100k | UNet and AutoencoderKL, or the one that is there | head_width 64 |
| xnemo_reference_unet, xnemo_denoising_unet | UNet | heads 8, module_heads 8 |
| xnemo_motion_encoder | ExpressionEncoder | heads 8, token_width 16 |

X-NeMo's denoising UNet comes in two files, whose tensors are to be merged:
xnemo_denoising_unet.pth and xnemo_temporal_module.pth.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from geodiff_jax.models import (
    attention,
    expression_encoder,
    names_expression,
    names_unet,
    names_vae,
    unet,
    vae,
    weights,
)

Tensors = Mapping[str, np.ndarray]
Sizes = Mapping[str, Any]

CAP4D_PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
CAP4D_UNUSED = ("logvar", "cond_stage_model.")
"""Variances that its loss ignores, and what its conditioning computes from FLAME."""
HALF_PRECISION = 2e-3
"""Of positions stored in float16, which are at most 1."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a checkpoint becomes a module, before any tensor is touched."""

    module: nn.Module
    table: weights.Table
    template: dict[str, Any]
    """Shapes and dtypes of the module's variables."""
    unused: tuple[str, ...] = ()
    """Names, or beginnings of names, that a file may hold and nothing needs."""

    def load(self, tensors: Tensors) -> dict[str, Any]:
        """Variables on the host.

        Raises:
          ValueError: tensors that are missing, unused or misshapen, by name.
        """
        variables, report = weights.fill(self.template, self.table, tensors)
        weights.demand(report, expected=self.unused)
        return variables


def build(
    layout: str, tensors: Tensors, sizes: Sizes | None = None
) -> tuple[Any, dict[str, Any]]:
    """A module and its variables, of all tensors of a checkpoint.

    Args:
      layout: see the table above; tensors have the names of that kind of file.
      tensors: any precision; variables are float32.
      sizes: fields of the module, where the defaults differ, such as `dtype`. Most are
        read off the tensors. `heads` may be one number for all levels, and `head_width`
        stands for it. CAP4D's are those of the UNet.

    Returns:
      (module, variables). CAP4D's whole checkpoint gives dicts of them, with "unet" and
      "vae"; tensors of one alone give that one.

    Raises:
      ValueError: another layout, sizes that are no fields, and tensors that are
        missing, unused or misshapen, all by name.
    """
    if layout != "cap4d_mmdm_100k":
        made = plan(layout, tensors, sizes)
        return made.module, _on_device(made.load(tensors))
    plans = cap4d_plans(tensors, sizes)
    modules = {part: made.module for part, (made, _) in plans.items()}
    variables = {
        part: _on_device(made.load(own)) for part, (made, own) in plans.items()
    }
    if len(plans) == 1:
        return modules.popitem()[1], variables.popitem()[1]
    return modules, variables


def plan(layout: str, tensors: Tensors, sizes: Sizes | None = None) -> Plan:
    """Of a file with one module: all layouts of `build` but CAP4D's whole checkpoint.

    Tensors may be anything with shapes. Raises as `build` does.
    """
    planners: dict[str, Callable[[Tensors, dict[str, Any]], Plan]] = {
        "sd15_unet": _sd15,
        "sd21_unet": _sd21,
        "xnemo_reference_unet": _xnemo_reference,
        "xnemo_denoising_unet": _xnemo_denoising,
        "xnemo_motion_encoder": _encoder,
        "sd15_vae": _vae,
        "sd21_vae": _vae,
    }
    if layout not in planners:
        raise ValueError(
            f"Expected a layout of {[*planners, 'cap4d_mmdm_100k']}, got {layout!r}."
        )
    return planners[layout](tensors, dict(sizes or {}))


def cap4d_plans(
    tensors: Tensors, sizes: Sizes | None = None
) -> dict[str, tuple[Plan, Tensors]]:
    """Plans for the parts of CAP4D's checkpoint that are there, with their tensors.

    Raises as `build` does.
    """
    planners = {"unet": _mmdm, "vae": _vae}
    plans, rest = {}, dict(tensors)
    for part, prefix in CAP4D_PARTS.items():
        own = {
            name.removeprefix(prefix): rest.pop(name)
            for name in tensors
            if name.startswith(prefix)
        }
        if own:
            made = planners[part](own, dict(sizes or {}) if part == "unet" else {})
            plans[part] = made, own
    leftover = weights.Report(unused=tuple(sorted(rest)))
    weights.demand(leftover, expected=CAP4D_UNUSED)
    if not plans:
        raise ValueError(
            f"Expected tensors behind {' or '.join(CAP4D_PARTS.values())}, got "
            f"{len(tensors)} others; is it CAP4D's checkpoint?"
        )
    return plans


def _on_device(variables: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, variables)


def _sd15(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    return _diffusers(tensors, sizes, {"heads": 8})


def _sd21(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    return _diffusers(tensors, sizes, {"head_width": 64})


def _xnemo_reference(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    return _diffusers(tensors, {"out_channels": 0} | sizes, {"heads": 8})


def _xnemo_denoising(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    return _diffusers(tensors, sizes, {"heads": 8}, modules=True)


def _diffusers(
    tensors: Tensors,
    sizes: dict[str, Any],
    default: dict[str, int],
    *,
    modules: bool = False,
) -> Plan:
    """What the kind of file must have is demanded, so that half a file is refused."""
    told = names_unet.diffusers_fields(tensors)
    told["out_channels"] = told["out_channels"] or 4
    told |= {"cross_attention": True}
    told |= {"expression_modules": modules, "temporal_modules": modules}
    module = _unet(told, sizes, default)
    positions = names_unet.stored_positions(module)
    for name in positions:
        check_positions(name, tensors)
    inputs = {
        "context": _inputs(tensors, ".attn2.to_k."),
        "expression": _inputs(tensors, ".attention_blocks.0.to_k.", "motion_modules"),
    }
    return Plan(
        module,
        names_unet.diffusers_table(module),
        unet_template(module, tensors["conv_in.weight"].shape[1], inputs),
        positions,
    )


def _mmdm(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    told = names_unet.compvis_fields(tensors) | {"cross_attention": False, "maps": True}
    module = _unet(told, sizes, {"head_width": 64})
    inputs = {"maps": _inputs(tensors, "cond_linear.")}
    channels = tensors["input_blocks.0.0.weight"].shape[1]
    return Plan(
        module,
        names_unet.compvis_table(module),
        unet_template(module, channels, inputs),
    )


def _unet(
    told: dict[str, Any], sizes: dict[str, Any], default: dict[str, int]
) -> unet.UNet:
    """Of what the tensors tell and the sizes, which overrule it.

    `default` is a number of heads or their width, for sizes with neither.
    """
    fields = {f.name for f in dataclasses.fields(unet.UNet)}
    _refuse_unknown(sizes, fields | {"head_width"})
    told = told | ({} if sizes.keys() & {"heads", "head_width"} else default) | sizes
    heads, head_width = told.pop("heads", None), told.pop("head_width", None)
    module = unet.UNet(**told, heads=())
    if heads is None:
        heads = [width // head_width for width in module.widths]
    per_level = np.broadcast_to(heads, len(module.widths))
    return module.clone(heads=tuple(int(number) for number in per_level))


def _refuse_unknown(sizes: dict[str, Any], allowed: set[str]) -> None:
    unknown = sizes.keys() - allowed
    if unknown:
        raise ValueError(f"Expected sizes among {sorted(allowed)}, got {unknown}.")


def unet_template(
    module: unet.UNet, channels: int, inputs: Mapping[str, int | None]
) -> dict[str, Any]:
    """Of a UNet that takes so many channels, and signals of these widths by name."""
    side = 2 ** (len(module.multipliers) - 1)
    shapes = {
        "context": (1, 1, 1, 1, 1),
        "expression": (1, 1, 1, 1, 1),
        "maps": (1, 1, 1, 1, side, side),
    }
    wanted = {
        "context": module.cross_attention,
        "expression": module.expression_modules,
        "maps": module.maps,
    }
    signals = {
        name: jnp.zeros((*shapes[name], inputs.get(name) or 1))
        for name, is_wanted in wanted.items()
        if is_wanted
    }
    x = jnp.zeros((1, 1, 1, 1, side, side, channels))
    return weights.template(module, x, jnp.zeros(()), **signals)


def _inputs(tensors: Tensors, part: str, other: str = "") -> int | None:
    """What a layer takes: channels, of the first weight whose name has both parts."""
    for name, tensor in tensors.items():
        if part in name and other in name and name.endswith("weight"):
            return int(tensor.shape[1])
    return None


def check_positions(name: str, tensors: Tensors) -> None:
    """They are computed here, so what is stored must agree; it may also be absent.

    Raises:
      ValueError: other positions.
    """
    if name not in tensors:
        return
    stored = np.asarray(tensors[name], np.float32)
    computed = attention.frame_positions(*stored.shape[-2:])
    if not np.allclose(stored, computed, atol=HALF_PRECISION):
        raise ValueError(
            f"Expected sines and cosines in {name}, got other values; these temporal "
            "modules count frames in another way."
        )


def _vae(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    spelling = names_vae.spelling_of(tensors)
    _refuse_unknown(sizes, {f.name for f in dataclasses.fields(vae.AutoencoderKL)})

    def rows(name: str) -> int:
        if name not in tensors:
            raise ValueError(f"Expected an autoencoder with {name}, got none.")
        return int(tensors[name].shape[0])

    def conv(level: int, i: int) -> str:
        return f"encoder.{spelling.down.format(level, i)}.conv1.weight"

    def there(names: Any) -> list[str]:
        return list(itertools.takewhile(tensors.__contains__, names))

    channels = rows("encoder.conv_in.weight")
    levels = there(conv(level, 0) for level in itertools.count())
    told = {
        "channels": channels,
        "multipliers": tuple(rows(name) // channels for name in levels),
        "blocks": len(there(conv(0, i) for i in itertools.count())),
        "latent_channels": rows("quant_conv.weight") // 2,
    }
    module = vae.AutoencoderKL(**{**told, **sizes})
    pixels = jnp.zeros((1, module.factor, module.factor, 3))
    table = names_vae.vae_table(module, spelling)
    return Plan(module, table, weights.template(module, pixels))


def _encoder(tensors: Tensors, sizes: dict[str, Any]) -> Plan:
    cls = expression_encoder.ExpressionEncoder
    _refuse_unknown(sizes, {f.name for f in dataclasses.fields(cls)})
    sizes = {"heads": 8, "token_width": 16} | sizes

    def shape(name: str) -> tuple[int, ...]:
        if f"{name}.weight" not in tensors:
            raise ValueError(f"Expected a motion encoder with {name}.weight, got none.")
        return tuple(tensors[f"{name}.weight"].shape)

    branches = (f"model.m0.b1_{i}.conv1.weight" for i in itertools.count(1))
    patches = [shape(f"model.att_{i}.pos_embed.proj") for i in (1, 2, 3)]
    told = {
        "width": shape("model.conv_last0")[0],
        "maps": shape("model.l0")[0],
        "depth": len(list(itertools.takewhile(tensors.__contains__, branches))),
        "patches": tuple(patch[-1] for patch in patches),
        "head_width": patches[0][0] // sizes["heads"],
        "latent": shape("model.fc")[0],
        "tokens": shape("final_proj")[0] // sizes["token_width"],
        "box_width": shape("bbox_proj.0")[0],
    }
    module = cls(**{**told, **sizes})
    # Maps of an eighth of the crop's size are squeezed by half: fc takes their pixels.
    side = 8 * math.isqrt(shape("model.fc")[1])
    table = names_expression.expression_encoder_table(depth=module.depth)
    template = weights.template(module, jnp.zeros((1, side, side, 3)))
    return Plan(module, table, template, names_expression.unlearned(table))
