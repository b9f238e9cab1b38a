"""Losses of the same steps on meshes: python -m tests.training.meshes 1x1x1 2x2x2

The network has one layer of every kind that the generator's have, since a whole one
takes minutes to compile for each mesh; features are splatted in the step. Prints a
line of JSON per stage and mesh: the losses, whether the last state can go on elsewhere,
and the elements of what learns and of the largest all-gather in the compiled program.
"""

import functools
import itertools
import json
import math
import re
import sys
import tempfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from geodiff_jax import checkpoint, sharding
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.models import attention, denoiser, expression_encoder, layers
from geodiff_jax.render import splatted_features
from geodiff_jax.render.conditioning import Conditioning
from geodiff_jax.training import denoising, loop
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

STEPS, ITEMS, SIDE, CROP, CHANNELS, TEXELS = 5, 8, 4, 8, 32, 6
SETTINGS = optimizers.Settings(learning_rate=1e-3)
STAGES = {"1": "", "2": "temporal"}
"""What learns in each; in the first all of it."""


class EveryLayer(nn.Module):
    """Called as a denoiser; tokens of an expression come from crops of faces.

    Times are one per item."""

    @nn.compact
    def __call__(
        self,
        latents,
        t,
        signals,
        *,
        reference,
        driving,
        dropped=None,
        frames=None,
        train=False,
        **_,
    ):
        tokens = self._express(driving, train)
        if dropped is not None:
            tokens *= ~dropped[:, None, None, None, None, None]
        bank = nn.Dense(2 * CHANNELS, name="remember")(reference.latents)
        bank = bank.reshape(len(latents), -1, 2 * CHANNELS)
        x = layers.conv(CHANNELS, dtype=np.float32, name="conv_in")(latents)
        if signals.features is not None:
            x = x + nn.Dense(CHANNELS, name="guide")(signals.features)[:, None]
        t = jnp.broadcast_to(t, (len(latents), 1, 1, 1))
        embedding = layers.timestep_embedding(t, CHANNELS)
        label = nn.Embed(2, CHANNELS, name="domain_label")(np.arange(2))
        embedding = embedding + label[None, :, None, None]
        x = layers.ResBlock(2 * CHANNELS, name="residual")(x, embedding)
        x, _ = attention.SpatialTransformer(2, ("domain", "h", "w"), name="spatial")(
            x, None, bank
        )
        x = layers.Downsample(name="down")(x)
        x = attention.ExpressionModule(2, name="expression")(x, tokens)
        x = attention.TemporalModule(2, name="temporal")(x, frames)
        x = layers.Upsample(name="up")(x)
        out = latents.shape[-1]
        return layers.conv(out, dtype=np.float32, name="conv_out")(x)

    def _express(self, driving, train):
        x = driving.reshape(-1, CROP, CROP, 3)
        x = expression_encoder.ConvBlock(16, name="block")(x, train)
        x = nn.Dropout(0.5, deterministic=not train)(x).mean((1, 2))
        tokens = nn.Dense(4 * 8, name="to_tokens")(x)
        return tokens.reshape(len(driving), 1, *driving.shape[1:3], 4, 8)


def batch(number: int) -> denoising.Batch:
    """Two domains, two frames, of which some are padding."""
    rng = np.random.default_rng(number)

    def normal(*shape):
        return rng.standard_normal((ITEMS, *shape), np.float32)

    return denoising.Batch(
        normal(2, 1, 2, SIDE, SIDE, 4),
        Conditioning(),
        reference=denoiser.Reference(normal(SIDE, SIDE, 4)),
        driving=normal(1, 2, CROP, CROP, 3),
        frames=rng.random((ITEMS, 2)) < 0.8,
        surface=splatted_features.Surface(
            0.1 * normal(1, 2, TEXELS, TEXELS, 3) + np.float32([0, 0, 1]),
            np.broadcast_to(
                np.float32([2, 2, 0.5, 0.5]) * SIDE, (ITEMS, 1, 2, 4)
            ).copy(),
            SIDE,
        ),
    )


def first_state(trained: str = "") -> states.TrainState:
    """Random also where training starts at zero, since zeros stop gradients."""

    def make():
        one, field = (
            batch(0),
            splatted_features.even_field(jax.random.key(0), size=TEXELS),
        )
        shown = np.zeros((ITEMS, 1, 2, SIDE, SIDE, 8), np.float32)
        options = {"reference": one.reference, "driving": one.driving}
        dropped = np.zeros(ITEMS, bool)
        variables = EveryLayer().init(
            jax.random.key(0),
            one.latents,
            np.zeros((ITEMS, 1, 1, 1), int),
            one.signals.replace(features=shown),
            **options,
            dropped=dropped,
            frames=one.frames,
            train=False,
        )
        params = {**variables["params"], states.FIELD: vars(field)}
        variables = {**variables, "params": params}
        optimizer = optimizers.make(SETTINGS)
        return states.initial_state(
            jax.random.key(1), variables, optimizer, trained=trained
        )

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith(("params", "resting", "average")) and not name.endswith(
            "scale"
        ):
            if name.endswith("log_scales"):
                return np.full(leaf.shape, -3.0, leaf.dtype)
            seed = zlib.crc32(name.partition("/")[2].encode())
            rng = np.random.default_rng(seed)
            fan = math.prod(leaf.shape[:-1]) if "kernel" in name else 100
            return (rng.standard_normal(leaf.shape) / fan**0.5).astype(leaf.dtype)
        return np.full(leaf.shape, name.endswith(("scale", "var")), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(make))


def losses(shape: tuple[int, ...], trained: str) -> dict[str, Any]:
    """On the first devices that make up the mesh."""
    mesh = sharding.make_mesh(shape, devices=jax.devices()[: math.prod(shape)])
    first = first_state(trained)
    placed = sharding.shardings(first, states.RULES, mesh)
    train_step = functools.partial(
        denoising.train_step,
        apply=EveryLayer().apply,
        schedule=schedules.make(),
        optimizer=optimizers.make(SETTINGS),
        objective=denoising.Objective(),
    )
    with jax.set_mesh(mesh):
        rows = [sharding.place_batch(batch(i), mesh) for i in range(STEPS)]
        state, found = jax.device_put(first, placed), []
        step: Any = loop.make_step(
            train_step,
            learning_rate=optimizers.learning_rate(SETTINGS),
            placed=placed,
            mesh=mesh,
        )
        step = step.lower(state, rows[0]).compile()
        for row in rows:
            state, figures, _ = step(state, row)
            found.append(float(figures["loss"]))
        kept = restored(state, sharding.make_mesh((2, 2, 2)))
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", step.as_text())
    sizes = [math.prod(map(int, filter(None, x.split(",")))) for x in gathered]
    return {
        "losses": found,
        "parameters": sum(x.size for x in jax.tree.leaves(first.params)),
        "restored": kept,
        "largest": max(sizes, default=0),
    }


def restored(state: states.TrainState, mesh: jax.sharding.Mesh) -> bool:
    """Whether a checkpoint of it comes back the same on another mesh."""
    template = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        sharding.shardings(state, states.RULES, mesh),
    )
    with tempfile.TemporaryDirectory() as folder:
        series = checkpoint.Series(folder)
        series.save(1, state)
        found = series.restore(template)
        series.close()
    assert found is not None
    same = jax.tree.map(
        lambda x, y, w: np.array_equal(x, y) and x.sharding == w.sharding,
        found.tree,
        state,
        template,
    )
    return all(jax.tree.leaves(same))


if __name__ == "__main__":
    for stage, text in itertools.product(STAGES, sys.argv[1:]):
        found = losses(tuple(map(int, text.split("x"))), STAGES[stage])
        print(json.dumps({"stage": stage, "mesh": text, **found}), flush=True)
