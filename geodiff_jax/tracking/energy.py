"""The fit of a head to frames of one person as a least-squares problem.

Unknowns are poses, identity, expressions, lids and a smooth field of offsets; residuals
compare landmarks and outline, and hold every unknown near its prior. Only the vertices
that are compared enter.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax.head import lbs
from geodiff_jax.head import model as head_model
from geodiff_jax.tracking import least_squares, outline


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Settings of the fit; all ours. Sigmas of image terms: outer-eye distances."""

    focal_factor: float = 2.0
    """Focal length over the larger side, where EXIF says nothing: a 50 mm lens on a
    crop, between a phone's 1.5 and a studio's 2.7. It cannot be seen in landmarks."""
    min_distance: float = 0.8
    """Metres: a face that fills the frame is a crop rather than a lens in its face."""
    landmark_sigma: float = 0.0075
    landmark_reach: float = 0.04
    """Landmarks that lie further from the fitted head than this lose their weight."""
    jaw_sigma: float = 0.04
    matte_sigma: float = 0.03
    matte_reach: float = 0.12
    """How far from the fitted head the matte's skin edge still attracts it."""
    lean_sigma: float = 0.012
    """Radians by which the head leans to or from the camera, about what the mesh's
    depth says: in a frontal view a longer chin and a bowed head look alike. Small,
    because 51 landmarks err together, yet count as independent."""
    lean_share: float = 0.92
    lean_rest: float = 0.123
    """Lean away from the camera, in radians, is share * (angle + rest) for a mesh whose
    midline, chin to forehead, leans away by `angle`; 0 where there is no mesh. Fitted
    to 24 random built-in heads, to 2.5 degrees."""
    identity_sigma: float = 1.0
    identity_bound: float = 3.0
    """Standard deviations beyond which `bound_weight` counts: shapes are linear, and
    further out they stop looking like anyone."""
    expression_sigma: float = 0.4
    eyelid_sigma: float = 0.4
    damped_expressions: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "eyeLook": 1e-3,
            "eyeBlink": 1e-3,
            "cheekPuff": 0.1,
            "noseSneer": 0.15,
            "jawForward": 0.1,
            "tongueOut": 1e-3,
        }
    )
    """Smaller sigmas by the beginning of a name: gaze and lids have unknowns of their
    own, the others would stand in for identity."""
    asymmetry_sigma: float = 0.15
    """Of left minus right strength of a paired expression."""
    bound_weight: float = 20.0
    """Residual per unit by which a strength leaves [0, 1], or identity its bound."""
    offset_amplitude: float = 0.0015
    """Metres, one standard deviation of the vertex offsets."""
    offset_length: float = 0.015
    """Metres over which offsets stay alike."""
    offset_bound: float = 0.0045
    """Metres that no offset exceeds, but for lids that ride over the eyeball."""
    max_yaw_degrees: float = 55.0
    """Faces turned further are refused: half of the landmarks are then guesses."""
    max_iterations: int = 40


@flax.struct.dataclass
class Unknowns:
    """What is solved for; `t` frames of one person."""

    rotation: Float[Array, "t 3"]
    placement: Float[Array, "t 3"]
    """x/z, y/z, log z of the head frame's origin in the camera."""
    identity: Float[Array, " i"]
    expression: Float[Array, "t e"]
    eyelids: Float[Array, "t 2"]
    field: Float[Array, "k 3"]
    """Whitened offsets."""


@flax.struct.dataclass
class Problem:
    """One solve's data; arrays only, so that all solves share a program."""

    points: head_model.HeadModel
    """The head at the corners of the landmarks, then at the outline's vertices."""
    field_basis: Float[Array, "p k"]
    barycentrics: Float[Array, "68 3"]
    intrinsics: Float[Array, "t 4"]
    found: Float[Array, "t 68 2"]
    landmark_weights: Float[Array, "t 68"]
    lines: outline.Lines
    """With a leading frame axis."""
    expression_weights: Float[Array, " e"]
    left_minus_right: Float[Array, "s e"]
    lean: Float[Array, " t"]
    lean_weight: Float[Array, ""]
    identity_weight: Float[Array, ""]
    identity_bound: Float[Array, ""]
    eyelid_weight: Float[Array, ""]
    bound_weight: Float[Array, ""]


def make_problem(
    model: head_model.HeadModel,
    basis: Float[np.ndarray, "v k"],
    intrinsics: Float[np.ndarray, "4"],
    ibug: Float[np.ndarray, "68 2"],
    trust: Float[np.ndarray, "68"],
    lines: outline.Lines,
    lean: float,
    config: FitConfig,
) -> Problem:
    """One photo's problem; `trust` in landmarks and `lines` are as last seen.

    `lean` is the sine of the expected lean away from the camera. Landmarks 0-16 are
    left to the outline: they slide along the jaw with pose.
    """
    unit = float(np.linalg.norm(ibug[45] - ibug[36]))
    weights = np.zeros(68)
    weights[17:] = trust[17:] / (config.landmark_sigma * unit)
    corners = np.asarray(model.faces)[np.asarray(model.landmarks.faces)].ravel()
    kept = np.concatenate([corners, lines.vertices])
    names = model.expression_names
    arrays = {
        "field_basis": basis[kept],
        "barycentrics": np.asarray(model.landmarks.barycentrics, np.float64),
        "intrinsics": intrinsics[None],
        "found": ibug[None],
        "landmark_weights": weights[None],
        "expression_weights": 1.0 / _expression_sigmas(names, config),
        "left_minus_right": _left_minus_right(names) / config.asymmetry_sigma,
        "lean": np.array([lean]),
        "lean_weight": 1.0 / config.lean_sigma,
        "identity_weight": 1.0 / config.identity_sigma,
        "identity_bound": config.identity_bound,
        "eyelid_weight": 1.0 / config.eyelid_sigma,
        "bound_weight": config.bound_weight,
    }
    return Problem(
        points=_cut(model, kept),
        lines=outline.Lines(*(field[None] for field in lines)),
        **{k: jnp.asarray(v, jnp.result_type(float)) for k, v in arrays.items()},
    )


@functools.partial(jax.jit, static_argnames="max_iterations")
def solve(
    problem: Problem,
    start: Unknowns,
    free: dict[str, Bool[Array, ""]],
    *,
    max_iterations: int,
) -> Unknowns:
    """Minimises the problem over those fields of the unknowns that are free."""
    vector, unravel = flatten_util.ravel_pytree(start)
    mask = {k: jnp.full(v.shape, free[k]) for k, v in vars(start).items()}
    mask = Unknowns(**mask)
    solution = least_squares.levenberg_marquardt(
        lambda unknowns, data: _residuals(unravel(unknowns), data),
        vector,
        problem,
        free=flatten_util.ravel_pytree(mask)[0],
        max_iterations=max_iterations,
    )
    return unravel(solution.unknowns)


def params_of(unknowns: Unknowns) -> head_model.HeadParams:
    """Parameters with a leading frame axis; neck, jaw and eyes at rest."""
    frames = unknowns.rotation.shape[0]
    slopes, depth = unknowns.placement[:, :2], jnp.exp(unknowns.placement[:, 2:])
    rest = jnp.zeros_like(unknowns.rotation)
    return head_model.HeadParams(
        identity=jnp.broadcast_to(
            unknowns.identity, (frames, *unknowns.identity.shape)
        ),
        expression=unknowns.expression,
        eyelids=unknowns.eyelids,
        neck=rest,
        jaw=rest,
        eyes=jnp.stack([rest, rest], axis=1),
        rotation=unknowns.rotation,
        translation=jnp.concatenate([slopes * depth, depth], axis=1),
    )


@jax.jit
def pose(
    model: head_model.HeadModel, unknowns: Unknowns
) -> tuple[Float[Array, "t v 3"], head_model.HeadParams]:
    """(all vertices in the cameras, parameters), without offsets."""
    params = params_of(unknowns)
    return head_model.vertices(model, params), params


def _residuals(unknowns: Unknowns, problem: Problem) -> Float[Array, " r"]:
    """Image terms, then priors; each in units of its sigma."""
    frames = np.arange(len(problem.found))
    moved = head_model.with_offsets(
        problem.points, problem.field_basis @ unknowns.field
    )
    points = head_model.vertices(moved, params_of(unknowns))
    corners = points[:, : 3 * 68].reshape(len(frames), 68, 3, 3)
    marks = jnp.sum(corners * problem.barycentrics[..., None], axis=2)
    seen = _pixels(marks, problem.intrinsics)
    # Every frame poses the outline's vertices of all frames; each keeps its own.
    outer = points[:, 3 * 68 :].reshape(len(frames), len(frames), -1, 3)
    ends = _pixels(outer[frames, frames], problem.intrinsics)
    lines = problem.lines
    excess = jnp.sum(lines.normals * ends, axis=-1) - lines.targets
    excess = jnp.where(lines.outer_only, jnp.maximum(excess, 0.0), excess)
    strengths = jnp.concatenate([unknowns.expression, unknowns.eyelids], axis=1)
    # How far the head's own y axis, up, points away from the camera.
    lean = lbs.rotation_matrices(unknowns.rotation)[..., 2, 1]
    beyond = jnp.maximum(jnp.abs(unknowns.identity) - problem.identity_bound, 0.0)
    terms = [
        (seen - problem.found) * problem.landmark_weights[..., None],
        excess * lines.weights,
        (lean - problem.lean) * problem.lean_weight,
        unknowns.identity * problem.identity_weight,
        beyond * problem.bound_weight,
        unknowns.expression * problem.expression_weights,
        unknowns.expression @ problem.left_minus_right.T,
        unknowns.eyelids * problem.eyelid_weight,
        jnp.maximum(-strengths, 0.0) * problem.bound_weight,
        jnp.maximum(strengths - 1.0, 0.0) * problem.bound_weight,
        unknowns.field,
    ]
    return jnp.concatenate([term.ravel() for term in terms])


def _pixels(
    points: Float[Array, "t p 3"], intrinsics: Float[Array, "t 4"]
) -> Float[Array, "t p 2"]:
    focal, centre = intrinsics[:, None, :2], intrinsics[:, None, 2:]
    return focal * points[..., :2] / points[..., 2:] + centre


def _cut(
    model: head_model.HeadModel, kept: Int[np.ndarray, " p"]
) -> head_model.HeadModel:
    """The head's shapes at a few vertices; its topology means nothing any more."""

    def take(shapes: Float[Array, "*b v c"]) -> Float[Array, "*b p c"]:
        return jnp.asarray(np.asarray(shapes)[..., kept, :])  # Nothing to compile.

    return model.replace(
        template=take(model.template),
        identity_basis=take(model.identity_basis),
        expression_basis=take(model.expression_basis),
        eyelid_basis=take(model.eyelid_basis),
        pose_basis=None if model.pose_basis is None else take(model.pose_basis),
        skinning_weights=take(model.skinning_weights),
        faces=jnp.zeros((0, 3), int),
        uv=jnp.zeros((0, 2)),
        uv_faces=jnp.zeros((0, 3), int),
        regions={},
    )


def _expression_sigmas(
    names: tuple[str, ...], config: FitConfig
) -> Float[np.ndarray, " e"]:
    sigmas = np.full(len(names), config.expression_sigma)
    for beginning, sigma in config.damped_expressions.items():
        sigmas[[name.startswith(beginning) for name in names]] = sigma
    return sigmas


def _left_minus_right(names: tuple[str, ...]) -> Float[np.ndarray, "s e"]:
    """A row for each expression that comes for the left and for the right."""
    index = {name: k for k, name in enumerate(names)}
    lefts = [n for n in names if n.endswith("_L") and n[:-2] + "_R" in index]
    rows = np.zeros((len(lefts), len(names)))
    for row, name in zip(rows, lefts, strict=True):
        row[index[name]], row[index[name[:-2] + "_R"]] = 1.0, -1.0
    return rows
