"""Laws of attention over the axes of a clip: who sees whom, and who does not."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from geodiff_jax.models import attend, attention, weights

UNOPTIMISED = {"xla_backend_optimization_level": 0}
SHAPE = (2, 2, 3, 2, 2, 4, 8)
"""batch, domain, view, time, h, w, c: no two neighbours alike where it matters."""


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomized(shapes):
    """Random everywhere, also where training starts at zero."""

    def draw(path, leaf):
        seed = zlib.crc32(jax.tree_util.keystr(path).encode())
        return normal(*leaf.shape, seed=seed) / math.sqrt(leaf.shape[0])

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(module: nn.Module):
    return jax.jit(module.apply)


@pytest.mark.parametrize(
    "tokens",
    [("h", "w"), ("domain", "h", "w"), ("time",), ("w", "view"), ("view", "h")],
)
def test_folding_is_undone_and_keeps_tokens_in_order(tokens):
    x = normal(*SHAPE)
    folded = attention.fold(x, tokens)
    np.testing.assert_array_equal(attention.unfold(folded, tokens, SHAPE), x)
    others = [axis for axis in attention.AXES[1:] if axis not in tokens]
    order = [attention.AXES.index(a) for a in ("batch", *others, *tokens)]
    # Every element has its number in the order of axes that is asked for.
    places = np.indices(SHAPE[:-1])[order]
    numbers = np.ravel_multi_index(tuple(places), [SHAPE[axis] for axis in order])
    flat = np.asarray(folded).reshape(-1, 8)
    np.testing.assert_array_equal(flat[numbers], x)


@pytest.mark.parametrize("tokens", [(), ("batch", "h"), ("depth",), ("h", "h")])
def test_what_are_no_axes_or_never_mix_is_refused(tokens):
    with pytest.raises(ValueError, match="Expected some of"):
        attention.fold(normal(*SHAPE), tokens)


@pytest.mark.parametrize(
    "tokens",
    [("h", "w"), ("domain", "h", "w"), ("view", "h", "w"), ("time",), ("view",)],
)
def test_axes_that_are_not_tokens_never_mix_and_tokens_do(tokens):
    module, x = attention.AxisAttention(2, tokens), normal(*SHAPE)
    variables = randomized(weights.template(module, x))
    place = (1, 0, 2, 1, 0, 3)
    before = compiled(module)(variables, x)
    changed = compiled(module)(variables, x.at[place].add(1.0)) != before
    reached = np.zeros(SHAPE[:-1], bool)
    # Everything that differs from the place along axes of tokens only.
    reached[
        tuple(
            slice(None) if axis in tokens else at
            for axis, at in zip(attention.AXES, place, strict=True)
        )
    ] = True
    np.testing.assert_array_equal(changed.any(-1), reached)


def test_axis_attention_is_attention_over_what_is_folded():
    module, x = attention.AxisAttention(2, ("domain", "w")), normal(*SHAPE)
    variables = randomized(weights.template(module, x))
    kernels = {k: v["kernel"] for k, v in variables["params"]["attention"].items()}
    found = compiled(module)(variables, x)
    for b, v, t, h in np.ndindex(2, 3, 2, 2):
        tokens = x[b, :, v, t, h].reshape(-1, 8)
        heads = (tokens @ kernels[k] for k in ("to_q", "to_k", "to_v"))
        q, k, value = (y.reshape(-1, 2, 4) for y in heads)
        logits = np.einsum("qnd,knd->nqk", q, k) / 2.0
        share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        seen = np.einsum("nqk,knd->qnd", share, value).reshape(-1, 8)
        expected = seen @ kernels["to_out"]
        expected += variables["params"]["attention"]["to_out"]["bias"]
        np.testing.assert_allclose(
            found[b, :, v, t, h].reshape(-1, 8), expected, atol=1e-5
        )


def test_a_bank_is_more_tokens_for_those_who_read_it():
    # Of one view: its bank is what a second view's hidden states would be.
    whole = normal(2, 1, 2, 1, 2, 4, 8)
    joint = attention.AxisAttention(2, ("view", "h", "w"))
    variables = randomized(weights.template(joint, whole))
    alone, other = whole[:, :, :1], whole[:, 0, 1].reshape(2, 8, 8)
    run = compiled(attention.AxisAttention(2))
    expected = compiled(joint)(variables, whole)[:, :, :1]
    np.testing.assert_allclose(run(variables, alone, other), expected, atol=1e-6)
    reads = run(variables, alone, other, jnp.asarray([False, True]))
    np.testing.assert_allclose(reads[1], expected[1], atol=1e-6)
    np.testing.assert_allclose(reads[0], run(variables, alone)[0], atol=1e-6)


def test_every_domain_view_and_frame_reads_the_same_bank():
    module, bank = attention.AxisAttention(2), normal(2, 5, 8, seed=1)
    x = jnp.broadcast_to(normal(2, 1, 1, 1, 2, 4, 8), SHAPE)
    variables = randomized(weights.template(module, x))
    found = compiled(module)(variables, x, bank)
    np.testing.assert_allclose(
        found, jnp.broadcast_to(found[:, :1, :1, :1], SHAPE), atol=1e-6
    )


def test_queries_and_keys_are_sown_for_losses_on_maps():
    module, x = attention.AxisAttention(2, ("view", "h", "w")), normal(*SHAPE)
    variables = randomized(weights.template(module, x))
    assert set(variables) == {"params"}

    def loss(params):
        _, state = module.apply(
            {"params": params}, x, normal(2, 5, 8), mutable=["intermediates"]
        )
        sown = state["intermediates"]["attention"]
        (query,), (key,) = sown["query"], sown["key"]
        assert query.shape == key.shape == (2, 4, 24, 2, 4)
        return jnp.square(attend.attention_weights(query, key)).sum()

    slopes = jax.jit(jax.grad(loss))(variables["params"])["attention"]
    moved = {name for name, g in slopes.items() if jnp.any(g["kernel"] != 0)}
    assert moved == {"to_q", "to_k"}


def test_cross_attention_sees_the_tokens_of_its_own_image():
    module, x = attention.TransformerBlock(2), normal(*SHAPE)
    context = normal(2, 1, 3, 1, 5, 6, seed=1)
    variables = randomized(weights.template(module, x, context))
    run = compiled(module)
    before, seen = run(variables, x, context)
    after, still = run(variables, x, context.at[1, 0, 2, 0, 4].add(1.0))
    reached = np.zeros(SHAPE[:-1], bool)
    reached[1, :, 2] = True
    np.testing.assert_array_equal((after != before).any(-1), reached)
    np.testing.assert_array_equal(seen, still)


def test_new_modules_are_the_identity_at_the_start():
    x, key = normal(*SHAPE), jax.random.key(0)
    tokens = normal(2, 1, 1, 2, 5, 6, seed=1)
    for module, given in (
        (attention.TemporalModule(2), ()),
        (attention.ExpressionModule(2), (tokens,)),
        (attention.SpatialTransformer(2), ()),
    ):
        start = jax.jit(module.init_with_output, compiler_options=UNOPTIMISED)
        found, _ = start(key, x, *given)
        found = found[0] if isinstance(found, tuple) else found
        np.testing.assert_array_equal(found, x)


def test_padded_frames_are_not_seen():
    module, x = attention.TemporalModule(2), normal(2, 1, 1, 5, 2, 2, 8)
    variables = randomized(weights.template(module, x))
    frames = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    run = compiled(module)
    found = run(variables, x, frames)
    other = run(variables, x.at[1, :, :, 3:].set(9.0), frames)
    np.testing.assert_array_equal(found[1, :, :, :3], other[1, :, :, :3])
    short = run(variables, x[1:, :, :, :3])
    np.testing.assert_allclose(found[1:, :, :, :3], short, atol=1e-6)
    np.testing.assert_allclose(found[0], run(variables, x)[0], atol=1e-6)


def test_temporal_modules_know_the_order_of_frames():
    module, x = attention.TemporalModule(2), normal(1, 1, 1, 4, 1, 2, 8)
    variables = randomized(weights.template(module, x))
    run = compiled(module)
    backwards = run(variables, x[:, :, :, ::-1])[:, :, :, ::-1]
    assert jnp.abs(run(variables, x) - backwards).max() > 1e-2


def test_positions_of_frames_are_interleaved_sinusoids():
    found = attention.frame_positions(32, 6)
    for frame, channel in np.ndindex(32, 6):
        angle = frame / 10_000 ** (channel // 2 * 2 / 6)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert abs(found[frame, channel] - expected) < 1e-5


def test_heads_that_do_not_divide_channels_are_refused():
    with pytest.raises(ValueError, match="3 heads divide, got 8"):
        weights.template(attention.AxisAttention(3), normal(*SHAPE))
