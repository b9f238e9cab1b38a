"""Learnable features splatted from the head's surface (Learn2Control, Sec 3.2).

A field of isotropic Gaussians lives on the head's UV chart, one for each texel. They
follow the posed mesh, and their features are blended into a dense map that means the
same from every side. Trained with the denoiser, so maps are made inside the step.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from geodiff_jax.geometry import mesh
from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from geodiff_jax.render import splatting, uv


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
    """Noise in every channel, over Gaussians as wide as `spread` times their spacing.

    The paper gives a chart of 256 x 256 and the channels; noise of 0.1, opacity and
    spread are ours.
    """
    size = chart.face.shape[0]
    areas = mesh.face_areas(model.template, model.faces)
    flat = jnp.concatenate([model.uv, jnp.zeros_like(model.uv[:, :1])], axis=-1)
    texel_share = size**2 * mesh.face_areas(flat, model.uv_faces)
    spacing = jnp.sqrt(areas / jnp.maximum(texel_share, 1e-12))
    typical = jnp.sqrt(jnp.sum(areas) / jnp.sum(texel_share))
    # Slivers of the chart would make Gaussians as large as the head.
    spacing = jnp.clip(spacing, 0.1 * typical, 10.0 * typical)
    spacing = jnp.where(chart.valid, spacing[jnp.maximum(chart.face, 0)], typical)
    return FeatureField(
        features=0.1 * jax.random.normal(key, (size, size, channels)),
        opacity_logits=jnp.full((size, size), np.log(opacity / (1.0 - opacity))),
        log_scales=jnp.log(spread * spacing),
    )


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
    if field.opacity_logits.shape != (texels.size, texels.size):
        raise ValueError(
            f"Expected a field of {texels.size} x {texels.size} texels, as its chart, "
            f"got {field.opacity_logits.shape}; make both with one size."
        )
    means = mesh.interpolate(vertices, faces, texels.face, texels.barycentric)
    scales = jnp.exp(field.log_scales.reshape(-1)[texels.texel])
    opacities = jax.nn.sigmoid(field.opacity_logits.reshape(-1)[texels.texel])
    features = field.features.reshape(-1, field.features.shape[-1])[texels.texel]
    unturned = jnp.zeros((len(texels.face), 4)).at[:, 0].set(1.0)
    return splatting.splat_arrays(
        means,
        unturned,
        jnp.broadcast_to(scales[:, None], means.shape),
        opacities,
        jnp.tanh(features),
        camera.camera_from_world.as_matrix()[:3],
        camera.intrinsics,
        width=camera.width,
        height=camera.height,
        backend=backend,
    ).image
