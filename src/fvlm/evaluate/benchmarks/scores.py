"""Scores of a benchmark from its record: per cent, by mode, frames, way and category, with intervals over videos."""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

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
    "chance", "questions", "videos", "asked", "missing", "unusable", "source",
)  # fmt: skip
Cell = tuple[str, str, str, str, str, str]  # mode, frames, way, metric, group, category


def rows_of(run: str, name: str, benchmark: Benchmark, modes: list[str], records: list[dict]) -> list[dict]:
    """Return one row per mode, kind of frames, way, metric and category, with the COLUMNS; scores in per cent.

    A row is `main` if it is the benchmark's score in the mode of inference. `chance` is the score of guessing: the mean
    of 1 / number of options. `asked` are all questions; `missing` lack their video, `unusable` their options.
    """
    kept = [record for record in records if "problem" not in record]
    missing = sum("problem" in record and record["reason"] == "missing" for record in records)
    about = {"run": run, "benchmark": name, "title": benchmark.title, "asked": len(records), "missing": missing}
    about |= {"unusable": len(records) - len(kept) - missing, "source": ""}
    if not kept:
        return []
    if benchmark.captions:
        return [about | row for row in _caption_rows(kept, modes[0], name)]
    main = (modes[0], OWN, benchmark.main, next(iter(benchmark.metrics)), ALL, ALL)
    sums = _Sums(kept)
    for cell, place, (top, bottom) in _counted(benchmark, kept):
        sums.add(cell, place, top, bottom)
    scores = sums.scores(name)
    counts = sums.counts()
    chances = {cell: _chance(benchmark, kept, cell) for cell in scores}
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
        questions, videos = counts[cell]
        row = {"score": values[0], "low": low, "high": high, "chance": 100 * chances[cell]}
        result.append(about | place | _finite(row) | {"main": cell == main, "questions": questions, "videos": videos})
    return result


class _Sums:
    """Numerators and denominators of scores, by cell and question."""

    def __init__(self, records: list[dict]):
        names = [record["video"] for record in records]
        self.videos, self.column = np.unique(names, return_inverse=True)
        self.cells: dict[Cell, list[tuple[int, float, float]]] = {}

    def add(self, cell: Cell, place: int, top: float, bottom: float) -> None:
        self.cells.setdefault(cell, []).append((place, top, bottom))

    def counts(self) -> dict[Cell, tuple[int, int]]:
        """Return of each cell the number of its questions and of its videos."""
        places = {cell: {place for place, *_ in entries} for cell, entries in self.cells.items()}
        return {cell: (len(own), len({self.column[place] for place in own})) for cell, own in places.items()}

    def scores(self, name: str) -> dict[Cell, np.ndarray]:
        """Return of each cell its score, then those of resamples of the videos, drawn alike for all runs and cells."""
        top, bottom = np.zeros((2, len(self.cells), len(self.videos)))
        for row, entries in enumerate(self.cells.values()):
            for place, upper, lower in entries:
                top[row, self.column[place]] += upper
                bottom[row, self.column[place]] += lower
        top, bottom = resampled_sums(top, bottom, DRAWS, zlib.crc32(name.encode()))
        plain = np.divide(top[:, :1], bottom[:, :1], out=np.zeros_like(top[:, :1]), where=bottom[:, :1] > 0)
        values = np.where(bottom > 0, np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0), plain)
        return dict(zip(self.cells, values, strict=True))


def _counted(benchmark: Benchmark, records: list[dict]) -> Iterator[tuple[Cell, int, tuple[float, float]]]:
    """Yield what each answer counts: its cell, the place of its question, numerator and denominator.

    The answers to the rotations of a question count as one: a model that always chooses the first option is at chance.
    """
    for place, record in enumerate(records):
        groups = [(ALL, ALL), *record["categories"].items()]
        answers = [((one["mode"], one["frames"], one["way"]), one["chosen"]) for one in record["answers"]]
        rotations = Counter(key for key, _ in answers)
        for key, chosen in answers:
            for metric, function in benchmark.metrics.items():
                top, bottom = function(chosen, record["answer"])
                for group in groups:
                    yield (*key, metric, *group), place, (top / rotations[key], bottom / rotations[key])
            if key[2] == GENERATED:
                yield (*key, NO_ANSWER, ALL, ALL), place, (float(chosen is None), 1.0)


def _chance(benchmark: Benchmark, records: list[dict], cell: Cell) -> float:
    """Return the expected score of guessing."""
    *_, metric, group, category = cell
    own = [record for record in records if group == ALL or record["categories"].get(group) == category]
    if metric == NO_ANSWER:
        return float("nan")
    counted = [_guessed(benchmark.metrics[metric], record) for record in own]
    top, bottom = np.sum(counted, axis=0)
    return float(top / bottom) if bottom else float("nan")


def _guessed(metric, record: dict) -> tuple[float, float]:
    """Return the mean of what each option would count."""
    each = [metric(option, record["answer"]) for option in range(len(record["options"]))]
    return tuple(np.mean(each, axis=0).tolist())


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
