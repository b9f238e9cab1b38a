"""Fitted recordings by the command line, from fixtures in the datasets' layouts."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from geodiff_jax.data import framing, recordings, schema
from geodiff_jax.head import files as head_files
from geodiff_jax.io import images
from geodiff_jax.tracking import mediapipe_models
from tests.data import (
    ava256_files,
    capture_files,
    nersemble_files,
    onnx_files,
    portraits,
    renderme360_files,
    synth_human_files,
)
from tests.experiments import launch

prepare_data = launch.import_apart("experiments.prepare_data")


def run(**values):
    launch.run_apart(prepare_data, plan="toy", **values)


def refused(capsys, **values):
    with pytest.raises(SystemExit) as stop:
        run(**values)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("prepare_data: ")
    assert not any(line.startswith("prepare_data: ") for line in said[:-1])
    return said[-1]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Two fitted participants, one without a fit, one whose films are torn."""
    folder = tmp_path_factory.mktemp("studio")
    head_files.save(folder / "head.safetensors", portraits.head())
    for subject in ("017", "018", "019"):
        nersemble_files.write_participant(folder / "source", subject)
    for subject in ("017", "018", "020"):
        nersemble_files.write_fit(folder / "track", subject)
    nersemble_files.write_participant(folder / "source", "020")
    for film in (folder / "source" / "020").rglob("*.mp4"):
        film.write_bytes(film.read_bytes()[:200])
    return folder


def flags_of(studio, data_dir):
    return {
        "dataset": "nersemble",
        "source": str(studio / "source"),
        "track": str(studio / "track"),
        "head": str(studio / "head.safetensors"),
        "held_out": ["018"],
        "data_dir": str(data_dir),
    }


@pytest.fixture(scope="module")
def built(studio, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    run(**flags_of(studio, data_dir))
    (report,) = data_dir.rglob("report.json")
    return report.parent


def written(folder):
    found = {x.name: x.read_bytes() for x in folder.rglob("*array_record*")}
    assert len(found) == 2
    return found


def records_of(folder, split="train"):
    return list(tfds.builder_from_directory(str(folder)).as_data_source(split))


def test_the_report_counts_and_names_the_reasons(built):
    report = json.loads((built / "report.json").read_text())
    each = len(nersemble_files.SERIALS) * nersemble_files.FRAMES
    assert report["train"]["examples"] == report["held_out"]["examples"] == each
    skipped = {one["name"]: one["reason"] for one in report["train"]["skipped"]}
    for serial in nersemble_files.SERIALS:
        assert skipped.pop(f"019/EXP-1-head/{serial}") == "no fit"
        assert skipped.pop(f"020/EXP-1-head/{serial}").startswith("corrupt file")
    assert not skipped


def test_pictures_show_what_the_fit_says(built):
    """Colours of the fixture are normals: camera, clock, colours and fit must agree."""
    for split in ("train", "held_out"):
        for record in records_of(built, split):
            image = record["image"] / 255.0
            normal = schema.normals_from_bytes(record["normal"])
            left, top, right, bottom = record["face_box"].astype(int)
            face = (slice(max(top, 0), bottom), slice(max(left, 0), right))
            whole = (record["mask"][..., 0] == 255)[face]
            error = np.abs(image - 0.5 - 0.5 * normal)[face][whole]
            # Films have colours for every other pixel; another frame is off by 0.2.
            assert whole.sum() > 200 and error.mean() < 0.05, record["view"]
            assert image[record["mask"][..., 0] == 0].min() == 1.0


def test_labels_are_those_of_the_layout(built):
    records = records_of(built)
    labels = {(x["subject"], x["clip"], x["frame"], x["view"]) for x in records}
    expected = {
        (b"017", b"EXP-1-head", frame, serial.encode())
        for frame in range(nersemble_files.FRAMES)
        for serial in nersemble_files.SERIALS
    }
    assert labels == expected
    assert all(not x["synthetic"] and b"NeRSemble" in x["licence"] for x in records)


def test_a_killed_run_ends_with_the_same_bytes(studio, built, tmp_path, monkeypatch):
    made = []
    whole = recordings.make_example

    def killed(*args):
        made.append(args)
        if len(made) == 4:
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(recordings, "make_example", killed)
        with pytest.raises(KeyboardInterrupt):
            run(**flags_of(studio, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(recordings, "make_example", killed)
        run(**flags_of(studio, tmp_path))
    # The part that was whole before is not made again.
    assert len(made) == 4 + 6
    assert written(tmp_path) == written(built)


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(studio, built, tmp_path):
    run(**flags_of(studio, tmp_path), workers=2)
    assert written(tmp_path) == written(built)


def test_poses_in_the_other_direction_stop_the_run(studio, tmp_path, capsys):
    nersemble_files.write_participant(tmp_path / "source", "017", inverted=True)
    flags = {**flags_of(studio, tmp_path / "data"), "source": str(tmp_path / "source")}
    assert "direction of the poses" in refused(capsys, **flags)


def test_other_options_are_not_mixed_in(studio, built, capsys):
    data_dir = built.parents[2]
    flags = {**flags_of(studio, data_dir), "stride": 2}
    assert "stride=1, now 2" in refused(capsys, **flags)


def test_all_skipped_is_no_success(studio, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    flags = {**flags_of(studio, tmp_path / "data"), "track": str(tmp_path / "none")}
    assert "no fit" in refused(capsys, **flags)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"source": None}, "--source"),
        ({"source": "/nowhere"}, "folder for --source"),
        ({"track": "/nowhere"}, "folder of fits"),
        ({"track": None}, "--track"),
        ({"normals": "nowhere.onnx"}, "--normals"),
        ({"matte": "nowhere"}, "--matte"),
        ({"head": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_flags_are_refused(studio, tmp_path, capsys, change, words):
    assert words in refused(capsys, **{**flags_of(studio, tmp_path), **change})


@pytest.fixture(scope="module")
def small_head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    head_files.save(path, portraits.head())
    return str(path)


def errors(record, *, signs=1.0):
    """How far the colours are from the normals that they show, on the face."""
    image, whole = record["image"] / 255.0, record["mask"][..., 0] == 255
    left, top, right, bottom = record["face_box"].astype(int)
    face = (slice(max(top, 0), bottom), slice(max(left, 0), right))
    normal = schema.normals_from_bytes(record["normal"])
    return np.abs(image - 0.5 - 0.5 * normal * signs)[face][whole[face]]


def test_captures_are_read_as_vhap_leaves_them(small_head, tmp_path):
    source = tmp_path / "captures"
    capture_files.write_capture(source / "074_EMO-1_v16_DS4_whiteBg")
    capture_files.write_capture(source / "seed00001", alpha=True)
    (source / "seed00001" / "images" / "00001_00.png").unlink()
    flags = {"dataset": "captures", "source": str(source), "head": small_head}
    asked = {"licence": "Ours.", "synthetic": True, "held_out": ["074"]}
    run(data_dir=str(tmp_path / "data"), **flags, **asked)
    (report,) = (tmp_path / "data").rglob("report.json")
    (skipped,) = json.loads(report.read_text())["train"]["skipped"]
    assert skipped["name"] == "seed00001/capture/1/00"
    assert "corrupt" in skipped["reason"]
    train, held_out = (records_of(report.parent, x) for x in ("train", "held_out"))
    assert len(train) == 3 and len(held_out) == 4
    assert {x["clip"] for x in held_out} == {b"EMO-1"}
    for record in train + held_out:
        assert record["synthetic"] and record["licence"] == b"Ours."
        # Bytes of pictures and normals, and the resampling between two grids.
        assert errors(record).mean() < 0.03


def test_captures_with_poses_the_wrong_way_stop_the_run(small_head, tmp_path, capsys):
    capture_files.write_capture(tmp_path / "source" / "seed00001", inverted=True)
    flags = {"dataset": "captures", "source": str(tmp_path / "source")}
    said = refused(
        capsys, data_dir=str(tmp_path / "data"), head=small_head, licence="-", **flags
    )
    assert "direction of the poses" in said
    assert "--licence" in refused(capsys, data_dir=str(tmp_path / "data"), **flags)


def test_normals_of_samples_come_out_in_house_axes(small_head, tmp_path):
    for number in range(3):
        synth_human_files.write_sample(tmp_path / "source", number)
        if number < 2:
            synth_human_files.write_fit(tmp_path / "fits", number)
    (tmp_path / "source" / "normal_0000001.exr").write_bytes(b"torn")
    flags = {"dataset": "synth_human", "source": str(tmp_path / "source")}
    run(
        data_dir=str(tmp_path / "data"),
        head=small_head,
        track=str(tmp_path / "fits"),
        **flags,
    )
    (report,) = (tmp_path / "data").rglob("report.json")
    found = json.loads(report.read_text())["train"]
    assert found["examples"] == 1
    reasons = {one["name"]: one["reason"] for one in found["skipped"]}
    assert "corrupt" in reasons["0000001/samples/camera"]
    assert "no fit" in reasons["0000002/samples/camera"]
    (record,) = records_of(report.parent)
    assert record["subject"] == b"0000000" and record["synthetic"]
    assert errors(record).mean() < 0.03


def write_sample_of(folder, picture, *, alpha=None, normals=None):
    """A sample with another picture, perhaps with other estimates, and its fit."""
    synth_human_files.write_sample(folder / "source", 0)
    synth_human_files.write_fit(folder / "fits", 0)
    images.write_png(folder / "source" / "rgb_0000000.png", picture)
    if alpha is not None:
        images.write_png(folder / "source" / "alpha_0000000.png", alpha)
    if normals is not None:
        portraits.write_exr(folder / "source" / "normal_0000000.exr", normals)


def write_estimate(folder, values):
    """What a folder of estimates holds of the sample."""
    path = folder / "0000000" / "samples" / "camera" / "000000.png"
    path.parent.mkdir(parents=True)
    images.write_png(path, values)


def flags_of_sample(folder, head):
    flags = {"source": "source", "track": "fits", "data_dir": "data"}
    flags = {name: str(folder / value) for name, value in flags.items()}
    return {"dataset": "synth_human", "head": head, **flags}


def record_of_sample(folder, head, **sources):
    run(**flags_of_sample(folder, head), **sources)
    (report,) = (folder / "data").rglob("report.json")
    (record,) = records_of(report.parent)
    return record


def fitted(record):
    """Normals and coverage of the sample's fitted head in the record's picture."""
    camera = nersemble_files.stored_camera(record, len(record["image"]))
    params = synth_human_files.params(0)
    drawn = framing.draw_head(portraits.head(), params, camera)
    return [np.asarray(x) for x in drawn[:2]]


def rippled(normals):
    """Finer than any fit; zero where there are none."""
    y, x = np.mgrid[: normals.shape[0], : normals.shape[1]] / 4.0
    waves = 0.4 * np.stack([np.sin(x), np.sin(y), 0.0 * x], axis=-1)
    return schema.unit_normals(normals + waves, 1.0 * np.any(normals, axis=-1))


def colors_of_sample():
    """Rippled normals in the sample's axes as colours, and the sample's matte."""
    _, matte, normals = portraits.shot(
        synth_human_files.params(0), synth_human_files.camera(0)
    )
    return 0.5 + 0.5 * rippled(normals) * synth_human_files.AXES, matte


SOURCES = ["fit", "folder", "network.onnx"]


@pytest.mark.parametrize("source", SOURCES)
def test_normals_of_any_source_come_out_in_house_axes(small_head, tmp_path, source):
    """Pictures, and the folder, show other normals than the fit has, in other axes.

    The sample's own normals are noise, and would be refused.
    """
    colors, matte = colors_of_sample()
    noise = np.random.default_rng(0).normal(size=colors.shape)
    picture = np.where(matte[..., None] > 0.0, colors, portraits.GREEN)
    write_sample_of(tmp_path, picture, normals=noise)
    if source == "folder":
        write_estimate(tmp_path / source, colors[..., ::-1])
    elif source != "fit":
        pytest.importorskip("onnxruntime")
        onnx_files.write_identity(tmp_path / source, side=48)
    named = source if source == "fit" else str(tmp_path / source)
    record = record_of_sample(tmp_path, small_head, normals=named)
    error = errors(record, signs=synth_human_files.AXES).mean()
    if source == "fit":
        smooth, covered = fitted(record)
        away = np.abs(schema.normals_from_bytes(record["normal"]) - smooth)
        assert away[covered == 1.0].max() < 0.005  # Bytes.
        assert error > 0.06
    else:
        # Bytes, and the resampling between grids, of which the network has one more.
        assert error < 0.02


RED = np.array([1.0, 0.4, 0.2])


def disc(size, *, middle, radius):
    """How much of each pixel lies in a disc, width x height = `size`."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    away = np.hypot(x - middle[0], y - middle[1])
    return np.clip(radius - away + 0.5, 0.0, 1.0)


DISC = {"middle": np.array([44.0, 62.0]), "radius": 30.0}
"""In the sample's frame, round the head and wider than it."""


def disc_of(record, *, wider):
    """The same in the record's picture, by its camera."""
    whole, part = (
        np.asarray(x.intrinsics)
        for x in (
            synth_human_files.camera(0),
            nersemble_files.stored_camera(record, len(record["image"])),
        )
    )
    scale = part[0] / whole[0]
    middle = part[2:] + scale * (DISC["middle"] - whole[2:])
    radius = scale * DISC["radius"] + wider
    return disc(record["image"].shape[:2], middle=middle, radius=radius)


def write_brightest(path):
    """A network that gives back the largest of each pixel's three colours."""
    number, nested, text = onnx_files._number, onnx_files._nested, onnx_files._text

    def tensor(name, channels):
        dims = [number(1, 1), number(1, channels), text(2, "h"), text(2, "w")]
        shape = nested(2, b"".join(nested(1, dim) for dim in dims))
        return text(1, name) + nested(2, nested(1, number(1, 1) + shape))

    axes = nested(5, text(1, "axes") + number(8, 1) + number(20, 7))
    node = text(1, "x") + text(2, "y") + text(4, "ReduceMax") + axes
    graph = nested(1, node) + text(2, "graph")
    graph += nested(11, tensor("x", 3)) + nested(12, tensor("y", 1))
    opset = nested(8, text(1, "") + number(2, 13))
    path.write_bytes(number(1, 8) + opset + nested(7, graph))


@pytest.mark.parametrize("source", SOURCES)
def test_mattes_of_any_source_lay_the_person_on_white(small_head, tmp_path, source):
    """Pictures show a red disc on black, which folder and network take for the person.

    The sample's own matte is empty, and would be refused.
    """
    person = disc(synth_human_files.SIZE, **DISC)
    write_sample_of(tmp_path, person[..., None] * RED, alpha=0.0 * person)
    if source == "folder":
        # Of another size than the frame.
        twice = {name: 2.0 * value for name, value in DISC.items()}
        size = 2 * np.array(synth_human_files.SIZE)
        write_estimate(tmp_path / source, disc(size, **twice))
    elif source != "fit":
        pytest.importorskip("onnxruntime")
        write_brightest(tmp_path / source)
    named = source if source == "fit" else str(tmp_path / source)
    record = record_of_sample(tmp_path, small_head, matte=named, normals="fit")
    image, mask = record["image"] / 255.0, record["mask"][..., 0] / 255.0
    inner, outer = (disc_of(record, wider=x) for x in (-2.0, 2.0))
    if source == "fit":
        np.testing.assert_allclose(mask, fitted(record)[1], atol=0.003)  # Bytes.
    else:
        assert (mask[inner == 1.0] == 1.0).all()
        assert (mask[outer == 0.0] == 0.0).all()
    assert (mask == 0.0).sum() > 100
    assert (image[mask == 0.0] == 1.0).all()
    person = image[(mask == 1.0) & (inner == 1.0)]
    np.testing.assert_allclose(person, np.broadcast_to(RED, person.shape), atol=0.003)


def test_grey_pixels_of_a_folder_are_no_normals(small_head, tmp_path, capsys):
    """The matte is wider than what the folder knows normals of."""
    colors, _ = colors_of_sample()
    person = disc(synth_human_files.SIZE, **DISC)
    write_sample_of(tmp_path, colors, alpha=person)
    write_estimate(tmp_path / "normals", colors)
    flags = flags_of_sample(tmp_path, small_head)
    said = refused(capsys, **flags, normals=str(tmp_path / "normals"))
    assert "without one" in said


def test_samples_need_fits(tmp_path, capsys):
    synth_human_files.write_sample(tmp_path / "source", 0)
    flags = {"dataset": "synth_human", "data_dir": str(tmp_path / "data")}
    said = refused(capsys, source=str(tmp_path / "source"), **flags)
    assert "--track" in said
    assert "rgb_0000000.png" in refused(capsys, source=str(tmp_path), **flags)


@pytest.mark.parametrize(
    "kind, reason", [("faces", "several faces"), ("hands", "a hand")]
)
def test_frames_with_others_in_them_are_left_out(
    studio, tmp_path, capsys, monkeypatch, kind, reason
):
    """As a detector's boxes say: the picture's corner is no part of the face."""
    corner = np.array([[0.0, 0.0, 9.0, 9.0]])
    monkeypatch.setattr(mediapipe_models, "installed", lambda: True)
    for name in ("face_boxes", "hand_boxes"):
        monkeypatch.setattr(mediapipe_models, name, lambda image: corner)
    flags = {**flags_of(studio, tmp_path), "detect": [kind]}
    assert reason in refused(capsys, **flags)
    monkeypatch.setattr(mediapipe_models, "installed", lambda: False)
    assert "pip install" in refused(capsys, **flags)


@pytest.mark.parametrize("inverted", [False, True])
def test_poses_are_read_in_the_direction_that_fits(small_head, tmp_path, inverted):
    pytest.importorskip("h5py")
    renderme360_files.write(tmp_path / "source", "0297", inverted=inverted)
    renderme360_files.write(tmp_path / "source", "0298", clip="s1_all", flame=False)
    run(
        dataset="renderme360",
        source=str(tmp_path / "source"),
        head=small_head,
        held_out=["0298"],
        data_dir=str(tmp_path / "data"),
    )
    (report,) = (tmp_path / "data").rglob("report.json")
    found = json.loads(report.read_text())
    assert {x["reason"] for x in found["held_out"]["skipped"]} == {"no fit"}
    records = records_of(report.parent)
    assert {(x["view"], x["frame"]) for x in records} == {
        (view, frame) for view in (b"00", b"01") for frame in renderme360_files.FRAMES
    }
    for record in records:
        # As for captures, and bent twice.
        assert errors(record).mean() < 0.04


def test_flame_of_another_version_stops_the_run(small_head, tmp_path, capsys):
    pytest.importorskip("h5py")
    renderme360_files.write(tmp_path / "source", "0297", spoilt=0.01)
    flags = {"dataset": "renderme360", "source": str(tmp_path / "source")}
    said = refused(capsys, head=small_head, data_dir=str(tmp_path / "data"), **flags)
    assert "vertices beside them" in said


def write_film_and_fit(film, fit):
    """One film at 30 frames a second with its fit, which saw 25 of them."""
    capture_files.write_capture(fit)
    single_view(fit)
    shots = [
        portraits.shot(nersemble_files.params(t), nersemble_files.camera(0))[0]
        for t in range(nersemble_files.FRAMES)
    ]
    nersemble_files.write_film(film, shots, rate=30)


def single_view(fit):
    """Keeps a capture's first camera."""
    for file in fit.glob("transforms*.json"):
        content = json.loads(file.read_text())
        content["frames"] = [x for x in content["frames"] if x["camera_index"] == 0]
        file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "dataset, film, fit, labels",
    [
        (
            "mead",
            "M003/video/front/neutral/level_1/001.mp4",
            "M003/front-neutral-level_1-001",
            (b"M003", b"front-neutral-level_1-001", b"front"),
        ),
        (
            "vfhq",
            "Clip+AbC_-123+P0+C2.mp4",
            "AbC_-123+P0/C2",
            (b"AbC_-123+P0", b"C2", b"camera"),
        ),
    ],
)
def test_films_come_with_their_fits(small_head, tmp_path, dataset, film, fit, labels):
    source, fits = tmp_path / "source", tmp_path / "fits"
    write_film_and_fit(source / film, fits / fit)
    run(
        dataset=dataset,
        source=str(source),
        track=str(fits),
        head=small_head,
        data_dir=str(tmp_path / "data"),
    )
    (report,) = (tmp_path / "data").rglob("report.json")
    records = records_of(report.parent)
    assert len(records) == nersemble_files.FRAMES
    for record in records:
        assert (record["subject"], record["clip"], record["view"]) == labels
        assert errors(record).mean() < 0.05


def test_linear_pictures_of_archives_are_read(small_head, tmp_path):
    ava256_files.write(tmp_path / "source", "FXN596", dropped=True)
    ava256_files.write_fit(tmp_path / "fits", "FXN596")
    run(
        dataset="ava256",
        source=str(tmp_path / "source"),
        track=str(tmp_path / "fits"),
        head=small_head,
        data_dir=str(tmp_path / "data"),
    )
    (report,) = (tmp_path / "data").rglob("report.json")
    (skipped,) = json.loads(report.read_text())["train"]["skipped"]
    assert skipped["name"] == "FXN596/EXP_free_face/1/cam401031"
    assert "there is no 001040.avif" in skipped["reason"]
    records = records_of(report.parent)
    assert len(records) == 3
    for record in records:
        # Dark colours have few steps where they are linear.
        assert errors(record).mean() < 0.05


def test_lengths_in_another_unit_stop_the_run(small_head, tmp_path, capsys):
    ava256_files.write(tmp_path / "source", "FXN596", unit=100.0)
    ava256_files.write_fit(tmp_path / "fits", "FXN596")
    flags = {"dataset": "ava256", "source": str(tmp_path / "source")}
    said = refused(
        capsys,
        track=str(tmp_path / "fits"),
        head=small_head,
        data_dir=str(tmp_path / "data"),
        **flags,
    )
    assert "unit" in said
