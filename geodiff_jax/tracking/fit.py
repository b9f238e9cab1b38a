"""Fits one head and its camera to a photo's landmarks and outline, in stages.

Stages: pose; then identity, expression and lids; then small vertex offsets; gaze last.
All but gaze are one damped least-squares problem that frees more and more unknowns, so
it is compiled once.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import transform

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import landmarks, track
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.tracking import detect, energy, gaze, offsets, outline
from geodiff_jax.tracking.energy import FitConfig as FitConfig

_normalized_error = jax.jit(landmarks.normalized_error)

OUTER_EYE_METRES = 0.09
"""Distance between the outer eye corners of a usual adult."""


@flax.struct.dataclass
class Fit:
    """A head fitted to one photo; the world is the photo camera's frame."""

    head: head_model.HeadModel
    """The person's head: the model moved by `offsets`."""
    params: head_model.HeadParams
    """Without leading axes."""
    camera: cameras.Camera
    """The photo's, at its full size."""
    offsets: Float[Array, "v 3"]
    """Metres, head frame."""
    found: Float[Array, "68 2"]
    """iBUG 68 as detected, pixels."""
    projected: Float[Array, "68 2"]
    """iBUG 68 of the fitted head, pixels."""
    landmark_nme: float = flax.struct.field(pytree_node=False)
    """Mean distance over iBUG 17-67 over the outer-eye distance, with offsets."""
    landmark_nme_without_offsets: float = flax.struct.field(pytree_node=False)
    offsets_rms: float = flax.struct.field(pytree_node=False)
    """Metres, over the landmarks."""
    offsets_max: float = flax.struct.field(pytree_node=False)
    """Metres, over all vertices."""
    yaw_radians: float = flax.struct.field(pytree_node=False)
    """Positive where the subject turns to their left."""


def fit(
    model: head_model.HeadModel,
    photo: images.Photo,
    detection: detect.Detection,
    *,
    config: FitConfig | None = None,
) -> Fit:
    """Fits pose, identity, expression, lids, offsets and gaze to one photo.

    Raises ValueError for a face turned too far from the camera.
    """
    # Pixels squared over hundreds of unknowns: normal equations want 64 bits.
    with jax.enable_x64(True):
        view = _make_view(model, photo, detection, config or FitConfig())
        posed = _solve_stage(view, _start(view), stage=0)
        _check_yaw(posed, view.config)
        shaped = _solve_stage(view, posed, stage=1)
        solved = _solve_stage(view, shaped, stage=2)
        before, _ = _pose(view, shaped)
        after, params = _pose(view, solved)
        if detection.irises is not None:
            params = params.replace(eyes=_gaze(view, solved, params, after))
        field = _field(view, solved)
    found, projected = detection.ibug, _pixels(view, _at_marks(model, after))
    without = _pixels(view, _at_marks(model, before))
    return Fit(
        head=offsets.apply(model, field),
        params=jax.tree.map(_narrow, params),
        camera=cameras.pinhole(
            focal=view.intrinsics[0], width=photo.width, height=photo.height
        ),
        offsets=_narrow(field),
        found=_narrow(found),
        projected=_narrow(projected),
        landmark_nme=_error(projected, found),
        landmark_nme_without_offsets=_error(without, found),
        offsets_rms=float(np.sqrt(np.mean(np.sum(_at_marks(model, field) ** 2, -1)))),
        offsets_max=float(np.linalg.norm(field, axis=-1).max()),
        yaw_radians=_yaw(params.rotation),
    )


def to_track(result: Fit) -> track.Track:
    """The fit as a track of one frame and one camera."""
    return track.Track(
        params=jax.tree.map(lambda x: x[None], result.params),
        cameras=jax.tree.map(lambda x: x[None], result.camera),
        frame_ids=(0,),
        head_version=result.head.version,
    )


@dataclasses.dataclass(frozen=True)
class _View:
    """What all stages share; in 64 bits."""

    photo: images.Photo
    detection: detect.Detection
    intrinsics: Float[np.ndarray, "4"]
    model: head_model.HeadModel
    basis: Float[np.ndarray, "v k"]
    config: FitConfig


def _make_view(
    model: head_model.HeadModel,
    photo: images.Photo,
    detection: detect.Detection,
    config: FitConfig,
) -> _View:
    focal = _focal(photo, detection, config)
    return _View(
        photo=photo,
        detection=detection,
        intrinsics=np.array([focal, focal, photo.width / 2, photo.height / 2]),
        model=jax.tree.map(_widen, model),
        basis=offsets.field_basis(
            model, amplitude=config.offset_amplitude, length=config.offset_length
        ),
        config=config,
    )


def _focal(
    photo: images.Photo, detection: detect.Detection, config: FitConfig
) -> float:
    """Pixels: by EXIF, else a set multiple of the photo's side, not too near."""
    if photo.focal_pixels is not None:
        return photo.focal_pixels
    right, left = detection.ibug[list(landmarks.OUTER_EYE_CORNERS)]
    nearest = config.min_distance * np.linalg.norm(left - right) / OUTER_EYE_METRES
    return max(config.focal_factor * max(photo.width, photo.height), float(nearest))


def _start(view: _View) -> energy.Unknowns:
    """Pose by scaled orthography (POS: DeMenthon and Davis, 1995), all else neutral."""
    marks = _at_marks(view.model, view.model.template)[17:]
    seen = view.detection.ibug[17:]
    affine = np.linalg.lstsq(marks - marks.mean(0), seen - seen.mean(0), rcond=None)[0]
    left, scales, right = np.linalg.svd(affine.T, full_matrices=False)
    rows = left @ right
    rotation = np.stack([*rows, np.cross(*rows)])
    focal, centre = view.intrinsics[:2], view.intrinsics[2:]
    ray = np.append((seen.mean(0) - centre) / focal, 1.0)
    origin = focal[0] / scales.mean() * ray - rotation @ marks.mean(0)
    values = {
        "rotation": transform.Rotation.from_matrix(rotation).as_rotvec()[None],
        "placement": [[*(origin[:2] / origin[2]), np.log(origin[2])]],
        "identity": np.zeros(len(view.model.identity_names)),
        "expression": np.zeros((1, len(view.model.expression_names))),
        "eyelids": np.zeros((1, 2)),
        "field": np.zeros((view.basis.shape[1], 3)),
    }
    return energy.Unknowns(**{k: jnp.asarray(v) for k, v in values.items()})


# Unknowns that each stage frees, and which of its rounds look at the outline and doubt
# landmarks; the second stage begins without, since an average head would mislead.
_STAGES = (
    (("rotation", "placement"), (False,)),
    (
        ("rotation", "placement", "identity", "expression", "eyelids"),
        (False, True, True, True),
    ),
    (
        ("rotation", "placement", "identity", "expression", "eyelids", "field"),
        (True, True, True),
    ),
)


def _solve_stage(view: _View, start: energy.Unknowns, *, stage: int) -> energy.Unknowns:
    """Alternates between the outline's lines and the unknowns of one stage."""
    names, rounds = _STAGES[stage]
    free = {k: jnp.asarray(k in names) for k in vars(start)}
    solved = start
    for with_outline in rounds:
        trust, lines = np.ones(68), outline.nothing()
        if with_outline:
            posed, _ = _pose(view, solved)
            trust = _trust(view, _pixels(view, _at_marks(view.model, posed)))
            lines = _outline(view, _pixels(view, posed))
        problem = energy.make_problem(
            _corrected(view, solved),
            view.basis,
            view.intrinsics,
            view.detection.ibug,
            trust,
            lines,
            _lean(view.detection, view.config),
            view.config,
        )
        solved = energy.solve(
            problem, solved, free, max_iterations=view.config.max_iterations
        )
    return solved


def _trust(view: _View, marks: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "68"]:
    """Less for landmarks far from where the head has them (Geman-McClure)."""
    right, left = view.detection.ibug[list(landmarks.OUTER_EYE_CORNERS)]
    reach = view.config.landmark_reach * np.linalg.norm(left - right)
    gap = np.linalg.norm(marks - view.detection.ibug, axis=1)
    return 1.0 / (1.0 + (gap / reach) ** 2)


def _lean(detection: detect.Detection, config: FitConfig) -> float:
    """Sine of the angle by which the head leans away, from the mesh's own depth."""
    mesh = detection.landmarks_478
    if mesh is None:
        return 0.0
    forehead, chin = mesh[[10, 151, 9]].mean(axis=0), mesh[[152, 175, 199]].mean(axis=0)
    up = (forehead - chin) / np.linalg.norm(forehead - chin)
    angle = np.arcsin(up[2]) + config.lean_rest
    return float(np.sin(config.lean_share * angle))


def _outline(view: _View, pixels: Float[np.ndarray, "v 2"]) -> outline.Lines:
    config = view.config
    return outline.lines(
        view.model,
        pixels,
        view.detection.ibug,
        view.detection.matte,
        view.photo.rgb,
        jaw_sigma=config.jaw_sigma,
        matte_sigma=config.matte_sigma,
        matte_reach=config.matte_reach,
    )


def _corrected(view: _View, unknowns: energy.Unknowns) -> head_model.HeadModel:
    """The model, moved by what bound and eyeballs change of the linear field.

    Held fixed during a solve, it keeps the problem smooth; rounds bring it up to date.
    """
    linear = view.basis @ np.asarray(unknowns.field)
    return offsets.apply(view.model, _field(view, unknowns) - linear)


def _field(view: _View, unknowns: energy.Unknowns) -> Float[np.ndarray, "v 3"]:
    linear = view.basis @ np.asarray(unknowns.field)
    bounded = offsets.bounded(linear, view.config.offset_bound)
    return offsets.ride_on_eyeballs(view.model, bounded)


def _pose(
    view: _View, unknowns: energy.Unknowns
) -> tuple[Float[np.ndarray, "v 3"], head_model.HeadParams]:
    """(vertices in the camera frame, parameters) of the only frame, eyes at rest."""
    moved = offsets.apply(view.model, _field(view, unknowns))
    vertices, params = energy.pose(moved, unknowns)
    frame = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), params)
    return np.asarray(vertices)[0], frame


def _pixels(view: _View, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 2"]:
    return view.intrinsics[:2] * points[:, :2] / points[:, 2:] + view.intrinsics[2:]


def _at_marks(
    model: head_model.HeadModel, values: Float[np.ndarray, "v 3"] | Float[Array, "v 3"]
) -> Float[np.ndarray, "68 3"]:
    return _embedded(model, model.landmarks, values)


def _embedded(
    model: head_model.HeadModel,
    marks: head_model.LandmarkEmbedding,
    values: Float[np.ndarray, "v 3"] | Float[Array, "v 3"],
) -> Float[np.ndarray, "k 3"]:
    """Vertex values at points of the surface, without a compilation."""
    corners = np.asarray(values)[np.asarray(model.faces)[np.asarray(marks.faces)]]
    return np.sum(corners * np.asarray(marks.barycentrics)[..., None], axis=1)


def _error(
    projected: Float[np.ndarray, "68 2"], found: Float[np.ndarray, "68 2"]
) -> float:
    return float(_normalized_error(_narrow(projected), _narrow(found)))


def _gaze(
    view: _View,
    unknowns: energy.Unknowns,
    params: head_model.HeadParams,
    vertices: Float[np.ndarray, "v 3"],
) -> Float[Array, "2 3"]:
    """Eyes that look where the irises were found; `vertices` with eyes at rest."""
    moved = offsets.apply(view.model, _field(view, unknowns))
    shift = np.tensordot(params.identity, view.model.joint_identity_basis, axes=1)
    first = head_model.JOINTS.index("left_eye")
    joints = (np.asarray(moved.joint_template) + shift)[first : first + 2]
    rotation = _matrix(params.rotation)
    slopes = (view.detection.irises - view.intrinsics[2:]) / view.intrinsics[:2]
    eyes = gaze.eyes(
        joints @ rotation.T + np.asarray(params.translation),
        _embedded(view.model, view.model.irises, vertices),
        np.concatenate([slopes, np.ones((2, 1))], axis=1),
        rotation,
    )
    return jnp.asarray(eyes)


def _check_yaw(unknowns: energy.Unknowns, config: FitConfig) -> None:
    degrees = abs(np.degrees(_yaw(np.asarray(unknowns.rotation)[0])))
    if degrees > config.max_yaw_degrees:
        raise ValueError(
            f"Expected a face turned at most {config.max_yaw_degrees:.0f} degrees "
            f"from the camera, got {degrees:.0f}; use a photo from the front."
        )


def _yaw(rotation: Float[np.ndarray | Array, "3"]) -> float:
    """Radians by which the face points to the right of the image, its left."""
    forward = _matrix(rotation)[:, 2]
    return float(np.arctan2(forward[0], -forward[2]))


def _matrix(rotation: Float[np.ndarray | Array, "3"]) -> Float[np.ndarray, "3 3"]:
    return transform.Rotation.from_rotvec(np.array(rotation, np.float64)).as_matrix()


def _widen(array: Array) -> Array:
    wide = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.asarray(np.asarray(array, np.float64)) if wide else array


def _narrow(array: np.ndarray | Array) -> Array:
    return jnp.asarray(array, jnp.float32)
