"""What a generator makes of held-out records, drawn beside the truth as it trains."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments import latent_codec, recorded_batches, training_run
from experiments.configs import generator
from geodiff_jax import reporting, synthesis
from geodiff_jax.io import images
from geodiff_jax.training import denoising
from geodiff_jax.training import state as states

CLIPS, MOST_ROWS = 2, 8
"""Clips that are sampled, of which so many frames are shown."""
Picture = Float[np.ndarray, "y x 3"]


class Samples:
    """A `loop.Look`: by averaged weights, the same records and noise each time.

    A row for each frame or view: the reference, what drives (face and map), then truth
    and sample, of images and of normals. Truth is decoded too: what the autoencoder
    loses is nothing the generator could have made. Raises ValueError for latents of
    another size than the autoencoder's, and for datasets without held-out records.
    """

    def __init__(
        self,
        config: generator.Config,
        data: Sequence[str],
        codec_file: str | os.PathLike,
        workdir: str | os.PathLike,
    ) -> None:
        if list(data) == ["random"]:
            raise ValueError(
                "Expected --data=FOLDER,... with --vae, got noise, of which there is "
                "nothing to see; leave out --vae."
            )
        self._workdir = workdir
        self._codec = latent_codec.load(codec_file)
        self._batch = held_out(config, data)
        channels = self._batch.latents.shape[-1]
        if channels != self._codec[0].latent_channels:
            raise ValueError(
                f"Expected an autoencoder of {channels} channels, as the latents have, "
                f"got {codec_file} with {self._codec[0].latent_channels}."
            )
        count = count_references(self._batch)
        self._sample = jax.jit(
            functools.partial(sample, config=config, references=count)
        )
        self._images = jax.jit(functools.partial(latent_codec.images, self._codec))

    def __call__(
        self, number: int, state: states.TrainState, log: reporting.Log | None
    ) -> None:
        """Into samples/STEP.png, and TensorBoard."""
        variables = states.variables_of(state, averaged=True)
        sampled = self._sample(jax.random.key(0), variables, self._batch)
        sampled = training_run.gathered(sampled)
        if log is None:
            return
        drawn = self._drawn(sampled)
        training_run.show(log, self._workdir, number, drawn)

    def _drawn(self, sampled: Float[np.ndarray, "batch domain n h w c"]) -> Picture:
        batch, rows = self._batch, []
        truth, maps = targets(batch), shown_maps(batch)
        reference = self._decoded(reference_latents(batch))
        places = [(i, j) for i in range(len(truth)) for j in range(truth.shape[2])]
        chosen = np.linspace(0, len(places) - 1, min(MOST_ROWS, len(places)))
        for item, frame in (places[int(i)] for i in np.rint(chosen)):
            pairs = [self._decoded(x[item, :, frame]) for x in (truth, sampled)]
            row = [reference[item], 0.5 * maps[item, frame] + 0.5]
            if batch.driving is not None:
                row.append(np.asarray(batch.driving[item, 0, frame]))
            row += [x for pair in zip(*pairs, strict=True) for x in pair]
            rows.append(side_by_side(row))
        return np.concatenate(rows)

    def _decoded(self, latents: Any) -> Float[np.ndarray, "n y x 3"]:
        return np.asarray(self._images(jnp.asarray(latents)))


def held_out(config: generator.Config, data: Sequence[str]) -> denoising.Batch:
    """Clips, or the views of one person with the references first."""
    clips = "reference_net" in config.model
    own = config.copy_and_resolve_references()
    own.batch = CLIPS if clips else 1
    read = next(recorded_batches.RecordedBatches(own, data, split="held_out"))
    batch = denoising.in_single_precision(read)
    if clips:
        return batch
    slots = np.asarray(batch.signals.reference_slots)[0, :, 0]
    order = np.argsort(~slots, kind="stable")
    signals = jax.tree.map(lambda x: x[:, order], batch.signals)
    return batch.replace(latents=batch.latents[:, :, order], signals=signals)


def count_references(batch: denoising.Batch) -> int:
    """How many of the first views are references; none beside a reference net."""
    slots = batch.signals.reference_slots
    return 0 if slots is None else int(np.sum(slots))


def targets(batch: denoising.Batch) -> Float[np.ndarray, "batch domain n h w c"]:
    """Latents of what is sampled: frames of a clip, or views without references."""
    if batch.reference is not None:
        return np.asarray(batch.latents[:, :, 0])
    return np.asarray(batch.latents[:, :, count_references(batch) :, 0])


def reference_latents(batch: denoising.Batch) -> Float[np.ndarray, "batch h w c"]:
    """Of the reference's picture, or of the first of them."""
    if batch.reference is not None:
        return np.asarray(batch.reference.latents)
    return np.asarray(batch.latents[:, 0, 0, 0])


def shown_maps(batch: denoising.Batch) -> Float[np.ndarray, "batch n h w 3"]:
    """Where the head is: its pose's normals, the first numbers of its code, or rays."""
    if batch.reference is not None:
        return np.asarray(batch.signals.head_pose)[:, 0]
    signals = batch.signals
    maps = signals.plucker if signals.position_code is None else signals.position_code
    return np.asarray(maps)[:, count_references(batch) :, 0, ..., :3]


def sample(
    key: Key[Array, ""],
    variables: dict[str, Any],
    batch: denoising.Batch,
    *,
    config: generator.Config,
    references: int = 1,
) -> Float[Array, "batch domain n h w c"]:
    """Latents of a batch's targets, as the config's sampler draws them."""
    network, schedule = generator.network(config), generator.schedule(config)
    sampler: Any = generator.sampler(config)
    denoise = functools.partial(network.apply, variables)
    options: Any = {"layout": network.layout}
    if batch.reference is None:
        maps = batch.signals.replace(reference_latents=None, reference_slots=None)
        own, others = (
            jax.tree.map(lambda x, part=part: x[:, part], maps)
            for part in (slice(references), slice(references, None))
        )
        held = batch.latents[:, 0, :references, 0]
        drawn = synthesis.views(
            key, denoise, schedule, held, own, others, sampler=sampler, **options
        )
        return drawn[:, None]
    signals = denoising.signals_of(variables["params"], batch)
    if batch.driving is not None:
        tokens: Any = network.apply(variables, batch.driving, method="express")
        signals = signals.replace(expression_tokens=tokens[1])
    bank: Any = network.apply(variables, batch.reference, method="remember")
    # Records have no normals of the reference from which to start.
    sampler = dataclasses.replace(sampler, from_reference=False)
    return synthesis.clip(
        key,
        denoise,
        schedule,
        batch.latents[:, :, 0, 0],
        bank,
        signals,
        context=batch.reference.context,
        sampler=sampler,
        **options,
    )


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """A row, all as high as the last."""
    side = len(pictures[-1])
    sized = [
        # Maps keep their texels.
        np.repeat(np.repeat(x, side // len(x), axis=0), side // len(x), axis=1)
        if side % len(x) == 0
        else images.resize(x, width=side, height=side)
        for x in pictures
    ]
    return np.clip(np.concatenate(sized, axis=1), 0.0, 1.0)
