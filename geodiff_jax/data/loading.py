"""Training examples read from records: what a `pairing.Choice` names, as arrays."""

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from google.protobuf import message
from jaxtyping import Int, UInt8
from PIL import Image

from geodiff_jax.data import augment, building, pairing, rays, schema

ATTEMPTS = 8
"""How many examples in a row may be unreadable (ours): more is a broken disk."""
UNREADABLE = (ValueError, OSError, RuntimeError, SyntaxError, message.DecodeError)
"""What readers of records and of PNGs raise for torn bytes."""
RAYS = {"rays": rays.ray_map, "plucker": rays.plucker_map}
"""Maps that are made of the cameras alone."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What examples hold; defaults are GeoDiff4D's, pictures not yet encoded."""

    maps: tuple[str, ...] = ("head_pose",)
    """Fields of `Conditioning`: of `schema.MAPS`, of `RAYS`, or masks."""
    side: int = 64
    """Of maps and latents."""
    reference: bool = True
    """Whether a reference net sees a picture; else references lie in slots."""
    domains: tuple[str, ...] = ("image", "normal")
    latents: bool = False
    """Whether cached latents take the place of pictures."""
    crop: int | None = 224
    """Side of driving crops; None for none."""
    surface: int | None = None
    """Side of the map on which learnt features are drawn (004); None for none."""
    geometry: bool = False
    """Whether the last view is no picture but cached latents of the position map that
    the first reference's record has (003)."""
    uv: bool = False
    """Whether what all other views see of its chart comes along."""
    ranges: augment.Ranges | None = dataclasses.field(default_factory=augment.Ranges)
    """How far driving crops are changed; None for not at all."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One dataset, as records that can be read in any order."""

    name: str
    """Of the dataset, also where these are its cached latents."""
    records: Sequence[dict[str, Any]]
    """As `schema.encode` makes them, or as `latents.cache` does."""
    index: building.Index
    image: int
    """Pixels along a side of its pictures; 1 for cached ones, whose intrinsics are in
    sides of the picture."""
    priority: float = 1.0
    """Its share of a mixture, for its size (001, Sec 4.1)."""

    def is_synthetic(self) -> bool:
        """As the first record that can be read says; datasets are of one kind."""
        for record in range(len(self.records)):
            try:
                return bool(self.records[record]["synthetic"])
            except UNREADABLE as error:
                logging.warning("%s: record %d: %s", self.name, record, error)
        raise ValueError(f"Expected a record of {self.name} to be readable, got none.")


def chosen(source: Source, numbers: Int[np.ndarray, " n"]) -> Source:
    """A source of some of its records, in this order."""
    labels = {name: codes[numbers] for name, codes in vars(source.index).items()}
    records = _Chosen(source.records, numbers)
    return dataclasses.replace(source, records=records, index=building.Index(**labels))


def by_subject(source: Source) -> list[Source]:
    """A source for each of its people."""
    people = source.index.subject
    return [chosen(source, np.flatnonzero(people == one)) for one in np.unique(people)]


class _Chosen(Sequence):
    """Some of a sequence's records."""

    def __init__(self, records: Sequence, numbers: Int[np.ndarray, " n"]) -> None:
        self._records, self._numbers = records, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Any:  # pyright: ignore
        return self._records[int(self._numbers[number])]


class StoredRecords(Sequence):
    """Records of a finished dataset; only the fields asked for are decoded."""

    def __init__(
        self, data_path: str | os.PathLike, split: str, fields: Sequence[str]
    ) -> None:
        self._path, self._fields = str(data_path), tuple(fields)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        builder: Any = tfds.builder_from_directory(self._path)
        self._raw = builder.as_data_source(split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, number: int) -> dict[str, Any]:  # pyright: ignore
        features, decoders = _stored_features(self._path, self._fields)
        return features.deserialize_example_np(self._raw[number], decoders=decoders)


def open_source(
    data_path: str | os.PathLike,
    split: str,
    contents: Contents,
    *,
    priority: float = 1.0,
) -> Source:
    """A finished dataset's split.

    Raises:
      ValueError: the dataset is not finished, or lacks what the contents ask for.
    """
    index = building.read_index(data_path, split)
    names = needed(contents)
    _stored_features(str(data_path), names)
    stored: Any = tfds.builder_from_directory(str(data_path)).info
    cached = stored.name == "cached_latents"
    return Source(
        # Cached latents are told by the dataset of which they are.
        name=(stored.config_name if cached else stored.name).partition("-")[0],
        records=StoredRecords(data_path, split, names),
        index=index,
        image=1 if contents.latents else stored.features["image"].shape[0],
        priority=priority,
    )


def needed(contents: Contents) -> tuple[str, ...]:
    """What has to be read of a record."""
    names = [name for name in contents.maps if name in schema.MAPS]
    names += ["latents"] if contents.latents else list(contents.domains)
    if set(RAYS) & set(contents.maps) or contents.surface is not None:
        names += ["camera_from_world", "intrinsics"]
    if contents.surface is not None:
        names += ["surface"]
    if contents.geometry:
        names += ["geometry"]
    if contents.uv:
        names += ["uv"]
    if contents.crop is not None:
        names += ["face"] if contents.latents else ["face_box", "image"]
    return (*dict.fromkeys(names), "synthetic")


class Loader:
    """Examples of a source, each drawn round a record; the same for the same draws."""

    def __init__(
        self, source: Source, pair: pairing.Pairing, contents: Contents
    ) -> None:
        self._source, self._pair, self._contents = source, pair, contents
        self._recordings = pairing.Recordings(source.index)

    def __call__(self, anchor: int, generator: np.random.Generator) -> dict[str, Any]:
        """An example, or another in place of one that cannot be read."""
        for attempt in range(ATTEMPTS):
            try:
                example = self._load(anchor, generator)
            except _Unreadable as error:
                logging.warning(
                    "%s: record %d replaced: %s", self._source.name, anchor, error
                )
                anchor = int(generator.integers(len(self._source.index)))
                continue
            return {**example, "replaced": np.asarray(attempt)}
        raise ValueError(
            f"Expected readable records in {self._source.name}, got {ATTEMPTS} broken "
            "examples in a row; check the disk, or prepare the dataset again."
        )

    def _load(self, anchor: int, generator: np.random.Generator) -> dict[str, Any]:
        contents = self._contents
        choice = pairing.choose(generator, self._recordings, anchor, self._pair)
        # Targets, drivers and references are often the same record.
        reading = _Reading(self._source)
        example = {
            **self._shown(choice, reading),
            "signals": self._signals(choice, reading),
            "synthetic": np.asarray(bool(reading.record(anchor)["synthetic"])),
            "frames": choice.frames,
        }
        if contents.uv:
            example["uv"] = self._uv(choice, reading)
        if contents.reference:
            example["reference"] = self._reference(choice.reference, reading)
        if contents.surface is not None:
            example["surface"] = self._surface(
                choice.targets, reading, side=contents.surface
            )
        if contents.crop is not None:
            crops = self._driving(generator, choice.driving, reading, contents.crop)
            example["driving"] = crops
        return example

    def _shown(self, choice: pairing.Choice, reading: "_Reading") -> dict[str, Any]:
        if self._contents.latents:
            latents = _stack(choice.targets, reading.latents)
            # Domains stand first in records, and before views in batches; images are
            # the first of them.
            domains = np.moveaxis(latents, 2, 0)[: len(self._contents.domains)]
            if self._contents.geometry:
                slot = reading.record(choice.reference)["geometry"]
                domains = np.concatenate([domains, slot[None, None, None]], axis=1)
            return {"latents": domains}
        return {
            name: _stack(choice.targets, functools.partial(reading.picture, name=name))
            for name in self._contents.domains
        }

    def _signals(
        self, choice: pairing.Choice, reading: "_Reading"
    ) -> dict[str, np.ndarray]:
        side, wanted = self._contents.side, self._contents.maps
        slots = choice.reference_slots
        ones = np.ones((*slots.shape, side, side, 1), np.float32)
        drawn = {
            "reference_mask": lambda: ones * slots[..., None, None, None],
            # Pictures are stored without padding.
            "crop_mask": lambda: ones,
        }
        signals = {}
        for name in wanted:
            if name in drawn:
                signals[name] = drawn[name]()
                continue
            of_record = functools.partial(
                reading.map, name=name, reference=choice.reference, side=side
            )
            signals[name] = _stack(choice.targets, of_record)
        if not self._contents.reference:
            signals["reference_slots"] = slots
            if self._contents.latents:
                held = _stack(choice.targets, lambda record: reading.latents(record)[0])
                signals["reference_latents"] = held * slots[..., None, None, None]
        if self._contents.geometry:
            # A target, of which no camera and no reference knows anything.
            signals = {name: _with_empty_view(x) for name, x in signals.items()}
        return signals

    def _uv(self, choice: pairing.Choice, reading: "_Reading") -> np.ndarray:
        """(view, h, w, 3) of the pictures' single frames."""
        of_record = functools.partial(
            reading.map,
            name="uv",
            reference=choice.reference,
            side=self._contents.side // 2,
        )
        return _stack(choice.targets, of_record)[:, 0]

    def _reference(self, record: int, reading: "_Reading") -> dict[str, np.ndarray]:
        if self._contents.latents:
            seen = {"latents": reading.latents(record)[0]}
        else:
            seen = {"image": reading.picture(record, name="image")}
        if "head_pose" in self._contents.maps:
            side = self._contents.side
            seen["head_pose"] = reading.map(
                record, name="head_pose", reference=record, side=side
            )
        return seen

    def _surface(
        self, records: Int[np.ndarray, "view time"], reading: "_Reading", *, side: int
    ) -> dict[str, np.ndarray]:
        def positions(number: int) -> np.ndarray:
            record = reading.record(number)
            stored = np.asarray(record["surface"], np.float32)
            return rays.in_camera(stored, record["camera_from_world"])

        def intrinsics(number: int) -> np.ndarray:
            own = np.asarray(reading.record(number)["intrinsics"], np.float32)
            return own * np.float32(side / self._source.image)

        return {
            "positions": _stack(records, positions),
            "intrinsics": _stack(records, intrinsics),
        }

    def _driving(
        self,
        generator: np.random.Generator,
        records: Int[np.ndarray, "view time"],
        reading: "_Reading",
        size: int,
    ) -> np.ndarray:
        ranges = self._contents.ranges
        # One change for a clip: faces that flicker would hide their motion.
        change = augment.Change() if ranges is None else augment.draw(generator, ranges)

        def one(record: int) -> np.ndarray:
            if self._contents.latents:
                picture = reading.face(record)
                box = augment.window_box(picture.width)
            else:
                picture = Image.fromarray(reading.picture(record, name="image"))
                box = reading.record(record)["face_box"]
            return augment.crop(generator, picture, box, change, size=size)

        return _stack(records, one)


class _Unreadable(ValueError):
    """Torn or spoilt data, as opposed to a mistake of ours."""


class _Reading:
    """What one example reads, each record and picture once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._records: dict[int, dict[str, Any]] = {}
        self._pictures: dict[tuple[int, str], np.ndarray] = {}
        self._faces: dict[int, Image.Image] = {}

    def record(self, number: int) -> dict[str, Any]:
        """The fields of a record, finite."""
        if number not in self._records:
            try:
                record = self._source.records[number]
            except UNREADABLE as error:
                raise _Unreadable(f"record {number}: {error}") from error
            for name, value in record.items():
                if not _finite(np.asarray(value)):
                    raise _Unreadable(f"record {number}: NaN or infinity in {name}")
            self._records[number] = record
        return self._records[number]

    def latents(self, number: int) -> np.ndarray:
        """(domain, h, w, c)."""
        return self.record(number)["latents"]

    def picture(self, number: int, *, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of the image or the normals, as bytes."""
        if (number, name) not in self._pictures:
            side = self._source.image
            pixels = np.asarray(self._opened(number, name))
            if pixels.shape != (side, side, 3):
                raise _Unreadable(f"record {number}: {name} of shape {pixels.shape}")
            self._pictures[number, name] = pixels
        return self._pictures[number, name]

    def face(self, number: int) -> Image.Image:
        """The window round the face that lies beside cached latents."""
        if number not in self._faces:
            self._faces[number] = self._opened(number, "face")
        return self._faces[number]

    def map(self, number: int, *, name: str, reference: int, side: int) -> np.ndarray:
        """A stored map, or rays relative to the reference's camera."""
        record = self.record(number)
        if name in RAYS:
            first, pixels = self.record(reference), self._source.image
            return RAYS[name](record, first, size=side, pixels=pixels)
        drawn = record[name]
        if drawn.shape[:2] != (side, side):
            raise _Unreadable(f"record {number}: {name} of shape {drawn.shape}")
        return drawn

    def _opened(self, number: int, name: str) -> Image.Image:
        try:
            return opened(self.record(number)[name])
        except UNREADABLE as error:
            raise _Unreadable(f"record {number}: {error}") from error


def _finite(values: np.ndarray) -> bool:
    if values.dtype == np.float16:
        # By the bits of their exponents: numpy takes ten times as long.
        return not np.any(values.view(np.uint16) & 0x7C00 == 0x7C00)
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def decoded(stored: bytes | np.ndarray) -> UInt8[np.ndarray, "h w *c"]:
    """Pixels of a picture's bytes."""
    return np.asarray(opened(stored))


def opened(stored: bytes | np.ndarray) -> Image.Image:
    """The whole picture of a file's bytes, so that what is torn is found out here."""
    content = stored if isinstance(stored, bytes) else np.asarray(stored).tobytes()
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def _stack(
    records: Int[np.ndarray, "view time"], of_record: Callable[[int], np.ndarray]
) -> np.ndarray:
    """(view, time, ...) of what each record gives."""
    each = np.stack([of_record(int(record)) for record in records.flat])
    return each.reshape(*records.shape, *each.shape[1:])


def _with_empty_view(signal: np.ndarray) -> np.ndarray:
    """(view + 1, time, ...): zeros, or False, at the end."""
    return np.concatenate([signal, np.zeros_like(signal[:1])])


@functools.cache
def _stored_features(path: str, names: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Features of a dataset, cut to those with these names; pictures stay bytes."""
    stored: Any = tfds.builder_from_directory(path).info.features
    missing = sorted(set(names) - set(stored))
    if missing:
        raise ValueError(
            f"Expected {', '.join(missing)} in the records of {path}, got none; "
            "prepare the dataset with them."
        )
    pictures = [name for name in names if name in building.PICTURES]
    decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
    return tfds.features.FeaturesDict({n: stored[n] for n in names}), decoders
