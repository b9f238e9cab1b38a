"""Attention is one function, however it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.models import attend

MASKS = {
    "none": None,
    "keys": (2, 1, 1, 19),
    "rows": (1, 3, 70, 19),
    "rows of all": (70, 19),
}


def arrays(*batch, queries=70, keys=19, heads=3, width=8):
    sizes = (queries, keys, keys, queries)
    drawn = zip(jax.random.split(jax.random.key(0), 4), sizes, strict=True)
    return [jax.random.normal(key, (*batch, n, heads, width)) for key, n in drawn]


def draw_mask(shape):
    if shape is None:
        return None
    mask = jax.random.bernoulli(jax.random.key(1), 0.4, shape)
    # Someone sees nothing, where that does not mean everyone.
    return mask.at[..., 0, :].set(False) if shape[-2] > 1 else mask


def by_hand(queries, keys, values, mask):
    """The definition, in double precision, query by query."""
    queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
    *batch, count, heads, width = queries.shape
    every = (*batch, heads, count, keys.shape[-3])
    seen = np.broadcast_to(True if mask is None else np.asarray(mask), every)
    out = np.zeros_like(queries)
    for *b, h, q in np.ndindex(*every[:-1]):
        visible = seen[(*b, h, q)]
        if visible.any():
            own = (*b, slice(None), h)
            logits = keys[own][visible] @ queries[(*b, q, h)] / np.sqrt(width)
            weights = np.exp(logits - logits.max())
            out[(*b, q, h)] = weights @ values[own][visible] / weights.sum()
    return out


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_attention_is_its_definition(implementation, shape):
    queries, keys, values, _ = arrays(2)
    mask = draw_mask(shape)
    out = attend.attend(queries, keys, values, mask=mask, implementation=implementation)
    # Round-off of float32 sums of 19 terms of order one.
    np.testing.assert_allclose(out, by_hand(queries, keys, values, mask), atol=2e-6)


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_chunks_have_the_gradients_of_the_whole(shape):
    *operands, upstream = arrays(2)
    mask = draw_mask(shape)

    def gradients(implementation):
        run = functools.partial(attend.attend, mask=mask, implementation=implementation)
        return jax.vjp(run, *operands)[1](upstream)

    for ours, twin in zip(gradients("chunked"), gradients("plain"), strict=True):
        assert jnp.abs(twin).max() > 0.1
        np.testing.assert_allclose(ours, twin, atol=5e-6)
