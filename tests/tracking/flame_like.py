"""A small head that obeys FLAME's rules, and FLAME's rules once more, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model
from tests.head import random_head

NUM_IDENTITIES, NUM_EXPRESSIONS = (
    random_head.NUM_IDENTITIES,
    random_head.NUM_EXPRESSIONS,
)


def load(version: str, *, seed: int = 0):
    """Expressions turn no joints, and eyelids close after skinning."""
    model = random_head.load(seed)
    return model.replace(
        joint_drivers=jnp.zeros_like(model.joint_drivers),
        eyelids_after_skinning=True,
        version=version,
    )


_vertices = jax.jit(head_model.vertices)


def vertices(model, params):
    """Our own, compiled once for heads of any version."""
    return _vertices(model.replace(version="any"), params)


_project = jax.jit(Camera.project)


def project(cameras, points):
    """All frames' points by every view, (views, frames * vertices); compiled once."""
    points = np.reshape(points, (-1, 3)).astype(np.float32)
    points = np.broadcast_to(points, (len(cameras.intrinsics), *points.shape))
    return _project(cameras.replace(width=1, height=1), points)


def rotation_matrix(axis_angle):
    """Rodrigues."""
    angle = np.linalg.norm(axis_angle)
    if angle == 0:
        return np.eye(3)
    x, y, z = np.asarray(axis_angle, np.float64) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def posed(model, *, identity, expression, turns, translation, offsets=0.0):
    """FLAME's vertices, all five joints turned inside the skinning; `turns` (5, 3, 3).

    4 x 4 matrices down the chain, one vertex after the other.
    """
    part = {name: np.asarray(x, np.float64) for name, x in numbers(model).items()}
    rest = part["template"] + offsets
    rest = rest + np.tensordot(identity, part["identity_basis"], 1)
    rest = rest + np.tensordot(expression, part["expression_basis"], 1)
    joints = part["joint_template"]
    joints = joints + np.tensordot(identity, part["joint_identity_basis"], 1)
    joints = joints + np.tensordot(expression, part["joint_expression_basis"], 1)
    feature = np.concatenate([(turn - np.eye(3)).ravel() for turn in turns[1:]])
    rest = rest + np.tensordot(feature, part["pose_basis"], 1)
    transforms = []
    for turn, joint, parent in zip(turns, joints, (-1, 0, 1, 1, 1), strict=True):
        about = moved(joint) @ turned(turn) @ moved(-joint)
        transforms.append(about if parent < 0 else transforms[parent] @ about)
    weights = part["skinning_weights"]
    found = [
        sum(w * m for w, m in zip(row, transforms, strict=True)) @ [*vertex, 1]
        for row, vertex in zip(weights, rest, strict=True)
    ]
    return np.array(found)[:, :3] + translation


def numbers(model):
    names = (
        "template identity_basis expression_basis joint_template joint_identity_basis "
        "joint_expression_basis pose_basis skinning_weights"
    )
    return {name: getattr(model, name) for name in names.split()}


def moved(vector):
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def turned(rotation):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    return matrix


def seen(points, world_from_camera, lens):
    """Pixels by OpenGL's rules: the camera looks along -z, y is up; (u, v, depth)."""
    local = (points - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    fx, fy, cx, cy = lens
    depth = -local[:, 2]
    pixels = [cx + fx * local[:, 0] / depth, cy - fy * local[:, 1] / depth]
    return np.stack([*pixels, depth], axis=1)
