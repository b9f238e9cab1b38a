"""The four papers' denoisers, too small to be of use, and signals for them."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.models import denoiser, expression_encoder, guider, unet
from geodiff_jax.render import conditioning

SIDE, BATCH, VIEWS, FRAMES, CHANNELS = 8, 2, 3, 2, 4
PAPERS = ("geodiff4d", "cap4d", "geoface", "learn2control")
IMAGE = ("h", "w")
JOINT = ("view", "h", "w")
SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "heads": (2, 4)}
TOKENS = {
    "geodiff4d": ("domain", "h", "w"),
    "cap4d": JOINT,
    "geoface": JOINT,
    "learn2control": IMAGE,
}
CROP = 32
QUICKLY = {"xla_backend_optimization_level": 0}
"""Compiler options: tests run a network once or twice, compiling takes the time."""


def network(paper: str) -> denoiser.Denoiser:
    """Every signal of the paper's, in few parameters."""
    tokens, joint = TOKENS[paper], paper in ("cap4d", "geoface")
    video = paper in ("geodiff4d", "learn2control")
    net = unet.UNet(
        **SMALL,
        tokens=(IMAGE if paper == "cap4d" else tokens, tokens),
        middle_tokens=tokens,
        cross_attention=paper == "learn2control",
        expression_modules=paper == "geodiff4d",
        temporal_modules=video,
        module_heads=2,
        maps=paper == "cap4d",
    )
    reference = unet.UNet(
        **SMALL,
        out_channels=0,
        tokens=(IMAGE, IMAGE),
        cross_attention=paper == "learn2control",
    )
    encoder = expression_encoder.ExpressionEncoder(
        width=32, maps=4, depth=1, heads=1, head_width=16, latent=16, tokens=4
    )
    return denoiser.Denoiser(
        unet=net,
        layout=conditioning.LAYOUTS[paper],
        reference_net=None if joint else reference,
        encoder=encoder if paper == "geodiff4d" else None,
        guide=guider.Guider(32) if paper == "learn2control" else None,
        num_domains=2 if paper == "geodiff4d" else 1,
        geometry_slot=paper == "geoface",
        origin_width=16 if paper == "learn2control" else 0,
    )


def inputs(paper: str, *, seed: int = 0) -> dict[str, Any]:
    """Latents, time and every signal of the paper's, at random."""
    rng = np.random.default_rng([seed, zlib.crc32(paper.encode())])

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    joint = paper in ("cap4d", "geoface")
    domains, views = (2 if paper == "geodiff4d" else 1), (VIEWS if joint else 1)
    frames = 1 if joint else FRAMES
    lead = (BATCH, views, frames)
    image = (*lead, SIDE, SIDE)
    made: dict[str, Any] = {
        "latents": normal(BATCH, domains, views, frames, SIDE, SIDE, CHANNELS),
        "t": jnp.asarray(rng.integers(0, 1000, (BATCH, 1, views, 1))),
        "dropped": jnp.zeros(BATCH, bool),
    }
    signals: dict[str, jax.Array] = {}
    if joint:
        signals["reference_latents"] = normal(*image, CHANNELS)
        slots = np.zeros(lead, bool)
        slots[:, 0] = True
        signals["reference_slots"] = jnp.asarray(slots)
    else:
        pose = normal(BATCH, SIDE, SIDE, 3) if paper == "geodiff4d" else None
        made["reference"] = denoiser.Reference(
            normal(BATCH, SIDE, SIDE, CHANNELS), pose
        )
        made["frames"] = jnp.ones((BATCH, FRAMES), bool)
    if paper == "geodiff4d":
        signals["head_pose"] = normal(*image, 3)
        signals["expression_tokens"] = normal(*lead, 4, 16)
    if paper == "cap4d":
        widths = {"position_code": 42, "expression_offset": 3, "rays": 3}
        widths |= {"reference_mask": 1, "crop_mask": 1}
        signals |= {name: normal(*image, width) for name, width in widths.items()}
    if paper == "geoface":
        signals["plucker"] = normal(*image, 6)
    if paper == "learn2control":
        signals["features"] = normal(*lead, 8 * SIDE, 8 * SIDE, 8)
        made["synthetic"] = jnp.zeros(BATCH, bool)
    return {**made, "signals": conditioning.Conditioning(**signals)}


def variables(network: denoiser.Denoiser, given: dict[str, Any]) -> dict[str, Any]:
    """Random everywhere, also where training starts at zero; nothing is compiled.

    Variances of batch norms stay ones.
    """
    driving = {}
    if network.encoder is not None:
        lead = (BATCH, *given["latents"].shape[2:4])
        driving = {"driving": jnp.zeros((*lead, CROP, CROP, 3))}
    shapes = jax.eval_shape(network.init, jax.random.key(0), **given, **driving)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.normal(size=leaf.shape)
        if "scale" in name or "'var'" in name:
            return jnp.ones(leaf.shape, leaf.dtype)
        fan = max(int(np.prod(leaf.shape[:-1])), 1) if "kernel" in name else 100
        return jnp.asarray(values / np.sqrt(fan), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
