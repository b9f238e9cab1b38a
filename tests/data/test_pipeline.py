"""Batches: who gets which, in what shapes, again and again the same."""

import dataclasses
import json
import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import cap4d, generator, geodiff4d, geoface
from geodiff_jax.data import augment, loading, pairing, pipeline
from geodiff_jax.models import denoiser, vae
from geodiff_jax.render.conditioning import Conditioning
from geodiff_jax.training import denoising
from tests.data import balls
from tests.experiments import launch

LABELS = [
    (subject, "talk", frame, view)
    for subject in ("ann", "bob", "cleo")
    for frame in range(4)
    for view in ("left", "right")
]
SOURCE = balls.source(LABELS)
LATENTS = loading.Contents(side=4, latents=True, crop=None)
PICTURES = loading.Contents(side=4, crop=16)


def batches(*sources, pair=None, contents=LATENTS, **options):
    pair = pairing.Pairing() if pair is None else pair
    given = sources or (SOURCE,)
    return pipeline.batches(given, pair, contents, **{"batch": 2, **options})


def targets(batch) -> list[int]:
    return balls.numbers(batch["latents"][:, 0]).ravel().tolist()


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def check_against(config, batch):
    """Names and shapes of what the config's training step takes."""
    known = {field.name for field in dataclasses.fields(denoising.Batch)}
    assert set(batch) - {"replaced"} <= known
    wrapped = denoising.Batch(
        **{name: batch[name] for name in batch if name in known}
        | {"signals": Conditioning(**batch["signals"])}
    )
    if "reference" in batch:
        reference = denoiser.Reference(**batch["reference"])
        wrapped = wrapped.replace(reference=reference)
    wrapped = denoising.in_single_precision(wrapped)
    for path, shape in jax.tree_util.tree_leaves_with_path(
        generator.batch_shapes(config)
    ):
        name = jax.tree_util.keystr(path)
        (leaf,) = [
            leaf
            for other, leaf in jax.tree_util.tree_leaves_with_path(wrapped)
            if jax.tree_util.keystr(other) == name
        ]
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype), name


def test_batches_are_what_geodiff4d_trains_on():
    config = geodiff4d.get_config("stage=2")
    config.latents = config.latent_channels = 4
    pair = pairing.Pairing(frames=config.frames, cross_view=config.cross_view)
    contents = dataclasses.replace(LATENTS, crop=config.crop)
    batch = batches(pair=pair, contents=contents, batch=config.batch)[0]
    check_against(config, batch)
    assert batch["frames"].sum() == 4 * config.batch
    held = balls.numbers(batch["latents"])
    np.testing.assert_array_equal(held[:, 0], -held[:, 1])
    maps = balls.numbers(batch["signals"]["head_pose"].astype(float))
    np.testing.assert_array_equal(maps, held[:, 0])
    seen = batch["reference"]
    own = balls.numbers(seen["latents"]), balls.numbers(seen["head_pose"].astype(float))
    np.testing.assert_array_equal(*own)


def test_batches_are_what_cap4d_trains_on():
    config = cap4d.get_config("")
    config.latents = config.latent_channels = 4
    source = balls.source([("ann", "talk", i, "left") for i in range(9)])
    contents = loading.Contents(
        maps=tuple(generator.network(config).layout.maps),
        side=4,
        reference=False,
        domains=("image",),
        latents=True,
        crop=None,
    )
    records = [{**x, "latents": x["latents"][:1]} for x in source.records]
    pair = pairing.Pairing(views=config.views, references=(1, 4))
    batch = batches(
        dataclasses.replace(source, records=records),
        pair=pair,
        contents=contents,
        batch=config.batch,
    )[0]
    del batch["frames"]
    check_against(config, batch)
    slots = batch["signals"]["reference_slots"]
    held = balls.numbers(batch["signals"]["reference_latents"])
    np.testing.assert_array_equal(held, targets_of_set(batch) * slots)
    masks = batch["signals"]["reference_mask"]
    np.testing.assert_array_equal(masks[..., 0, 0, 0], slots)


def geoface_batches(source, config):
    contents = loading.Contents(
        maps=("plucker",),
        side=4,
        reference=False,
        domains=("image",),
        latents=True,
        crop=None,
        geometry=True,
        uv=True,
    )
    pair = pairing.Pairing(views=config.views - 1, instant=True)
    return batches(source, pair=pair, contents=contents, batch=config.batch)


def test_batches_are_what_geoface_trains_on():
    """Views of one instant, and the position map of the first one's record."""
    config = geoface.get_config()
    config.latents = config.latent_channels = 4
    views = ("a", "b", "c", "d", "e")
    labels = [("ann", "talk", frame, view) for frame in range(4) for view in views]
    source = balls.source(labels)
    for number in range(len(labels)):
        # Every record's own.
        told = np.full((2, 2, 3), number / 32.0, np.float16)
        source = balls.spoilt(source, number, uv=told)
    for batch in geoface_batches(source, config)[:4]:
        del batch["frames"]
        check_against(config, batch)
        shown, geometry = np.split(batch["latents"][:, 0], [config.views - 1], axis=1)
        numbers = balls.numbers(shown)[..., 0]
        frames = np.array([[labels[x][2] for x in row] for row in numbers])
        assert (frames == frames[:, :1]).all()
        assert all(len(set(row)) == config.views - 1 for row in numbers.tolist())
        code = geometry[:, 0, 0, 0, 0, 0] / balls.CODE
        np.testing.assert_allclose(code, numbers[:, 0] + 0.5, rtol=1e-5)
        np.testing.assert_array_equal(batch["uv"][..., 0, 0, 0] * 32, numbers)
        signals = batch["signals"]
        assert (
            signals["reference_slots"][:, :, 0].tolist() == [[True, *4 * [False]]] * 2
        )
        held = signals["reference_latents"]
        np.testing.assert_array_equal(held[:, 0], shown[:, 0])
        for name, values in (("latents", held[:, 1:]), ("rays", signals["plucker"])):
            assert not values[:, -1].any(), name
        assert signals["plucker"][:, :-1].any(axis=(2, 3, 4, 5)).all()
        wrapped = denoising.Batch(batch["latents"], Conditioning(**signals))
        counted = denoising.targets(wrapped)[:, 0, :, 0]
        assert counted.tolist() == [[False, *4 * [True]]] * 2


def targets_of_set(batch):
    return balls.numbers(batch["latents"])[:, 0]


def test_surfaces_lie_in_the_cameras_axes():
    """A camera that is turned about y by a right angle, and 1 m away."""
    half = np.sqrt(0.5)
    pose = np.float32([half, 0.0, half, 0.0, 0.0, 0.0, 1.0])
    stored = np.zeros((2, 2, 3), np.float16)
    stored[0, 1] = 0.1, 0.2, 0.3
    source = balls.spoilt(SOURCE, 0, surface=stored, camera_from_world=pose)
    for number in range(1, len(LABELS)):
        source = balls.spoilt(source, number, surface=0 * stored)
    contents = dataclasses.replace(LATENTS, surface=16)
    pair = pairing.Pairing(cross_view=0.0)
    read = [x["surface"] for x in batches(source, pair=pair, contents=contents)[:12]]
    positions = np.concatenate([x["positions"] for x in read])[:, 0, 0]
    (number,) = np.flatnonzero(positions.any(axis=(1, 2, 3)))
    expected = np.zeros((2, 2, 3))
    expected[0, 1] = 0.3, 0.2, 1.0 - 0.1
    np.testing.assert_allclose(positions[number], expected, atol=1e-3)
    # Of a map of 16 x 16, half as large as the picture.
    intrinsics = np.concatenate([x["intrinsics"] for x in read])
    np.testing.assert_allclose(
        intrinsics, np.broadcast_to([20.0, 20.0, 8.0, 8.0], intrinsics.shape)
    )


def test_pictures_are_the_records_own():
    contents = dataclasses.replace(PICTURES, ranges=None)
    pair = pairing.Pairing(frames=2, cross_view=0.0)
    batch = batches(pair=pair, contents=contents)[0]
    pixels = pipeline.pixels(batch, domains=("image", "normal"))
    assert pixels.shape == (2, 2, 1, 2, 32, 32, 3)
    image = pixels[:, 0] * 0.5 + 0.5
    frames = np.rint(image[:, 0, :, 16, 16, 1] * 32).astype(int)
    assert (np.diff(frames, axis=1) == 1).all()
    ball = balls.example()
    np.testing.assert_allclose(pixels[0, 1, 0, 0], ball.normal, atol=0.5 / 127 + 1e-6)
    as_vae = vae.pixels_from_images(jnp.asarray(batch["image"] / 255.0))
    np.testing.assert_allclose(pixels[:, 0], as_vae, atol=1e-6)
    # The box is 16 pixels wide, and so is the crop.
    plain = image[:, :, :, 8:24, 8:24]
    np.testing.assert_allclose(batch["driving"] / 255.0, plain, atol=1e-6)
    of_jax = pipeline.pixels(jax.tree.map(jnp.asarray, batch), domains=("normal",))
    np.testing.assert_allclose(of_jax[:, 0], pixels[:, 1], atol=1e-6)


def test_only_the_driving_crop_is_changed_and_alike_within_a_clip():
    ranges = augment.Ranges(noise=0.0)
    pair = pairing.Pairing(frames=4, cross_view=0.0)
    still, shaken = (
        batches(pair=pair, contents=dataclasses.replace(PICTURES, ranges=one))[0]
        for one in (None, ranges)
    )
    same(still["image"], shaken["image"])
    same(still["signals"], shaken["signals"])
    assert np.abs(np.int_(still["driving"]) - shaken["driving"]).max() > 0.01 * 255
    source = balls.source([("ann", "talk", 0, "left")])
    padded = batches(source, pair=pair, contents=PICTURES)[0]["driving"]
    without = dataclasses.replace(PICTURES, ranges=ranges)
    crops = batches(source, pair=pair, contents=without)[0]["driving"]
    same(crops[:, :, :1].repeat(4, axis=2), crops)
    assert padded.shape == crops.shape


def test_an_epoch_shows_every_record_once_and_hosts_share_it():
    for num_hosts in (1, 2, 3):
        seen = []
        for host in range(num_hosts):
            data = batches(batch=4, host=host, num_hosts=num_hosts)
            count = len(LABELS) // num_hosts // 4
            seen += [x for number in range(count) for x in targets(data[number])]
        assert sorted(seen) == list(range(len(LABELS)))
    first, second = (
        [x for i in range(6) for x in targets(batches(batch=4)[6 * epoch + i])]
        for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) and first != second


def test_a_source_for_each_person_has_all_of_that_person():
    people = loading.by_subject(SOURCE)
    assert len(people) == 3
    for subject, person in enumerate(people):
        seen = [targets(x)[0] for x in batches(person, batch=1)[: len(person.index)]]
        assert sorted(seen) == list(range(8 * subject, 8 * subject + 8))


def test_hosts_draw_differently():
    one = balls.source([("ann", "talk", i, v) for i in range(40) for v in "ab"])
    crossing = []
    for host in range(2):
        data = batches(one, contents=PICTURES, batch=20, host=host, num_hosts=2)
        crossing.append(np.stack([data[i]["driving"].mean() for i in range(3)]))
    assert not np.allclose(*crossing)


def test_sources_are_mixed_by_priority_times_size():
    small = balls.source(LABELS[:6], name="small", priority=2.0)
    small = dataclasses.replace(
        small, records=[{**x, "synthetic": False} for x in small.records]
    )
    # 6 x 2 against 24 x 1.
    for num_hosts in (1, 2):
        for host in range(num_hosts):
            data = batches(SOURCE, small, batch=12, host=host, num_hosts=num_hosts)
            share = np.mean([1 - data[i]["synthetic"].mean() for i in range(6)])
            # One of 72 examples.
            assert abs(share - 1 / 3) < 0.014


class Torn(list):
    """Records of which the first cannot be read."""

    def __getitem__(self, number):
        if number == 0:
            raise OSError("torn")
        return super().__getitem__(number)


REAL = balls.source(LABELS[:6], name="small")
REAL = dataclasses.replace(
    REAL, records=[{**x, "synthetic": False} for x in REAL.records]
)


@pytest.mark.parametrize(
    ("priorities", "by_size", "shares"),
    [
        ({}, True, [4 / 9, 4 / 9, 1 / 9]),
        ({"small": 4}, True, [1 / 3, 1 / 3, 1 / 3]),
        ({}, False, [1 / 4, 1 / 4, 1 / 2]),
        ({"synthetic": 2, "small": 0.5}, False, [0.4, 0.4, 0.2]),
        ({"synthetic": 0}, False, [1]),
        ({"small": 0}, True, [1 / 2, 1 / 2]),
    ],
)
def test_datasets_are_mixed_as_a_config_says(priorities, by_size, shares):
    """Two synthetic ones of 24 records, and a real one of 6."""
    torn = dataclasses.replace(SOURCE, records=Torn(SOURCE.records))
    given = (SOURCE, torn, REAL)
    mixed = pipeline.mixture(given, priorities, by_size=by_size)
    weights = np.array([x.priority * len(x.index) for x in mixed])
    np.testing.assert_allclose(weights / weights.sum(), shares)


@pytest.mark.parametrize("priorities", [{"synthetic": 0, "small": 0}, {"small": -1}])
def test_a_mixture_of_nothing_is_refused(priorities):
    with pytest.raises(ValueError, match="priorities .* 'small'"):
        pipeline.mixture([SOURCE, REAL], priorities)


@pytest.mark.parametrize("threads", [1, 4])
def test_any_restart_goes_on_with_the_same_batches(threads):
    data = batches(contents=PICTURES)
    whole = pipeline.Iterator(data, threads=threads)
    expected = [next(whole) for _ in range(6)]
    for stop in range(6):
        before = pipeline.Iterator(data)
        for number in range(stop):
            same(next(before), expected[number])
        state = json.loads(json.dumps(before.get_state()))
        after = pipeline.Iterator(batches(contents=PICTURES), threads=threads)
        after.set_state(state)
        for number in range(stop, 6):
            same(next(after), expected[number])


def test_seeds_differ():
    one, other = (batches(contents=PICTURES, seed=seed)[0] for seed in (0, 1))
    assert not np.array_equal(one["driving"], other["driving"])


@pytest.mark.slow
def test_workers_give_the_same_batches_from_anywhere():
    launch.parse_flags()
    data = batches(contents=PICTURES)
    expected = [data[number] for number in range(7)]
    for workers, start in ((1, 0), (2, 0), (2, 3)):
        iterator = pipeline.Iterator(data, workers=workers)
        iterator.set_state({"batches": start})
        for number in range(start, 7):
            same(next(iterator), expected[number])
        assert iterator.get_state() == {"batches": 7}
        iterator.close()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_else_changes(caplog):
    launch.parse_flags()
    data = batches(contents=PICTURES)
    iterator = pipeline.Iterator(data, workers=1)
    same(next(iterator), data[0])
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with caplog.at_level("WARNING", logger="absl"):
        for number in range(1, 7):
            same(next(iterator), data[number])
    assert "again: Grain worker process 0 was terminated" in caplog.text
    iterator.close()


BROKEN = {
    "torn picture": {"image": SOURCE.records[5]["image"][:100]},
    "no picture": {"image": np.zeros(50, np.uint8)},
    "wrong size": {
        "image": balls.schema.encode(
            balls.example(sizes=balls.schema.Sizes(image=16, map=4))
        )["image"]
    },
    "NaN": {"head_pose": np.full((4, 4, 3), np.nan, np.float16)},
    "wrong map": {"head_pose": np.zeros((2, 2, 3), np.float16)},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_unreadable_records_are_replaced_counted_and_named(fault, caplog):
    source = balls.spoilt(SOURCE, 5, **BROKEN[fault])
    pair = pairing.Pairing(cross_view=0.0)
    options = {"pair": pair, "contents": PICTURES, "batch": 4}
    replaced, iterator = 0, pipeline.Iterator(batches(source, **options))
    with caplog.at_level("WARNING", logger="absl"):
        for number in range(6):
            batch = next(iterator)
            whole = batches(**options)[number]
            good = batch["replaced"] == 0
            replaced += int(batch["replaced"].sum())
            for a, b in zip(
                jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True
            ):
                np.testing.assert_array_equal(a[good], b[good])
    assert iterator.replaced == replaced >= 1
    assert "balls: record 5" in caplog.text


def test_a_broken_disk_stops_the_run():
    gone = dataclasses.replace(
        SOURCE, records=[{**x, "image": np.zeros(9, np.uint8)} for x in SOURCE.records]
    )
    with pytest.raises(ValueError, match="check the disk"):
        batches(gone, contents=PICTURES)[0]


def test_mistakes_of_ours_are_not_taken_for_broken_records():
    lacking = [{k: v for k, v in x.items() if k != "face_box"} for x in SOURCE.records]
    with pytest.raises(KeyError, match="face_box"):
        batches(dataclasses.replace(SOURCE, records=lacking), contents=PICTURES)[0]


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(ValueError, match="at least one source"):
        pipeline.batches([], pairing.Pairing(), LATENTS, batch=1)
    with pytest.raises(ValueError, match="each host"):
        batches(num_hosts=len(LABELS) + 1)
    with pytest.raises(ValueError, match="frame"):
        batches(pair=pairing.Pairing(frames=0))
