"""What the denoisers are conditioned on: one pytree, and each paper's part of it.

`condition_maps` draws single maps; here they are drawn for a batch of frames, put in
the order of the channels that each paper's network reads, and taken away for
classifier-free guidance. Everything but `check` may run inside jit.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import condition_maps, splatted_features


@flax.struct.dataclass
class Conditioning:
    """Maps and tokens; leading axes `*b` are frames or any batch, the same for all.

    None is what a paper does not use. Maps serve every domain. Background is zero.
    """

    head_pose: Float[Array, "*b h w 3"] | None = None
    """Normals of the expressionless head (GeoDiff4D)."""
    position_code: Float[Array, "*b h w 42"] | None = None
    """Where on the template the surface lies, as sines and cosines (CAP4D)."""
    expression_offset: Float[Array, "*b h w 3"] | None = None
    """How expression moves the surface, in units of 10.4 mm (CAP4D)."""
    rays: Float[Array, "*b h w 3"] | None = None
    """Unit directions in the first reference's axes, on CAP4D's grid."""
    reference_mask: Float[Array, "*b h w 1"] | None = None
    """1 in references, 0 in frames to generate (CAP4D)."""
    crop_mask: Float[Array, "*b h w 1"] | None = None
    """1 in the photo, 0 where its crop was padded (CAP4D)."""
    plucker: Float[Array, "*b h w 6"] | None = None
    """Direction and moment of rays in the first reference's frame (GeoFace)."""
    features: Float[Array, "*b h w c"] | None = None
    """Splatted learnable features (Learn2Control)."""
    landmarks: Float[Array, "*b h w 1"] | None = None
    normals: Float[Array, "*b h w 3"] | None = None
    """Of the head with its expression."""
    depth: Float[Array, "*b h w 1"] | None = None
    """Metres."""
    uv: Float[Array, "*b h w 2"] | None = None
    """Chart coordinates of the surface."""
    expression_tokens: Float[Array, "*b k d"] | None = None
    """The expression latent, for cross-attention (GeoDiff4D)."""
    reference_latents: Float[Array, "*b h w z"] | None = None
    """Clean latents in the references' slots (CAP4D, GeoFace)."""
    reference_slots: Bool[Array, "*b"] | None = None
    """Which slots hold them; guidance never takes it away."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one paper's denoiser sees."""

    maps: tuple[str, ...]
    """Fields of `Conditioning` in the order of the channels."""
    dropped: tuple[str, ...] = ()
    """Fields that are zero, all together, in guidance's unconditional branch."""


_CAP4D = ("position_code", "expression_offset", "rays", "reference_mask", "crop_mask")
LAYOUTS = {
    "geodiff4d": Layout(("head_pose",), dropped=("expression_tokens",)),
    "cap4d": Layout(_CAP4D, dropped=(*_CAP4D, "reference_latents")),
    # What the last three drop is ours: GeoFace as CAP4D, the others keep their maps.
    "geoface": Layout(("plucker",), dropped=("plucker", "reference_latents")),
    "learn2control": Layout(("features",)),
    # Learn2Control's baseline (Sec 5.1).
    "visual_cues": Layout(("landmarks", "normals", "depth")),
}


def concatenate(conditioning: Conditioning, layout: Layout) -> Float[Array, "*b h w c"]:
    """The layout's maps along channels, in its order.

    Raises:
      ValueError: a map is missing or has another resolution.
    """
    maps = {name: getattr(conditioning, name) for name in layout.maps}
    missing = [name for name, value in maps.items() if value is None]
    if missing:
        raise ValueError(
            f"Expected the maps {', '.join(layout.maps)}, got none for "
            f"{', '.join(missing)}; draw them for every frame first."
        )
    shapes = {name: value.shape[:-1] for name, value in maps.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"Expected maps of one size, got {shapes}; draw them with the same `size`."
        )
    return jnp.concatenate(list(maps.values()), axis=-1)


def unconditional(conditioning: Conditioning, layout: Layout) -> Conditioning:
    """The branch without what the layout drops: zeros in its place, all else kept."""
    zeros = {
        name: jnp.zeros_like(getattr(conditioning, name))
        for name in layout.dropped
        if getattr(conditioning, name) is not None
    }
    return conditioning.replace(**zeros)


def reenact(
    reference: head_model.HeadParams, driver: head_model.HeadParams
) -> head_model.HeadParams:
    """The reference's identity with the driver's expression and pose, per frame.

    The reference is one frame without leading axes; all maps of a generated clip are
    drawn from the result. Both must come from heads of one version.

    Raises:
      ValueError: the two count identity or expression differently.
    """
    for name in ("identity", "expression"):
        own, other = getattr(reference, name), getattr(driver, name)
        if own.ndim != 1 or own.shape[-1] != other.shape[-1]:
            raise ValueError(
                f"Expected one reference frame with {other.shape[-1]} {name} "
                f"coefficients, as its driver, got {own.shape}; track both with one "
                "head and pick a frame."
            )
    identity = jnp.broadcast_to(reference.identity, driver.identity.shape)
    return driver.replace(identity=identity)


def check(
    model: head_model.HeadModel, params: head_model.HeadParams, cameras: Camera
) -> None:
    """The door: looks at values, so it runs outside jit.

    A head that its camera does not see, or that is behind it, passes: its maps are
    empty.

    Raises:
      ValueError: no frames, numbers that do not fit the head, not one square camera
        for each frame, or values that are not finite.
    """
    frames = params.identity.shape[0] if params.identity.ndim == 2 else 0
    if not frames:
        raise ValueError(
            "Expected parameters of at least one frame along a leading axis, got "
            f"identity of shape {params.identity.shape}; check the track."
        )
    expected = jax.eval_shape(lambda: head_model.neutral(model, batch=(frames,)))
    for name, shaped in vars(expected).items():
        value = np.asarray(getattr(params, name))
        if value.shape != shaped.shape:
            raise ValueError(
                f"Expected {name} of shape {shaped.shape} for the head "
                f"{model.version}, got {value.shape}; track the frames with this head."
            )
        if not np.isfinite(value).all():
            raise ValueError(
                f"Expected finite parameters, got NaN or infinity in {name}; leave "
                "out the frames that could not be tracked."
            )
    condition_maps.check_square(cameras)
    if cameras.intrinsics.shape != (frames, 4):
        raise ValueError(
            f"Expected one camera for each of {frames} frames, got intrinsics of shape "
            f"{cameras.intrinsics.shape}; repeat a fixed camera (repeat_camera)."
        )
    poses = (cameras.intrinsics, cameras.camera_from_world.parameters())
    if not all(np.isfinite(x).all() for x in poses):
        raise ValueError(
            "Expected finite cameras, got NaN or infinity; check their calibration."
        )


def repeat_camera(camera: Camera, count: int) -> Camera:
    """A fixed camera for each of `count` frames."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), camera)


def geodiff4d(
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    cameras: Camera,
    *,
    size: int = 64,
    supersampling: int = 8,
) -> Conditioning:
    """Head-pose maps of frames; parameters and cameras have one leading axis.

    Identity is the reference's: see `reenact`. The reference's own map, for the
    reference net, is a frame like any other.
    """

    def one(frame: tuple[head_model.HeadParams, Camera]) -> Array:
        return condition_maps.head_pose_map(
            model, *frame, size=size, supersampling=supersampling
        )

    # One large image after another: all at once would not stay in a CPU's caches.
    return Conditioning(head_pose=jax.lax.map(one, (params, cameras)))


def cap4d(
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    cameras: Camera,
    reference: Camera,
    *,
    reference_slots: Bool[Array, " b"],
    crop_mask: Float[Array, "b h w 1"] | None = None,
    size: int = 64,
    supersampling: int = 2,
    shown: Bool[Array, " v"] | None = None,
    positions: Float[Array, "v 3"] | None = None,
) -> Conditioning:
    """CAP4D's 50 channels for references and frames to generate.

    Cameras are those of the crops (`head_crop`); `reference` is the first reference's.
    Without `crop_mask` no crop was padded. `shown` and `positions` as in
    `surface_maps`.
    """

    def one(
        params: head_model.HeadParams, camera: Camera
    ) -> tuple[Array, Array, Array]:
        code, offset = condition_maps.surface_maps(
            model,
            params,
            camera,
            size=size,
            supersampling=supersampling,
            shown=shown,
            positions=positions,
        )
        return code, offset, condition_maps.ray_map(camera, reference, size=size)

    code, offset, rays = jax.vmap(one)(params, cameras)
    ones = jnp.ones((*reference_slots.shape, size, size, 1), rays.dtype)
    return Conditioning(
        position_code=code,
        expression_offset=offset,
        rays=rays,
        reference_mask=ones * reference_slots[:, None, None, None],
        crop_mask=ones if crop_mask is None else crop_mask,
        reference_slots=reference_slots,
    )


def geoface(cameras: Camera, reference: Camera, *, size: int = 64) -> Conditioning:
    """Plücker rays of cameras, in the frame of the first reference (ours)."""

    def one(camera: Camera) -> Array:
        return condition_maps.plucker_map(camera, reference, size=size)

    return Conditioning(plucker=jax.vmap(one)(cameras))


def learn2control(
    field: splatted_features.FeatureField,
    texels: splatted_features.Texels,
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    cameras: Camera,
    *,
    size: int = 512,
) -> Conditioning:
    """Splatted features of frames; differentiable in the field, so never cached."""

    def one(vertices: Array, camera: Camera) -> Array:
        camera = condition_maps.square(camera, size=size)
        return splatted_features.feature_map(
            field, texels, vertices, model.faces, camera
        )

    vertices = head_model.vertices(model, params)
    return Conditioning(features=jax.vmap(one)(vertices, cameras))


def visual_cues(
    model: head_model.HeadModel,
    params: head_model.HeadParams,
    cameras: Camera,
    *,
    size: int = 512,
) -> Conditioning:
    """Landmarks, normals, depth and UV coordinates of frames, from one drawing each."""

    def one(frame: tuple[Array, Camera]) -> Conditioning:
        vertices, camera = frame[0], condition_maps.square(frame[1], size=size)
        fragments = condition_maps.rasterize(vertices, model.faces, camera)
        return Conditioning(
            landmarks=condition_maps.landmark_map(model, vertices, camera),
            normals=condition_maps.normal_map(fragments, vertices, model.faces, camera),
            depth=condition_maps.depth_map(fragments),
            uv=condition_maps.uv_map(fragments, model),
        )

    return jax.lax.map(one, (head_model.vertices(model, params), cameras))
