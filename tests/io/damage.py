"""Files as disks and attackers leave them."""

from collections.abc import Iterator

import numpy as np


def copies(whole: bytes, *, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies of a file, up to three bytes of each replaced at random."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(whole)
        for at in random.integers(len(whole), size=random.integers(1, 4)):
            damaged[at] = random.integers(256)
        yield bytes(damaged)
