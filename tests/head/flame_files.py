"""FLAME's files as they are handed out: its real topology, shapes of random numbers."""

import pathlib
import pickle
import shutil
import sys
import types
from unittest import mock

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg

from geodiff_jax.geometry import mesh as mesh_topology
from geodiff_jax.head import mouth
from geodiff_jax.io import obj
from tests.conftest import shared_data

JOINTS = np.array(
    [[0, -0.15, -0.04], [0, -0.07, -0.03], [0, -0.01, 0.0], [0.031, 0.025, 0.039]]
    + [[-0.031, 0.025, 0.039]]
)
ASSETS = (
    "head_template_mesh.obj",
    "landmark_embedding_with_eyes.npy",
    "l_eyelid.npy",
    "r_eyelid.npy",
    "blink_blendshape.npy",
)
SIDES_SWAPPED = {"left_eyeball": "right_eyeball", "right_eyeball": "left_eyeball"}


class Ch:
    """Pickles as chumpy's arrays do."""

    def __init__(self, x):
        self.x = x
        self._dirty_vars = set()


Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """What the model's pickle holds, but for its layout."""
    rng = np.random.default_rng(seed)
    mesh = obj.read(shared_data("flame_topology/head_template_mesh.obj"))
    template = mesh.vertices - [0.0, 1.5, 0.0]
    x, y, z = template.T
    jaw = jaw_share(template, mesh.faces)
    neck = np.clip((y + 0.15) / 0.05, 0, 1)
    weights = np.stack([1 - neck, neck * (1 - jaw), neck * jaw, 0 * x, 0 * x], axis=1)
    for joint, part in ((3, slice(3931, 4477)), (4, slice(4477, 5023))):
        joint = 3 if template[part, 0].mean() > 0 else 4
        weights[part] = np.eye(5)[joint]
    regressor = np.zeros((5, len(template)))
    for row, joint in zip(regressor, JOINTS, strict=True):
        near = np.argsort(np.linalg.norm(template - joint, axis=1))[:40]
        # Weights that sum to one and give the joint's place exactly.
        system = np.vstack([template[near].T, np.ones(40)])
        row[near] = np.linalg.lstsq(system, np.append(joint, 1.0), rcond=None)[0]
    # Waves as long as a head, so that shapes are smooth.
    waves = rng.normal(scale=20.0, size=(3, 3, 400))
    phases = rng.uniform(0, 2 * np.pi, size=(3, 400))
    shapes = np.sin(np.tensordot(template, waves, 1) + phases)
    poses = np.sin(30.0 * template[:, :, None] + rng.uniform(0, 6, 36))
    poses[3931:] = 0.0  # Eyeballs keep their shape.
    return {
        "v_template": template,
        "f": mesh.faces.astype(np.uint32),
        # Half the size of the real one's numbers, for speed.
        "shapedirs": (2e-3 * shapes / (1.0 + np.arange(400) % 300)).astype(np.float32),
        "posedirs": 1e-3 * poses,
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], range(5)]),
    }


def jaw_share(template: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Harmonic over the skin: 1 on the chin and the lower lip's inner end, 0 on the
    upper's, the nose, the neck and behind."""
    x, y, z = template.T
    loops = mouth.open_loops(faces)
    lips = loops[int(np.argmax([y[loop].mean() for loop in loops]))]
    share = np.full(len(template), np.nan)
    share[(y > -0.02) | (z < 0.0) | (y < -0.1)] = 0.0
    share[(np.abs(x) < 0.02) & (y < -0.065) & (y > -0.09) & (z > 0.03)] = 1.0
    share[lips] = (y[lips] < y[lips].mean()).astype(float)
    edges = mesh_topology.edges(faces)
    weights = np.ones(len(edges))
    graph = scipy.sparse.coo_matrix((weights, edges.T), shape=[len(template)] * 2)
    laplacian = scipy.sparse.csgraph.laplacian(graph + graph.T).tocsr()
    free, known = np.isnan(share), ~np.isnan(share)
    pull = -laplacian[free][:, known] @ share[known]
    share[free] = scipy.sparse.linalg.spsolve(laplacian[free][:, free], pull)
    steep = np.clip(2.0 * share - 0.5, 0.0, 1.0)
    return steep**2 * (3.0 - 2.0 * steep)


def masks() -> dict[str, np.ndarray]:
    """FLAME_masks.pkl's vertices, from the regions of the chart."""
    mesh = obj.read(shared_data("flame_topology/head_template_mesh.obj"))
    stored = np.load(shared_data("flame_topology/uv_masks.npz"))
    point = np.zeros(len(mesh.vertices), int)
    point[mesh.faces.ravel()] = mesh.uv_faces.ravel()
    u, v = mesh.uv[point].T
    column, row = (2048 * u).astype(int), (2048 * (1 - v)).astype(int)
    names = ["face", "forehead", "nose", "lips", "scalp", "neck", "boundary"]
    names += [f"{s}_{k}" for s in ("left", "right") for k in ("eye_region", "ear")]
    names += ["left_eyeball", "right_eyeball"]
    return {
        # Some files mean the viewer's left.
        SIDES_SWAPPED.get(name, name): np.flatnonzero(stored[name][row, column])
        for name in names
    }


def write(folder: pathlib.Path, *, name: str, content: dict | None = None) -> None:
    """A folder as users have it; arrays lie as FLAME 2020 has them."""
    for asset in ASSETS:
        shutil.copy(shared_data(f"flame_topology/{asset}"), folder / asset)
    (folder / "FLAME_masks.pkl").write_bytes(pickle.dumps(masks(), protocol=2))
    write_model(folder / name, arrays() if content is None else content)


def write_model(file: pathlib.Path, content: dict) -> None:
    """Chumpy's arrays, scipy's sparse matrix, Python 2's protocol."""
    layouts = dict.fromkeys(("v_template", "shapedirs", "posedirs"), Ch)
    layouts["J_regressor"] = scipy.sparse.csc_matrix
    stored = {key: layouts.get(key, np.asarray)(x) for key, x in content.items()}
    stored |= {"bs_style": "lbs", "bs_type": "lrotmin"}
    modules = {name: types.ModuleType(name) for name in ("chumpy", "chumpy.ch")}
    modules["chumpy.ch"].Ch = Ch
    with mock.patch.dict(sys.modules, modules):
        file.write_bytes(pickle.dumps(stored, protocol=2))
