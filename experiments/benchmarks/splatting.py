"""How fast Gaussians become images, and images gradients.

python -m experiments.benchmarks.splatting [--backend=cpu|cuda|reference] [--json=FILE]
    [--compare=gsplat]

Heads of 10K, 100K and 1M Gaussians on an ellipsoid, 512 x 512 pixels: "far" (a tenth of
the image) and "close" (the head fills 70 % of its height); 3 and 16 channels; forward,
and forward with the gradient of every array. `floor_ms` is what the machine's measured
arithmetic and memory speed allow; see `floor_seconds`. With --compare=gsplat each row
has gsplat's time beside ours, taken right after it, and how far the images differ.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks import gsplat_twin, timing
from geodiff_jax.render import ffi, splatting, splatting_reference

BACKEND = flags.DEFINE_enum(
    "backend", None, ["cpu", "cuda", "reference"], "Default: by platform."
)
JSON = flags.DEFINE_string("json", None, "Where to write the table as JSON.")
COMPARE = flags.DEFINE_enum("compare", None, ["gsplat"], "Timed beside ours on a GPU.")
RUNS = flags.DEFINE_integer("runs", 50, "Runs per row.", lower_bound=1)
GAUSSIANS = flags.DEFINE_list("gaussians", "10000,100000,1000000", "Counts.")
CHANNELS = flags.DEFINE_list("channels", "3,16", "Numbers of feature channels.")

SIZE = 512
FOCAL = 420.0
DISTANCES = {"far": 4.0, "close": 2.3}
"""Metres from the camera to the centre of the head."""
RADII = np.array([0.75, 1.0, 0.85])

HIDDEN = ("op", "size", "runs", "floor_ms")

PROJECT_FLOPS, BLEND_FLOPS = 250, 20
"""About as many per Gaussian, and per Gaussian and pixel that it covers: estimates,
ours, of what splat.h and splat_tiles.h cannot do without."""
BACKWARD_SHARE = 3.0
"""Forward and backward over forward alone, in arithmetic and in bytes; ours."""


class Scene(NamedTuple):
    """The operands of `splatting.splat_arrays`."""

    means: jax.Array
    quaternions: jax.Array
    scales: jax.Array
    opacities: jax.Array
    features: jax.Array
    camera_from_world: jax.Array
    intrinsics: jax.Array


def head(count: int, channels: int, distance: float) -> Scene:
    """Gaussians on an ellipsoid before the camera, as large as their spacing."""
    random = np.random.default_rng(0)
    direction = random.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # Thomsen's formula for the ellipsoid's area, good to 1 %.
    powers = (RADII * np.roll(RADII, 1)) ** 1.6075
    spacing = np.sqrt(4 * np.pi * np.mean(powers) ** (1 / 1.6075) / count)
    arrays = (
        direction * RADII + [0.0, 0.0, distance],
        random.normal(size=(count, 4)),
        0.8 * spacing * np.exp(0.4 * random.normal(size=(count, 3))),
        random.uniform(0.1, 0.9, count),
        random.uniform(size=(count, channels)),
        np.eye(3, 4),
        np.array([FOCAL, FOCAL, SIZE / 2, SIZE / 2]),
    )
    return Scene(*(jnp.asarray(x, jnp.float32) for x in arrays))


def passes(
    scene: Scene, *, backend: str | None, capacity: int | None
) -> dict[str, Callable[[], Any]]:
    """What is timed, by its name in the table."""

    def render(scene: Scene) -> splatting.Splat:
        return splatting.splat_arrays(
            *scene, width=SIZE, height=SIZE, backend=backend, capacity=capacity
        )

    weights = jax.random.normal(
        jax.random.key(0), (SIZE, SIZE, scene.features.shape[1])
    )

    def loss(scene: Scene) -> jax.Array:
        image, alpha = render(scene)[:2]
        return jnp.vdot(image, weights) + jnp.sum(alpha)

    forward, both = jax.jit(render), jax.jit(jax.value_and_grad(loss))
    return {
        "forward": lambda: forward(scene),
        "forward_backward": lambda: both(scene),
    }


def floor_seconds(scene: Scene, about: dict[str, Any]) -> float:
    """Of a forward pass: the larger of the times for arithmetic and for memory, at the
    measured speeds.

    Every Gaussian is projected and read once, every pixel written once, and every
    visible Gaussian blended in all the pixels of its ellipse: what saturated pixels
    spare is not taken off.
    """
    seen = splatting_reference.project(
        *scene[:4],
        *scene[5:],
        width=SIZE,
        height=SIZE,
        near=0.01,
        antialiased=False,
    )
    a, b, c = jnp.moveaxis(seen.conics, 1, 0)
    reach = 2.0 * jnp.log(jnp.maximum(255.0 * seen.opacities, 1.0))
    area = jnp.pi * reach / jnp.sqrt(jnp.maximum(a * c - b * b, 1e-12))
    covered = float(jnp.sum(jnp.where(seen.visible, area, 0.0)))
    count, channels = scene.features.shape
    flops = PROJECT_FLOPS * count + (BLEND_FLOPS + 2 * (channels - 3)) * covered
    values = (11 + channels) * count + (1 + channels) * SIZE**2
    return max(flops / about["gflops"], 4 * values / about["copy_gbs"]) / 1e9


def rows(about: dict[str, Any]) -> Iterator[timing.Row]:
    """One row per scene, number of channels and pass; on CPUs with its stages."""
    on_cpu = ffi.implementations(BACKEND.value).get("default") == "cpu"
    stages = ffi.stage_seconds if on_cpu else dict
    for name, distance in DISTANCES.items():
        for count in map(int, GAUSSIANS.value):
            for channels in map(int, CHANNELS.value):
                scene = head(count, channels, distance)
                capacity = splatting.required_capacity(
                    *scene[:4],
                    *scene[5:],
                    width=SIZE,
                    height=SIZE,
                    backend=BACKEND.value,
                )
                steps = passes(scene, backend=BACKEND.value, capacity=capacity)
                forward_ms = 1e3 * floor_seconds(scene, about)
                for kind, step in steps.items():
                    figures = timing.measure(step, runs=RUNS.value, stages=stages)
                    share = 1.0 if kind == "forward" else BACKWARD_SHARE
                    floor = share * forward_ms
                    yield {
                        "op": "splat",
                        "gaussians": count,
                        "size": SIZE,
                        "channels": channels,
                        "scene": name,
                        "pass": kind,
                        **figures,
                        "floor_ms": floor,
                        "times_floor": figures["median_ms"] / floor,
                        **compared(scene, kind, step, figures["median_ms"]),
                    }


def compared(
    scene: Scene, kind: str, ours: Callable[[], Any], median_ms: float
) -> dict[str, float]:
    """gsplat's time for the same pass, over ours; nothing unless asked for."""
    if COMPARE.value is None:
        return {}
    twin = gsplat_twin.passes(scene, size=SIZE)[kind]
    theirs = timing.measure(twin, runs=RUNS.value)["median_ms"]
    found = {"gsplat_ms": theirs, "gsplat_over_ours": theirs / median_ms}
    if kind == "forward":
        image = twin().cpu().numpy()
        found["difference"] = float(np.abs(image - np.asarray(ours().image)).max())
    return found


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if COMPARE.value and (reason := gsplat_twin.missing()):
        raise app.UsageError(f"--compare=gsplat: {reason}")
    about = timing.machine()
    table = list(rows(about))
    timing.report(
        "Gaussian splatting", about, table, hidden=HIDDEN, json_path=JSON.value
    )


if __name__ == "__main__":
    app.run(main)
