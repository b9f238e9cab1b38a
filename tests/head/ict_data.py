"""A part of the ICT-FaceKit head: all that turns joints, and a few faces beside."""

import json
import pathlib
import tarfile

from tests.conftest import shared_data

IDENTITIES = ("identity000", "identity003")
JAW = ("jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose")
GAZES = tuple(
    f"eyeLook{way}_{side}" for way in ("Down", "In", "Out", "Up") for side in "LR"
)
EXPRESSIONS = (*JAW, *GAZES, "eyeBlink_L", "eyeBlink_R", "mouthSmile_L", "mouthSmile_R")
INDEX, NEUTRAL = "vertex_indices.json", "generic_neutral_mesh"


def unpack(folder: pathlib.Path) -> pathlib.Path:
    """A FaceXModel folder with `IDENTITIES` and `EXPRESSIONS`; about 2 s."""
    wanted = {f"{name}.obj" for name in (NEUTRAL, *IDENTITIES, *EXPRESSIONS)} | {INDEX}
    with tarfile.open(shared_data("ict_facekit_subset.tar.xz")) as archive:
        for member in archive:
            if member.isfile() and pathlib.PurePosixPath(member.name).name in wanted:
                archive.extract(member, folder, filter="data")
    found = folder / "FaceXModel"
    index = json.loads((found / INDEX).read_text())
    index["expressions"] = [n for n in index["expressions"] if n in EXPRESSIONS]
    (found / INDEX).write_text(json.dumps(index))
    return found
