"""The expression encoder: X-NeMo's numbers, and the laws that training leans on."""

import functools
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.models import expression_encoder, names_expression, vae, weights
from tests.conftest import shared_data

TINY = expression_encoder.ExpressionEncoder(
    width=16,
    maps=4,
    depth=1,
    patches=(2, 2, 2),
    heads=2,
    head_width=8,
    latent=12,
    tokens=3,
    token_width=4,
)
# They run a few times, so that optimising them costs more than it saves.
QUICKLY = {"xla_backend_optimization_level": 0}


def crops() -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (2, 3, 16, 16, 3), minval=-1.0)


@functools.cache
def variables() -> dict:
    """Random everywhere, also where a new encoder has zeros."""
    shapes = weights.template(TINY, crops())
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [
        jnp.asarray(0.5 + rng.uniform(size=leaf.shape), leaf.dtype)
        if len(leaf.shape) == 1
        else jnp.asarray(rng.normal(size=leaf.shape) / 8, leaf.dtype)
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, values)


@functools.cache
def applied():
    """(variables, crops, box) -> results without and with it, and what they changed."""

    def both(v, x, box):
        without, changed = TINY.apply(v, x, mutable=["batch_stats"])
        return without, TINY.apply(v, x, box), changed

    return jax.jit(both, compiler_options=QUICKLY)


@functools.cache
def trained():
    """(variables, crops, key of dropout) -> results and the collections they change."""
    return jax.jit(
        lambda v, x, key: TINY.apply(
            v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        ),
        compiler_options=QUICKLY,
    )


def test_positions_are_sines_then_cosines_by_column_then_row():
    height, width, channels = 3, 5, 8
    table = expression_encoder.sincos_grid(height, width, channels)
    for row in range(height):
        for column in range(width):
            code = []
            for place in (column, row):
                angles = [place / 10_000 ** (i / 2) for i in range(2)]
                code += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * width + column], code, atol=1e-6)


def test_every_crop_stands_for_itself_along_all_leading_axes():
    x, box = crops(), jnp.ones((2, 3, 3))
    (latent, tokens), *_ = applied()(variables(), x, box)
    assert latent.shape == (2, 3, 12) and tokens.shape == (2, 3, 3, 4)
    (turned, turned_tokens), *_ = applied()(variables(), x[::-1, ::-1], box)
    np.testing.assert_allclose(turned[::-1, ::-1], latent, rtol=1e-5)
    np.testing.assert_allclose(turned_tokens[::-1, ::-1], tokens, rtol=1e-5)
    assert np.abs(latent - latent[0, 0]).max(-1).ravel()[1:].min() > 1e-3


def test_no_box_feeds_zeros_and_the_latent_sees_none():
    params = variables()["params"]["to_tokens"]
    box = jax.random.normal(jax.random.key(2), (2, 3, 3))
    (latent, tokens), (with_box, boxed_tokens), _ = applied()(variables(), crops(), box)
    np.testing.assert_allclose(with_box, latent, rtol=1e-6)
    assert np.abs(boxed_tokens - tokens).max() > 0.1
    expected = latent @ params["kernel"][:12] + params["bias"]
    order = expression_encoder.sincos_positions(jnp.arange(3.0), 4)
    expected = expected.reshape(2, 3, 3, 4) + order
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-5)


def test_only_training_moves_statistics():
    x, before = crops(), variables()["batch_stats"]
    *_, unchanged = applied()(variables(), x, jnp.ones((2, 3, 3)))
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], before)
    _, changed = trained()(variables(), x, jax.random.key(0))
    after = changed["batch_stats"]
    stem = variables()["params"]["stem"]
    seen = jax.lax.conv_general_dilated(
        x.reshape(6, 16, 16, 3),
        stem["kernel"],
        (2, 2),
        [(3, 3), (3, 3)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = 0.9 * before["stem_norm"]["mean"] + 0.1 * (
        seen.mean((0, 1, 2)) + stem["bias"]
    )
    np.testing.assert_allclose(after["stem_norm"]["mean"], expected, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before, after)
    assert all(jax.tree.leaves(moved)), "every norm sees the batch"


def test_whitened_expressions_have_no_mean_and_deviations_of_one():
    """Over the batch, in training, before it has learnt another scale or shift."""
    encoder = TINY.clone(whitened=True, squeezed=3, dropout=0.0)
    x = crops()
    fresh = jax.jit(encoder.init, compiler_options=QUICKLY)(jax.random.key(0), x)
    (latent, _), changed = jax.jit(
        lambda v: encoder.apply(v, x, train=True, mutable=["batch_stats"]),
        compiler_options=QUICKLY,
    )(fresh)
    flat = np.asarray(latent).reshape(-1, TINY.latent)
    np.testing.assert_allclose(flat.mean(axis=0), 0.0, atol=1e-4)
    spread = np.square(flat).mean(axis=0)
    # Less where a deviation is not large beside the norm's epsilon.
    variance = changed["batch_stats"]["latent_norm"]["var"]
    seen = (np.asarray(variance) - 0.9) / 0.1
    epsilon = expression_encoder.NORM_EPSILON
    np.testing.assert_allclose(spread, seen / (seen + epsilon), rtol=0.05)
    assert spread.max() > 0.9


def test_dropout_draws_from_its_key_when_training_alone():
    x = crops()
    first, again, other = (
        trained()(variables(), x, jax.random.key(seed))[0][0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_attention_starts_as_nothing():
    block = expression_encoder.PatchAttention(2, heads=2, head_width=4)
    x = jax.random.normal(jax.random.key(0), (1, 4, 6, 8))
    # This generator compiles in half the time.
    y, _ = jax.jit(block.init_with_output)(jax.random.key(1, impl="rbg"), x)
    np.testing.assert_array_equal(y, x)


def test_house_images_become_inputs():
    house = jnp.asarray([0.0, 0.5, 1.0]).reshape(1, 1, 3)
    assert vae.pixels_from_images(house).ravel().tolist() == [-1.0, 0.0, 1.0]


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 8 and at least 8, got 20 x 24"):
        weights.template(TINY, jnp.zeros((1, 20, 24, 3)))


def test_the_table_names_a_released_file_and_fills_a_module():
    layout = json.loads(
        shared_data("weight_layouts/xnemo_motion_encoder.json").read_text()
    )
    table = names_expression.expression_encoder_table()
    assert {*table, *names_expression.unlearned(table)} == set(layout)
    sizes = names_expression.expression_encoder_table(depth=TINY.depth)
    _, report = weights.fill(variables(), sizes, {})
    assert {e.path for e in sizes.values()} == {
        tuple(path.split("/")) for path in report.random
    }


@pytest.mark.slow
def test_full_size_agrees_with_x_nemo():
    goldens = shared_data("goldens")
    recipe = runpy.run_path(str(goldens / "recipe.py"))["recipe"]
    golden = np.load(goldens / "xnemo_motion_encoder_full.npz")
    layout = json.loads(
        shared_data("weight_layouts/xnemo_motion_encoder.json").read_text()
    )
    seed = int(golden["recipe_seed"])
    drawn = {n: recipe(n, s["shape"], seed) for n, s in layout.items()}
    # What the recipe leaves out are constants that this encoder computes.
    tensors = {n: value for n, value in drawn.items() if value is not None}

    encoder = expression_encoder.ExpressionEncoder()
    images = golden["image_uint8"].transpose(0, 2, 3, 1) / np.float32(127.5) - 1
    loaded, report = weights.fill(
        weights.template(encoder, images),
        names_expression.expression_encoder_table(),
        tensors,
    )
    weights.demand(report)
    assert not report.random

    with jax.default_matmul_precision("highest"):
        (latent, tokens), state = jax.jit(
            functools.partial(encoder.apply, capture_intermediates=True)
        )(loaded, images, golden["bbox_params"])
    # Stated with the goldens: a margin over float32's own error of 5e-5.
    np.testing.assert_allclose(latent, golden["face_mot_feat"], atol=1e-3)
    np.testing.assert_allclose(tokens, golden["latent"], atol=1e-3)
    stages = {
        "conv1": "stem",
        "conv2": "block1",
        "att_1": "attention1",
        "conv4": "block3",
        "att_2": "attention2",
        "m0": "hourglass",
        "bn_end0": "top_norm",
        "att_3": "attention3",
    }
    for theirs, ours in stages.items():
        (found,) = state["intermediates"][ours]["__call__"]
        found = found.transpose(0, 3, 1, 2)[:, ::16, ::16, ::16]
        expected = golden[f"slice_model.{theirs}"]
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
    for i, patches in enumerate((28, 28, 28), 1):
        table = expression_encoder.sincos_grid(patches, patches, 1024)
        np.testing.assert_allclose(
            table[None, ::16, ::64],
            golden[f"pos_embed_buffer_att_{i}_every_64th"],
            atol=1e-5,
        )
