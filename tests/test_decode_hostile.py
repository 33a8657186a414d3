"""Broken and hostile files: each is refused with its reason and costs nothing but itself."""

import os
import re
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import ffmpeg
import numpy as np
import pytest
from PIL import Image

from fvlm.data.decode.media import Media, MediaError
from fvlm.data.decode.pool import DecodePool, decode_to_jpegs
from fvlm.data.decode.video import BACKENDS, DECODERS, decode_image, decode_video
from tests.decode_cases import B_FRAMES, EXE, X264, block_means, run, write

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{}'\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="0" bandwidth="1" mimeType="video/mp4"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>"
)
SCRIPTS = {"playlist": PLAYLIST, "concat": CONCAT, "sdp": SDP, "dash": DASH}


def reason_of(decode, *arguments, **options) -> str:
    with pytest.raises(MediaError) as caught:
        decode(*arguments, **options)
    return caught.value.reason


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "good.mp4", "320x240", "25", 3, {**X264, "bf": 2, "g": 20})


def gigantic_table(content: bytes) -> bytes:
    """A table of sample sizes that claims four thousand million entries."""
    place = content.index(b"stsz") + 12
    return content[:place] + b"\xff\xff\xff\xf0" + content[place + 4 :]


def bad_files(folder: Path, good: bytes) -> dict[str, tuple[Path, str]]:
    """name -> the file and the expected reason."""
    Image.new("RGB", (64, 64)).save(folder / "picture.jpg")
    size = (16_000).to_bytes(2, "little") * 2
    wide = b"GIF89a" + size + b"\x80" + bytes(5) + b"\xff" * 3
    wide += b"," + bytes(4) + size + b"\x00\x02\x02\x44\x01\x00;"
    contents = {
        "empty.mp4": (b"", "empty"),
        "noise.mp4": (np.random.default_rng(0).bytes(5000), "not_media"),
        "text.mp4": (b"Nothing to see here.\n" * 50, "not_media"),
        "page.mp4": (b"<!doctype html><html>not found</html>" * 50, "not_media"),
        "picture.mp4": ((folder / "picture.jpg").read_bytes(), "not_media"),
        "no_moov.mp4": (good[: len(good) // 2], "corrupt"),
        "only_ftyp.mp4": (good[:32], "corrupt"),
        "table.mp4": (gigantic_table(good), "corrupt"),
        "wide.gif": (wide, "too_large"),
        **{f"{name}.mp4": (text.format("secret.ts").encode(), "not_media") for name, text in SCRIPTS.items()},
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    run(ffmpeg.input("sine=duration=1", f="lavfi").output(str(folder / "tone.mp4")))
    found = {name: (folder / name, reason) for name, (_, reason) in contents.items()}
    for name in ("fifo.mp4", "folder.mp4", "dangling.mp4", "nowhere.mp4", "null\0byte.mp4", "x" * 300 + ".mp4"):
        found[name] = (folder / name, "missing")
    return {**found, "tone.mp4": (folder / "tone.mp4", "no_video_stream")}


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_files_are_refused_with_their_reason(tmp_path, good, backend):
    for name, (path, reason) in bad_files(tmp_path, good.read_bytes()).items():
        assert reason_of(decode_video, path, backend) == reason, name
    (tmp_path / "link.mp4").symlink_to(good)
    assert len(decode_video(tmp_path / "link.mp4", backend).frames) == 3


@pytest.mark.parametrize("name", ["a.mkv", "b.mp4", "c.ts", "d.webm", "e.avi"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_cut_in_the_middle_keeps_its_frames(tmp_path, name, backend):
    options = {"d.webm": {"vcodec": "libvpx", "cpu-used": 8}, "e.avi": {"vcodec": "mjpeg", "pix_fmt": "yuvj420p"}}
    options = {**options.get(name, X264), "g": 25, **({"movflags": "faststart"} if name == "b.mp4" else {})}
    whole = write(tmp_path / name, "320x240", "25", 4, options)
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    clip, full = decode_video(cut, backend), decode_video(whole).frames
    assert 2 <= len(clip.frames) < len(full)
    # No frame stands for those that are lost; the last one may be damaged by the cut.
    near = np.abs(block_means(clip.frames) - block_means(full[: len(clip.frames)])).mean((1, 2, 3))
    assert near[:-1].max() < 4
    assert near[-1] < 12


def test_messages_of_decord_hold_no_time_of_day(tmp_path, good):
    pytest.importorskip("decord")
    whole = np.frombuffer(good.read_bytes(), np.uint8)
    messages = []
    for seed in range(8):
        random, content = np.random.default_rng(seed), whole.copy()
        places = random.integers(len(whole) // 8, good.read_bytes().index(b"moov") - 8, 10_000)
        content[places] = random.integers(0, 256, len(places), dtype=np.uint8)
        (tmp_path / "a.mp4").write_bytes(content)
        try:
            DECODERS["decord"](tmp_path / "a.mp4")
        except MediaError as error:
            messages.append(str(error))
    assert any("Check failed" in message for message in messages)
    assert not [message for message in messages if re.search(r"\d\d:\d\d:\d\d", message)]


def test_damaged_files_end_in_frames_or_a_reason(tmp_path, good):
    """In workers, because such files crash decoders."""
    random = np.random.default_rng(1)
    sources = [
        good,
        write(tmp_path / "a.mkv", "240x240", "25", 2, B_FRAMES),
        write(tmp_path / "a.webm", "240x240", "25", 2, {"vcodec": "libvpx-vp9", "cpu-used": 8}),
        write(tmp_path / "av1.mp4", "240x240", "25", 2, {"vcodec": "libsvtav1", "preset": 12}),
        write(tmp_path / "hevc.mp4", "240x240", "25", 2, {"vcodec": "libx265", "preset": "ultrafast"}),
        write(tmp_path / "a.avi", "240x240", "25", 2, {"vcodec": "mpeg4", "bf": 2}),
    ]
    files = []
    for source in sources:
        for damage in range(4):
            content = np.frombuffer(source.read_bytes(), np.uint8).copy()
            if damage < 3:
                places = random.integers(0, len(content), 10 * 4**damage)
                content[places] ^= 1 << random.integers(0, 8, len(places), dtype=np.uint8)
            else:
                start = int(random.integers(0, len(content) - 1000))
                content[start : start + 1000] = 0
            name = f"{damage}_{source.name}"
            (tmp_path / name).write_bytes(content.tobytes())
            files.append(name)
    with DecodePool(partial(decode_to_jpegs, folder=tmp_path), processes=2, deadline_s=30) as pool:
        futures = [pool.submit(Media(name)) for name in files]
        errors = [future.exception() for future in futures]
    assert sum(error is None for error in errors) >= len(files) // 3
    for name, error, future in zip(files, errors, futures, strict=True):
        if error is None:
            assert 1 <= len(future.result().jpegs) <= 3, name
        else:
            assert isinstance(error, MediaError) and error.reason not in ("timeout", "crashed"), (name, str(error))


def is_read_within(fifo: Path, seconds: float) -> bool:
    """Return whether a process opens a FIFO for reading: only then can it be opened for writing without waiting."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            return True
        except OSError:
            time.sleep(0.02)
    return False


@pytest.fixture
def secret(tmp_path) -> Path:
    """A FIFO: a decoder that opens it waits for ever, so a decoder that ends has not opened it."""
    os.mkfifo(tmp_path / "secret.ts")
    return tmp_path / "secret.ts"


def assert_opened_by(command: list, fifo: Path) -> None:
    """The control of a test: the program alone would open the file."""
    child = subprocess.Popen([*command, "-f", "null", "-"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert is_read_within(fifo, 20)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("kind", ["playlist", "concat", "dash"])
def test_a_script_does_not_make_a_decoder_open_what_it_names(tmp_path, secret, kind):
    (tmp_path / "script.mp4").write_text(SCRIPTS[kind].format(secret))
    for backend in BACKENDS:
        with DecodePool(partial(decode_to_jpegs, folder=tmp_path, backend=backend), deadline_s=8) as pool:
            assert pool.submit(Media("script.mp4")).exception().reason == "not_media"
        assert reason_of(DECODERS[backend], tmp_path / "script.mp4") == "not_media"
    if kind == "concat":
        assert_opened_by([EXE, "-v", "error", "-safe", "0", "-i", tmp_path / "script.mp4"], secret)


def with_external_data(content: bytes, target: Path) -> bytes:
    """An MP4 (its moov last) that refers to another file for its samples: a QuickTime alias in `dref`."""
    place = content.index(b"dref") + 12
    size = int.from_bytes(content[place : place + 4], "big")
    name = os.fsencode(target.name)
    path = os.fsencode(target)
    alias = bytes(10) + b"\x01v" + bytes(26) + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
    alias += bytes(16) + b"\x00\x01\x00\x01" + bytes(16)
    alias += b"\x00\x02" + len(path).to_bytes(2, "big") + path + bytes(len(path) % 2) + b"\xff\xff\x00\x00"
    entry = (12 + len(alias)).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    grown = bytearray(content)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = content.index(box) - 4
        grown[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") + len(entry) - size).to_bytes(4, "big")
    return bytes(grown[:place]) + entry + bytes(grown[place + size :])


def test_an_mp4_does_not_make_a_decoder_open_another_file(tmp_path, good, secret):
    (tmp_path / "refers.mp4").write_bytes(with_external_data(good.read_bytes(), secret))
    for backend in BACKENDS:
        with DecodePool(partial(decode_to_jpegs, folder=tmp_path, backend=backend), deadline_s=8) as pool:
            error = pool.submit(Media("refers.mp4")).exception()
        assert error is None or error.reason in ("corrupt", "not_media")
    options = ["-enable_drefs", "1", "-use_absolute_path", "1"]
    assert_opened_by([EXE, "-v", "error", *options, "-i", tmp_path / "refers.mp4"], secret)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_is_a_file_and_nothing_else(good, backend):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        for name in (url, f"concat:{good}", f"subfile,,start,0,end,0,,:{good}", f"file:{good}", "pipe:0", "-"):
            assert reason_of(decode_video, name, backend) == "missing", name
        with pytest.raises(TimeoutError):
            server.accept()


def test_odd_images(tmp_path):
    Image.new("L", (60_000, 2)).save(tmp_path / "line.png")
    assert decode_image(tmp_path / "line.png").frames.shape == (1, 224, 224, 3)
    os.mkfifo(tmp_path / "fifo.jpg")
    assert reason_of(decode_image, tmp_path / "fifo.jpg") == "missing"
