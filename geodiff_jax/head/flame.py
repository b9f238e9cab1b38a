"""FLAME (Li et al. 2017): the head of most trackers; its files need registration.

Reads what https://flame.is.tue.mpg.de and the trackers hand out, as data: no pickle is
executed, and neither chumpy, scipy nor torch is needed. The head keeps FLAME's own
frame and vertices; mouth and teeth come after them.
"""

import collections
import dataclasses
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax.head import model as head_model
from geodiff_jax.head import mouth
from geodiff_jax.io import obj, pickles, torch_files

NUM_VERTICES, NUM_FACES = 5023, 9976
NUM_SHAPES, FIRST_EXPRESSION = 400, 300
NUM_POSE_ELEMENTS = 36
IRISES = (4051, 4597)
"""Middle vertex of each iris, left (x > 0) then right."""

UPPER_CHART = (0.20, 0.96, 0.48, 0.99)
"""Free in FLAME's chart, over the crown between the eyes: for the upper teeth."""
LOWER_CHART = (0.52, 0.96, 0.80, 0.99)


BUILT = ("mouth_interior", "upper_teeth", "lower_teeth", "tongue")
"""Regions that FLAME itself lacks; the tongue stays empty."""


@dataclasses.dataclass(frozen=True)
class Release:
    """What a file of FLAME is, told by its name: the arrays of all look the same."""

    file: str
    version: str
    num_identity: int = 300
    num_expressions: int = 100
    has_jaw: bool = True
    """Without, the expressions open the mouth, and the last of them is a blink."""


RELEASES = (
    Release("generic_model.pkl", "flame2020"),
    Release("flame2023.pkl", "flame2023"),
    # As CAP4D uses it (002; its released fits have 150 and 65 numbers).
    Release("flame2023_no_jaw.pkl", "flame2023_no_jaw", 150, 65, has_jaw=False),
)


def load(
    path: str | os.PathLike, *, version: str | None = None
) -> head_model.HeadModel:
    """FLAME from a folder of its files, or from its .pkl with the others beside it.

    Needs the model (see `RELEASES`), FLAME_masks.pkl, landmark_embedding.npy or
    landmark_embedding_with_eyes.npy, and head_template_mesh.obj, which has the chart.
    l_eyelid.npy and r_eyelid.npy are optional, blink_blendshape.npy is needed without
    jaw. `version` names the release where the file's name does not.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, holds something else, or it is not clear which
        release is meant.
    """
    file, release = _model_file(pathlib.Path(path), version)
    arrays = _arrays(file)
    folder = file.parent
    template = obj.read(_file(folder, "head_template_mesh.obj"))
    if not np.array_equal(template.faces, arrays["f"]) or not len(template.uv):
        raise ValueError(
            f"Expected the faces of {file.name} and a chart in head_template_mesh.obj "
            "beside it, got another mesh; take the one that belongs to FLAME."
        )
    expressions = slice(FIRST_EXPRESSION, FIRST_EXPRESSION + release.num_expressions)
    expression_basis = np.moveaxis(arrays["shapedirs"][..., expressions], -1, 0)
    names = [f"expression_{k:03d}" for k in range(release.num_expressions)]
    if not release.has_jaw:
        blink = _offsets(_file(folder, "blink_blendshape.npy"))
        expression_basis = np.concatenate([expression_basis[:-1], blink[None]])
        names[-1] = "blink"
    identity_basis = arrays["shapedirs"][..., : release.num_identity]
    identity_basis = np.moveaxis(identity_basis, -1, 0)
    joints = arrays["J_regressor"]
    embedding = _embedding(folder, len(template.faces))
    model = head_model.HeadModel(
        template=_float32(arrays["v_template"]),
        identity_basis=_float32(identity_basis),
        expression_basis=_float32(expression_basis),
        eyelid_basis=_float32(_eyelids(folder)),
        joint_template=_float32(joints @ arrays["v_template"]),
        joint_identity_basis=_float32(joints @ identity_basis),
        joint_drivers=jnp.zeros((len(names), 5, 3)),
        skinning_weights=_float32(arrays["weights"]),
        faces=_int32(template.faces),
        uv=_float32(template.uv),
        uv_faces=_int32(template.uv_faces),
        landmarks=embedding,
        irises=_irises(template.faces),
        regions=_regions(_file(folder, "FLAME_masks.pkl"), arrays["v_template"]),
        identity_names=tuple(f"identity_{k:03d}" for k in range(release.num_identity)),
        expression_names=tuple(names),
        version=release.version,
        joint_expression_basis=_float32(joints @ expression_basis),
        pose_basis=_float32(np.moveaxis(arrays["posedirs"], -1, 0)),
        eyelids_after_skinning=True,
    )
    return mouth.attach(
        model,
        upper_chart=UPPER_CHART,
        lower_chart=LOWER_CHART,
        jaw_follows_chin=not release.has_jaw,
    )


def _model_file(
    path: pathlib.Path, version: str | None
) -> tuple[pathlib.Path, Release]:
    known = ", ".join(release.version for release in RELEASES)
    wanted = [r for r in RELEASES if version in (None, r.version)]
    if not wanted:
        raise ValueError(f"Expected one of {known} as the version, got {version}.")
    if path.is_dir():
        found = [r for r in wanted if (path / r.file).is_file()]
        if len(found) != 1:
            files = ", ".join(r.file for r in found or wanted)
            raise ValueError(
                f"Expected one model of FLAME in {path}, "
                + (f"got {files}: name one of them." if found else f"no {files} there.")
            )
        return path / found[0].file, found[0]
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder at {path}.")
    named = [r for r in wanted if version == r.version or r.file == path.name]
    if not named:
        raise ValueError(
            f"Expected a version for {path.name}, whose name does not tell it; say "
            f"which of {known} it is."
        )
    told = [r.version for r in RELEASES if r.file == path.name]
    if told and told[0] != named[0].version:
        raise ValueError(
            f"Expected {named[0].version}, got {path.name}, which is {told[0]}."
        )
    return path, named[0]


def _file(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """The first of the names beside the model, or in a folder there."""
    for name in names:
        found = sorted(folder.rglob(name), key=lambda p: (len(p.parts), p))
        if found:
            return found[0]
    raise FileNotFoundError(
        f"There is no {' or '.join(names)} in {folder}, where the model of FLAME is."
    )


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    content = pickles.read(file)
    shapes = {
        "v_template": (NUM_VERTICES, 3),
        "f": (NUM_FACES, 3),
        "kintree_table": (2, 5),
        "weights": (NUM_VERTICES, 5),
        "J_regressor": (5, NUM_VERTICES),
        "posedirs": (NUM_VERTICES, 3, NUM_POSE_ELEMENTS),
        "shapedirs": (NUM_VERTICES, 3, NUM_SHAPES),
    }
    arrays = {}
    for name, shape in shapes.items():
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise ValueError(
                f"Expected FLAME's {name} in {file}, got "
                + (f"none among {_listed(content)}." if value is None else "no array.")
            )
        if value.shape != shape:
            raise ValueError(
                f"Expected {name} of shape {shape} in {file}, got {value.shape}; take "
                "FLAME 2020 or 2023 with all its shapes."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"Expected finite {name} in {file}, got NaN or infinity.")
        whole = name in ("f", "kintree_table")
        arrays[name] = value.astype(np.int64 if whole else np.float64)
    parents = arrays["kintree_table"][0, 1:].tolist()
    if parents != list(head_model.PARENTS[1:]):
        raise ValueError(f"Expected FLAME's joints in {file}, got parents {parents}.")
    return arrays


def _listed(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return ", ".join(sorted(str(name) for name in content)) or "nothing"


def _embedding(folder: pathlib.Path, num_faces: int) -> head_model.LandmarkEmbedding:
    """iBUG 68 at rest; what follows them in some files, like the irises, is cut."""
    file = _file(folder, "landmark_embedding_with_eyes.npy", "landmark_embedding.npy")
    content = torch_files.read(file)
    names = ("full_lmk_faces_idx", "full_lmk_bary_coords")
    stored = content if isinstance(content, dict) else {}
    if any(not isinstance(stored.get(name), np.ndarray) for name in names):
        raise ValueError(f"Expected {' and '.join(names)} in {file}.")
    faces, weights = (np.squeeze(stored[name]) for name in names)
    if faces.ndim != 1 or len(faces) < 68 or weights.shape != (len(faces), 3):
        raise ValueError(
            f"Expected at least 68 landmarks in {file}, got faces of shape "
            f"{faces.shape} and weights of shape {weights.shape}."
        )
    if not (
        0 <= faces.min() and faces.max() < num_faces and np.isfinite(weights).all()
    ):
        raise ValueError(f"Expected landmarks on FLAME's faces in {file}.")
    return head_model.LandmarkEmbedding(_int32(faces[:68]), _float32(weights[:68]))


def _irises(faces: Int[np.ndarray, "f 3"]) -> head_model.LandmarkEmbedding:
    around = [np.flatnonzero((faces == vertex).any(axis=1))[0] for vertex in IRISES]
    weights = faces[around] == np.array(IRISES)[:, None]
    return head_model.LandmarkEmbedding(_int32(np.array(around)), _float32(weights))


def _eyelids(folder: pathlib.Path) -> Float[np.ndarray, "2 v 3"]:
    try:
        files = [_file(folder, f"{side}_eyelid.npy") for side in "lr"]
    except FileNotFoundError:
        return np.zeros((2, NUM_VERTICES, 3))
    return np.stack([_offsets(file) for file in files])


def _offsets(file: pathlib.Path) -> Float[np.ndarray, "v 3"]:
    try:
        offsets = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"Expected an array in {file}, got something else.") from error
    if offsets.shape != (NUM_VERTICES, 3) or not np.isfinite(offsets).all():
        raise ValueError(
            f"Expected finite offsets of {NUM_VERTICES} vertices in {file}, got the "
            f"shape {offsets.shape}."
        )
    return offsets.astype(np.float64)


def _regions(
    file: pathlib.Path, template: Float[np.ndarray, "v 3"]
) -> dict[str, Bool[Array, " v"]]:
    """FLAME's own masks; sides go by x, since files differ in whose left they mean."""
    content = pickles.read(file)
    masks = collections.defaultdict(lambda: np.zeros(NUM_VERTICES, bool))
    for name in content if isinstance(content, dict) else ():
        vertices = np.asarray(content[name])
        if vertices.dtype.kind in "iu" and vertices.size:
            if vertices.min() < 0 or vertices.max() >= NUM_VERTICES:
                raise ValueError(f"Expected FLAME's vertices in {name} of {file}.")
            mask = np.zeros(NUM_VERTICES, bool)
            mask[vertices.ravel()] = True
            masks[_sided(str(name), float(template[mask, 0].mean()))] |= mask
    own = [n for n in head_model.REGIONS if n not in BUILT]
    missing = [name for name in own if name not in masks]
    if missing:
        raise ValueError(f"Expected the masks {', '.join(missing)} in {file}.")
    return {name: jnp.asarray(masks[name]) for name in head_model.REGIONS}


def _sided(name: str, x: float) -> str:
    for side in ("left_", "right_"):
        if name.startswith(side):
            return ("left_" if x > 0 else "right_") + name.removeprefix(side)
    return name


def _float32(values: np.ndarray) -> Float[Array, "..."]:
    return jnp.asarray(np.asarray(values, np.float32))


def _int32(values: np.ndarray) -> Int[Array, "..."]:
    return jnp.asarray(np.asarray(values, np.int32))
