"""TPU slices that are not here: chips on a torus, four on each host."""

import dataclasses
import itertools

SLICES = {
    "TPU v4": (4, 4, 4),
    "TPU v5": (4, 4, 4),
    "TPU v5 lite": (8, 8, 1),
    "TPU v6 lite": (8, 8, 1),
}
"""Chips along the axes, 64 of each kind."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What meshes ask of a device."""

    id: int
    device_kind: str
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    core_on_chip: int = 0


def chips(kind: str) -> list[Chip]:
    """In the order of their places; a host has 2 x 2 of them."""
    columns, rows, layers = SLICES[kind]
    places = itertools.product(range(layers), range(rows), range(columns))
    return [
        Chip(i, kind, (x, y, z), (z * rows // 2 + y // 2) * (columns // 2) + x // 2)
        for i, (z, y, x) in enumerate(places)
    ]
