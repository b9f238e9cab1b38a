"""Which records make one training example: targets, driving views, references.

Works on `building.Index` alone; nothing is read here.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from geodiff_jax.data.building import Index

Records = Int[np.ndarray, "..."]
"""Numbers of records within their split."""


@dataclasses.dataclass(frozen=True)
class Pairing:
    """How examples are put together; defaults are GeoDiff4D's first stage."""

    frames: int = 1
    """Of a clip; shorter recordings are padded (001, Sec 4.1: 16 in stage 2)."""
    views: int = 1
    """1 for clips of one camera. More: pictures of any camera and instant of one
    recording, references among them (CAP4D: 8)."""
    instant: bool = False
    """Whether several views are cameras of the anchor's instant alone (003)."""
    references: tuple[int, int] = (1, 1)
    """Least and most of `views` that are references (002: R = 1, then 1 to 4)."""
    cross_view: float = 0.5
    """Probability that another camera's picture of the same instant drives (001, Sec
    3.1; the value is ours)."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Records of one training example."""

    targets: Int[np.ndarray, "view time"]
    frames: Bool[np.ndarray, " time"]
    """False where the last frame is repeated as padding."""
    driving: Int[np.ndarray, "view time"]
    """Pictures of the same subject at the targets' instants."""
    reference: int
    """What the reference net sees, or the first of the references' slots."""
    reference_slots: Bool[np.ndarray, "view time"]


class Recordings:
    """An index, sorted so that views and instants of a recording are found fast."""

    def __init__(self, index: Index) -> None:
        if not len(index):
            raise ValueError("Expected at least one record, got an empty split.")
        self._index = index
        self._frames = int(index.frame.max()) + 1
        self._views = int(index.view.max()) + 1
        keys = self._key(index.clip, index.view, index.frame)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        if np.any(np.diff(self._keys) == 0):
            raise ValueError(
                "Expected one record for each frame and view of a clip, got several; "
                "give recordings names of their own."
            )

    def __len__(self) -> int:
        return len(self._order)

    def of_clip(self, record: int) -> Records:
        """All records of the record's clip, by view, then frame."""
        clip = int(self._index.clip[record])
        return self._between(self._key(clip, 0, 0), self._key(clip + 1, 0, 0))

    def of_camera(self, record: int) -> Records:
        """The record's clip as its camera saw it, by frame."""
        clip, view = int(self._index.clip[record]), int(self._index.view[record])
        return self._between(self._key(clip, view, 0), self._key(clip, view + 1, 0))

    def without_gap(self, record: int) -> Records:
        """What the record's camera saw round it, up to where a frame is missing.

        That is a step twice as long as usual: some recordings keep every third frame.
        """
        own = self.of_camera(record)
        steps = np.diff(self._index.frame[own])
        missing = steps >= 2 * np.median(steps) if len(steps) else steps
        runs = np.concatenate([[0], np.cumsum(missing)])
        return own[runs == runs[own == record]]

    def at_instant(self, record: int) -> Records:
        """The record's instant as every camera of its clip saw it, by view."""
        every = self.of_clip(record)
        return every[self._index.frame[every] == self._index.frame[record]]

    def seen_by(self, records: Records, view: int) -> Records | None:
        """The same instants from another camera; None where it misses one of them."""
        clip, frame = self._index.clip[records], self._index.frame[records]
        keys = self._key(clip, view, frame)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        if np.any(self._keys[places] != keys):
            return None
        return self._order[places]

    def other_views(self, records: Records) -> list[Records]:
        """The same instants from every other camera that saw them all."""
        first = int(records[0])
        views = set(self._index.view[self.of_clip(first)].tolist())
        others = sorted(views - {int(self._index.view[first])})
        seen = [self.seen_by(records, view) for view in others]
        return [records for records in seen if records is not None]

    def _key(self, clip: Any, view: Any, frame: Any) -> Any:
        """Integers, or arrays of them."""
        return (clip * (self._views + 1) + view) * self._frames + frame

    def _between(self, first: int, last: int) -> Records:
        start, stop = np.searchsorted(self._keys, [first, last])
        return self._order[start:stop]


def choose(
    generator: np.random.Generator,
    recordings: Recordings,
    anchor: int,
    pairing: Pairing,
) -> Choice:
    """An example round a record, which is always among its targets.

    References are drawn from all views and frames of the recording (002 and 001).
    """
    if pairing.views > 1:
        return _several(generator, recordings, anchor, pairing)
    own = recordings.without_gap(anchor)
    place = int(np.flatnonzero(own == anchor)[0])
    # Anchors in turn start at every place from which a whole clip follows.
    start = place * max(len(own) - pairing.frames + 1, 1) // len(own)
    run = own[start : start + pairing.frames]
    driving = run
    # Drawn in every case, so that the ones after it do not depend on the data.
    crosses, which, reference = generator.random(3)
    others = recordings.other_views(run) if crosses < pairing.cross_view else []
    if others:
        driving = others[int(which * len(others))]
    every = recordings.of_clip(anchor)
    numbers = np.arange(pairing.frames)
    padded = np.minimum(numbers, len(run) - 1)[None]
    return Choice(
        targets=run[padded],
        frames=numbers < len(run),
        driving=driving[padded],
        reference=int(every[int(reference * len(every))]),
        reference_slots=np.zeros((1, pairing.frames), bool),
    )


def _several(
    generator: np.random.Generator,
    recordings: Recordings,
    anchor: int,
    pairing: Pairing,
) -> Choice:
    """References first, then targets, the anchor last; again only where too few, and
    then each about as often."""
    low, high = pairing.references
    count = int(generator.integers(low, high + 1))
    among = recordings.at_instant if pairing.instant else recordings.of_clip
    every = among(anchor)
    others = every[every != anchor]
    wanted = pairing.views - 1
    if len(others) >= wanted:
        drawn = generator.choice(others, wanted, replace=False)
    else:
        drawn = np.resize(np.append(generator.permutation(others), anchor), wanted)
    targets = np.append(drawn, anchor)[:, None]
    slots = np.arange(pairing.views)[:, None] < count
    return Choice(targets, np.ones(1, bool), targets, int(targets[0, 0]), slots)


def check(pairing: Pairing) -> None:
    """Raises ValueError for a pairing that cannot be."""
    low, high = pairing.references
    if pairing.frames < 1 or pairing.views < 1:
        raise ValueError(
            f"Expected at least one frame and view, got {pairing.frames} and "
            f"{pairing.views}."
        )
    if pairing.views > 1 and pairing.frames > 1:
        raise ValueError(
            f"Expected one frame with {pairing.views} views, got {pairing.frames}; "
            "clips have one camera."
        )
    if pairing.views > 1 and not 1 <= low <= high < pairing.views:
        raise ValueError(
            f"Expected 1 <= references < {pairing.views} views, got {low} to {high}."
        )
    if not 0.0 <= pairing.cross_view <= 1.0:
        raise ValueError(
            f"Expected a probability of cross views, got {pairing.cross_view}."
        )
