"""A dataset's calibrated cameras in the world of a fit that moved them.

Trackers turn and shift the world, which leaves the cameras' poses relative to each
other alone. So these tell whether calibration and fit speak of the same cameras in the
same convention: a pose read backwards, a flipped axis or another unit shows here.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float

from geodiff_jax.geometry.camera import Camera

LARGEST_TURN = 0.02
"""Of a camera against the others, radians (ours: text and float32 round by 1e-5)."""
LARGEST_SHIFT = 0.005
"""Metres (ours)."""
LARGEST_ZOOM = 0.02
"""Difference of focal lengths in widths of the picture, relative (ours)."""


@dataclasses.dataclass(frozen=True)
class Rig:
    """Cameras by name."""

    camera_from_world: Mapping[str, Float[np.ndarray, "4 4"]]
    """Rigid, metres, OpenCV axes."""
    intrinsics: Mapping[str, Float[np.ndarray, "4"]]
    """fx, fy, cx, cy in pixels of width x height."""
    width: int
    height: int

    def camera(self, name: str, *, width: int, height: int) -> Camera:
        """One of them, for pictures of this size."""
        camera = Camera(
            jaxlie.SE3.from_matrix(
                jnp.asarray(np.float32(self.camera_from_world[name]))
            ),
            jnp.asarray(np.float32(self.intrinsics[name])),
            self.width,
            self.height,
        )
        return camera.resize(width=width, height=height)


def in_world_of(rig: Rig, fitted: Camera, names: Sequence[str]) -> Rig:
    """The rig with the poses that it has in the world of `fitted`, views `names`.

    Raises:
      ValueError: no camera is in both, or the two contradict each other.
    """
    poses = np.asarray(fitted.camera_from_world.as_matrix(), np.float64)
    shared = [
        (i, name) for i, name in enumerate(names) if name in rig.camera_from_world
    ]
    if not shared:
        some = ", ".join(list(rig.camera_from_world)[:3])
        raise ValueError(
            f"Expected a fit of cameras such as {some}, got {', '.join(names)}; fit "
            "this recording."
        )
    moves = np.stack(
        [np.linalg.inv(poses[i]) @ rig.camera_from_world[name] for i, name in shared]
    )
    # Of each camera: how far the others' move takes it from where the fit has it.
    apart = np.linalg.inv(moves[0]) @ moves
    turn = np.arccos(
        np.clip((np.trace(apart[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)
    )
    centres = np.stack(
        [np.linalg.inv(rig.camera_from_world[name])[:3, 3] for _, name in shared]
    )
    moved = np.einsum("nij,nj->ni", apart[:, :3, :3], centres) + apart[:, :3, 3]
    shift = np.linalg.norm(moved - centres, axis=-1)
    if turn.max() > LARGEST_TURN or shift.max() > LARGEST_SHIFT:
        worst = shared[int(np.argmax(turn + shift))][1]
        raise ValueError(
            "Expected cameras that stand to each other as in the calibration, got "
            f"{worst} turned by {np.degrees(turn.max()):.1f} degrees and shifted by "
            f"{shift.max():.3f} m in the fit: check the direction of the poses (camera "
            "from world), their axes (OpenCV's) and their unit (metres)."
        )
    index, name = shared[0]
    own = rig.intrinsics[name][0] / rig.width
    seen = float(fitted.intrinsics[index, 0]) / fitted.width
    if abs(own / seen - 1.0) > LARGEST_ZOOM:
        raise ValueError(
            f"Expected the calibration's focal length of {own:.3f} widths of the "
            f"picture, got {seen:.3f} in the fit: check of which size the intrinsics "
            "are."
        )
    world_from_fit = np.linalg.inv(moves[0])
    return dataclasses.replace(
        rig,
        camera_from_world={
            name: pose @ world_from_fit for name, pose in rig.camera_from_world.items()
        },
    )
