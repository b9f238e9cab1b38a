"""What the generator is trained with: AdamW, and which parameters learn at all."""

import dataclasses
import re
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Settings:
    """How parameters follow their gradients. Values without a source are ours."""

    learning_rate: float = 1e-5
    warmup: int = 0
    """Steps in which the learning rate grows from zero."""
    decay: int = 0
    """Steps after them in which it falls to zero again along half a cosine
    (Loshchilov and Hutter 2017); 0 keeps it."""
    weight_decay: float = 1e-2
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    first_moment: float = 0.9
    second_moment: float = 0.999
    average: float = 0.9999
    """Decay per step of the moving average of the parameters, when it is warm."""
    accumulate: int = 1
    """Parts of a batch whose gradients are taken one after the other."""


def make(settings: Settings) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) on clipped gradients, in float32."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            learning_rate(settings),
            b1=settings.first_moment,
            b2=settings.second_moment,
            weight_decay=settings.weight_decay,
        ),
    )


def learning_rate(settings: Settings) -> optax.Schedule:
    """At every update: it warms up, then stays, or falls for the rest of the run."""
    peak, warmup = settings.learning_rate, settings.warmup
    rest = optax.constant_schedule(peak)
    if settings.decay:
        rest = optax.cosine_decay_schedule(peak, settings.decay)
    if not warmup:
        return rest
    # The first update is not wasted on a rate of zero.
    growing = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([growing, rest], [warmup])


def average_decay(step: Int[Array, ""], *, largest: float) -> Float[Array, ""]:
    """Of a moving average that forgets its start: (1 + step) / (10 + step) at first."""
    warm = (1.0 + step) / (10.0 + step)
    return jnp.minimum(warm, largest).astype(jnp.float32)


def split(params: Any, *, trained: str) -> tuple[Any, Any]:
    """(parameters that learn, those that rest): nested dicts with some branches each.

    `trained` is a regular expression searched in paths such as
    `unet/down0_temporal0/proj_in/kernel`; "" finds all. Raises ValueError if it finds
    none.
    """
    flat = flax.traverse_util.flatten_dict(params)
    learn = {name for name in flat if re.search(trained, "/".join(name))}
    if not learn:
        raise ValueError(
            f"Expected some parameter's path to match {trained!r}, got none; is this "
            "the network of that stage?"
        )
    parts = ({n: flat[n] for n in flat if (n in learn) == one} for one in (True, False))
    learning, resting = (flax.traverse_util.unflatten_dict(part) for part in parts)
    return learning, resting


def merge(learning: Any, resting: Any) -> Any:
    """Inverts `split`."""
    flat = [flax.traverse_util.flatten_dict(part) for part in (learning, resting)]
    return flax.traverse_util.unflatten_dict(flat[0] | flat[1])
