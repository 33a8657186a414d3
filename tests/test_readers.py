"""Readers of published datasets: the row of a good record, and the problem of a bad one."""

import importlib
import json
import subprocess
import sys
import unicodedata
from typing import get_args

import pytest

from fvlm.config.schema import Reader
from fvlm.data.readers import READERS, count_rows, read_rows
from fvlm.data.readers.row import Row, in_any_form, row_of, without_placeholders
from fvlm.errors import UserError
from tests.reader_cases import LONG, add_video, picture, rows_of, stored, write_table

WEBVID = "videoid,contentUrl,duration,page_dir,name\n"
TURNS = [{"from": "human", "value": "<image>\nWhat moves?"}, {"from": "gpt", "value": "A square."}]


def test_importing_the_readers_loads_none_of_them():
    """They are imported while Snakemake parses, in every job."""
    code = "import fvlm.data.readers, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "numpy", "torch", "av", "fvlm.data.readers.captions"}.intersection(loaded)


def test_the_schema_knows_every_reader():
    assert set(get_args(Reader)) == {*READERS, "shards", "demo"}


@pytest.mark.parametrize("place", ["videos/page_1/77.mp4", "page_1/77.mp4", "77.mp4"])
def test_webvid(tmp_path, place):
    add_video(tmp_path / place)
    lines = ['77,https://x/77.mp4,PT00H00M10S,page_1,"Sea, with waves"', "1,u,d,p,", ",u,d,p,caption", "3,u,d,p,a, b"]
    (tmp_path / "results_2M_train.csv").write_text(WEBVID + "\n".join(lines))
    good, *bad = read_rows(tmp_path, reader="webvid")
    assert good == Row(0, good.media, {"caption": "Sea, with waves"}, extra={"id": "77"})
    assert (good.file, good.media[0].image, good.media[0].span_s) == (place, False, None)
    assert [row.problem for row in bad[:2]] == ["`name` is empty", "`videoid` is empty"]
    assert "quotes" in bad[2].problem
    assert bad[0].file == "videos/p/1.mp4"


def test_openvid(tmp_path):
    add_video(tmp_path / "video/-0J1SbgYLaw_7_7to117.mp4")
    columns = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
    names = ["-0J1SbgYLaw_7_7to117.mp4", "-0J1SbgYLaw_12_0to241.mp4", "pexels_7.mp4"]
    lines = [f"{name},{LONG},5.1,2.0,0.99,static,48,24.0,2.0" for name in names]
    (tmp_path / "OpenVid-1M.csv").write_text("\n".join([columns, *lines, "b.mp4,,,,,,,,"]))
    *good, bad = read_rows(tmp_path, reader="openvid")
    assert (good[0].file, good[0].text) == (f"video/{names[0]}", {"caption": LONG})
    assert [row.extra["video"] for row in good] == ["-0J1SbgYLaw", "-0J1SbgYLaw", "pexels_7.mp4"]
    assert (bad.file, bad.problem) == ("video/b.mp4", "`caption` is empty")


def clip(number: int, **caption) -> dict:
    name = f"abc-Scene-{number:03d}"
    return {name: {"video_id": "abc", "clip_id": name, "video_title": "A film", "caption": caption, "voiceover": [""]}}


@pytest.mark.parametrize("form", ["long", "short"])
def test_vript_captions_hold_the_script_of_each_clip(tmp_path, form):
    add_video(tmp_path / f"vript_{form}_videos_clips/clips_1_of_9/abc/abc-Scene-001.mp4")
    script = {"shot_type": "Close-up", "camera_movement": "Static", "content": "A cat jumps.", "scene_title": "Cat"}
    clips = {**clip(1, **script), **clip(2, content="It lands."), **clip(3, shot_type="Wide"), "abc-Scene-004": None}
    table = f"vript_captions/vript_{form}_videos_captions/abc_caption.json"
    rows = rows_of(tmp_path, "vript", {"meta": {"num_clips": 4}, "data": clips}, table)
    assert rows[0].file == f"vript_{form}_videos_clips/clips_1_of_9/abc/abc-Scene-001.mp4"
    assert rows[0].text["caption"] == "Cat. Shot type: Close-up. Camera movement: Static. A cat jumps."
    assert rows[0].extra == {"id": "abc-Scene-001", "video": "abc", "title": "A film"}
    assert rows[1].text["caption"] == "It lands."
    assert rows[2].problem == "`content` is missing" and "mapping" in rows[3].problem
    assert count_rows(tmp_path, table, "vript") == 4
    assert read_rows(tmp_path, table, 1, 3, "vript") == rows[1:3]


def test_vript_of_several_videos_and_as_lines(tmp_path):
    for name in ("a", "b"):
        clips = {f"{name}-Scene-{i}": {"caption": {"content": name}} for i in range(2)}
        write_table(tmp_path / f"captions/{name}_caption.json", {"data": clips})
    rows = read_rows(tmp_path, "captions/*.json", reader="vript")
    ids = ["a-Scene-0", "a-Scene-1", "b-Scene-0", "b-Scene-1"]
    assert [(row.number, row.extra["id"]) for row in rows] == list(enumerate(ids))
    lines = rows_of(tmp_path, "vript", [{"clip_id": "c-Scene-1", "caption": {"content": LONG}}], "lines.jsonl")
    assert lines[0].text == {"caption": LONG} and lines[0].file == "c/c-Scene-1.mp4"


def test_sharegpt4video(tmp_path):
    add_video(tmp_path / "videos/panda/one.mp4")
    captions = [{"idx": "0", "content": "first key frame"}, {"idx": "-1", "content": LONG}]
    records = [
        {"video_id": "one", "video_path": "panda/one.mp4", "captions": captions, "zip_folder": "panda_videos_1.zip"},
        {"video_id": "two", "video_path": "panda/two.mp4", "captions": captions[:1]},
        {"video_id": "three", "video_path": "panda/three.mp4"},
        {"id": "four", "video": "four.mp4", "conversations": TURNS},
        {"video_id": "five", "video_path": 5, "captions": captions},
    ]
    rows = rows_of(tmp_path, "sharegpt4video", records)
    assert (rows[0].file, rows[0].text, rows[0].extra) == ("videos/panda/one.mp4", {"caption": LONG}, {"id": "one"})
    assert "idx -1" in rows[1].problem and "`captions` is not a list" in rows[2].problem
    assert rows[3].text == {"user": "What moves?", "assistant": "A square."}
    assert rows[4].file is None and "`video_path` is int" in rows[4].problem


def test_llava_video_keeps_every_turn(tmp_path):
    more = [*TURNS, {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Red."}]
    folder = "0_30_s_academic_v0_1"
    add_video(tmp_path / folder / "academic_source/Charades/A.mp4")
    about = {"id": "A", "data_source": folder, "video": "academic_source/Charades/A.mp4"}
    robot = [{"from": "robot", "value": "x"}]
    records = [{**about, "conversations": turns} for turns in (more, TURNS, [], robot)]
    long, short, empty, odd = rows_of(tmp_path, "llava_video", records)
    contents = ["What moves?", "A square.", "Which colour?", "Red."]
    assert [(m["role"], m["content"]) for m in long.text["messages"]] == list(
        zip(["user", "assistant"] * 2, contents, strict=True)
    )
    assert short.text == {"user": "What moves?", "assistant": "A square."}
    assert long.file == empty.file == f"{folder}/academic_source/Charades/A.mp4"
    assert long.extra == {"id": "A", "origin": folder}
    assert "`conversations`" in empty.problem and "role 'robot'" in odd.problem


def test_vista_keeps_the_videos_of_a_subset_apart(tmp_path):
    add_video(tmp_path / "temporal_niah_mcq/a.mp4")
    rows = rows_of(tmp_path, "vista", [{"image": "a.mp4", "conversations": TURNS}, {"conversations": TURNS}])
    assert (rows[0].file, rows[0].media[0].image) == ("temporal_niah_mcq/a.mp4", False)
    assert rows[0].text["assistant"] == "A square." and rows[0].extra["origin"] == "temporal_niah_mcq"
    assert rows[1].problem == "`image` is missing"


def test_cauldron_has_several_images_and_turns(tmp_path):
    turns = [{"user": f"<image>Question {i}?", "assistant": f"Answer {i}.", "source": "AI2D"} for i in range(2)]
    records = [
        {"images": [stored(10), stored(20), stored(30)], "texts": turns},
        {"images": [stored(10)], "texts": turns[:1]},
        {"images": [stored(i) for i in range(65)], "texts": turns},
        {"images": [stored(10), None], "texts": turns},
        {"images": [], "texts": turns},
        {"images": [stored(10)], "texts": []},
        {"images": [{"bytes": b"", "path": None}], "texts": turns},
    ]
    rows = rows_of(tmp_path, "cauldron", records)
    assert [media.content for media in rows[0].media] == [picture(grey) for grey in (10, 20, 30)]
    assert all(media.image for media in rows[0].media)
    assert [m["content"] for m in rows[0].text["messages"]] == ["Question 0?", "Answer 0.", "Question 1?", "Answer 1."]
    assert rows[0].extra["origin"] == "AI2D"
    assert rows[1].text == {"user": "Question 0?", "assistant": "Answer 0."}
    assert rows[1].file == rows[0].file != rows[0].media[1].file  # the same image has the same name everywhere
    facts = ["65 images", "`images` is null", "`images` is not a list", "`texts` is not a list", "no bytes"]
    assert all(fact in row.problem for fact, row in zip(facts, rows[2:], strict=True))
    assert rows[2].text == {} and rows[2].reason == "bad_row"


def test_smoltalk_as_parquet_and_as_lines(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Use <video> in HTML"}]
    chat.append({"role": "assistant", "content": "<video src=x>"})
    records = [{"messages": chat, "source": "smol-magpie-ultra"}, {"messages": None, "source": "x"}]
    good, bad = rows_of(tmp_path, "smoltalk", records)
    assert (good.media, good.text["messages"], good.extra) == ((), chat, {"origin": "smol-magpie-ultra"})
    assert "`messages` is not a list" in bad.problem
    assert rows_of(tmp_path, "smoltalk", records, "t.jsonl")[0] == good
    silent = rows_of(tmp_path, "smoltalk", [{"messages": chat[:2]}], "s.jsonl")[0]
    assert "`messages`" in silent.problem and "assistant" in silent.problem


def test_rlaif_v(tmp_path):
    pair = {"question": "What?", "chosen": "A cat.", "rejected": "A dog.", "origin_dataset": "COCO", "idx": "7"}
    about = {"ds_name": "RLAIF-V", "origin_split": "{}", "image_path": "7.jpg"}
    changes = [{}, {"rejected": ""}, {"image": None}]
    records = [{**about, "image": stored(9), **pair, **change} for change in changes]
    good, bad, null = rows_of(tmp_path, "rlaif_v", records)
    assert good.text == {"user": "What?", "chosen": "A cat.", "rejected": "A dog."}
    assert good.extra == {"id": "7", "origin": "COCO"} and good.media[0].content == picture(9)
    assert (bad.problem, bad.file) == ("`rejected` is empty", good.file)
    assert "`image` is null" in null.problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?\n<video>", "What?"),
        ("<image> <image>What?", "What?"),
        ("Is <image> like <|image|>?", "Is like?"),
        ("<|vision_start|><|video_pad|><|vision_end|>Why?", "Why?"),
        ("x <img> y", "x <img> y"),
        ("no mark  here ", "no mark  here "),
    ],
)
def test_marks_of_images_are_removed_from_the_users_text(text, expected):
    assert without_placeholders({"user": text, "assistant": "<image>"}) == {"user": expected, "assistant": "<image>"}
    answer = {"role": "assistant", "content": "<image>"}
    chat = without_placeholders({"messages": [{"role": "user", "content": text}, answer]})
    assert chat == {"messages": [{"role": "user", "content": expected}, answer]}


def test_a_question_that_is_only_a_mark_becomes_a_caption(tmp_path):
    turns = [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": LONG}]
    (row,) = rows_of(tmp_path, "vista", [{"video": "a.mp4", "conversations": turns}])
    assert row.text == {"caption": LONG}


def test_a_window_reads_only_the_row_groups_that_it_needs(tmp_path):
    records = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{i}"}]} for i in range(9)
    ]
    write_table(tmp_path / "a.parquet", records[:5])
    write_table(tmp_path / "b.parquet", records[5:])
    rows = read_rows(tmp_path, "*.parquet", reader="smoltalk")
    assert [row.text["assistant"] for row in rows] == [str(i) for i in range(9)]
    assert count_rows(tmp_path, "*.parquet", "smoltalk") == 9
    for start, stop in ((0, 1), (1, 4), (3, 7), (5, 9), (8, 20), (9, 12), (4, None)):
        assert read_rows(tmp_path, "*.parquet", start, stop, "smoltalk") == rows[start:stop]
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:60] = bytes(56)  # the first row group is now unreadable
    (tmp_path / "a.parquet").write_bytes(content)
    assert read_rows(tmp_path, "*.parquet", 2, 5, "smoltalk") == rows[2:5]
    with pytest.raises(UserError, match=r"a\.parquet"):
        read_rows(tmp_path, "*.parquet", 0, 1, "smoltalk")


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv"])
def test_windows_of_other_tables_are_those_of_the_whole(tmp_path, name):
    records = [{"videoid": i, "name": f"caption\n{i}"} for i in range(7)]
    if name == "t.csv":
        lines = "".join(f'{record["videoid"]},"{record["name"]}"\n\n' for record in records)
        (tmp_path / name).write_text(f"videoid,name\n{lines}")
    else:
        write_table(tmp_path / name, records)
    rows = read_rows(tmp_path, name, reader="webvid")
    assert [row.number for row in rows] == list(range(7)) and rows[6].text == {"caption": "caption\n6"}
    assert read_rows(tmp_path, name, 2, 5, "webvid") == rows[2:5]
    assert count_rows(tmp_path, name, "webvid") == 7


@pytest.mark.parametrize(
    ("reader", "name", "content", "message"),
    [
        ("webvid", None, None, "'results_2M_train.csv'.*`table`"),
        ("cauldron", "a/b.parquet", b"no parquet", "b.parquet.*Parquet"),
        ("vista", "a.json", b"[1, 2]", "a.json: entry 0"),
        ("vista", "a.json", b"[{", "a.json"),
        ("vista", "a.json", b"[" * 100_000, "a.json"),
        ("webvid", "results_2M_train.csv", b"videoid,name\n\xff\xfe,x\n", "CSV in UTF-8"),
        ("sharegpt4video", "sharegpt4video_40k.jsonl", b'{"a": 1}\n\n{', "line 3"),
        ("webvd", None, None, "'webvd'.*folder, files"),
    ],
)
def test_an_unknown_reader_or_a_broken_table_is_named(tmp_path, reader, name, content, message):
    if name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path, reader=reader)


def test_a_row_of_a_folder_may_name_several_images(tmp_path):
    records = [
        {"files": ["a.PNG", "b.jpg"], "question": "<image><image> Same?", "answer": "No."},
        {"file": "c.mp4", "caption": LONG, "prompt": "Say."},
        {"files": ["a.png", "c.mp4"], "caption": LONG},
        {"files": "a.png", "caption": LONG},
        {"files": [f"{i}.png" for i in range(65)], "caption": LONG},
    ]
    rows = rows_of(tmp_path, "folder", records)
    assert [(media.file, media.image) for media in rows[0].media] == [("a.PNG", True), ("b.jpg", True)]
    assert rows[0].text == {"user": "Same?", "assistant": "No."}
    assert (rows[1].media[0].image, rows[1].prompt) == (False, "Say.")
    facts = ["one video, or images", "`files`", "65 images"]
    assert all(fact in row.problem for fact, row in zip(facts, rows[2:], strict=True))


COLUMNS = """videoid page_dir name video caption clip_id video_title captions video_path conversations image images
    texts messages question chosen rejected idx videoID options answer candidates text label choices hint split id file
    files prompt"""
WRONG = [None, 3, 2.5, True, "", " ", [], [3], {}, {"a": 1}, "half a character: \ud83d", "text"]


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("files", "video2dataset", "mvbench")])
def test_values_of_any_type_give_a_row_or_a_reason(tmp_path, reader):
    """Each column in turn holds each kind of wrong value."""
    make = getattr(importlib.import_module(f"fvlm.data.readers.{READERS[reader].module}"), reader)
    columns = COLUMNS.split()
    good = {"image": {"bytes": picture(1), "path": None}, "images": [stored(1)], "conversations": TURNS, "idx": "1"}
    texts = dict.fromkeys(columns, "yes") | good | {"options": ["yes", "no"], "choices": ["a", "b"], "file": "x"}
    del texts["candidates"], texts["messages"], texts["files"]
    problems = set()
    for column in columns:
        for wrong in WRONG:
            row = row_of(5, make, texts | {column: wrong}, tmp_path, tmp_path / "t.json")
            assert row.number == 5 and (row.problem is None) == bool(row.text)
            json.dumps([row.text, row.extra, row.problem, row.file], ensure_ascii=False).encode()
            problems.add(row.problem)
    assert len(problems) > 1


# --- tables made by hand or by a spreadsheet

HI = 'He said "hi".'


@pytest.mark.parametrize(
    "table",
    [
        b"file,caption\na.mp4,A cat.\n", b"file, caption\na.mp4, A cat.\n", b" File ,Caption\r\na.mp4,A cat.\r\n",
        b"file;caption\na.mp4;A cat.\n", b"file\tcaption\na.mp4\tA cat.\n",
        "file,caption\na.mp4,A cat.\n".encode("utf-16"),
        "file;caption\r\na.mp4;A cat.\r\n".encode("utf-8-sig"), b'"file","caption"\n"a.mp4","A cat."\n',
    ],
    ids=["plain", "blanks", "another case", "semicolons", "tabs", "UTF-16", "a spreadsheet's", "quotes"],
)  # fmt: skip
def test_a_table_by_hand(tmp_path, table):
    (tmp_path / "t.csv").write_bytes(table)
    (row,) = read_rows(tmp_path, "t.csv")
    assert (row.file, row.text, row.problem) == ("a.mp4", {"caption": "A cat."}, None)


def test_one_bad_row_of_a_table_costs_that_row(tmp_path):
    lines = ["file,caption", 'a.mp4,"He said \\"hi\\", then left."', 'b.mp4,"He said ""hi""."', "c.mp4,fine"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    bad, quoted, fine = read_rows(tmp_path, "t.csv")
    assert "line 2" in bad.problem and '""' in bad.problem
    assert (quoted.text["caption"], fine.text["caption"]) == (HI, "fine") and count_rows(tmp_path, "t.csv") == 3
    assert [row.number for row in read_rows(tmp_path, "t.csv", start=1)] == [1, 2]


def test_a_quote_without_an_end_stops_the_table(tmp_path):
    (tmp_path / "t.csv").write_text('file,caption\na.mp4,"never closed\nb.mp4,fine\n')
    with pytest.raises(UserError, match="unexpected end"):
        list(read_rows(tmp_path, "t.csv"))


@pytest.mark.parametrize(
    ("content", "text", "problem"),
    [
        ([{"type": "text", "text": "A"}, {"type": "text", "text": "cat."}], "A\ncat.", None),
        ([{"type": "text", "text": "A"}, {"type": "image"}], None, "'image'"),
        (["A", "cat."], None, "str"),
        ([], None, "empty"),
    ],
)
@pytest.mark.parametrize("reader", ["folder", "smoltalk"])
def test_a_message_may_have_parts(tmp_path, reader, content, text, problem):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": content}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (row,) = read_rows(tmp_path, "t.jsonl", reader=reader)
    if problem:
        assert problem in row.problem
    else:
        found = row.text["messages"][-1]["content"] if "messages" in row.text else row.text["assistant"]
        assert row.problem is None and found == text


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_unicode_form_is_found(tmp_path, forms):
    stored, listed = (unicodedata.normalize(form, "Café.mp4") for form in forms)
    (tmp_path / "é").mkdir()
    add_video(tmp_path / "é" / stored)
    assert in_any_form(tmp_path / "é", listed) == tmp_path / "é" / stored
    assert in_any_form(tmp_path, "none.mp4") == tmp_path / "none.mp4"
