"""A person in Ava-256's layout: two cameras, linear AVIFs in archives, one dropped."""

import csv
import io
import json
import zipfile

import jax.numpy as jnp
import numpy as np
from PIL import Image

from geodiff_jax.appearance import lighting
from geodiff_jax.data import ava256, lenses
from tests.data import nersemble_files, portraits

CAMERAS = ("cam401031", "cam402873")
SEGMENT = "EXP_free_face"
FRAME_IDS = (1012, 1040)
DISTORTION = np.array([0.06, -0.02, 0.002, 0.001])


def write(folder, subject, *, unit=1000.0, dropped=False):
    """`unit` is how many of its lengths make a metre; one frame may be `dropped`."""
    decoder = folder / f"20210810--1306--{subject}" / "decoder"
    for name in ("image", "segmentation_parts"):
        (decoder / name).mkdir(parents=True)
    entries = []
    for view, camera in enumerate(CAMERAS):
        full = nersemble_files.camera(view).resize(
            width=ava256.CALIBRATED[0], height=ava256.CALIBRATED[1]
        )
        studio = nersemble_files.STUDIO_FROM_FIT.inverse()
        pose = np.asarray((full.camera_from_world @ studio).as_matrix(), np.float64)
        pose[:3, 3] *= unit
        entries.append(
            {
                "cameraId": camera,
                "K": np.asarray(full.matrix).T.tolist(),
                "T": pose[:3].T.tolist(),
                "distortion": DISTORTION.tolist(),
            }
        )
        _write_archives(decoder, view, camera, dropped and view == 0)
    content = json.dumps({"KRT": entries})
    (decoder / "camera_calibration.json").write_text(content)
    with (decoder / "frame_list.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["seg_id", "frame_id"])
        rows.writerows([[SEGMENT, frame] for frame in FRAME_IDS])


def _write_archives(decoder, view, camera, dropped):
    lens = np.asarray(nersemble_files.camera(view).intrinsics, np.float64)
    archives = [decoder / x / f"{camera}.zip" for x in ("image", "segmentation_parts")]
    with (
        zipfile.ZipFile(archives[0], "w") as pictures,
        zipfile.ZipFile(archives[1], "w") as labels,
    ):
        for place, frame in enumerate(FRAME_IDS):
            shot = portraits.shot(
                nersemble_files.params(place), nersemble_files.camera(view)
            )
            bent = lenses.undistort(np.dstack(shot[:2]), lens, -DISTORTION)
            linear = lighting.linear_from_srgb(jnp.asarray(bent[..., :3]))
            if not (dropped and place == 1):
                name = f"{camera}/{frame:06d}.avif"
                options = {"quality": 100, "subsampling": "4:4:4"}
                pictures.writestr(name, _encoded(255 * linear, "AVIF", **options))
            # A body before a chair.
            parts = np.where(bent[..., 3] > 0.5, 2, ava256.CHAIR)
            labels.writestr(f"{camera}/{frame:06d}.png", _encoded(parts, "PNG"))


def _encoded(pixels, kind, **options):
    stream = io.BytesIO()
    eight = np.uint8(np.round(np.asarray(pixels)))
    Image.fromarray(eight).save(stream, format=kind, **options)
    return stream.getvalue()


def write_fit(folder, subject):
    """As VHAP exports a segment."""
    path = nersemble_files.write_fit(folder, subject, cameras=CAMERAS)
    target = folder / subject / SEGMENT
    target.parent.mkdir(parents=True)
    path.rename(target)
