"""A part of a video: the frames shown in it, timed from its start."""

import numpy as np
import pytest

from fvlm.data.decode import pyav
from fvlm.data.decode.media import MediaError, schedule
from fvlm.data.decode.video import BACKENDS, DECODERS, decode_video
from tests.decode_cases import B_FRAMES, CASES, X264, block_means, full_decode, write

SPANS = [(0.0, 2.0), (1.3, 3.3), (0.55, 0.9), (2.0, 99.0), (-1.0, 1.5)]
PLACES = ["B-frames", "open GOP", "av1", "mpeg4, B-frames, avi", "ts", "gif", "variable rate, gap"]


def test_schedule_of_a_whole_video():
    shown = np.arange(0, 80, 0.1)
    for duration, times in ((0.1, [0]), (3.0, [0, 1, 2]), (3.001, [0, 1, 2, 3]), (64.0, list(range(64)))):
        assert schedule(shown, duration)[0].tolist() == times
    assert schedule(shown, 80.0)[0].tolist() == [1.25 * i for i in range(64)]
    assert schedule(np.array([0, 0.9, 2.5]), 3.0)[1].tolist() == [0, 1, 1]


def test_schedule_of_a_span():
    shown = np.arange(0, 10, 0.25)
    times, positions, duration = schedule(shown, 10.0, (2.1, 4.6))
    assert (times.tolist(), shown[positions].tolist()) == ([0, 1, 2], [2.0, 3.0, 4.0])
    assert duration == pytest.approx(2.5)
    assert schedule(shown, 10.0, (9.5, 30.0))[2] == 0.5
    assert schedule(shown, 10.0, (-5.0, 1.0))[2] == 1.0
    long = np.arange(0, 200, 0.5)
    times, positions, duration = schedule(long, 200.0, (10.0, 138.0))
    assert (len(times), times[:3].tolist(), duration) == (64, [0, 2, 4], 128)
    assert long[positions][:3].tolist() == [10, 12, 14]
    for span in ((10.0, 12.0), (3.0, 3.0), (4.0, 2.0), (-3.0, -1.0), (float("nan"), 2.0)):
        with pytest.raises(MediaError) as caught:
            schedule(shown, 10.0, span)
        assert caught.value.reason == "empty_span"


@pytest.mark.parametrize("name", PLACES)
def test_a_span_shows_what_a_full_decode_shows(tmp_path, name):
    path = CASES[name].make(tmp_path)
    for span in SPANS:
        shown = full_decode(path, CASES[name], (max(0.0, span[0]), span[1]))
        if shown.duration_s <= 0:
            continue
        clip = decode_video(path, span_s=span)
        assert np.array_equal(clip.frames, np.stack([pyav.to_square(shown.frames[i]) for i in shown.chosen])), span
        assert np.allclose(clip.times_s, shown.times_s)
        assert clip.duration_s == pytest.approx(shown.duration_s, abs=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_decoder_knows_spans(tmp_path, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    path = write(tmp_path / "a.mp4", "240x240", "30", 4, B_FRAMES)
    shown = full_decode(path, span_s=(1.3, 3.5))
    clip = DECODERS[backend](path, span_s=(1.3, 3.5))
    assert np.allclose(clip.times_s, [0, 1, 2])
    assert clip.duration_s == pytest.approx(2.2)
    for mean, wanted in zip(block_means(clip.frames), shown.chosen, strict=True):
        assert np.abs(shown.every - mean).mean((1, 2, 3)).argmin() == wanted
    with pytest.raises(MediaError) as caught:
        decode_video(path, backend, span_s=(60.0, 70.0))
    assert caught.value.reason == "empty_span"


def test_a_span_decodes_little_of_a_long_video(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", "128x96", "10", 40, {**X264, "g": 20})
    fed = []
    runs_of = pyav.runs_of
    monkeypatch.setattr(pyav, "runs_of", lambda *arguments: fed.extend(runs_of(*arguments)) or fed)
    assert len(decode_video(path, span_s=(30.0, 33.0)).frames) == 3
    assert min(start for start, _ in fed) >= 280
    assert sum(stop - start for start, stop in fed) < 60
