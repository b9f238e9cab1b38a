"""An inside for mouths that sources leave open: a bag behind the lips, and teeth.

Everything hangs on the head's own lips: new vertices are linear in those of the ring
where the skin ends and of the line where the lips meet, so they follow identity; upper
ones are fixed to the skull, lower ones to the jaw. All shares and lengths are ours,
lengths in widths of the mouth.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from geodiff_jax.head import model as head_model

Rectangle = tuple[float, float, float, float]
"""Least u and v, greatest u and v."""

BAG_DEPTH = (0.1, 0.3, 0.55, 0.75)
"""How far each ring of the bag lies behind the lips' own."""
BAG_SIZE = (1.0, 0.95, 0.7, 0.35)
BAG_REST = (0.4, 0.8, 1.0, 1.0)
"""How far each ring is fixed to skull and jaw, rather than carried by the lips."""
BAG_END = 0.8

TEETH_COLUMNS = 25
TEETH_SPAN = 0.9
"""Share of the line between the lips that has teeth behind it."""
UPPER_TEETH = ((0.17, -0.085), (-0.06, -0.075), (-0.06, -0.11), (0.17, -0.145))
"""Height over the line and place along z of root and edge in front, edge and root
behind."""
LOWER_TEETH = ((-0.19, -0.135), (-0.015, -0.125), (-0.015, -0.155), (-0.19, -0.195))
TEETH_BEND = -0.14
"""How much farther back the last teeth are than the lips before them."""


@flax.struct.dataclass
class _Part:
    """New vertices, linear in the head's own."""

    shape: Float[np.ndarray, "k v"]
    """Their place, but for `offsets`; identity acts through it too."""
    carried: Float[np.ndarray, "k v"]
    """How expressions and pose correctives act on them."""
    offsets: Float[np.ndarray, "k 3"]
    jaw: Float[np.ndarray, " k"]
    """Share of the jaw in what they are fixed to; the rest is the skull."""
    rest: Float[np.ndarray, " k"]
    """Share of that; what is left is as `carried` has it."""
    faces: Int[np.ndarray, "f 3"]
    """Negative numbers are the head's own vertices: -1 - index."""
    uv: Float[np.ndarray, "u 2"]
    uv_faces: Int[np.ndarray, "f 3"]
    """Negative numbers are the head's own chart points: -1 - index."""


def attach(
    model: head_model.HeadModel,
    *,
    upper_chart: Rectangle,
    lower_chart: Rectangle,
    jaw_follows_chin: bool = False,
) -> head_model.HeadModel:
    """The head with a bag behind its lips and two rows of teeth.

    The charts are free rectangles for the rows of teeth; the bag fills the hole of the
    mouth. `jaw_follows_chin` is for heads whose expressions open the mouth without a
    joint: then what is fixed to the jaw moves with the chin's landmarks.

    Raises:
      ValueError: there is no open ring behind the lips.
    """
    teeth = [
        _teeth(model, rows, chart)
        for rows, chart in ((UPPER_TEETH, upper_chart), (LOWER_TEETH, lower_chart))
    ]
    ring = _lip_ring(model)
    parts = {"mouth_interior": _bag(model, ring)}
    parts |= dict(zip(("upper_teeth", "lower_teeth"), teeth, strict=True))
    chin = _chin(model)
    for name, part in parts.items():
        if jaw_follows_chin:
            share = (part.rest * part.jaw)[:, None]
            part = part.replace(carried=part.carried + share * chin)
        model = _join(model, part, name)
    wet = np.zeros(model.num_vertices, bool)
    wet[ring] = True
    wet |= np.asarray(model.regions["mouth_interior"])
    wet &= ~np.asarray(model.regions["lips"])
    return model.replace(regions=model.regions | {"mouth_interior": jnp.asarray(wet)})


def open_loops(faces: Int[np.ndarray, "f 3"]) -> list[Int[np.ndarray, " n"]]:
    """Loops of edges that one face alone has, in the direction in which it has them."""
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    known = {(int(a), int(b)) for a, b in directed}
    after = {a: b for a, b in known if (b, a) not in known}
    loops = []
    while after:
        loop = [next(iter(after))]
        while loop[-1] in after:
            loop.append(after.pop(loop[-1]))
        loops.append(np.array(loop[:-1] if loop[0] == loop[-1] else loop))
    return loops


def _bag(model: head_model.HeadModel, ring: Int[np.ndarray, " n"]) -> _Part:
    template = np.asarray(model.template, np.float64)
    faces, uv_faces = np.asarray(model.faces), np.asarray(model.uv_faces)
    n, own = len(ring), np.eye(len(template))[ring]
    centre, width = own.mean(axis=0), _width(model)
    rows, offsets = [], []
    for depth, size in zip(BAG_DEPTH, BAG_SIZE, strict=True):
        rows.append(size * own + (1.0 - size) * centre)
        offsets.append(np.full(n, -depth * width))
    shape = np.concatenate([*rows, centre[None]])
    back = np.concatenate([*offsets, [-BAG_END * width]])
    height = template[ring, 1]
    low, high = height.min(), height.max()
    jaw = np.append(np.tile((high - height) / (high - low), len(rows)), 0.5)
    rest = np.append(np.repeat(BAG_REST, n), 1.0)
    # Rings of new vertices, and the head's own before them.
    grid = np.concatenate([-1 - ring[None], np.arange(len(rows) * n).reshape(-1, n)])
    after = np.roll(grid, -1, axis=1)
    quads = np.stack([after[:-1], grid[:-1], grid[1:], after[1:]], axis=-1)
    quads = quads.reshape(-1, 4)
    fan = np.stack([after[-1], grid[-1], np.full(n, len(shape) - 1)], axis=-1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]], fan])
    corner = [np.flatnonzero(faces.ravel() == vertex)[0] for vertex in ring]
    points = uv_faces.ravel()[corner]
    edge = np.asarray(model.uv, np.float64)[points]
    inwards = np.linspace(1.0, 0.0, len(rows) + 2)[1:-1]
    middle = edge.mean(axis=0)
    uv = np.concatenate(
        [*(middle + s * (edge - middle) for s in inwards), middle[None]]
    )
    # Its chart has the vertices' own layout; only the head's own points differ.
    own_points = dict(zip((-1 - ring).tolist(), (-1 - points).tolist(), strict=True))
    uv_triangles = np.array([own_points.get(k, k) for k in triangles.ravel().tolist()])
    return _Part(
        shape=shape,
        carried=shape * (1.0 - rest)[:, None],
        offsets=back[:, None] * np.array([0.0, 0.0, 1.0]),
        jaw=jaw,
        rest=rest,
        faces=triangles,
        uv=uv,
        uv_faces=uv_triangles.reshape(-1, 3),
    )


def _teeth(
    model: head_model.HeadModel,
    section: tuple[tuple[float, float], ...],
    chart: Rectangle,
) -> _Part:
    """One row: the section is drawn along the line where the lips meet."""
    share = np.linspace(-1.0, 1.0, TEETH_COLUMNS)
    line, width = _lip_line(model, TEETH_SPAN * share), _width(model)
    heights, depths = width * np.array(section).T
    back = depths[:, None] + width * TEETH_BEND * share**4
    offsets = np.zeros((len(section), TEETH_COLUMNS, 3))
    offsets[..., 1], offsets[..., 2] = heights[:, None], back
    # Teeth stand level, however the lips curve.
    level = _lip_line(model, np.linspace(-0.5, 0.5, 5)).mean(axis=0)
    template = np.asarray(model.template, np.float64)
    offsets[..., 1] += (level - line) @ template[:, 1]
    grid = np.arange(len(section) * TEETH_COLUMNS).reshape(len(section), -1)
    first, second = grid[:-1], grid[1:]
    quads = np.stack(
        [first[:, :-1], second[:, :-1], second[:, 1:], first[:, 1:]], axis=-1
    )
    ends = np.stack([grid[::-1, 0], grid[:, -1]])
    quads = np.concatenate([quads.reshape(-1, 4), ends])
    lower = heights[0] < heights[1]
    quads = quads[:, ::-1] if lower else quads
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    u, v = np.meshgrid(
        np.linspace(chart[0], chart[2], TEETH_COLUMNS),
        np.linspace(chart[3], chart[1], len(section)),
    )
    shape = np.tile(line, (len(section), 1))
    return _Part(
        shape=shape,
        carried=np.zeros_like(shape),
        offsets=offsets.reshape(-1, 3),
        jaw=np.full(len(shape), float(lower)),
        rest=np.ones(len(shape)),
        faces=triangles,
        uv=np.stack([u.ravel(), v.ravel()], axis=1),
        uv_faces=triangles,
    )


def _lip_ring(model: head_model.HeadModel) -> Int[np.ndarray, " n"]:
    template = np.asarray(model.template)
    marks = _marks(model) @ template
    loops = open_loops(np.asarray(model.faces))
    apart = [np.linalg.norm(template[x].mean(0) - marks.mean(0)) for x in loops]
    if not loops or min(apart) > _width(model):
        raise ValueError(
            f"Expected a head whose skin ends behind its lips, got {len(loops)} open "
            "loops, none of them there."
        )
    return loops[int(np.argmin(apart))]


def _marks(model: head_model.HeadModel) -> Float[np.ndarray, "8 v"]:
    """The inner lips' landmarks, iBUG 60 to 67, as weights of vertices."""
    weights = np.zeros((8, model.num_vertices))
    corners = np.asarray(model.faces)[np.asarray(model.landmarks.faces)[60:68]]
    barycentrics = np.asarray(model.landmarks.barycentrics)[60:68]
    np.put_along_axis(weights, corners, barycentrics, axis=1)
    return weights


def _width(model: head_model.HeadModel) -> float:
    """Of the mouth, metres: between its corners."""
    marks = _marks(model) @ np.asarray(model.template)
    return float(np.linalg.norm(marks[4] - marks[0]))


def _lip_line(
    model: head_model.HeadModel, share: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n v"]:
    """Points between the inner lips, as weights of vertices; share -1 is the right
    corner of the mouth, 1 the left."""
    marks = _marks(model)
    x = marks @ np.asarray(model.template)[:, 0]
    lines = []
    for order in ([0, 1, 2, 3, 4], [0, 7, 6, 5, 4]):  # Upper and lower, right to left.
        along = 2.0 * (x[order] - x[0]) / (x[4] - x[0]) - 1.0
        place = np.clip(np.searchsorted(along, share) - 1, 0, 3)
        way = (share - along[place]) / (along[place + 1] - along[place])
        start, end = marks[order][place], marks[order][place + 1]
        lines.append(start + way[:, None] * (end - start))
    return 0.5 * (lines[0] + lines[1])


def _join(
    model: head_model.HeadModel, part: _Part, region: str
) -> head_model.HeadModel:
    """The head with one more part; parts know the vertices before the first of them."""
    count, (added, bare) = model.num_vertices, part.shape.shape
    fixed = np.zeros((added, 5))
    fixed[:, head_model.JOINTS.index("neck")] = 1.0 - part.jaw
    fixed[:, head_model.JOINTS.index("jaw")] = part.jaw
    own = np.asarray(model.skinning_weights, np.float64)
    weights = part.rest[:, None] * fixed + (1.0 - part.rest)[:, None] * (
        part.shape @ own[:bare]
    )
    used = np.flatnonzero((part.shape != 0).any(axis=0) | part.carried.any(axis=0))

    def extend(
        basis: Array, weights_of_old: np.ndarray, offsets: np.ndarray | float = 0.0
    ) -> Array:
        old = np.asarray(basis, np.float64)
        new = weights_of_old[:, used] @ old[..., used, :] + offsets
        return _float32(np.concatenate([old, new], axis=-2))

    faces = np.where(part.faces < 0, -1 - part.faces, part.faces + count)
    points = len(model.uv)
    uv_faces = np.where(part.uv_faces < 0, -1 - part.uv_faces, part.uv_faces + points)
    none = np.zeros(added, bool)
    return model.replace(
        template=extend(model.template, part.shape, part.offsets),
        identity_basis=extend(model.identity_basis, part.shape),
        expression_basis=extend(model.expression_basis, part.carried),
        eyelid_basis=extend(model.eyelid_basis, np.zeros_like(part.shape)),
        pose_basis=None
        if model.pose_basis is None
        else extend(model.pose_basis, part.carried),
        skinning_weights=_float32(np.concatenate([own, weights])),
        faces=jnp.asarray(np.concatenate([model.faces, faces]).astype(np.int32)),
        uv=_float32(np.concatenate([model.uv, part.uv])),
        uv_faces=jnp.asarray(
            np.concatenate([model.uv_faces, uv_faces]).astype(np.int32)
        ),
        regions={
            name: jnp.asarray(np.concatenate([mask, ~none if name == region else none]))
            for name, mask in model.regions.items()
        },
    )


def _chin(model: head_model.HeadModel) -> Float[np.ndarray, " v"]:
    """The mean of iBUG 7 to 9, as weights of vertices."""
    faces = np.asarray(model.faces)[np.asarray(model.landmarks.faces)[7:10]]
    weights = np.zeros(model.num_vertices)
    np.add.at(weights, faces, np.asarray(model.landmarks.barycentrics)[7:10] / 3.0)
    return weights


def _float32(values: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(np.asarray(values, np.float32))
