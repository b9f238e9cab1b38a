"""Captures as VHAP exports them, with pictures laid on white by their masks."""

import json

import numpy as np
from PIL import Image

from geodiff_jax.tracking import vhap
from tests.data import nersemble_files, portraits


def write_capture(folder, *, alpha=False, inverted=False):
    """A fit's pictures; `alpha` keeps masks in them, `inverted` turns the poses."""
    track = nersemble_files.track()
    vhap.write(folder, track, portraits.head())
    for name in ("images", "fg_masks"):
        (folder / name).mkdir()
    for view in range(len(nersemble_files.SERIALS)):
        for time in range(track.num_frames):
            shot = portraits.shot(
                nersemble_files.params(time), nersemble_files.camera(view)
            )
            _write_picture(folder, f"{time:05d}_{view:02d}.png", *shot[:2], alpha=alpha)
    if inverted:
        for file in folder.glob("transforms*.json"):
            content = json.loads(file.read_text())
            for frame in content["frames"]:
                pose = np.linalg.inv(frame["transform_matrix"])
                frame["transform_matrix"] = pose.tolist()
            file.write_text(json.dumps(content))


def _write_picture(folder, name, picture, matte, *, alpha):
    share = np.uint8(np.round(255 * matte))
    if alpha:
        rgba = np.dstack([np.uint8(np.round(255 * picture)), share])
        Image.fromarray(rgba).save(folder / "images" / name)
        return
    white = picture * matte[..., None] + 1.0 - matte[..., None]
    Image.fromarray(np.uint8(np.round(255 * white))).save(folder / "images" / name)
    Image.fromarray(share).save(folder / "fg_masks" / name)
