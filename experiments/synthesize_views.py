r"""Views of a person that no camera took, by CAP4D's own weights.

python -m experiments.synthesize_views --weights=cap4d.safetensors --fit=FOLDER \
    --head=flame.safetensors --output_dir=out/views --consent=self

| flag | what it is |
|---|---|
| --weights | what experiments.convert_weights makes of CAP4D's checkpoint |
| --fit | CAP4D's folder: fit.npz, reference_images.json, images/, at best bg/ |
| --head | what experiments.prepare_head makes of FLAME 2023 without jaw |

Leaves images/, one folder per view, with fit.npz beside them, which has the head and a
camera for each: a capture as CAP4D's, which `show_maps --capture` reads. Besides
references/, contact_sheet.png, and report.json. The expression is that of the first
reference; views lie in CAP4D's ellipse about the front of the face.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jaxtyping import Array, Float

from experiments.configs import cap4d, generator
from geodiff_jax import reporting, synthesis
from geodiff_jax.avatar import preview
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import files as head_files
from geodiff_jax.head import model as head_model
from geodiff_jax.head import track as head_track
from geodiff_jax.io import atomic, images
from geodiff_jax.models import denoiser, vae, weight_files
from geodiff_jax.render import condition_maps, conditioning, head_crop, head_views
from geodiff_jax.tracking import flowface

_WEIGHTS = flags.DEFINE_string("weights", None, "Of convert_weights.", required=True)
_FIT = flags.DEFINE_string("fit", None, "CAP4D's folder of a person.", required=True)
_HEAD = flags.DEFINE_string("head", None, "Of prepare_head.", required=True)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "A new folder.", required=True)
_CONSENT = flags.DEFINE_enum(
    "consent",
    None,
    reporting.CONSENTS,
    "On what ground this face may be used; stamped.",
)
_VIEWS = flags.DEFINE_integer("views", 28, "To make; CAP4D makes 840.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "Of sampling.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of cameras and noise.")
_SIZE = flags.DEFINE_integer(
    "size", 512, "Pixels; the weights were trained at 512.", lower_bound=8
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "In which networks compute."
)
FLAME_VERTICES = 5023
"""Before those that CAP4D, or a head of ours, adds in the mouth."""
SHEET = 24
"""Views on the contact sheet, at most."""


@dataclasses.dataclass(frozen=True)
class Shots:
    """Crops of a head: leading axis of parameters and cameras, one for each."""

    params: head_model.HeadParams
    cameras: Camera
    crop_masks: Float[Array, "b h w 1"] | None = None
    images: Float[np.ndarray, "b y x 3"] | None = None


@dataclasses.dataclass(frozen=True)
class Generator:
    """CAP4D's networks and what they know."""

    network: denoiser.Denoiser
    codec: Any
    """Of pixels and latents."""
    variables: dict[str, Any]
    """Of both, by "network" and "codec"."""
    facts: dict[str, Any]
    """Of their origin."""
    positions: Float[np.ndarray, "v 3"] | None
    """Of FLAME's vertices, as the position code of training had them."""


def main(argv: list[str]) -> None:
    """From a folder to another; exit status 2 and a sentence for bad input."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        synthesize(pathlib.Path(_FIT.value), pathlib.Path(_OUTPUT_DIR.value))
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        print(f"synthesize_views: {said or error}", file=sys.stderr)
        sys.exit(2)


def synthesize(fit: pathlib.Path, folder: pathlib.Path) -> None:
    """Reads, samples and writes. Raises ValueError or OSError in one sentence."""
    begin = time.monotonic()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"Expected a new folder, got {folder}, where something is.")
    head, track = head_files.load(_HEAD.value), flowface.read(fit)
    head_track.check(track, head)
    head_track.check_cameras(track, head)
    found = flowface.find_references(fit, track)
    photos = [images.read_image(reference.image) for reference in found]
    made = read_generator(_WEIGHTS.value)
    check_sizes(made, references=len(found))
    side = _SIZE.value // made.codec.factor
    references = cropped_references(head, track, found, photos, side=side)
    camera_key, sample_key = jax.random.split(jax.random.key(_SEED.value))
    targets = drawn_targets(camera_key, head, track, found[0])
    views = sample(sample_key, made, head, references, targets)
    stamp = reporting.provenance(
        consent=_CONSENT.value or "unstated",
        photo_sha256=" ".join(photo.sha256 for photo in photos),
    )
    write(folder, track, found[0], references, targets, views, stamp=stamp)
    report = {
        **stamp,
        "weights": {name: made.facts.get(name) for name in ("source", "licence")},
        "references": [str(reference.image.relative_to(fit)) for reference in found],
        "views": _VIEWS.value,
        "steps": _STEPS.value,
        "seed": _SEED.value,
        "size": _SIZE.value,
        "dtype": _DTYPE.value,
        "seconds": round(time.monotonic() - begin, 1),
        "peak_memory_mb": reporting.peak_memory_mb(),
        **reporting.manifest(),
    }
    atomic.write_text(folder / "report.json", json.dumps(report, indent=1))
    print(f"{folder}: {len(views)} views in {report['seconds']:.0f} s")


def read_generator(path: str) -> Generator:
    """Of a converted file. Raises ValueError where it is not CAP4D's."""
    parts, facts = weight_files.load_modules(path)
    if not {"unet", "vae"} <= parts.keys():
        raise ValueError(
            f"Expected a UNet and an autoencoder in {path}, got {', '.join(parts)}; "
            "convert CAP4D's checkpoint."
        )
    (net, own), (codec, codec_variables) = parts["unet"], parts["vae"]
    layout = conditioning.LAYOUTS["cap4d"]
    wanted = sum(generator.CHANNELS[name] for name in layout.maps)
    maps = own["params"].get("maps_in", {"kernel": ()})["kernel"]
    if len(maps) != wanted:
        raise ValueError(
            f"Expected a UNet that takes CAP4D's {wanted} channels of maps in {path}, "
            f"got one that takes {len(maps)}; convert CAP4D's checkpoint."
        )
    stored = facts["modules"]["unet"].get("positions")
    network: Any = net.clone(dtype=_DTYPE.value)
    variables = {"network": {"params": {"unet": own["params"]}}}
    return Generator(
        denoiser.Denoiser(network, layout),
        codec.clone(dtype=_DTYPE.value),
        jax.device_put(variables | {"codec": codec_variables}),
        facts,
        None if stored is None else np.asarray(stored, np.float32)[:FLAME_VERTICES],
    )


def cropped_references(
    head: head_model.HeadModel,
    track: head_track.Track,
    found: tuple[flowface.Reference, ...],
    photos: list[images.Photo],
    *,
    side: int,
) -> Shots:
    """Their crops on white, with masks of side x side. Raises ValueError or OSError."""
    shots = []
    for reference, photo in zip(found, photos, strict=True):
        camera = jax.tree.map(lambda x, i=reference.view: x[i], track.cameras)
        size = {"width": camera.width, "height": camera.height}
        if (photo.width, photo.height) != (camera.width, camera.height):
            raise ValueError(
                f"Expected {camera.width} x {camera.height} pixels in "
                f"{reference.image}, as its camera has, got {photo.width} x "
                f"{photo.height}."
            )
        rgb = photo.rgb
        if reference.matte is not None:
            matte = images.read_image(reference.matte).rgb[..., :1]
            matte = images.resize(matte, **size)
            rgb = matte * rgb + (1.0 - matte)
        params = track.frame(reference.frame)
        box = head_crop.head_box(head, params, camera)
        shots.append(
            (
                params,
                head_crop.crop_camera(camera, box, size=_SIZE.value),
                head_crop.crop_mask(box, **size, size=side),
                head_crop.crop_image(rgb, np.asarray(box), size=_SIZE.value),
            )
        )
    params, cameras, masks, pictures = zip(*shots, strict=True)
    stack = functools.partial(jax.tree.map, lambda *x: jnp.stack(x))
    return Shots(stack(*params), stack(*cameras), jnp.stack(masks), np.stack(pictures))


def drawn_targets(
    key: Array,
    head: head_model.HeadModel,
    track: head_track.Track,
    first: flowface.Reference,
) -> Shots:
    """Views of the first reference's head, in crops of their own."""
    params = track.frame(first.frame)
    camera = jax.tree.map(lambda x: x[first.view], track.cameras)
    cameras = head_views.draw(key, head, params, camera, count=_VIEWS.value)
    repeated = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (_VIEWS.value, *x.shape)), params
    )
    boxes = head_crop.head_box(head, repeated, cameras)
    return Shots(repeated, head_crop.crop_camera(cameras, boxes, size=_SIZE.value))


def sample(
    key: Array,
    made: Generator,
    head: head_model.HeadModel,
    references: Shots,
    targets: Shots,
) -> Float[np.ndarray, "b y x 3"]:
    """Pictures of the targets, in [0, 1]."""
    side = _SIZE.value // made.codec.factor
    first = jax.tree.map(lambda x: x[0], references.cameras)

    def signals(shots: Shots, *, known: bool) -> conditioning.Conditioning:
        conditioning.check(head, shots.params, shots.cameras)
        slots = jnp.full(len(shots.params.identity), known)
        draw = jax.jit(functools.partial(conditioning.cap4d, size=side))
        options = {"crop_mask": shots.crop_masks, "positions": positions}
        maps = draw(
            head,
            shots.params,
            shots.cameras,
            first,
            reference_slots=slots,
            **options,
        )
        return jax.tree.map(lambda x: x[None, :, None], maps)

    positions = None
    if made.positions is not None:
        positions = condition_maps.positions_like(head.template, made.positions)
    own, others = signals(references, known=True), signals(targets, known=False)
    pictures = jnp.asarray(references.images)
    latents = jax.jit(functools.partial(encode, made))(made.variables, pictures)
    sampling = jax.jit(lambda key, *given: generate(key, made, *given))
    sampled = sampling(key, made.variables, latents, own, others)
    return np.asarray(jax.jit(functools.partial(decode, made))(made.variables, sampled))


def check_sizes(made: Generator, *, references: int) -> None:
    """Raises ValueError for a number of views or pixels that networks do not take.

    Nothing is computed.
    """
    side = _SIZE.value // made.codec.factor

    def maps(views: int) -> Any:
        return conditioning.Conditioning(
            **{
                name: jnp.zeros((1, views, 1, side, side, generator.CHANNELS[name]))
                for name in made.network.layout.maps
            }
        )

    def whole(variables: Any) -> Array:
        pictures = jnp.zeros((references, _SIZE.value, _SIZE.value, 3))
        latents = encode(made, variables, pictures)
        signals = maps(references), maps(_VIEWS.value)
        return generate(jax.random.key(0), made, variables, latents, *signals)

    jax.eval_shape(whole, made.variables)


def encode(
    made: Generator, variables: Any, pictures: Float[Array, "b y x 3"]
) -> Float[Array, "b h w c"]:
    """Latents of pictures in [0, 1]."""
    pixels = vae.pixels_from_images(pictures)
    one = functools.partial(made.codec.apply, variables["codec"], method="encode")
    return vae.frame_by_frame(lambda x: one(x).mean, pixels)


def decode(
    made: Generator, variables: Any, latents: Float[Array, "b h w c"]
) -> Float[Array, "b y x 3"]:
    """Pictures in [0, 1] of latents."""
    one = functools.partial(made.codec.apply, variables["codec"], method="decode")
    return vae.images_from_pixels(vae.frame_by_frame(one, latents))


def generate(
    key: Array,
    made: Generator,
    variables: Any,
    references: Float[Array, "b h w c"],
    own: conditioning.Conditioning,
    others: conditioning.Conditioning,
) -> Float[Array, "n h w c"]:
    """Latents of the targets, whose maps the `others` are."""
    denoise: Any = functools.partial(made.network.apply, variables["network"])
    schedule = generator.schedule(cap4d.get_config("size=paper"))
    return synthesis.views(
        key,
        denoise,
        schedule,
        references[None],
        own,
        others,
        layout=made.network.layout,
        sampler=synthesis.ViewSampler(steps=_STEPS.value),
    )[0]


def write(
    folder: pathlib.Path,
    track: head_track.Track,
    first: flowface.Reference,
    references: Shots,
    targets: Shots,
    views: Float[np.ndarray, "b y x 3"],
    *,
    stamp: dict[str, str],
) -> None:
    """A capture of one frame by many cameras, the references, and a sheet of both."""
    names = [f"view_{i:04d}" for i in range(len(views))]
    for name, view in zip(names, views, strict=True):
        images.write_png(folder / "images" / name / "0000.png", view, metadata=stamp)
    frame = slice(first.frame, first.frame + 1)
    seen = track.replace(
        params=jax.tree.map(lambda x: x[frame], track.params),
        cameras=targets.cameras,
        frame_ids=(0,),
    )
    flowface.write(folder, seen, camera_names=names)
    crops = np.asarray(references.images)
    for i, crop in enumerate(crops):
        images.write_png(folder / "references" / f"{i:04d}.png", crop, metadata=stamp)
    tiles = [(f"reference {i}", crop) for i, crop in enumerate(crops)]
    tiles += list(zip(names, views, strict=True))[:SHEET]
    sheet = preview.contact_sheet(tiles, size=256, columns=5)
    images.write_png(folder / "contact_sheet.png", sheet, metadata=stamp)


if __name__ == "__main__":
    app.run(main)
