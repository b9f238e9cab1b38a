"""Latents in place of pictures: what training reads once its autoencoder is fixed.

A cached dataset has the records of another, in the same order, with all that a step
takes: latents of image and normals, condition maps, the camera, and the window round
the face from which driving crops are cut. Where `uv` is among the maps of a dataset
with `surface`, records also get `geometry`: latents of the position map
(`position_maps`), a field of its own, so that only GeoFace reads it. Encoding may be
killed and goes on.
"""

import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from PIL import Image

from geodiff_jax import reporting
from geodiff_jax.data import augment, building, loading, position_maps, schema
from geodiff_jax.io import atomic

DOMAINS = ("image", "normal")
GEOMETRY = ("surface", "camera_from_world", "translation")
"""Of a record, what its position map is made of."""
CHUNK = 256
"""Records that are encoded between two marks of progress."""
JPEG_QUALITY = 90
"""Ours."""
KEPT = ("camera_from_world", "synthetic")

Encode = Callable[[Float[np.ndarray, "n y x 3"]], Float[np.ndarray, "n h w c"]]
"""Clean latents of pixels in [-1, 1]: an autoencoder's means, scaled as it says."""


class CachedLatents(tfds.core.GeneratorBasedBuilder):
    """Packs encoded chunks beside what is kept of the original's records."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        original: str,
        chunks: pathlib.Path,
        splits: Sequence[str],
        maps: Sequence[str],
        geometry: bool,
        face: int,
        **kwargs,
    ) -> None:
        self._original, self._chunks, self._splits = original, chunks, splits
        self._geometry = geometry
        self._kept, self._face = (*KEPT, *maps), face
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        stored = _features(self._original)
        shape = np.load(_chunk(self._chunks, self._splits[0], 0)).shape[2:]
        number = tfds.features.Tensor
        kept = {name: stored[name] for name in self._kept}
        encoded = {"latents": (len(DOMAINS), *shape)}
        if self._geometry:
            encoded["geometry"] = shape
        features = {
            **{
                name: number(shape=size, dtype=np.float16, encoding="bytes")
                for name, size in encoded.items()
            },
            "intrinsics": number(shape=(4,), dtype=np.float32, encoding="bytes"),
            "face": tfds.features.Image(
                shape=(self._face, self._face, 3), encoding_format="jpeg"
            ),
            **kept,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        names = (*self._kept, "image", "face_box", "intrinsics")
        records = loading.StoredRecords(self._original, split, names)
        for start in range(0, len(records), CHUNK):
            encoded = np.load(_chunk(self._chunks, split, start))
            for number, latents in enumerate(encoded, start):
                record = records[number]
                picture = loading.opened(record.pop("image"))
                box, intrinsics = record.pop("face_box"), record["intrinsics"]
                if self._geometry:
                    record["geometry"] = latents[len(DOMAINS)]
                yield (
                    number,
                    {
                        **record,
                        "latents": latents[: len(DOMAINS)],
                        "intrinsics": np.float32(intrinsics / picture.width),
                        "face": self._window(picture, box),
                    },
                )

    def _window(self, picture: Image.Image, box: np.ndarray) -> io.BytesIO:
        stream = io.BytesIO()
        window = augment.stored_window(picture, box, size=self._face)
        Image.fromarray(window).save(stream, format="JPEG", quality=JPEG_QUALITY)
        stream.seek(0)
        return stream


def cache(
    data_path: str | os.PathLike,
    encode: Encode,
    *,
    name: str,
    splits: Sequence[str] = ("train", "held_out"),
    maps: Sequence[str] | None = None,
    batch: int = 8,
    face: int = 320,
) -> pathlib.Path:
    """Encodes a finished dataset; returns the folder that `loading.open_source` takes.

    `name` is the autoencoder's, and part of the folder's; `maps` those of the layouts
    that will be trained, for they are most of a record (by default all there are);
    `face` the side of stored windows (ours: for crops of 224).

    Raises:
      ValueError: the dataset is not finished, or lacks one of the maps; it was cached
        before, without one of them.
    """
    original = pathlib.Path(data_path)
    for split in splits:
        building.read_index(original, split)
    held = _features(str(original))
    maps = [x for x in schema.MAPS if x in held] if maps is None else maps
    missing = sorted(set(maps) - set(held))
    if missing:
        raise ValueError(
            f"Expected {', '.join(missing)} in the records of {original}, got none; "
            "leave them out, or prepare the dataset with them."
        )
    geometry = "uv" in maps and "surface" in held
    # name/version, or name/config/version below the folder of all datasets.
    full_name = tfds.builder_from_directory(str(original)).info.full_name.split("/")
    data_dir, dataset = original.parents[len(full_name) - 1], "-".join(full_name)
    kind = "geometry" if geometry else "pictures"
    chunks = data_dir / f".latents-{dataset}-{name}-{kind}.parts"
    target = data_dir / "cached_latents" / f"{dataset}-{name}" / "1.0.0"
    if building.read_report(target) is not None:
        _check_holds(target, {*maps, *(["geometry"] if geometry else [])})
        return target
    for split in splits:
        _encode_split(original, split, encode, chunks, geometry=geometry, batch=batch)
    builder = CachedLatents(
        original=str(original),
        chunks=chunks,
        splits=splits,
        maps=maps,
        geometry=geometry,
        face=face,
        config=tfds.core.BuilderConfig(name=f"{dataset}-{name}"),
        data_dir=data_dir,
        file_format="array_record",
    )
    builder.download_and_prepare()
    for split in splits:
        index = f"index-{split}.npz"
        atomic.write_bytes(target / index, (original / index).read_bytes())
    report = (original / "report.json").read_bytes()
    atomic.write_bytes(target / "report.json", report)
    shutil.rmtree(chunks, ignore_errors=True)
    return target


def _check_holds(target: pathlib.Path, names: set[str]) -> None:
    missing = sorted(names - set(_features(str(target))))
    if missing:
        raise ValueError(
            f"Expected {', '.join(missing)} in the records of {target}, got none; "
            "remove it, or choose another name: it was cached without."
        )


def _encode_split(
    original: pathlib.Path,
    split: str,
    encode: Encode,
    chunks: pathlib.Path,
    *,
    geometry: bool,
    batch: int,
) -> None:
    fields = (*DOMAINS, *GEOMETRY) if geometry else DOMAINS
    records = loading.StoredRecords(original, split, fields)
    starts = range(0, len(records), CHUNK)
    missing = [x for x in starts if not _chunk(chunks, split, x).exists()]
    with reporting.progress(f"Encoding {split}", len(missing)) as advance:
        for start in missing:
            stop = min(start + CHUNK, len(records))
            rows = [
                _latents(records, range(i, min(i + batch, stop)), encode, batch)
                for i in range(start, stop, batch)
            ]
            with atomic.new_file(_chunk(chunks, split, start)) as temporary:
                np.save(temporary, np.concatenate(rows))
            advance()


def _latents(
    records: loading.StoredRecords, numbers: range, encode: Encode, batch: int
) -> Float[np.ndarray, "n domain h w c"]:
    """Of some records, geometry last; always `batch` at a time, so that one program is
    compiled."""
    padded = [*numbers, *[numbers[-1]] * (batch - len(numbers))]
    read = [records[number] for number in padded]
    images, normals = (
        np.stack([loading.decoded(record[name]) for record in read]) for name in DOMAINS
    )
    shown = [
        images.astype(np.float32) / 127.5 - 1.0,
        schema.normals_from_bytes(normals),
    ]
    if "surface" in read[0]:
        size = images.shape[-2]
        shown.append(np.stack([position_picture(x, size=size) for x in read]))
    encoded = [np.asarray(encode(pixels), np.float16) for pixels in shown]
    return np.stack(encoded, axis=1)[: len(numbers)]


def position_picture(
    record: Mapping[str, Any], *, size: int
) -> Float[np.ndarray, "size size 3"]:
    """What stands for a record's geometry, as large as its picture."""
    positions, pose, origin = (np.asarray(record[x], np.float32) for x in GEOMETRY)
    positions = position_maps.resize(positions, size=size)
    return position_maps.pixels_from_positions(positions, pose, origin)


def _features(data_path: str) -> Any:
    return tfds.builder_from_directory(data_path).info.features


def _chunk(chunks: pathlib.Path, split: str, start: int) -> pathlib.Path:
    return chunks / f"{split}-{start:09d}.npy"
