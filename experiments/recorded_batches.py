"""Batches of prepared datasets with cached latents, in the form of a training step."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.configs import generator
from geodiff_jax.data import loading, pairing, pipeline
from geodiff_jax.models import denoiser
from geodiff_jax.render import conditioning, splatted_features
from geodiff_jax.training import denoising


class RecordedBatches(pipeline.Iterator):
    """This process' rows of a mixture of datasets, which `prepare_data` has made.

    Raises ValueError for datasets without what the config's batches hold, and where
    its mixture takes none of them.
    """

    def __init__(
        self,
        config: generator.Config,
        folders: Sequence[str],
        *,
        split: str = "train",
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._shapes = generator.batch_shapes(config)
        contents = contents_of(config, self._shapes)
        sources = [loading.open_source(folder, split, contents) for folder in folders]
        super().__init__(
            pipeline.batches(
                pipeline.mixture(sources, **config.mixture.to_dict()),
                pairing_of(config),
                contents,
                batch=config.batch // processes,
                seed=config.seed,
                host=process,
                num_hosts=processes,
            ),
            workers=workers,
        )

    def __next__(self) -> denoising.Batch:
        """This process' rows of the next batch."""
        return to_batch(super().__next__(), self._shapes)


def one_of_each(
    config: generator.Config, folders: Sequence[str], *, split: str
) -> Iterator[denoising.Batch]:
    """Endless batches with one example of every person, their crops as they are.

    Raises ValueError for datasets without what the config's batches hold.
    """
    shapes = generator.batch_shapes(config)
    contents = dataclasses.replace(contents_of(config, shapes), ranges=None)
    people = [
        person
        for folder in folders
        for person in loading.by_subject(loading.open_source(folder, split, contents))
    ]
    streams = [
        pipeline.Iterator(
            pipeline.batches([x], pairing_of(config), contents, batch=1, seed=seed)
        )
        for seed, x in enumerate(people)
    ]
    while True:
        items = [next(stream) for stream in streams]
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *items)
        yield to_batch(together, shapes)


def contents_of(config: generator.Config, shapes: denoising.Batch) -> loading.Contents:
    """What is read of every record."""
    layout = conditioning.LAYOUTS[config.model.layout]
    domains = ("image", "normal")[: shapes.latents.shape[1]]
    return loading.Contents(
        maps=tuple(x for x in layout.maps if x != "features"),
        surface=None if shapes.surface is None else shapes.surface.side,
        side=config.latents,
        reference=shapes.reference is not None,
        domains=domains,
        latents=True,
        crop=None if shapes.driving is None else config.crop,
        geometry=config.model.get("geometry_slot", False),
        uv=shapes.uv is not None,
    )


def pairing_of(config: generator.Config) -> pairing.Pairing:
    """How examples are put together: round a geometry slot, of one instant."""
    geometry = config.model.get("geometry_slot", False)
    return pairing.Pairing(
        frames=config.frames,
        views=config.views - geometry,
        instant=geometry,
        references=(1, config.get("references", 1)),
        cross_view=config.get("cross_view", 0.0),
    )


def to_batch(read: dict[str, Any], shapes: denoising.Batch) -> denoising.Batch:
    """What the pipeline gives, in the step's own form, without what it has no use for.

    Raises ValueError where an item has other sizes than the config's.
    """
    reference = surface = None
    if shapes.reference is not None:
        reference = denoiser.Reference(**read["reference"])
    if shapes.surface is not None:
        side = shapes.surface.side
        surface = splatted_features.Surface(**read["surface"], side=side)
    batch = denoising.Batch(
        read["latents"],
        conditioning.Conditioning(**read["signals"]),
        reference=reference,
        driving=None if shapes.driving is None else read["driving"],
        synthetic=None if shapes.synthetic is None else read["synthetic"],
        frames=None if shapes.frames is None else read["frames"],
        surface=surface,
        uv=None if shapes.uv is None else read["uv"],
    )
    wanted, found = (_sizes(tree) for tree in (shapes, batch))
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"Expected items with {name} of {wanted.get(name)}, got "
                f"{found.get(name)}; prepare the dataset for this size."
            )
    return batch


def _sizes(batch: denoising.Batch) -> dict[str, tuple[int, ...]]:
    """Of an item's parts, by name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape[1:])
        for path, leaf in jax.tree.leaves_with_path(batch)
    }
