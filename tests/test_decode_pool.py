"""Worker processes: bytes from tables and tars, and files that hang, crash or need too much memory."""

import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fvlm.data.decode import pool as decode_pool
from fvlm.data.decode.media import Media, MediaError
from fvlm.data.decode.pool import Decoded, DecodePool, decode_to_jpegs
from fvlm.data.decode.video import decode_video
from fvlm.errors import UserError
from tests.decode_cases import EXE, X264, write


def png(mode: str, size: tuple[int, int]) -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, "png")
    return file.getvalue()


LARGE = png("1", (11_000, 10_000))  # more pixels than the limit, fewer than Pillow's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a.mp4 and b.png, and both again inside a tar; a FIFO."""
    folder = tmp_path_factory.mktemp("media")
    os.mkfifo(folder / "pipe.tar")
    write(folder / "a.mp4", "320x240", "25", 3.2, {**X264, "bf": 2})
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save(folder / "b.png")
    with tarfile.open(folder / "all.tar", "w") as tar:
        for name in ("b.png", "a.mp4"):
            tar.add(folder / name, f"inner/{name}")
    return folder


def member(folder: Path, name: str, **more) -> Media:
    with tarfile.open(folder / "all.tar") as tar:
        info = tar.getmember(name)
    return Media(name, inside="all.tar", offset=info.offset_data, size=info.size, **more)


def test_bytes_give_the_same_frames_wherever_they_are(folder):
    for backend in ("pyav", "ffmpeg"):
        whole = decode_to_jpegs(Media("a.mp4"), folder, backend)
        assert len(whole.jpegs) == 4
        assert whole.codec == "h264"
        assert decode_to_jpegs(Media(str(folder / "a.mp4")), Path("/nowhere"), backend) == whole
        content = (folder / "a.mp4").read_bytes()
        assert decode_to_jpegs(Media("row 7", content=content), Path("/nowhere"), backend) == whole
        assert decode_to_jpegs(member(folder, "inner/a.mp4"), folder, backend) == whole
    image = decode_to_jpegs(Media("b.png", image=True), folder)
    assert (len(image.jpegs), image.times_s, image.codec) == (1, [0.0], "png")
    content = (folder / "b.png").read_bytes()
    assert decode_to_jpegs(Media("row 8", image=True, content=content), folder) == image
    assert decode_to_jpegs(member(folder, "inner/b.png", image=True), folder) == image


def test_span_and_crop_reach_the_decoder(folder):
    part = decode_to_jpegs(Media("a.mp4", span_s=(1.5, 3.0)), folder)
    assert (part.times_s, part.duration_s) == ([0.0, 1.0], 1.5)
    squashed = decode_to_jpegs(Media("a.mp4"), folder, crop=False)
    decoded = simplejpeg.decode_jpeg(squashed.jpegs[0]).astype(int)
    assert np.abs(decoded - decode_video(folder / "a.mp4", crop=False).frames[0]).mean() < 6


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (Media("x/row 7.mp4", content=b""), "empty"),
        (Media("x/row 7.mp4", content=b"no video" * 100), "not_media"),
        (Media("x/row 7", image=True, content=b""), "empty"),
        (Media("x/row 7", image=True, content=b"no image" * 100), "not_media"),
        (Media("x/row 7", image=True, content=LARGE), "too_large"),
        (Media("x/row 7", image=True, content=png("RGB", (90, 60))[:60]), "corrupt"),
        (Media("x/row 7", inside="pipe.tar", size=9), "missing"),
        (Media("x/row 7", inside="no.tar", size=9), "missing"),
        (Media("x/row 7", inside="all.tar", offset=10**9, size=9), "corrupt"),
        (Media("x/row 7", inside="all.tar", offset=-5, size=9), "corrupt"),
        (Media("x/row 7", inside="all.tar", offset=0, size=1 << 60), "corrupt"),
        (Media("x/row 7", inside=".", size=9), "missing"),
        (Media("x/row 7.mp4"), "missing"),
        (Media("a.mp4", span_s=(50.0, 60.0)), "empty_span"),
    ],
)
def test_a_message_names_the_file_and_no_temporary_one(folder, media, reason):
    with pytest.raises(MediaError) as caught:
        decode_to_jpegs(media, folder)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(media.file)
    assert str(folder) not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value)


def behave(media: Media) -> Decoded:
    """A decoder that misbehaves as the name of the file says; it always leaves a temporary file behind."""
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"left over")
    if media.file == "hang":
        time.sleep(600)
    elif media.file == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif media.file == "memory":
        bytearray(decode_pool.MEMORY_BYTES + (1 << 30))
    elif media.file == "bug":
        raise KeyError("a bug in this package")
    elif media.file == "full":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", "/dev/null")
            decode_to_jpegs(Media("a.mp4", content=b"x"), Path())
    elif media.file.startswith("child "):
        command = [EXE, "-v", "quiet", "-re", "-f", "lavfi", "-i", "testsrc2=duration=600", "-f", "null", "-"]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        Path(media.file.removeprefix("child ")).write_text(str(child.pid))
        child.wait()
    return Decoded([media.file.encode()], [0.0], 1.0, "x")


def outcomes(names: list[str], **options) -> list[str]:
    with DecodePool(behave, **options) as pool:
        futures = [pool.submit(Media(name)) for name in names]
        return [e.reason if (e := future.exception()) else future.result().jpegs[0].decode() for future in futures]


def test_a_hang_or_crash_costs_one_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ["a", "hang", "b", "crash", "c", "bug", "memory", "d"]
    found = outcomes(names, processes=2, deadline_s=1)
    assert found == ["a", "timeout", "b", "crashed", "c", "crashed", "too_large", "d"]
    assert list(tmp_path.iterdir()) == []


def is_alive(pid: int) -> bool:
    """A process that has ended and that nobody has waited for counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def assert_dies(pid: int, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while is_alive(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.05)


def test_an_ffmpeg_that_a_late_worker_started_is_killed_with_it(tmp_path):
    assert outcomes([f"child {tmp_path / 'pid'}"], processes=1, deadline_s=2) == ["timeout"]
    assert_dies(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("running", [True, False], ids=["in the middle of a file", "while it starts"])
def test_an_interrupted_pool_ends_its_worker_and_its_child_at_once(tmp_path, monkeypatch, running):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), DecodePool(behave, deadline_s=60) as pool:
        futures = [pool.submit(Media(f"child {tmp_path / 'pid'}")) for _ in range(2)]
        while running and not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            time.sleep(0.02)
        interrupted_s = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - interrupted_s < 10
    assert futures[0].done() and futures[1].cancelled()
    if running:
        assert_dies(int((tmp_path / "pid").read_text()))
    assert [path.name for path in tmp_path.iterdir()] == ["pid"] * running


def test_a_full_disk_is_no_fault_of_the_file():
    with DecodePool(behave, deadline_s=20) as pool:
        error = pool.submit(Media("full")).exception()
        assert isinstance(error, UserError) and "/dev/null" in str(error) and "TMPDIR" in str(error)
        assert pool.submit(Media("b")).result().jpegs == [b"b"]


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = (
        "import os, sys, time\n"
        "from functools import partial\nfrom pathlib import Path\n"
        "from fvlm.data.decode.pool import DecodePool, decode_to_jpegs\nfrom fvlm.data.decode.media import Media\n"
        "if __name__ == '__main__':\n"
        "    with DecodePool(partial(decode_to_jpegs, folder=Path('/')), deadline_s=20) as pool:\n"
        "        pool.submit(Media('nowhere')).exception()\n"
        "        worker = pool._idle.get()\n"
        "        print(worker.process.pid, worker.scratch, flush=True)\n"
        "        time.sleep(60)\n"
    )
    (tmp_path / "run.py").write_text(script)
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, text=True)
    pid, scratch = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    assert_dies(int(pid))
    assert not Path(scratch).exists()
