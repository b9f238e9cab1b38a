"""More views, or longer videos, than fit in one pass of the network.

Stochastic I/O (CAP4D, Algorithm 1) generates hundreds of views around few references:
in every step views are grouped anew and each group sees references of its own, so that
over many steps all have looked at all. Long videos are covered by overlapping windows
whose predictions are averaged (X-NeMo). Latents are (batch, domain, view, time, h, w,
c); one group or window is in the network at a time.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from geodiff_jax.diffusion import ddim, grids, guidance
from geodiff_jax.diffusion import schedule as schedules

VIEW, TIME = 2, 3
"""Axes of latents."""

GroupDenoise = Callable[[Array, Array, Array, Array], Array]
"""`denoise(x, t, reference_ids, target_ids) -> prediction`, for the target views."""
WindowDenoise = Callable[[Array, Array, Array], Array]
"""`denoise(x, t, frame_ids) -> prediction`, for the window's frames."""


@flax.struct.dataclass
class Groups:
    """Who is in the network together, in each step and group."""

    references: Int[Array, "s n r"]
    targets: Int[Array, "s n g"]
    """Every target is in one group of each step."""


def draw_groups(
    key: Key[Array, ""],
    *,
    num_steps: int,
    num_targets: int,
    num_references: int,
    views: int = 8,
    references_per_pass: int | None = None,
) -> Groups:
    """Shuffles targets into groups, each with references drawn without replacement.

    A pass holds `views`: references (at most 4 unless given, as CAP4D) and targets.

    Raises:
      ValueError: targets that groups do not divide, or too many references for a pass.
    """
    if references_per_pass is None:
        references_per_pass = min(num_references, 4)
    group = views - references_per_pass
    if not 0 < references_per_pass <= num_references or group < 1:
        raise ValueError(
            f"Expected 1 to {min(num_references, views - 1)} references in a pass of "
            f"{views} views, got {references_per_pass}; change references_per_pass."
        )
    if num_targets < 1 or num_targets % group:
        raise ValueError(
            f"Expected target views that groups of {group} divide, got {num_targets}; "
            f"add {-num_targets % group} or change references_per_pass."
        )

    target_key, reference_key = jax.random.split(key)
    targets = _shuffles(target_key, (num_steps, num_targets))
    targets = targets.reshape(num_steps, -1, group)
    references = _shuffles(reference_key, (*targets.shape[:2], num_references))
    references = references[..., :references_per_pass]
    return Groups(references=references, targets=targets)


def one_group(*, num_steps: int, num_targets: int, num_references: int) -> Groups:
    """All views in every pass, in their order."""
    references, targets = (
        jnp.broadcast_to(jnp.arange(count), (num_steps, 1, count))
        for count in (num_references, num_targets)
    )
    return Groups(references=references, targets=targets)


def sample(
    denoise: GroupDenoise,
    schedule: schedules.NoiseSchedule,
    start: Float[Array, "batch domain view time h w c"],
    times: Int[np.ndarray, " s"],
    groups: Groups,
    *,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """All target views, by DDIM steps over `times` (host, descending).

    In a step the groups are predicted one after another, then all latents move. With
    `trajectory` all latents, stacked in front: the start first, the sample last.
    """
    if groups.targets.shape[0] != len(times):
        raise ValueError(
            f"Expected groups for {len(times)} steps, got {groups.targets.shape[0]}; "
            "draw them with num_steps=len(times)."
        )

    def advance(x: Array, now: tuple[tuple[Array, Array], Groups]) -> tuple[Array, Any]:
        (t, next_t), grouped = now
        prediction = _predict_groups(denoise, x, t, grouped)
        x = ddim.step(schedule, x, prediction, t, next_t).astype(x.dtype)
        return x, x if trajectory else None

    over = (grids.steps(schedule, times), groups)
    final, path = jax.lax.scan(advance, start, over)
    return jnp.concatenate([start[None], path]) if trajectory else final


def beside_references(
    denoise: guidance.ConditionalDenoise,
    latents: Float[Array, "batch domain reference time h w c"],
    reference_conditions: PyTree,
    target_conditions: PyTree,
    *,
    axis: int = 1,
) -> GroupDenoise:
    """A group's denoiser: clean latents of its references first, then its targets.

    `denoise(x, t, conditions)` sees both along the view axis: of x, and of the
    conditions, where it is `axis` of every leaf. It may guide.
    """

    def grouped(x: Array, t: Array, references: Array, targets: Array) -> Array:
        def together(of_references: Array, of_targets: Array) -> Array:
            chosen = jnp.take(of_references, references, axis=axis)
            return jnp.concatenate(
                [chosen, jnp.take(of_targets, targets, axis=axis)], axis=axis
            )

        conditions = jax.tree.map(together, reference_conditions, target_conditions)
        clean = jnp.take(latents, references, axis=VIEW).astype(x.dtype)
        prediction = denoise(jnp.concatenate([clean, x], axis=VIEW), t, conditions)
        return prediction[:, :, references.shape[0] :]

    return grouped


def windows(
    num_frames: int,
    *,
    size: int = 16,
    overlap: int = 4,
    offset: int | Int[Array, ""] = 0,
) -> Int[Array, "n w"]:
    """Frames of overlapping windows that close a loop over a video, from `offset` on.

    GeoDiff4D is trained on 16 frames; X-NeMo takes 24, overlap 4. Their number depends
    on the video's length only. A video that fits in one window is one, without offset.

    Raises:
      ValueError: the overlap is not smaller than the window.
    """
    if not 0 <= overlap < size:
        raise ValueError(
            f"Expected an overlap below the window's {size} frames, got {overlap}."
        )
    if num_frames <= size:
        return jnp.arange(num_frames)[None]
    first = np.arange(0, num_frames - overlap, size - overlap)
    return (jnp.asarray(first[:, None] + np.arange(size)) + offset) % num_frames


def average_windows(
    denoise: WindowDenoise,
    x: Float[Array, "batch domain view time h w c"],
    t: Array,
    frames: Int[Array, "n window"],
) -> Float[Array, "batch domain view time h w c"]:
    """The mean, at every frame, of the predictions of all windows that hold it."""

    def add(total: Array, ids: Array) -> tuple[Array, None]:
        prediction = denoise(jnp.take(x, ids, axis=TIME), t, ids)
        return total.at[:, :, :, ids].add(prediction.astype(total.dtype)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), frames)
    count = jnp.zeros(x.shape[TIME], x.dtype).at[frames.reshape(-1)].add(1)
    return total / count[:, None, None, None]


def over_windows(
    key: Key[Array, ""],
    denoise: WindowDenoise,
    *,
    num_frames: int,
    size: int = 16,
    overlap: int = 4,
) -> schedules.Denoise:
    """denoise(x, t) of a long video, for any sampler, from one of windows.

    Each time has a random offset of its own, so that no frame is always at a seam.
    """

    def whole(x: Array, t: Array) -> Array:
        own = jax.random.fold_in(key, jnp.asarray(t).astype(jnp.uint32))
        offset = jax.random.randint(own, (), 0, num_frames)
        frames = windows(num_frames, size=size, overlap=overlap, offset=offset)
        return average_windows(denoise, x, t, frames)

    return whole


def _predict_groups(denoise: GroupDenoise, x: Array, t: Array, groups: Groups) -> Array:
    """Predictions of all targets, in their order."""

    def one(ids: tuple[Array, Array]) -> Array:
        references, targets = ids
        return denoise(jnp.take(x, targets, axis=VIEW), t, references, targets)

    grouped = jax.lax.map(one, (groups.references, groups.targets))
    shuffled = jnp.moveaxis(grouped, 0, VIEW).reshape(x.shape)
    return jnp.take(shuffled, jnp.argsort(groups.targets.reshape(-1)), axis=VIEW)


def _shuffles(key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Independent random orders along the last axis."""
    return jnp.argsort(jax.random.uniform(key, shape), axis=-1)
