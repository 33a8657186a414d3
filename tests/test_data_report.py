"""The data report: its numbers equal the ledger's, near-duplicates are found, and the page runs and loads nothing."""

import csv
import html
import json
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from fvlm import data_report
from fvlm.__main__ import main
from fvlm.config.resolve import study_from_files
from fvlm.config.schema import Source, Study
from fvlm.data.batches.order import split_held_out
from fvlm.data.demo.corpus import make_corpus
from fvlm.data.readers import read_rows
from fvlm.data.shards.index import load_index, write_index
from fvlm.data.shards.ledger import add_up
from fvlm.data.shards.tar import read_sample, samples_of
from fvlm.data.shards.text import train_tokenizer
from fvlm.data.shards.write import open_tar
from fvlm.data_report import tables
from fvlm.data_report.collect import facts_of, read_ledger
from fvlm.data_report.report import make_report
from fvlm.errors import UserError
from tests.config_cases import CONFIG

EVIL = '<script>alert("1")</script> & "quotes"'
KINDS = {"moves": "video", "held": "video", "foreign": "video", "pairs": "preference", "one": "text", "none": "image"}


def copy_of(video: Path, out: Path) -> None:
    """The same video, smaller, brighter, in another format."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    change = ["-vf", "scale=200:-2,eq=brightness=0.02", "-c:v", "mpeg4", "-q:v", "5", "-an"]
    subprocess.run([ffmpeg, "-v", "error", "-y", "-i", str(video), *change, str(out)], check=True)


def make_shards(root: Path) -> dict[str, list[Path]]:
    """Shards of all sources; the first sample of `held` copies the first of `moves`."""
    corpus = root / "corpus"
    make_corpus("moves", corpus / "moves", samples=14, seed=1, broken=3, processes=2)
    make_corpus("moves", corpus / "held", samples=4, seed=2, broken=0, processes=2)
    make_corpus("preferences", corpus / "pairs", samples=3, seed=3, broken=0, processes=2)
    first = read_rows(corpus / "moves", "samples.jsonl")[0]
    copy_of(corpus / "moves" / first.file, corpus / "held" / "copy.mp4")
    table = corpus / "held" / "samples.jsonl"
    table.write_text(json.dumps({"file": "copy.mp4", "caption": EVIL}) + "\n" + table.read_text())
    (corpus / "one").mkdir()
    (corpus / "one" / "samples.jsonl").write_text(json.dumps({"question": "Why?", "answer": "Because. " * 40}))
    for name in ("moves", "held", "pairs", "one"):
        command = ["shard", str(corpus / name), "--name", name, "--kind", KINDS[name], "--processes", "2"]
        assert main([*command, "--samples-per-shard", "10", "--out", str(root / "shards" / name)]) == 0
    made = {name: sorted((root / "shards" / name).glob("*.tar")) for name in ("moves", "held", "pairs", "one")}
    return made | {name: [foreign_tar(root, name)] for name in ("foreign", "none")}


def foreign_tar(root: Path, name: str) -> Path:
    """Two samples of images alone, without any duration, or (`none`) one that says nothing."""
    moves = root / "shards/moves/00000.tar"
    images = {n: jpeg for n, jpeg in first_members(moves).items() if n.endswith("jpg")}
    odd = {"frame_times": ["soon"], "options": ["\ud800", 7], "correct": 1}
    tokens = {"token_ids": [5.0, 6.0, 7.0], "loss_mask": [0, 1, 1], "frame_times": 3, "options": 4}
    texts = {"foreign": [{"caption": EVIL} | odd, tokens], "none": [{}]}[name]
    path = root.parent / f"{name}.tar"
    with path.open("wb") as file, open_tar(file) as writer:
        for i, text in enumerate(texts):
            writer.write({"__key__": f"{name}{i}", **images, "json": json.dumps(text).encode()})
    return path


def first_members(tar: Path) -> dict[str, bytes]:
    entry = next(samples_of(tar.read_bytes(), str(tar)))
    return read_sample(tar, entry.offset, entry.length)


def make_study(root: Path) -> Study:
    smoke = study_from_files([str(CONFIG / "smoke.yaml")])
    run = smoke.runs["stage1"]
    data = run.data.model_copy(update={"sources": ("moves", "foreign", "pairs", "one", "none"), "max_text_tokens": 64})
    partner = {"moves": "held", "pairs": 0.5}
    sources = {
        name: Source(
            name=name, kind=kind, reader="shards" if name in ("foreign", "none") else "folder",
            path=str(root / "corpus" / name), prompt="Say what happens.", held_out=partner.get(name), samples=20,
        )
        for name, kind in KINDS.items()
    }  # fmt: skip
    runs = {"stage1": run.model_copy(update={"data": data})}
    return smoke.model_copy(update={"results": str(root), "sources": sources, "runs": runs, "prepare": []})


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """A study whose data are ready, and nothing else."""
    root = tmp_path_factory.mktemp("data") / "results"
    shards = make_shards(root)
    train_tokenizer(["a red square moves to the left, then it turns blue"] * 3, 300, root / "tokenizer")
    for name, tars in shards.items():
        out, foreign = root / "index" / f"{name}.npz", name in ("foreign", "none")
        write_index(tars, out, name, KINDS[name], root / "tokenizer", "?", root, foreign=foreign)
    made = [tar.with_suffix(".ledger.jsonl") for name in shards for tar in shards[name] if root in tar.parents]
    indexed = [root / "index" / f"{name}.ledger.jsonl" for name in shards]
    add_up([*made, *indexed], root / "ledger.jsonl", root / "tables/data.csv")
    return make_study(root)


@pytest.fixture(scope="module")
def page(study) -> str:
    return make_report(study, Path(study.results) / "data").read_text()


def table(study: Study, name: str) -> list[dict]:
    with (Path(study.results) / "data" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def cells(page: str, heading: str) -> list[list[str]]:
    """The first table under a heading, row by row."""
    after = page.split(f'id="{heading}"')[1]
    body = re.search(r"<tbody>(.*?)</tbody>", after, re.DOTALL).group(1)
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]


def test_the_command_writes_the_files_that_the_rule_expects(study, page):
    made = {path.name for path in (Path(study.results) / "data").iterdir()}
    assert made == {"report.html", *data_report.FILES}


def test_the_page_counts_what_the_ledger_counts(study, page):
    entries = [json.loads(line) for line in (Path(study.results) / "ledger.jsonl").read_text().splitlines()]
    counted = Counter((entry["source"], entry["status"]) for entry in entries)
    frames = Counter()
    for entry in entries:
        frames[entry["source"]] += entry["frames"] if entry["status"] == "kept" else 0
    rows = {row[0]: row for row in cells(page, "sources")}
    for name in KINDS:
        kept, rejected = counted[name, "kept"], counted[name, "rejected"]
        assert (rows[name][3], rows[name][8]) == (str(kept), str(rejected)), name
        assert rows[name][6] == str(frames[name]), name
    assert rows["all"][3] == str(sum(counted[name, "kept"] for name in KINDS))
    reasons = Counter((e["source"], e["reason"]) for e in entries if e["status"] == "rejected")
    assert {(row["source"], row["reason"]): int(row["count"]) for row in table(study, "rejected")} == reasons
    named = {row["file"] for row in table(study, "rejected_examples")}
    assert named >= {e["file"] for e in entries if e["status"] == "rejected" and e["file"]}
    seconds = {e["file"]: e["duration_s"] for e in entries if e["source"] == "moves" and e["status"] == "kept"}
    hours = float(next(row["hours"] for row in table(study, "sources") if row["source"] == "moves"))
    assert hours == pytest.approx(sum(seconds.values()) / 3600, rel=1e-5)


def test_histograms_hold_every_sample_once(study, page):
    index = load_index(Path(study.results) / "index/moves.npz")
    rows = [row for row in table(study, "histograms") if row["source"] == "moves"]
    for quantity, values in (("frames", index.frames), ("text_tokens", index.text_tokens)):
        own = [row for row in rows if row["quantity"] == quantity]
        assert sum(int(row["count"]) for row in own) == len(index)
        for row in own:
            low, high = int(row["low"]), float(row["high"] or np.inf)
            assert int(row["count"]) == np.count_nonzero((values >= low) & (values < high))
    assert sorted(set(tables.TOKENS)) == tables.TOKENS


def test_a_copy_among_the_held_out_samples_is_found_and_shown(study, page):
    found = [row for row in table(study, "near_duplicate_pairs") if row["held_out_source"] == "held"]
    copied = [row for row in found if row["training_key"] == "moves-0000000"]
    assert [row["held_out_key"] for row in copied] == ["held-0000000"]
    assert "held out, held: held-0000000" in page and "trained on, moves: moves-0000000" in page
    warnings = [row["warning"] for row in table(study, "warnings")]
    assert any("Near-duplicates" in text and "held 20.0 %" in text for text in warnings)
    counts = {(row["held_out_source"], row["training_source"]): row for row in table(study, "near_duplicates")}
    assert int(counts["held", "moves"]["compared"]) == 5 and int(counts["held", "moves"]["affected"]) == 1
    assert int(counts["held", "all"]["affected"]) == 1


def test_texts_of_a_data_set_are_shown_and_never_run(study, page):
    assert "<script" not in page and 'alert("1")' not in page
    assert page.count("&lt;script&gt;alert(") >= 3 and EVIL in html.unescape(page)  # two samples, and a pair


def test_the_page_refers_to_no_other_file(page):
    references = re.findall(r"""(?:src|href|url|data|poster|action)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    outside = [reference for reference in references if not reference.startswith(("data:image/", "#"))]
    assert len(references) > 20 and outside == []
    assert "@import" not in page and "<link" not in page and "<iframe" not in page


def test_unknown_durations_of_finished_shards_are_reported(study, page):
    row = next(row for row in cells(page, "sources") if row[0] == "foreign")
    assert row[5] == "unknown (frames only)"
    stored = next(row for row in table(study, "sources") if row["source"] == "foreign")
    assert stored["hours"] == "" and stored["without_duration"] == stored["samples"] == "2"
    notes = page.split('<ul class="notes')[1].split("</ul>")[0]
    assert "shards of foreign" in notes and "durations" in notes


def test_odd_fields_of_finished_shards_do_no_harm(page):
    assert "? · ✓ 7" in page  # half of a surrogate pair cannot be encoded


def test_hours_count_a_clip_once_and_each_clip_of_a_file(study):
    """Clips of one file are often equally long; samples of one clip have the same images too."""
    results = Path(study.results)
    index = load_index(results / "index/moves.npz")
    facts = facts_of(index, read_ledger(results / "ledger.jsonl")["moves"], study)
    n = len(facts)
    cut = replace(facts, group=np.zeros(n, np.int64), duration_s=np.full(n, 36, np.float32))
    assert len(np.unique(facts.hashes, axis=0)) == n and cut.hours == pytest.approx(n / 100)
    assert replace(cut, hashes=facts.hashes[:1].repeat(n, 0)).hours == pytest.approx(1 / 100)


def test_sources_of_one_sample_and_of_none(study, page):
    rows = {row["source"]: row for row in table(study, "sources")}
    assert (rows["one"]["samples"], rows["one"]["texts_cut"], rows["one"]["frames"]) == ("1", "1", "0")
    assert (rows["none"]["samples"], rows["none"]["rejected"], rows["none"]["text_tokens_median"]) == ("0", "1", "")
    warnings = " ".join(row["warning"] for row in table(study, "warnings"))
    for fact in ("none: no usable sample", "one: 100.0 %", "max_text_tokens", "No image", "foreign, one, none"):
        assert fact in warnings


def test_preference_pairs_show_both_answers(page):
    sheet = page.split('id="sheet-pairs"')[1].split("</details>")[0]
    assert sheet.count('class="turn chosen"') == sheet.count('class="turn rejected"') == 3


def test_the_mixture_is_stated_in_samples(study, page):
    rows = {(r["where"], r["kind"], r["source"]): r for r in table(study, "mixture")}
    samples = study.runs["stage1"].train.samples
    drawn = rows["stage1", "video", "all"]
    assert int(drawn["samples"]) == round(samples * study.runs["stage1"].data.share["video"])
    parts = [int(rows["stage1", "video", name]["samples"]) for name in ("moves", "foreign")]
    assert sum(parts) == int(drawn["samples"]) and parts[0] > parts[1]
    held = {row["source"]: row for row in table(study, "held_out")}
    trainable = sum(int(held[name]["training_samples"]) for name in ("moves", "foreign"))
    assert int(rows["corpus", "video", "all"]["samples"]) == trainable
    assert held["moves"]["partner"] == "held" and held["moves"]["held_out_samples"] == "5"
    split = split_held_out(load_index(Path(study.results) / "index/pairs.npz"), 0.5)
    found = [int(held["pairs"][name]) for name in ("training_samples", "held_out_samples")]
    assert found == [len(rows) for rows in split] and sum(found) == 3


def test_the_same_data_give_the_same_page(study, page, tmp_path):
    again = make_report(study, tmp_path)
    assert again.read_text() == page


def test_a_changed_ledger_or_a_missing_shard_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_ledger(tmp_path / "ledger.jsonl")
    (tmp_path / "ledger.jsonl").write_text('{"source": "x"}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl: line 1"):
        read_ledger(tmp_path / "ledger.jsonl")
    root, shard = Path(study.results), Path(study.results) / "shards/moves/00001.tar"
    ledger = (root / "ledger.jsonl").read_text()
    try:
        (root / "ledger.jsonl").write_text("".join(ledger.splitlines(keepends=True)[1:]))
        with pytest.raises(UserError, match=r"source 'moves'.*10 samples.*delete"):
            make_report(study, tmp_path)
        (root / "ledger.jsonl").write_text(ledger)
        shard.rename(tmp_path / "away.tar")
        with pytest.raises(UserError, match=r"shard .* is missing"):
            make_report(study, tmp_path)
    finally:
        (root / "ledger.jsonl").write_text(ledger)
        if not shard.exists():
            (tmp_path / "away.tar").rename(shard)


def test_a_study_that_only_prepares_its_data_has_a_report_too(study, tmp_path):
    only = study.model_copy(update={"runs": {}, "prepare": ["moves", "pairs"]})
    page = make_report(only, tmp_path).read_text()
    assert [row[0] for row in cells(page, "sources")] == ["moves", "held", "pairs", "all"]
    assert "The study trains nothing." in page and "No text samples" in page


def test_the_digest_changes_with_the_mixture_of_the_stages_alone(study):
    run = study.runs["stage1"]
    other = run.model_copy(update={"data": run.data.model_copy(update={"max_text_tokens": 65})})
    assert data_report.digest(study) != data_report.digest(study.model_copy(update={"runs": {"stage1": other}}))
    ablation = run.model_copy(update={"name": "A1", "family": "ablation"})
    both = study.model_copy(update={"runs": {"stage1": run, "A1": ablation}})
    assert data_report.digest(both) == data_report.digest(study)
