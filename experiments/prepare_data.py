r"""A dataset as ArrayRecords that training reads, from its source's own files.

python -m experiments.prepare_data --dataset=procedural_heads --data_dir=data \
    --plan=tiny --workers=2
python -m experiments.prepare_data --dataset=nersemble --source=nersemble_v2 \
    --track=vhap_exports --head=flame2023.safetensors --normals=david.onnx --plan=paper

Progress is kept in `data_dir`: a run that was killed goes on where it stood. At its
end `report.json`, beside the records, says how many examples there are, and which were
skipped and why.

`--normals` and `--matte` name what fills in for a dataset that has none: "fit" (the
fitted mesh), an ONNX file, a folder SUBJECT/CLIP/VIEW/FRAME.png, for mattes mediapipe
too. `--track` is a folder of fits, of the head in `--head`.

`--cache_latents=vae.safetensors` (of `train_vae` or `convert_weights`) also encodes its
pictures: the folder it names is what `train_denoiser --data` reads.
"""

import collections
import dataclasses
import functools
import pathlib
import sys

from absl import app, flags, logging

from experiments import latent_codec
from geodiff_jax.data import (
    ava256,
    building,
    captures,
    estimates,
    mead,
    nersemble,
    procedural_heads,
    recordings,
    renderme360,
    synth_human,
    vfhq,
)

RECORDED = {
    "ava256": ava256,
    "captures": captures,
    "mead": mead,
    "nersemble": nersemble,
    "renderme360": renderme360,
    "synth_human": synth_human,
    "vfhq": vfhq,
}
"""Datasets of fitted recordings: each module tells their layout."""

_DATASET = flags.DEFINE_enum(
    "dataset", "procedural_heads", ["procedural_heads", *RECORDED], "Which dataset."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of all datasets.")
_PLAN = flags.DEFINE_enum(
    "plan", "tiny", sorted(procedural_heads.PLANS), "How many examples, how large."
)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", lower_bound=1)
_SOURCE = flags.DEFINE_string("source", None, "Folder of the dataset's own files.")
_TRACK = flags.DEFINE_string("track", None, "Folder of fits, where it brings none.")
_HEAD = flags.DEFINE_string("head", None, "What prepare_head wrote; else built in.")
_NORMALS = flags.DEFINE_string("normals", None, "fit, a folder or an .onnx file.")
_MATTE = flags.DEFINE_string("matte", None, "Likewise, or mediapipe.")
_STRIDE = flags.DEFINE_integer(
    "stride", 1, "Every so many-th tracked frame.", lower_bound=1
)
_TRACK_RATE = flags.DEFINE_float(
    "track_rate", 25.0, "Frames per second that the tracker saw; 0 for all."
)
_DETECT = flags.DEFINE_multi_enum(
    "detect", [], ["faces", "hands"], "Leave out frames in which mediapipe sees these."
)
_LICENCE = flags.DEFINE_string("licence", None, "Of captures: what may be done.")
_SYNTHETIC = flags.DEFINE_bool("synthetic", False, "Captures are not photographed.")
_HELD_OUT = flags.DEFINE_list("held_out", None, "Subjects that are never trained on.")
_CACHE_LATENTS = flags.DEFINE_string(
    "cache_latents", None, "File of the autoencoder whose latents are kept beside."
)


def main(argv: list[str]) -> None:
    """Makes parts, packs them, and says what came of it."""
    del argv
    logging.set_verbosity(logging.WARNING)
    codec = _CACHE_LATENTS.value
    try:
        if codec is not None:
            latent_codec.load(codec)  # Sooner than after hours of rendering.
        folder, report = _prepare()
        cached = None
        if codec is not None:
            # A split of which all is skipped has no records.
            splits = [name for name, found in report.items() if found["examples"]]
            cached = latent_codec.cache(folder, codec, splits=splits)
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        print(f"prepare_data: {said or error}", file=sys.stderr)
        sys.exit(2)
    for split, found in report.items():
        print(f"{split}: {found['examples']} examples in {folder}")
        reasons = collections.Counter(one["reason"] for one in found["skipped"])
        for reason, count in reasons.most_common():
            print(f"  {count} skipped: {reason}")
    if cached is not None:
        print(f"Their latents are in {cached}.")


def prepare(
    data_dir: str, size: str, *, workers: int
) -> tuple[pathlib.Path, dict[str, dict]]:
    """(folder of the records, report); returns at once where all is done.

    Raises ValueError or OSError in one sentence.
    """
    parts = pathlib.Path(data_dir) / f".procedural_heads-{size}.parts"
    builder = procedural_heads.ProceduralHeads(
        parts=parts, config=size, data_dir=data_dir, file_format="array_record"
    )
    plan = procedural_heads.PLANS[size]
    folder = pathlib.Path(builder.data_path)
    done = building.read_report(folder)
    options = {"plan": dataclasses.asdict(plan), "version": str(builder.version)}
    building.claim(parts if done is None else folder, options)
    if done is not None:
        return folder, done
    make = functools.partial(procedural_heads.examples, plan=plan)
    names = [name for split in plan.parts().values() for name in split]
    building.make_parts(names, make, parts, workers=workers, title="Rendering")
    return folder, building.finish(builder, plan.parts(), parts)


def prepare_recordings(
    dataset: str,
    job: recordings.Job,
    data_dir: str,
    size: str,
    *,
    held_out: list[str] | None = None,
    workers: int = 1,
) -> tuple[pathlib.Path, dict[str, dict]]:
    """The same for a dataset among `RECORDED`, with what a user asks for."""
    module = RECORDED[dataset]
    if not job.source.is_dir():
        raise ValueError(f"Expected a folder for --source, got {job.source}.")
    fits_here = job.track == recordings.FIT_HERE and module is synth_human
    if job.track is not None and not fits_here and not job.track.is_dir():
        raise ValueError(f"Expected a folder of fits for --track, got {job.track}.")
    estimates.check_source(job.normals, what="normals")
    estimates.check_source(job.matte, what="matte")
    estimates.check_detectors(job.detect)
    head = recordings.load_head(job.head)
    job = dataclasses.replace(job, sizes=recordings.drawn_of(head, job.sizes))
    found = module.parts(job)
    splits = recordings.split_parts(found, held_out or module.HELD_OUT)
    parts = pathlib.Path(data_dir) / f".{dataset}-{size}.parts"
    builder = module.BUILDER(
        parts=parts,
        splits=splits,
        sizes=job.sizes,
        head=head,
        config=building.packed_config(size),
        data_dir=data_dir,
        file_format="array_record",
    )
    folder = pathlib.Path(builder.data_path)
    options = {**job.describe(), "held_out": held_out, "parts": len(found)}
    done = building.read_report(folder)
    building.claim(parts if done is None else folder, options)
    if done is not None:
        return folder, done
    make = functools.partial(recordings.examples, open_part=module.open_part, job=job)
    names = [name for split in splits.values() for name in split]
    building.make_parts(names, make, parts, workers=workers, title="Framing")
    count, reasons = building.count_examples(parts, splits["train"])
    if count == 0:
        raise ValueError(
            f"Expected examples of {dataset} to train on, got none: all are skipped, "
            f"most because of: {', '.join(x for x, _ in reasons.most_common(3))}; mend "
            f"that and remove {parts}."
        )
    return folder, building.finish(builder, splits, parts)


def _prepare() -> tuple[pathlib.Path, dict[str, dict]]:
    """What the flags ask for."""
    if _DATASET.value == "procedural_heads":
        return prepare(_DATA_DIR.value, _PLAN.value, workers=_WORKERS.value)
    if _SOURCE.value is None:
        raise ValueError(
            f"Expected --source, the folder of {_DATASET.value}'s own files, got none."
        )

    def path(value: str | None) -> pathlib.Path | None:
        return None if value is None else pathlib.Path(value)

    job = recordings.Job(
        source=pathlib.Path(_SOURCE.value),
        track=path(_TRACK.value),
        head=path(_HEAD.value),
        sizes=recordings.PLANS[_PLAN.value],
        stride=_STRIDE.value,
        track_rate=_TRACK_RATE.value,
        matte=_MATTE.value,
        normals=_NORMALS.value,
        detect=tuple(_DETECT.value),
        licence=_LICENCE.value,
        synthetic=_SYNTHETIC.value,
    )
    return prepare_recordings(
        _DATASET.value,
        job,
        _DATA_DIR.value,
        _PLAN.value,
        held_out=_HELD_OUT.value,
        workers=_WORKERS.value,
    )


if __name__ == "__main__":
    app.run(main)
