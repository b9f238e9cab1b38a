"""Rules put everything somewhere, evenly, and refuse what cannot be."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from geodiff_jax import sharding
from tests import pods

MESH = sharding.abstract_mesh((2, 4, 3))


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (P("fsdp", "tensor"), (8, 6), P("fsdp", "tensor")),
        (P("fsdp", "tensor"), (3, 3, 8, 6), P(None, None, "fsdp", "tensor")),
        (P("fsdp"), (6,), P(None)),
        (P("fsdp", "tensor"), (8, 5), P("fsdp", None)),
        (P("fsdp", None), (5, 8), P(None, "fsdp")),
        (P("tensor", "fsdp"), (5, 24), P(None, ("fsdp", "tensor"))),
        (P(("fsdp", "tensor"), None), (24, 8), P(("fsdp", "tensor"), None)),
        (P(("fsdp", "tensor"), None), (8, 9), P("fsdp", "tensor")),
        (P(), (7, 5), P(None, None)),
    ],
)
def test_axes_that_do_not_divide_move_or_are_left_out(spec, shape, expected):
    assert sharding.fit(spec, shape, MESH) == expected


def test_every_device_holds_the_same():
    """Whatever the shape, parts of an array are equal; no axis is used twice."""
    rng = np.random.default_rng(0)
    specs = [P("fsdp", "tensor"), P(("fsdp", "tensor"), None), P(None, "fsdp")]
    for shape in rng.integers(1, 13, (60, 3)).tolist():
        for spec in specs:
            found = sharding.fit(spec, tuple(shape), MESH)
            part = jax.sharding.NamedSharding(MESH, found).shard_shape(tuple(shape))
            ways = np.prod(shape) // np.prod(part)
            assert ways in (1, 3, 4, 12)


def test_the_first_rule_that_matches_counts():
    tree = {"a": {"kernel": jnp.zeros((8, 6))}, "kernel": jnp.zeros((8, 6))}
    rules = [(r"^a/kernel$", P("fsdp", None)), (r"kernel$", P())]
    found = sharding.shardings(tree, rules, MESH)
    assert found["a"]["kernel"].spec == P("fsdp", None)
    assert found["kernel"].spec == P(None, None)


def test_what_no_rule_knows_is_named():
    tree = {"unet": [jnp.zeros(3), jnp.zeros(())]}
    with pytest.raises(ValueError, match="partition of unet/0, got none"):
        sharding.shardings(tree, [("kernel", P())], MESH)
    sharding.shardings(tree, [("unet/0", P())], MESH)  # Scalars need none.


def test_bytes_of_the_busiest_device():
    tree = {"a": jnp.zeros((8, 6)), "b": jnp.zeros(5, jnp.bfloat16)}
    rules = [("a", P("fsdp", "tensor")), ("b", P("fsdp"))]
    placed = sharding.shardings(tree, rules, MESH)
    assert sharding.bytes_per_device(tree, placed) == 4 * 2 * 2 + 2 * 5


@pytest.mark.parametrize("make", [sharding.make_mesh, sharding.abstract_mesh])
@pytest.mark.parametrize("shape", [(1, 1), (0, 1, 1), (1, 1, 1, 1)])
def test_shapes_that_are_none_are_refused(make, shape):
    with pytest.raises(ValueError, match="data, fsdp, tensor"):
        make(shape)


def test_meshes_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"which are here, got 3x1x1 = 3"):
        sharding.make_mesh((3, 1, 1), devices=jax.devices()[:1])


def test_batches_are_shared_out_evenly_or_refused():
    sharding.check_batch(16, MESH)
    with pytest.raises(ValueError, match="data x fsdp = 8 divides, got 12"):
        sharding.check_batch(12, MESH)
    with pytest.raises(ValueError, match="accumulated parts = 32 divides, got 16"):
        sharding.check_batch(16, MESH, accumulated=4)


def test_a_batch_on_one_device_is_itself():
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    rows = {"a": np.arange(6.0).reshape(3, 2), "b": np.ones(3, bool)}
    placed = sharding.place_batch(rows, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, rows)
    with jax.set_mesh(mesh):
        doubled = jax.jit(functools.partial(jax.tree.map, lambda x: x * 2))(placed)
    np.testing.assert_array_equal(doubled["a"], 2 * rows["a"])


@pytest.mark.parametrize("kind", pods.SLICES)
@pytest.mark.parametrize("shape", [(1, 64, 1), (1, 32, 2), (1, 8, 8), (4, 2, 8)])
def test_hosts_of_a_slice_share_out_the_rows_of_their_chips(kind, shape):
    """On all of them together each row comes once, from all that hold it the same."""
    mesh = sharding.make_mesh(shape, devices=pods.chips(kind))
    assert mesh.devices.shape == shape and len(set(mesh.devices.flat)) == 64
    rows = mesh.devices.reshape(-1, shape[-1])
    shares = [sharding.own_share(mesh, process=host) for host in range(16)]
    ((_, count),) = {(0, count) for _, count in shares}
    # Whose share each row is in.
    owners = [{shares[chip.process_index][0] for chip in row} for row in rows]
    assert all(len(owner) == 1 for owner in owners)
    often = collections.Counter(which for (which,) in owners)
    assert often == dict.fromkeys(range(count), len(rows) // count)


def test_processes_that_overlap_in_some_rows_are_refused():
    """Three chips a host, of meshes with pairs of them."""
    chips = [
        dataclasses.replace(chip, process_index=chip.id // 3, platform="cpu")
        for chip in pods.chips("TPU v4")[:12]
    ]
    mesh = sharding.make_mesh((6, 1, 2), devices=chips)
    with pytest.raises(ValueError, match="none in common"):
        sharding.own_share(mesh, process=0)
