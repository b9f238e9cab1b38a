"""Pictures as a pinhole sees them: OpenCV's radial and tangential distortion undone."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage


def distort(
    points: Float[np.ndarray, "*b 2"], coefficients: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "*b 2"]:
    """Where a lens puts what a pinhole has at (x / z, y / z).

    Coefficients are k1, k2, p1, p2 and, if there is a fifth, k3 (OpenCV's order).
    """
    k1, k2, p1, p2, k3 = [*coefficients, 0.0][:5]
    x, y = points[..., 0], points[..., 1]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x),
            y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y,
        ],
        axis=-1,
    )


def undistort(
    picture: Float[np.ndarray, "h w c"],
    intrinsics: Float[np.ndarray, "4"],
    coefficients: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "h w c"]:
    """The picture that a pinhole with the same fx, fy, cx, cy would have taken.

    Bilinear; what the lens did not see repeats the picture's edge.
    """
    if not np.any(coefficients):
        return picture
    height, width = picture.shape[:2]
    focal, centre = intrinsics[:2], intrinsics[2:]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    straight = (np.stack([x, y], axis=-1) - centre) / focal
    source = distort(straight, coefficients) * focal + centre - 0.5
    grid = [source[..., 1], source[..., 0]]
    channels = [
        ndimage.map_coordinates(picture[..., c], grid, order=1, mode="nearest")
        for c in range(picture.shape[-1])
    ]
    return np.stack(channels, axis=-1)
