"""The same images by gsplat (Apache-2.0, PyTorch), to be timed beside ours on a GPU."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Step = Callable[[], Any]


def missing() -> str | None:
    """Why gsplat cannot be compared with here, and what mends it."""
    try:
        import gsplat  # noqa: F401
        import torch
    except Exception as error:  # What does not fit together raises much else.
        return f"{error}; install torch for CUDA and gsplat."
    return None if torch.cuda.is_available() else "torch finds no GPU."


def passes(scene: Sequence[jax.Array], *, size: int) -> dict[str, Step]:
    """What `splatting.passes` times, of the same name: the image, once it is there.

    All but the intrinsics, for which gsplat has none, gets gradients. Two libraries
    share the GPU's memory: run with XLA_PYTHON_CLIENT_PREALLOCATE=false.

    Args:
      scene: a `splatting.Scene`.
      size: of the image, pixels.
    """
    import gsplat
    import torch

    *gaussians, camera_from_world, intrinsics = scene

    def tensor(array: Any) -> Any:
        return torch.tensor(np.asarray(array), device="cuda")

    arrays = [tensor(x).requires_grad_() for x in gaussians]
    view = torch.eye(4, device="cuda")
    view[:3] = tensor(camera_from_world)
    view.requires_grad_()
    fx, fy, cx, cy = np.asarray(intrinsics)
    lens = tensor(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32))
    weights = torch.randn(size, size, arrays[4].shape[1], device="cuda")

    def render() -> tuple[Any, Any]:
        image, alpha, _ = gsplat.rasterization(
            *arrays, view[None], lens[None], size, size, packed=False
        )
        return image[0], alpha[0]

    def forward() -> Any:
        with torch.no_grad():
            image, _ = render()
        torch.cuda.synchronize()
        return image

    def both() -> Any:
        image, alpha = render()
        loss = (image * weights).sum() + alpha.sum()
        torch.autograd.grad(loss, [*arrays, view])
        torch.cuda.synchronize()
        return image.detach()

    return {"forward": forward, "forward_backward": both}
