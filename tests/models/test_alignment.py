"""Attention alignment: what corresponds is found, what is hidden does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geodiff_jax.models import alignment

SIDE, VIEWS, HEADS, WIDTH = 8, 2, 2, 16  # A power of two: texel centres are exact.
KEY = jax.random.key(0)
see = jax.jit(alignment.correspondences, static_argnames="size")
hit_rate = jax.jit(alignment.hit_rate)
loss_and_slopes = jax.jit(jax.value_and_grad(alignment.alignment_loss, argnums=(0, 1)))


def scene():
    """Two views of a chart of 8 x 8 texels: one straight on, one turned and cropped."""
    axis = (np.arange(SIDE) + 0.5) / SIDE
    u, v = np.meshgrid(axis, 1.0 - axis)
    straight = np.stack([u, v], axis=-1)
    turned = straight[::-1, :, ::-1]
    visible = np.ones((VIEWS, SIDE, SIDE), bool)
    visible[1, :, :2] = False
    return jnp.asarray(np.stack([straight, turned]), jnp.float32), jnp.asarray(visible)


@settings(max_examples=25, deadline=None)
@given(u=st.floats(0.0, 1.0), v=st.floats(0.0, 1.0))
def test_weights_interpolate_the_chart(u, v):
    """Weighted texel centres give the place back, where it lies between centres."""
    uv = jnp.asarray([u, v], jnp.float32).reshape(1, 1, 1, 2)
    weights = see(uv, jnp.ones((1, 1, 1), bool), size=SIDE)
    grid = np.asarray(weights).reshape(SIDE, SIDE)
    axis = (np.arange(SIDE) + 0.5) / SIDE
    inside = np.clip([u, v], axis[0], axis[-1])
    found = [grid.sum(0) @ axis, grid.sum(1) @ (1.0 - axis)]
    np.testing.assert_allclose(found, inside, atol=1e-5)  # float32
    np.testing.assert_allclose(grid.sum(), 1.0, atol=1e-5)


def test_what_is_not_visible_sees_nothing():
    uv, visible = scene()
    weights = see(uv, visible, size=SIDE)
    np.testing.assert_allclose(
        weights.sum(-1), visible.reshape(VIEWS, -1).astype(float), atol=1e-5
    )


def streams(params, tokens):
    """Queries and keys of (slots, p) tokens by one layer's own projections."""
    shape = (*tokens.shape[:2], HEADS, WIDTH)
    return [(tokens @ params[name]).reshape(shape) for name in ("to_q", "to_k")]


@pytest.fixture(scope="module")
def trained():
    """Two hundred steps on a toy pair of streams, by the loss alone."""
    uv, visible = scene()
    weights = see(uv, visible, size=SIDE)
    keys = jax.random.split(KEY, 3)
    tokens = jax.random.normal(keys[0], (VIEWS + 1, SIDE * SIDE, 48))
    initial = {
        name: 0.1 * jax.random.normal(key, (48, HEADS * WIDTH))
        for name, key in zip(("to_q", "to_k"), keys[1:], strict=True)
    }

    def loss(params):
        return alignment.alignment_loss(*streams(params, tokens), weights)

    optimizer = optax.adam(1e-2)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, slope = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=200)

    (params, _), losses = run(initial)
    return initial, params, tokens, weights, losses, loss


def test_two_hundred_steps_find_the_correspondences(trained):
    initial, params, tokens, weights, losses, _ = trained
    before = hit_rate(*streams(initial, tokens), weights)
    after = hit_rate(*streams(params, tokens), weights)
    assert before < 0.2 and after >= 0.8 and losses[-1] < 0.5 * losses[0]


def test_gradients_reach_queries_and_keys_of_both_streams(trained):
    _, params, tokens, weights, _, _ = trained
    queries, keys = streams(params, tokens)
    for slope in loss_and_slopes(queries, keys, weights)[1]:
        assert jnp.isfinite(slope).all()
        assert (jnp.abs(slope).max(axis=(1, 2, 3)) > 0).all()  # Every slot.


def test_hidden_tokens_have_no_say(trained):
    """Their queries change nothing; their keys only what texels would look at."""
    _, params, tokens, weights, _, _ = trained
    queries, keys = streams(params, tokens)
    moved = queries.at[1, 0].add(3.0)  # Row 0, column 0 of the second view: hidden.
    np.testing.assert_array_equal(
        loss_and_slopes(queries, keys, weights)[0],
        loss_and_slopes(moved, keys, weights)[0],
    )


def test_nothing_visible_is_no_loss():
    tokens = jax.random.normal(KEY, (VIEWS + 1, SIDE**2, HEADS, WIDTH))
    loss, slopes = loss_and_slopes(tokens, tokens, jnp.zeros((VIEWS, SIDE**2, SIDE**2)))
    assert loss == 0 and all((slope == 0).all() for slope in slopes)


def test_the_best_attention_has_the_entropy_of_its_target():
    """Where queries meet only their own texel, nothing is left to lose."""
    identity = 100.0 * jnp.eye(SIDE * SIDE)[None, :, None, :]
    tokens = jnp.concatenate([identity, identity])
    uv, _ = scene()
    one = see(uv[:1], jnp.ones((1, SIDE, SIDE), bool), size=SIDE)
    loss = loss_and_slopes(tokens, tokens, one)[0]
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)


def test_logits_are_float32_in_any_precision():
    """Of the same rounded numbers; products in bfloat16 would be off by up to 0.5."""
    shape = (VIEWS + 1, SIDE * SIDE, HEADS, 64)
    drawn = jax.random.normal(KEY, (2, *shape), jnp.bfloat16)
    queries, keys = 4.0 * drawn
    weights = see(*scene(), size=SIDE)
    # Not jitted: XLA may keep float32 between two operations of bfloat16.
    half = alignment.alignment_loss(queries, keys, weights)
    exact = alignment.alignment_loss(
        queries.astype(jnp.float32), keys.astype(jnp.float32), weights
    )
    np.testing.assert_allclose(half, exact, rtol=1e-6)
