"""How fast heads become what the denoisers are conditioned on, and charts meshes.

python -m experiments.benchmarks.maps [--head=head.safetensors] [--json=FILE]

"maps" are those of GeoDiff4D and CAP4D for 16 frames, "features" Learn2Control's
splatted features for 14 frames (chart and images of 256 x 256), "skinning" 64 frames
of the head, identity folded in, "remesh" a chart's mesh, from nothing. A second table
counts the triangles that bridge a gap, with every pair of triangles that a block of
texels gives and with ours, over lips, lids, nostrils and ears.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks import timing
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import files as head_files
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.render import conditioning, splatted_features, uv

_HEAD = flags.DEFINE_string("head", None, "What prepare_head wrote; else built in.")
_RUNS = flags.DEFINE_integer("runs", 20, "Timed runs of each row.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Where to write the figures.")
SIZE = 256
SIZES = (128, 256)
"""Of remeshed charts."""
REGIONS = {
    "lips": ("lips",),
    "lids": ("left_eye_region", "right_eye_region"),
    "nose": ("nose",),
    "ears": ("left_ear", "right_ear"),
}

Step = tuple[dict[str, Any], Callable[[], Any]]


def frames(
    head: head_model.HeadModel, count: int
) -> tuple[head_model.HeadParams, cameras.Camera]:
    """A head that turns and pulls faces, and a camera that stands still."""
    at_rest = head_model.neutral(head, batch=(count,))
    share = jnp.linspace(0.0, 1.0, count)
    params = at_rest.replace(
        expression=0.3
        * jax.random.uniform(jax.random.key(0), at_rest.expression.shape),
        rotation=at_rest.rotation.at[:, 1].set(share - 0.5),
    )
    middle = jnp.mean(head.template, axis=0)
    camera = cameras.look_at(
        middle + jnp.asarray([0.0, 0.0, 1.0]),
        middle,
        up=jnp.asarray([0.0, 1.0, 0.0]),
        focal=2.5 * SIZE,
        width=SIZE,
        height=SIZE,
    )
    return params, conditioning.repeat_camera(camera, count)


def maps(head: head_model.HeadModel) -> Iterator[Step]:
    """Sixteen frames of the maps of two papers, in one call."""
    params, views = frames(head, 16)
    slots = jnp.arange(16) < 1

    @jax.jit
    def draw(params: head_model.HeadParams, views: cameras.Camera) -> tuple:
        reference = jax.tree.map(lambda x: x[0], views)
        return (
            conditioning.geodiff4d(head, params, views),
            conditioning.cap4d(head, params, views, reference, reference_slots=slots),
        )

    yield {"op": "maps", "frames": 16, "pass": "forward"}, lambda: draw(params, views)


def features(head: head_model.HeadModel) -> Iterator[Step]:
    """Fourteen splatted feature maps, and their gradient to the field."""
    params, views = frames(head, 14)
    chart = uv.rasterize_chart(head.uv, head.uv_faces, size=SIZE)
    texels = splatted_features.covered_texels(chart)
    field = splatted_features.initial_field(jax.random.key(0), head, chart)

    def draw(field: splatted_features.FeatureField) -> jax.Array:
        drawn = conditioning.learn2control(
            field, texels, head, params, views, size=SIZE
        )
        assert drawn.features is not None
        return drawn.features

    forward = jax.jit(draw)
    both = jax.jit(jax.grad(lambda field: jnp.sum(jnp.square(draw(field)))))
    what = {"op": "features", "frames": 14}
    yield {**what, "pass": "forward"}, lambda: forward(field)
    yield {**what, "pass": "forward_backward"}, lambda: both(field)


def skinning(head: head_model.HeadModel) -> Iterator[Step]:
    """Sixty-four frames of one person."""
    params, _ = frames(head, 64)
    # One person: the identity is part of the template, as in a track.
    still = head_model.canonical(params.replace(expression=params.expression[:1]))
    person = head_model.rest_vertices(head, jax.tree.map(lambda x: x[0], still))
    folded = head.replace(
        template=person,
        identity_basis=head.identity_basis[:0],
        joint_identity_basis=head.joint_identity_basis[:0],
        identity_names=(),
    )
    moving = params.replace(identity=params.identity[:, :0])
    pose = jax.jit(functools.partial(head_model.vertices, folded))
    yield {"op": "skinning", "frames": 64, "pass": "forward"}, lambda: pose(moving)


def remeshing(head: head_model.HeadModel) -> Iterator[Step]:
    """The chart's mesh by hops, nothing kept from earlier runs."""
    for size in SIZES:
        chart = uv.rasterize_chart(head.uv, head.uv_faces, size=size)
        step = functools.partial(uv.remesh, head.faces, chart, head.template)
        yield {"op": "remesh", "frames": 1, "size": size, "pass": "forward"}, step


def bridges(head: head_model.HeadModel) -> Iterator[timing.Row]:
    """How many triangles there are, and how many bridge gaps, by rule."""
    regions = {
        name: np.any([np.asarray(head.regions[part]) for part in parts], axis=0)
        for name, parts in REGIONS.items()
    }
    rules = {
        "every block": {"hops": None},
        f"{uv.HOPS} hops": {},
        "paths": {"hops": None, "stretch": uv.STRETCH},
    }
    for size in SIZES:
        chart = uv.rasterize_chart(head.uv, head.uv_faces, size=size)
        for rule, options in rules.items():
            made = uv.remesh(head.faces, chart, head.template, **options)
            counts = uv.count_bridging(made, head.faces, head.template, regions)
            yield {
                "op": "bridges",
                "size": size,
                "rule": rule,
                "triangles": len(made.triangles),
                **counts,
            }


def rows(head: head_model.HeadModel, *, runs: int) -> Iterator[timing.Row]:
    """One row per thing timed."""
    for things in (maps, features, skinning, remeshing):
        for what, step in things(head):
            yield {**what, **timing.measure(step, runs=runs, seconds=20.0)}


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    head = procedural.load() if _HEAD.value is None else head_files.load(_HEAD.value)
    about = {**timing.machine(), "head": head.version}
    table, counts = list(rows(head, runs=_RUNS.value)), list(bridges(head))
    timing.report("Maps", about, table, hidden=("runs",))
    timing.report("Bridging triangles", {"head": head.version}, counts, hidden=("op",))
    if _JSON.value:
        timing.write(_JSON.value, about, [*table, *counts])


if __name__ == "__main__":
    app.run(main)
