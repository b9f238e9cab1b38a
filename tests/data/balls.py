"""Balls in place of heads: pictures with normals in closed form, made in no time."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from geodiff_jax.data import building, loading, schema
from geodiff_jax.head import model as head_model
from tests.head import random_head

HEAD = random_head.load()
SIZES = schema.Sizes(image=32, map=4, surface=2)
CODE = 0.001
"""What latents and head-pose maps hold is the record's number times this."""


def example(
    subject: str = "ann",
    clip: str = "talk",
    frame: int = 0,
    view: str = "left",
    *,
    sizes: schema.Sizes = SIZES,
) -> schema.Example:
    """A ball in the middle, its colour told by its labels."""
    side = sizes.image
    x, y = disc(side, radius=0.8)
    inside = np.square(x) + np.square(y) < 1.0
    z = np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))
    normal = np.where(inside[..., None], np.stack([x, y, z], axis=-1), 0.0)
    shade = np.array([len(subject), frame, len(view)]) / 32.0
    params = head_model.neutral(HEAD)
    maps = {name: np.zeros(sizes.of_map(name), np.float32) for name in sizes.maps}
    maps |= {"surface": chart(sizes.surface), "uv": seen(sizes.of_map("uv")[0])}
    return schema.Example(
        image=np.where(inside[..., None], shade, 1.0).astype(np.float32),
        normal=normal.astype(np.float32),
        mask=inside.astype(np.float32),
        camera_from_world=np.array([1.0, 0, 0, 0, 0, 0, 1.0], np.float32),
        intrinsics=np.array([40.0, 40.0, side / 2, side / 2], np.float32),
        params=head_model.HeadParams(
            **{name: np.asarray(value) for name, value in vars(params).items()}
        ),
        head_version=HEAD.version,
        maps={name: maps[name] for name in sizes.maps},
        face_box=np.array([8.0, 8.0, 24.0, 24.0], np.float32),
        subject=subject,
        clip=clip,
        frame=frame,
        view=view,
        synthetic=True,
        licence="none",
    )


def chart(side: int) -> np.ndarray:
    """Positions of the near half, of 0.1 m, that lies flat in the chart."""
    x, y = disc(side)
    away = -np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))
    inside = (np.square(x) + np.square(y) < 1.0)[..., None]
    return np.where(inside, 0.1 * np.stack([x, -y, away], axis=-1), 0.0)


def seen(side: int) -> np.ndarray:
    """u, v and visibility in a picture of that side."""
    x, y = disc(side, radius=0.8)
    inside = np.square(x) + np.square(y) < 1.0
    coordinates = [(x + 1.0) / 2.0, (y + 1.0) / 2.0, np.ones_like(x)]
    return inside[..., None] * np.stack(coordinates, axis=-1)


def disc(side: int, *, radius: float = 1.0) -> np.ndarray:
    """x to the right and y up of pixels, in radii of a disc in the middle."""
    grid = ((np.arange(side) + 0.5) / side * 2.0 - 1.0) / radius
    return np.stack(np.meshgrid(grid, -grid))


def examples(name: str) -> Iterator[schema.Example | building.Skipped]:
    """A part: two cameras see two frames, and a third is skipped."""
    for frame in range(2):
        for view in ("left", "right"):
            yield example(name, "talk", frame, view)
    yield building.Skipped(f"{name}/talk/2/left", "fell off the table")


class Balls(tfds.core.GeneratorBasedBuilder):
    """Packs what parts there are."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, parts, names, **kwargs):
        self.parts, self.names = parts, names
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=schema.features(SIZES, HEAD),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        encoded = [e for n in self.names for e in building.read_part(self.parts, n)[0]]
        for number, one in enumerate(encoded):
            yield number, building.to_record(one)


def source(labels, *, name="balls", priority=1.0, latents=4) -> loading.Source:
    """Records in memory; latents and maps tell their numbers."""
    records = []
    for number, label in enumerate(labels):
        record = schema.encode(example(*label))
        record["head_pose"] = np.full_like(record["head_pose"], number * CODE)
        record["latents"] = np.full((2, latents, latents, 4), number * CODE, np.float32)
        record["latents"][1] *= -1.0
        record["geometry"] = record["latents"][0] + 0.5 * CODE
        record["face"] = record["image"]
        records.append(record)
    index = building.index_of(labels)
    return loading.Source(name, records, index, SIZES.image, priority)


def spoilt(source: loading.Source, number: int, **values) -> loading.Source:
    """The same source with fields of one record replaced."""
    records = list(source.records)
    records[number] = {**records[number], **values}
    return dataclasses.replace(source, records=records)


def numbers(codes: np.ndarray) -> np.ndarray:
    """Which records the latents or maps are of."""
    return np.rint(codes[..., 0, 0, 0] / CODE).astype(int)
