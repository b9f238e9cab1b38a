"""Where arrays lie on many devices: a mesh, and rules from names to partitions.

A mesh has three axes. Batches are spread over `data` and `fsdp`; parameters and all
that follows them (gradients, moments, averages) over `fsdp`, and layers that come in
pairs over `tensor` too. XLA moves the arrays (Xu et al. 2021): axes are Auto, and a
program says nowhere what is sent.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
"""Of whatever has a batch as its first axis."""

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
Rules = Sequence[tuple[str, PartitionSpec]]
"""(regular expression searched in the path of a leaf, partition of its last axes); the
first that matches counts. Paths read `params/unet/conv_in/kernel`."""


def make_mesh(
    shape: tuple[int, ...], *, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """A mesh of all devices, or of those given; enter it by `jax.set_mesh`.

    Raises ValueError if the shape is not that of so many devices.
    """
    devices = jax.devices() if devices is None else devices
    _check_shape(shape)
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"Expected a mesh of {len(devices)} devices, which are here, got "
            f"{'x'.join(map(str, shape))} = {math.prod(shape)}."
        )
    # Of TPUs, a mesh may split the axes of the torus that they make.
    placed = mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def abstract_mesh(shape: tuple[int, ...]) -> jax.sharding.AbstractMesh:
    """A mesh of devices that need not be there, to count and to lower for."""
    _check_shape(shape)
    return jax.sharding.AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != len(AXES) or min(shape) < 1:
        raise ValueError(
            f"Expected sizes of a mesh's axes {', '.join(AXES)}, all at least 1, got "
            f"{'x'.join(map(str, shape))}."
        )


def shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """A NamedSharding for every array or ShapeDtypeStruct of a tree.

    Scalars lie everywhere. Raises ValueError for a leaf that no rule knows.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        spec = _search(path, rules) if leaf.ndim else PartitionSpec()
        return NamedSharding(mesh, fit(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def _search(path: Any, rules: Rules) -> PartitionSpec:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for pattern, spec in rules:
        if re.search(pattern, name):
            return spec
    raise ValueError(
        f"Expected a rule for the partition of {name}, got none that matches; add one."
    )


def fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of an array's last axes, as a partition of all of them that works.

    A mesh axis whose size does not divide the array's axis moves to the longest one
    that it divides, and is left out if there is none.
    """
    rank = len(shape)
    wanted = [()] * (rank - len(spec)) + [_names(entry) for entry in spec]
    if len(wanted) > rank:
        raise ValueError(f"Expected at least {len(spec)} axes for {spec}, got {shape}.")
    left, placed = list(shape), [[] for _ in shape]
    for axis, names in enumerate(wanted):
        for name in names:
            size = mesh.shape[name]
            others = sorted(range(rank), key=lambda a: -left[a])
            for choice in (axis, *others):
                if left[choice] % size == 0:
                    left[choice] //= size
                    placed[choice].append(name)
                    break
    # The mesh's own order within an axis, so that a move changes no other's layout.
    entries = [tuple(sorted(names, key=AXES.index)) or None for names in placed]
    return PartitionSpec(*(e[0] if e and len(e) == 1 else e for e in entries))


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def check_batch(size: int, mesh: Mesh, *, accumulated: int = 1) -> None:
    """Raises ValueError for a batch that the mesh cannot share out evenly.

    `accumulated` parts of it are taken one after the other, by all devices.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * accumulated
    if size % shares:
        what = "data x fsdp" + (" x accumulated parts" if accumulated > 1 else "")
        raise ValueError(
            f"Expected a batch that {what} = {shares} divides, got {size}; make it a "
            f"multiple of {shares}, or give more devices to `tensor`."
        )


def own_share(mesh: jax.sharding.Mesh, *, process: int) -> tuple[int, int]:
    """(which, of how many) equal shares of a batch's rows a process gives.

    Processes whose devices differ in `tensor` alone give the same. Raises ValueError
    where processes overlap in some of their rows.
    """
    held: dict[int, set[int]] = {}
    for (*row, _), device in np.ndenumerate(mesh.devices):
        number = int(np.ravel_multi_index(row, mesh.devices.shape[:2]))
        held.setdefault(device.process_index, set()).add(number)
    shares = sorted(set(map(frozenset, held.values())), key=min)
    size = len(mesh.devices[..., 0].ravel()) // len(shares)
    if any(len(share) != size for share in shares):
        raise ValueError(
            "Expected processes that have the same rows of a batch or none in common, "
            f"got {shares} on this mesh; make `tensor` divide a process' devices."
        )
    return shares.index(frozenset(held[process])), len(shares)


def free_axes() -> tuple[str, ...]:
    """Axes of the mesh in force that have many devices and that nobody split by hand.

    What XLA cannot look into (kernels) has to be split over all of them by hand.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(n for n in mesh.auto_axes if n in AXES and mesh.shape[n] > 1)


def item_axes(count: int) -> tuple[str, ...]:
    """Those of `free_axes` that share out so many items; none if they cannot evenly."""
    axes = tuple(name for name in free_axes() if name != "tensor")
    mesh = jax.sharding.get_abstract_mesh()
    return () if count % math.prod(mesh.shape[n] for n in axes) else axes


def place_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """Batches of all processes as one on the mesh; each gives its own rows."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )


def bytes_per_device(tree: Any, placed: Any) -> int:
    """What the busiest device holds of a tree of arrays or ShapeDtypeStructs."""
    sizes = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, placed
    )
    return sum(jax.tree.leaves(sizes))
