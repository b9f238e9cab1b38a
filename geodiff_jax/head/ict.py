"""The ICT-FaceKit head: fills `HeadModel` from the FaceXModel folder as downloaded.

The shapes are by the USC Institute for Creative Technologies (Li et al., Learning
Formation of Physically-Based Face Attributes, CVPR 2020), under the MIT licence that
stands at the top of each file; users bring their own copy. Joints, skinning weights,
regions and the packing of the chart are ours, see `ict_rig` and `ict_regions`.

Frame: centimetres in the files, x to the subject's left (shapes named _L move x > 0),
y up, z out of the face. Here metres, and the origin lies as far behind the middle of
the eyes' centres as in the built-in head.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from geodiff_jax.head import ict_regions, ict_rig
from geodiff_jax.head import model as head_model
from geodiff_jax.io import obj

NUM_FILE_VERTICES = 26_719
KEPT: Int[np.ndarray, " v"] = np.r_[0:22_221, 23_021:23_791]
"""Vertices of the file that the head keeps, in the file's order.

Left out is what is meant to be seen through: fluid, blend, occlusion and lashes of the
eyes (24,591 on), for an opaque head would hide its eyes behind them. The eyeballs keep
their outer shell, on which the lids lie and an iris can be painted, and lose the inner
ones with their pupils. So 22,991 remain, and the shapes PupilDilate do nothing.
"""
METRES = 1e-2
EYES_BEFORE_ORIGIN = 0.069
"""Metres along z, as in the built-in head."""
RIG = 1
"""Raised when joints, weights or drivers change what parameters mean."""

_INNER_EYES = (slice(22_221, 23_021), slice(23_791, 24_591))
_NEUTRAL, _INDEX = "generic_neutral_mesh.obj", "vertex_indices.json"


@dataclasses.dataclass(frozen=True)
class _Files:
    """What stands in a folder; shapes are vertices, `KEPT` of them, centimetres."""

    neutral: obj.Mesh
    identities: dict[str, Float[np.ndarray, "v 3"]]
    expressions: dict[str, Float[np.ndarray, "v 3"]]
    marks: Int[np.ndarray, "68"]
    """Vertices of iBUG 68."""


def load(folder: str | os.PathLike) -> head_model.HeadModel:
    """The head of a FaceXModel folder, float32; a tenth of a second for each file.

    Identities are what `identity*.obj` there are, in order of their names, and may be a
    part of the 100; their files lie one standard deviation from the neutral.
    Expressions are the 53 that `vertex_indices.json` lists, under their names there:
    ARKit's without tongueOut, with browInnerUp and cheekPuff in a left and a right
    half. jawOpen, jawLeft and jawRight turn the jaw, and `expression_basis` keeps what
    a turn does not give, so that each expression alone at full strength is the file's
    shape. Together with jawOpen, others turn with the jaw instead of adding up; most
    of all mouthClose. The files' eyeLook shapes move lids alone: that they turn the
    eyeballs is ours.

    The version has the number of identities and a digest of all shapes, of their names
    and of `RIG`: folders with other shapes have other versions, wherever they lie.

    Raises:
      FileNotFoundError: the folder, or a file that it should hold, is not there.
      ValueError: a file does not hold what is expected of it.
    """
    files = _read(pathlib.Path(folder))
    rest = files.neutral.vertices[KEPT]
    origin = _origin(rest)
    template = (rest - origin) * METRES
    shapes = {n: (x - origin) * METRES for n, x in files.expressions.items()}
    identity_basis = (np.stack(list(files.identities.values())) - rest) * METRES
    rig = ict_rig.fit(template, shapes)
    basis = ict_rig.residuals(template, np.stack(list(shapes.values())), rig)
    names = tuple(shapes)
    blinks = [names.index("eyeBlink_L"), names.index("eyeBlink_R")]
    kept = np.isin(files.neutral.faces, KEPT).all(axis=1)
    faces = np.searchsorted(KEPT, files.neutral.faces[kept])
    chart = files.neutral.uv, files.neutral.uv_faces[kept]
    uv, uv_faces = ict_regions.packed_chart(*chart, faces)
    regions = ict_regions.regions(template, faces, *chart, files.marks)
    irises = (_irises(files.neutral.vertices) - origin) * METRES
    joint_moves = np.einsum("jv,ivk->ijk", rig.anchors, identity_basis)
    return head_model.HeadModel(
        template=_float32(template),
        identity_basis=_float32(identity_basis),
        expression_basis=_float32(basis),
        eyelid_basis=_float32(basis[blinks]),
        joint_template=_float32(rig.joints),
        joint_identity_basis=_float32(joint_moves),
        joint_drivers=_float32(rig.drivers),
        skinning_weights=_float32(rig.weights),
        faces=jnp.asarray(faces.astype(np.int32)),
        uv=_float32(uv),
        uv_faces=jnp.asarray(uv_faces.astype(np.int32)),
        landmarks=ict_regions.mark_embedding(template, faces, files.marks),
        irises=ict_regions.iris_embedding(template, faces, rig.joints[3:], irises),
        regions={name: jnp.asarray(mask) for name, mask in regions.items()},
        identity_names=tuple(files.identities),
        expression_names=names,
        version=_version(rest, files),
    )


def _read(folder: pathlib.Path) -> _Files:
    """Looks for every file before it reads the first shape."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected ICT-FaceKit's FaceXModel folder at {folder}, found none."
        )
    names, marks = _index(folder / _INDEX)
    identities = sorted(path.stem for path in folder.glob("identity*.obj"))
    if not identities:
        raise FileNotFoundError(
            f"Expected identity000.obj and so on in {folder}, found none."
        )
    for name in names:
        if not (folder / f"{name}.obj").is_file():
            raise FileNotFoundError(
                f"Expected {name}.obj in {folder}, as its {_INDEX} lists it, found "
                "none; download the whole folder."
            )
    neutral = obj.read(folder / _NEUTRAL)
    _check_count(neutral.vertices, folder / _NEUTRAL)
    if len(neutral.uv_faces) == 0:
        raise ValueError(
            f"Expected faces with a chart in {folder / _NEUTRAL}, found none."
        )
    return _Files(
        neutral,
        {name: _shape(folder, name) for name in identities},
        {name: _shape(folder, name) for name in names},
        marks,
    )


def _index(path: pathlib.Path) -> tuple[tuple[str, ...], Int[np.ndarray, "68"]]:
    """Names of the expressions and the vertices of iBUG 68."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file at {path}.") from None
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, got something else.") from error
    index = index if isinstance(index, dict) else {}
    names, marks = index.get("expressions"), index.get("idx_to_landmark_verts")
    if not (isinstance(names, list) and names and all(type(n) is str for n in names)):
        raise ValueError(f"Expected names under 'expressions' in {path}, found none.")
    missing = {*ict_rig.JAW_TURNS, "eyeBlink_L", "eyeBlink_R"} - set(names)
    if missing or len(set(names)) < len(names):
        raise ValueError(
            f"Expected {', '.join(sorted(missing)) or 'each name once'} among the "
            f"'expressions' of {path}, found {len(names)} names otherwise."
        )
    limit = ict_rig.FACE.stop
    if not (
        isinstance(marks, list)
        and len(marks) == 68
        and all(type(mark) is int and 0 <= mark < limit for mark in marks)
    ):
        raise ValueError(
            f"Expected 68 vertices of the face, below {limit}, under "
            f"'idx_to_landmark_verts' in {path}, found something else."
        )
    return tuple(names), np.array(marks)


def _shape(folder: pathlib.Path, name: str) -> Float[np.ndarray, "v 3"]:
    path = folder / f"{name}.obj"
    vertices = obj.read_vertices(path)
    _check_count(vertices, path)
    return vertices[KEPT]


def _check_count(vertices: Float[np.ndarray, "n 3"], path: pathlib.Path) -> None:
    if len(vertices) != NUM_FILE_VERTICES:
        raise ValueError(
            f"Expected the {NUM_FILE_VERTICES} vertices of ICT-FaceKit in {path}, "
            f"found {len(vertices)}."
        )


def _origin(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "3"]:
    """The head frame's origin in the file's frame, centimetres."""
    left, right = (ict_rig.sphere_centre(vertices[part]) for part in ict_rig.EYEBALLS)
    return 0.5 * (left + right) - np.array([0.0, 0.0, EYES_BEFORE_ORIGIN / METRES])


def _irises(vertices: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "2 3"]:
    """Middles of the inner eyeballs' irises, left then right: their foremost 2 mm."""
    inner = [vertices[part] for part in _INNER_EYES]
    front = [ball[ball[:, 2] > ball[:, 2].max() - 0.2] for ball in inner]
    return np.stack([iris.mean(axis=0) for iris in front])


def _version(rest: Float[np.ndarray, "v 3"], files: _Files) -> str:
    digest = hashlib.sha256(f"{RIG}".encode())
    for name, vertices in ({"": rest} | files.identities | files.expressions).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(vertices, "<f8").tobytes())
    return f"ict-{len(files.identities)}-{digest.hexdigest()[:8]}"


def _float32(values: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    # Cast in numpy: jax would compile a cast for every shape.
    return jnp.asarray(values.astype(np.float32))
