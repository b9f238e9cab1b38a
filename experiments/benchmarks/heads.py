"""How fast a head becomes an image: its mesh, its chart, and an avatar posed on it.

python -m experiments.benchmarks.heads [--backend=cpu|cuda|reference] [--json=FILE]

"mesh" is 10K faces at 512 x 512, "chart" the built-in head's UV chart at 1024 x 1024,
both with barycentrics and depth; "ids" is the kernel alone. "avatar" is 100K Gaussians
bound to the built-in head: skinned, carried along and splatted at 512 x 512, the head
as large as in `experiments.benchmarks.splatting`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Float, Int

from experiments.benchmarks import splatting, timing
from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.gaussians import binding
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.render import mesh_rasterizer

FACES = 10_000
CHART_SIZE = 1024
GAUSSIANS = 100_000
SHARES = {"far": 0.38, "close": 0.7}
"""Of the image's height that the head takes: far covers a tenth of the image."""


def ball(count: int) -> tuple[Float[Array, "p 3"], Int[Array, "f 3"]]:
    """About `count` faces round the head of the splatting benchmark, seen close."""
    rows = round(np.sqrt(count / 4))
    theta, phi = np.meshgrid(
        np.linspace(0.0, np.pi, rows + 1),
        np.linspace(0.0, 2 * np.pi, 2 * rows + 1),
        indexing="ij",
    )
    sine = np.sin(theta)
    direction = np.stack([sine * np.sin(phi), np.cos(theta), sine * np.cos(phi)], -1)
    centre = [0.0, 0.0, splatting.DISTANCES["close"]]
    points = direction.reshape(-1, 3) * splatting.RADII + centre
    corner = np.arange(theta.size).reshape(theta.shape)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    return jnp.asarray(points, jnp.float32), jnp.asarray(faces.reshape(-1, 3))


def meshes(*, backend: str | None) -> Iterator[tuple[dict[str, Any], Callable]]:
    """(what, step) of mesh and chart."""
    points, faces = ball(FACES)
    lens = cameras.pinhole(
        focal=splatting.FOCAL, width=splatting.SIZE, height=splatting.SIZE
    )
    pixels, depth = lens.project(points)
    head = procedural.load()
    flat = jnp.concatenate(
        [CHART_SIZE * head.uv, jnp.ones((head.uv.shape[0], 1))], axis=-1
    )
    for op, corners, triangles, size in (
        ("mesh", jnp.concatenate([pixels, depth[:, None]], -1), faces, splatting.SIZE),
        ("chart", flat, head.uv_faces, CHART_SIZE),
    ):
        draw = functools.partial(
            mesh_rasterizer.rasterize_pixels, width=size, height=size, backend=backend
        )
        what = {"op": op, "faces": len(triangles), "gaussians": 0, "size": size}
        # What nobody uses is not computed.
        steps = {"all": draw, "ids": lambda *x, draw=draw: draw(*x).face}
        for name, step in steps.items():
            yield (
                {**what, "scene": name},
                functools.partial(jax.jit(step), corners, triangles),
            )


def avatars(*, backend: str | None) -> Iterator[tuple[dict[str, Any], Callable]]:
    """(what, step) of an avatar that opens its mouth, far and close."""
    head = procedural.load()
    params = head_model.neutral(head)
    rest = head_model.vertices(head, params)
    gaussians, bound = binding.seed(
        jax.random.key(0), rest, head.faces, count=GAUSSIANS, opacity=0.7
    )
    layer = jnp.zeros(GAUSSIANS, jnp.int32)
    avatar = avatar_model.Avatar(head, params, gaussians, bound, layer)
    jaw = head.expression_names.index("jawOpen")
    opened = params.replace(expression=params.expression.at[jaw].set(0.5))
    top, bottom = rest[:, 1].max(), rest[:, 1].min()
    centre = jnp.asarray([0.0, 0.5 * (top + bottom), 0.0])
    draw = jax.jit(lambda *x: avatar_model.render(*x, backend=backend).image)
    what = {
        "op": "avatar",
        "faces": len(head.faces),
        "gaussians": GAUSSIANS,
        "size": splatting.SIZE,
    }
    for name, share in SHARES.items():
        camera = cameras.look_at(
            centre + jnp.asarray([0.0, 0.0, 1.0]),
            centre,
            up=jnp.asarray([0.0, 1.0, 0.0]),
            focal=share * splatting.SIZE / (top - bottom),
            width=splatting.SIZE,
            height=splatting.SIZE,
        )
        yield {**what, "scene": name}, functools.partial(draw, avatar, opened, camera)


def rows(*, backend: str | None, runs: int) -> Iterator[timing.Row]:
    """One row per thing drawn; all are forward passes."""
    for things in (meshes, avatars):
        for what, step in things(backend=backend):
            figures = timing.measure(step, runs=runs)
            yield {
                **what,
                "pass": "forward",
                **figures,
                "per_second": 1e3 / figures["median_ms"],
            }


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    values = flags.FLAGS  # Those of the splatting benchmark.
    table = list(rows(backend=values.backend, runs=values.runs))
    about = timing.machine()
    hidden = ("pass", "runs")
    timing.report("Heads", about, table, hidden=hidden, json_path=values.json)


if __name__ == "__main__":
    app.run(main)
