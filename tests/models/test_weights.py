"""Laws of loading: every tensor in its place, and nothing passes unnoticed."""

import jax
import numpy as np
import pytest

from geodiff_jax.models import weights

TABLE = {
    **weights.conv("stem", ("in",)),
    **weights.dense("head", ("out",), bias=False),
    **weights.norm("norm", ("norm",)),
}
SHAPES = {
    "stem.weight": (5, 3, 2, 4),
    "stem.bias": (5,),
    "head.weight": (6, 5),
    "norm.weight": (5,),
    "norm.bias": (5,),
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=s).astype(np.float16) for name, s in SHAPES.items()}


def variables(inputs: int = 3) -> dict:
    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, np.float32)

    return {
        "params": {
            "in": {"kernel": shape(2, 4, inputs, 5), "bias": shape(5)},
            "out": {"kernel": shape(5, 6)},
            "norm": {"scale": shape(5), "bias": shape(5)},
        }
    }


def test_every_tensor_arrives_turned_and_in_our_precision():
    given = tensors()
    filled, report = weights.fill(variables(), TABLE, given)
    assert report == weights.Report()
    weights.demand(report)
    ours = filled["params"]
    assert {x.dtype for x in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    for o, i, y, x in np.ndindex(*SHAPES["stem.weight"]):
        assert ours["in"]["kernel"][y, x, i, o] == given["stem.weight"][o, i, y, x]
    np.testing.assert_array_equal(ours["out"]["kernel"], given["head.weight"].T)
    np.testing.assert_array_equal(ours["norm"]["scale"], given["norm.weight"])


def test_convolutions_of_one_pixel_are_linear_layers():
    given = tensors()
    wide = given | {"head.weight": given["head.weight"][..., None, None]}
    filled, report = weights.fill(variables(), TABLE, wide)
    assert report == weights.Report()
    np.testing.assert_array_equal(
        filled["params"]["out"]["kernel"], given["head.weight"].T
    )


def test_all_that_does_not_fit_is_named_and_refused():
    given = tensors() | {"more.weight": np.zeros(3), "stem.bias": np.zeros(4)}
    del given["norm.bias"]
    _, report = weights.fill(variables(), TABLE, given)
    assert report == weights.Report(
        missing=("norm.bias",),
        unused=("more.weight",),
        misshapen=("stem.bias: [4], not [5]",),
        random=("params/in/bias", "params/norm/bias"),
    )
    with pytest.raises(ValueError, match=r"stem.bias.*norm.bias.*more.weight"):
        weights.demand(report)
    # What has another shape is never expected.
    with pytest.raises(ValueError, match="stem.bias"):
        weights.demand(report, expected=["norm.", "more.", "stem."])


def test_expected_gaps_are_accepted_by_name_or_beginning():
    given = tensors() | {"more.weight": np.zeros(3)}
    del given["norm.bias"]
    _, report = weights.fill(variables(), TABLE, given)
    weights.demand(report, expected=["norm.bias", "more."])
    with pytest.raises(ValueError, match="more.weight"):
        weights.demand(report, expected=["norm.bias"])


def test_widened_kernels_start_at_zero_behind_the_old_inputs():
    given, kernel = tensors(), ("params", "in", "kernel")
    filled, report = weights.fill(variables(7), TABLE, given, widened=[kernel])
    ours = filled["params"]["in"]["kernel"]
    np.testing.assert_array_equal(
        ours[:, :, :3], given["stem.weight"].transpose(2, 3, 1, 0)
    )
    assert not ours[:, :, 3:].any()
    assert report == weights.Report(padded=("params/in/kernel: 4 of 7 inputs",))
    _, report = weights.fill(variables(7), TABLE, given)
    assert report.misshapen == ("stem.weight: [2, 4, 3, 5], not [2, 4, 7, 5]",)


def test_tables_and_modules_that_differ_are_a_bug():
    table = TABLE | weights.dense("lost", ("lost",))
    with pytest.raises(ValueError, match="params/lost/kernel and 1 more"):
        weights.fill(variables(), table, tensors())


def test_scopes_nest_in_names_and_behind_collections():
    inner = weights.norm("n", ("a",))
    table = weights.scoped(inner, name="part.", path=("b",))
    assert table == {
        "part.n.weight": weights.Entry(("params", "b", "a", "scale")),
        "part.n.bias": weights.Entry(("params", "b", "a", "bias")),
    }


def test_branches_cover_their_names_and_nothing_else():
    names = ("params/a/x", "params/a/y", "params/b/c/x", "params/d")
    others = ("params/b/c/y", "params/e/x")
    assert weights.branches(names, others) == ("params/a", "params/b/c/x", "params/d")
    assert weights.branches(names, ()) == ("params",)
    assert weights.branches((), others) == ()


def test_a_summary_names_what_was_not_filled():
    filled = {"params": {"a": {"x": 0, "y": 1}, "b": {"x": 2}}}
    report = weights.Report(random=("params/b/x",), unused=("params/c/x", "params/c/y"))
    assert weights.summary(report, filled, name="file") == [
        "2 of 3 arrays are those of file.",
        "These stay as they are: params/b.",
        "These are not used: params/c.",
    ]
