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
COLUMNS = (
    "run", "benchmark", "title", "main", "mode", "frames", "way", "metric", "group", "category", "score", "low", "high",
    "chance", "questions", "videos", "total", "missing", "unusable", "source",
)  # fmt: skip
Cell = tuple[str, str, str, str, str, str]  # mode, frames, way, metric, group, category


def rows_of(run: str, name: str, benchmark: Benchmark, modes: list[str], records: list[dict]) -> list[dict]:
    """Return one row per mode, kind of frames, way, metric and category, with the COLUMNS; scores in per cent.

    A row is `main` if it is the benchmark's score in the mode of inference. `chance` is the score of guessing: the mean
    of 1 / number of options. `total` counts all questions; `missing` lack their video, `unusable` their options.
    """
    kept = [record for record in records if "problem" not in record]
    missing = sum("problem" in record and record["reason"] == "missing" for record in records)
    about = {"run": run, "benchmark": name, "title": benchmark.title, "total": len(records), "missing": missing}
    about |= {"unusable": len(records) - len(kept) - missing, "source": ""}
    if not kept:
        return []
    if benchmark.captions:
        return [about | row for row in _caption_rows(kept, modes[0], name)]
    main = (modes[0], OWN, benchmark.main, next(iter(benchmark.metrics)), ALL, ALL)
    column = np.unique([record["video"] for record in kept], return_inverse=True)[1]
    cells = _counted(benchmark, kept)
    scores = _resampled(cells, column, name)
    chances = {cell: _ratio(entries[:, 3].sum(), entries[:, 4].sum()) for cell, entries in cells.items()}
    if benchmark.mean_over:
        for mode, frames, way, metric in dict.fromkeys(cell[:4] for cell in scores):
            parts = [cell for cell in scores if cell[:5] == (mode, frames, way, metric, benchmark.mean_over)]
            whole = (mode, frames, way, metric, ALL, ALL)
            if parts:
                scores[whole] = np.mean([scores[cell] for cell in parts], axis=0)
                chances[whole] = float(np.mean([chances[cell] for cell in parts]))
    result = []
    for cell, values in scores.items():
        values = np.clip(100 * values, 0, 100)
        low, high = interval(values[1:])
        place = dict(zip(("mode", "frames", "way", "metric", "group", "category"), cell, strict=True))
        places = np.unique(cells[cell][:, 0].astype(int))
        counts = {"questions": len(places), "videos": len(np.unique(column[places]))}
        row = {"score": values[0], "low": low, "high": high, "chance": 100 * chances[cell]}
        result.append(about | place | _finite(row) | counts | {"main": cell == main})
    return result


def _counted(benchmark: Benchmark, records: list[dict]) -> dict[Cell, np.ndarray]:
    """Return cell -> (answers, 5): the place of the question, numerator and denominator, and those of guessing.

    The answers to the rotations of a question count as one: a model that always chooses the first option is at chance.
    """
    cells: dict[Cell, list[tuple[float, ...]]] = {}
    for place, record in enumerate(records):
        groups = [(ALL, ALL), *record["categories"].items()]
        right, options = record["answer"], range(len(record["options"]))
        guessed = {
            metric: [
                sum(values) / len(options) for values in zip(*(function(one, right) for one in options), strict=True)
            ]
            for metric, function in benchmark.metrics.items()
        }
        answers = [((one["mode"], one["frames"], one["way"]), one["chosen"]) for one in record["answers"]]
        rotations = Counter(key for key, _ in answers)
        for key, chosen in answers:
            for metric, function in benchmark.metrics.items():
                values = [value / rotations[key] for value in (*function(chosen, right), *guessed[metric])]
                for group in groups:
                    cells.setdefault((*key, metric, *group), []).append((place, *values))
            if key[2] == GENERATED:
                one = (place, float(chosen is None), 1.0, np.nan, 1.0)
                cells.setdefault((*key, NO_ANSWER, ALL, ALL), []).append(one)
    return {cell: np.array(entries) for cell, entries in cells.items()}


def _resampled(cells: dict[Cell, np.ndarray], column: np.ndarray, name: str) -> dict[Cell, np.ndarray]:
    """Return of each cell its score, then those of resamples of the videos, drawn alike for all runs and cells.

    column  of each question the number of its video
    """
    top, bottom = np.zeros((2, len(cells), column.max() + 1))
    for row, entries in enumerate(cells.values()):
        videos = column[entries[:, 0].astype(int)]
        np.add.at(top[row], videos, entries[:, 1])
        np.add.at(bottom[row], videos, entries[:, 2])
    top, bottom = resampled_sums(top, bottom, DRAWS, zlib.crc32(name.encode()))
    plain = _ratio(top[:, :1], bottom[:, :1])  # of a resample without any question of the cell
    return dict(zip(cells, np.where(bottom > 0, _ratio(top, bottom), plain), strict=True))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: round(float(value), 4) if np.isfinite(value) else None for name, value in values.items()}


def _caption_rows(records: list[dict], mode: str, name: str) -> Iterable[dict]:
    """Rows of the measures of captions; `chance` is the score of the captions of other videos."""
    captions, references = ([record[key] for record in records] for key in ("generated", "references"))
    references = [tuple(several) for several in references]
    scores = caption_scores(captions, references)
    swapped = caption_scores(captions[1:] + captions[:1], references)
    place = {"mode": mode, "way": GENERATED, "group": ALL, "category": ALL}
    place |= {"questions": len(records), "videos": len(records)}
    for frames, measured in ((OWN, scores), (OTHER, swapped)):
        for metric, (score, each) in measured.items():
            low, high = np.nan, np.nan
            if each is not None:
                sums = np.array([each])
                top, bottom = resampled_sums(sums, np.ones_like(sums), DRAWS, zlib.crc32(name.encode()))
                low, high = interval(top[0, 1:] / bottom[0, 1:])
            row = {"score": score, "low": low, "high": high, "chance": swapped[metric][0]}
            main = frames == OWN and metric == next(iter(measured))
            yield place | {"frames": frames, "metric": metric, "main": main} | _finite(row)
