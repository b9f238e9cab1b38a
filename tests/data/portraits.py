"""Frames of the built-in head, its normals as colours: quickly drawn, fitted exactly.

The head goes by FLAME's name, so that VHAP's files can hold its parameters.
"""

import functools

import av
import jax
import jax.numpy as jnp
import numpy as np

from geodiff_jax.data import framing
from geodiff_jax.geometry import camera as cameras
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.tracking import vhap

GREEN = np.array([0.1, 0.8, 0.2], np.float32)
"""The studio's wall."""


@functools.cache
def head():
    return procedural.load().replace(version=vhap.HEAD_VERSION)


def params(*, yaw=0.0, expression=0.3, identity=0.5):
    rest = head_model.neutral(head())
    return rest.replace(
        identity=rest.identity.at[0].set(identity),
        expression=rest.expression.at[2].set(expression),
        rotation=jnp.asarray([0.05, yaw, 0.0]),
        translation=jnp.asarray([0.01, 0.02, -0.01]),
    )


def camera(yaw=0.0, *, width=96, height=120, away=0.9):
    """A camera of a ring round the head's middle; the head takes half of its height."""
    eye = jnp.asarray([np.sin(yaw), 0.1, np.cos(yaw)]) * away
    target = jnp.asarray([0.0, 0.0, 0.0])
    up = jnp.asarray([0.0, 1.0, 0.0])
    return cameras.look_at(
        eye, target, up=up, focal=1.4 * height, width=width, height=height
    )


_draw = jax.jit(framing.draw_head)


def shot(params, camera, *, model=None):
    """(picture before the wall, matte, normals) of a whole frame."""
    normals, covered, _ = (
        np.asarray(x) for x in _draw(model or head(), params, camera)
    )
    matte = covered[..., None]
    return (0.5 + 0.5 * normals) * matte + (1.0 - matte) * GREEN, covered, normals


def write_exr(path, values):
    """Three channels of floats, as OpenEXR has them."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("exr", rate=1)
        stream.height, stream.width = values.shape[:2]
        stream.pix_fmt = "gbrpf32le"
        frame = av.VideoFrame.from_ndarray(np.float32(values), format="gbrpf32le")
        container.mux([*stream.encode(frame), *stream.encode()])
