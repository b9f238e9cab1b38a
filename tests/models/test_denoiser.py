"""The contract between signals and denoisers, paper by paper, and what follows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import settings


@dataclasses.dataclass(frozen=True)
class Row:
    """One signal of the contract."""

    signal: str
    papers: tuple[str, ...]
    dropped: bool = False
    """Whether guidance's unconditional branch lacks it."""
    remembered: bool = False
    """Whether the reference net sees it, from which the denoiser has it."""


VIDEO = ("geodiff4d", "learn2control")
CONTRACT = (
    Row("latents", settings.PAPERS),
    Row("t", settings.PAPERS),
    Row("head_pose", ("geodiff4d",)),
    Row("expression_tokens", ("geodiff4d",), dropped=True),
    Row("domain_label", ("geodiff4d",)),
    Row("reference", VIDEO, remembered=True),
    Row("reference.head_pose", ("geodiff4d",), remembered=True),
    Row("reference_latents", ("cap4d", "geoface"), dropped=True),
    Row("reference_slots", ("cap4d", "geoface")),
    Row("position_code", ("cap4d",), dropped=True),
    Row("expression_offset", ("cap4d",), dropped=True),
    Row("rays", ("cap4d",), dropped=True),
    Row("reference_mask", ("cap4d",), dropped=True),
    Row("crop_mask", ("cap4d",), dropped=True),
    Row("plucker", ("geoface",), dropped=True),
    Row("camera_token", ("geoface",)),
    Row("features", ("learn2control",)),
    Row("synthetic", ("learn2control",)),
    Row("frames", VIDEO),
    Row("temporal", VIDEO),
)
CASES = [(row, paper) for row in CONTRACT for paper in row.papers]
BESIDE = [(row, paper) for row, paper in CASES if paper in VIDEO]


compiled = functools.partial(jax.jit, compiler_options=settings.QUICKLY)


@functools.cache
def prepared(paper):
    """(compiled network, variables, inputs): one compilation for all tests."""
    network = settings.network(paper)
    given = settings.inputs(paper)
    return compiled(network.apply), settings.variables(network, given), given


def changed(paper, signal, variables, given):
    """(variables, inputs) with another value of that signal alone."""
    other = settings.inputs(paper, seed=1)
    if signal in variables["params"]:
        moved = jax.tree.map(lambda x: x[::-1] + 0.1, variables["params"][signal])
        return {**variables, "params": {**variables["params"], signal: moved}}, given
    if signal == "reference.head_pose":
        pose = other["reference"].head_pose
        new = given["reference"].replace(head_pose=pose)
        return variables, {**given, "reference": new}
    if signal == "temporal":

        def move(path, x):
            return x + 0.1 if signal in jax.tree_util.keystr(path) else x

        return jax.tree_util.tree_map_with_path(move, variables), given
    if signal == "frames":
        return variables, {**given, "frames": given["frames"].at[:, -1].set(False)}
    if signal == "synthetic":
        return variables, {**given, "synthetic": ~given["synthetic"]}
    if signal == "reference_slots":
        slots = jnp.roll(given["signals"].reference_slots, 1, axis=1)
        return variables, given | {
            "signals": given["signals"].replace(reference_slots=slots)
        }
    if signal in given:
        return variables, {**given, signal: other[signal]}
    new = given["signals"].replace(**{signal: getattr(other["signals"], signal)})
    return variables, {**given, "signals": new}


@pytest.mark.parametrize(
    ("row", "paper"), CASES, ids=[f"{paper}-{row.signal}" for row, paper in CASES]
)
def test_signals_arrive_and_are_dropped_as_agreed(row, paper):
    apply, variables, given = prepared(paper)
    for dropped in (False, True):
        own = {**given, "dropped": jnp.full(settings.BATCH, dropped)}
        variables_after, after = changed(paper, row.signal, variables, own)
        one, other = apply(variables, **own), apply(variables_after, **after)
        # What references predict is no prediction.
        held = "latents" in row.signal and paper not in VIDEO
        targets = slice(1, None) if held else slice(None)
        moved = np.abs(np.asarray(one - other))[:, :, targets].max(
            axis=(1, 2, 3, 4, 5, 6)
        )
        assert np.isfinite(moved).all()
        if dropped and row.dropped:
            assert (moved == 0).all()
        else:
            assert (moved > 1e-4).all()


@functools.cache
def remembering(paper):
    network = settings.network(paper)
    return compiled(lambda v, r: network.apply(v, r, method="remember"))


@pytest.mark.parametrize(
    ("row", "paper"), BESIDE, ids=[f"{paper}-{row.signal}" for row, paper in BESIDE]
)
def test_the_reference_net_sees_what_is_agreed_alone(row, paper):
    _, variables, given = prepared(paper)
    variables_after, after = changed(paper, row.signal, variables, given)
    banks = (
        remembering(paper)(of, signals["reference"])
        for of, signals in ((variables, given), (variables_after, after))
    )
    moved = jax.tree.map(lambda one, other: bool((one != other).any()), *banks)
    assert set(moved.values()) == {row.remembered}


@pytest.mark.parametrize("paper", settings.PAPERS)
def test_items_are_dropped_one_by_one(paper):
    apply, variables, given = prepared(paper)
    some, every = (
        apply(variables, **{**given, "dropped": jnp.asarray(x)})
        for x in ([True, False], [True, True])
    )
    none = apply(variables, **given)
    np.testing.assert_array_equal(some[0], every[0])
    np.testing.assert_array_equal(some[1], none[1])


def test_one_time_per_item_is_that_items():
    apply, variables, given = prepared("cap4d")
    times = jnp.asarray([3, 700])
    whole = jnp.broadcast_to(times[:, None, None, None], (2, 1, 1, 1))
    np.testing.assert_allclose(
        compiled(settings.network("cap4d").apply)(variables, **given | {"t": times}),
        apply(variables, **given | {"t": whole}),
        atol=1e-4,  # Two programs; the predictions are about 1.
    )


@pytest.mark.parametrize("paper", ["cap4d", "geoface"])
def test_noise_in_the_slots_of_references_is_ignored(paper):
    apply, variables, given = prepared(paper)
    junk = {**given, "latents": given["latents"].at[:, :, 0].add(7.0)}
    one, other = apply(variables, **given), apply(variables, **junk)
    np.testing.assert_array_equal(one[:, :, 1:], other[:, :, 1:])
    held = given["signals"].reference_latents[:, None]
    np.testing.assert_array_equal(one[:, :, 0], (given["latents"] - held)[:, :, 0])


def test_no_camera_sees_the_geometry_slot():
    apply, variables, given = prepared("geoface")
    rays = given["signals"].plucker.at[:, -1].set(9.0)
    moved = {**given, "signals": given["signals"].replace(plucker=rays)}
    np.testing.assert_array_equal(apply(variables, **given), apply(variables, **moved))


def test_domains_are_told_apart_by_their_labels_alone():
    """Swapping domains and labels swaps predictions; rounding follows the order."""
    apply, variables, given = prepared("geodiff4d")
    label = variables["params"]["domain_label"]["embedding"]
    swapped = {**variables["params"], "domain_label": {"embedding": label[::-1]}}
    one = apply(variables, **given)
    other = apply(
        {**variables, "params": swapped},
        **given | {"latents": given["latents"][:, ::-1]},
    )
    np.testing.assert_allclose(one, other[:, ::-1], atol=2e-4 * np.abs(one).max())


def test_a_remembered_bank_is_the_reference():
    apply, variables, given = prepared("geodiff4d")
    network = settings.network("geodiff4d")
    bank = remembering("geodiff4d")(variables, given["reference"])
    banked = {k: v for k, v in given.items() if k != "reference"}
    np.testing.assert_allclose(
        apply(variables, **given),
        compiled(network.apply)(variables, **banked, bank=bank),
        atol=1e-4,  # Two programs; the predictions are about 1.
    )


@pytest.mark.slow
def test_expressions_of_crops_are_their_tokens():
    """The encoder inside the denoiser is the one that `express` calls."""
    _, variables, given = prepared("geodiff4d")
    network = settings.network("geodiff4d")
    lead = (settings.BATCH, 1, settings.FRAMES)
    crops = jax.random.uniform(
        jax.random.key(1), (*lead, settings.CROP, settings.CROP, 3)
    )

    @compiled
    def both(variables):
        _, tokens = network.apply(variables, crops, method="express")
        told = given | {"signals": given["signals"].replace(expression_tokens=tokens)}
        return network.apply(variables, **told), network.apply(
            variables, **given, driving=crops
        )

    np.testing.assert_allclose(*both(variables), atol=1e-4)


@pytest.mark.parametrize(
    ("paper", "change", "message"),
    [
        ("geodiff4d", {"reference": None}, "got neither"),
        ("geodiff4d", {"bank": {}}, "got both"),
        ("geodiff4d", {"latents": jnp.zeros((2, 1, 1, 2, 8, 8, 4))}, "2 domains"),
        ("cap4d", {"driving": jnp.zeros((2, 3, 1, 64, 64, 3))}, "no.* encoder|encoder"),
        ("cap4d", {"reference": settings.inputs("geodiff4d")["reference"]}, "slots"),
    ],
)
def test_signals_that_do_not_fit_are_refused(paper, change, message):
    network, given = settings.network(paper), settings.inputs(paper)
    variables = prepared(paper)[1]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.apply, variables, **{**given, **change})
