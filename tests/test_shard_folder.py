"""Shards of a folder with the command that users run: bare folders, resuming, odd names and broken files."""

import io
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import write_index
from fvlm.data.shards.text import train_tokenizer
from fvlm.data.shards.write import checksum_of
from tests.reader_cases import (
    LONG,
    add_video,
    described,
    lines_of,
    picture,
    samples_in,
    shard,
    video_bytes,
    write_table,
    write_tar,
)


def bare(folder: Path) -> Path:
    """A folder without a table."""
    add_video(folder / "b/two.mp4")
    add_video(folder / "one.mp4")
    (folder / "one.txt").write_text(LONG)
    (folder / "picture.png").write_bytes(picture(99))
    (folder / "notes.txt").write_text("no caption of anything")
    (folder / "empty.mp4").touch()
    (folder / ".hidden.mp4").touch()
    (folder / "b/.git").mkdir()
    (folder / "b/.git/config").write_text("x")
    (folder / "b/loop").symlink_to(folder)
    return folder


def test_a_bare_folder_accounts_for_every_file(tmp_path, capsys):
    folder = bare(tmp_path / "my.videos")
    assert shard(folder, tmp_path / "out") == 0
    summary = capsys.readouterr().out
    assert re.search(r"kept      3\nrejected  2 \((empty 1, not_media 1|not_media 1, empty 1)\)\nframes    5", summary)
    entries = {entry["file"]: entry for entry in lines_of(tmp_path / "out/ledger.jsonl")}
    assert list(entries) == ["b/two.mp4", "empty.mp4", "notes.txt", "one.mp4", "picture.png"]
    assert {name: entry["reason"] for name, entry in entries.items() if entry["reason"]} == {
        "empty.mp4": "empty", "notes.txt": "not_media",
    }  # fmt: skip
    two, one, image = described(tmp_path / "out/00000.tar")
    assert "assistant" not in two and two["user"] == "Describe the video."
    assert one["assistant"] == LONG and image["frame_count"] == 1
    keys = list(samples_in(tmp_path / "out/00000.tar"))
    assert keys == ["my_videos-0000000", "my_videos-0000003", "my_videos-0000004"]  # no dots: a key ends at the first


def test_shards_in_the_folder_of_the_inputs_are_refused(tmp_path, capsys):
    bare(tmp_path / "in")
    assert shard(tmp_path / "in", tmp_path / "in/out") == 2
    assert f"--out {tmp_path / 'in/out'}" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_listed(tmp_path):
    add_video(tmp_path / "in/a.mp4")
    os.rename(tmp_path / "in/a.mp4", os.fsencode(tmp_path / "in") + b"/\xff.mp4")
    add_video(tmp_path / "in/b.mp4")
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    entries = lines_of(tmp_path / "out/ledger.jsonl")
    assert {entry["file"]: entry["reason"] for entry in entries} == {"b.mp4": None, "\\udcff.mp4": "bad_row"}


def table_of_pictures(folder: Path, count: int) -> Path:
    for i in range(count):
        (folder / f"{i}.png").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(picture(i))
    write_table(folder / "samples.jsonl", [{"file": f"{i}.png", "caption": f"grey {i}"} for i in range(count)])
    return folder


PAIRS = ("--samples-per-shard", "2", "--kind", "image", "--name", "p")


def test_other_inputs_or_settings_do_not_mix_with_finished_shards(tmp_path, capsys):
    folder = table_of_pictures(tmp_path / "in", 4)
    assert shard(folder, tmp_path / "out", "--kind", "preference") == 2  # makes no shard, so settings may change
    assert shard(folder, tmp_path / "out", *PAIRS) == 0
    first = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").glob("0*")}
    assert len(first) == 6
    assert shard(folder, tmp_path / "out", *PAIRS) == 0
    assert shard(folder, tmp_path / "out", *PAIRS, "--squash") == 2
    assert "(squash); use another --out" in capsys.readouterr().err
    table_of_pictures(folder, 5)
    assert shard(folder, tmp_path / "out", *PAIRS) == 2
    assert "(inputs)" in capsys.readouterr().err
    assert first == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").glob("0*")}


def test_a_changed_caption_counts_as_another_input(tmp_path, capsys):
    folder = bare(tmp_path / "in")
    assert shard(folder, tmp_path / "out") == 0
    (folder / "one.txt").write_text(LONG[::-1])
    assert shard(folder, tmp_path / "out") == 2
    assert "(inputs)" in capsys.readouterr().err


def test_a_shard_without_its_checksum_is_made_again(tmp_path):
    folder = table_of_pictures(tmp_path / "in", 4)
    assert shard(folder, tmp_path / "out", *PAIRS) == 0
    tar = tmp_path / "out/00001.tar"
    content, kept = tar.read_bytes(), (tmp_path / "out/00000.tar").stat().st_mtime_ns
    tar.write_bytes(b"half")
    checksum_of(tar).unlink()
    assert shard(folder, tmp_path / "out", *PAIRS) == 0
    assert tar.read_bytes() == content and (tmp_path / "out/00000.tar").stat().st_mtime_ns == kept


def test_too_many_rejected_rows_of_a_folder(tmp_path, capsys):
    folder = table_of_pictures(tmp_path / "in", 5)
    for name in ("1.png", "2.png", "3.png", "4.png"):
        (folder / name).write_bytes(b"noise")
    assert shard(folder, tmp_path / "out", *PAIRS, "--max-reject", "0.4") == 2
    assert "2 rows of 00001.tar rejected (not_media 2)" in capsys.readouterr().err
    (folder / "2.png").write_bytes(picture(2))
    assert shard(folder, tmp_path / "two", *PAIRS, "--max-reject", "0.4") == 2
    output = capsys.readouterr()
    assert "3 of 5 rows rejected (not_media 3)" in output.err and "40%" in output.err and "rejected  3" in output.out
    assert len(lines_of(tmp_path / "two/ledger.jsonl")) == 5
    assert shard(folder, tmp_path / "two", *PAIRS, "--max-reject", "0.6") == 0
    assert samples_in(tmp_path / "two/00002.tar") == {}  # a last shard that is not full may keep nothing


def test_an_index_rejects_files_without_a_caption(tmp_path):
    assert shard(bare(tmp_path / "in"), tmp_path / "out/shards/in") == 0
    train_tokenizer([LONG], 300, tmp_path / "tokenizer")
    tars = [tmp_path / "out/shards/in/00000.tar"]
    index = write_index(tars, tmp_path / "out/in.npz", "in", "video", tmp_path / "tokenizer", "?", tmp_path / "out")
    assert index.keys.tolist() == ["in-0000003"]
    rejected = lines_of(tmp_path / "out/in.ledger.jsonl")
    assert [entry["key"] for entry in rejected] == ["in-0000000", "in-0000004"]
    assert {entry["reason"] for entry in rejected} == {"bad_sample"}


def test_squashed_frames_show_the_edges(tmp_path):
    """The left end of a wide picture is red: cropping removes it, squashing keeps it."""
    image = Image.new("RGB", (400, 100), "blue")
    image.paste("red", (0, 0, 60, 100))
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in/wide.png")
    for name, options in (("crop", ()), ("squash", ("--squash",))):
        assert shard(tmp_path / "in", tmp_path / name, "--kind", "image", *options) == 0
        (members,) = samples_in(tmp_path / name / "00000.tar").values()
        red, _, blue = Image.open(io.BytesIO(members["000.jpg"])).convert("RGB").getpixel((3, 112))
        assert (red > blue) == (name == "squash")


def test_a_caption_that_cannot_be_read(tmp_path):
    folder = tmp_path / "in"
    for name in ("bom", "latin", "long" * 62, "pipe"):
        add_video(folder / f"{name}.mp4")
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfA dog.\r\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    os.mkfifo(folder / "pipe.txt")
    rows = {row.file: row for row in read_rows(folder, reader="files")}
    assert rows["bom.mp4"].text == {"caption": "A dog."}
    assert "latin.txt" in rows["latin.mp4"].problem and "UTF-8" in rows["latin.mp4"].problem
    assert rows["pipe.mp4"].text == rows[f"{'long' * 62}.mp4"].text == {"caption": ""}


def test_a_folder_with_several_links_to_it_is_read_once(tmp_path):
    add_video(tmp_path / "in/real/one.mp4")
    (tmp_path / "in/zz").symlink_to("real")
    (tmp_path / "in/a").mkdir()
    (tmp_path / "in/a/link").symlink_to("../real")
    (tmp_path / "in/real/up").symlink_to("..")
    assert [row.file for row in read_rows(tmp_path / "in", reader="files")] == ["a/link/one.mp4"]


def test_odd_names_give_the_same_ledger_in_every_folder(tmp_path, monkeypatch):
    names = ["-dash.mp4", "a 'b\"c.mp4", "d\ne.mp4", "g/in/h.mp4", "\u00fc.mp4"]
    for folder in (tmp_path / "in", tmp_path / "other 'place/in"):
        (folder / "g/in").mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(b"no video")
        (folder / "f.mp4").symlink_to("no'where")
        add_video(folder / "z.mp4")
    monkeypatch.chdir(tmp_path)
    for folder, out in ((Path("in"), "one"), (tmp_path / "other 'place/in", "two")):
        assert shard(folder, tmp_path / out, "--max-reject", "0.9") == 0
    assert (tmp_path / "one/ledger.jsonl").read_bytes() == (tmp_path / "two/ledger.jsonl").read_bytes()
    messages = {entry["file"]: entry["message"] for entry in lines_of(tmp_path / "one/ledger.jsonl")}
    assert all(messages[name].startswith(f"{name}: ") for name in [*names, "f.mp4"])


def test_a_file_has_one_name(tmp_path):
    names = ("a.mp4", "./a.mp4", ".//a.mp4")
    write_table(tmp_path / "samples.jsonl", [{"file": name, "caption": LONG} for name in names])
    assert {row.file for row in read_rows(tmp_path)} == {"a.mp4"}


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--table", "/a/t.csv"), ["'/a/t.csv'", "relative"]),
        (("--table", "/a/*.csv"), ["'/a/*.csv'", "relative"]),
        (("--processes", "0"), ["--processes 0", "1 or more"]),
        (("--deadline", "0"), ["--deadline 0", "more than 0 seconds"]),
        (("--out", "{}/out"), ["/out: File exists"]),
    ],
)
def test_a_wrong_argument_is_one_sentence(tmp_path, capsys, options, facts):
    folder = table_of_pictures(tmp_path / "in", 1)
    (tmp_path / "out").touch()
    assert shard(folder, tmp_path / "new", *(option.format(tmp_path) for option in options)) == 2
    message = capsys.readouterr().err
    assert all(fact in message for fact in facts) and "Traceback" not in message


def test_a_parquet_that_lists_other_keys_than_its_tar_holds(tmp_path):
    """As after a download that was started twice."""
    tar = write_tar(tmp_path / "in/00000.tar", [(key, {"mp4": video_bytes(), "txt": b"c"}) for key in ("a", "b")])
    write_table(tar.with_suffix(".parquet"), [{"key": key, "status": "success"} for key in ("a", "a", "c")])
    assert shard(tmp_path / "in", tmp_path / "out", "--reader", "video2dataset") == 0
    found = [(entry["file"], entry["reason"]) for entry in lines_of(tmp_path / "out/ledger.jsonl")]
    assert found == [("00000.tar/a.mp4", None), ("00000.tar/b.mp4", None), ("00000.tar/c", "bad_row")]


def test_a_lower_memory_limit_of_the_user_is_kept(tmp_path):
    folder = table_of_pictures(tmp_path / "in", 1)
    command = [sys.executable, "-m", "fvlm", "shard", str(folder), "--kind", "image", "--out", str(tmp_path / "out")]
    limit = 6 << 30

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    subprocess.run([*command, "--processes", "1"], check=True, preexec_fn=lower, capture_output=True)
    assert len(samples_in(tmp_path / "out/00000.tar")) == 1


def test_a_single_file_is_a_source_of_one(tmp_path, capsys):
    folder = tmp_path / "my videos"
    video = add_video(folder / "a cat.mp4")
    add_video(folder / "other.mp4")
    (folder / "a cat.txt").write_text("A cat.")
    out = folder / "shards"
    assert main(["shard", str(video), "--out", str(out), "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "a_cat: 1 row, 1 shard\n" in printed and "every file" not in printed
    (entry,) = lines_of(out / "ledger.jsonl")
    assert (entry["file"], entry["status"], entry["source"]) == ("a cat.mp4", "kept", "a_cat")


def test_a_folder_that_is_not_there_is_named_first(tmp_path, capsys):
    assert main(["shard", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "nowhere" in said.err and said.out == ""
