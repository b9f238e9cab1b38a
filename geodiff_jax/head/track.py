"""A tracked head: what importers and trackers return, whatever they read."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.geometry.camera import Camera
from geodiff_jax.head import model as head_model


@flax.struct.dataclass
class Track:
    """Head parameters over frames, with the cameras that saw them."""

    params: head_model.HeadParams
    """Leading axis: frames."""
    cameras: Camera
    """Leading axis: views, the same for all frames; in the params' world."""
    frame_ids: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """Which frame of the recording each one is, ascending."""
    head_version: str = flax.struct.field(pytree_node=False)
    """`HeadModel.version` that gives the parameters their meaning."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.frame_ids)

    def frame(self, index: int) -> head_model.HeadParams:
        """Parameters of one frame, by its place in the track."""
        fields = {name: value[index] for name, value in vars(self.params).items()}
        return head_model.HeadParams(**fields)


def check(track: Track, model: head_model.HeadModel) -> None:
    """Raises ValueError where a track does not belong to a head, or to itself."""
    if track.head_version != model.version:
        raise ValueError(
            f"Expected a track of the head {model.version}, got one of "
            f"{track.head_version}; fit the recording again with this head."
        )
    for name, expected in vars(head_model.neutral(model)).items():
        shape = np.shape(getattr(track.params, name))
        if shape != (track.num_frames, *expected.shape):
            raise ValueError(
                f"Expected {name} of shape {(track.num_frames, *expected.shape)} in "
                f"the track, got {shape}; fit the recording again."
            )


def check_cameras(
    track: Track,
    model: head_model.HeadModel,
    *,
    least_share: float = 0.5,
    most_frames: int = 32,
) -> None:
    """Raises ValueError for a frame whose head no camera sees: wrong axes or units.

    A camera sees the head if `least_share` of its vertices lie in the image and before
    the camera (0.5 is ours). Looks at `most_frames` frames at most, evenly spread.
    """
    step = max(1, -(-track.num_frames // most_frames))
    params = jax.tree.map(lambda x: x[::step], track.params)
    points = head_model.vertices(model, params)
    views = track.cameras.intrinsics.shape[:1]
    size = (track.cameras.width, track.cameras.height)
    for index, alone in zip(track.frame_ids[::step], points, strict=True):
        posed = jnp.broadcast_to(alone, (*views, *alone.shape))
        pixels, depth = (np.asarray(x) for x in track.cameras.project(posed))
        before = depth > 0
        inside = before & np.all((pixels >= 0) & (pixels < size), axis=-1)
        share = inside.mean(axis=-1)
        if share.max() >= least_share:
            continue
        view = share.argmax()
        centre = np.median(np.asarray(track.cameras.to_camera(posed))[view], axis=0)
        if not np.isfinite(centre).all():
            raise ValueError(f"Expected finite parameters in frame {index}, got NaN.")
        place = "outside its image" if before[view].mean() > 0.5 else "behind it"
        raise ValueError(
            f"Expected a camera that sees the head in frame {index}; the head lies "
            f"{place} for camera {view}, at x, y, z = {centre.round(3).tolist()} "
            "metres: check axes, units and the direction of the poses."
        )
