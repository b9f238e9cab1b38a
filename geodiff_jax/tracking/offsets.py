"""Small vertex offsets with a Gaussian-process prior: what no basis vector can reach.

Offsets at anchor points (the landmarks) are drawn from a zero-mean process with a
squared-exponential kernel; every other vertex takes the process's expectation given
the anchors, so the field is smooth, strongest at the face and zero far from it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from geodiff_jax.head import model as head_model

JITTER = 1e-3
"""Share of independent variance: lips that touch make anchors coincide (ours)."""


def field_basis(
    model: head_model.HeadModel,
    *,
    amplitude: float,
    length: float,
) -> Float[np.ndarray, "v k"]:
    """Offset of each vertex, in metres, for one standard deviation of each unknown.

    The same for x, y and z. `amplitude` and `length` in metres. Eyeballs move as a
    whole, so that they stay round.
    """
    vertices = np.asarray(model.template, np.float64)
    anchors = _anchors(model)
    covariance = _kernel(anchors, anchors, length) + JITTER * np.eye(len(anchors))
    whitened = np.linalg.inv(np.linalg.cholesky(covariance))
    basis = amplitude * _kernel(vertices, anchors, length) @ whitened.T
    for name in ("left_eyeball", "right_eyeball"):
        ball = np.asarray(model.regions[name])
        if ball.any():
            basis[ball] = basis[ball].mean(axis=0)
    return basis


def bounded(
    offsets: Float[np.ndarray, "v 3"], bound: float
) -> Float[np.ndarray, "v 3"]:
    """Shortens offsets so that none reaches `bound` metres; short ones keep theirs."""
    length = np.linalg.norm(offsets, axis=1, keepdims=True)
    return offsets / (1.0 + (length / bound) ** 4) ** 0.25


def ride_on_eyeballs(
    model: head_model.HeadModel,
    offsets: Float[np.ndarray, "v 3"],
    *,
    reach: float = 2.0,
) -> Float[np.ndarray, "v 3"]:
    """The offsets, with lids pushed out along the eyeball's radius where they sink.

    Near an eyeball, skin keeps at least the distance from its centre that it has in the
    model; further out, up to `reach` radii, ever less of that is asked (ours).
    """
    template = np.asarray(model.template, np.float64)
    result = offsets.copy()
    skin = ~np.asarray(model.regions["left_eyeball"] | model.regions["right_eyeball"])
    for name in ("left_eyeball", "right_eyeball"):
        ball = np.asarray(model.regions[name])
        if not ball.any():
            continue
        centre = template[ball].mean(axis=0)
        radius = np.linalg.norm(template[ball] - centre, axis=1).max()
        arms = template - centre
        moved = arms + result - offsets[ball].mean(axis=0)
        before, after = (np.linalg.norm(a, axis=1) for a in (arms, moved))
        share = np.clip((reach - before / radius) / (reach - 1.2), 0.0, 1.0) * skin
        push = share * np.maximum(before - after, 0.0) / np.maximum(after, 1e-9)
        result += push[:, None] * moved
    return result


def apply(
    model: head_model.HeadModel, offsets: Float[np.ndarray, "v 3"]
) -> head_model.HeadModel:
    """The head with moved vertices, the eyes' joints moved along with the eyeballs."""
    joints = np.array(model.joint_template)
    for name, joint in (("left_eyeball", "left_eye"), ("right_eyeball", "right_eye")):
        ball = np.asarray(model.regions[name])
        if ball.any():
            joints[head_model.JOINTS.index(joint)] += offsets[ball].mean(axis=0)
    moved = np.asarray(model.template) + offsets
    kind = model.template.dtype
    return model.replace(
        template=jnp.asarray(moved, kind), joint_template=jnp.asarray(joints, kind)
    )


def _anchors(model: head_model.HeadModel) -> Float[np.ndarray, "68 3"]:
    marks = model.landmarks
    corners: Int[np.ndarray, "68 3"] = np.asarray(model.faces)[np.asarray(marks.faces)]
    points = np.asarray(model.template, np.float64)[corners]
    return np.sum(points * np.asarray(marks.barycentrics)[..., None], axis=1)


def _kernel(
    a: Float[np.ndarray, "a 3"], b: Float[np.ndarray, "b 3"], length: float
) -> Float[np.ndarray, "a b"]:
    squared = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2.0 * a @ b.T
    return np.exp(-0.5 * np.maximum(squared, 0.0) / length**2)
