"""MEAD: actors speak in eight emotions at three levels, filmed from seven sides.

The folder holds the actors' folders with their video.tar unpacked (github.com/uniBruce/
Mead, README: a folder M### or W### for each; below it as the data preparation of
github.com/radekd91/inferno, process_mead.py, and others read it):

    ACTOR/video/VIEW/EMOTION/level_L/NNN.mp4

VIEW is front, left_30, left_60, right_30, right_60, top or down; some actors have a
folder 1 above it. Cameras were never calibrated (issue 22 there), so each film has a
world of its own, and the view belongs to the clip's name: views are not paired. Fits
are those of `films`, TRACK/ACTOR/VIEW-EMOTION-level_L-NNN, with their mattes.
"""

import functools
import pathlib

from geodiff_jax.data import building, films, recordings
from geodiff_jax.data.recordings import Job

LICENCE = "MEAD: non-commercial research only, no redistribution; see its terms."
VIEWS = ("front", "left_30", "left_60", "right_30", "right_60", "top", "down")
HELD_OUT: tuple[str, ...] = ()


class Mead(building.PackedParts):
    """MEAD as records of `schema`, by `mead`."""

    LICENCE = LICENCE


BUILDER = Mead


def parts(job: Job) -> list[str]:
    """What there is to read. Raises ValueError where no film is in MEAD's layout."""
    found = sorted(_films(job.source))
    if not found:
        raise ValueError(
            "Expected films such as M003/video/front/neutral/level_1/001.mp4 in "
            f"{job.source}, got none; unpack each actor's video.tar in its folder."
        )
    return found


def open_part(name: str, job: Job) -> list:
    """One film with its fit. Raises as `films.open_film`."""
    return films.open_film(name, _films(job.source)[name], job, licence=LICENCE)


@functools.lru_cache(maxsize=2)
def _films(source: pathlib.Path) -> dict[str, pathlib.Path]:
    named = {}
    for path in source.glob("[MW][0-9][0-9][0-9]/video/**/level_*/*.mp4"):
        level, emotion, view = (path.parents[n].name for n in range(3))
        if view in VIEWS:
            actor = path.relative_to(source).parts[0]
            clip = "-".join((view, emotion, level, path.stem))
            named[recordings.part_name(actor, clip, view)] = path
    return named
