"""Landmarks on any head: iBUG 68 on the surface, and their MediaPipe counterparts.

The map's choice of points is part of the fit: other maps in circulation move the
nose bridge and lips enough to turn the head by 8 degrees at equal error.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from geodiff_jax.geometry import mesh
from geodiff_jax.head import model as head_model

# MediaPipe's face mesh (478 points) for iBUG 17-67, in iBUG order.
MEDIAPIPE_FROM_IBUG_INNER: Int[np.ndarray, "51"] = np.array(
    [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
    + [168, 6, 195, 4, 98, 97, 2, 326, 327]
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
    + [61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91]
    + [78, 81, 13, 311, 308, 402, 14, 178]
)
# MediaPipe's face oval for iBUG 0-16: it lies on the visible outline, so it slides.
MEDIAPIPE_FROM_IBUG_JAW: Int[np.ndarray, "17"] = np.array(
    [127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356]
)
MEDIAPIPE_IRISES = {"right": slice(468, 473), "left": slice(473, 478)}

OUTER_EYE_CORNERS = (36, 45)
"""iBUG indices of the subject's right and left outer eye corners."""

IBUG_MIRROR: Int[np.ndarray, "68"] = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65]
)
"""The point on the other side of the face, for each iBUG point."""


def ibug_from_mediapipe(
    points: Float[np.ndarray, "478 c"],
) -> Float[np.ndarray, "68 c"]:
    """The iBUG 68 points among MediaPipe's 478."""
    chosen = np.concatenate([MEDIAPIPE_FROM_IBUG_JAW, MEDIAPIPE_FROM_IBUG_INNER])
    return points[chosen]


def positions(
    model: head_model.HeadModel, vertices: Float[Array, "*b v 3"]
) -> Float[Array, "*b 68 3"]:
    """The iBUG 68 points on a posed head."""
    marks = model.landmarks
    return mesh.interpolate(vertices, model.faces, marks.faces, marks.barycentrics)


def iris_positions(
    model: head_model.HeadModel, vertices: Float[Array, "*b v 3"]
) -> Float[Array, "*b 2 3"]:
    """Centres of the irises on a posed head, left then right."""
    marks = model.irises
    return mesh.interpolate(vertices, model.faces, marks.faces, marks.barycentrics)


def normalized_error(
    found: Float[Array, "*b 68 2"], truth: Float[Array, "*b 68 2"]
) -> Float[Array, "*b"]:
    """Mean distance over iBUG 17-67, in units of the truth's outer-eye distance."""
    right, left = OUTER_EYE_CORNERS
    distance = jnp.linalg.norm(truth[..., left, :] - truth[..., right, :], axis=-1)
    error = jnp.linalg.norm(found[..., 17:, :] - truth[..., 17:, :], axis=-1)
    return jnp.mean(error, axis=-1) / distance
