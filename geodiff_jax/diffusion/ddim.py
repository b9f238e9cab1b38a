"""DDIM: deterministic or noisy sampling over a grid of times, and where it starts.

Song et al. 2021 (DDIM). A step goes straight to the (x0, epsilon) that the prediction
separates, so that a v prediction also steps from where no signal is left. Steps end on
the grid's next time; diffusers steps by num_times // num_steps instead, which is the
same for leading grids and for trailing grids whose steps divide num_times.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from geodiff_jax.diffusion import grids
from geodiff_jax.diffusion import schedule as schedules


def step(
    schedule: schedules.NoiseSchedule,
    x: Float[Array, "*x"],
    prediction: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
    next_t: Int[ArrayLike, "..."],
) -> Float[Array, "*x"]:
    """The latent at next_t (Eq. 12 with sigma = 0); times broadcast from the left."""
    x0, epsilon = schedules.separate(schedule, x, prediction, t)
    return schedules.add_noise(schedule, x0, epsilon, next_t)


def noisy_step(
    schedule: schedules.NoiseSchedule,
    x: Float[Array, "*x"],
    prediction: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
    next_t: Int[ArrayLike, "..."],
    noise: Float[Array, "*x"],
    *,
    eta: float,
) -> Float[Array, "*x"]:
    """As `step`, with a share of the noise renewed: none at eta 0, as DDPM at 1.

    Eq. 12 and 16; noise is standard normal.
    """
    x0, epsilon = schedules.separate(schedule, x, prediction, t)
    signal, rate = schedule.rates(t, ndim=x.ndim)
    next_signal, next_rate = schedule.rates(next_t, ndim=x.ndim)
    added = 1.0 - jnp.square(signal / next_signal)
    fresh = eta * next_rate / rate * jnp.sqrt(added)
    kept = jnp.sqrt(jnp.maximum(jnp.square(next_rate) - jnp.square(fresh), 0.0))
    return next_signal * x0 + kept * epsilon + fresh * noise


def sample(
    denoise: schedules.Denoise,
    schedule: schedules.NoiseSchedule,
    start: Float[Array, "*x"],
    times: Int[np.ndarray, " s"],
    *,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """The sample that deterministic steps over `times` (host, descending) lead to.

    With `trajectory` all latents, stacked in front: the start first, the sample last.
    """

    def advance(x: Array, now: tuple[Array, Array]) -> tuple[Array, Any]:
        t, next_t = now
        x = step(schedule, x, denoise(x, t), t, next_t).astype(x.dtype)
        return x, x if trajectory else None

    final, path = jax.lax.scan(advance, start, grids.steps(schedule, times))
    return jnp.concatenate([start[None], path]) if trajectory else final


def sample_noisy(
    key: Key[Array, ""],
    denoise: schedules.Denoise,
    schedule: schedules.NoiseSchedule,
    start: Float[Array, "*x"],
    times: Int[np.ndarray, " s"],
    *,
    eta: float,
    shared_axes: tuple[int, ...] = (1,),
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """As `sample`, with fresh noise in each step, as `draw_noise` draws it."""

    def advance(x: Array, now: tuple[tuple[Array, Array], Array]) -> tuple[Array, Any]:
        (t, next_t), key = now
        noise = draw_noise(key, x.shape, shared_axes=shared_axes)
        x = noisy_step(schedule, x, denoise(x, t), t, next_t, noise, eta=eta).astype(
            x.dtype
        )
        return x, x if trajectory else None

    keys = jax.random.split(key, len(times))
    over = (grids.steps(schedule, times), keys)
    final, path = jax.lax.scan(advance, start, over)
    return jnp.concatenate([start[None], path]) if trajectory else final


def draw_noise(
    key: Key[Array, ""], shape: tuple[int, ...], *, shared_axes: tuple[int, ...] = (1,)
) -> Float[Array, "..."]:
    """Standard normal noise, the same along `shared_axes`.

    For latents (batch, domain, view, time, h, w, c) one draw serves both domains, else
    image and normals decorrelate (GeoDiff4D, Sec 3.2); batch, view and time are
    independent.
    """
    drawn = tuple(1 if i in shared_axes else n for i, n in enumerate(shape))
    return jnp.broadcast_to(jax.random.normal(key, drawn), shape)


def reference_start(
    key: Key[Array, ""],
    schedule: schedules.NoiseSchedule,
    reference: Float[Array, "batch domain h w c"],
    t: Int[ArrayLike, ""],
    *,
    views: int = 1,
    frames: int = 1,
    blur_sigma: float | None = None,
) -> Float[Array, "batch domain views frames h w c"]:
    """Clean latents of the reference, noised to the grid's first time, for each frame.

    GeoDiff4D (A.1) starts image and normals so, with the noise that they share. X-NeMo
    blurs the latents first (sigma 18), so that pose and expression do not leak.
    """
    if blur_sigma is not None:
        reference = blur(reference, sigma=blur_sigma)
    batch, domain, *latent = reference.shape
    shape = (batch, domain, views, frames, *latent)
    repeated = jnp.broadcast_to(reference[:, :, None, None], shape)
    noise = draw_noise(key, shape)
    return schedules.add_noise(schedule, repeated, noise, t).astype(reference.dtype)


def blur(
    latents: Float[Array, "*b h w c"], *, sigma: float, size: int = 9
) -> Float[Array, "*b h w c"]:
    """Gaussian blur over `size` texels, odd, reflected at the border (X-NeMo)."""
    offsets = np.arange(size) - size // 2
    weights = np.exp(-0.5 * np.square(offsets / sigma))
    weights = weights / weights.sum()
    for axis in (-3, -2):
        margins = [(0, 0)] * latents.ndim
        margins[axis] = (size // 2, size // 2)
        padded = jnp.pad(latents, margins, mode="reflect")
        length = latents.shape[axis]
        shifted = [
            jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(size)
        ]
        latents = jnp.tensordot(weights.astype(latents.dtype), jnp.stack(shifted), 1)
    return latents
