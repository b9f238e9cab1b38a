"""Pinhole cameras: OpenCV axes (x right, y down, z forward), pixel centres at +0.5.

Frames are in the names: `a_from_b @ b_from_c` is `a_from_c`. Pixels are measured
from the image's upper left corner, so the centre of the first pixel is (0.5, 0.5).
"""

import flax.struct
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float


@flax.struct.dataclass
class Camera:
    """One pinhole camera, or a batch with leading axes `*b`."""

    camera_from_world: jaxlie.SE3
    """Rigid transform, metres."""
    intrinsics: Float[Array, "*b 4"]
    """fx, fy, cx, cy in pixels."""
    width: int = flax.struct.field(pytree_node=False)
    height: int = flax.struct.field(pytree_node=False)

    @property
    def matrix(self) -> Float[Array, "*b 3 3"]:
        """The intrinsic matrix K."""
        fx, fy, cx, cy = jnp.moveaxis(self.intrinsics, -1, 0)
        zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
        rows = [(fx, zero, cx), (zero, fy, cy), (zero, zero, one)]
        return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)

    @property
    def position(self) -> Float[Array, "*b 3"]:
        """The camera's centre in the world, metres."""
        return self.camera_from_world.inverse().translation()

    def to_camera(self, points: Float[Array, "*b p 3"]) -> Float[Array, "*b p 3"]:
        """World points in this camera's frame, metres."""
        rotation = self.camera_from_world.rotation().as_matrix()
        translation = self.camera_from_world.translation()
        return points @ jnp.swapaxes(rotation, -1, -2) + translation[..., None, :]

    def project(
        self, points: Float[Array, "*b p 3"]
    ) -> tuple[Float[Array, "*b p 2"], Float[Array, "*b p"]]:
        """World points to (pixels, depth along z); pixels are void where depth <= 0."""
        local = self.to_camera(points)
        depth = local[..., 2]
        divisor = jnp.where(jnp.abs(depth) > 1e-9, depth, 1e-9)
        focal, centre = self.intrinsics[..., None, :2], self.intrinsics[..., None, 2:]
        return focal * local[..., :2] / divisor[..., None] + centre, depth

    def unproject(
        self, pixels: Float[Array, "*b p 2"], depth: Float[Array, "*b p"]
    ) -> Float[Array, "*b p 3"]:
        """World points at the given pixels and depths along z: inverts `project`."""
        focal, centre = self.intrinsics[..., None, :2], self.intrinsics[..., None, 2:]
        local = jnp.concatenate(
            [(pixels - centre) / focal * depth[..., None], depth[..., None]], axis=-1
        )
        world_from_camera = self.camera_from_world.inverse()
        rotation = world_from_camera.rotation().as_matrix()
        translation = world_from_camera.translation()
        return local @ jnp.swapaxes(rotation, -1, -2) + translation[..., None, :]

    def crop(self, *, left: float, top: float, width: int, height: int) -> "Camera":
        """The camera of the sub-image that starts at (left, top), in pixels."""
        shift = jnp.asarray([0.0, 0.0, left, top], self.intrinsics.dtype)
        return self.replace(
            intrinsics=self.intrinsics - shift, width=width, height=height
        )

    def resize(self, *, width: int, height: int) -> "Camera":
        """The camera of the image resampled to width x height."""
        sx, sy = width / self.width, height / self.height
        scale = jnp.asarray([sx, sy, sx, sy], self.intrinsics.dtype)
        return self.replace(
            intrinsics=self.intrinsics * scale, width=width, height=height
        )


def pinhole(
    *,
    focal: Float[Array, ""] | float,
    width: int,
    height: int,
    camera_from_world: jaxlie.SE3 | None = None,
) -> Camera:
    """Square pixels and a centred principal point; at the origin unless posed."""
    intrinsics = jnp.asarray([focal, focal, width / 2, height / 2], jnp.float32)
    pose = jaxlie.SE3.identity() if camera_from_world is None else camera_from_world
    return Camera(pose, intrinsics, width, height)


def orbit(
    camera: Camera,
    pivot: Float[Array, "3"],
    *,
    yaw_radians: Float[Array, ""] | float = 0.0,
    pitch_radians: Float[Array, ""] | float = 0.0,
) -> Camera:
    """Moves a camera round a world point at constant distance, in its own axes.

    Positive yaw carries the camera to the right of the image, positive pitch upwards.
    The pivot keeps its pixel and its depth.
    """
    rotation = jaxlie.SO3.from_x_radians(pitch_radians) @ jaxlie.SO3.from_y_radians(
        yaw_radians
    )
    local_pivot = camera.camera_from_world @ pivot
    about_pivot = jaxlie.SE3.from_rotation_and_translation(
        rotation, local_pivot - rotation @ local_pivot
    )
    return camera.replace(camera_from_world=about_pivot @ camera.camera_from_world)


def look_at(
    position: Float[Array, "3"],
    target: Float[Array, "3"],
    *,
    up: Float[Array, "3"],
    focal: Float[Array, ""] | float,
    width: int,
    height: int,
) -> Camera:
    """A camera at `position` that sees `target` in its centre, with `up` upwards."""
    forward = (target - position) / jnp.linalg.norm(target - position)
    right = jnp.cross(forward, up)
    right = right / jnp.linalg.norm(right)
    down = jnp.cross(forward, right)
    rotation = jaxlie.SO3.from_matrix(jnp.stack([right, down, forward]))
    pose = jaxlie.SE3.from_rotation_and_translation(rotation, -(rotation @ position))
    return pinhole(focal=focal, width=width, height=height, camera_from_world=pose)
