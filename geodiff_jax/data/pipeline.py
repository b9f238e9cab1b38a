"""Batches for training: the same ones for any number of workers and any restart.

Hosts take disjoint slices of every source, each slice is shuffled, sources are mixed by
priority x size, records are paired, read, cropped and batched; all that is a function
of the batch's number, so a position is one integer.

A batch is a dict of numpy arrays. Its names are those of `training.denoising.Batch`
and, in "signals" and "reference", of `render.conditioning.Conditioning` and
`models.denoiser.Reference`:

  latents    (batch, domain, view, time, h, w, c), where latents are cached; otherwise
  image      (batch, view, time, y, x, 3) bytes, and
  normal     likewise, 128 for 0: see `pixels`
  signals    maps (batch, view, time, h, w, c), reference_latents likewise (if cached),
             reference_slots (batch, view, time)
  reference  of the reference net: latents or image, and head_pose, (batch, ...)
  uv         (batch, view, h, w, 3) as stored, of all views but the geometry slot
  driving    (batch, view, time, y, x, 3) bytes
  surface    of `splatted_features.Surface`: positions (batch, view, time, s, s, 3) in
             the camera's axes, and intrinsics (batch, view, time, 4)
  synthetic  (batch,)
  frames     (batch, time): False where a frame is padding
  replaced   (batch,): how many unreadable examples each one stands in for

Latents and maps are in the half precision in which they are stored: they and bytes are
less to move, and `denoising.in_single_precision` is a step's to do.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import grain.multiprocessing
import numpy as np
from absl import logging

from geodiff_jax.data import loading, pairing


def batches(
    sources: Sequence[loading.Source],
    pair: pairing.Pairing,
    contents: loading.Contents,
    *,
    batch: int,
    seed: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> grain.MapDataset:
    """Endless batches of one host, by number; `batch` is what this host gets.

    Raises ValueError for no sources, or more hosts than a source has records.
    """
    pairing.check(pair)
    if not sources:
        raise ValueError("Expected at least one source of examples, got none.")
    streams, weights = [], []
    for number, source in enumerate(sources):
        if len(source.index) < num_hosts:
            raise ValueError(
                f"Expected at least {num_hosts} records of {source.name}, one for each "
                f"host, got {len(source.index)}."
            )
        # Hosts draw differently: one seed would pair and crop alike on all of them.
        order, draws = np.random.SeedSequence([seed, number, host]).generate_state(2)
        stream = grain.MapDataset.range(len(source.index))[host::num_hosts]
        stream = stream.shuffle(seed=int(order)).repeat()
        load = loading.Loader(source, pair, contents)
        streams.append(stream.random_map(load, seed=int(draws)))
        weights.append(source.priority * len(source.index))
    # Sliced first: slices of a mixture would be mixed unevenly. Batched before
    # iteration: else the order would depend on the number of workers.
    return grain.MapDataset.mix(streams, weights).batch(batch, drop_remainder=True)


def mixture(
    sources: Sequence[loading.Source],
    priorities: Mapping[str, float],
    *,
    by_size: bool = True,
) -> list[loading.Source]:
    """Sources with the priorities of their datasets; those of priority 0 are left out.

    A dataset whose people are synthetic goes by "synthetic", others by their names;
    what is not named has priority 1. They are drawn by priority x size (001, Sec 4.1),
    or, not by size, by their priorities alone (004, B), which folders of one kind
    share.

    Raises ValueError for negative priorities, and if no source is left.
    """
    kinds = ["synthetic" if x.is_synthetic() else x.name for x in sources]
    own = [priorities.get(kind, 1.0) for kind in kinds]
    if min(own, default=0.0) < 0.0 or max(own, default=0.0) == 0.0:
        raise ValueError(
            "Expected data with priorities of at least 0, and above it for some, got "
            f"{dict(zip(kinds, own, strict=True))}; change them, or give other data."
        )
    sizes = collections.Counter()
    for kind, source in zip(kinds, sources, strict=True):
        sizes[kind] += len(source.index)
    return [
        dataclasses.replace(x, priority=each if by_size else each / sizes[kind])
        for x, kind, each in zip(sources, kinds, own, strict=True)
        if each > 0.0
    ]


class Iterator:
    """Batches from a position on; the position is the number of batches handed out.

    `replaced` counts the unreadable examples in place of which others were read.

    With workers, run under absl.app.run and guard `__main__`: they are spawned. If one
    is killed others take over, and the batches stay what they were.
    """

    def __init__(
        self, dataset: grain.MapDataset, *, workers: int = 0, threads: int = 1
    ) -> None:
        self._dataset, self._workers, self._threads = dataset, workers, threads
        self._position, self._running = 0, None
        self.replaced = 0

    def __iter__(self) -> "Iterator":
        return self

    def __next__(self) -> Any:
        if self._running is None:
            self._running = iter(self._remaining())
        try:
            batch = next(self._running)
        except RuntimeError as error:
            if not self._workers:
                raise
            # So grain says that a worker was killed, by the system if memory is short.
            # New ones read the same; if they die too, that is raised.
            logging.warning("Reading batch %d again: %s", self._position, error)
            self._running = iter(self._remaining())
            batch = next(self._running)
        self._position += 1
        self.replaced += int(batch["replaced"].sum())
        return batch

    def get_state(self) -> dict[str, int]:
        """What `set_state` takes, here or with any other workers; fits JSON."""
        return {"batches": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where the state was taken."""
        self.close()
        self._position = state["batches"]

    def close(self) -> None:
        """Stops workers; a later batch starts them again."""
        self._running = None  # Grain's iterator ends its workers as it goes.

    def _remaining(self) -> grain.IterDataset:
        options = grain.ReadOptions(
            num_threads=self._threads, prefetch_buffer_size=2 * self._threads
        )
        data = self._dataset[self._position :].to_iter_dataset(options)
        if not self._workers:
            return data
        return data.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=2
            )
        )


def pixels(batch: dict[str, Any], *, domains: Sequence[str]) -> Any:
    """(batch, domain, view, time, y, x, 3) in [-1, 1], as autoencoders take them.

    Of a batch of numpy or of jax arrays.
    """
    middle = {"image": 127.5, "normal": 128.0}
    reach = {"image": 127.5, "normal": 127.0}
    planes = [
        (batch[name].astype(np.float32) - middle[name]) / reach[name]
        for name in domains
    ]
    return planes[0].__array_namespace__().stack(planes, axis=1)
