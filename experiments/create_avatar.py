r"""One portrait in, one animatable Gaussian avatar out.

python -m experiments.create_avatar --image=photo.jpg --output_dir=out/me \
    --config=experiments/configs/avatar.py:preset=preview --consent=self

Without --image it takes scikit-image's portrait of the astronaut Eileen Collins;
without --head, the built-in one (experiments.prepare_head makes others ready). Writes
fit.json, fit_overlay.png, avatar/, avatar.ply, preview.mp4, contact_sheet.png and
report.json. A finished stage is not done again; what was written is never half a file.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_collections
import numpy as np
import skimage.data
from absl import app, flags, logging
from ml_collections import config_flags

from geodiff_jax import create, reporting
from geodiff_jax.avatar import export, preview
from geodiff_jax.avatar.model import Avatar
from geodiff_jax.head import files as head_files
from geodiff_jax.head import model as head_model
from geodiff_jax.head import procedural
from geodiff_jax.io import atomic, images, video
from geodiff_jax.tracking import files as track_files
from geodiff_jax.tracking import overlay

_IMAGE = flags.DEFINE_string("image", None, "The portrait; the astronaut by default.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where to write.", required=True)
_HEAD = flags.DEFINE_string(
    "head", None, "A head of experiments.prepare_head; the built-in one by default."
)
_LANDMARKS = flags.DEFINE_string(
    "landmarks", None, "Hand-corrected landmarks.json; wins over detection."
)
_CONSENT = flags.DEFINE_enum(
    "consent",
    None,
    reporting.CONSENTS,
    "On what ground this face may be used; stamped.",
)
_CONFIG = config_flags.DEFINE_config_file(
    "config", "experiments/configs/avatar.py:preset=preview"
)


@dataclasses.dataclass
class Run:
    """One output folder: its identity, and the seconds that each stage took."""

    folder: pathlib.Path
    identity: dict[str, Any]
    seconds: dict[str, float]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage and remembers it across runs."""
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 2)
        atomic.write_text(
            self.folder / "run.json",
            json.dumps({**self.identity, "seconds": self.seconds}, indent=1),
        )
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def main(argv: list[str]) -> None:
    """Runs every stage that is not yet finished."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = make_config(_CONFIG.value)
    with refused_at_the_door():
        photo = default_photo() if _IMAGE.value is None else None
        photo = photo or images.read_image(_IMAGE.value)
        head = (
            procedural.load() if _HEAD.value is None else head_files.load(_HEAD.value)
        )
        run = open_run(photo, head, config)
    print(announcement(photo, config), flush=True)
    with refused_at_the_door():
        tracked = track(run, photo, head, config)
        avatar = build(run, tracked, config)
        finish(run, tracked, avatar, config)


def track(
    run: Run,
    photo: images.Photo,
    head: head_model.HeadModel,
    config: create.CreateConfig,
) -> create.Tracked:
    """fit.json and fit_overlay.png: found again, or made."""
    if (run.folder / "fit.json").exists():
        fitted, detection = track_files.load(run.folder, head)
        return create.Tracked(photo, detection, fitted)
    with run.stage("track"):
        tracked = create.track(
            photo, head=head, landmarks_file=_LANDMARKS.value, config=config
        )
        picture = overlay.overlay(photo, tracked.detection, tracked.fit)
        images.write_png(run.folder / "fit_overlay.png", picture)
        track_files.save(run.folder, tracked.fit, tracked.detection)
    for warning in tracked.detection.warnings:
        print(f"note: {warning}", flush=True)
    return tracked


def build(run: Run, tracked: create.Tracked, config: create.CreateConfig) -> Avatar:
    """The avatar/ folder: found again, or made."""
    path = run.folder / "avatar"
    if path.exists():
        return export.load(path)
    with run.stage("avatar"):
        steps = config.reconstruction.steps
        with reporting.progress("Fitting Gaussians", steps) as advance:
            avatar = create.build(
                tracked, config=config, on_step=lambda step, losses: advance()
            )
        export.save(path, avatar, provenance=provenance(run))
    return avatar


def finish(
    run: Run,
    tracked: create.Tracked,
    avatar: Avatar,
    config: create.CreateConfig,
) -> None:
    """The files that people look at: avatar.ply, preview.mp4, sheet and report."""
    stamp = provenance(run)
    folder = run.folder
    if not (folder / "avatar.ply").exists():
        with run.stage("ply"):
            export.write_ply(folder / "avatar.ply", avatar, provenance=stamp)
    draw = preview.renderer()
    front = preview.front_camera(
        avatar.head, avatar.params, tracked.fit.camera, size=config.preview_size
    )
    if not (folder / "preview.mp4").exists():
        with run.stage("preview"):
            shots = preview.frames(avatar, front, fps=config.preview_fps)
            with reporting.progress("Rendering preview", len(shots)) as advance:
                pictures = (
                    np.asarray(draw(avatar, *shot)) for shot in _counted(shots, advance)
                )
                video.write_video(
                    folder / "preview.mp4",
                    pictures,
                    config.preview_fps,
                    metadata={**stamp, "comment": json.dumps(stamp)},
                )
    if not (folder / "contact_sheet.png").exists():
        with run.stage("sheet"):
            sheet = preview.contact_sheet(
                create.sheet_tiles(avatar, tracked, front), size=360, columns=4
            )
            images.write_png(folder / "contact_sheet.png", sheet)
    if not (folder / "report.json").exists():
        with run.stage("measure"):
            figures = create.measure(avatar, tracked)
        report = {
            **figures,
            "seconds": run.seconds,
            "peak_memory_mb": reporting.peak_memory_mb(),
            **provenance(run),
            **reporting.manifest(),
        }
        atomic.write_text(folder / "report.json", json.dumps(report, indent=1))
    print((folder / "report.json").read_text())


def open_run(
    photo: images.Photo, head: head_model.HeadModel, config: create.CreateConfig
) -> Run:
    """The output folder, made or resumed; ValueError if it holds another run."""
    folder = pathlib.Path(_OUTPUT_DIR.value)
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True)
    identity = {
        "photo_sha256": photo.sha256,
        "head": head.version,
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "consent": _CONSENT.value or ("public" if _IMAGE.value is None else "unstated"),
    }
    path = folder / "run.json"
    if not path.exists():
        atomic.write_text(path, json.dumps({**identity, "seconds": {}}, indent=1))
        return Run(folder, identity, {})
    try:
        known = json.loads(path.read_text())
        seconds = dict(known.pop("seconds"))
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is not a run's record any more; move it away to start anew."
        ) from None
    for name, value in identity.items():
        if known.get(name) != value:
            raise ValueError(
                f"{folder} holds a run with another {name} "
                f"({known.get(name)}, now {value}); choose another --output_dir."
            )
    return Run(folder, identity, seconds)


@contextlib.contextmanager
def refused_at_the_door() -> Iterator[None]:
    """Bad input, unwritable folders and damaged files: one sentence, exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            print(f"create_avatar: {error.strerror}", file=sys.stderr)
        else:
            print(f"create_avatar: {error}", file=sys.stderr)
        sys.exit(2)


def make_config(config: ml_collections.ConfigDict) -> create.CreateConfig:
    """The library's own settings from the launch's ConfigDict."""
    return _dataclass_of(create.CreateConfig, config.to_dict())


def default_photo() -> images.Photo:
    """scikit-image's portrait of Eileen Collins (NASA, public domain)."""
    return images.photo_from_array(skimage.data.astronaut())


def announcement(photo: images.Photo, config: create.CreateConfig) -> str:
    """What the run will cost, said before it starts."""
    estimate = create.estimate(config)
    return (
        f"Photo of {photo.width} x {photo.height} pixels. About "
        f"{estimate['minutes']:.0f} minutes and {estimate['memory_gb']:.1f} GB of "
        "memory on two cores; a stage that is finished is not done again."
    )


def provenance(run: Run) -> dict[str, str]:
    """What every output of a run carries."""
    return reporting.provenance(
        consent=run.identity["consent"], photo_sha256=run.identity["photo_sha256"]
    )


def _counted(items: Iterable[Any], advance: Callable[[], None]) -> Iterator[Any]:
    for item in items:
        yield item
        advance()


def _dataclass_of(kind: type, values: dict[str, Any]) -> Any:
    """A (nested) frozen dataclass from plain values."""
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            name: _dataclass_of(hints[name], value)
            if dataclasses.is_dataclass(hints[name])
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in values.items()
        }
    )


if __name__ == "__main__":
    app.run(main)
