"""A ball with a face: the smallest head on which the avatar's laws can be tested."""

import jax.numpy as jnp
import numpy as np

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model

RADIUS = 0.1
DISTANCE = 0.8


def ball(rows: int = 24, columns: int = 36):
    """(vertices, faces) of a closed sphere about the origin, outward winding."""
    theta = np.linspace(0, np.pi, rows + 1)[1:-1]
    phi = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    ring = np.stack([np.sin(t) * np.sin(p), np.cos(t), np.sin(t) * np.cos(p)], -1)
    vertices = np.concatenate([[[0, 1, 0]], ring.reshape(-1, 3), [[0, -1, 0]]])
    grid = 1 + np.arange(ring.shape[0] * columns).reshape(-1, columns)
    right = np.roll(grid, -1, axis=1)
    a, b, c, d = grid[:-1], grid[1:], right[1:], right[:-1]
    quads = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    top = np.stack([np.zeros(columns, int), grid[0], right[0]], -1)
    last = np.full(columns, len(vertices) - 1)
    bottom = np.stack([last, right[-1], grid[-1]], -1)
    faces = np.concatenate([quads.reshape(-1, 3), top, bottom])
    return RADIUS * vertices, faces


def load() -> head_model.HeadModel:
    """One identity that swells the ball, one expression that stretches its chin."""
    vertices, faces = ball()
    x, y, z = vertices.T / RADIUS
    regions = {name: np.zeros(len(vertices), bool) for name in head_model.REGIONS}
    regions["scalp"] = (y > 0.45) | ((z < -0.1) & (y > -0.3))
    regions["neck"] = y < -0.8
    regions["boundary"] = y < -0.97
    regions["face"] = ~regions["scalp"] & ~regions["neck"] & (z > 0.1)
    chin = np.clip(-y, 0, 1)[:, None] * np.array([0.0, -0.02, 0.0])
    weights = np.zeros((len(vertices), 5))
    weights[:, 1] = 1.0
    marks = head_model.LandmarkEmbedding(
        jnp.zeros(68, jnp.int32), jnp.full((68, 3), 1 / 3)
    )
    irises = head_model.LandmarkEmbedding(
        jnp.zeros(2, jnp.int32), jnp.full((2, 3), 1 / 3)
    )

    def array(values):
        return jnp.asarray(values, jnp.float32)

    return head_model.HeadModel(
        template=array(vertices),
        identity_basis=array(0.02 * vertices[None]),
        expression_basis=array(chin[None]),
        eyelid_basis=jnp.zeros((2, len(vertices), 3)),
        joint_template=jnp.zeros((5, 3)),
        joint_identity_basis=jnp.zeros((1, 5, 3)),
        joint_drivers=jnp.zeros((1, 5, 3)),
        skinning_weights=array(weights),
        faces=jnp.asarray(faces, jnp.int32),
        uv=array(vertices[:, :2] / RADIUS / 2 + 0.5),
        uv_faces=jnp.asarray(faces, jnp.int32),
        landmarks=marks,
        irises=irises,
        regions={name: jnp.asarray(mask) for name, mask in regions.items()},
        identity_names=("size",),
        expression_names=("jawOpen",),
        version="toy-1",
    )


def params(head: head_model.HeadModel) -> head_model.HeadParams:
    """Facing a camera at the world's origin."""
    return head_model.neutral(head).replace(
        rotation=jnp.array([jnp.pi, 0.0, 0.0]),
        translation=jnp.array([0.0, 0.0, DISTANCE]),
    )


def camera(size: int = 96) -> cameras.Camera:
    """The ball fills five eighths of the frame."""
    focal = 0.625 * size * DISTANCE / (2 * RADIUS)
    return cameras.pinhole(focal=focal, width=size, height=size)


def disc(size: int, radius: float) -> np.ndarray:
    """Boolean disc of a radius in pixels about the image's centre."""
    axis = np.arange(size) + 0.5 - size / 2
    return axis[None, :] ** 2 + axis[:, None] ** 2 <= radius**2
