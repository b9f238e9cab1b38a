"""Attention is one function, however it is computed."""

import functools
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax import sharding
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


def test_heads_at_once_are_heads_in_turn(monkeypatch):
    """What other devices than CPUs run."""
    *operands, upstream = arrays(2)
    mask = draw_mask(MASKS["rows"])
    run = functools.partial(attend.attend, mask=mask, implementation="chunked")
    out, pull = jax.vjp(run, *operands)
    monkeypatch.setattr(attend, "_one_by_one", lambda: False)
    other, pull_other = jax.vjp(run, *operands)
    for one, two in zip(
        (out, *pull(upstream)), (other, *pull_other(upstream)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_weights_are_those_of_attention():
    queries, keys, values, _ = arrays(2)
    mask = draw_mask(MASKS["rows"])
    weights = attend.attention_weights(queries, keys, mask=mask)
    assert weights.shape == (2, 3, 70, 19) and weights.dtype == jnp.float32
    sums = np.asarray(weights.sum(-1))
    # Either a whole, or nothing where nothing is seen.
    np.testing.assert_allclose(
        sums, np.asarray(mask.any(-1)) * np.ones_like(sums), atol=1e-6
    )
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
    np.testing.assert_allclose(
        out, attend.attend(queries, keys, values, mask=mask), atol=2e-6
    )


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_half_precision_is_summed_in_float32(implementation):
    operands = [x.astype(jnp.bfloat16) for x in arrays(2)[:3]]
    out = attend.attend(*operands, implementation=implementation)
    assert out.dtype == jnp.bfloat16
    whole = attend.attend(*(x.astype(jnp.float32) for x in operands))
    # Queries, weights and results round to 8 bits each.
    np.testing.assert_allclose(out.astype(jnp.float32), whole, atol=0.02)


@pytest.mark.parametrize(
    ("queries", "keys", "masked"),
    [(256, 256, False), (300, 77, True), (512, 1100, False)],
)
def test_splash_lowers_for_tpus_with_its_gradient(queries, keys, masked):
    *operands, upstream = arrays(2, queries=queries, keys=keys, heads=2, width=40)
    mask = draw_mask((2, 1, 1, keys)) if masked else None

    def both(*operands):
        run = functools.partial(attend.attend, mask=mask, implementation="splash")
        out, pull = jax.vjp(run, *operands)
        return out, pull(upstream)

    lowered = jax.jit(both).trace(*operands).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") >= 2
    out, gradients = jax.eval_shape(both, *operands)
    for ours, theirs in zip((out, *gradients), (operands[0], *operands), strict=True):
        assert ours.shape == theirs.shape


ON_A_MESH = """
import jax, json
from geodiff_jax import sharding
from geodiff_jax.models import attend
from tests.models.test_attend import arrays, draw_mask

def both(implementation, masked, heads):
    *operands, upstream = arrays(4, queries=70, keys=90, heads=heads, width=8)
    mask = draw_mask((4, 1, 1, 90)) if masked else None
    def run(*operands):
        return attend.attend(*operands, mask=mask, implementation=implementation)
    def outs(*operands):
        out, pull = jax.vjp(run, *operands)
        return out, pull(upstream)
    return outs, operands

cases = ("chunked", False, 4), ("chunked", True, 4), ("plain", True, 3)
for implementation, masked, heads in (*cases, ("chunked", True, 1)):
    outs, operands = both(implementation, masked, heads)
    alone = jax.jit(outs)(*operands)
    with jax.set_mesh(sharding.make_mesh((2, 2, 2))):
        batch = jax.NamedSharding(jax.sharding.get_mesh(), sharding.BATCH)
        placed = jax.device_put(operands, batch)
        lowered = jax.jit(outs).lower(*placed).compile()
        together = lowered(*placed)
    pairs = zip(jax.tree.leaves(alone), jax.tree.leaves(together))
    far = max(abs(a - b).max() for a, b in pairs)
    print(json.dumps([float(far), lowered.as_text().count("all-gather(")]))
"""


@pytest.mark.slow
def test_every_device_of_a_mesh_attends_to_its_own():
    """What one device computes, without fetching another's items or heads.

    Heads that a mesh does not divide stay whole.
    """
    flags = "--xla_force_host_platform_device_count=8"
    ended = subprocess.run(
        [sys.executable, "-c", ON_A_MESH],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(lines) == 4 and max(far for far, _ in lines) < 1e-6
    assert all(gathers == 0 for _, gathers in lines)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (4, 1, 2), (4, 2, 1)])
def test_splash_lowers_for_a_mesh_of_tpus(shape):
    *operands, _ = arrays(8, queries=256, keys=256, heads=2, width=64)
    run = functools.partial(attend.attend, implementation="splash")
    with jax.sharding.use_abstract_mesh(sharding.abstract_mesh(shape)):
        lowered = jax.jit(run).trace(*operands).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    # A share of eight items and two heads, of a head width of 64.
    data, fsdp, tensor = shape
    assert "tpu_custom_call" in text
    assert f"{8 // (data * fsdp)}x{2 // tensor}x256x64" in text


def test_splash_is_attention(monkeypatch):
    """Its kernel, interpreted: padding and masks as in the definition."""
    kernels = attend.splash_attention
    interpreted = functools.partial(
        kernels.make_splash_mha_single_device, interpret=True
    )
    monkeypatch.setattr(kernels, "make_splash_mha_single_device", interpreted)
    queries, keys, values, _ = arrays(2, queries=130, keys=150, heads=2, width=40)
    mask = draw_mask((2, 1, 1, 150))
    out = attend.attend(queries, keys, values, mask=mask, implementation="splash")
    np.testing.assert_allclose(out, by_hand(queries, keys, values, mask), atol=2e-5)


def test_splash_refuses_masks_that_differ_between_queries():
    queries, keys, values, _ = arrays(2)
    with pytest.raises(ValueError, match='use "chunked"'):
        attend.attend(
            queries, keys, values, mask=draw_mask((70, 19)), implementation="splash"
        )


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "width", "queries", "masked", "expected"),
    [
        ("cpu", None, jnp.float32, 40, 64, False, "plain"),
        ("cpu", None, jnp.bfloat16, 40, 4096, False, "chunked"),
        ("gpu", "8.0", jnp.bfloat16, 40, 4096, True, "cudnn"),
        ("gpu", "8.0", jnp.bfloat16, 160, 4096, False, "chunked"),
        ("gpu", "9.0", jnp.bfloat16, 160, 4096, False, "cudnn"),
        ("gpu", "9.0", jnp.float32, 40, 4096, False, "chunked"),
        ("gpu", "9.0", jnp.bfloat16, 4, 64, False, "plain"),
        ("gpu", "gfx942", jnp.bfloat16, 40, 4096, False, "chunked"),
        ("tpu", None, jnp.float32, 160, 4096, False, "splash"),
        ("tpu", None, jnp.bfloat16, 40, 4096, True, "chunked"),
    ],
)
def test_the_form_fits_the_device(
    monkeypatch, platform, capability, dtype, width, queries, masked, expected
):
    device = types.SimpleNamespace(platform=platform)
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    shapes = [jax.ShapeDtypeStruct((2, n, 8, width), dtype) for n in (queries, queries)]
    mask = jax.ShapeDtypeStruct((queries, queries), bool) if masked else None
    chosen = []
    jax.eval_shape(lambda *x: chosen.append(attend._choose(*x)), *shapes, mask)
    assert chosen == [expected]


LARGE = """
import jax
from geodiff_jax import sharding
from geodiff_jax.models import attend
keys = jax.random.split(jax.random.key(0), 3)
sizes = (8192, 16384, 16384)
operands = [jax.random.normal(k, (n, 8, 40)) for k, n in zip(keys, sizes)]
loss = lambda *x: (attend.attend(*x) ** 2).sum()
gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*operands)
assert all(abs(g).max() > 1e-4 for g in gradients)
# Not getrusage: its peak starts with what the parent held.
lines = dict(line.split(":") for line in open("/proc/self/status"))
print(lines["VmHWM"].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_joined_domains_at_full_size_fit_in_two_gigabytes():
    """8,192 queries and a bank besides as many keys: all logits would be 4.3 GB."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2_000_000  # Kilobytes, of the whole process.
