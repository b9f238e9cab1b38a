"""Fits one head and its camera to a photo's landmarks and outline, in stages.

Stages: pose; then identity, expression and lids; then small vertex offsets; gaze last.
All but gaze are one damped least-squares problem that frees more and more unknowns, so
it is compiled once.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import transform

from geodiff_jax.geometry import camera as cameras
from geodiff_jax.geometry import mesh
from geodiff_jax.head import landmarks, track
from geodiff_jax.head import model as head_model
from geodiff_jax.io import images
from geodiff_jax.tracking import detect, energy, gaze, offsets, outline
from geodiff_jax.tracking.energy import FitConfig as FitConfig

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
    config = config or FitConfig()
    focal = _focal(photo, detection, config)
    intrinsics = np.array([focal, focal, photo.width / 2, photo.height / 2])
    # Pixels squared over hundreds of unknowns: normal equations want 64 bits.
    with jax.enable_x64(True):
        wide = jax.tree.map(_widen, model)
        basis = offsets.field_basis(
            model, amplitude=config.offset_amplitude, length=config.offset_length
        )
        solver = functools.partial(
            _solve_with_outline, wide, photo, detection, basis, intrinsics, config
        )
        start = _start(model, detection.ibug, intrinsics, basis.shape[1])
        posed = solver(start, stage=0)
        _check_yaw(posed, config)
        shaped = solver(posed, stage=1)
        solved = solver(shaped, stage=2)
        without = energy.project_landmarks(wide, energy.params_of(shaped), intrinsics)
        field = basis @ np.asarray(solved.field)
    head = offsets.apply(model, field)
    params = jax.tree.map(
        lambda x: jnp.asarray(x[0], jnp.float32), energy.params_of(solved)
    )
    camera = cameras.pinhole(focal=focal, width=photo.width, height=photo.height)
    if detection.irises is not None:
        params = params.replace(eyes=gaze.eyes(head, params, camera, detection.irises))
    narrow = functools.partial(jnp.asarray, dtype=jnp.float32)
    return _result(head, params, camera, *map(narrow, (field, detection.ibug, without)))


def to_track(result: Fit) -> track.Track:
    """The fit as a track of one frame and one camera."""
    return track.Track(
        params=jax.tree.map(lambda x: x[None], result.params),
        cameras=jax.tree.map(lambda x: x[None], result.camera),
        frame_ids=(0,),
        head_version=result.head.version,
    )


def _focal(
    photo: images.Photo, detection: detect.Detection, config: FitConfig
) -> float:
    """Pixels: by EXIF, else a set multiple of the photo's side, not too near."""
    if photo.focal_pixels is not None:
        return photo.focal_pixels
    right, left = detection.ibug[list(landmarks.OUTER_EYE_CORNERS)]
    unit = float(np.linalg.norm(left - right))
    nearest = config.min_distance * unit / OUTER_EYE_METRES
    return max(config.focal_factor * max(photo.width, photo.height), nearest)


def _start(
    model: head_model.HeadModel,
    ibug: Float[np.ndarray, "68 2"],
    intrinsics: Float[np.ndarray, "4"],
    num_field: int,
) -> energy.Unknowns:
    """Pose by scaled orthography (POS: DeMenthon and Davis, 1995), all else neutral."""
    marks = np.asarray(landmarks.positions(model, model.template), np.float64)[17:]
    seen = ibug[17:]
    affine = np.linalg.lstsq(marks - marks.mean(0), seen - seen.mean(0), rcond=None)[0]
    left, scales, right = np.linalg.svd(affine.T, full_matrices=False)
    rows = left @ right
    rotation = np.stack([*rows, np.cross(*rows)])
    depth = intrinsics[0] / scales.mean()
    ray = np.append((seen.mean(0) - intrinsics[2:]) / intrinsics[:2], 1.0)
    origin = depth * ray - rotation @ marks.mean(0)
    return energy.Unknowns(
        rotation=transform.Rotation.from_matrix(rotation).as_rotvec()[None],
        placement=np.array([[*(origin[:2] / origin[2]), np.log(origin[2])]]),
        identity=np.zeros(len(model.identity_names)),
        expression=np.zeros((1, len(model.expression_names))),
        eyelids=np.zeros((1, 2)),
        field=np.zeros((num_field, 3)),
    )


# Unknowns that each stage frees, and how often it looks for the outline anew.
_STAGES = (
    (("rotation", "placement"), 0),
    (("rotation", "placement", "identity", "expression", "eyelids"), 4),
    (("rotation", "placement", "identity", "expression", "eyelids", "field"), 2),
)


def _solve_with_outline(
    model: head_model.HeadModel,
    photo: images.Photo,
    detection: detect.Detection,
    basis: Float[np.ndarray, "v k"],
    intrinsics: Float[np.ndarray, "4"],
    config: FitConfig,
    start: energy.Unknowns,
    *,
    stage: int,
) -> energy.Unknowns:
    """Alternates between the outline's lines and the unknowns of one stage."""
    names, rounds = _STAGES[stage]
    free = energy.Unknowns(
        **{k: np.full(np.shape(v), k in names) for k, v in vars(start).items()}
    )
    solved = start
    for round_ in range(max(rounds, 1)):
        lines = outline.nothing()
        if rounds and (stage > 1 or round_ > 0):
            lines = outline.lines(
                model,
                energy.project(model, basis, solved, intrinsics),
                detection.ibug,
                detection.matte,
                photo.rgb,
                jaw_sigma=config.jaw_sigma,
                matte_sigma=config.matte_sigma,
                matte_reach=config.matte_reach,
            )
        problem = energy.make_problem(
            model, basis, intrinsics, detection.ibug, lines, config
        )
        solved = energy.solve(
            problem, solved, free, max_iterations=config.max_iterations
        )
    return solved


def _check_yaw(unknowns: energy.Unknowns, config: FitConfig) -> None:
    degrees = abs(np.degrees(_yaw(np.array(unknowns.rotation[0]))))
    if degrees > config.max_yaw_degrees:
        raise ValueError(
            f"Expected a face turned at most {config.max_yaw_degrees:.0f} degrees "
            f"from the camera, got {degrees:.0f}; use a photo from the front."
        )


def _yaw(rotation: Float[np.ndarray, "3"]) -> float:
    """Radians by which the face points to the right of the image, its left."""
    forward = transform.Rotation.from_rotvec(rotation).as_matrix()[:, 2]
    return float(np.arctan2(forward[0], -forward[2]))


def _result(
    head: head_model.HeadModel,
    params: head_model.HeadParams,
    camera: cameras.Camera,
    field: Float[Array, "v 3"],
    found: Float[Array, "68 2"],
    without: Float[Array, "68 2"],
) -> Fit:
    posed = landmarks.positions(head, head_model.vertices(head, params))
    projected = camera.project(posed)[0]
    at_landmarks = mesh.interpolate(
        field,
        head.faces,
        head.landmarks.faces,
        head.landmarks.barycentrics,
    )
    rms = float(jnp.sqrt(jnp.mean(jnp.sum(at_landmarks[17:] ** 2, axis=-1))))
    return Fit(
        head=head,
        params=params,
        camera=camera,
        offsets=field,
        found=found,
        projected=projected,
        landmark_nme=float(landmarks.normalized_error(projected, found)),
        landmark_nme_without_offsets=float(landmarks.normalized_error(without, found)),
        offsets_rms=rms,
        offsets_max=float(jnp.linalg.norm(field, axis=-1).max()),
        yaw_radians=_yaw(np.array(params.rotation)),
    )


def _widen(array: Array) -> Array:
    wide = np.issubdtype(np.asarray(array).dtype, np.floating)
    return np.asarray(array, np.float64) if wide else np.asarray(array)
