"""Noise schedules: how much signal and how much noise is left at each diffusion time.

At time t a latent is x = signal_rate * x0 + noise_rate * epsilon; the rates are the
square roots of alpha_bar and 1 - alpha_bar. Times are integers, 0 the cleanest, and -1
is where sampling ends. Times broadcast from the left: a scalar, one per sample, or
(batch, domain, view, time) for latents (batch, domain, view, time, h, w, c).

Schedules are made once, on the host, in float64.
"""

from collections.abc import Callable
from typing import Literal

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float64, Int

Kind = Literal["epsilon", "v", "x0"]
"""What a network predicts: the noise, the velocity of `velocity`, or the signal."""

Denoise = Callable[[Array, Array], Array]
"""`denoise(x, t) -> prediction`, shaped as x. Samplers pass one scalar t for all."""


@flax.struct.dataclass
class NoiseSchedule:
    """Rates of signal and noise at every time, and how a network's output is read."""

    alpha_bar: Float[Array, " t"]
    """Share of the signal in the variance, descending."""
    signal_rate: Float[Array, " t"]
    """sqrt(alpha_bar)."""
    noise_rate: Float[Array, " t"]
    """sqrt(1 - alpha_bar): stored, as float32 cannot subtract it from alpha_bar."""
    prediction: Kind = flax.struct.field(pytree_node=False)
    ends_clean: bool = flax.struct.field(pytree_node=False)
    """Whether time -1 is free of noise or as time 0 (Stable Diffusion, CAP4D);
    `set_alpha_to_one` in diffusers."""
    zero_terminal: bool = flax.struct.field(pytree_node=False)
    """Whether no signal at all is left at the last time."""

    @property
    def num_times(self) -> int:
        """Number of diffusion times, 1000 for everyone so far."""
        return self.alpha_bar.shape[-1]

    def rates(self, t: Int[ArrayLike, "..."], *, ndim: int) -> tuple[Array, Array]:
        """(signal_rate, noise_rate) at times, to multiply arrays of `ndim` axes."""
        t = jnp.asarray(t)
        index = jnp.maximum(t, 0)
        signal, noise = self.signal_rate[index], self.noise_rate[index]
        if self.ends_clean:
            signal = jnp.where(t < 0, 1.0, signal)
            noise = jnp.where(t < 0, 0.0, noise)
        shape = t.shape + (1,) * (ndim - t.ndim)
        return signal.reshape(shape), noise.reshape(shape)

    def snr(self, t: Int[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """Signal-to-noise ratio; zero at the last time of a zero-terminal schedule."""
        signal, noise = self.rates(t, ndim=jnp.ndim(t))
        return jnp.square(signal / noise)

    def log_snr(self, t: Int[ArrayLike, "*b"]) -> Float[Array, "*b"]:
        """Natural logarithm of the ratio; minus infinity where it is zero."""
        signal, noise = self.rates(t, ndim=jnp.ndim(t))
        return 2.0 * (jnp.log(signal) - jnp.log(noise))


def make(
    *,
    prediction: Kind = "epsilon",
    num_times: int = 1000,
    first_beta: float = 0.00085,
    last_beta: float = 0.012,
    zero_terminal: bool = False,
    largest_beta: float = 1.0,
    num_views: int | None = None,
    shift: float = 1.0,
    ends_clean: bool = True,
) -> NoiseSchedule:
    """Stable Diffusion's schedule and what the papers make of it.

    X-NeMo sets last_beta 0.02. CAP4D sets zero_terminal, largest_beta 0.99, num_views 8
    and ends_clean False. See `zero_terminal_snr` and, for `num_views` and for any other
    factor `shift`, `shift_snr`.
    """
    alpha_bar = scaled_linear(num_times, first_beta=first_beta, last_beta=last_beta)
    if zero_terminal:
        alpha_bar = zero_terminal_snr(alpha_bar, largest_beta=largest_beta)
    if num_views is not None:
        shift *= view_factor(num_views)
    alpha_bar = shift_snr(alpha_bar, factor=shift)
    return from_alpha_bar(alpha_bar, prediction=prediction, ends_clean=ends_clean)


def from_alpha_bar(
    alpha_bar: Float64[np.ndarray, " t"],
    *,
    prediction: Kind = "epsilon",
    ends_clean: bool = True,
) -> NoiseSchedule:
    """A schedule of any alpha_bar, kept in JAX's default precision.

    Raises:
      ValueError: alpha_bar does not descend within [0, 1), or an unknown prediction.
    """
    if prediction not in ("epsilon", "v", "x0"):
        raise ValueError(
            f"Expected epsilon, v or x0 as prediction, got {prediction!r}."
        )
    inside = alpha_bar[0] < 1.0 and alpha_bar[-1] >= 0.0
    if not inside or not (np.diff(alpha_bar) < 0.0).all():
        raise ValueError(
            f"Expected alpha_bar to descend within [0, 1), got {alpha_bar[0]} to "
            f"{alpha_bar[-1]}; check the betas (each in (0, 1])."
        )
    return NoiseSchedule(
        alpha_bar=jnp.asarray(alpha_bar),
        signal_rate=jnp.asarray(np.sqrt(alpha_bar)),
        noise_rate=jnp.asarray(np.sqrt(1.0 - alpha_bar)),
        prediction=prediction,
        ends_clean=ends_clean,
        zero_terminal=bool(alpha_bar[-1] == 0.0),
    )


def scaled_linear(
    num_times: int, *, first_beta: float = 0.00085, last_beta: float = 0.012
) -> Float64[np.ndarray, " t"]:
    """alpha_bar of betas whose square roots are evenly spaced (Stable Diffusion)."""
    betas = np.linspace(np.sqrt(first_beta), np.sqrt(last_beta), num_times) ** 2
    return np.cumprod(1.0 - betas)


def betas(alpha_bar: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    """The share of noise that each time adds to the one before."""
    return 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def zero_terminal_snr(
    alpha_bar: Float64[np.ndarray, " t"], *, largest_beta: float = 1.0
) -> Float64[np.ndarray, " t"]:
    """Shifts and scales sqrt(alpha_bar) so that nothing is left of the signal at last.

    Lin et al. 2024 (Common Diffusion Noise Schedules), Algorithm 1. CAP4D caps betas at
    0.99, so that a little is left and noise may still be predicted.
    """
    root = np.sqrt(alpha_bar)
    rescaled = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
    return np.cumprod(1.0 - np.minimum(betas(rescaled), largest_beta))


def shift_snr(
    alpha_bar: Float64[np.ndarray, " t"], *, factor: float
) -> Float64[np.ndarray, " t"]:
    """Multiplies the signal-to-noise ratio at every time by a factor."""
    return factor * alpha_bar / (factor * alpha_bar + (1.0 - alpha_bar))


def view_factor(num_views: int) -> float:
    """What CAP4D scales the ratio by: views that agree average each other's noise.

    1 / sqrt(num_views - 1), as in its released code; its supplement (A.1) writes a
    shift of the log by log(sqrt(num_views)).

    Raises:
      ValueError: fewer than two views.
    """
    if num_views < 2:
        raise ValueError(f"Expected at least two views, got {num_views}; use None.")
    return 1.0 / float(np.sqrt(num_views - 1))


def add_noise(
    schedule: NoiseSchedule,
    x0: Float[Array, "*x"],
    epsilon: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
) -> Float[Array, "*x"]:
    """The latent at time t."""
    signal, noise = schedule.rates(t, ndim=x0.ndim)
    return signal * x0 + noise * epsilon


def velocity(
    schedule: NoiseSchedule,
    x0: Float[Array, "*x"],
    epsilon: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
) -> Float[Array, "*x"]:
    """signal_rate * epsilon - noise_rate * x0 (Salimans and Ho 2022, Sec 4)."""
    signal, noise = schedule.rates(t, ndim=x0.ndim)
    return signal * epsilon - noise * x0


def target(
    schedule: NoiseSchedule,
    x0: Float[Array, "*x"],
    epsilon: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
) -> Float[Array, "*x"]:
    """What a network with this schedule is trained to predict."""
    if schedule.prediction == "v":
        return velocity(schedule, x0, epsilon, t)
    return x0 if schedule.prediction == "x0" else epsilon


def separate(
    schedule: NoiseSchedule,
    x: Float[Array, "*x"],
    prediction: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
) -> tuple[Float[Array, "*x"], Float[Array, "*x"]]:
    """(x0, epsilon) that a network's prediction finds in x; see `separate_at`."""
    rates = schedule.rates(t, ndim=x.ndim)
    return separate_at(x, prediction, *rates, kind=schedule.prediction)


def separate_at(
    x: Float[Array, "*x"],
    prediction: Float[Array, "*x"],
    signal_rate: Float[Array, "..."],
    noise_rate: Float[Array, "..."],
    *,
    kind: Kind,
) -> tuple[Float[Array, "*x"], Float[Array, "*x"]]:
    """(x0, epsilon) at given rates, which broadcast against x; always finite.

    v tells both at every rate. Where no signal is left, epsilon tells nothing of x0,
    and where no noise is left x0 tells nothing of epsilon: these are then zero, the
    mean.
    """
    if kind == "v":
        x0 = signal_rate * x - noise_rate * prediction
        return x0, signal_rate * prediction + noise_rate * x
    if kind == "x0":
        return prediction, _divide(x - signal_rate * prediction, noise_rate)
    return _divide(x - noise_rate * prediction, signal_rate), prediction


def convert(
    schedule: NoiseSchedule,
    x: Float[Array, "*x"],
    value: Float[Array, "*x"],
    t: Int[ArrayLike, "..."],
    *,
    source: Kind,
    to: Kind,
) -> Float[Array, "*x"]:
    """The prediction of another kind that says the same; finite as `separate_at` is."""
    if source == to:
        return value
    rates = schedule.rates(t, ndim=x.ndim)
    x0, epsilon = separate_at(x, value, *rates, kind=source)
    if to == "v":
        return velocity(schedule, x0, epsilon, t)
    return x0 if to == "x0" else epsilon


def min_snr_weight(
    schedule: NoiseSchedule, t: Int[ArrayLike, "*b"], *, gamma: float = 5.0
) -> Float[Array, "*b"]:
    """Weight of the squared error of a prediction: as of x0, times min(SNR, gamma).

    Hang et al. 2023 (Min-SNR), Sec 3.4 and, for v, Sec 4.
    """
    snr = schedule.snr(t)
    if schedule.prediction == "x0":
        return jnp.minimum(snr, gamma)
    if schedule.prediction == "v":
        return jnp.minimum(snr, gamma) / (snr + 1.0)
    return gamma / jnp.maximum(snr, gamma)


def _divide(numerator: Array, rate: Array) -> Array:
    """Zero where the rate is; the inner where keeps gradients finite there."""
    return jnp.where(rate > 0, numerator / jnp.where(rate > 0, rate, 1.0), 0.0)
