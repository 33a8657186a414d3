"""From a table to shards and ledgers: every row is counted once, and the bytes are always the same."""

import hashlib
import json
import shutil
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.__main__ import main
from fvlm.config.schema import Source
from fvlm.data.demo.corpus import make_corpus
from fvlm.data.readers import Row, count_rows, read_rows
from fvlm.data.shards.ledger import add_up, check_rejects, ledger_line
from fvlm.data.shards.write import checksum_of, make_shard, shard_paths
from fvlm.errors import UserError
from tests.reader_cases import lines_of


def test_every_row_is_in_the_ledger_once(questions, tmp_path):
    rows = add_up(
        [shard_paths(questions / "shards/questions", n)[1] for n in range(2)],
        tmp_path / "all.jsonl",
        tmp_path / "data.csv",
    )
    entries = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert sorted(entry["row"] for entry in entries) == list(range(16))
    assert sum(row["count"] for row in rows) == 16
    assert {row["reason"]: row["count"] for row in rows} == {"": 13, "empty": 1, "not_media": 1, "corrupt": 1}
    assert len((tmp_path / "data.csv").read_text().splitlines()) == 1 + len(rows)
    for entry in entries:
        assert (entry["key"] is None) == (entry["status"] == "rejected") == (entry["message"] is not None)
    with pytest.raises(UserError, match="twice"):
        add_up([shard_paths(questions / "shards/questions", 0)[1]] * 2, tmp_path / "all.jsonl", tmp_path / "data.csv")


@pytest.mark.parametrize("processes", [1, 3])
def test_shards_are_identical_for_any_number_of_processes_in_any_folder(questions, tmp_path, processes):
    folder = Path(shutil.copytree(questions / "corpus", tmp_path / "elsewhere"))
    tar, ledger = tmp_path / "00000.tar", tmp_path / "00000.ledger.jsonl"
    make_shard(read_rows(folder)[:10], folder, "questions", "video", "?", tar, ledger, processes)
    for path, first in zip((tar, ledger), shard_paths(questions / "shards/questions", 0), strict=True):
        assert path.read_bytes() == first.read_bytes()
    assert checksum_of(tar).read_text() == f"{hashlib.sha256(tar.read_bytes()).hexdigest()}  00000.tar\n"
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", tar.name, ledger.name, checksum_of(tar).name}


def test_a_source_name_with_a_dot_is_refused(tmp_path):
    """A WebDataset key ends at its first dot."""
    rows = [Row(0, (), {"user": "q", "assistant": "a"})]
    with pytest.raises(UserError, match=r"'v1\.0'.*letters, digits"):
        make_shard(rows, tmp_path, "v1.0", "text", "?", tmp_path / "0.tar", tmp_path / "0")
    with pytest.raises(ValueError, match="name"):
        Source(name="v1.0", kind="text", reader="folder")


def test_no_ledgers_give_an_empty_table(tmp_path):
    assert main(["ledger", "--out", str(tmp_path / "all.jsonl"), "--table", str(tmp_path / "data.csv")]) == 0
    assert (tmp_path / "all.jsonl").read_text() == ""
    assert (tmp_path / "data.csv").read_text() == "source,kind,status,reason,count,frames,hours\n"


def test_a_shard_that_keeps_nothing_fails(tmp_path):
    make_corpus("pictures", tmp_path / "corpus", samples=6, seed=1, broken=4, processes=1)
    rows = read_rows(tmp_path / "corpus", "samples.jsonl")
    bad = [row for row in rows if "broken" in row.file]
    arguments = (tmp_path / "corpus", "pictures", "image", "Say.", tmp_path / "0.tar", tmp_path / "0.ledger.jsonl")
    with pytest.raises(UserError, match=r"4 rows of 0\.tar"):
        make_shard(bad, *arguments)
    rejected = tmp_path / "0.ledger.jsonl.rejected"
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", rejected.name}
    assert len(lines_of(rejected)) == 4
    assert make_shard(bad, *arguments, may_be_empty=True)["kept"] == 0
    assert make_shard(rows, *arguments)["kept"] == 2  # the share is checked for the whole source
    assert not rejected.exists()


@pytest.mark.parametrize(("kept", "rejected", "limit"), [(3, 3, 0.4), (0, 1, 0.99), (1, 1, 0), (99, 2, 0.01)])
def test_too_many_rejects_of_a_source_are_refused(kept, rejected, limit):
    counts = Counter(kept=kept, corrupt=rejected - 1, empty=1)
    with pytest.raises(
        UserError, match=rf"'x': {rejected} of {kept + rejected} rows .* {limit:.0%}; read L.*`max_reject`"
    ):
        check_rejects("x", counts, limit, "L")
    check_rejects("x", counts, 1, "L")
    check_rejects("x", Counter(kept=kept), 0, "L")
    check_rejects("x", Counter(), 0, "L")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_counts_of_any_ledgers_add_up(data):
    """Rows of several sources in two ledgers; an index rejects some of the kept ones."""
    rows = data.draw(st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 300)), max_size=40))
    size = {"min_size": len(rows), "max_size": len(rows)}
    reasons = data.draw(st.lists(st.sampled_from([None, "empty", "corrupt"]), **size))
    by_index = data.draw(st.lists(st.booleans(), **size))
    ledgers, expected = [[], []], Counter()
    for (source, row), reason, rejected_by_index in zip(sorted(rows), reasons, by_index, strict=True):
        about = {"source": source, "kind": "text", "file": None}
        place = {"key": f"{source}-{row}", "shard": "0.tar"} if reason is None else {}
        ledgers[row % 2].append(ledger_line(**about, row=row, reason=reason, **place))
        if reason is None and rejected_by_index:
            ledgers[0].insert(0, ledger_line(**about, row=0, reason="bad_sample", **place))
            reason = "bad_sample"
        expected[source, reason or ""] += 1
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.jsonl") for i in range(2)]
        for path, lines in zip(paths, ledgers, strict=True):
            path.write_text("".join(lines))
        table = add_up(paths, Path(folder, "all.jsonl"), Path(folder, "data.csv"))
        merged = lines_of(Path(folder, "all.jsonl"))
    assert {(row["source"], row["reason"]): row["count"] for row in table} == expected
    assert {(entry["source"], entry["row"]) for entry in merged} == rows and len(merged) == len(rows)


def test_memory_of_a_long_ledger_is_a_bit_per_row(tmp_path):
    lines = [
        ledger_line(source="x", kind="text", row=100_000 * i, file=None, key=f"{i}", shard="s") for i in range(900)
    ]
    (tmp_path / "l.jsonl").write_text("".join(lines))
    tracemalloc.start()
    add_up([tmp_path / "l.jsonl"], tmp_path / "all.jsonl", tmp_path / "data.csv")
    assert tracemalloc.get_traced_memory()[1] < 32e6  # numbers up to 9e7, as video2dataset's tars have them
    tracemalloc.stop()
    assert (tmp_path / "all.jsonl").read_bytes() == (tmp_path / "l.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("t.csv", "file,text\na.mp4,hello\n", r"t.csv: columns are file, text.*`caption`"),
        ("u.jsonl", '{"file": "a"}\n', "u.jsonl: columns are file;.*`caption`"),
        ("t.csv", "path,caption\na.mp4,hello\n", r"t.csv.*`file` in path, caption"),
        ("t.jsonl", "[1]\n", r"t.jsonl: line 1"),
        ("t.tsv", "file\tcaption\n", r"t.tsv.* .csv, .jsonl, .json, .parquet"),
        ("other", "", "'t.csv'"),
    ],
)
def test_a_bad_or_missing_table_is_named(tmp_path, table, content, message):
    """When rows are counted, and in every window of rows."""
    (tmp_path / table).write_text(content)
    table = table if "." in table else "t.csv"
    for read in (count_rows, read_rows, lambda folder, name: read_rows(folder, name, 5, 9)):
        with pytest.raises(UserError, match=message):
            read(tmp_path, table)
        with pytest.raises(UserError, match=r"no folder.*nowhere"):
            read(tmp_path / "nowhere", table)


def test_rows_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text('\ufefffile,caption,prompt\na.mp4,"two\nlines",Say.\nb.mp4,,\nc.mp4\n')
    rows = read_rows(tmp_path, "t.csv")
    assert [row.problem is None for row in rows] == [True, False, False]
    assert (rows[0].file, rows[0].text, rows[0].prompt) == ("a.mp4", {"caption": "two\nlines"}, "Say.")
    assert count_rows(tmp_path, "t.csv") == 3
    assert read_rows(tmp_path, "t.csv", 1, 3) == rows[1:]
    forms = [
        {"file": "a", "question": "q", "answer": "x"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]},
        {"file": "a", "question": "q", "chosen": "x", "rejected": "y"},
        {"file": "a", "caption": " "},
        {"messages": [{"role": "robot", "content": "q"}]},
        {"file": 3, "caption": "c"},
        {"file": "a", "caption": "half a character: \ud83d"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(form) for form in forms))
    rows = read_rows(tmp_path, "t.jsonl")
    assert rows[0].text == {"user": "q", "assistant": "x"}
    assert rows[2].text == {"user": "q", "chosen": "x", "rejected": "y"}
    assert [row.number for row in rows if row.problem] == [3, 4, 5, 6]
    assert count_rows(tmp_path, "t.jsonl") == 7
    assert read_rows(tmp_path, "t.jsonl", 2, 4) == rows[2:4]
    assert read_rows(tmp_path, "t.jsonl", 7, 9) == []


def test_one_shard_of_a_table_is_that_of_the_whole_table(tmp_path, capsys):
    lines = [json.dumps({"question": "q", "answer": f"{i}"}) for i in range(5)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    command = ["shard", str(tmp_path), "--table", "t.jsonl", "--name", "t", "--kind", "text"]
    command += ["--samples-per-shard", "2", "--processes", "1", "--out"]
    assert main([*command, str(tmp_path / "all")]) == 0
    assert main([*command, str(tmp_path / "one"), "--shard", "1"]) == 0
    assert len(list((tmp_path / "all").glob("*.tar"))) == 3
    for name in ("00001.tar", "00001.ledger.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert [entry["row"] for entry in lines_of(tmp_path / "one/00001.ledger.jsonl")] == [2, 3]
    for shard in ("3", "-1"):
        assert main([*command, str(tmp_path / "one"), "--shard", shard]) == 2
        message = capsys.readouterr().err
        assert f"shard {shard} " in message and "5 rows" in message and "`samples:`" in message
    for shard, status in (("1", 2), ("2", 0)):
        assert main([*command, str(tmp_path / "last"), "--shard", shard, "--last"]) == status
