"""Names of the UNet's parameters in files of diffusers, X-NeMo and CAP4D.

X-NeMo extends diffusers' names; CAP4D keeps those of latent diffusion's own code. Both
tell most of a UNet's fields too: all but heads, and what CAP4D's attention looks along.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from geodiff_jax.models import unet, weights

JOINT = ("view", "h", "w")
Tensors = Mapping[str, np.ndarray]
Places = dict[str, str]
"""Where our submodules are in a file, by their names."""

_DIFFUSERS_RESIDUAL = {
    **weights.norm("norm1", ("norm1",)),
    **weights.conv("conv1", ("conv1",)),
    **weights.dense("time_emb_proj", ("embedding",)),
    **weights.norm("norm2", ("norm2",)),
    **weights.conv("conv2", ("conv2",)),
}
_COMPVIS_RESIDUAL = {
    **weights.norm("in_layers.0", ("norm1",)),
    **weights.conv("in_layers.2", ("conv1",)),
    **weights.dense("emb_layers.1", ("embedding",)),
    **weights.norm("out_layers.0", ("norm2",)),
    **weights.conv("out_layers.3", ("conv2",)),
}


def diffusers_table(module: unet.UNet) -> weights.Table:
    """For files of diffusers and, with expression and temporal modules, of X-NeMo."""
    skip = weights.dense("conv_shortcut", ("skip",))
    places = _diffusers_places(module)
    return {
        **weights.conv("conv_in", ("conv_in",)),
        **weights.dense("time_embedding.linear_1", ("time1",)),
        **weights.dense("time_embedding.linear_2", ("time2",)),
        **_layers(module, places, _DIFFUSERS_RESIDUAL, skip),
        **_head(module, "conv_norm_out", "conv_out"),
    }


def compvis_table(module: unet.UNet) -> weights.Table:
    """For CAP4D's checkpoint, without its prefix."""
    skip = weights.dense("skip_connection", ("skip",))
    places = _compvis_places(module)
    return {
        **weights.conv("input_blocks.0.0", ("conv_in",)),
        **weights.dense("time_embed.0", ("time1",)),
        **weights.dense("time_embed.2", ("time2",)),
        **(weights.dense("cond_linear", ("maps_in",)) if module.maps else {}),
        **_layers(module, places, _COMPVIS_RESIDUAL, skip),
        **_head(module, "out.0", "out.2"),
    }


def stored_positions(module: unet.UNet) -> tuple[str, ...]:
    """X-NeMo's names for positions in time, which are computed here."""
    if not module.temporal_modules:
        return ()
    return tuple(
        f"{place}.transformer_blocks.0.attention_blocks.{i}.pos_encoder.pe"
        for name, place in _diffusers_places(module).items()
        for i in ((0, 1) if "temporal" in name else ())
    )


def _layers(
    module: unet.UNet,
    places: Places,
    residual: weights.Table,
    skip: weights.Table,
) -> weights.Table:
    """Everything that is repeated, by the kind in our names."""
    wider, table = _skips(module), {}
    for name, place in places.items():
        kind = name.split("_")[1].rstrip("0123456789")
        if kind in ("downsample", "upsample"):
            table |= weights.conv(place, (name, "conv"))
            continue
        part = {
            "residual": residual | skip if wider.get(name) else residual,
            "attention": _transformer(module),
            "expression": _TWO_ATTENTIONS,
            "temporal": _TWO_ATTENTIONS,
        }[kind]
        table |= weights.scoped(part, name=f"{place}.", path=(name,))
    return table


def _head(module: unet.UNet, norm: str, conv: str) -> weights.Table:
    if not module.out_channels:
        return {}
    return {**weights.norm(norm, ("norm_out",)), **weights.conv(conv, ("conv_out",))}


def _attention(name: str, path: weights.Path) -> weights.Table:
    table = weights.dense(f"{name}.to_out.0", (*path, "to_out"))
    for part in ("to_q", "to_k", "to_v"):
        table |= weights.dense(f"{name}.{part}", (*path, part), bias=False)
    return table


def _feed_forward() -> weights.Table:
    return {
        **weights.dense("ff.net.0.proj", ("feed_forward", "expand")),
        **weights.dense("ff.net.2", ("feed_forward", "contract")),
    }


def _between_projections(block: weights.Table) -> weights.Table:
    return {
        **weights.norm("norm", ("norm",)),
        **weights.scoped(block, name="transformer_blocks.0.", path=("block",)),
    }


def _transformer(module: unet.UNet) -> weights.Table:
    """Spatial attention."""
    block = {
        **weights.norm("norm1", ("norm1",)),
        **_attention("attn1", ("along", "attention")),
        **weights.norm("norm3", ("norm3",)),
        **_feed_forward(),
    }
    if module.cross_attention:
        block |= weights.norm("norm2", ("norm2",)) | _attention("attn2", ("across",))
    return {
        **_between_projections(block),
        **weights.dense("proj_in", ("proj_in",)),
        **weights.dense("proj_out", ("proj_out",)),
    }


_TWO_ATTENTIONS = {
    **_between_projections(
        {
            **weights.norm("norms.0", ("norm1",)),
            **weights.norm("norms.1", ("norm2",)),
            **weights.norm("ff_norm", ("norm3",)),
            **_attention("attention_blocks.0", ("attention1",)),
            **_attention("attention_blocks.1", ("attention2",)),
            **_feed_forward(),
        }
    ),
    **weights.dense("proj_in", ("block", "proj_in")),
    **weights.dense("proj_out", ("block", "proj_out")),
}
"""Expression and temporal modules."""


def _diffusers_places(module: unet.UNet) -> Places:
    last, places = len(module.multipliers) - 1, {}
    kinds = {"residual": "resnets.{}", "attention": "attentions.{}"}
    if module.expression_modules:
        kinds["expression"] = "motion_modules.{}.temporal_transformer"
    if module.temporal_modules:
        kinds["temporal"] = "temporal_modules.{}.temporal_transformer"
    for where, level, count in _stages(module):
        theirs = {
            "down": f"down_blocks.{level}",
            "middle": "mid_block",
            "up": f"up_blocks.{last - level}",
        }[where.rstrip("0123456789")]
        for (kind, name), i in itertools.product(kinds.items(), range(count)):
            if kind != "attention" or _attends(module, where, level):
                places[f"{where}_{kind}{i}"] = f"{theirs}.{name.format(i)}"
        if where.startswith("down") and level < last:
            places[f"{where}_downsample"] = f"{theirs}.downsamplers.0.conv"
        if where.startswith("up") and level > 0:
            places[f"{where}_upsample"] = f"{theirs}.upsamplers.0.conv"
    places["middle_residual1"] = "mid_block.resnets.1"
    return places


def _compvis_places(module: unet.UNet) -> Places:
    """Blocks are counted through all levels."""
    last, places = len(module.multipliers) - 1, {}
    inward, outward = itertools.count(1), itertools.count()
    for where, level, count in _stages(module):
        attends = _attends(module, where, level)
        for i in range(count):
            block = {
                "down": lambda: f"input_blocks.{next(inward)}",
                "middle": lambda: "middle_block",
                "up": lambda: f"output_blocks.{next(outward)}",
            }[where.rstrip("0123456789")]()
            places[f"{where}_residual{i}"] = f"{block}.0"
            if attends:
                places[f"{where}_attention{i}"] = f"{block}.1"
        if where == "middle":
            places["middle_residual1"] = f"middle_block.{1 + attends}"
        elif where.startswith("down") and level < last:
            places[f"{where}_downsample"] = f"input_blocks.{next(inward)}.0.op"
        elif where.startswith("up") and level > 0:
            places[f"{where}_upsample"] = f"{block}.{1 + attends}.conv"
    return places


def _stages(module: unet.UNet) -> list[tuple[str, int, int]]:
    """(beginning of our names, level, layers) of what a UNet runs through."""
    levels = range(len(module.multipliers))
    return [
        *((f"down{level}", level, module.blocks) for level in levels),
        ("middle", levels[-1], 1),
        *((f"up{level}", level, module.blocks + 1) for level in reversed(levels)),
    ]


def _attends(module: unet.UNet, where: str, level: int) -> bool:
    return bool(module.middle_tokens if where == "middle" else module.tokens[level])


def _skips(module: unet.UNet) -> dict[str, bool]:
    """Whether residual blocks have a skip convolution: where widths differ."""
    widths = module.widths
    width, kept, found = module.channels, [module.channels], {}
    for where, level, count in _stages(module):
        for i in range(count):
            entering = width + (kept.pop() if where.startswith("up") else 0)
            width = widths[level]
            found[f"{where}_residual{i}"] = entering != width
            if where.startswith("down"):
                kept.append(width)
        if where.startswith("down") and level < len(widths) - 1:
            kept.append(width)
    return found


def diffusers_fields(tensors: Tensors) -> dict[str, Any]:
    """The fields that a file of diffusers or X-NeMo tells.

    Raises:
      ValueError: a file that lacks what sizes are read from.
    """
    places = [f"down_blocks.{level}" for level in range(len(tensors))]
    convs = [f"{place}.resnets.0.conv1.weight" for place in places]
    widths = [
        _rows(tensors, n) for n in itertools.takewhile(tensors.__contains__, convs)
    ]
    attends = [f"{place}.attentions.0.norm.weight" in tensors for place in places]
    blocks = (f"down_blocks.0.resnets.{i}.norm1.weight" for i in itertools.count())
    head = "conv_out.weight"
    return {
        **_sizes(_rows(tensors, "conv_in.weight"), widths),
        "blocks": sum(1 for _ in itertools.takewhile(tensors.__contains__, blocks)),
        "tokens": tuple(unet.IMAGE if a else () for a in attends[: len(widths)]),
        "middle_tokens": unet.IMAGE if _mentions(tensors, "mid_block.att") else (),
        "out_channels": _rows(tensors, head) if head in tensors else 0,
        "cross_attention": _mentions(tensors, ".attn2."),
        "expression_modules": _mentions(tensors, ".motion_modules."),
        "temporal_modules": _mentions(tensors, ".temporal_modules."),
    }


def compvis_fields(tensors: Tensors) -> dict[str, Any]:
    """The fields that CAP4D's checkpoint tells, without its prefix.

    Attention looks along views in the middle and wherever the multiplier is not 1:
    CAP4D's rule, which no name tells.

    Raises:
      ValueError: a file that lacks what sizes are read from.
    """
    widths, attends, blocks = [], [], [0]
    for i in range(1, len(tensors)):
        place = f"input_blocks.{i}"
        if f"{place}.0.op.weight" in tensors:
            blocks.append(0)
        elif (conv := f"{place}.0.in_layers.2.weight") in tensors:
            if not blocks[-1]:
                widths.append(_rows(tensors, conv))
                attends.append(f"{place}.1.norm.weight" in tensors)
            blocks[-1] += 1
    sizes = _sizes(_rows(tensors, "input_blocks.0.0.weight"), widths)
    along = [unet.IMAGE if m == 1 else JOINT for m in sizes["multipliers"]]
    return {
        **sizes,
        "blocks": blocks[0],
        "tokens": tuple(
            tokens if attends_here else ()
            for tokens, attends_here in zip(along, attends, strict=True)
        ),
        "middle_tokens": JOINT if "middle_block.1.norm.weight" in tensors else (),
        "out_channels": _rows(tensors, "out.2.weight"),
        "cross_attention": _mentions(tensors, ".attn2."),
        "maps": "cond_linear.weight" in tensors,
    }


def _rows(tensors: Tensors, name: str) -> int:
    """What a layer gives: channels, of its weight [out, in, ...]."""
    if name not in tensors:
        raise ValueError(
            f"Expected a UNet's checkpoint with {name}, from which sizes are read, "
            f"got {len(tensors)} tensors without it."
        )
    return int(tensors[name].shape[0])


def _mentions(tensors: Tensors, part: str) -> bool:
    return any(part in name for name in tensors)


def _sizes(channels: int, widths: list[int]) -> dict[str, Any]:
    multipliers = (w // channels if w % channels == 0 else w / channels for w in widths)
    return {"channels": channels, "multipliers": tuple(multipliers)}
