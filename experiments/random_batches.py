"""Batches of nothing but noise, in the shapes of real ones: to time and to test."""

from typing import Any

import jax
import numpy as np

from geodiff_jax.training import denoising


class RandomBatches:
    """The same for any number of processes, each of which gets its rows.

    Masks are as in real batches: no frame is padding, and the first `references` views
    are references. Surfaces are clouds of the size of a head, a metre away. Half of the
    tokens see something of the chart.
    """

    def __init__(
        self,
        shapes: denoising.Batch,
        *,
        references: int = 1,
        process: int = 0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        self._shapes = shapes
        self._references = references
        rows = len_of(shapes) // processes
        self._rows = slice(process * rows, (process + 1) * rows)
        self._seed = seed
        self._number = 0
        self.replaced = 0

    def __next__(self) -> denoising.Batch:
        """This process' rows of the next batch."""
        rng = np.random.default_rng([self._seed, self._number])
        self._number += 1
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._draw(rng, path[-1].name, leaf)[self._rows],
            self._shapes,
        )

    def get_state(self) -> dict[str, int]:
        """The number of the next batch."""
        return {"next": self._number}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from that number."""
        self._number = state["next"]

    def _draw(self, rng: np.random.Generator, name: str, leaf: Any) -> np.ndarray:
        if name == "frames":
            return np.ones(leaf.shape, bool)
        if name == "reference_slots":
            views = np.arange(leaf.shape[1]) < self._references
            return np.broadcast_to(views[None, :, None], leaf.shape)
        if leaf.dtype == np.bool_:
            return rng.random(leaf.shape) < 0.5
        if name == "driving":
            return rng.random(leaf.shape, np.float32)
        if name == "uv":
            drawn = rng.random(leaf.shape, np.float32)
            drawn[..., 2] = drawn[..., 2] < 0.5
            return drawn
        if name == "intrinsics":
            assert self._shapes.surface is not None
            side = self._shapes.surface.side
            lens = np.asarray([2, 2, 0.5, 0.5], np.float32) * side
            return np.broadcast_to(lens, leaf.shape)
        noise = rng.standard_normal(leaf.shape, np.float32)
        if name == "positions":
            return 0.05 * noise + np.asarray([0, 0, 1], np.float32)
        return noise


def len_of(shapes: denoising.Batch) -> int:
    """Items of a batch."""
    return shapes.latents.shape[0]
