r"""A head from its source's own files into one safe file.

python -m experiments.prepare_head \
    --source=ict --path=FaceXModel --output=ict.safetensors
python -m experiments.create_avatar --image=me.jpg --head=ict.safetensors ...

`--path` is the folder as it was downloaded: FaceXModel for ICT-FaceKit, for FLAME one
with its pickle and the files beside it (README, "Which head"); none for the procedural
head. Takes seconds; the file is read in a tenth of one.
"""

import os
import sys

from absl import app, flags, logging

from geodiff_jax.head import files, flame, ict, procedural
from geodiff_jax.head import model as head_model

SOURCES = ("flame", "ict", "procedural")

_SOURCE = flags.DEFINE_enum("source", None, SOURCES, "Whose head.", required=True)
_PATH = flags.DEFINE_string("path", None, "Folder of the source's files.")
_VERSION = flags.DEFINE_string(
    "version", None, "Release of FLAME, where the file's name does not tell it."
)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write.", required=True)


def main(argv: list[str]) -> None:
    """Reads, writes, and says what was read."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        head = read(_SOURCE.value, _PATH.value, _VERSION.value)
        files.save(_OUTPUT.value, head)
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        print(f"prepare_head: {said or error}", file=sys.stderr)
        sys.exit(2)
    size = os.path.getsize(_OUTPUT.value) / 1e6
    print(
        f"{head.version}: {head.num_vertices} vertices, {len(head.faces)} faces, "
        f"{len(head.identity_names)} identity and {len(head.expression_names)} "
        f"expression shapes; {size:.1f} MB in {_OUTPUT.value}"
    )


def read(source: str, path: str | None, version: str | None) -> head_model.HeadModel:
    """The head of a source. Raises ValueError or OSError in one sentence."""
    if (path is None) != (source == "procedural"):
        wanted = "no --path" if path else "--path, the folder of its files"
        raise ValueError(f"Expected {wanted} with --source={source}.")
    if version is not None and source != "flame":
        raise ValueError(f"Expected no --version with --source={source}.")
    if source == "procedural":
        return procedural.load()
    return ict.load(path) if source == "ict" else flame.load(path, version=version)


if __name__ == "__main__":
    app.run(main)
