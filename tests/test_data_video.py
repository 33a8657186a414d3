"""Which packets of a video are decoded; images; real videos against their ground truth."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvlm.data.decode import packets, pyav
from fvlm.data.decode.media import MediaError
from fvlm.data.decode.packets import open_video, read_packets, runs_of
from fvlm.data.decode.video import BACKENDS, DECODERS, decode_image, decode_video
from fvlm.errors import UserError
from tests.decode_cases import B_FRAMES, X265, block_means, full_decode, write


@pytest.mark.parametrize("held", [1 << 30, 0])
def test_a_large_file_is_read_twice_with_the_same_frames(tmp_path, monkeypatch, held):
    path = write(tmp_path / "plan.mp4", "320x240", "30", 4, {**B_FRAMES, "g": 45})
    monkeypatch.setattr(packets, "HELD_BYTES", held)
    monkeypatch.setattr(pyav, "_decode_in_order", None)  # fails if the plan is not used
    shown = full_decode(path)
    expected = np.stack([pyav.to_square(shown.frames[i]) for i in shown.chosen])
    assert np.array_equal(decode_video(path).frames, expected)
    assert np.array_equal(decode_video(path, span_s=(2.5, 4)).frames[0], pyav.to_square(shown.frames[75]))


def test_runs_start_at_the_keyframe_a_frame_depends_on():
    pts = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])
    keyframe = np.array([1, 0, 0, 0, 1, 0, 0, 1, 0, 0], bool)
    assert runs_of([0], pts, keyframe) == [(0, 1)]
    assert runs_of([4], pts, keyframe) == [(4, 5)]
    assert runs_of([5], pts, keyframe) == [(0, 6)]  # shown before the keyframe it follows
    assert runs_of([0, 2, 7], pts, keyframe) == [(0, 3), (7, 8)]


@pytest.mark.parametrize("encoder", [B_FRAMES, {**X265, "g": 45}])
def test_many_frames_are_not_decoded(tmp_path, encoder):
    path = write(tmp_path / "a.mp4", "320x240", "30", 4, encoder)
    container, stream = open_video(path)
    with container:
        table = read_packets(path, container, stream)
        wanted = {0, int(np.flatnonzero(table.pts == np.sort(table.pts)[90])[0])}
        frames = list(pyav._decode_runs(path, stream.codec_context, table, wanted))
    assert len(frames) < 0.7 * len(table.pts)
    assert {int(table.pts[i]) for i in wanted} <= {frame.pts for frame in frames}


def test_an_unknown_decoder_is_named():
    with pytest.raises(UserError, match=r"'cv2'.*pyav, decord, ffmpeg"):
        decode_video("a.mp4", "cv2")


def test_images(tmp_path):
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    clip = decode_image(tmp_path / "a.png")
    assert (clip.frames.shape, clip.times_s.tolist(), clip.codec) == ((1, 224, 224, 3), [0.0], "png")
    assert clip.frames[0, 10:-10, 10:-10, 0].min() > 250  # the centre is kept
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode_image(tmp_path / "clear.png").frames.min() == 255


def test_images_that_are_refused(tmp_path):
    Image.new("RGB", (300, 300), "red").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.random.default_rng(0).random((30, 40), np.float32)).save(tmp_path / "float.tif")
    for name, reason in (("cut", "corrupt"), ("text", "not_media"), ("none", "missing"), ("float", "not_media")):
        path = tmp_path / f"{name}.{'tif' if name == 'float' else 'png'}"
        with pytest.raises(MediaError, match=path.name) as caught:
            decode_image(path)
        assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_images_of_16_bits_keep_their_greys(tmp_path, name):
    ramp = np.linspace(0, 255, 224).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp * 257, (224, 1))).save(tmp_path / name)
    assert np.abs(decode_image(tmp_path / name).frames[0, 100, :, 1].astype(int) - ramp).max() <= 1


def _truth_folder() -> Path:
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "videos"
    return Path(os.environ.get("FVLM_TEST_VIDEOS", beside))


@pytest.mark.skipif(not (_truth_folder() / "manifest.csv").exists(), reason="set FVLM_TEST_VIDEOS to a folder")
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_videos_against_their_ground_truth(backend):
    """Compare with block means of a full decode by another program; a wrong frame is far above the limit."""
    if backend == "decord":
        pytest.importorskip("decord")
    root = _truth_folder()
    with (root / "manifest.csv").open() as file:
        files = [root / row["file"] for row in csv.DictReader(file) if int(row["bytes"]) < 1_200_000]
    decoded = 0
    for path in files:
        truth = json.loads((root / "truth" / f"{path.stem}.json").read_text())
        blocks = np.load(root / "truth" / f"{path.stem}.npz")["crop"].astype(float)
        try:
            clip = DECODERS[backend](path)
        except MediaError as error:
            assert backend == "decord", f"{path.name}: {error}"
            continue
        decoded += 1
        assert len(clip.times_s) == truth["n_expected"], path.name
        assert clip.duration_s == pytest.approx(truth["duration"], abs=2e-3), path.name
        means = block_means(clip.frames)
        if len(means) != len(blocks):  # the ground truth lists a frame that is shown twice once
            means = np.stack([m for i, m in enumerate(means) if i == 0 or not np.array_equal(m, means[i - 1])])
        assert np.abs(means - blocks).mean((1, 2, 3)).max() < 5, path.name
    assert decoded > len(files) / 3
