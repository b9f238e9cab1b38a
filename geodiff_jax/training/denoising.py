"""The generator's objective: predict what was done to the latents of the targets.

One loss for all papers. Noise is drawn once for all domains (GeoDiff4D, Sec 3.2);
slots of references and padded frames have no part in it. Splatted features learn with
the network (Learn2Control, Sec 3.2), so they are drawn in every step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from geodiff_jax import sharding
from geodiff_jax.diffusion import ddim
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.models import alignment, denoiser
from geodiff_jax.render import splatted_features
from geodiff_jax.render.conditioning import Conditioning
from geodiff_jax.training import state as states
from geodiff_jax.training import step

Latents = denoiser.Latents
Apply = Callable[..., Any]
"""`denoiser.Denoiser.apply`, or whatever takes the same."""
TIME_BUCKETS = 4
"""Equal parts of diffusion time whose losses are told apart."""


@flax.struct.dataclass
class Batch:
    """Clips: what to generate, and what from. See `denoiser.Denoiser` for the parts."""

    latents: Latents
    """Clean, of every domain."""
    signals: Conditioning
    reference: denoiser.Reference | None = None
    driving: Float[Array, "batch view time y x 3"] | None = None
    synthetic: Bool[Array, " batch"] | None = None
    frames: Bool[Array, "batch time"] | None = None
    """False where a frame is padding."""
    uv: Float[Array, "batch view y x 3"] | None = None
    """What the tokens of the aligned layer see of the geometry slot, which is the last
    view and not in it: u, v and whether anything, as `data.schema.MAPS` stores it."""
    surface: splatted_features.Surface | None = None
    """(batch, view, time) poses on which the learnt features are drawn."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """How the loss is made up."""

    drop: float = 0.1
    """Probability that an item loses what guidance drops (001 A.1, 002 Sec 3.1)."""
    time_per_view: bool = False
    """Whether every view has a diffusion time of its own (CAP4D's code)."""
    min_snr: float | None = None
    """Gamma of Min-SNR weights; None weighs all times alike (ours)."""
    alignment: float = 0.0
    """Weight of the attention alignment loss (GeoFace; the value is ours: 0.1)."""
    aligned: str = ""
    """The attention that is aligned, by its name in the UNet, such as
    "up1_attention1" (GeoFace aligns its layer 10)."""


def loss(
    key: Key[Array, ""],
    apply: Apply,
    variables: dict[str, Any],
    schedule: schedules.NoiseSchedule,
    batch: Batch,
    *,
    objective: Objective,
    train: bool = True,
) -> tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Any]]]:
    """(loss, (figures, new statistics)): mean squared error over targets and frames.

    Figures are `loss` and its parts: by domain, and by part of diffusion time (0 the
    cleanest), NaN where no item had such a time.
    """
    noise_key, time_key, drop_key, dropout_key = jax.random.split(key, 4)
    batch = in_single_precision(batch)
    latents = batch.latents
    # One draw for all domains, else image and normals decorrelate (001, Sec 3.2).
    noise = ddim.draw_noise(noise_key, latents.shape)
    t = draw_times(time_key, latents, schedule, per_view=objective.time_per_view)
    dropped = jax.random.bernoulli(drop_key, objective.drop, latents.shape[:1])
    prediction, updated = apply(
        variables,
        schedules.add_noise(schedule, latents, noise, t),
        t,
        signals_of(variables["params"], batch),
        reference=batch.reference,
        driving=batch.driving,
        synthetic=batch.synthetic,
        dropped=dropped,
        frames=batch.frames,
        train=train,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats", *(["intermediates"] if objective.alignment else [])],
    )
    wanted = schedules.target(schedule, latents, noise, t)
    error = jnp.square(prediction - wanted).mean(axis=(-3, -2, -1))
    if objective.min_snr is not None:
        error *= schedules.min_snr_weight(schedule, t, gamma=objective.min_snr)
    counted = jnp.broadcast_to(targets(batch), error.shape)
    total = jnp.sum(counted, axis=(0, 2, 3))
    by_domain = jnp.sum(error * counted, axis=(0, 2, 3)) / jnp.maximum(total, 1)
    value = jnp.mean(by_domain)
    figures = {f"loss/domain{d}": x for d, x in enumerate(by_domain)}
    figures |= _by_time(error, counted, t, schedule.num_times)
    if objective.alignment:
        aligned = _alignment(updated["intermediates"], batch, objective.aligned)
        figures["loss/alignment"] = aligned
        value += objective.alignment * aligned
    return value, ({"loss": value, **figures}, dict(updated).get("batch_stats", {}))


def in_single_precision(batch: Batch) -> Batch:
    """What is stored otherwise, ready to be computed with: bytes become [0, 1]."""

    def one(stored: Any) -> Any:
        if stored.dtype == np.uint8:
            return stored.astype(np.float32) / np.float32(255.0)
        return stored.astype(np.float32) if stored.dtype == np.float16 else stored

    return jax.tree.map(one, batch)


def signals_of(params: Any, batch: Batch) -> Conditioning:
    """The batch's, with the learnt features drawn where it has a surface for them."""
    if batch.surface is None:
        return batch.signals
    field = splatted_features.FeatureField(**params[states.FIELD])
    draw = splatted_features.feature_maps
    if free := sharding.free_axes():
        # XLA cannot look into kernels: every device draws its own items.
        items = PartitionSpec(sharding.item_axes(batch.latents.shape[0]) or None)
        draw = jax.shard_map(
            draw,
            in_specs=(PartitionSpec(), items),
            out_specs=items,
            axis_names=set(free),
            check_vma=False,
        )
    return batch.signals.replace(features=draw(field, batch.surface))


def draw_times(
    key: Key[Array, ""],
    latents: Latents,
    schedule: schedules.NoiseSchedule,
    *,
    per_view: bool = False,
) -> Int[Array, "batch 1 #view 1"]:
    """Uniform diffusion times, one for each item or each of its views."""
    shape = (latents.shape[0], 1, latents.shape[2] if per_view else 1, 1)
    return jax.random.randint(key, shape, 0, schedule.num_times)


def targets(batch: Batch) -> Bool[Array, "batch 1 #view #time"]:
    """What counts: no slots of references, no padded frames."""
    counted = jnp.ones((batch.latents.shape[0], 1, 1, 1), bool)
    if batch.signals.reference_slots is not None:
        counted &= ~batch.signals.reference_slots[:, None]
    if batch.frames is not None:
        counted &= batch.frames[:, None, None]
    return counted


def train_step(
    key: Key[Array, ""],
    state: states.TrainState,
    batch: Batch,
    *,
    apply: Apply,
    schedule: schedules.NoiseSchedule,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    average: float = 0.9999,
    accumulate: int = 1,
    train: bool = True,
) -> tuple[states.TrainState, dict[str, Float[Array, ""]]]:
    """(state, figures) after one batch; jit it with all that stands after `*` bound.

    A gradient that is not finite changes nothing but the counters. `average` and
    `accumulate` are those of `optimizer.Settings`; `train` is that of `loss`, false
    where the encoder rests.
    """

    def of_batch(
        key: Key[Array, ""], variables: dict[str, Any], batch: Batch
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Any]]]:
        return loss(
            key, apply, variables, schedule, batch, objective=objective, train=train
        )

    return step.take(
        key,
        state,
        batch,
        loss=of_batch,
        optimizer=optimizer,
        average=average,
        accumulate=accumulate,
    )


def _by_time(
    error: Float[Array, "batch domain view time"],
    counted: Bool[Array, "batch domain view time"],
    t: Int[Array, "..."],
    num_times: int,
) -> dict[str, Float[Array, ""]]:
    bucket = jnp.broadcast_to(t * TIME_BUCKETS // num_times, error.shape)
    figures = {}
    for part in range(TIME_BUCKETS):
        inside = counted & (bucket == part)
        total = jnp.sum(inside, axis=(0, 2, 3))
        mean = jnp.sum(error * inside, axis=(0, 2, 3)) / total  # NaN for none.
        figures |= {f"loss/time{part}_domain{d}": x for d, x in enumerate(mean)}
    return figures


def _alignment(intermediates: Any, batch: Batch, name: str) -> Float[Array, ""]:
    if batch.uv is None:
        raise ValueError(
            "Expected UV coordinates in the batch for the alignment loss, got none; "
            "read them with the records (loading.Contents.geometry)."
        )
    sown = intermediates["unet"][name]["block"]["along"]["attention"]
    # (batch, 1, views x pixels, heads, width): all views see each other.
    slots = batch.latents.shape[2]
    queries, keys = (
        sown[part][0].reshape(len(batch.latents), slots, -1, *sown[part][0].shape[-2:])
        for part in ("query", "key")
    )
    # Made here: as a batch's part they would be hundreds of megabytes to move.
    weights = alignment.correspondences(
        batch.uv[..., :2], batch.uv[..., 2] > 0.5, size=batch.uv.shape[-2]
    )
    return alignment.alignment_loss(queries, keys, weights)
