"""The head: identity and expression shapes over a skinned mesh.

Frame: x to the subject's left, y up, z out of the face, metres. Joints are
root, neck, jaw, left eye, right eye. Every source fills the same `HeadModel`;
nothing outside the source's own file may know which head it is.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geodiff_jax.head import lbs

JOINTS = ("root", "neck", "jaw", "left_eye", "right_eye")
PARENTS = (-1, 0, 1, 1, 1)


@flax.struct.dataclass
class LandmarkEmbedding:
    """Points on the surface, as (face, barycentric coordinates)."""

    faces: Int[Array, " k"]
    barycentrics: Float[Array, "k 3"]


@flax.struct.dataclass
class HeadModel:
    """Shapes, joints, topology and marks of a head."""

    template: Float[Array, "v 3"]
    """The mean head at rest: eyes open, mouth closed, metres."""
    identity_basis: Float[Array, "i v 3"]
    """Metres for one standard deviation of each identity coefficient."""
    expression_basis: Float[Array, "e v 3"]
    """Metres at full strength, without the part that the joints carry."""
    eyelid_basis: Float[Array, "2 v 3"]
    """Metres at full closure, left then right; see `eyelids_after_skinning`."""
    joint_template: Float[Array, "5 3"]
    """Rest positions of `JOINTS`, metres."""
    joint_identity_basis: Float[Array, "i 5 3"]
    """How identity moves the joints."""
    joint_drivers: Float[Array, "e 5 3"]
    """Axis-angle, radians, that each expression at full strength adds to `JOINTS`."""
    skinning_weights: Float[Array, "v 5"]
    """Share of each joint at each vertex; rows sum to one."""
    faces: Int[Array, "f 3"]
    uv: Float[Array, "u 2"]
    """Chart coordinates in [0, 1], v upwards."""
    uv_faces: Int[Array, "f 3"]
    """Corners of `faces` in the chart."""
    landmarks: LandmarkEmbedding
    """iBUG 68."""
    irises: LandmarkEmbedding
    """Centres of the irises, left then right."""
    regions: dict[str, Bool[Array, " v"]]
    """Vertex masks by name, see `REGIONS`."""
    identity_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    expression_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    version: str = flax.struct.field(pytree_node=False)
    """Source and revision; parameters of one version mean nothing to another."""
    joint_expression_basis: Float[Array, "e 5 3"] | None = None
    """How expressions move the joints' places; None where they do not."""
    pose_basis: Float[Array, "36 v 3"] | None = None
    """Metres for each element of (rotation - identity) of the joints after the root,
    row by row (FLAME, Eq. 3); None for heads without pose correctives."""
    eyelids_after_skinning: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether eyelids are added to the posed head, as trackers of FLAME do, or to the
    head at rest."""

    @property
    def num_vertices(self) -> int:
        """Number of vertices."""
        return self.template.shape[-2]


REGIONS = (
    "face",  # Skin in front of the ears, hairline to chin, without ears and neck.
    "forehead",
    "nose",
    "lips",
    "left_eye_region",
    "right_eye_region",
    "left_eyeball",
    "right_eyeball",
    "left_ear",
    "right_ear",
    "scalp",  # Where hair grows.
    "neck",
    "boundary",  # The lower ring of the neck, and what lies beyond it.
    "mouth_interior",  # Skin bag behind the lips.
    "upper_teeth",
    "lower_teeth",
    "tongue",
)


@flax.struct.dataclass
class HeadParams:
    """What animates a head; leading axes `*b` are frames."""

    identity: Float[Array, "*b i"]
    """Standard deviations."""
    expression: Float[Array, "*b e"]
    """Strengths, usually in [0, 1]."""
    eyelids: Float[Array, "*b 2"]
    """Closure in [0, 1], left then right."""
    neck: Float[Array, "*b 3"]
    """Axis-angle, radians, relative to the parent joint."""
    jaw: Float[Array, "*b 3"]
    eyes: Float[Array, "*b 2 3"]
    """Left then right."""
    rotation: Float[Array, "*b 3"]
    """World from head, axis-angle, radians, about the head frame's origin."""
    translation: Float[Array, "*b 3"]
    """Metres: where the head frame's origin lies in the world."""


def neutral(model: HeadModel, *, batch: tuple[int, ...] = ()) -> HeadParams:
    """The mean head at rest at the origin of the world, axes aligned."""
    dtype = model.template.dtype
    shapes = {
        "identity": (len(model.identity_names),),
        "expression": (len(model.expression_names),),
        "eyelids": (2,),
        "neck": (3,),
        "jaw": (3,),
        "eyes": (2, 3),
        "rotation": (3,),
        "translation": (3,),
    }
    return HeadParams(
        **{name: jnp.zeros(batch + shape, dtype) for name, shape in shapes.items()}
    )


def canonical(params: HeadParams) -> HeadParams:
    """The same person at rest at the origin: identity kept, all else zero."""
    zeroed = {
        name: jnp.zeros_like(value)
        for name, value in vars(params).items()
        if name != "identity"
    }
    return params.replace(**zeroed)


def rest_vertices(model: HeadModel, params: HeadParams) -> Float[Array, "*b v 3"]:
    """Vertices in the head frame before skinning, without pose correctives."""
    shaped = model.template + jnp.einsum(
        "...i,ivk->...vk", params.identity, model.identity_basis
    )
    shaped = shaped + jnp.einsum(
        "...e,evk->...vk", params.expression, model.expression_basis
    )
    return shaped if model.eyelids_after_skinning else shaped + _lids(model, params)


def head_vertices(model: HeadModel, params: HeadParams) -> Float[Array, "*b v 3"]:
    """Vertices in the head frame: shaped and skinned, but neither turned nor moved."""
    joints = model.joint_template + jnp.einsum(
        "...i,ijk->...jk", params.identity, model.joint_identity_basis
    )
    if model.joint_expression_basis is not None:
        joints = joints + jnp.einsum(
            "...e,ejk->...jk", params.expression, model.joint_expression_basis
        )
    root = jnp.zeros_like(params.neck)
    own = jnp.stack(
        [root, params.neck, params.jaw, params.eyes[..., 0, :], params.eyes[..., 1, :]],
        axis=-2,
    )
    driven = jnp.einsum("...e,ejk->...jk", params.expression, model.joint_drivers)
    local = lbs.rotation_matrices(own + driven)
    rest = rest_vertices(model, params)
    if model.pose_basis is not None:
        turned = local[..., 1:, :, :] - jnp.eye(3, dtype=local.dtype)
        turned = turned.reshape(*turned.shape[:-3], -1)
        rest = rest + jnp.einsum("...r,rvk->...vk", turned, model.pose_basis)
    rotations, translations = lbs.joint_transforms(local, joints, PARENTS)
    posed = lbs.skin(rest, model.skinning_weights, rotations, translations)
    return posed + _lids(model, params) if model.eyelids_after_skinning else posed


def vertices(model: HeadModel, params: HeadParams) -> Float[Array, "*b v 3"]:
    """Vertices in the world, metres."""
    rotation = lbs.rotation_matrices(params.rotation)
    posed = head_vertices(model, params)
    return (
        jnp.einsum("...kl,...vl->...vk", rotation, posed)
        + params.translation[..., None, :]
    )


def with_offsets(model: HeadModel, offsets: Float[Array, "v 3"]) -> HeadModel:
    """A head whose template is moved by per-vertex offsets in metres (head frame)."""
    return model.replace(template=model.template + offsets)


def _lids(model: HeadModel, params: HeadParams) -> Float[Array, "*b v 3"]:
    return jnp.einsum("...l,lvk->...vk", params.eyelids, model.eyelid_basis)


def face_region(model: HeadModel, *names: str) -> Bool[np.ndarray, " f"]:
    """Faces whose three corners all lie in the union of the named regions."""
    union = np.zeros(model.num_vertices, bool)
    for name in names:
        union |= np.asarray(model.regions[name])
    return union[np.asarray(model.faces)].all(axis=1)


def own_faces(model: HeadModel) -> Bool[np.ndarray, " f"]:
    """Faces of head and neck: all but those beyond the neck's lower ring."""
    return ~face_region(model, "boundary")
