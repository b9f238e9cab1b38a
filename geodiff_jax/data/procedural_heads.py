"""Heads that need no licence and no download: built, dressed, lit and rendered.

People of `head.procedural` in looks of `appearance`, with exact normals and mattes.
All ranges are ours. Everything follows from a seed, part by part: a part is a person.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Array, Float, Key

from geodiff_jax import numerics
from geodiff_jax.appearance import hair as hairs
from geodiff_jax.appearance import lighting, studio, texture
from geodiff_jax.appearance import look as appearance
from geodiff_jax.appearance.hair import Hair
from geodiff_jax.data import building, filters, framing, schema
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.head.model import HeadModel, HeadParams
from geodiff_jax.render import condition_maps, mesh_rasterizer

LICENCE = "Rendered from numbers and formulas: no rights reserved."
DISTANCE = 1.0
"""Metres from the head's middle to the camera."""
ZOOM = 3.5
"""Focal length in widths of the picture: the head fills it, much hair leaves it."""
MIDDLE = (0.0, -0.02, 0.0)
"""Of head and upper neck, head frame."""
PACE = 4
"""Frames from one expression to the next."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many of everything, and how large."""

    sizes: schema.Sizes = schema.Sizes(image=64, map=16, surface=64)
    subjects: int = 64
    held_out: int = 4
    """The last subjects: in the split "held_out", never in "train"."""
    clips: int = 1
    """Each in a light of its own."""
    frames: int = 16
    views: int = 2
    spread: float = 30.0
    """Degrees of yaw, in equal parts, in each of which stands a camera."""
    styles: tuple[str, ...] = ("cropped", "tied")
    """Of hair, among `look.STYLES`."""
    muscles: int = 2
    """At work in an expression, on average."""
    talking: float = 1.0
    """Probability that the jaw opens, beyond what the muscles do."""
    texture: int = 256
    """Texels along a side of a person's albedo."""
    seed: int = 0

    def parts(self) -> dict[str, list[str]]:
        """Names of subjects, by split."""
        names = [f"person{number:05d}" for number in range(self.subjects)]
        train = self.subjects - self.held_out
        return {"train": names[:train], "held_out": names[train:]}


TOY = schema.Sizes(64, 8, surface=8)
PLANS = {
    # 64 x 64 in seconds, for tests; the tiny size's; the paper's pictures, from cameras
    # that span as much as NeRSemble's 93 degrees, of faces that act as in its takes. At
    # the tiny size a generator errs most on outlines at first, and long hair has much
    # of them; a few hundred expressions show what a jaw does, not what 51 muscles do.
    "toy": Plan(TOY, 3, 1, frames=2, texture=64),
    "tiny": Plan(),
    "paper": Plan(
        schema.Sizes(),
        10_000,
        100,
        clips=2,
        views=16,
        spread=90.0,
        styles=appearance.STYLES,
        muscles=12,
        talking=0.6,
        texture=1024,
    ),
}


@dataclasses.dataclass
class PlanConfig(tfds.core.BuilderConfig):
    """A plan under a name."""

    plan: Plan = PLANS["tiny"]


class ProceduralHeads(tfds.core.GeneratorBasedBuilder):
    """Packs the parts of a plan; makes those that are not in `parts` on the way."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "Faces act, closer to the camera; UV coordinates."}
    BUILDER_CONFIGS = [
        PlanConfig(name=name, description=name, plan=plan)
        for name, plan in PLANS.items()
    ]

    def __init__(self, *, parts: pathlib.Path | None = None, **kwargs) -> None:
        self.parts = parts
        super().__init__(**kwargs)

    @property
    def plan(self) -> Plan:
        """What is built."""
        return self.builder_config.plan  # pyright: ignore

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=schema.features(self.plan.sizes, procedural.load()),
            license=LICENCE,
            # Records lie in the order in which their index counts them.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {
            split: self._generate_examples(names)
            for split, names in self.plan.parts().items()
            if names
        }

    def _generate_examples(self, names: list[str]) -> Iterator[tuple[int, dict]]:
        number = 0
        for name in names:
            for encoded in self._encoded(name):
                yield number, building.to_record(encoded)
                number += 1

    def _encoded(self, name: str) -> Iterator[dict[str, np.ndarray]]:
        if self.parts is not None:
            yield from building.read_part(self.parts, name)[0]
            return
        for example in examples(name, self.plan):
            if isinstance(example, schema.Example):
                yield schema.encode(example)


def examples(name: str, plan: Plan) -> Iterator[schema.Example | building.Skipped]:
    """All pictures of one person, the same at every call; misfits say why."""
    head = procedural.load()
    number = int(name.removeprefix("person"))
    person_key, clips_key = jax.random.split(
        jax.random.fold_in(jax.random.key(plan.seed), number)
    )
    person = _person(person_key, head, plan)
    for clip, key in enumerate(jax.random.split(clips_key, plan.clips)):
        light_key, motion_key = jax.random.split(key)
        lamps = lighting.sample_lighting(light_key)
        motion = sample_motion(motion_key, head, person.identity, plan)
        for frame, params in enumerate(motion):
            for view, camera in enumerate(person.views):
                example = _example(head, person, lamps, params, camera, plan)
                example = dataclasses.replace(
                    example,
                    subject=name,
                    clip=f"clip{clip}",
                    frame=frame,
                    view=f"view{view}",
                )
                yield _admit(example, plan.sizes, head)


def _admit(
    example: schema.Example, sizes: schema.Sizes, head: HeadModel
) -> schema.Example | building.Skipped:
    reason = filters.out_of_picture(_visible(example, head))
    if reason is not None:
        return building.Skipped(example.name, reason)
    schema.check(example, sizes, head)
    return example


@dataclasses.dataclass(frozen=True)
class _Person:
    """What stays through all clips of one."""

    identity: Float[Array, " i"]
    look: appearance.Look
    maps: texture.Maps
    hair: Hair
    views: list[Camera]


def _person(key: Key[Array, ""], head: HeadModel, plan: Plan) -> _Person:
    identity_key, look_key, views_key = jax.random.split(key, 3)
    identity = procedural.sample_identity(identity_key, head)
    look = appearance.sample_look(look_key, styles=plan.styles)
    return _Person(
        identity,
        look,
        texture.bake_maps(head, look, size=plan.texture),
        hairs.grow(head, look, identity=identity),
        sample_views(views_key, plan.views, spread=plan.spread, size=plan.sizes.image),
    )


def sample_views(
    key: Key[Array, ""], count: int, *, spread: float, size: int
) -> list[Camera]:
    """Cameras round the face: evenly over `spread` degrees of yaw, then shaken.

    Pitch is from a sixth of it below to two ninths above; distance and focal length
    differ a little.
    """
    draws = np.asarray(jax.random.uniform(key, (count, 4)), np.float64)
    views = []
    for number, (turn, lift, far, zoom) in enumerate(draws):
        yaw = np.radians(spread * ((number + turn) / count - 0.5))
        pitch = np.radians(spread * (-1 / 6 + 7 / 18 * lift))
        away = DISTANCE * (0.9 + 0.2 * far)
        direction = np.array(
            [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]
        )
        middle = np.array(MIDDLE)
        focal = ZOOM * (0.92 + 0.16 * zoom) * away / DISTANCE * size
        views.append(
            cameras.look_at(
                jnp.asarray(middle + away * direction, jnp.float32),
                jnp.asarray(middle, jnp.float32),
                up=jnp.asarray([0.0, 1.0, 0.0]),
                focal=float(focal),
                width=size,
                height=size,
            )
        )
    return views


def sample_motion(
    key: Key[Array, ""], head: HeadModel, identity: Float[Array, " i"], plan: Plan
) -> list[HeadParams]:
    """A face on its way through random expressions and poses, at a smooth pace.

    It starts and ends with one of them; about `PACE` frames lie from one to the next.
    """
    expression_key, pose_key = jax.random.split(key)
    frames, legs = plan.frames, max(round(plan.frames / PACE), 1)
    stops = [
        _expression(one, head, plan)
        for one in jax.random.split(expression_key, legs + 1)
    ]
    poses = np.asarray(jax.random.normal(pose_key, (legs + 1, 4, 3)), np.float64)
    rest = head_model.neutral(head).replace(identity=identity)
    motion = []
    for frame in range(frames):
        way = legs * frame / max(frames - 1, 1)
        leg = min(int(way), legs - 1)
        share = way - leg
        ease = share * share * (3.0 - 2.0 * share)
        turn, neck, gaze, shift = (1.0 - ease) * poses[leg] + ease * poses[leg + 1]
        values = {
            "expression": (1.0 - ease) * stops[leg] + ease * stops[leg + 1],
            # Nods and turns more than leans.
            "rotation": np.clip(turn, -2, 2) * np.radians([5.0, 9.0, 3.0]),
            "neck": np.clip(neck, -2, 2) * np.radians([4.0, 5.0, 3.0]),
            "eyes": np.tile(np.clip(gaze, -2, 2) * np.radians([4, 7, 0]), (2, 1)),
            "translation": np.clip(shift, -2, 2) * 0.002,
        }
        changed = {k: jnp.asarray(v, jnp.float32) for k, v in values.items()}
        motion.append(rest.replace(**changed))
    return motion


def _expression(
    key: Key[Array, ""], head: HeadModel, plan: Plan
) -> Float[np.ndarray, " e"]:
    """Some muscles at once, and a jaw that is often open."""
    muscles_key, talks_key, jaw_key = jax.random.split(key, 3)
    drawn = np.array(
        procedural.sample_expression(muscles_key, head, count=plan.muscles)
    )
    if jax.random.bernoulli(talks_key, plan.talking):
        jaw = head.expression_names.index("jawOpen")
        drawn[jaw] = max(drawn[jaw], jax.random.uniform(jaw_key))
    return drawn


def _example(
    head: HeadModel,
    person: _Person,
    lamps: lighting.Lighting,
    params: HeadParams,
    camera: Camera,
    plan: Plan,
) -> schema.Example:
    """The picture with its maps; labels are the caller's."""
    image, mask = studio.photograph(
        head,
        params,
        person.look,
        lamps,
        camera,
        maps=person.maps,
        hair=person.hair,
        background=1.0,
    )
    mask = np.clip(mask, 0.0, 1.0)
    normals = np.asarray(normals_of(head, params, person.hair, camera))
    maps, box = framing.maps(head, params, camera, plan.sizes)
    return schema.Example(
        image=np.clip(image, 0.0, 1.0),
        normal=schema.unit_normals(normals, mask),
        mask=mask,
        camera_from_world=np.asarray(camera.camera_from_world.parameters()),
        intrinsics=np.asarray(camera.intrinsics),
        params=jax.tree.map(np.asarray, params),
        head_version=head.version,
        maps=maps,
        face_box=box,
        subject="",
        clip="",
        frame=0,
        view="",
        synthetic=True,
        licence=LICENCE,
    )


@functools.partial(jax.jit, static_argnames=("supersample",))
def normals_of(
    head: HeadModel,
    params: HeadParams,
    hair: Hair,
    camera: Camera,
    *,
    supersample: int = 2,
) -> Float[Array, "h w 3"]:
    """Normals of skin and of the hair's volume, averaged over each pixel's samples.

    House axes, not of unit length at edges. A strand's normal points away from the
    head and half across the strand (ours): what an estimator would say of a photograph.
    """
    vertices = head_model.vertices(head, params)
    strands = hairs.pose(hair, vertices, head.faces)
    viewer = numerics.normalize(camera.position - strands[:, 0])
    flat = hairs.ribbons(strands, hair.width, viewer)
    ribbon_faces = hairs.ribbon_faces(*strands.shape[:2]) + len(vertices)
    along = hairs.tangents(strands)
    outward = numerics.normalize(strands - jnp.mean(vertices, axis=0))
    lengthwise = jnp.sum(outward * along, axis=-1, keepdims=True)
    volume = numerics.normalize(outward - 0.5 * lengthwise * along)
    skin = mesh.vertex_normals(vertices, head.faces)
    faces = jnp.concatenate([head.faces, ribbon_faces])
    fine = camera.resize(
        width=supersample * camera.width, height=supersample * camera.height
    )
    fragments = mesh_rasterizer.rasterize(
        jnp.concatenate([vertices, flat]), faces, fine
    )
    # Two vertices of a ribbon for each point of its strand.
    world = jnp.concatenate([skin, jnp.repeat(volume.reshape(-1, 3), 2, axis=0)])
    local = condition_maps.normals_in_view(world, camera)
    normals = mesh_rasterizer.interpolate(fragments, faces, local)
    # Hair that shows from beyond the horizon lies on the outline; the inside of the
    # neck, seen from below, turns its other side.
    away = normals[..., 2:]
    onto = jnp.concatenate([normals[..., :2], jnp.maximum(away, 0.0)], axis=-1)
    turned = jnp.where(away < -0.2, -normals, normals)
    is_hair = (fragments.face >= len(head.faces))[..., None]
    seen = numerics.normalize(jnp.where(is_hair, onto, turned))
    return condition_maps.area_reduce(seen, supersample)


def _visible(example: schema.Example, head: HeadModel) -> float:
    """Share of the head's vertices that lie inside the picture."""
    side = len(example.image)
    pose = jaxlie.SE3(jnp.asarray(example.camera_from_world))
    camera = Camera(pose, jnp.asarray(example.intrinsics), side, side)
    params = jax.tree.map(jnp.asarray, example.params)
    return float(framing.share_inside(head, params, camera))
