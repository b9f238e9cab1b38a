"""Laws of the UNet: what signals reach, and what leaves it as it was."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.models import unet, weights

DOMAINS = ("domain", "h", "w")
NET = unet.UNet(
    channels=32,
    multipliers=(1, 2),
    blocks=1,
    tokens=(DOMAINS, ()),
    middle_tokens=DOMAINS,
    heads=(2, 2),
    cross_attention=False,
    expression_modules=True,
    temporal_modules=True,
    module_heads=2,
)
"""GeoDiff4D's in small."""
PLAIN = NET.clone(expression_modules=False, temporal_modules=False)
SHAPE = (2, 2, 1, 3, 4, 4, 7)
LAYERS = ("down0_attention0", "middle_attention0", "up0_attention0", "up0_attention1")
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def signals() -> dict[str, np.ndarray]:
    return {
        "expression": normal(2, 1, 1, 3, 5, 6, seed=1),
        "label": normal(1, 2, 1, 1, 128, seed=2),
        "frames": np.ones((2, 3), bool),
    }


def bank() -> dict[str, np.ndarray]:
    sizes = dict.fromkeys(LAYERS, (2, 16, 32)) | {"middle_attention0": (2, 4, 64)}
    return {name: normal(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}


@functools.cache
def variables(module: unet.UNet = NET) -> dict:
    """Random everywhere, also where training starts at zero."""
    given = jax.tree.map(jnp.asarray, signals())
    shapes = weights.template(module, jnp.zeros(SHAPE), jnp.zeros(()), **given)

    def draw(path, leaf):
        seed = zlib.crc32(jax.tree_util.keystr(path).encode())
        fan = math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
        return normal(*leaf.shape, seed=seed) / math.sqrt(fan)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(module: unet.UNet):
    """Few programs, each compiled in half the time."""
    return jax.jit(
        module.apply,
        static_argnames=("record", "mutable"),
        compiler_options=UNOPTIMISED,
    )


def predict(module: unet.UNet, x: np.ndarray, **given) -> np.ndarray:
    t = np.asarray([999, 21]).reshape(2, 1, 1, 1)
    return np.asarray(compiled(module)(variables(), x, t, **given)[0])


def test_items_never_mix_and_domains_and_frames_do():
    x = normal(*SHAPE)
    before = predict(NET, x, **signals())
    x[1, 0, 0, 2] += 1.0
    changed = (predict(NET, x, **signals()) != before).any((4, 5, 6))
    assert not changed[0].any() and changed[1].all()


def test_frames_never_mix_without_temporal_modules():
    net, given = NET.clone(temporal_modules=False), signals()
    x = normal(*SHAPE)
    before = predict(net, x, **given)
    x[1, 0, 0, 2] += 1.0
    changed = (predict(net, x, **given) != before).any((4, 5, 6))
    np.testing.assert_array_equal(np.argwhere(changed)[:, [0, 3]], [[1, 2]] * 2)


def test_domains_in_another_order_are_predicted_in_that_order():
    x, given = normal(*SHAPE), signals()
    swapped = given | {"label": given["label"][:, ::-1]}
    np.testing.assert_allclose(
        predict(NET, x[:, ::-1], **swapped),
        predict(NET, x, **given)[:, ::-1],
        atol=1e-5,
    )


def test_padded_frames_change_nothing():
    x, given = normal(*SHAPE), signals()
    given["frames"][1, 2] = False
    before = predict(NET, x, **given)
    x[1, :, :, 2] = 9.0
    after = predict(NET, x, **given)
    np.testing.assert_array_equal(after[1, :, :, :2], before[1, :, :, :2])
    np.testing.assert_array_equal(after[0], before[0])


def test_who_does_not_read_the_bank_is_denoised_by_the_plain_net():
    x, given = normal(*SHAPE), {"label": signals()["label"]}
    plain = predict(PLAIN, x, **given)
    reads = predict(
        PLAIN, x, bank=bank(), reads_bank=np.asarray([False, True]), **given
    )
    np.testing.assert_allclose(reads[0], plain[0], atol=1e-5)
    assert np.abs(reads[1] - plain[1]).max() > 1e-2


def test_new_modules_leave_the_net_as_it_was():
    x, given = normal(*SHAPE), signals()
    fresh = {
        name: {**part, "block": {**part["block"], "proj_out": zeros(part)}}
        if "temporal" in name or "expression" in name
        else part
        for name, part in variables()["params"].items()
    }
    t = np.asarray([999, 21]).reshape(2, 1, 1, 1)
    found, _ = compiled(NET)({"params": fresh}, x, t, **given)
    np.testing.assert_allclose(
        found, predict(PLAIN, x, label=given["label"]), atol=1e-5
    )


def zeros(part: dict) -> dict:
    return jax.tree.map(np.zeros_like, part["block"]["proj_out"])


def test_a_reference_net_fills_the_bank_of_a_denoiser():
    # Layers of the same names, whose attention looks within the one image.
    reference = PLAIN.clone(
        out_channels=0, tokens=(unet.IMAGE, ()), middle_tokens=unet.IMAGE
    )
    x = jnp.zeros((2, 1, 1, 1, 4, 4, 7))
    shapes = jax.eval_shape(
        functools.partial(reference.apply, record=True), variables(), x, jnp.zeros(())
    )
    assert shapes[0].shape == (2, 1, 1, 1, 4, 4, 32)
    assert {k: v.shape for k, v in shapes[1].items()} == {
        k: v.shape for k, v in bank().items()
    }


@pytest.mark.slow
def test_computing_again_changes_neither_values_nor_slopes():
    x, given = jnp.asarray(normal(*SHAPE)), jax.tree.map(jnp.asarray, signals())
    t = jnp.asarray(21)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMISED)
    def slopes(module, variables):
        def loss(variables):
            return jnp.square(module.apply(variables, x, t, **given)[0]).mean()

        return jax.value_and_grad(loss)(variables)

    small = NET.clone(multipliers=(1,), tokens=(DOMAINS,), heads=(2,))
    kept, again = (
        slopes(small.clone(remat=policy), variables(small))
        for policy in (None, "nothing_saveable")
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), kept, again)


def test_what_does_not_fit_is_refused():
    x, given = jnp.asarray(normal(*SHAPE)), jax.tree.map(jnp.asarray, signals())
    for module, x_given, keywords, complaint in (
        (NET.clone(heads=(2,)), x, given, "for 2 levels, got 2 and 1"),
        (NET, x[..., :3, :], given, "multiples of 2, got 4 x 3"),
        (NET, x, {}, "expression if and only if"),
        (PLAIN, x, given, "expression if and only if"),
        (NET, x, given | {"bank": {"up0": x[:, 0, 0, 0, 0]}}, r"got \['up0'\]"),
    ):
        with pytest.raises(ValueError, match=complaint):
            weights.template(module, x_given, jnp.zeros(()), **keywords)
