"""Pictures of prepared datasets, for the autoencoder: an image beside its normals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from geodiff_jax.data import loading, pairing, pipeline
from geodiff_jax.training import autoencoding

DOMAINS = autoencoding.DOMAINS
CONTENTS = loading.Contents(maps=(), reference=False, domains=DOMAINS, crop=None)
Pictures = Float[np.ndarray, "n domain y x 3"]
"""In [-1, 1], white or zero where there is nothing."""


class PictureBatches(pipeline.Iterator):
    """This process' rows of a mixture of datasets, which `prepare_data` has made.

    Raises ValueError for datasets without pictures of `image` pixels.
    """

    def __init__(
        self,
        folders: Sequence[str],
        *,
        image: int,
        batch: int,
        seed: int = 0,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(
            pipeline.batches(
                [opened(folder, "train", image=image) for folder in folders],
                pairing.Pairing(),
                CONTENTS,
                batch=batch // processes,
                seed=seed,
                host=process,
                num_hosts=processes,
            ),
            workers=workers,
        )

    def __next__(self) -> Pictures:
        """This process' rows of the next batch."""
        # One view, one instant.
        return pipeline.pixels(super().__next__(), domains=DOMAINS)[:, :, 0, 0]


def opened(folder: str, split: str, *, image: int) -> loading.Source:
    """A dataset's split. Raises ValueError where its pictures have another size."""
    source = loading.open_source(folder, split, CONTENTS)
    if source.image != image:
        raise ValueError(
            f"Expected pictures of {image} pixels in {folder}, got {source.image}; "
            "prepare the dataset in this size, or set --config.image."
        )
    return source


def spread(folders: Sequence[str], split: str, *, image: int, count: int) -> Pictures:
    """At most `count` records of each folder's split, evenly spread over it."""
    shown: dict[str, Any] = {name: [] for name in DOMAINS}
    for folder in folders:
        records = opened(folder, split, image=image).records
        numbers = np.linspace(0, len(records) - 1, min(count, len(records)))
        for number in np.rint(numbers).astype(int):
            record = records[int(number)]
            for name in DOMAINS:
                shown[name].append(loading.decoded(record[name]))
    stacked = {name: np.stack(pictures) for name, pictures in shown.items()}
    return pipeline.pixels(stacked, domains=DOMAINS)
