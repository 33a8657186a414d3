"""Decoding: the frames are those of a full decode by presentation time, and bad files say why."""

import csv
import json
import os
from pathlib import Path

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from fvlm.data import fallback, pyav
from fvlm.data.media import MediaError, schedule
from fvlm.data.video import BACKENDS, decode_image, decode_video

EXE = imageio_ffmpeg.get_ffmpeg_exe()
X264 = {"vcodec": "libx264", "preset": "ultrafast"}
OPEN_GOP = {"bf": 2, "g": 25, "x264-params": "open-gop=1"}
# name: (file name, size, rate, seconds, encoder options); testsrc2 changes with every frame
CLIPS = {
    "h264 with B-frames": ("a.mp4", "320x240", "30", 3.4, {**X264, "bf": 3, "g": 40, "b_strategy": 0}),
    "h264 open GOP": ("b.mkv", "240x320", "30000/1001", 4.2, {**X264, **OPEN_GOP}),
    "hevc": ("c.mp4", "240x240", "25", 2.6, {"vcodec": "libx265", "preset": "ultrafast", "g": 20}),
    "vp9": ("d.webm", "256x240", "24000/1001", 2.5, {"vcodec": "libvpx-vp9", "cpu-used": 8}),
    "av1": ("e.mp4", "240x240", "24", 2.2, {"vcodec": "libsvtav1", "preset": 13}),
    "mpeg4 in avi": ("f.avi", "320x240", "25", 2.6, {"vcodec": "mpeg4"}),
    "mpeg-ts": ("g.ts", "320x240", "25", 2.6, {**X264, "bf": 2}),
    "mjpeg, 60 fps": ("h.mkv", "320x240", "60", 1.5, {"vcodec": "mjpeg"}),
    "under a second": ("i.mp4", "320x180", "30", 0.3, X264),
    "longer than 64 s": ("j.mp4", "240x180", "10", 70.5, {**X264, "bf": 2, "g": 50}),
    "starts at 1.7 s": ("k.mkv", "240x240", "30", 2.5, {**X264, "bf": 2, "output_ts_offset": 1.7}),
}


def write(path: Path, size: str, rate: str, seconds: float, options: dict, filters: tuple = ()) -> Path:
    video = ffmpeg.input(f"testsrc2=size={size}:rate={rate}:duration={seconds}", f="lavfi").video
    for name, argument in filters:
        video = video.filter(name, argument)
    options = {"pix_fmt": "yuv420p", "threads": 1, **options}
    video.output(str(path), **options).run(cmd=EXE, quiet=True, overwrite_output=True)
    return path


def full_decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every frame with its time, by the plainest means; the expected frames by a search over all of them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        unit_s, rate = float(stream.time_base), float(stream.average_rate)
        counted = container.format.name == "avi"
        times_s = [i / rate if counted else (f.pts - frames[0].pts) * unit_s for i, f in enumerate(frames)]
        last_s = frames[-1].duration * unit_s if frames[-1].duration and not counted else times_s[1]
    duration_s = times_s[-1] + last_s
    count = 1
    while count < duration_s - 1e-6:
        count += 1
    wanted_s = [float(t) for t in range(count)] if duration_s <= 64 else [i * duration_s / 64 for i in range(64)]
    chosen = [max(i for i, t in enumerate(times_s) if t <= wanted + 1e-6) for wanted in wanted_s]
    return np.stack([pyav.to_square(frames[i]) for i in chosen]), np.array(wanted_s)


def block_means(frames: np.ndarray) -> np.ndarray:
    """(T, 16, 16, 3) means of 14 x 14 pixels."""
    return frames.reshape(-1, 16, 14, 16, 14, 3).mean((2, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_those_of_a_full_decode(name, folder):
    file, *rest = CLIPS[name]
    path = write(folder / file, *rest)
    frames, times_s = full_decode(path)
    clip = decode_video(path)
    assert np.allclose(clip.times_s, times_s)
    assert np.array_equal(clip.frames, frames)


def test_variable_rate_with_a_gap_repeats_what_is_shown(folder):
    drop = (("select", "not(between(t,0.9,2.4))*lt(mod(n,7),4)"),)
    path = write(folder / "vfr.mp4", "240x240", "30", 4, {**X264, "bf": 2, "fps_mode": "vfr"}, drop)
    frames, _ = full_decode(path)
    clip = decode_video(path)
    assert np.array_equal(clip.frames, frames)
    assert np.array_equal(clip.frames[1], clip.frames[2])  # nothing new between 0.9 s and 2.4 s


@pytest.mark.parametrize("held", [1 << 30, 0])
def test_plan_decodes_fewer_packets(folder, monkeypatch, held):
    path = write(folder / "plan.mp4", "320x240", "30", 4, {**X264, "bf": 3, "b_strategy": 0, "g": 45})
    monkeypatch.setattr(pyav, "HELD_BYTES", held)  # 0: read the file twice, as for a large one
    monkeypatch.setattr(pyav, "_decode_in_order", None)  # would fail if the plan gave up
    assert np.array_equal(decode_video(path).frames, full_decode(path)[0])


def test_runs_start_at_the_keyframe_a_frame_depends_on():
    pts = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])
    keyframe = np.array([1, 0, 0, 0, 1, 0, 0, 1, 0, 0], bool)
    assert pyav.runs_of([0], pts, keyframe) == [(0, 1)]
    assert pyav.runs_of([4], pts, keyframe) == [(4, 5)]
    assert pyav.runs_of([5], pts, keyframe) == [(0, 6)]  # shown before the keyframe it follows
    assert pyav.runs_of([0, 2, 7], pts, keyframe) == [(0, 3), (7, 8)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree(folder, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    path = write(folder / "agree.mp4", "320x240", "24000/1001", 3.6, {**X264, "bf": 2})
    if backend != "pyav":
        decode = fallback.decode_with_decord if backend == "decord" else fallback.decode_with_ffmpeg
        clip = decode(path, "h264", 0)
    else:
        clip = decode_video(path)
    frames, times_s = full_decode(path)
    assert np.allclose(clip.times_s, times_s)
    # Colours are scaled in another order, so frames are not equal; but each is nearest to the expected one.
    with av.open(str(path)) as container:
        every = block_means(np.stack([pyav.to_square(frame) for frame in container.decode(video=0)]))
    expected = block_means(frames)
    for mean, wanted in zip(block_means(clip.frames), expected, strict=True):
        assert np.array_equal(every[np.abs(every - mean).mean((1, 2, 3)).argmin()], wanted)


def test_rotation_and_squash(folder):
    path = write(folder / "upright.mp4", "320x240", "25", 1, X264)
    turned = folder / "turned.mp4"
    ffmpeg.input(str(path), display_rotation=90).output(str(turned), c="copy").run(cmd=EXE, quiet=True)
    upright, rotated = decode_video(path).frames[0], decode_video(turned).frames[0]
    assert np.array_equal(rotated, np.rot90(upright, 1))
    assert decode_video(path, crop=False).frames.shape == (1, 224, 224, 3)
    assert not np.array_equal(decode_video(path, crop=False).frames[0], upright)


def test_schedule():
    shown = np.arange(0, 80, 0.1)
    assert schedule(shown, 0.1)[0].tolist() == [0]
    assert schedule(shown, 3.0)[0].tolist() == [0, 1, 2]
    assert schedule(shown, 3.001)[0].tolist() == [0, 1, 2, 3]
    assert len(schedule(shown, 64.0)[0]) == 64
    assert schedule(shown, 80.0)[0][:3].tolist() == [0, 1.25, 2.5]
    assert schedule(np.array([0, 0.9, 2.5]), 3.0)[1].tolist() == [0, 1, 1]


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{}'\n"


@pytest.mark.parametrize("script", [PLAYLIST, CONCAT])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_script_that_names_other_files_is_refused(folder, script, backend):
    video = write(folder / "secret.ts", "240x240", "25", 1, X264)
    path = folder / "script.mp4"
    path.write_text(script.format(video))
    with pytest.raises(MediaError) as caught:
        decode_video(path, backend)
    assert caught.value.reason == "not_media"


def test_bad_files_say_why(folder):
    good = write(folder / "good.mp4", "320x240", "25", 3, {**X264, "bf": 2}).read_bytes()
    os.mkfifo(folder / "fifo.mp4")
    Image.new("RGB", (64, 64)).save(folder / "picture.jpg")
    contents = {
        "empty.mp4": (b"", "empty"),
        "noise.mp4": (np.random.default_rng(0).bytes(5000), "not_media"),
        "text.mp4": (b"<html>not found</html>" * 50, "not_media"),
        "picture.mp4": ((folder / "picture.jpg").read_bytes(), "not_media"),
        "cut.mp4": (good[: len(good) // 2], "corrupt"),
    }
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        with pytest.raises(MediaError) as caught:
            decode_video(folder / name)
        assert caught.value.reason == reason, name
    for name in ("nowhere.mp4", "fifo.mp4", "."):
        with pytest.raises(MediaError) as caught:
            decode_video(folder / name)
        assert caught.value.reason == "missing"
    tone = ffmpeg.input("sine=duration=1", f="lavfi")
    tone.output(str(folder / "tone.mp4")).run(cmd=EXE, quiet=True, overwrite_output=True)
    with pytest.raises(MediaError) as caught:
        decode_video(folder / "tone.mp4")
    assert caught.value.reason == "no_video_stream"


def test_a_file_cut_in_the_middle_keeps_its_frames(folder):
    whole = write(folder / "whole.mkv", "320x240", "25", 4, {**X264, "g": 25})
    cut = folder / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    frames, full = decode_video(cut).frames, decode_video(whole).frames
    assert 1 <= len(frames) < len(full)
    assert np.array_equal(frames, full[: len(frames)])  # no frame stands for those that are lost


def test_images(tmp_path):
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    clip = decode_image(tmp_path / "a.png")
    assert (clip.frames.shape, clip.times_s.tolist(), clip.codec) == ((1, 224, 224, 3), [0.0], "png")
    assert clip.frames[0, 10:-10, 10:-10, 0].min() > 250  # the centre is kept
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert decode_image(tmp_path / "clear.png").frames.min() == 255
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.png").write_text("no image")
    for name, reason in (("cut.png", "corrupt"), ("b.png", "not_media"), ("c.png", "missing")):
        with pytest.raises(MediaError) as caught:
            decode_image(tmp_path / name)
        assert caught.value.reason == reason


def _truth_folder() -> Path:
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "videos"
    return Path(os.environ.get("FVLM_TEST_VIDEOS", beside))


@pytest.mark.skipif(not (_truth_folder() / "manifest.csv").exists(), reason="set FVLM_TEST_VIDEOS to a folder")
def test_real_videos_against_their_ground_truth():
    """Against block means of a full decode made by other means; a wrong frame is far above the limit."""
    root = _truth_folder()
    with (root / "manifest.csv").open() as file:
        files = [root / row["file"] for row in csv.DictReader(file) if int(row["bytes"]) < 1_200_000]
    for path in files:
        truth = json.loads((root / "truth" / f"{path.stem}.json").read_text())
        blocks = np.load(root / "truth" / f"{path.stem}.npz")["crop"].astype(float)
        clip = decode_video(path)
        assert len(clip.times_s) == truth["n_expected"], path.name
        assert clip.duration_s == pytest.approx(truth["duration"], abs=2e-3), path.name
        means = block_means(clip.frames)
        if len(means) != len(blocks):  # the ground truth lists a frame that is shown twice once
            means = np.stack([m for i, m in enumerate(means) if i == 0 or not np.array_equal(m, means[i - 1])])
        assert np.abs(means - blocks).mean((1, 2, 3)).max() < 4, path.name
