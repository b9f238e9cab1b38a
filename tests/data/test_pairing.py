"""Pairs: who drives whom, by looking at every record."""

import itertools

import numpy as np
import pytest

from geodiff_jax.data import building, pairing

VIEWS = ("front", "left", "right")
LABELS = [
    (subject, clip, frame, view)
    for subject, clip in (("ann", "talk"), ("ann", "sing"), ("bob", "talk"))
    for frame in range(7)
    for view in VIEWS
    # Bob's right camera failed now and then, and his left one for good.
    if not (subject == "bob" and (view == "left" or (view == "right" and frame == 3)))
]
np.random.default_rng(0).shuffle(LABELS)
LABELS = [(s, c, int(f), v) for s, c, f, v in LABELS]
TABLE = pairing.Recordings(building.index_of(LABELS))


def choose(anchor, seed=0, **pair):
    generator = np.random.default_rng([anchor, seed])
    return pairing.choose(generator, TABLE, anchor, pairing.Pairing(**pair))


def of(records):
    return [LABELS[record] for record in records.ravel()]


@pytest.mark.parametrize("frames", [1, 4, 7, 16])
def test_clips_are_runs_of_one_camera_and_padded(frames):
    for anchor in range(len(LABELS)):
        choice = choose(anchor, frames=frames, cross_view=0.0)
        subject, clip, frame, view = LABELS[anchor]
        stored = sorted(x for x in LABELS if (*x[:2], x[3]) == (subject, clip, view))
        if (subject, view) == ("bob", "right"):  # One frame is missing.
            stored = [x for x in stored if (x[2] < 3) == (frame < 3)]
        run = of(choice.targets)
        real = run[: int(choice.frames.sum())]
        assert len(run) == frames and LABELS[anchor] in real
        assert len(real) == min(frames, len(stored))
        start = stored.index(real[0])
        assert real == stored[start : start + len(real)]
        assert set(run[len(real) :]) <= {real[-1]}
        assert not choice.frames[len(real) :].any()
        np.testing.assert_array_equal(choice.driving, choice.targets)


@pytest.mark.parametrize("step", [1, 3, 2.5])
def test_clips_start_evenly_over_a_recording(step):
    """Also one that keeps every third frame, or five in two."""
    labels = [("ann", "talk", int(step * i), "left") for i in range(60)]
    table = pairing.Recordings(building.index_of(labels))
    pair = pairing.Pairing(frames=16)
    starts = []
    for anchor in range(60):
        run = pairing.choose(np.random.default_rng(0), table, anchor, pair).targets[0]
        assert anchor in run and (np.diff(run) == 1).all()
        starts.append(int(run[0]))
    often = [starts.count(place) for place in range(45)]
    assert sum(often) == 60 and set(often) == {1, 2}


@pytest.mark.parametrize("frames", [1, 4])
def test_drivers_are_the_same_subject_and_instant_from_elsewhere(frames):
    crossed = set()
    for anchor, seed in itertools.product(range(len(LABELS)), range(4)):
        choice = choose(anchor, seed, frames=frames, cross_view=1.0)
        targets, drivers = of(choice.targets), of(choice.driving)
        assert [x[:3] for x in targets] == [x[:3] for x in drivers]
        views = {x[3] for x in targets}, {x[3] for x in drivers}
        assert len(views[0]) == len(views[1]) == 1
        instants = {x[:3] for x in targets}
        possible = {
            view
            for view in VIEWS
            if {(*instant, view) for instant in instants} <= set(LABELS)
        } - views[0]
        assert views[1] <= (possible or views[0])
        crossed |= views[1] - views[0]
    assert crossed == set(VIEWS)


def test_views_cross_as_often_as_asked():
    anns = [i for i, label in enumerate(LABELS) if label[0] == "ann"]
    crossed = [
        not np.array_equal(choice.driving, choice.targets)
        for anchor, seed in itertools.product(anns, range(15))
        for choice in [choose(anchor, seed, cross_view=0.3)]
    ]
    # Four standard deviations.
    bound = 4 * np.sqrt(0.3 * 0.7 / len(crossed))
    assert abs(np.mean(crossed) - 0.3) < bound


def test_references_come_evenly_from_all_views_and_frames_of_the_recording():
    anchor = 0
    clip = {x for x in LABELS if x[:2] == LABELS[anchor][:2]}
    drawn = [LABELS[choose(anchor, seed).reference] for seed in range(1500)]
    assert set(drawn) == clip
    counts = np.array([drawn.count(label) for label in clip])
    expected = len(drawn) / len(clip)
    # Chi square: its mean is n - 1, its variance twice that.
    chi_square = np.sum(np.square(counts - expected)) / expected
    freedom = len(clip) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_sets_hold_references_first_and_the_anchor_among_the_targets():
    counts = set()
    for anchor, seed in itertools.product(range(len(LABELS)), range(4)):
        choice = choose(anchor, seed, views=8, references=(1, 4))
        count = int(choice.reference_slots.sum())
        counts.add(count)
        assert choice.reference_slots[:count].all()
        assert choice.targets.shape == (8, 1) and choice.targets[-1, 0] == anchor
        assert len(set(choice.targets.ravel())) == 8
        assert choice.reference == choice.targets[0, 0]
        assert {x[:2] for x in of(choice.targets)} == {LABELS[anchor][:2]}
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize("views", [2, 4])
def test_views_of_an_instant_are_its_cameras_and_repeat_only_where_too_few(views):
    for anchor, seed in itertools.product(range(len(LABELS)), range(3)):
        choice = choose(anchor, seed, views=views, instant=True)
        shown = of(choice.targets)
        instant = LABELS[anchor][:3]
        there = sum(label[:3] == instant for label in LABELS)
        assert {label[:3] for label in shown} == {instant}
        assert shown[-1] == LABELS[anchor] and len(shown) == views
        counts = [shown.count(label) for label in set(shown)]
        assert len(counts) == min(views, there)
        assert max(counts) - min(counts) <= 1
        if there > 1:
            assert choice.reference != anchor


def test_single_pictures_serve_as_everything():
    lone = pairing.Recordings(
        building.index_of([("x", "x", 0, "x"), ("y", "y", 0, "x")])
    )
    one = pairing.Pairing(frames=3, cross_view=1.0)
    choice = pairing.choose(np.random.default_rng(0), lone, 1, one)
    assert set(choice.targets.ravel()) == set(choice.driving.ravel()) == {1}
    assert choice.reference == 1 and choice.frames.tolist() == [True, False, False]
    several = pairing.Pairing(views=4)
    choice = pairing.choose(np.random.default_rng(0), lone, 1, several)
    assert set(choice.targets.ravel()) == {1}


def test_what_cannot_be_paired_is_refused():
    for pair in (
        {"frames": 0},
        {"views": 2, "frames": 2},
        {"views": 4, "references": (1, 4)},
        {"views": 4, "references": (0, 1)},
        {"cross_view": 1.5},
    ):
        with pytest.raises(ValueError, match="Expected"):
            pairing.check(pairing.Pairing(**pair))
    twice = building.index_of([("x", "x", 0, "x")] * 2)
    for index, words in ((twice, "several"), (building.index_of([]), "empty")):
        with pytest.raises(ValueError, match=words):
            pairing.Recordings(index)
