"""Names of X-NeMo's motion encoder, by our paths.

Their landmark network is face alignment's with attention: it sits under `model.`.
"""

from geodiff_jax.models import weights


def expression_encoder_table(*, depth: int = 4) -> weights.Table:
    """For `ExpressionEncoder` of any widths, with an hourglass of this depth."""
    face = {
        **_convolution("conv1", "stem"),
        **_norm("bn1", "stem_norm"),
        **_block("conv2", ("block1",), shortcut=True),
        **_block("conv3", ("block2",)),
        **_block("conv4", ("block3",), shortcut=True),
        **_hourglass(depth),
        **_block("top_m_0", ("top",)),
        **_convolution("conv_last0", "top_conv"),
        **_norm("bn_end0", "top_norm"),
        **_convolution("l0", "maps_conv"),
        **_norm("bn5", "maps_norm"),
        **_convolution("conv6", "squeeze"),
        **_dense("fc", "to_latent"),
    }
    for i in (1, 2, 3):
        face |= _attention(f"att_{i}", f"attention{i}")
    return {
        **weights.scoped(face, name="model."),
        **_dense("bbox_proj.0", "box1"),
        **_dense("bbox_proj.3", "box2"),
        **_dense("final_proj", "to_tokens"),
    }


def unlearned(table: weights.Table) -> tuple[str, ...]:
    """Names beside this table's that a checkpoint holds and nothing here needs.

    The tokens' fixed positions, and how many batches each norm has seen.
    """
    suffix = ".running_mean"
    norms = (name.removesuffix(suffix) for name in table if name.endswith(suffix))
    return ("pe", *(f"{name}.num_batches_tracked" for name in norms))


def _layer(name: str, path: weights.Path, layout: str, bias: bool) -> weights.Table:
    entries = {"weight": weights.Entry(("params", *path, "kernel"), layout)}
    if bias:
        entries["bias"] = weights.Entry(("params", *path, "bias"))
    return weights.scoped(entries, name=f"{name}.")


def _convolution(name: str, *path: str, bias: bool = True) -> weights.Table:
    return _layer(name, path, "conv", bias)


def _dense(name: str, *path: str, bias: bool = True) -> weights.Table:
    return _layer(name, path, "dense", bias)


def _scale(name: str, *path: str) -> weights.Table:
    """A norm without statistics."""
    return {
        f"{name}.weight": weights.Entry(("params", *path, "scale")),
        f"{name}.bias": weights.Entry(("params", *path, "bias")),
    }


def _norm(name: str, *path: str) -> weights.Table:
    return {
        **_scale(name, *path),
        f"{name}.running_mean": weights.Entry(("batch_stats", *path, "mean")),
        f"{name}.running_var": weights.Entry(("batch_stats", *path, "var")),
    }


def _block(name: str, path: weights.Path, *, shortcut: bool = False) -> weights.Table:
    table = {}
    for i in (1, 2, 3):
        table |= _norm(f"bn{i}", f"norm{i}")
        table |= _convolution(f"conv{i}", f"conv{i}", bias=False)
    if shortcut:
        table |= _norm("downsample.0", "shortcut_norm")
        table |= _convolution("downsample.2", "shortcut", bias=False)
    return weights.scoped(table, name=f"{name}.", path=path)


def _hourglass(depth: int) -> weights.Table:
    table = _block("m0.b2_plus_1", ("hourglass", "bottom"))
    for level in range(1, depth + 1):
        for theirs, ours in (("b1", "skip"), ("b2", "down"), ("b3", "up")):
            table |= _block(f"m0.{theirs}_{level}", ("hourglass", f"{ours}{level}"))
    return table


def _attention(name: str, path: str) -> weights.Table:
    transformer = {
        **_scale("norms.0", "norm1"),
        **_dense("attention_blocks.0.to_q", "attention", "to_q", bias=False),
        **_dense("attention_blocks.0.to_k", "attention", "to_k", bias=False),
        **_dense("attention_blocks.0.to_v", "attention", "to_v", bias=False),
        **_dense("attention_blocks.0.to_out.0", "attention", "to_out"),
        **_scale("ff_norm", "norm2"),
        **_dense("ff.net.0.proj", "feed_forward", "expand"),
        **_dense("ff.net.2", "feed_forward", "contract"),
    }
    table = {
        **_scale("norm", "norm"),
        **_convolution("pos_embed.proj", "proj_in"),
        **weights.scoped(transformer, name="transformer_blocks.0."),
        **_dense("proj_out", "proj_out"),
    }
    return weights.scoped(table, name=f"{name}.", path=(path,))
