r"""A dataset as ArrayRecords that training reads, from its source's own files.

python -m experiments.prepare_data --dataset=procedural_heads --data_dir=data \
    --plan=tiny --workers=2

Progress is kept in `data_dir`: a run that was killed goes on where it stood. At its
end `report.json`, beside the records, says how many examples there are, and which were
skipped and why.

`--cache_latents=vae.safetensors` (of `train_vae` or `convert_weights`) also encodes its
pictures: the folder it names is what `train_denoiser --data` reads.
"""

import collections
import functools
import pathlib
import sys

from absl import app, flags, logging

from experiments import latent_codec
from geodiff_jax.data import building, procedural_heads

_DATASET = flags.DEFINE_enum(
    "dataset", "procedural_heads", ["procedural_heads"], "Which dataset."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of all datasets.")
_PLAN = flags.DEFINE_enum(
    "plan", "tiny", sorted(procedural_heads.PLANS), "How many examples, how large."
)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", lower_bound=1)
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
        folder, report = prepare(_DATA_DIR.value, _PLAN.value, workers=_WORKERS.value)
        cached = None
        if codec is not None:
            cached = latent_codec.cache(folder, codec, splits=list(report))
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
    if done is not None:
        return folder, done
    make = functools.partial(procedural_heads.examples, plan=plan)
    names = [name for split in plan.parts().values() for name in split]
    building.make_parts(names, make, parts, workers=workers, title="Rendering")
    return folder, building.finish(builder, plan.parts(), parts)


if __name__ == "__main__":
    app.run(main)
