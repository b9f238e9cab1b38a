"""Learnable features splatted from the head's surface (Learn2Control, Sec 3.2).

A field of isotropic Gaussians lives on the head's UV chart, one for each texel. They
follow the posed mesh, and their features are blended into a dense map that means the
same from every side. Trained with the denoiser, so maps are made inside the step: of a
head there (`feature_map`), or of positions that come with the data (`feature_maps`).
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import splatting, uv

HEAD_AREA = 0.18
"""Square metres of skin on a chart: the built-in head's."""


@flax.struct.dataclass
class Texels:
    """The texels that lie on the head: fixed by its topology."""

    texel: Int[Array, " n"]
    """Index into the chart's texels, row by row from its upper left."""
    face: Int[Array, " n"]
    barycentric: Float[Array, "n 3"]
    size: int = flax.struct.field(pytree_node=False)
    """Texels along each side."""


@flax.struct.dataclass
class FeatureField:
    """What is learnt: three attributes of every texel, seen or not."""

    features: Float[Array, "size size c"]
    """Any real; drawn as their tanh."""
    opacity_logits: Float[Array, "size size"]
    log_scales: Float[Array, "size size"]
    """Logarithm of the standard deviation in metres."""


@flax.struct.dataclass
class Surface:
    """Posed texels as cameras see them: all that a field is drawn with."""

    positions: Float[Array, "*b size size 3"]
    """Metres in the camera's axes; zero outside the chart, where nothing is drawn."""
    intrinsics: Float[Array, "*b 4"]
    """fx, fy, cx, cy in pixels of the map."""
    side: int = flax.struct.field(pytree_node=False)
    """Of the map, pixels."""


def covered_texels(chart: uv.Chart) -> Texels:
    """Those of a head's chart that lie on its surface. Runs outside jit."""
    face = np.asarray(chart.face).ravel()
    texel = np.flatnonzero(face >= 0)
    return Texels(
        texel=jnp.asarray(texel),
        face=jnp.asarray(face[texel]),
        barycentric=chart.barycentric.reshape(-1, 3)[texel],
        size=chart.face.shape[0],
    )


def initial_field(
    key: Key[Array, ""],
    model: head_model.HeadModel,
    chart: uv.Chart,
    *,
    channels: int = 8,
    opacity: float = 0.5,
    spread: float = 0.6,
) -> FeatureField:
    """As `even_field`, with Gaussians as wide as the head's own texels are."""
    size = chart.face.shape[0]
    areas = mesh.face_areas(model.template, model.faces)
    flat = jnp.concatenate([model.uv, jnp.zeros_like(model.uv[:, :1])], axis=-1)
    texel_share = size**2 * mesh.face_areas(flat, model.uv_faces)
    spacing = jnp.sqrt(areas / jnp.maximum(texel_share, 1e-12))
    typical = jnp.sqrt(jnp.sum(areas) / jnp.sum(texel_share))
    # Slivers of the chart would make Gaussians as large as the head.
    spacing = jnp.clip(spacing, 0.1 * typical, 10.0 * typical)
    spacing = jnp.where(chart.valid, spacing[jnp.maximum(chart.face, 0)], typical)
    even = even_field(key, size=size, channels=channels, opacity=opacity)
    return even.replace(log_scales=jnp.log(spread * spacing))


def even_field(
    key: Key[Array, ""],
    *,
    size: int,
    channels: int = 8,
    opacity: float = 0.5,
    spread: float = 0.6,
) -> FeatureField:
    """Noise in every channel, over Gaussians as wide as `spread` times their spacing.

    Before a head is known: texels share a head's area evenly. The paper gives a chart
    of 256 x 256 and the channels; noise of 0.1, opacity and spread are ours.
    """
    logit = np.log(opacity / (1.0 - opacity))
    scale = spread * np.sqrt(HEAD_AREA) / size
    return FeatureField(
        features=0.1 * jax.random.normal(key, (size, size, channels)),
        opacity_logits=jnp.full((size, size), logit, jnp.float32),
        log_scales=jnp.full((size, size), np.log(scale), jnp.float32),
    )


def surface_of(
    chart: uv.Chart,
    faces: Int[Array, "f 3"],
    vertices: Float[Array, "*b v 3"],
    camera: Camera,
) -> Surface:
    """A posed head's, one camera (square) for each pose."""
    positions = uv.position_map(chart, faces, camera.to_camera(vertices))
    return Surface(positions, camera.intrinsics, camera.width)


def feature_maps(
    field: FeatureField, surface: Surface, *, backend: str | None = None
) -> Float[Array, "*b h w c"]:
    """As `feature_map`, for all poses of a batch."""
    leading, size = surface.intrinsics.shape[:-1], surface.positions.shape[-2]
    _check_size(field, size)

    def one(positions: Array, intrinsics: Array) -> Array:
        return _splat(
            field.features,
            field.opacity_logits,
            field.log_scales,
            positions,
            jnp.eye(3, 4),
            intrinsics,
            width=surface.side,
            height=surface.side,
            backend=backend,
        )

    maps = jax.vmap(one)(
        surface.positions.reshape(-1, size, size, 3), surface.intrinsics.reshape(-1, 4)
    )
    return maps.reshape(*leading, *maps.shape[1:])


def feature_map(
    field: FeatureField,
    texels: Texels,
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "f 3"],
    camera: Camera,
    *,
    backend: str | None = None,
) -> Float[Array, "h w c"]:
    """The field blended front to back (Eq. 5), in [-1, 1], over zeros.

    Differentiable in field, vertices and camera; `jax.vmap` makes batches.

    Raises:
      ValueError: field and chart differ in size.
    """
    _check_size(field, texels.size)
    means = mesh.interpolate(vertices, faces, texels.face, texels.barycentric)
    return _splat(
        field.features.reshape(-1, field.features.shape[-1])[texels.texel],
        field.opacity_logits.reshape(-1)[texels.texel],
        field.log_scales.reshape(-1)[texels.texel],
        means,
        camera.camera_from_world.as_matrix()[:3],
        camera.intrinsics,
        width=camera.width,
        height=camera.height,
        backend=backend,
    )


def _check_size(field: FeatureField, size: int) -> None:
    if field.opacity_logits.shape != (size, size):
        raise ValueError(
            f"Expected a field of {size} x {size} texels, as its chart, got "
            f"{field.opacity_logits.shape}; make both with one size."
        )


def _splat(
    features: Float[Array, "*t c"],
    opacity_logits: Float[Array, "*t"],
    log_scales: Float[Array, "*t"],
    means: Float[Array, "*t 3"],
    camera_from_world: Float[Array, "3 4"],
    intrinsics: Float[Array, "4"],
    **options: Any,
) -> Float[Array, "h w c"]:
    means = means.reshape(-1, 3)
    scales = jnp.exp(log_scales.reshape(-1, 1))
    return splatting.splat_arrays(
        means,
        jnp.zeros((len(means), 4)).at[:, 0].set(1.0),
        jnp.broadcast_to(scales, means.shape),
        jax.nn.sigmoid(opacity_logits.reshape(-1)),
        jnp.tanh(features.reshape(-1, features.shape[-1])),
        camera_from_world,
        intrinsics,
        **options,
    ).image
