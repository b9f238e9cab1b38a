"""Names of X-NeMo's motion encoder, by our paths.

Their landmark network is face alignment's with attention: it sits under `model.`.
"""

from geodiff_jax.models import weights


def expression_encoder_table(*, depth: int = 4) -> weights.Table:
    """For `ExpressionEncoder` of any widths, with an hourglass of this depth."""
    face = {
        **weights.conv("conv1", ("stem",)),
        **_norm("bn1", "stem_norm"),
        **_block("conv2", ("block1",), shortcut=True),
        **_block("conv3", ("block2",)),
        **_block("conv4", ("block3",), shortcut=True),
        **_hourglass(depth),
        **_block("top_m_0", ("top",)),
        **weights.conv("conv_last0", ("top_conv",)),
        **_norm("bn_end0", "top_norm"),
        **weights.conv("l0", ("maps_conv",)),
        **_norm("bn5", "maps_norm"),
        **weights.conv("conv6", ("squeeze",)),
        **weights.dense("fc", ("to_latent",)),
    }
    for i in (1, 2, 3):
        face |= _attention(f"att_{i}", f"attention{i}")
    return {
        **weights.scoped(face, name="model."),
        **weights.dense("bbox_proj.0", ("box1",)),
        **weights.dense("bbox_proj.3", ("box2",)),
        **weights.dense("final_proj", ("to_tokens",)),
    }


def unlearned(table: weights.Table) -> tuple[str, ...]:
    """Names beside this table's that a checkpoint holds and nothing here needs.

    The tokens' fixed positions, and how many batches each norm has seen.
    """
    suffix = ".running_mean"
    norms = (name.removesuffix(suffix) for name in table if name.endswith(suffix))
    return ("pe", *(f"{name}.num_batches_tracked" for name in norms))


def _norm(name: str, *path: str) -> weights.Table:
    return {
        **weights.norm(name, path),
        f"{name}.running_mean": weights.Entry(("batch_stats", *path, "mean")),
        f"{name}.running_var": weights.Entry(("batch_stats", *path, "var")),
    }


def _block(name: str, path: weights.Path, *, shortcut: bool = False) -> weights.Table:
    table = {}
    for i in (1, 2, 3):
        table |= _norm(f"bn{i}", f"norm{i}")
        table |= weights.conv(f"conv{i}", (f"conv{i}",), bias=False)
    if shortcut:
        table |= _norm("downsample.0", "shortcut_norm")
        table |= weights.conv("downsample.2", ("shortcut",), bias=False)
    return weights.scoped(table, name=f"{name}.", path=path)


def _hourglass(depth: int) -> weights.Table:
    table = _block("m0.b2_plus_1", ("hourglass", "bottom"))
    for level in range(1, depth + 1):
        for theirs, ours in (("b1", "skip"), ("b2", "down"), ("b3", "up")):
            table |= _block(f"m0.{theirs}_{level}", ("hourglass", f"{ours}{level}"))
    return table


def _attention(name: str, path: str) -> weights.Table:
    attention = {
        **weights.dense("to_q", ("to_q",), bias=False),
        **weights.dense("to_k", ("to_k",), bias=False),
        **weights.dense("to_v", ("to_v",), bias=False),
        **weights.dense("to_out.0", ("to_out",)),
    }
    transformer = {
        **weights.norm("norms.0", ("norm1",)),
        **weights.scoped(attention, name="attention_blocks.0.", path=("attention",)),
        **weights.norm("ff_norm", ("norm2",)),
        **weights.dense("ff.net.0.proj", ("feed_forward", "expand")),
        **weights.dense("ff.net.2", ("feed_forward", "contract")),
    }
    table = {
        **weights.norm("norm", ("norm",)),
        **weights.conv("pos_embed.proj", ("proj_in",)),
        **weights.scoped(transformer, name="transformer_blocks.0."),
        **weights.dense("proj_out", ("proj_out",)),
    }
    return weights.scoped(table, name=f"{name}.", path=(path,))
