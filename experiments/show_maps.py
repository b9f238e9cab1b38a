r"""Every condition map of one frame on one labelled sheet.

python -m experiments.show_maps --output=out/maps.png \
    [--image=photo.jpg | --capture=folder [--frame=0] [--view=0]] \
    [--head=head.safetensors]

With --image the photo's head, as `create_avatar` tracks it, in CAP4D's crop. With
--capture a tracked frame of a FlowFace, VHAP or Pixel3DMM folder, whose head
`prepare_head` wrote. Without, the built-in head (or --head) of a random person, by
--seed, --expression and --yaw_degrees. About half a minute on 2 idle cores, and as long
again for a photo.
"""

import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jaxtyping import Array, Float

from geodiff_jax import create
from geodiff_jax.avatar import preview
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import files as head_files
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.head import track as head_track
from geodiff_jax.io import images
from geodiff_jax.render import conditioning, head_crop, splatted_features, uv
from geodiff_jax.tracking import flowface, pixel3dmm, vhap

_OUTPUT = flags.DEFINE_string("output", None, "The PNG to write.", required=True)
_IMAGE = flags.DEFINE_string("image", None, "A portrait; a random head by default.")
_CAPTURE = flags.DEFINE_string("capture", None, "A folder of a tracker's results.")
_FRAME = flags.DEFINE_integer("frame", 0, "Of the capture, by its place.")
_VIEW = flags.DEFINE_integer("view", 0, "Which of the capture's cameras.")
_HEAD = flags.DEFINE_string("head", None, "What prepare_head wrote; else built in.")
_SEED = flags.DEFINE_integer("seed", 3, "Of the random person.")
_YAW = flags.DEFINE_float("yaw_degrees", 20.0, "Of the random person's head.")
_EXPRESSION = flags.DEFINE_string(
    "expression", "jawOpen", "What the random person's face does, at full strength."
)
SIZE = 512
Tile = tuple[str, Float[np.ndarray, "h w 3"]]


def main(argv: list[str]) -> None:
    """Draws the sheet."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        path = pathlib.Path(_OUTPUT.value)
        tiles = chosen_tiles()
        os.makedirs(path.parent, exist_ok=True)
        images.write_png(path, preview.contact_sheet(tiles, size=288, columns=5))
    except (ValueError, OSError) as error:
        print(f"show_maps: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{path}: {len(tiles)} maps")


def chosen_tiles() -> list[Tile]:
    """The maps that the flags ask for. Raises ValueError or OSError in one sentence."""
    if _IMAGE.value and _CAPTURE.value:
        raise ValueError("Expected one of --image and --capture, got both.")
    head = procedural.load() if _HEAD.value is None else head_files.load(_HEAD.value)
    if _IMAGE.value:
        return photo_tiles(_IMAGE.value, head)
    if _CAPTURE.value:
        folder = pathlib.Path(_CAPTURE.value)
        return capture_tiles(folder, head, frame=_FRAME.value, view=_VIEW.value)
    return head_tiles(head)


def photo_tiles(path: str, head: head_model.HeadModel) -> list[Tile]:
    """The photo's crop, its mask, and the maps of its tracked head."""
    tracked = create.track(path, head=head)
    fitted = tracked.fit
    return cropped_tiles(fitted.head, fitted.params, fitted.camera, tracked.photo.rgb)


def capture_tiles(
    folder: pathlib.Path, head: head_model.HeadModel, *, frame: int, view: int
) -> list[Tile]:
    """The maps of a tracked frame as one of its cameras sees it, with its image.

    Raises ValueError where frame, view or head are not those of the capture.
    """
    track, head, image = read_capture(folder, head, frame=frame, view=view)
    views = track.cameras.intrinsics.shape[0]
    for name, value, count in (
        ("frame", frame, track.num_frames),
        ("view", view, views),
    ):
        if not 0 <= value < count:
            raise ValueError(
                f"Expected a {name} below {count} of {folder}, got {value}."
            )
    head_track.check(track, head)
    head_track.check_cameras(track, head)
    camera = jax.tree.map(lambda x: x[view], track.cameras)
    rgb = None
    if image is not None and image.is_file():
        rgb = images.read_image(str(image)).rgb
        if rgb.shape[:2] != (camera.height, camera.width):
            raise ValueError(
                f"Expected {camera.width} x {camera.height} pixels in {image}, as its "
                f"camera has, got {rgb.shape[1]} x {rgb.shape[0]}."
            )
    return cropped_tiles(head, track.frame(frame), camera, rgb)


def read_capture(
    folder: pathlib.Path, head: head_model.HeadModel, *, frame: int, view: int
) -> tuple[head_track.Track, head_model.HeadModel, pathlib.Path | None]:
    """(track, head with the capture's offsets, where the frame's image should be).

    The layout is told by the files that are there.
    """
    if (folder / vhap.CANONICAL).is_file():
        capture = vhap.read(folder, head)
        # Offsets of the teeth that VHAP adds mean nothing to ours.
        count = min(len(capture.offsets), head.num_vertices)
        offsets = jnp.zeros_like(head.template).at[:count].set(capture.offsets[:count])
        ids = capture.track.frame_ids
        key = (ids[frame] if 0 <= frame < len(ids) else -1, view)
        image = folder / capture.images[key] if key in capture.images else None
        return capture.track, head_model.with_offsets(head, offsets), image
    if (folder / "checkpoint").is_dir():
        return pixel3dmm.read(folder, head), head, None
    if not (folder / "fit.npz").is_file():
        raise ValueError(
            f"Expected {vhap.CANONICAL} (VHAP), checkpoint/ (Pixel3DMM) or fit.npz "
            f"(FlowFace) in {folder}, found none of them."
        )
    own = sorted(folder.glob("images/*/*"))
    image = own[frame] if len(own) > frame >= 0 and view == 0 else None
    return flowface.read(folder), head, image


def cropped_tiles(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: cameras.Camera,
    rgb: Float[np.ndarray, "h w 3"] | None,
) -> list[Tile]:
    """The maps in CAP4D's crop, after the image's crop where there is an image."""
    box = head_crop.head_box(head, params, camera)
    crop = head_crop.crop_camera(camera, box, size=SIZE)
    mask = head_crop.crop_mask(box, width=camera.width, height=camera.height)
    maps = map_tiles(head, params, crop, crop_mask=mask)
    if rgb is None:
        return maps
    return [("the crop", head_crop.crop_image(rgb, np.asarray(box), size=SIZE)), *maps]


def head_tiles(head: head_model.HeadModel) -> list[Tile]:
    """The maps of a random person.

    Raises ValueError for an expression that the head does not have.
    """
    if _EXPRESSION.value not in head.expression_names:
        raise ValueError(
            f"Expected an expression of the head {head.version}, got "
            f"{_EXPRESSION.value!r}; choose one of {', '.join(head.expression_names)}."
        )
    chosen = head.expression_names.index(_EXPRESSION.value)
    neutral = head_model.neutral(head)
    key = jax.random.key(_SEED.value)
    params = neutral.replace(
        identity=procedural.sample_identity(key, head),
        expression=neutral.expression.at[chosen].set(1.0),
        rotation=jnp.asarray([0.0, np.radians(_YAW.value), 0.0]),
    )
    lens = cameras.look_at(
        jnp.asarray([0.0, 0.0, 1.0]),
        jnp.zeros(3),
        up=jnp.asarray([0.0, 1.0, 0.0]),
        focal=3.0 * SIZE,
        width=SIZE,
        height=SIZE,
    )
    return cropped_tiles(head, params, lens, None)


def map_tiles(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: cameras.Camera,
    *,
    crop_mask: Float[Array, "h w 1"] | None = None,
) -> list[Tile]:
    """Named pictures of every map; signed values are drawn around grey.

    Rays are in the frame of a reference that stands 10 degrees to the right.
    """
    frames = jax.tree.map(lambda x: x[None], params)
    views = conditioning.repeat_camera(camera, 1)
    conditioning.check(head, frames, views)
    mask = None if crop_mask is None else crop_mask[None]
    chart = uv.rasterize_chart(head.uv, head.uv_faces, size=256)
    field = jax.jit(splatted_features.initial_field)(jax.random.key(0), head, chart)
    # Noise drawn at full range, as it would be seen of a trained field.
    field = field.replace(features=10.0 * field.features)
    texels = splatted_features.covered_texels(chart)
    cues, pose, cap4d, rays, splatted = jax.jit(draw)(
        head, frames, views, mask, field, texels
    )
    surface = uv.position_map(chart, head.faces, head_model.head_vertices(head, params))
    code, plucker = cap4d.position_code[0], rays.plucker[0]
    features, zoom = splatted.features[0], jnp.asarray([3.0, 3.0, 1.0])
    return [
        ("normals", _signed(cues.normals[0])),
        ("head pose (001)", _signed(pose.head_pose[0])),
        ("depth", _spread(cues.depth[0])),
        ("UV coordinates", _colours(cues.uv[0])),
        ("landmarks", _colours(cues.landmarks[0])),
        ("position (002): sin xyz", _signed(code[..., 0::14])),
        ("position: cos xyz", _signed(code[..., 7::14])),
        ("position: sin 4 xyz", _signed(code[..., 2::14])),
        ("position: sin 64 xyz", _signed(code[..., 6::14])),
        ("expression offset (002)", _signed(cap4d.expression_offset[0] / 3.0)),
        ("rays (002)", _signed(cap4d.rays[0] * zoom)),
        ("reference mask (002), white = 1", _colours(cap4d.reference_mask[0] * 0.9)),
        ("crop mask (002), white = 1", _colours(cap4d.crop_mask[0] * 0.9)),
        ("ray directions (003)", _signed(plucker[..., :3] * zoom)),
        ("ray moments (003)", _signed(plucker[..., 3:] * 2.0)),
        ("UV positions (003)", _signed(surface / 0.15)),
        ("features 0-2 (004), untrained", _signed(features[..., :3])),
        ("features 3-5 (004), untrained", _signed(features[..., 3:6])),
    ]


def draw(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    views: cameras.Camera,
    crop_mask: Float[Array, "b h w 1"] | None,
    field: splatted_features.FeatureField,
    texels: splatted_features.Texels,
) -> tuple:
    """All maps of one frame (b = 1), as one program."""
    camera, face = jax.tree.map(lambda x: x[0], (views, params))
    centre = jnp.mean(head_model.vertices(head, face), axis=0)
    reference = cameras.orbit(camera, centre, yaw_radians=np.radians(10.0))
    return (
        conditioning.visual_cues(head, params, views, size=SIZE),
        conditioning.geodiff4d(head, params, views),
        conditioning.cap4d(
            head,
            params,
            views,
            reference,
            reference_slots=jnp.ones(1, bool),
            crop_mask=crop_mask,
        ),
        conditioning.geoface(views, reference),
        conditioning.learn2control(field, texels, head, params, views, size=SIZE),
    )


def _signed(values: Float[Array, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return np.asarray(jnp.clip(0.5 + 0.5 * values, 0.0, 1.0))


def _colours(values: Float[Array, "h w c"]) -> Float[np.ndarray, "h w 3"]:
    """One channel as grey, two as red and green."""
    channels = [values[..., min(c, values.shape[-1] - 1)] for c in range(3)]
    if values.shape[-1] == 2:
        channels[2] = jnp.zeros_like(channels[0])
    return np.asarray(jnp.stack(channels, axis=-1))


def _spread(depth: Float[Array, "h w 1"]) -> Float[np.ndarray, "h w 3"]:
    """Depth from the nearest, white, to the farthest, grey; background black."""
    near = jnp.min(jnp.where(depth > 0, depth, jnp.inf))
    share = (depth - near) / jnp.maximum(jnp.max(depth) - near, 1e-6)
    return _colours(jnp.where(depth > 0, 1.0 - 0.8 * share, 0.0))


if __name__ == "__main__":
    app.run(main)
