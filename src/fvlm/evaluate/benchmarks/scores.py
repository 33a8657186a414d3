"""Scores of a benchmark from its record: per cent, by mode, frames, way and category, with intervals over videos."""

import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from fvlm.analysis.compare.bootstrap import interval, resampled_sums
from fvlm.evaluate.benchmarks.ask import OTHER, OWN
from fvlm.evaluate.benchmarks.captions import caption_scores
from fvlm.evaluate.benchmarks.question import GENERATED, Benchmark

ALL = "all"  # group and category of all questions
NO_ANSWER = "no_answer"  # metric: share of the generated answers that name no option
DRAWS = 1000
PLACE = ("mode", "frames", "way", "metric", "group", "category")
COLUMNS = (
    "run", "benchmark", "title", "main", *PLACE, "score", "low", "high", "chance", "questions", "videos", "total",
    "missing", "unusable", "source",
)  # fmt: skip
Cell = tuple[str, ...]  # values of PLACE
TOP, BOTTOM, CHANCE_TOP, CHANCE_BOTTOM, QUESTIONS = range(5)


def rows_of(run: str, name: str, benchmark: Benchmark, modes: list[str], records: list[dict]) -> list[dict]:
    """Return one row per mode, kind of frames, way, metric and category, with the COLUMNS; scores in per cent.

    A row is `main` if it is the benchmark's score in the mode of inference. `chance` is the score of guessing: the mean
    of 1 / number of options. `total` counts all questions; `missing` lack their video, `unusable` their options, or
    have a prompt that is too long.
    """
    kept = [record for record in records if "problem" not in record]
    missing = sum("problem" in record and record["reason"] == "missing" for record in records)
    about = {"run": run, "benchmark": name, "title": benchmark.title, "total": len(records), "missing": missing}
    about |= {"unusable": len(records) - len(kept) - missing, "source": ""}
    if not kept:
        return []
    make = _caption_rows if benchmark.captions else _choice_rows
    return [about | row for row in make(benchmark, modes[0], kept, zlib.crc32(name.encode()))]


def _choice_rows(benchmark: Benchmark, inference: str, records: list[dict], seed: int) -> Iterable[dict]:
    cells = _counted(benchmark, records)
    sums = np.stack(list(cells.values()), axis=1)  # (5, cells, videos)
    top, bottom = resampled_sums(sums[TOP], sums[BOTTOM], DRAWS, seed)  # the draws are those of all runs
    plain = _ratio(top[:, :1], bottom[:, :1])  # of a resample without any question of the cell
    scores = dict(zip(cells, np.where(bottom > 0, _ratio(top, bottom), plain), strict=True))
    guessed = _ratio(sums[CHANCE_TOP].sum(1), sums[CHANCE_BOTTOM].sum(1))
    chances = dict(zip(cells, guessed, strict=True))
    if benchmark.mean_over:
        for way in dict.fromkeys(cell[:4] for cell in cells):
            parts = [cell for cell in cells if cell[:5] == (*way, benchmark.mean_over)]
            if parts:
                scores[*way, ALL, ALL] = np.mean([scores[cell] for cell in parts], axis=0)
                chances[*way, ALL, ALL] = np.mean([chances[cell] for cell in parts])
    main = (inference, OWN, benchmark.main, next(iter(benchmark.metrics)), ALL, ALL)
    for cell, values in scores.items():
        values, counts = np.clip(100 * values, 0, 100), cells[cell][QUESTIONS]
        low, high = interval(values[1:])
        row = {"score": values[0], "low": low, "high": high, "chance": 100 * chances[cell]}
        counts = {"questions": round(counts.sum()), "videos": int((counts > 0).sum())}
        yield dict(zip(PLACE, cell, strict=True)) | _finite(row) | counts | {"main": cell == main}


def _counted(benchmark: Benchmark, records: list[dict]) -> dict[Cell, np.ndarray]:
    """Return cell -> (5, videos): numerator and denominator, those of guessing, and the number of questions.

    The answers to the rotations of a question count as one: a model that always chooses the first option is at chance.
    """
    column = {video: place for place, video in enumerate(sorted({record["video"] for record in records}))}
    cells: dict[Cell, np.ndarray] = {}

    def add(cell: Cell, video: str, *values: float) -> None:
        cells.setdefault(cell, np.zeros((5, len(column))))[:, column[video]] += values

    for record in records:
        video, right, options = record["video"], record["answer"], range(len(record["options"]))
        groups = [(ALL, ALL), *record["categories"].items()]
        ways = [(one["mode"], one["frames"], one["way"]) for one in record["answers"]]
        rotations = Counter(ways)
        for name, metric in benchmark.metrics.items():
            guess = np.mean([metric(option, right) for option in options], axis=0)
            for way, one in zip(ways, record["answers"], strict=True):
                values = np.array([*metric(one["chosen"], right), *guess, 1]) / rotations[way]
                for group in groups:
                    add((*way, name, *group), video, *values)
        for way, one in zip(ways, record["answers"], strict=True):
            if way[2] == GENERATED:
                add((*way, NO_ANSWER, ALL, ALL), video, one["chosen"] is None, 1, np.nan, 1, 1)
    return cells


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: round(float(value), 4) if np.isfinite(value) else None for name, value in values.items()}


def _caption_rows(benchmark: Benchmark, inference: str, records: list[dict], seed: int) -> Iterable[dict]:
    """Rows of the measures of captions; `chance` is the score of the captions of other videos."""
    captions, references = ([record[key] for record in records] for key in ("generated", "references"))
    references = [tuple(several) for several in references]
    scores = caption_scores(captions, references)
    swapped = caption_scores(captions[1:] + captions[:1], references)
    place = {"mode": inference, "way": GENERATED, "group": ALL, "category": ALL}
    place |= {"questions": len(records), "videos": len(records)}
    for frames, measured in ((OWN, scores), (OTHER, swapped)):
        for metric, (score, each) in measured.items():
            low, high = np.nan, np.nan
            if each is not None:
                sums = np.array([each])
                top, bottom = resampled_sums(sums, np.ones_like(sums), DRAWS, seed)
                low, high = interval(top[0, 1:] / bottom[0, 1:])
            row = {"score": score, "low": low, "high": high, "chance": swapped[metric][0]}
            main = frames == OWN and metric == next(iter(measured))
            yield place | {"frames": frames, "metric": metric, "main": main} | _finite(row)
