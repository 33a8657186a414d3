"""Making the data report of a study: its page, its figures and its tables."""

from pathlib import Path

import pandas as pd

from fvlm import style
from fvlm.analysis.files import replacing, write_table
from fvlm.config.schema import Study
from fvlm.data.shards.index import Index, load_index
from fvlm.data.shards.text import load_tokenizer
from fvlm.data_report import FIGURES, contact, duplicates, findings, plots, tables
from fvlm.data_report.collect import Facts, Inputs, drawn, facts_of, read_ledger
from fvlm.data_report.page import Pair, Sheet, render
from fvlm.errors import UserError
from fvlm.files import write_beside
from fvlm.pages import data_uri

PAIRS = 12  # pairs of near-duplicates that are shown
DPI = 130


def make_report(study: Study, out: Path) -> Path:
    """Write the page, its figures (PNG, PDF) and its tables (CSV) into the folder `out`, and return the page's path.

    raises      UserError if there is no ledger, or a source has no index or lacks a shard
    """
    style.apply()
    results = Path(study.results)
    tokenizer = load_tokenizer(results / "tokenizer")
    ledger = read_ledger(results / "ledger.jsonl")
    facts, sheets = [], []
    for name in study.used_sources:  # one index at a time: the keys of a large one take hundreds of MB
        index = load_index(results / "index" / f"{name}.npz")
        facts.append(facts_of(index, ledger.pop(name, Inputs()), study))
        sheets.append(_sheet(index, facts[-1], results, tokenizer))
    if not facts:
        raise UserError("the study has no source; give one of its runs `data.sources`")
    pairs = duplicates.closest_pairs(facts)
    made = _tables(facts, study, pairs)
    made["contact_sheet"] = pd.DataFrame(
        [(sheet.source, shown.key, shown.about) for sheet in sheets for shown in sheet.shown],
        columns=["source", "key", "about"],
    )
    shown, made["near_duplicate_pairs"] = _pairs(study, pairs, tokenizer)
    for name, table in made.items():
        write_table(table, out / f"{name}.csv")
    pictures = {name: _draw(name, made, out) for name in FIGURES}
    page = render(study.study, made, pictures, findings.notes(facts, study), shown, sheets)
    # A text may hold half of a surrogate pair, which JSON allows and UTF-8 does not.
    write_beside(out / "report.html", lambda beside: beside.write_text(page, encoding="utf-8", errors="replace"))
    return out / "report.html"


def _tables(facts: list[Facts], study: Study, pairs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    made = {
        "sources": tables.sources(facts),
        "mixture": tables.mixture(facts, study),
        "histograms": tables.histograms(facts),
        "shards": tables.shards(facts),
        "held_out": tables.held_out(facts),
        "near_duplicates": duplicates.counts(facts, pairs),
    }
    made["rejected"], made["rejected_examples"] = tables.rejected(facts)
    return made | {"warnings": pd.DataFrame({"warning": findings.warnings(facts, made)})}


def _sheet(index: Index, facts: Facts, results: Path, tokenizer) -> Sheet:
    rows = drawn(index, contact.SAMPLES)
    shown = [contact.show(index, int(row), results, facts.source.prompt, tokenizer) for row in rows]
    role = f"held out for {', '.join(facts.split.partner_of)}" if facts.split.partner_of else facts.source.reader
    return Sheet(index.source, f"{index.kind}, {role}: {len(shown)} of {len(index):,} samples", shown)


def _pairs(study: Study, pairs: pd.DataFrame, tokenizer) -> tuple[list[Pair], pd.DataFrame]:
    """Return the closest pairs as the page shows them, and a table of all pairs with the keys of their samples."""
    chosen = duplicates.chosen_to_show(pairs, PAIRS)
    sides: dict[tuple[str, int], contact.Shown] = {}
    named = pairs.drop(columns=["held_out_row", "training_row"]).assign(held_out_key="", training_key="")
    for name in sorted({*pairs["held_out_source"], *pairs["training_source"]}):
        index = load_index(Path(study.results) / "index" / f"{name}.npz")
        for part in ("held_out", "training"):
            of_source = pairs[f"{part}_source"] == name
            named.loc[of_source, f"{part}_key"] = index.keys[pairs.loc[of_source, f"{part}_row"].to_numpy(int)]
            for row in chosen.loc[chosen[f"{part}_source"] == name, f"{part}_row"]:
                compared = sorted({0, int(index.frames[row]) // 2})
                prompt = study.sources[name].prompt
                sides[name, row] = contact.show(index, row, Path(study.results), prompt, tokenizer, compared)
    shown = [
        Pair(
            f"{row.distance_bits} of 63 bits differ" if row.distance_bits else "the same hashes",
            [
                (f"held out, {row.held_out_source}", sides[row.held_out_source, row.held_out_row]),
                (f"trained on, {row.training_source}", sides[row.training_source, row.training_row]),
            ],
        )
        for row in chosen.itertuples()
    ]
    return shown, named


def _draw(name: str, made: dict[str, pd.DataFrame], out: Path) -> str:
    """Write a figure as PNG and PDF, and return it as the `src` of an <img>. The same tables give the same bytes."""
    try:
        figure = getattr(plots, name)(made)
    except style.NothingToDraw as reason:
        figure = style.words(FIGURES[name], str(reason))
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        with replacing(out / f"{name}{suffix}") as beside:
            figure.savefig(beside, dpi=DPI, metadata=metadata)
    plots.plt.close(figure)
    return data_uri((out / f"{name}.png").read_bytes(), "png")
