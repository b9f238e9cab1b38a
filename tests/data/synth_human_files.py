"""A few samples in SynthHuman's layout, and their fits."""

import numpy as np
from PIL import Image

from geodiff_jax.tracking import detect, files, fit
from tests.data import portraits

SIZE = (88, 128)
"""SynthHuman's are 384 x 512."""
AXES = np.array([1.0, -1.0, -1.0])
"""Signs that the files' normals have against ours: not stated anywhere."""


def camera(number):
    return portraits.camera(0.2 * number, width=SIZE[0], height=SIZE[1])


def params(number):
    return portraits.params(yaw=0.1 * number, identity=0.3 * number)


def write_sample(folder, number):
    folder.mkdir(exist_ok=True)
    picture, matte, normals = portraits.shot(params(number), camera(number))
    name = f"{number:07d}"
    Image.fromarray(np.uint8(np.round(255 * picture))).save(folder / f"rgb_{name}.png")
    Image.fromarray(np.uint8(np.round(255 * matte))).save(folder / f"alpha_{name}.png")
    portraits.write_exr(folder / f"normal_{name}.exr", (normals * AXES)[..., ::-1])
    np.savetxt(folder / f"cam_{name}.txt", np.asarray(camera(number).matrix))


def fit_of(number):
    head = portraits.head()
    marks = np.zeros((68, 2), np.float32)
    return fit.Fit(
        head=head,
        params=params(number),
        camera=camera(number),
        offsets=np.zeros((head.num_vertices, 3), np.float32),
        found=marks,
        projected=marks,
        landmark_nme=0.0,
        landmark_nme_without_offsets=0.0,
        offsets_rms=0.0,
        offsets_max=0.0,
        yaw_radians=0.0,
    )


def write_fit(folder, number):
    detection = detect.Detection(
        box=np.zeros(4),
        ibug=np.zeros((68, 2)),
        irises=None,
        landmarks_478=None,
        matte=np.ones(SIZE[::-1], np.float32),
        landmarks_source="file",
        matte_source="alpha",
        degraded=False,
        warnings=(),
    )
    files.save(folder / f"{number:07d}", fit_of(number), detection)
