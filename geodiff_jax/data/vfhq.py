"""VFHQ: interviews from the web, one face in each clip.

Its authors hand out lists of clips (liangbinxie.github.io/projects/vfhq), not pictures;
the folder is that which github.com/yunyu/vfhq-downloader, crop_clips.py, makes of them:

    Clip+VIDEO+P<person>+C<clip>.mp4

cut to the time and the box of each clip. A person of a video is a subject; the same
person may come again in other videos. Fits are those of `films`,
TRACK/VIDEO+P<person>/C<clip>, with their mattes.
"""

import functools
import pathlib
import re

from geodiff_jax.data import building, films, recordings
from geodiff_jax.data.recordings import Job

LICENCE = "VFHQ: rights are with the videos' owners; for research."
HELD_OUT: tuple[str, ...] = ()
VIEW = "camera"


class Vfhq(building.PackedParts):
    """VFHQ as records of `schema`, by `vfhq`."""

    LICENCE = LICENCE


BUILDER = Vfhq


def parts(job: Job) -> list[str]:
    """What there is to read. Raises ValueError where no film is named as VFHQ's."""
    found = sorted(_films(job.source))
    if not found:
        raise ValueError(
            f"Expected films such as Clip+AbCdEfGhIjK+P0+C1.mp4 in {job.source}, got "
            "none; cut the clips with vfhq-downloader's crop_clips.py."
        )
    return found


def open_part(name: str, job: Job) -> list:
    """One film with its fit. Raises as `films.open_film`."""
    return films.open_film(name, _films(job.source)[name], job, licence=LICENCE)


@functools.lru_cache(maxsize=2)
def _films(source: pathlib.Path) -> dict[str, pathlib.Path]:
    named = {}
    for path in source.glob("Clip+*.mp4"):
        found = re.fullmatch(r"Clip\+(.+\+P\d+)\+(C\d+)", path.stem)
        if found:
            named[recordings.part_name(*found.groups(), VIEW)] = path
    return named
