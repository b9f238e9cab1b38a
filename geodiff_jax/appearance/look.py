"""What a person looks like beside the shape: pigments, brows, iris, hair, beard.

Colours come from pigment amounts, never from painted swatches, so that one number
(melanin) carries skin, lips, freckles and iris together, as in people. Attenuation
by melanin falls with wavelength as l^-3.3 and that of blood peaks in green (Jacques
2013, Optical properties of biological tissues); the base colours and all ranges of
the population are ours.
"""

from collections.abc import Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

SKIN_BASE = np.array([0.82, 0.66, 0.54], np.float32)
"""Linear albedo of skin without pigment."""
MELANIN = np.array([0.86, 1.30, 1.62], np.float32)
BLOOD = np.array([0.14, 0.84, 0.66], np.float32)
HAIR_BASE = np.array([0.82, 0.74, 0.62], np.float32)
EUMELANIN = np.array([0.92, 1.32, 1.95], np.float32)
PHEOMELANIN = np.array([0.30, 1.15, 2.60], np.float32)


@flax.struct.dataclass
class Look:
    """One person's appearance; scalars, in [0, 1] unless a unit is given."""

    melanin: Float[Array, ""]
    """Optical depth of the skin's melanin: 0.05 very fair, 2.2 very dark."""
    blood: Float[Array, ""]
    """Optical depth of the skin's blood, 0.1 to 0.5."""
    blotches: Float[Array, ""]
    freckles: Float[Array, ""]
    oil: Float[Array, ""]
    """How much the skin shines."""
    age: Float[Array, ""]
    """Fine wrinkles and uneven pigment."""
    lip_blood: Float[Array, ""]
    iris_melanin: Float[Array, ""]
    """0 blue, 0.4 green to hazel, 1 dark brown."""
    pupil_radius: Float[Array, ""]
    """Metres."""
    eumelanin: Float[Array, ""]
    """Of hair and brows, optical depth: 0.5 blond, 4 black."""
    pheomelanin: Float[Array, ""]
    """Red pigment of the hair, optical depth up to 1.2."""
    grey: Float[Array, ""]
    """Share of white hairs."""
    brow_thickness: Float[Array, ""]
    """Metres, at the thickest."""
    brow_density: Float[Array, ""]
    lashes: Float[Array, ""]
    """Metres, of the longest."""
    stubble: Float[Array, ""]
    beard: Float[Array, ""]
    """Metres; below a millimetre there is none."""
    hair_length: Float[Array, ""]
    """Metres; zero for a bald head."""
    hair_volume: Float[Array, ""]
    """Thickness of the hair over the scalp, metres."""
    hair_density: Float[Array, ""]
    hair_back: Float[Array, ""]
    """-1 combed to the front, 1 combed back."""
    hair_part: Float[Array, ""]
    """Where the parting lies, -1 (subject's right) to 1, in half head widths."""
    hair_side: Float[Array, ""]
    """How much hair is combed away from the parting."""
    hair_curl: Float[Array, ""]
    """Radius of the curls over their pitch: 0 straight, 1 tight."""
    hair_knot: Float[Array, ""]
    """1 for hair that is gathered in a knot at the back of the head, else 0."""
    recession: Float[Array, ""]
    """How far the hairline has drawn back from the temples."""
    seed: Int[Array, ""]
    """Chooses freckles, strands and noise."""


def skin_color(
    melanin: Float[np.ndarray, "*b"], blood: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b 3"]:
    """Linear albedo of skin with the given optical depths."""
    depth = melanin[..., None] * MELANIN + blood[..., None] * BLOOD
    return SKIN_BASE * np.exp(-depth)


def hair_color(
    look: Look, *, white: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b 3"]:
    """Linear albedo of hairs, of which `white` says how much pigment is lost."""
    depth = float(look.eumelanin) * EUMELANIN + float(look.pheomelanin) * PHEOMELANIN
    kept = (1.0 - white)[..., None]
    return HAIR_BASE * np.exp(-depth * kept) * (0.9 + 0.1 * kept)


STYLES = (
    "cropped",
    "short",
    "short",
    "swept",
    "bob",
    "long",
    "curly",
    "tied",
    "receding",
)
"""Of hair, each as often as it is drawn."""


def sample_look(key: Key[Array, ""], *, styles: Sequence[str] = STYLES) -> Look:
    """A random person: pigments of skin, hair and eyes go together.

    `styles` are those that hair is drawn from. Who may grow a beard wears "short" in
    place of "bob" and "long", who may not wears "long" in place of "receding".
    """
    draws = _draws(key)
    dark = next(draws)
    melanin = 0.06 + 2.0 * dark**1.6
    fair = np.clip(1.2 - melanin, 0.0, 1.0)
    beardless = next(draws) < 0.5
    grey = np.clip(next(draws) * 2.2 - 1.3, 0.0, 0.9)
    eumelanin = np.clip(0.5 + 3.6 * next(draws) ** (0.35 + 0.9 * fair), 0.5, 3.8)
    eumelanin = max(eumelanin, 3.2 - 3.0 * fair)
    red = next(draws)
    style = styles[int(next(draws) * len(styles))]
    if not beardless and style in ("bob", "long"):
        style = "short"
    if beardless and style == "receding":
        style = "long"
    shadow = 0.0 if beardless else next(draws)
    values = {
        "melanin": melanin,
        "blood": 0.16 + 0.20 * next(draws) + 0.10 * fair,
        "blotches": next(draws),
        "freckles": fair * max(0.0, 2.0 * next(draws) - 1.2),
        "oil": next(draws),
        "age": np.clip(0.6 * next(draws) + 0.6 * grey, 0.0, 1.0),
        "lip_blood": 0.15 + 0.75 * next(draws) * (1.0 if beardless else 0.5),
        "iris_melanin": np.clip(melanin + 1.1 * next(draws) - 0.3, 0.0, 1.0),
        "pupil_radius": 0.0015 + 0.0009 * next(draws),
        "eumelanin": eumelanin,
        "pheomelanin": 1.0 if red > 0.9 else 0.5 * red * fair,
        "grey": grey,
        "brow_thickness": 0.0068 + 0.0042 * next(draws) - 0.002 * beardless,
        "brow_density": 0.5 + 0.5 * next(draws),
        "lashes": 0.005 + 0.002 * next(draws) + 0.002 * beardless,
        "stubble": shadow * next(draws),
        "beard": 0.004 + 0.014 * next(draws) if shadow > 0.72 else 0.0,
        "recession": 0.0 if beardless else 0.5 * next(draws),
        **_hair(style, draws),
        "seed": int(next(draws) * 2**31),
    }
    return Look(**{k: jnp.asarray(v, _dtype(k)) for k, v in values.items()})


def _hair(style: str, draws: Iterator[float]) -> dict[str, float]:
    """Length, volume, density, combing and curl of a named style."""
    length, volume, back, side, curl = {
        "cropped": (0.009, 0.004, -0.2, 0.0, 0.0),
        "short": (0.045, 0.014, -0.35, 0.8, 0.08),
        "swept": (0.075, 0.024, 0.9, 0.3, 0.10),
        "bob": (0.19, 0.020, 0.15, 1.0, 0.06),
        "long": (0.30, 0.022, 0.15, 1.0, 0.14),
        "curly": (0.075, 0.034, 0.0, 0.1, 1.0),
        "tied": (0.24, 0.006, 1.0, 0.1, 0.0),
        "receding": (0.030, 0.009, 0.1, 0.3, 0.05),
    }[style]
    part = (0.30 + 0.15 * next(draws)) * (1.0 if next(draws) < 0.5 else -1.0)
    hair = {
        "hair_length": length * (0.8 + 0.4 * next(draws)),
        "hair_volume": volume * (0.8 + 0.4 * next(draws)),
        "hair_density": 0.7 + 0.3 * next(draws),
        "hair_back": back,
        "hair_part": part if style not in ("bob", "long") else part * next(draws),
        "hair_side": side,
        "hair_curl": curl * (0.6 + 0.4 * next(draws)),
        "hair_knot": 1.0 if style == "tied" else 0.0,
    }
    if style == "receding":
        hair["recession"] = 0.6 + 0.4 * next(draws)
    return hair


def _draws(key: Key[Array, ""]) -> Iterator[float]:
    return iter(np.asarray(jax.random.uniform(key, (64,)), np.float64).tolist())


def _dtype(name: str) -> type:
    return jnp.int32 if name == "seed" else jnp.float32
