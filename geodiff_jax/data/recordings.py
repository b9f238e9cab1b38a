"""Recordings with a fit become examples: framed, filtered, completed and checked.

Every dataset module has `parts`, the names of all that it can read, and `open_part`,
which opens one of them; the rest is here. A part is what one camera saw of one clip, or
some hundreds of single pictures.
"""

import dataclasses
import functools
import glob
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from geodiff_jax.data import building, estimates, filters, framing, schema
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import files as head_files
from geodiff_jax.head import procedural
from geodiff_jax.head.model import HeadModel
from geodiff_jax.head.track import Track
from geodiff_jax.io import images
from geodiff_jax.tracking import mediapipe_models, vhap

Frames = Callable[[Sequence[int]], Iterator[tuple[int, framing.Frame | str]]]
"""Whole frames by their ids, which ascend; in place of one, why there is none."""
SEPARATOR = "~"
"""Between subject, clip and view in the name of a part: it is also a file's name."""
FIT_HERE = pathlib.Path("fit")
"""In place of a folder of fits: single pictures are fitted on the way."""
PLANS = {
    "toy": schema.Sizes(64, 8, surface=8),
    "tiny": schema.Sizes(64, 16, surface=64),
    "paper": schema.Sizes(),
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """What one camera saw of one clip, and where the head was."""

    subject: str
    clip: str
    view: str
    head: HeadModel
    """The person's: with the offsets of the fit."""
    track: Track
    """Its parameters count; its cameras do not."""
    camera: Camera
    """This view's, in the track's world, for whole frames."""
    frames: Frames
    licence: str
    synthetic: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """What a user asks for; picklable."""

    source: pathlib.Path
    """Folder of the dataset, as it is handed out."""
    track: pathlib.Path | None = None
    """Folder of fits; None where the dataset brings its own."""
    head: pathlib.Path | None = None
    """What prepare_head wrote; None for the built-in head."""
    sizes: schema.Sizes = dataclasses.field(default_factory=schema.Sizes)
    stride: int = 1
    """Every so many-th tracked frame becomes an example."""
    track_rate: float = 25.0
    """Frames per second that the tracker saw; 0 where it saw all of the film. VHAP's
    preprocessing resamples films to 25."""
    matte: str | None = None
    """A source of `estimates`; None for the dataset's own."""
    normals: str | None = None
    detect: tuple[str, ...] = ()
    """What mediapipe looks for: "faces" of others, "hands"; examples with them go."""
    licence: str | None = None
    """What may be done with the pictures, where the source is the user's own."""
    synthetic: bool = False
    """Whether such a source is rendered or generated."""

    def describe(self) -> dict[str, Any]:
        """What decides the records' content, as JSON: mixed runs are told by it."""
        told = dataclasses.asdict(self)
        return {name: _plain(value) for name, value in told.items()}


OpenPart = Callable[[str, Job], Iterable[Recording | building.Skipped]]
"""Opens a part by its name: one recording, or many small ones.

Raises ValueError where a convention is broken, which is every recording's trouble and
stops the run; what ails one recording is skipped."""


def examples(
    name: str, *, open_part: OpenPart, job: Job
) -> Iterator[schema.Example | building.Skipped]:
    """All pictures of a part, the same at every call; misfits say why."""
    for recording in _opened(name, open_part, job):
        if isinstance(recording, building.Skipped):
            yield recording
        else:
            yield from of_recording(recording, job)


def _opened(
    name: str, open_part: OpenPart, job: Job
) -> Iterator[Recording | building.Skipped]:
    """What a part holds; what stops the run says in which."""
    try:
        yield from open_part(name, job)
    except ValueError as error:
        raise ValueError(f"{name.replace(SEPARATOR, '/')}: {error}") from error


def of_recording(
    recording: Recording, job: Job
) -> Iterator[schema.Example | building.Skipped]:
    """All pictures of a recording."""
    track, head = recording.track, recording.head
    places = [
        [np.asarray(x) for x in framing.place(head, track.frame(i), recording.camera)]
        for i in range(track.num_frames)
    ]
    marks = np.stack([pixels for _, _, pixels in places])
    cut = filters.scene_cut(marks, np.asarray(track.frame_ids))
    if cut is not None:
        name = part_name(recording.subject, recording.clip, recording.view)
        yield skipped_part(name, cut)
        return
    index = {frame_id: i for i, frame_id in enumerate(track.frame_ids)}
    wanted = {}
    for frame_id in track.frame_ids[:: job.stride]:
        reason = filters.out_of_picture(float(places[index[frame_id]][1]))
        if reason is None:
            wanted[frame_id] = places[index[frame_id]][0]
        else:
            yield _skipped(recording, frame_id, reason)
    ending = "the recording ends before this frame"
    try:
        for frame_id, frame in recording.frames(list(wanted)):
            yield _admit(recording, index[frame_id], frame, wanted.pop(frame_id), job)
    except (ValueError, OSError) as error:
        ending = f"corrupt file: {error}"
    for frame_id in wanted:
        yield _skipped(recording, frame_id, ending)


def _admit(
    recording: Recording, index: int, frame: framing.Frame | str, box: Any, job: Job
) -> schema.Example | building.Skipped:
    try:
        if isinstance(frame, str):
            raise ValueError(frame)
        return make_example(recording, index, frame, box, job)
    except (ValueError, OSError) as error:
        return _skipped(recording, recording.track.frame_ids[index], str(error))


def make_example(
    recording: Recording, index: int, frame: framing.Frame, box: Any, job: Job
) -> schema.Example:
    """One frame of a recording, by its place in the track.

    Raises ValueError with the reason why it is none.
    """
    frame_id = recording.track.frame_ids[index]
    params, head = recording.track.frame(index), recording.head
    frame = _with_files(frame, recording, frame_id, job)
    square = framing.cut(frame, box, recording.camera, size=job.sizes.image)
    maps, face_box = framing.maps(head, params, square.camera, job.sizes)
    drawn = framing.draw_head(head, params, square.camera)
    fitted, covered, face = (np.asarray(x) for x in drawn)
    _refuse_intruders(square, face_box, job.detect)
    image, mask = _on_white(square, face_box, covered, job)
    if square.normal is None and job.normals in (None, estimates.FIT):
        normal = framing.extend(fitted, covered, mask)
    else:
        given = square.normal
        if given is None:
            given = estimates.estimate_normals(str(job.normals), image)
        normal = estimates.in_house_axes(given, fitted, face)
    example = schema.Example(
        image=image,
        normal=schema.unit_normals(normal, mask),
        mask=mask,
        camera_from_world=np.asarray(square.camera.camera_from_world.parameters()),
        intrinsics=np.asarray(square.camera.intrinsics),
        params=jax.tree.map(np.asarray, params),
        head_version=head.version,
        maps=maps,
        face_box=face_box,
        subject=recording.subject,
        clip=recording.clip,
        frame=frame_id,
        view=recording.view,
        synthetic=recording.synthetic,
        licence=recording.licence,
    )
    try:
        schema.check(example, job.sizes, head)
    except ValueError as error:
        # Its name stands beside the reason already.
        raise ValueError(str(error).removeprefix(f"{example.name}: ")) from error
    return example


def _on_white(
    square: framing.Square,
    face_box: Float[np.ndarray, "4"],
    covered: Float[np.ndarray, "s s"],
    job: Job,
) -> tuple[Float[np.ndarray, "s s 3"], Float[np.ndarray, "s s"]]:
    """The person on white, and the matte. Raises ValueError for a faulty one."""
    image, mask = square.over_white, square.matte
    if image is None or mask is None:
        if job.matte is None:
            raise ValueError("no matte: name a source with --matte")
        mask = estimates.estimate_matte(job.matte, square, face_box, covered)
        mask = mask.astype(np.float32)
        image = framing.lay_on_white(square.image, mask)
    reason = filters.faulty_matte(mask, covered * square.inside)
    if reason is not None:
        raise ValueError(reason)
    return image, mask


def drawn_of(head: HeadModel, sizes: schema.Sizes) -> schema.Sizes:
    """The sizes, without the maps of a chart for a head that has none."""
    if len(head.uv):
        return sizes
    maps = tuple(name for name in sizes.maps if name not in schema.OF_CHART)
    return dataclasses.replace(sizes, maps=maps)


@functools.cache
def load_head(path: pathlib.Path | None) -> HeadModel:
    """The head that fits are of. Raises as `head.files.load`."""
    return procedural.load() if path is None else head_files.load(path)


@functools.lru_cache(maxsize=2)
def read_vhap(folder: pathlib.Path, head: pathlib.Path | None) -> vhap.Capture:
    """A capture as VHAP exports it, kept for the next part, which is its next view."""
    return vhap.read(folder, load_head(head))


def person_head(head: HeadModel, capture: vhap.Capture) -> HeadModel:
    """The head with a capture's offsets; VHAP's teeth come after FLAME's vertices."""
    offsets = capture.offsets[: head.num_vertices]
    return head.replace(template=head.template + offsets)


def view_of(cameras: Camera, index: int) -> Camera:
    """One of a batch of cameras."""
    return cameras.replace(
        camera_from_world=jax.tree.map(lambda x: x[index], cameras.camera_from_world),
        intrinsics=cameras.intrinsics[index],
    )


def find_fit(folder: pathlib.Path, subject: str, clip: str) -> pathlib.Path | None:
    """Where the fit of a clip lies: SUBJECT/CLIP, or as VHAP names its exports.

    Those are SUBJECT_SEQUENCE_v16_... with a sequence that is how the clip's name
    begins (VHAP's doc/nersemble_v2.md); the longest counts.
    """
    own = folder / subject / clip
    if own.is_dir():
        return own
    found: dict[int, pathlib.Path] = {}
    for path in sorted(folder.glob(f"{glob.escape(subject)}_*")):
        named = re.match(r"(.+?)_v\d+(_|$)", path.name.removeprefix(f"{subject}_"))
        begin = named.group(1) if named else path.name.removeprefix(f"{subject}_")
        rest = clip.removeprefix(begin)
        if clip.startswith(begin) and not rest[:1].isdigit():
            found[len(begin)] = path
    return found[max(found)] if found else None


def part_name(subject: str, clip: str, view: str) -> str:
    """A name that is also a file's."""
    return SEPARATOR.join((subject, clip, view))


def split_name(name: str) -> tuple[str, str, str]:
    """Inverts `part_name`."""
    subject, clip, view = name.split(SEPARATOR)
    return subject, clip, view


def skipped_part(name: str, reason: str) -> building.Skipped:
    """A whole part that is left out."""
    return building.Skipped(name.replace(SEPARATOR, "/"), reason)


def split_parts(names: Sequence[str], held_out: Sequence[str]) -> dict[str, list[str]]:
    """Parts by split; the last of twenty subjects is held out where none is named."""
    subjects = sorted({split_name(name)[0] for name in names})
    away = set(held_out) & set(subjects)
    if not away and len(subjects) >= 2:
        away = set(subjects[-max(1, len(subjects) // 20) :])
    groups: dict[str, list[str]] = {"train": [], "held_out": []}
    for name in sorted(names):
        group = "held_out" if split_name(name)[0] in away else "train"
        groups[group].append(name)
    return groups


def _refuse_intruders(
    square: framing.Square, face_box: Float[np.ndarray, "4"], kinds: Sequence[str]
) -> None:
    """Raises ValueError where a detector sees another person, or a hand."""
    side = float(len(square.image))
    reasons = []
    if "faces" in kinds:
        faces = mediapipe_models.face_boxes(square.image)
        reasons.append(filters.several_faces(faces, face_box))
    if "hands" in kinds:
        found = mediapipe_models.hand_boxes(square.image)
        reasons.append(filters.hands(found, np.array([0.0, 0.0, side, side])))
    for reason in filter(None, reasons):
        raise ValueError(reason)


def _with_files(
    frame: framing.Frame, recording: Recording, frame_id: int, job: Job
) -> framing.Frame:
    """The frame with what the user's sources have of it, in place of its own."""
    labels = (recording.subject, recording.clip, recording.view, frame_id)
    size = {"height": frame.image.shape[0], "width": frame.image.shape[1]}
    matte, normal = frame.matte, frame.normal
    if job.matte is not None:
        matte = None
        picture = estimates.read_picture(job.matte, *labels)
        if picture is not None:
            matte = _resized(picture, **size)[..., 0]
    if job.normals is not None:
        normal = None
        picture = estimates.read_picture(job.normals, *labels)
        if picture is not None:
            normal = _resized(estimates.normals_of_colors(picture), **size)
    return dataclasses.replace(frame, matte=matte, normal=normal)


def _resized(
    picture: Float[np.ndarray, "a b c"], *, width: int, height: int
) -> Float[np.ndarray, "h w c"]:
    if picture.shape[:2] == (height, width):
        return picture
    return images.resize(picture, width=width, height=height)


def _skipped(recording: Recording, frame_id: int, reason: str) -> building.Skipped:
    labels = (recording.subject, recording.clip, str(frame_id), recording.view)
    return building.Skipped("/".join(labels), reason)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, pathlib.Path) else value
