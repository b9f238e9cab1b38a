"""Fits an avatar's Gaussians to a photo (001 §3.3, its photometric part).

One jitted step, no host synchronisation inside; side views keep the look of the start,
since a single photo says nothing about them.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from geodiff_jax import numerics
from geodiff_jax.avatar import coloring, losses
from geodiff_jax.avatar import model as avatar_model
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.render import splatting


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
    """Steps, rates and weights; GaussianAvatars' form, values ours unless noted."""

    steps: int = 400
    color_rate: float = 0.02
    """Of the zeroth spherical harmonic; 0.0025 over 600k steps in GaussianAvatars."""
    opacity_rate: float = 0.05
    position_rate: float = 0.008
    """In triangle scales per step; 0.005 in GaussianAvatars."""
    scale_rate: float = 0.01
    rotation_rate: float = 0.004
    final_rate: float = 0.03
    """Share of every rate that is left at the last step (cosine)."""
    ssim_weight: float = 0.2
    """GaussianAvatars, Eq. 4."""
    hole_weight: float = 0.5
    drift_weight: float = 1.0
    skin_limit: float = 0.25
    """Triangle scales a Gaussian of the skin may wander for free."""
    hair_limit: float = 1.0
    swelling_weight: float = 0.1
    growth_limit: float = 1.8
    needle_limit: float = 3.0
    recolor_weight: float = 0.01
    side_weight: float = 0.3
    """Of the views from the side, against the start's own look."""
    full_evidence: float = 0.5
    """Pixels' worth of a photo from which on a Gaussian learns at full rate."""
    folded_rate: float = 0.1
    """Share of the rate for skin that the photo shows folded, as lids over open eyes:
    what fits a few pixels of lash must not cover the closed eye."""
    longest: float = 0.0045
    """Metres: hard bound on the standard deviation of any axis."""
    farthest: float = 0.004
    """Metres: hard bound on the way of any Gaussian from where it started."""
    capacity_margin: float = 2.0
    """Room for growth on GPUs, over what the start needs; `splatting.splat_arrays`."""


@flax.struct.dataclass
class SideViews:
    """What the start looks like from around: keeps the seen from spoiling it."""

    cameras: Camera
    """Batched on a leading axis."""
    images: Float[Array, "k h w 3"]
    solid: Bool[Array, "k h w"]
    """Inside the bare head, where the start is: must stay opaque."""


@flax.struct.dataclass
class State:
    """Everything that a step changes."""

    gaussians: Gaussians
    optimizer: optax.OptState
    step: Int[Array, ""]
    overflow: Bool[Array, ""]
    """Whether any step so far left out Gaussians; see `splatting.Splat`."""


def reconstruct(
    key: Key[Array, ""],
    avatar: Avatar,
    views: tuple[losses.View, ...],
    sides: SideViews,
    *,
    config: ReconstructionConfig | None = None,
    backend: str | None = None,
    on_step: Callable[[int, dict[str, Float[Array, ""]]], None] | None = None,
) -> Avatar:
    """The avatar fitted to its photo, which may be given at several resolutions.

    `on_step` receives (step, losses), the losses still on the device.
    """
    config = config or ReconstructionConfig()
    optimizer = make_optimizer(config)
    start = avatar.gaussians
    state = State(
        gaussians=start,
        optimizer=optimizer.init(_trainable(start)),
        step=jnp.zeros((), jnp.int32),
        overflow=jnp.zeros((), bool),
    )
    room = _capacity(
        avatar, views, sides, margin=config.capacity_margin, backend=backend
    )
    gates = learning_gates(avatar, views, config, capacity=room, backend=backend)
    context = (avatar, views, sides, triangle_scales(avatar), gates)
    fixed = {
        "optimizer": optimizer,
        "config": config,
        "capacity": room,
        "backend": backend,
    }
    step = jax.jit(functools.partial(train_step, **fixed), donate_argnums=1)
    # Donation consumes the state's buffers; the start must outlive the first step.
    state = jax.tree.map(jnp.copy, state)
    for index, step_key in enumerate(jax.random.split(key, config.steps)):
        state, values = step(step_key, state, context)
        if on_step is not None:
            on_step(index, values)
    if state.overflow:
        warnings.warn(
            "The fit outgrew its room, and some steps left out the farthest Gaussians: "
            f"raise capacity_margin from {config.capacity_margin}.",
            stacklevel=2,
        )
    return avatar.replace(gaussians=state.gaussians)


def train_step(
    key: Key[Array, ""],
    state: State,
    context: tuple[Avatar, tuple[losses.View, ...], SideViews, Array, dict[str, Array]],
    *,
    optimizer: optax.GradientTransformation,
    config: ReconstructionConfig,
    capacity: int | None = None,
    backend: str | None = None,
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """One gradient step on the photo and on one random side view."""
    avatar, views, sides, scales, gates = context
    start = avatar.gaussians
    view_key, background_key = jax.random.split(key)
    view = jax.random.randint(view_key, (), 0, sides.images.shape[0])
    background = jax.random.uniform(background_key, (3,))

    def objective(
        trainable: dict[str, Float[Array, "..."]],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]]:
        current = avatar.replace(gaussians=start.replace(**trainable))
        world = avatar_model.pose(current, current.params)

        def draw(camera: Camera, behind: Float[Array, "3"]) -> splatting.Splat:
            return splatting.splat(
                world,
                avatar_model.colors(world, camera),
                camera,
                background=behind,
                capacity=capacity,
                backend=backend,
            )

        terms, overflow = _terms(
            config, draw, current, start, views, sides, view, background
        )
        return sum(terms.values(), jnp.zeros(())), (terms, overflow)

    trainable = _trainable(state.gaussians)
    gradient, (terms, overflow) = jax.grad(objective, has_aux=True)(trainable)
    updates, inner = optimizer.update(gradient, state.optimizer, trainable)
    # Adam turns any gradient into full steps; what no photo shows must not move.
    updates = jax.tree.map(
        lambda x, gate: x * gate.reshape(-1, *[1] * (x.ndim - 1)), updates, gates
    )
    moved = optax.apply_updates(trainable, updates)
    gaussians = _bounded(start.replace(**moved), start, scales, config)
    overflow |= state.overflow
    return State(gaussians, inner, state.step + 1, overflow), terms


def make_optimizer(config: ReconstructionConfig) -> optax.GradientTransformation:
    """Adam with a rate for each attribute, all on one cosine schedule."""
    rates = {
        "means": config.position_rate,
        "quaternions": config.rotation_rate,
        "log_scales": config.scale_rate,
        "opacity_logits": config.opacity_rate,
        "sh": config.color_rate,
    }

    def adam(rate: float) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(
            rate, config.steps, alpha=config.final_rate
        )
        # eps 1e-15 as in 3DGS: gradients of single Gaussians are tiny.
        return optax.adam(schedule, eps=1e-15)

    transforms = {name: adam(rate) for name, rate in rates.items()}
    return optax.multi_transform(transforms, {name: name for name in rates})


def learning_gates(
    avatar: Avatar,
    views: tuple[losses.View, ...],
    config: ReconstructionConfig,
    *,
    capacity: int | None = None,
    backend: str | None = None,
) -> dict[str, Float[Array, " n"]]:
    """Share of its rate, in [0, 1], at which each Gaussian's attributes learn.

    By the evidence for it; less where the photo shows skin folded. What starts opaque
    on the face keeps all but its colour: that layer closes every hole, whatever lies
    over it.
    """
    seen = evidence(avatar, views, capacity=capacity, backend=backend)
    share = seen / config.full_evidence
    shown = coloring.stretch_confidence(avatar.head, avatar.params)
    face = avatar.binding.face
    share *= jnp.maximum(jnp.asarray(shown), config.folded_rate)[face]
    share = jnp.clip(share, 0.0, 1.0)
    # With the faces about its rim, where the soft edges of both sides meet.
    in_face = avatar.head.regions["face"][avatar.head.faces]
    on_face = jnp.any(in_face, axis=1)[face]
    closed = on_face & (avatar.gaussians.opacities > 0.95)
    gates = dict.fromkeys(_trainable(avatar.gaussians), jnp.where(closed, 0.0, share))
    return {**gates, "sh": share}


def evidence(
    avatar: Avatar,
    views: tuple[losses.View, ...],
    *,
    capacity: int | None = None,
    backend: str | None = None,
) -> Float[Array, " n"]:
    """How many pixels' worth of the photo each Gaussian answers for, at the start.

    The sum of its blending weights over what the photo judges: region and background.
    """
    world = avatar_model.pose(avatar, avatar.params)

    def total(marks: Float[Array, "n 1"]) -> Float[Array, ""]:
        answer = jnp.zeros(())
        for view in views:
            image = splatting.splat(
                world, marks, view.camera, capacity=capacity, backend=backend
            ).image
            answer += jnp.sum(image[..., 0] * (view.region | view.empty))
        return answer

    marks = jnp.ones((avatar.gaussians.capacity, 1), world.means.dtype)
    return jax.jit(jax.grad(total))(marks)[:, 0]


def triangle_scales(avatar: Avatar) -> Float[Array, " n"]:
    """Metres per local unit of each Gaussian in the source frame."""
    world = avatar_model.pose(avatar, avatar.params)
    return jnp.exp(jnp.mean(world.log_scales - avatar.gaussians.log_scales, axis=-1))


def render_sides(
    avatar: Avatar, cameras: Camera, *, backend: str | None = None
) -> tuple[Float[Array, "k h w 3"], Float[Array, "k h w"]]:
    """(image over white, alpha) of the avatar in its source pose, from each camera."""
    world = avatar_model.pose(avatar, avatar.params)

    def one(camera: Camera) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
        colors = avatar_model.colors(world, camera)
        white = jnp.ones(3, colors.dtype)
        drawn = splatting.splat(
            world, colors, camera, background=white, backend=backend
        )
        return drawn.image, drawn.alpha

    return jax.lax.map(one, cameras)


def _terms(
    config: ReconstructionConfig,
    draw: Callable[[Camera, Float[Array, "3"]], splatting.Splat],
    current: Avatar,
    start: Gaussians,
    views: tuple[losses.View, ...],
    sides: SideViews,
    view: Int[Array, ""],
    background: Float[Array, "3"],
) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
    photo, overflow = jnp.zeros(()), jnp.zeros((), bool)
    for seen in views:
        drawn = draw(seen.camera, background)
        overflow |= drawn.overflow
        photo += losses.photometric(
            drawn.image,
            seen,
            background=background,
            ssim_weight=config.ssim_weight,
        )
    side_camera, side_image, solid = jax.tree.map(
        lambda x: x[view], (sides.cameras, sides.images, sides.solid)
    )
    side = draw(side_camera, jnp.ones(3))
    overflow |= side.overflow
    terms = {
        "photo": photo / len(views),
        "side": config.side_weight * jnp.mean(jnp.abs(side.image - side_image)),
        "holes": config.hole_weight * losses.holes(side.alpha, solid),
        "drift": config.drift_weight
        * losses.drift(
            current,
            start,
            skin_limit=config.skin_limit,
            hair_limit=config.hair_limit,
        ),
        "swelling": config.swelling_weight
        * losses.swelling(
            current.gaussians,
            start,
            factor=config.growth_limit,
            needle=config.needle_limit,
        ),
        "recoloring": config.recolor_weight
        * losses.recoloring(current.gaussians, start),
    }
    return terms, overflow


def _capacity(
    avatar: Avatar,
    views: tuple[losses.View, ...],
    sides: SideViews,
    *,
    margin: float,
    backend: str | None,
) -> int:
    """Room for any one rendering of the start, and by `margin` more."""
    world = avatar_model.pose(avatar, avatar.params)
    around = [
        jax.tree.map(lambda x, k=k: x[k], sides.cameras)
        for k in range(sides.images.shape[0])
    ]
    return max(
        splatting.required_capacity(
            world.means,
            world.quaternions,
            jnp.exp(world.log_scales),
            world.opacities,
            camera.camera_from_world.as_matrix()[:3],
            camera.intrinsics,
            width=camera.width,
            height=camera.height,
            margin=margin,
            backend=backend,
        )
        for camera in [*(view.camera for view in views), *around]
    )


def _trainable(gaussians: Gaussians) -> dict[str, Float[Array, "..."]]:
    return {
        "means": gaussians.means,
        "quaternions": gaussians.quaternions,
        "log_scales": gaussians.log_scales,
        "opacity_logits": gaussians.opacity_logits,
        "sh": gaussians.sh,
    }


def _bounded(
    gaussians: Gaussians,
    start: Gaussians,
    scales: Float[Array, " n"],
    config: ReconstructionConfig,
) -> Gaussians:
    """The hard bounds: no optimiser may draw a spike or lose a Gaussian."""
    ceiling = jnp.log(config.longest) - jnp.log(scales)[:, None]
    way = gaussians.means - start.means
    length = numerics.safe_norm(way) * scales
    share = jnp.minimum(config.farthest / jnp.maximum(length, 1e-12), 1.0)
    return gaussians.replace(
        log_scales=jnp.minimum(gaussians.log_scales, ceiling),
        means=start.means + share[:, None] * way,
    )
