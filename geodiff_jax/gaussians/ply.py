"""The .ply file of 3D Gaussian Splatting, which every splat viewer opens.

Binary little endian, one vertex per Gaussian: position, an unused normal, harmonics
(the constant ones, then the others channel by channel), opacity logit, log scales,
quaternion wxyz. Viewers take y as down, so the world must be one of OpenCV cameras.
"""

import os
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from geodiff_jax.gaussians import spherical_harmonics
from geodiff_jax.gaussians.model import Gaussians
from geodiff_jax.io import atomic

_LONGEST_HEADER = 65_536
_TYPES = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8"} | {
    "uchar": "u1",
    "uint8": "u1",
    "int": "<i4",
    "int32": "<i4",
}


def write_ply(
    path: str | os.PathLike, gaussians: Gaussians, *, comments: Sequence[str] = ()
) -> None:
    """Writes the living Gaussians; `comments` are lines of ASCII in the header."""
    alive = np.asarray(gaussians.alive)
    sh = np.asarray(gaussians.sh)[alive]
    means = np.asarray(gaussians.means)[alive]
    table = np.concatenate(
        [
            means,
            np.zeros_like(means),
            sh[:, 0],
            np.swapaxes(sh[:, 1:], 1, 2).reshape(len(sh), -1),
            np.asarray(gaussians.opacity_logits)[alive][:, None],
            np.asarray(gaussians.log_scales)[alive],
            np.asarray(gaussians.quaternions)[alive],
        ],
        axis=1,
    ).astype("<f4")
    if not np.isfinite(table).all():
        broken = int((~np.isfinite(table)).any(axis=1).sum())
        raise ValueError(
            f"Expected finite Gaussians for {path}, got {broken} with nan or infinite "
            "values; mark them as not alive first."
        )
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {_checked_comment(line)}" for line in comments]
    header += [f"element vertex {len(table)}"]
    header += [f"property float {name}" for name in _properties(sh.shape[1])]
    content = "\n".join([*header, "end_header", ""]).encode("ascii")
    atomic.write_bytes(path, content + table.tobytes())


def read_ply(path: str | os.PathLike) -> tuple[Gaussians, list[str]]:
    """Gaussians and comments of a file that this module or another 3DGS tool wrote."""
    content = pathlib.Path(path).read_bytes()
    count, properties, comments, start = _parse_header(content, path)
    dtype = np.dtype(properties)
    if len(content) - start != count * dtype.itemsize:
        raise ValueError(
            f"Expected {count * dtype.itemsize} bytes of Gaussians in {path}, got "
            f"{len(content) - start}; the file is cut short or damaged, copy it again."
        )
    table = np.frombuffer(content, dtype, count=count, offset=start)

    def columns(names: Sequence[str]) -> Float[np.ndarray, "n c"]:
        return np.stack([table[name] for name in names], axis=1).astype(np.float32)

    num_coefficients = 1 + sum(n.startswith("f_rest_") for n in dtype.names or ()) // 3
    missing = set(_properties(num_coefficients)) - {"nx", "ny", "nz"}
    missing -= set(dtype.names or ())
    if missing or num_coefficients not in spherical_harmonics.COEFFICIENTS:
        raise ValueError(
            f"Expected the properties of 3D Gaussian Splatting in {path}, got a file "
            f"without {', '.join(sorted(missing)) or 'a whole degree of f_rest'}; "
            "export it as an uncompressed 3DGS .ply first."
        )
    rest = columns([f"f_rest_{i}" for i in range(3 * num_coefficients - 3)] or ["x"])
    rest = rest[:, : 3 * num_coefficients - 3].reshape(count, 3, -1)
    constant = columns([f"f_dc_{i}" for i in range(3)])[:, None]
    gaussians = Gaussians(
        means=jnp.asarray(columns(["x", "y", "z"])),
        quaternions=jnp.asarray(columns([f"rot_{i}" for i in range(4)])),
        log_scales=jnp.asarray(columns([f"scale_{i}" for i in range(3)])),
        opacity_logits=jnp.asarray(columns(["opacity"])[:, 0]),
        sh=jnp.asarray(np.concatenate([constant, np.swapaxes(rest, 1, 2)], axis=1)),
        alive=jnp.ones(count, bool),
    )
    return gaussians, comments


def _properties(num_coefficients: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(3 * (num_coefficients - 1))),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def _checked_comment(line: str) -> str:
    if not line.isascii() or not line.isprintable():
        raise ValueError(
            f"Expected a comment of one printable ASCII line, got {line!r}; "
            "write other signs as escapes."
        )
    return line


def _parse_header(
    content: bytes, path: str | os.PathLike
) -> tuple[int, list[tuple[str, str]], list[str], int]:
    """Count, properties as numpy fields, comments, and where the numbers start."""
    end = content.find(b"end_header\n", 0, _LONGEST_HEADER)
    lines = content[: max(end, 0)].decode("ascii", errors="replace").splitlines()
    wanted = ["ply", "format binary_little_endian 1.0"]
    if end < 0 or lines[:2] != wanted:
        raise ValueError(
            f"Expected a binary little endian .ply at {path}, got something else; "
            "export it as an uncompressed 3DGS .ply first."
        )
    count, properties, comments = None, [], []
    for line in lines[2:]:
        match line.split():
            case ["comment" | "obj_info", *_]:
                comments.append(line.partition(" ")[2])
            case ["element", "vertex", number] if count is None and number.isdecimal():
                count = int(number)
            case ["property", kind, name] if count is not None and kind in _TYPES:
                properties.append((name, _TYPES[kind]))
            case _:
                raise ValueError(
                    f"Expected one list of vertices in {path}, got {line[:60]!r}; "
                    "export it as an uncompressed 3DGS .ply first."
                )
    names = [name for name, _ in properties]
    if not properties or len(set(names)) != len(names):
        raise ValueError(
            f"Expected named numbers for each vertex of {path}, got {names}; "
            "export it as an uncompressed 3DGS .ply first."
        )
    return count or 0, properties, comments, end + len(b"end_header\n")
