"""Captures in the layout of VHAP and GaussianAvatars: recorded, rendered or generated.

A folder of folders, each as VHAP exports it and GaussianAvatars loads it
(github.com/ShenhanQian/VHAP, export_as_nerf_dataset.py; github.com/ShenhanQian/
GaussianAvatars, scene/dataset_readers.py):

    CAPTURE/transforms.json                cameras, and for each picture:
    CAPTURE/images/TTTTT_CC.png            file_path
    CAPTURE/fg_masks/TTTTT_CC.png          fg_mask_path; or the picture has an alpha
    CAPTURE/flame_param/TTTTT.npz          flame_param_path
    CAPTURE/canonical_flame_param.npz

So multi-view heads of a generator of faces (004, Sec 3.4: about sixty views of each,
with FLAME and cameras fitted to them) come in as captures of one timestep each, with
`synthetic`; that set's own layout is not public. Names such as VHAP's SUBJECT_SEQUENCE_
v16_... tell subject and clip; other folders are subjects of one clip.
"""

import functools
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from geodiff_jax.data import building, framing, recordings
from geodiff_jax.data.recordings import Job, Recording
from geodiff_jax.head import track as head_track
from geodiff_jax.io import images
from geodiff_jax.tracking import transforms, vhap

HELD_OUT: tuple[str, ...] = ()


class Captures(building.PackedParts):
    """Captures as records of `schema`, by `captures`."""

    LICENCE = "As its source's."


BUILDER = Captures


def parts(job: Job) -> list[str]:
    """What there is to read: captures, and their cameras.

    Raises ValueError where the folder holds no captures, or nobody says under which
    licence they are.
    """
    if not job.licence:
        raise ValueError(
            "Expected --licence, what may be done with the captures, got none."
        )
    names = []
    for folder in _folders(job.source).values():
        subject, clip = _labels(folder.name)
        views = {shot.camera for shot in transforms.read(folder)}
        names += [recordings.part_name(subject, clip, f"{x:02d}") for x in views]
    if not names:
        raise ValueError(
            f"Expected folders with {vhap.CANONICAL} in {job.source}, got none; choose "
            "the folder of captures, not a capture."
        )
    return names


def open_part(name: str, job: Job) -> list[Recording | building.Skipped]:
    """One camera's pictures of a capture.

    Raises ValueError where no camera sees the head: axes or units are wrong.
    """
    subject, clip, view = recordings.split_name(name)
    folder = _folders(job.source)[subject, clip]
    head = recordings.load_head(job.head)
    try:
        capture = recordings.read_vhap(folder, job.head)
        number = sorted({x.camera for x in transforms.read(folder)}).index(int(view))
    except (OSError, ValueError) as error:
        return [recordings.skipped_part(name, f"corrupt file: {error}")]
    person = recordings.person_head(head, capture)
    head_track.check_cameras(capture.track, person, most_frames=4)
    return [
        Recording(
            subject=subject,
            clip=clip,
            view=view,
            head=person,
            track=capture.track,
            camera=recordings.view_of(capture.track.cameras, number),
            frames=functools.partial(_frames, folder, capture, number),
            licence=str(job.licence),
            synthetic=job.synthetic,
        )
    ]


def before_white(
    picture: Float[np.ndarray, "h w 3"], matte: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """The person's colours, where the picture was laid on white by this matte.

    Laid on white once more, it would get a white rim. Pictures that are not white
    where nobody is stay as they are.
    """
    nobody = picture[matte == 0.0]
    if nobody.size == 0 or nobody.min() < 0.98:
        return picture
    share = np.maximum(matte, 1.0 / 255.0)[..., None]
    return np.clip((picture - 1.0 + matte[..., None]) / share, 0.0, 1.0)


def _frames(
    folder: pathlib.Path, capture: vhap.Capture, view: int, wanted: Sequence[int]
) -> Iterator[tuple[int, framing.Frame | str]]:
    for frame_id in wanted:
        name = capture.images.get((frame_id, view))
        if name is None:
            yield frame_id, "no picture of this frame"
            continue
        try:
            photo = images.read_image(folder / name)
            matte = photo.alpha
            mask = capture.masks.get((frame_id, view))
            if matte is None and mask is not None and (folder / mask).is_file():
                matte = images.read_image(folder / mask).rgb[..., 0]
            rgb = photo.rgb
            if matte is not None and photo.alpha is None:
                rgb = before_white(rgb, matte)
            yield frame_id, framing.Frame(rgb, matte)
        except (OSError, ValueError) as error:
            yield frame_id, f"corrupt file: {error}"


@functools.lru_cache(maxsize=2)
def _folders(source: pathlib.Path) -> dict[tuple[str, str], pathlib.Path]:
    return {
        _labels(x.parent.name): x.parent for x in source.glob(f"*/{vhap.CANONICAL}")
    }


def _labels(name: str) -> tuple[str, str]:
    """Subject and clip of a capture by the name of its folder."""
    named = re.fullmatch(r"(\d{3})_(.+?)_v\d+(_.*)?", name)
    return (named.group(1), named.group(2)) if named else (name, "capture")
