"""What the generators' configs share: sizes, and library objects from their fields.

A config has plain numbers and words; `network`, `schedule`, `objective` and `sampler`
make of it what the library takes. No module sees a config.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Key

from geodiff_jax import synthesis
from geodiff_jax.diffusion import schedule as schedules
from geodiff_jax.models import denoiser, expression_encoder, guider, unet
from geodiff_jax.render import conditioning, splatted_features
from geodiff_jax.training import denoising
from geodiff_jax.training import optimizer as optimizers
from geodiff_jax.training import state as states

SIZES = {
    "tiny": {
        "latents": 16,
        "latent_channels": 12,
        "shift": 0.1,
        "unet": {
            "channels": 64,
            "multipliers": (1, 1),
            "blocks": 1,
            "heads": (2, 2),
            "module_heads": 2,
        },
        "encoder": {
            "width": 64,
            "maps": 16,
            "depth": 2,
            "squeezed": 8,
            "heads": 2,
            "head_width": 32,
            "latent": 128,
            "whitened": True,
            "tokens": 2,
            "token_width": 64,
            "dropout": 0.0,
        },
        "crop": 64,
    },
    "small": {
        "latents": 32,
        "latent_channels": 16,
        "shift": 0.25,
        "unet": {
            "channels": 96,
            "multipliers": (1, 2, 4),
            "blocks": 2,
            "heads": (3, 6, 12),
            "module_heads": 4,
        },
        "encoder": {
            "width": 128,
            "depth": 4,
            "heads": 4,
            "head_width": 64,
            "latent": 512,
            "whitened": True,
        },
        "crop": 128,
    },
    "paper": {
        "latents": 64,
        "latent_channels": 4,
        "shift": 1.0,
        "unet": {},
        "encoder": {},
        "crop": 224,
    },
}
"""By the config's argument `size`: tiny trains in hours on a laptop (ours), small on
one GPU (ours), paper is Stable Diffusion's, with latents of 512 x 512 images. Tiny's
tokens are few and broad: attention that does not choose yet sees their mean. `shift` is
that of `schedule.make`: where channels tell of each other it takes more noise to hide a
face (ours)."""

Config = Any
"""`ml_collections.ConfigDict`, whose fields no static checker knows."""

WARMUP = 100
"""Steps; ours."""

DATASETS = ("ava256", "captures", "mead", "nersemble_v2", "render_me360", "vfhq")
"""Those of `prepare_data` that may hold real people."""

CHANNELS = {
    "head_pose": 3,
    "position_code": 42,
    "expression_offset": 3,
    "rays": 3,
    "reference_mask": 1,
    "crop_mask": 1,
    "plucker": 6,
}
"""Of maps at the latents' resolution."""


def size(name: str) -> dict[str, Any]:
    """The fields of a size. Raises ValueError for a size that is none."""
    if name not in SIZES:
        raise ValueError(f"Expected size to be one of {sorted(SIZES)}, got {name!r}.")
    return SIZES[name]


def precision(name: str) -> dict[str, Any]:
    """How a size's networks compute: large ones in half precision, keeping little."""
    if name == "tiny":
        return {"dtype": "float32", "remat": None}
    return {"dtype": "bfloat16", "remat": "nothing_saveable"}


def choose(name: str, value: Any, options: dict[Any, Any]) -> Any:
    """What an argument stands for. Raises ValueError if it stands for nothing."""
    if value not in options:
        raise ValueError(
            f"Expected {name} to be one of {list(options)}, got {value!r}."
        )
    return options[value]


def stage_and_size(
    choice: dict[str, Any], stages: dict[str, dict[int, Any]]
) -> tuple[Any, dict[str, Any]]:
    """(what a paper's `stages` have, the fields of the size), for a config's arguments.

    Raises ValueError for a stage or a size that is none.
    """
    fields = size(choice["size"])
    return choose("stage", choice["stage"], stages[choice["size"]]), fields


def levels(fields: dict[str, Any]) -> int:
    """How many levels a size's UNet has."""
    return len(fields["unet"].get("multipliers", (1, 2, 4, 4)))


def attending(
    tokens: tuple[str, ...], fields: dict[str, Any]
) -> tuple[tuple[str, ...], ...]:
    """The same tokens on every level, but none on the last of four, as in SD."""
    count = levels(fields)
    return (*(tokens,) * (count - 1), () if count == 4 else tokens)


def network(config: ml_collections.ConfigDict) -> denoiser.Denoiser:
    """The denoiser of a config's `model`."""
    fields = config.model.to_dict()
    parts = {
        "unet": unet.UNet,
        "reference_net": unet.UNet,
        "encoder": expression_encoder.ExpressionEncoder,
        "guide": guider.Guider,
    }
    fields["unet"]["out_channels"] = config.latent_channels
    layout = conditioning.LAYOUTS[fields.pop("layout")]
    made = {
        name: kind(**fields.pop(name)) for name, kind in parts.items() if name in fields
    }
    return denoiser.Denoiser(layout=layout, **made, **fields)


def schedule(config: ml_collections.ConfigDict) -> schedules.NoiseSchedule:
    """The noise schedule of a config."""
    return schedules.make(**config.schedule.to_dict())


def objective(config: ml_collections.ConfigDict) -> denoising.Objective:
    """What a config trains for."""
    known = {field.name for field in dataclasses.fields(denoising.Objective)}
    return denoising.Objective(**{k: config.objective[k] for k in known})


def sampler(
    config: ml_collections.ConfigDict,
) -> synthesis.ClipSampler | synthesis.ViewSampler:
    """How a config's network is sampled: clips beside a reference net, else views."""
    clips = "reference_net" in config.model
    kind = synthesis.ClipSampler if clips else synthesis.ViewSampler
    return kind(**config.sampler.to_dict())


def mixture(*, by_size: bool = True, **priorities: float) -> dict[str, Any]:
    """How often datasets are drawn, as `pipeline.mixture` takes it; 1 unless given."""
    known = dict.fromkeys((*DATASETS, "synthetic"), 1.0)
    return {"by_size": by_size, "priorities": {**known, **priorities}}


def optimizer(learning_rate: float) -> dict[str, Any]:
    """All of an optimizer's settings; what no paper gives is `optimizer.Settings`'."""
    settings = optimizers.Settings(learning_rate=learning_rate, warmup=WARMUP)
    return dataclasses.asdict(settings)


def optimizer_settings(config: ml_collections.ConfigDict) -> optimizers.Settings:
    """How a config's parameters follow their gradients."""
    return optimizers.Settings(**config.optimizer.to_dict())


def batch_shapes(config: ml_collections.ConfigDict) -> denoising.Batch:
    """What one training step takes, as shapes and types: nothing is allocated."""
    model, side = config.model, config.latents
    lead = (config.batch, config.views, config.frames)
    domains = model.get("num_domains", 1)
    video = "reference_net" in model

    def image(*batch: int, channels: int, size: int = side) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*batch, size, size, channels), jnp.float32)

    def flags(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bool_)

    signals: dict[str, jax.ShapeDtypeStruct] = {
        name: image(*lead, channels=CHANNELS[name])
        for name in conditioning.LAYOUTS[model.layout].maps
        if name != "features"
    }
    parts: dict[str, Any] = {"frames": flags(config.batch, config.frames)}
    if "features" in config:
        parts["surface"] = splatted_features.Surface(
            image(*lead, channels=3, size=config.features.size),
            jax.ShapeDtypeStruct((*lead, 4), jnp.float32),
            config.feature_image,
        )
    if video:
        own = image(config.batch, channels=3) if "encoder" in model else None
        latents = image(config.batch, channels=config.latent_channels)
        seen = None
        if "context" in config:
            shape = (config.batch, 1, config.context)
            seen = jax.ShapeDtypeStruct(shape, jnp.float32)
        parts["reference"] = denoiser.Reference(latents, own, seen)
    else:
        signals["reference_latents"] = image(*lead, channels=config.latent_channels)
        signals["reference_slots"] = flags(*lead)
        parts["frames"] = None
    if "encoder" in model:
        parts["driving"] = image(*lead, channels=3, size=config.crop)
    if "origin_width" in model:
        parts["synthetic"] = flags(config.batch)
    if config.objective.alignment:
        # The aligned attention is of the second level.
        texels = side // 2
        shape = (config.batch, config.views - 1, texels, texels, 3)
        parts["uv"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    clean = image(config.batch, domains, *lead[1:], channels=config.latent_channels)
    return denoising.Batch(clean, conditioning.Conditioning(**signals), **parts)


def variables(key: Key[Array, ""], config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Random ones of a config's network, and of the features that learn with it."""
    network_key, field_key = jax.random.split(key)
    # Parameters know nothing of the batch, so one item makes them.
    one = jax.tree.map(
        lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch_shapes(config)
    )
    signals, field = one.signals, {}
    if one.surface is not None:
        drawn = splatted_features.even_field(field_key, **config.features)
        field = {states.FIELD: vars(drawn)}
        side, lead = one.surface.side, one.surface.intrinsics.shape[:-1]
        empty = jnp.zeros((*lead, side, side, config.features.channels))
        signals = signals.replace(features=empty)
    made: Any = network(config).init(
        network_key,
        one.latents,
        jnp.zeros((), int),
        signals,
        reference=one.reference,
        driving=one.driving,
    )
    return {**made, "params": {**made["params"], **field}}


def fresh_state(key: Key[Array, ""], config: Config) -> states.TrainState:
    """The state before the first step, of random weights."""
    own, run_key = jax.random.split(key)
    optimizer = optimizers.make(optimizer_settings(config))
    return states.initial_state(
        run_key, variables(own, config), optimizer, trained=config.trained
    )


def state_shapes(config: Config) -> states.TrainState:
    """`fresh_state` as shapes and types: nothing is allocated."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(functools.partial(fresh_state, config=config), key)


def loss(
    key: Key[Array, ""],
    variables: dict[str, Any],
    batch: denoising.Batch,
    *,
    config: Config,
    **options: Any,
) -> Float[Array, ""]:
    """`denoising.loss` of a batch, as a config has it but for the options."""
    options = {"objective": objective(config), **options}
    apply, noised = network(config).apply, schedule(config)
    return denoising.loss(key, apply, variables, noised, batch, **options)[0]


def train_step(config: Config) -> Callable[..., tuple[states.TrainState, dict]]:
    """`denoising.train_step` of (key, state, batch), as a config has it."""
    settings = optimizer_settings(config)
    return functools.partial(
        denoising.train_step,
        apply=network(config).apply,
        schedule=schedule(config),
        optimizer=optimizers.make(settings),
        objective=objective(config),
        average=settings.average,
        accumulate=settings.accumulate,
        # With all else at rest, the encoder's statistics rest too.
        train=not config.trained,
    )
