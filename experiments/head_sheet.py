r"""Pictures of the built-in head: turntables, expressions, strangers and hair.

python -m experiments.head_sheet --output_dir=out/sheets

Writes turntable.png, expressions.png, people.png and texture.png; about two minutes
on 2 cores.
"""

import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Float
from PIL import Image

from geodiff_jax.appearance import hair, lighting, studio, texture
from geodiff_jax.appearance import look as appearance
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.io import atomic

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where to write.", required=True)
_SIZE = flags.DEFINE_integer("size", 400, "Pixels of one picture.", lower_bound=64)
_SEED = flags.DEFINE_integer("seed", 1, "First of the random people.")

EXPRESSIONS = (
    {},
    {"jawOpen": 1.0},
    {"jawOpen": 0.5, "mouthSmile": 0.6},
    {"mouthSmile": 1.0, "cheekSquint": 0.6},
    {"eyeBlink": 1.0},
    {"browInnerUp": 1.0, "browOuterUp": 1.0, "eyeWide": 0.8},
    {"mouthPucker": 1.0},
    {"mouthFunnel": 0.9, "jawOpen": 0.2},
    {"browDown": 1.0, "noseSneer": 0.7, "mouthUpperUp": 0.6},
    {"mouthFrown": 1.0, "browInnerUp": 0.7},
    {"cheekPuff": 1.0},
    {"mouthLeft": 1.0, "eyeLookOut_L": 0.7, "eyeLookIn_R": 0.7},
)
GREY = jnp.asarray([0.55, 0.60, 0.66])


def lens(size: int, *, zoom: float = 2.8) -> cameras.Camera:
    """A portrait lens nearly a metre before the face."""
    return cameras.look_at(
        jnp.asarray([0.0, -0.02, 0.95]),
        jnp.asarray([0.0, -0.02, 0.0]),
        up=jnp.asarray([0.0, 1.0, 0.0]),
        focal=zoom * size,
        width=size,
        height=size,
    )


def posed(
    head: head_model.HeadModel, strengths: dict[str, float], *, yaw_radians: float = 0.0
) -> head_model.HeadParams:
    """Expressions by name; a name without its side means both sides."""
    amounts = [
        next((s for stem, s in strengths.items() if name.startswith(stem)), 0.0)
        for name in head.expression_names
    ]
    return head_model.neutral(head).replace(
        expression=jnp.asarray(amounts, jnp.float32),
        rotation=jnp.asarray([0.0, yaw_radians, 0.0]),
    )


def sheet(
    pictures: Sequence[Float[np.ndarray, "h w 3"]], *, columns: int
) -> Float[np.ndarray, "hh ww 3"]:
    """Pictures in rows of `columns`."""
    blank = np.ones_like(pictures[0])
    padded = list(pictures) + [blank] * (-len(pictures) % columns)
    rows = [
        np.concatenate(padded[i : i + columns], axis=1)
        for i in range(0, len(padded), columns)
    ]
    return np.concatenate(rows)


def turntable(head: head_model.HeadModel, size: int, seed: int) -> list[np.ndarray]:
    """Two people from eight sides."""
    pictures = []
    for number in (seed, seed + 4):
        look = appearance.sample_look(jax.random.key(number))
        maps, locks = texture.bake_maps(head, look), hair.grow(head, look)
        for yaw in np.radians([0, 25, 50, 90, 135, 180, -90, -35]):
            params = posed(head, {}, yaw_radians=float(yaw))
            image, _ = studio.photograph(
                head,
                params,
                look,
                lighting.studio(),
                lens(size),
                maps=maps,
                hair=locks,
                background=GREY,
            )
            pictures.append(image)
    return pictures


def expressions(head: head_model.HeadModel, size: int, seed: int) -> list[np.ndarray]:
    """One person, many faces."""
    look = appearance.sample_look(jax.random.key(seed))
    maps, locks = texture.bake_maps(head, look), hair.grow(head, look)
    pictures = []
    for number, strengths in enumerate(EXPRESSIONS):
        params = posed(head, strengths, yaw_radians=(0.3, -0.15, 0.0)[number % 3])
        image, _ = studio.photograph(
            head,
            params,
            look,
            lighting.studio(),
            lens(size, zoom=3.4),
            maps=maps,
            hair=locks,
            background=GREY,
        )
        pictures.append(image)
    return pictures


def people(head: head_model.HeadModel, size: int, seed: int) -> list[np.ndarray]:
    """Eight strangers, each in a light of their own."""
    pictures = []
    for number in range(seed, seed + 8):
        keys = jax.random.split(jax.random.key(number), 3)
        identity = jax.random.normal(keys[0], (len(head.identity_names),))
        params = posed(head, {}, yaw_radians=0.5 * float(np.sin(2.3 * number)))
        params = params.replace(identity=jnp.clip(identity, -2.0, 2.0))
        light = lighting.sample_lighting(keys[2])
        look = appearance.sample_look(keys[1])
        image, _ = studio.photograph(
            head, params, look, light, lens(size), background=GREY
        )
        pictures.append(image)
    return pictures


def write(path: pathlib.Path, image: Float[np.ndarray, "h w 3"]) -> None:
    """An 8-bit PNG, whole or not at all."""
    pixels = np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
    with atomic.new_file(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="PNG")
    print(path)


def main(argv: Sequence[str]) -> None:
    """Draws every sheet."""
    if len(argv) > 1:
        print(f"Unexpected arguments {argv[1:]}; use --output_dir.", file=sys.stderr)
        sys.exit(2)
    folder = pathlib.Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    head, size, seed = procedural.load(), _SIZE.value, _SEED.value
    write(folder / "turntable.png", sheet(turntable(head, size, seed), columns=8))
    write(folder / "expressions.png", sheet(expressions(head, size, seed), columns=4))
    write(folder / "people.png", sheet(people(head, size, seed), columns=4))
    look = appearance.sample_look(jax.random.key(seed))
    write(folder / "texture.png", np.asarray(texture.bake(head, look)))


if __name__ == "__main__":
    app.run(main)
