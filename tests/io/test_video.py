"""What is written can be read back, with its tags; what fails leaves nothing."""

import resource

import av
import numpy as np
import pytest

from geodiff_jax.io import video


def film(t: int = 6, h: int = 96, w: int = 128) -> np.ndarray:
    """Smooth colours that move: kind to a lossy codec."""
    y, x = np.mgrid[:h, :w] / max(h, w)
    phase = np.linspace(0, 1, t)[:, None, None]
    waves = [
        0.5 + 0.4 * np.sin(2 * np.pi * (x + phase) + k) * (1 - y) for k in range(3)
    ]
    return np.stack(waves, axis=-1).astype(np.float32)


def test_read_inverts_write(tmp_path):
    frames = film()
    video.write_video(tmp_path / "a.mp4", frames, 25)
    found, fps = video.read_video(tmp_path / "a.mp4")
    assert found.shape == frames.shape and found.dtype == np.float32
    assert fps == pytest.approx(25)
    # Half-resolution colour and crf 17: 40 dB on smooth content.
    assert np.mean((found - frames) ** 2) < 1e-4


def test_flat_colours_come_back_and_are_tagged(tmp_path):
    colours = np.array([[0.8, 0.2, 0.1], [0.1, 0.7, 0.3], [1, 1, 1]], np.float32)
    frames = np.broadcast_to(colours[:, None, None], (3, 32, 32, 3))
    video.write_video(tmp_path / "a.mp4", frames, 10)
    found, _ = video.read_video(tmp_path / "a.mp4")
    # Studio range keeps 219 levels, and the codec rounds once more.
    np.testing.assert_allclose(found, frames, atol=0.012)
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)


def test_fractional_rate_survives(tmp_path):
    video.write_video(tmp_path / "a.mp4", film(), 29.97)
    assert video.read_video(tmp_path / "a.mp4")[1] == pytest.approx(29.97, abs=1e-2)


def test_frames_may_come_from_a_generator(tmp_path):
    video.write_video(tmp_path / "a.mp4", (frame for frame in film()), 10)
    assert len(video.read_video(tmp_path / "a.mp4")[0]) == 6


def test_odd_sizes_are_padded_to_even_ones(tmp_path):
    frames = film(h=95, w=127)
    video.write_video(tmp_path / "a.mp4", frames, 10)
    found, _ = video.read_video(tmp_path / "a.mp4")
    assert found.shape == (6, 96, 128, 3)
    assert np.mean((found[:, :95, :127] - frames) ** 2) < 1e-4


def test_tags_survive(tmp_path):
    tags = {"comment": "synthetic media", "consent": "public", "photo_sha256": "ab12"}
    video.write_video(tmp_path / "a.mp4", film(), 10, metadata=tags)
    assert tags.items() <= video.read_metadata(tmp_path / "a.mp4").items()


def test_failing_generator_keeps_the_old_film(tmp_path):
    video.write_video(tmp_path / "a.mp4", film(), 10)
    before = (tmp_path / "a.mp4").read_bytes()

    def broken():
        yield from film()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        video.write_video(tmp_path / "a.mp4", broken(), 10)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_full_disk_is_one_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).random((12, 128, 128, 3), np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"^Cannot write .*"):
            video.write_video(tmp_path / "a.mp4", noise, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_unequal_or_missing_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got \(5, 4, 3\) at frame 1"):
        frames = [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))]
        video.write_video(tmp_path / "a.mp4", frames, 10)
    with pytest.raises(ValueError, match="at least one frame"):
        video.write_video(tmp_path / "a.mp4", [], 10)
    assert not list(tmp_path.iterdir())


def test_what_is_no_film_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(ValueError, match="Expected a film"):
        video.read_video(tmp_path / "text.mp4")
    with pytest.raises(FileNotFoundError, match="There is no film"):
        video.read_video(tmp_path / "missing.mp4")
