"""`fvlm ask -` and `fvlm chat -`: frames of a stream as they come, questions in between, bounded memory."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import av
import ffmpeg
import numpy as np
import pytest
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.decode.video import decode_video
from fvlm.data.shards.text import load_tokenizer
from fvlm.use.answer import Answers, Video
from fvlm.use.stream import Clock, open_stream
from tests.decode_cases import B_FRAMES, EXE, X264, write
from tests.evaluate_cases import as_frames, finished, make_held_out, run_of, talkative
from tests.reader_cases import picture

FORMS = {
    "matroska": {"f": "matroska", **X264},
    "transport stream": {"f": "mpegts", **B_FRAMES},
    "nut": {"f": "nut", "vcodec": "rawvideo"},
    "fragmented mp4": {"f": "mp4", "movflags": "frag_keyframe+empty_moov", **X264},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("ask") / "results")


@pytest.fixture
def make_run(data, tmp_path):
    def make(**settings):
        run, _ = run_of(data, **settings)
        if not (tmp_path / "tokenizer").exists():
            (tmp_path / "tokenizer").symlink_to(data / "tokenizer")
        return finished(tmp_path / "runs/baseline", run, talkative(run, load_tokenizer(data / "tokenizer")))

    return make


def as_input(monkeypatch, content: bytes) -> None:
    """Make `content` the standard input, as from a pipe: it can be read once."""
    reading, writing = os.pipe()

    def write_all():
        with suppress(BrokenPipeError), open(writing, "wb") as out:
            out.write(content)

    threading.Thread(target=write_all, daemon=True).start()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(open(reading, "rb")))  # noqa: SIM115


def frames_from(monkeypatch, content: bytes, crop: bool = True) -> np.ndarray:
    as_input(monkeypatch, content)
    return np.stack(list(open_stream("-", crop)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rate, seconds", [("25", 3.6), ("30000/1001", 3), ("2/3", 6)])
def test_a_stream_gives_the_frames_of_the_file(tmp_path, monkeypatch, form, rate, seconds):
    path = write(tmp_path / "video", "160x120", rate, seconds, FORMS[form])
    for crop in (True, False):
        expected = decode_video(path, crop=crop).frames
        assert np.array_equal(frames_from(monkeypatch, path.read_bytes(), crop), expected)


def test_of_pictures_each_one_is_a_frame(monkeypatch):
    for form in ("JPEG", "PNG"):
        frames = frames_from(monkeypatch, b"".join(picture(40 * i, form, (224, 224)) for i in range(5)))
        means = frames.reshape(5, -1).mean(1)
        assert len(frames) == 5 and len(np.unique(means.round())) == 5


def test_the_first_frame_is_there_before_the_second_is_sent(monkeypatch):
    """One picture per second from a camera must not wait until FFmpeg has seen enough to guess a rate."""
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(open(reading, "rb")))  # noqa: SIM115
    arrived, frames = [], []

    def read():
        for frame in open_stream("-", True):
            frames.append(frame)
            arrived.append(time.monotonic())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    sent = []
    with open(writing, "wb", buffering=0) as out:
        for number in range(4):
            sent.append(time.monotonic())
            out.write(noise(number))
            time.sleep(0.5)
    thread.join(10)
    assert len(frames) == 4
    assert arrived[1] - sent[1] < 1.2, "the second frame came when the stream had ended"


def test_a_clock_that_jumps_goes_on_at_once():
    clock, times = Clock(0.1, 10, False), []
    for pts in (500, 501, 502, 9000, 9001, 3, 4, None, 60):
        frame = av.VideoFrame(16, 16)
        frame.pts = pts
        times.append(round(clock.time_of(frame), 6))
    assert times == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 6.2] and clock.end_s == pytest.approx(6.3)


# --- bounded memory ---


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_endless_stream_keeps_the_newest_frames_as_if_the_video_began_there(make_run, share):
    """After 4, 5, ... 11 frames the answer is that to the kept ones alone, and no more than 4 are kept."""
    folder = make_run(**{"data.max_frames": 4, "data.question_first": share})
    answers = Answers(folder, None, 6)
    draw, video = np.random.default_rng(0), Video(answers)
    frames = draw.integers(0, 256, (11, 224, 224, 3), dtype=np.uint8)
    kept = []
    for number, frame in enumerate(frames, 1):
        video.show(frame[None])
        kept.append(video.kept)
        expected = "".join(answers.video(as_frames(frames[number - video.kept : number])).ask("What colour is it?"))
        assert "".join(video.ask("What colour is it?")) == expected
        assert video.reading.length <= 4 + 70 and len(video.states) == video.kept
    assert kept == [1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2]


def test_the_stream_is_answered_every_few_frames_and_at_its_end(make_run, tmp_path, monkeypatch, capsys):
    folder = make_run(**{"data.max_frames": 4})
    path = write(tmp_path / "video.mkv", "160x120", "10", 7, X264)
    as_input(monkeypatch, path.read_bytes())
    assert main(["ask", "-", "What colour is it?", "--run", str(folder), "--tokens", "6", "--every", "3"]) == 0
    printed = capsys.readouterr()
    answers, frames = Answers(folder, None, 6), decode_video(path).frames
    expected = [
        "".join(answers.video(as_frames(part)).ask("What colour is it?"))
        for part in (frames[:3], frames[3:6], frames[3:7])
    ]
    assert printed.out == f"[3 frames]\n{expected[0]}\n[6 frames]\n{expected[1]}\n{expected[2]}\n"
    assert "7 frames; the answer is about the last 4" in printed.err


# --- a conversation about a stream ---


@pytest.mark.parametrize("key, status", [(b"\x04", 0), (b"\x03", 130)], ids=["Ctrl-D", "Ctrl-C"])
def test_questions_at_the_terminal_are_about_the_frames_so_far(make_run, key, status):
    """The process has a terminal of its own; its standard input is the stream."""
    folder = make_run()
    pictures = [noise(number) for number in range(4)]
    reading, writing = os.pipe()
    child, terminal = pty.fork()
    if not child:
        os.dup2(reading, 0)
        os.close(writing)
        os.execv(sys.executable, [sys.executable, "-m", "fvlm", "chat", "-", "--run", str(folder), "--tokens", "6"])
    os.close(reading)
    try:
        answers = []
        os.write(writing, b"".join(pictures[:2]))
        until(terminal, "> ")
        for rest in (b"".join(pictures[2:]), b""):
            time.sleep(1)  # the frames arrive before the question
            os.write(terminal, b"What colour is it?\n")
            answers.append(until(terminal, "\n> ").split("?\n")[1].removesuffix("\n> "))
            if rest:
                os.write(writing, rest)
                os.close(writing)
                until(terminal, "ended after 4 frames; Ctrl-D ends.\n> ")
        os.write(terminal, key)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    except BaseException:
        os.kill(child, 9)
        raise
    finally:
        os.close(terminal)
    frames = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in pictures])
    alone = Answers(folder, None, 6)
    # the first picture ends where the second begins, and so on
    expected = ["".join(alone.video(as_frames(part)).ask("What colour is it?")) for part in (frames[:1], frames)]
    assert answers[0] == expected[0] != expected[1] and answers[1] not in expected  # it has a history


def noise(seed: int) -> bytes:
    """A JPEG of 30 kB. Of smaller ones FFmpeg reads several at once."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


def until(terminal: int, text: str, seconds: float = 60) -> str:
    """Read a terminal until it shows a text; returns what it showed."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace").replace("\r", "")
    return shown


# --- mistakes ---


@pytest.mark.parametrize(
    ("content", "options", "fact"),
    [
        (b"", [], "standard input is empty; expected a video"),
        (b"no video at all " * 999, [], "standard input is no video that can be read as it comes"),
        ("sound", [], "there is no video in this stream"),
        ("mp4", [], "no video that can be read as it comes; expected Matroska"),
        ("mp4", ["--mode", "coarse_fine"], "--mode coarse_fine needs the whole video"),
        ("mp4", ["--every", "0"], "--every is 0"),
    ],
)
def test_a_stream_that_cannot_be_read_is_refused(make_run, tmp_path, monkeypatch, capsys, content, options, fact):
    folder = make_run()
    if content == "sound":
        path = tmp_path / "sound.mkv"
        output = ffmpeg.input("sine=duration=1", f="lavfi").output(str(path), acodec="pcm_s16le")
        output.run(cmd=EXE, quiet=True)
        content = path.read_bytes()
    elif content == "mp4":  # its index is at its end
        content = write(tmp_path / "video.mp4", "160x120", "10", 300, X264).read_bytes()
    as_input(monkeypatch, content)
    assert main(["ask", "-", "What?", "--run", str(folder), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and fact in printed.err, printed.err


def test_a_conversation_about_standard_input_needs_a_terminal(make_run):
    command = [sys.executable, "-m", "fvlm", "chat", "-", "--run", str(make_run())]
    done = subprocess.run(command, input=b"", capture_output=True, start_new_session=True)
    assert done.returncode == 2 and b"questions need a terminal" in done.stderr


def test_an_interrupt_ends_a_stream_without_a_message(make_run):
    """It is how an endless stream ends."""
    command = [sys.executable, "-m", "fvlm", "ask", "-", "What?", "--every", "2", "--run", str(make_run())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"".join(map(noise, range(3))))
    process.stdin.flush()
    assert process.stdout.readline() == b"[2 frames]\n"
    assert process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.stderr.read() == b"\n"
