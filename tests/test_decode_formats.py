"""Every format with every decoder: the frames are those of a full decode, or the decoder refuses."""

import subprocess
from functools import cache

import av
import ffmpeg
import numpy as np
import pytest
from PIL import Image

from fvlm.data.decode import fallback, pyav
from fvlm.data.decode.media import MediaError
from fvlm.data.decode.video import BACKENDS, DECODERS, decode_video
from tests.decode_cases import B_FRAMES, CASES, EXE, X264, X265, Case, Shown, block_means, full_decode, write

# Formats that decord cannot decode, or decodes wrongly: refused, so that the next decoder takes over.
DECORD_REFUSES = {
    "29.97 fps, open GOP, mkv": "open group of pictures",
    "open GOP": "open group of pictures",
    "intra refresh": "one by one",
    "hevc": "open group of pictures",
    "edit list": "one by one",
    "cut inside a group, mkv": "one by one",
    "av1": "libdav1d in mov",
    "av1, mkv": "libdav1d in matroska",
    "prores 4444": "prores in mov",
    "png in mov": "png in mov",
    **dict.fromkeys(["gif", "gif, transparent", "gif, one frame"], "gif in gif"),
    "mpeg4, B-frames": "mpeg4 in mov",
    **dict.fromkeys(["mpeg4, avi", "mpeg4, B-frames, avi", "mpeg4, packed, avi"], "mpeg4 in avi"),
    **dict.fromkeys(["mpeg4, dropped frames, avi"], "mpeg4 in avi"),
    **dict.fromkeys(["mjpeg, avi", "mjpeg, dropped frames, avi"], "mjpeg in avi"),
    **dict.fromkeys(["ts", "interlaced, ts", "cut inside a group, ts", "another size in mid-stream"], "in mpegts"),
    "mpeg2, mpg": "mpeg2video in mpeg",
    "flv": "h264 in flv",
    "raw h264": "h264 in h264",
}
# Formats whose packets do not describe their frames: all frames are decoded.
IN_ORDER = {
    *("intra refresh", "cut inside a group, mkv", "gif", "gif, transparent", "gif, one frame", "raw h264", "ts"),
    *("mpeg4, B-frames, avi", "mpeg4, packed, avi", "interlaced, ts", "mpeg2, mpg", "cut inside a group, ts"),
    "another size in mid-stream",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> the file and the result of its full decode; each is made once."""
    folder = tmp_path_factory.mktemp("formats")

    @cache
    def make(name: str):
        path = CASES[name].make(folder)
        return path, full_decode(path, CASES[name])

    return make


def assert_right(clip, shown: Shown, case: Case) -> None:
    """Each frame is nearest to the expected one of all frames, and near to it."""
    assert np.allclose(clip.times_s, shown.times_s, atol=2e-3)
    assert clip.duration_s == pytest.approx(shown.duration_s, abs=2e-3)
    for mean, wanted in zip(block_means(clip.frames), shown.chosen, strict=True):
        far = np.abs(shown.every - mean).mean((1, 2, 3))
        assert np.array_equal(shown.every[far.argmin()], shown.every[wanted]), (far.argmin(), wanted)
        assert far[wanted] < case.colours


@pytest.mark.parametrize("name", CASES)
def test_frames_equal_those_of_a_full_decode(made, name, monkeypatch):
    path, shown = made(name)
    planned = []
    in_order = pyav._decode_in_order
    monkeypatch.setattr(pyav, "_decode_in_order", lambda *arguments: planned.append(0) or in_order(*arguments))
    clip = decode_video(path)
    assert np.array_equal(clip.frames, np.stack([pyav.to_square(shown.frames[i]) for i in shown.chosen]))
    assert_right(clip, shown, CASES[name])
    assert bool(planned) == (name in IN_ORDER)


@pytest.mark.parametrize("name", CASES)
def test_ffmpeg_shows_the_same(made, name):
    path, shown = made(name)
    assert_right(fallback.decode_with_ffmpeg(path), shown, CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_decord_shows_the_same_or_refuses(made, name):
    pytest.importorskip("decord")
    path, shown = made(name)
    if name in DECORD_REFUSES:
        with pytest.raises(MediaError, match=DECORD_REFUSES[name]) as caught:
            fallback.decode_with_decord(path)
        assert caught.value.reason == "corrupt"
    else:
        assert_right(fallback.decode_with_decord(path), shown, CASES[name])
    assert_right(decode_video(path, backend="decord"), shown, CASES[name])


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_turned_video_is_shown_upright(made, degrees, backend):
    """Against the picture before it was turned; the sign as FFmpeg's `display_rotation` has it."""
    if backend == "decord":
        pytest.importorskip("decord")
    path, _ = made(f"turned {degrees}")
    with av.open(str(path)) as container:
        stored = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    upright = stored.rotate(degrees, expand=True)
    left, top = (upright.width - 240) // 2, (upright.height - 240) // 2
    expected = np.asarray(upright.crop((left, top, left + 240, top + 240)).resize((224, 224), Image.Resampling.BOX))
    difference = np.abs(block_means(DECODERS[backend](path).frames[:1]) - block_means(expected[None])).mean()
    assert difference < 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_squashed(made, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    path, shown = made("B-frames")
    frame = decode_video(path, backend, crop=False).frames[0]
    whole = Image.fromarray(shown.frames[0].to_ndarray(format="rgb24")).resize((224, 224), Image.Resampling.BOX)
    assert np.abs(block_means(frame[None]) - block_means(np.asarray(whole)[None])).mean() < 4


@pytest.mark.parametrize("encoder", [B_FRAMES, {**X265, "g": 20}, {"vcodec": "mpeg4", "bf": 0}])
def test_frames_that_are_wrongly_called_keyframes(tmp_path, encoder):
    """An MP4 that has lost its table of keyframes calls every frame one."""
    path = write(tmp_path / "a.mp4", "240x240", "25", 2.4, encoder)
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))
    shown = full_decode(path)
    for backend in BACKENDS:
        assert_right(decode_video(path, backend), shown, Case("", "", "", 0))


def test_a_very_long_picture_is_cropped_before_it_is_scaled(tmp_path):
    """Scaled to 224 on its short side it would have 300 million pixels."""
    path = write(tmp_path / "line.mp4", "12000x2", "5", 0.4, {**X264, "pix_fmt": "yuv444p"})
    for backend in BACKENDS:
        assert decode_video(path, backend).frames.shape == (1, 224, 224, 3)


def test_the_stream_that_is_shown_is_the_best_one(tmp_path):
    """The larger of two video streams, not a cover, with every decoder."""
    small = write(tmp_path / "small.mp4", "64x64", "10", 1, {**X264, "color_range": 1})
    large = write(tmp_path / "large.mp4", "320x240", "10", 1, X264)
    Image.new("RGB", (900, 900), "red").save(tmp_path / "cover.png")
    both, covered = tmp_path / "both.mp4", tmp_path / "covered.mp4"
    inputs = ["-i", small, "-i", large]
    options = ["-map", "0", "-map", "1", "-c", "copy"]
    subprocess.run([EXE, "-v", "error", *inputs, *options, both], check=True)
    inputs, options = ["-i", tmp_path / "cover.png", "-i", large], [*options, "-disposition:v:0", "attached_pic"]
    subprocess.run([EXE, "-v", "error", *inputs, *options, covered], check=True)
    shown = full_decode(large)
    for path in (both, covered):
        for backend in BACKENDS:
            assert_right(decode_video(path, backend), shown, Case("", "", "", 0))


def test_names_that_ffmpeg_takes_for_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("talk: part 1.mp4", "-y.mp4", "100%d.mp4", "a'b\\c.mp4", "concat:a|b.mp4", "é ü.mp4"):
        write(tmp_path / "a.mp4", "240x240", "10", 0.3, X264).rename(tmp_path / name)
        for backend in BACKENDS:
            assert len(decode_video(name, backend).frames) == 1, (name, backend)
            if backend != "decord":
                assert len(DECODERS[backend]((tmp_path / name).relative_to(tmp_path)).frames) == 1


def test_mirrored_video(tmp_path):
    path = write(tmp_path / "a.mp4", "320x240", "10", 0.3, X264)
    mirrored = tmp_path / "m.mp4"
    ffmpeg.input(str(path), display_hflip=None).output(str(mirrored), c="copy").run(cmd=EXE, quiet=True)
    plain = decode_video(path).frames[0]
    for backend in BACKENDS:
        shown = decode_video(mirrored, backend).frames[0]
        assert np.abs(block_means(shown[None]) - block_means(plain[None, :, ::-1])).mean() < 4, backend
