"""The guider starts as nothing, and what it reads learns after its first step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geodiff_jax.models import guider, weights

TINY = guider.Guider(features=6, widths=(4, 6))
# They run once, so that optimising them costs more than it saves.
QUICKLY = {"xla_backend_optimization_level": 0}


def maps() -> jax.Array:
    return jnp.tanh(jax.random.normal(jax.random.key(0), (2, 1, 2, 4, 6, 8)))


@functools.cache
def start() -> dict:
    # This generator compiles in a tenth of the time.
    return jax.jit(TINY.init)(jax.random.key(1, impl="rbg"), maps())


@functools.cache
def slopes():
    """(variables, maps) -> guidance, gradients of variables and of maps."""

    def loss(variables, maps):
        guidance = TINY.apply(variables, maps)
        ramp = jnp.linspace(-1.0, 1.0, guidance.size).reshape(guidance.shape)
        return jnp.sum((guidance - ramp) ** 2), guidance

    return jax.jit(
        jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICKLY
    )


def largest(tree) -> float:
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def test_it_starts_as_nothing_at_the_resolution_of_latents():
    _, guidance = slopes()(start(), maps())
    assert guidance.shape == (2, 1, 2, 2, 3, 6)
    assert (guidance == 0.0).all()


def test_gradients_reach_the_last_layer_and_after_a_step_the_maps():
    (first, to_maps), _ = slopes()(start(), maps())
    last = first["params"].pop("conv_out")
    assert largest(last["kernel"]) > 0 and largest(last["bias"]) > 0
    assert largest(first) == 0.0 and largest(to_maps) == 0.0

    stepped = {**start()["params"]}
    stepped["conv_out"] = jax.tree.map(
        lambda p, g: p - 0.1 * g, stepped["conv_out"], last
    )
    (second, to_maps), _ = slopes()({"params": stepped}, maps())
    assert all(largest(layer) > 0 for layer in second["params"].values())
    reached = np.abs(to_maps).max((0, 1, 2, -1)) > 0
    assert reached.all(), "every pixel counts"


def test_frames_do_not_mix():
    awake = jax.tree.map(lambda p: p + 0.1, start())
    (_, to_maps), _ = slopes()(awake, maps())
    alone = jnp.zeros_like(maps()).at[1, 0, 0].set(maps()[1, 0, 0])
    (_, to_alone), _ = slopes()(awake, alone)
    np.testing.assert_allclose(to_alone[1, 0, 0], to_maps[1, 0, 0], rtol=1e-4)


def test_defaults_are_those_of_512_pixels_and_stable_diffusion():
    module = guider.Guider()
    shape = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x)[0],
        jnp.zeros((1, 512, 512, 8)),
    )
    assert shape.shape == (1, 64, 64, 320) and module.factor == 8


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 2 pixels, got 8 x 9"):
        weights.template(TINY, jnp.zeros((1, 8, 9, 8)))
