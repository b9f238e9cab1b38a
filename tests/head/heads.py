"""All sources of heads, for laws that hold whichever head it is."""

import functools
import pathlib
import tempfile

from geodiff_jax.head import flame, ict, procedural
from geodiff_jax.head import model as head_model
from tests.head import flame_files, ict_data

NAMES = ("procedural", "flame", "ict")


@functools.cache
def load(name: str) -> head_model.HeadModel:
    """Built once per process; skips by name where a head's data is absent."""
    if name == "procedural":
        return procedural.load()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        if name == "ict":
            return ict.load(ict_data.unpack(path))
        flame_files.write(path, name="generic_model.pkl")
        return flame.load(path)
