"""Names of Stable Diffusion's autoencoder, in the three spellings of its files."""

import dataclasses
from collections.abc import Collection

from geodiff_jax.models import vae, weights


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How files of one kind name the parts; {} are the level and the block in it."""

    down: str
    downsample: str
    up: str
    upsample: str
    shortcut: str
    middle: tuple[str, str]
    """Its two residual blocks."""
    attention: str
    attention_parts: tuple[str, str, str, str, str]
    """Norm, query, key, value and output."""
    norm_out: str
    decoder_counts_from_lowest: bool
    """Whether level 0 of the decoder is the lowest resolution; else the highest."""


DIFFUSERS = Spelling(
    down="down_blocks.{}.resnets.{}",
    downsample="down_blocks.{}.downsamplers.0.conv",
    up="up_blocks.{}.resnets.{}",
    upsample="up_blocks.{}.upsamplers.0.conv",
    shortcut="conv_shortcut",
    middle=("mid_block.resnets.0", "mid_block.resnets.1"),
    attention="mid_block.attentions.0",
    attention_parts=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    norm_out="conv_norm_out",
    decoder_counts_from_lowest=True,
)
OLD_DIFFUSERS = dataclasses.replace(
    DIFFUSERS, attention_parts=("group_norm", "query", "key", "value", "proj_attn")
)
COMPVIS = Spelling(
    down="down.{}.block.{}",
    downsample="down.{}.downsample.conv",
    up="up.{}.block.{}",
    upsample="up.{}.upsample.conv",
    shortcut="nin_shortcut",
    middle=("mid.block_1", "mid.block_2"),
    attention="mid.attn_1",
    attention_parts=("norm", "q", "k", "v", "proj_out"),
    norm_out="norm_out",
    decoder_counts_from_lowest=False,
)
"""Latent diffusion's own; CAP4D's file has it behind `first_stage_model.`."""


def spelling_of(names: Collection[str]) -> Spelling:
    """Which one a file's names follow; DIFFUSERS if they follow none."""
    for spelling in (COMPVIS, OLD_DIFFUSERS):
        query = f"encoder.{spelling.attention}.{spelling.attention_parts[1]}.weight"
        if query in names:
            return spelling
    return DIFFUSERS


def vae_table(
    module: vae.AutoencoderKL, spelling: Spelling = DIFFUSERS
) -> weights.Table:
    """For an autoencoder of the module's sizes."""
    return {
        **weights.scoped(
            _encoder(module, spelling), name="encoder.", path=("encoder",)
        ),
        **weights.scoped(
            _decoder(module, spelling), name="decoder.", path=("decoder",)
        ),
        **weights.dense("quant_conv", ("quant",)),
        **weights.dense("post_quant_conv", ("post_quant",)),
    }


def _encoder(module: vae.AutoencoderKL, spelling: Spelling) -> weights.Table:
    table, width = _ends(spelling), module.channels
    for level, multiplier in enumerate(module.multipliers):
        for i in range(module.blocks):
            wider = width != multiplier * module.channels
            name = spelling.down.format(level, i)
            table |= _block(name, f"down{level}_{i}", spelling, wider)
            width = multiplier * module.channels
        if level < len(module.multipliers) - 1:
            name = spelling.downsample.format(level)
            table |= weights.conv(name, (f"downsample{level}", "conv"))
    return table


def _decoder(module: vae.AutoencoderKL, spelling: Spelling) -> weights.Table:
    table, last = _ends(spelling), len(module.multipliers) - 1
    width = module.multipliers[last] * module.channels
    for level in range(last, -1, -1):
        theirs = last - level if spelling.decoder_counts_from_lowest else level
        for i in range(module.blocks + 1):
            wider = width != module.multipliers[level] * module.channels
            name = spelling.up.format(theirs, i)
            table |= _block(name, f"up{level}_{i}", spelling, wider)
            width = module.multipliers[level] * module.channels
        if level:
            name = spelling.upsample.format(theirs)
            table |= weights.conv(name, (f"upsample{level}", "conv"))
    return table


def _ends(spelling: Spelling) -> weights.Table:
    """What encoder and decoder have alike: first and last layers, and the middle."""
    norm, *linear = spelling.attention_parts
    attention = weights.norm(norm, ("norm",))
    for name, path in zip(linear, ("to_q", "to_k", "to_v", "to_out"), strict=True):
        attention |= weights.dense(name, (path,))
    middle = weights.scoped(
        attention, name=f"{spelling.attention}.", path=("attention",)
    )
    for i, name in enumerate(spelling.middle, 1):
        middle |= _block(name, f"block{i}", spelling, False)
    return {
        **weights.conv("conv_in", ("conv_in",)),
        **weights.scoped(middle, path=("middle",)),
        **weights.norm(spelling.norm_out, ("norm_out",)),
        **weights.conv("conv_out", ("conv_out",)),
    }


def _block(name: str, path: str, spelling: Spelling, wider: bool) -> weights.Table:
    """A residual block; `wider` or narrower ones have a shortcut."""
    table = {
        **weights.norm("norm1", ("norm1",)),
        **weights.conv("conv1", ("conv1",)),
        **weights.norm("norm2", ("norm2",)),
        **weights.conv("conv2", ("conv2",)),
    }
    if wider:
        table |= weights.dense(spelling.shortcut, ("skip",))
    return weights.scoped(table, name=f"{name}.", path=(path,))
