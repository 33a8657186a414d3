"""Resolve the files in config/ to a study: all its runs with all their settings, checked before the first job.

A run starts as baseline.yaml. Later settings replace earlier ones: the study's `baseline:`, the entry of the stage,
ablation or grid run, and the study's changes to that entry. They name a field by its dotted path.
No torch, no pandas: Snakemake imports this while it parses the Snakefile.
"""

import argparse
import copy
import hashlib
import json
import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fvlm.config.checks import check_run, check_study, suggest
from fvlm.config.comparisons import Ablation, Comparisons, Sweep
from fvlm.config.schema import EncoderSize, LanguageSize, Run, Source, Study
from fvlm.config.study_file import COMPLETE, complete, merged, read_yaml
from fvlm.errors import UserError

QUESTION = "question"  # reserved key of an ablation: a sentence, no field of the configuration
CHANGES = ("baseline", "stages", "ablations", "scaling")  # sections of a study that change the file of that name
FAMILY_KEYS = {"ablation": "ablations", "grid": "grid", "pairs": "grid"}  # names in `seeds:` for all runs of a family
LENGTHS = ("samples", "flops")  # of a training; one of them is set
AXES = ("sizes", "budgets", "architectures", "base")  # keys of scaling.yaml, beside NAMES
NAMES = "names"  # how the runs of the grid are named
LABELS = ("size", "budget", "letter")  # of a run of the grid
DEFAULT_STUDY = "config/config.yaml"


def load_study(config: dict, *beside: Path | str) -> Study:
    """Return the study of a study file's content and of the other files in config/.

    config      content of a study file (config.yaml, paper.yaml, ...), merged with changes from the command line
    beside      folders of the study files, where the other files are looked for first
    raises      UserError for the first mistake, with file, field and remedy
    """
    config = complete(config, beside)
    _refuse_unknown(config)
    for section in (*CHANGES, "sources", "only", "seeds", "comparisons"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(
                f"study {config.get('study', '?')!r}: {section}: expected a mapping, found {config[section]!r}"
            )
    files = config[COMPLETE]
    where = f"study {config.get('study', '?')!r}"
    settings = {key: config[key] for key in config if key not in (*CHANGES, COMPLETE)}
    if "results_from" in config:
        settings["results_from"] = _results_from(config["results_from"], where)
    root = config.get("data_root", Study.model_fields["data_root"].default)
    settings["sources"] = _sources(files["sources"], config.get("sources", {}), where, str(root))
    build = _Builder(files, config, where, settings["sources"])
    settings |= {"runs": _named(build.runs(), where), "seeds": build.seeds.lists}
    compared = merged(files["comparisons"], config.get("comparisons", {}))
    settings["comparisons"] = _comparisons(compared, build.ablations(), where)
    study = _validated(Study, settings, where)
    check_study(study)
    return study


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", nargs="+", help="study files, later ones win (default: config/config.yaml)")


def study_of(args: argparse.Namespace) -> Study:
    """Return the study of a command: of its --study, else the default."""
    return study_from_files(args.study or [DEFAULT_STUDY])


def study_from_files(paths: list[str], changes: dict | None = None) -> Study:
    """Return the study of several files, of which later ones win, and of changes to them."""
    config: dict = {}
    for path in paths:
        config = merged(config, read_yaml(Path(path)))
    return load_study(merged(config, changes or {}), *(Path(path).parent for path in reversed(paths)))


def _named(runs: list[Run], where: str) -> dict[str, Run]:
    result: dict[str, Run] = {}
    for run in runs:
        if run.name in result:
            raise UserError(
                f"{where}: two runs are called {run.name!r}, a {result[run.name].family} and a {run.family}; rename one"
            )
        result[run.name] = run
    return result


def _results_from(value: object, where: str) -> list[str]:
    """Return the list of paths. An empty one is an error: it would train the whole study."""
    names = [value] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names)):
        raise UserError(
            f"{where}: results_from: found {value!r}; expected a file or folder with finished results, or a list of "
            "them as '[A, B]'; leave it out to train the study"
        )
    return names


def _refuse_unknown(config: dict) -> None:
    """Raise UserError for a key that no study has. `runs` is made from the sections, so a study does not set it."""
    known = sorted({*CHANGES, "based_on", *Study.model_fields} - {"runs"})
    for key in config:
        if key not in known and key != COMPLETE:
            raise UserError(f"study {config.get('study', '?')!r}: unknown key {key!r}, {suggest(str(key), known)}")


def _validated(schema: type[BaseModel], content: dict, where: str) -> Any:
    """Build `schema`; raise UserError for the first field that is wrong."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        # A misspelt key is an unknown and a missing one; the unknown one is the mistake.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_at(schema, first["loc"][:-1])
            raise UserError(f"{where}: unknown key {path!r}, {suggest(str(first['loc'][-1]), known)}") from error
        if first["type"] == "missing":
            raise UserError(f"{where}: {path!r} is missing; add it") from error
        found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
        raise UserError(f"{where}: {path!r}: {first['msg']}{found}") from error


def _known_at(schema: type[BaseModel], loc: tuple) -> list[str]:
    for part in loc:
        field = schema.model_fields.get(part) if isinstance(part, str) else None
        inner = [] if field is None else get_args(field.annotation) or [field.annotation]  # of `Factorial | None`
        inner = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        schema = inner[0]
    return list(schema.model_fields)


def _sources(entries: dict, changes: dict, where: str, root: str) -> dict[str, Source]:
    """Return the typed sources. `root` replaces {data_root} in their paths."""
    result = {}
    for name, entry in merged(entries, changes).items():
        origin = "config/sources.yaml" if name in entries else where
        if not isinstance(entry, dict):
            raise UserError(
                f"{origin}: source {name!r}: expected a mapping such as {{kind: video, ...}}, found {entry!r}"
            )
        if isinstance(entry.get("path"), str):
            entry = {**entry, "path": entry["path"].replace("{data_root}", root.rstrip("/") or "/")}
        result[name] = _validated(Source, {"name": name, **entry}, f"{origin}: source {name!r}")
    return result


def _comparisons(content: dict, ablations: dict[str, Ablation], where: str) -> Comparisons:
    """The typed comparisons; an entry that the study sets to null is left out."""
    where = f"config/comparisons.yaml, or comparisons of {where}"
    sweeps = content.get("sweeps") or {}
    if "ablations" in content or not isinstance(sweeps, dict):
        raise UserError(f"{where}: expected a mapping of sweeps, and no key 'ablations'; that is a file of its own")
    checked = _validated(Comparisons, content | {"sweeps": {}}, where)
    found = {}
    for name, entry in sweeps.items():
        if isinstance(entry, dict):
            found[name] = _validated(Sweep, {"reference": checked.reference, **entry}, f"{where}: sweeps: {name}")
        elif entry is not None:
            raise UserError(f"{where}: sweeps: {name}: expected a mapping with question and runs, found {entry!r}")
    return checked.model_copy(update={"sweeps": found, "ablations": ablations})


class _Builder:
    """Builds the runs of a study from the files and the study's changes."""

    def __init__(self, files: dict, config: dict, where: str, sources: dict[str, Source]):
        self.files, self.config, self.where = files, config, where
        self.sources = sources
        self.seeds = _Seeds(config.get("seeds", {}), where)
        self.base = {"parent": None, **copy.deepcopy(files["baseline"])}
        self._override(self.base, config.get("baseline", {}), f"{where}: baseline")

        place = "config/baseline.yaml" + (f" with {where}: baseline" if config.get("baseline") else "")
        self._run("ablation", "baseline", [(place, {})])  # reports mistakes of the baseline under its own name

    def runs(self) -> list[Run]:
        runs = [*self._stages(), *self._ablations(), *self._grid()]
        self.seeds.refuse_unknown([*self.files["ablations"], *(self.config.get("ablations") or {})])
        return runs

    def _stages(self) -> list[Run]:
        listed = self._listed("stages")
        return [self._run("stage", _checked_name(name, lines[-1][0]), lines) for name, lines in listed]

    def _ablations(self) -> list[Run]:
        runs = []
        for name, lines in self._listed("ablations"):
            question = ""
            for i, (where, entry) in enumerate(lines):
                if isinstance(entry, dict) and QUESTION in entry:
                    question = _checked_question(entry[QUESTION], where)
                    lines[i] = where, {key: value for key, value in entry.items() if key != QUESTION}
            runs += [run.model_copy(update={QUESTION: question}) for run in self._seeded("ablation", name, lines)]
        return runs

    def ablations(self) -> dict[str, Ablation]:
        """What the analysis needs to know about every ablation, also about those that the study leaves out."""
        changes = self.config.get("ablations") or {}
        found = {}
        for name in [*self.files["ablations"], *changes]:
            parts = [part.get(name) for part in (self.files["ablations"], changes)]
            entry = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
            architecture = entry.get("model.architecture", self.base["model"]["architecture"])
            found[name] = Ablation(question=entry.get(QUESTION) or "", architecture=architecture)
        return found

    def _listed(self, section: str) -> list[tuple[str, list]]:
        """Return each entry of a file with the study's changes to it: (name, [(where, overrides), ...])."""
        entries, changes = self.files[section], self.config.get(section) or {}
        names = self._wanted(section, list(dict.fromkeys([*entries, *changes])))
        places = ((f"config/{section}.yaml", entries), (f"{self.where}: {section}", changes))
        return [
            (name, [(f"{where}: {name}", content[name] or {}) for where, content in places if name in content])
            for name in names
        ]

    def _wanted(self, section: str, names: list[str]) -> list[str]:
        """Return the names that the study's `only:` leaves of a section."""
        wanted = self.config.get("only", {}).get(section)
        for name in wanted or ():
            if name not in names:
                raise UserError(f"{self.where}: only: {section}: no run {name!r}, {suggest(str(name), names)}")
        return names if wanted is None else [name for name in names if name in wanted]

    def _grid(self) -> list[Run]:
        axes = self.files["scaling"] | (self.config.get("scaling") or {})
        unknown = sorted(axes.keys() - {*AXES, NAMES})
        if unknown:
            known = suggest(unknown[0], [*AXES, NAMES])
            raise UserError(f"config/scaling.yaml: unknown key {unknown[0]!r}, {known}")
        for axis in AXES:
            if not isinstance(axes.get(axis), dict):
                raise UserError(f"config/scaling.yaml: {axis}: expected a mapping of names, found {axes.get(axis)!r}")
        sizes, budgets, architectures, base = (axes[axis] for axis in AXES)
        points, runs = {}, []
        for point in product(sizes, budgets, architectures):
            if sizes[point[0]] is not None and budgets[point[1]] is not None:  # null: removed by the study
                name = _grid_name(axes.get(NAMES), dict(zip(LABELS, point, strict=True)))
                if name in points:
                    raise UserError(f"scaling: {NAMES}: {axes[NAMES]!r} names two runs {name!r}; use all of its parts")
                points[name] = point
        self.seeds.known |= {*points, *budgets}
        for name in self._wanted("grid", list(points)):
            size, budget, letter = points[name]
            # a budget of FLOPs is a point of the iso-FLOP grid; other settings only make pairs of architectures
            of_flops = not isinstance(budgets[budget], dict)
            limit = {"train.samples": None, "train.flops": budgets[budget]} if of_flops else budgets[budget]
            lines = [
                ("config/scaling.yaml: base", base),
                (f"config/scaling.yaml: {size}", sizes[size]),
                (f"config/scaling.yaml: {letter}", architectures[letter]),
                (f"config/scaling.yaml: {budget}", limit),
            ]
            labels = dict(zip(LABELS, points[name], strict=True))
            runs += self._seeded("grid" if of_flops else "pairs", name, lines, labels)
        return runs

    def _seeded(self, family: str, name: str, lines: list, labels: dict | None = None) -> list[Run]:
        """Return one run per seed. Its own seed keeps the name, any other gets the suffix -s and the seed.

        So a run keeps its name when `seeds:` is sorted, shortened or extended.
        """
        where, own = lines[-1][0], self.base["train"]["seed"]
        for _, overrides in lines:
            own = overrides.get("train.seed", own) if isinstance(overrides, dict) else own
        runs = []
        for seed in self.seeds.of(family, _checked_name(name, where), (labels or {}).get("budget")) or [own]:
            full_name = name if seed == own else f"{name}-s{seed}"
            runs.append(self._run(family, full_name, [*lines, (where, {"train.seed": seed})], labels))
        return runs

    def _run(self, family: str, name: str, lines: list[tuple[str, dict]], labels: dict | None = None) -> Run:
        content = copy.deepcopy(self.base)
        for where, overrides in lines:
            self._override(content, overrides, where)
        where = lines[-1][0]
        content["model"]["encoder"] = self._size("encoders", EncoderSize, content["model"]["encoder"], where)
        content["model"]["language"] = self._size("languages", LanguageSize, content["model"]["language"], where)
        described = {"name": name, "family": family, "labels": labels or {}}
        run = _validated(Run, {**described, **content}, where)
        check_run(run, where)
        return run.model_copy(update={"sources_digest": self._sources_digest(run)})

    def _sources_digest(self, run: Run) -> str:
        """Hash what sources.yaml says about a run's samples beyond their files: splits, prompts and kinds."""
        sources = [self.sources.get(name) for name in run.data.sources]
        partners = [self.sources.get(s.held_out) for s in sources if s and isinstance(s.held_out, str)]
        content = [(s.name, s.kind, s.prompt, s.held_out) for s in [*sources, *partners] if s]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _size(self, section: str, schema: type[BaseModel], name: Any, where: str) -> BaseModel:
        sizes = self.files["models"].get(section, {})
        if name not in sizes:
            field = "model." + section[:-1]
            raise UserError(
                f"{where}: {field}: no size {name!r} in config/models.yaml, {suggest(str(name), list(sizes))}"
            )
        return _validated(schema, {"name": name, **sizes[name]}, f"config/models.yaml: {name}")

    def _override(self, content: dict, overrides: dict, where: str) -> None:
        if not isinstance(overrides, dict):
            raise UserError(f"{where}: expected overrides such as {{optim.lr.connector: 1.0e-3}}, found {overrides!r}")
        for path, value in overrides.items():
            *branch, leaf = str(path).split(".")
            place = content
            for part in branch:
                place = place.get(part) if isinstance(place, dict) else None
            if not isinstance(place, dict) or leaf not in place:
                raise UserError(f"{where}: unknown field {path!r}, {suggest(str(path), _paths(self.base))}")
            place[leaf] = copy.deepcopy(value)
        given = [field for field in LENGTHS if overrides.get(f"train.{field}") is not None]
        if len(given) == 1:  # it replaces the length that an earlier choice gave in the other unit
            content["train"] |= {field: None for field in LENGTHS if field not in given}


def _checked_name(name: object, where: str) -> str:
    """Return the name if folders and commands can have it, and tables would not pool it as a further seed."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"{where}: {name!r} cannot be a run's name; use letters, digits, _, - and ., with a letter or digit first"
        )
    if re.search(r"-s\d+$", name):
        raise UserError(
            f"{where}: {name!r} is called like a further seed of another run; rename it, or give seeds under "
            "`seeds:` of the study"
        )
    return name


def _grid_name(pattern: object, labels: dict[str, str]) -> str:
    """Return the name of a run of the grid: `{size}-{budget}-{letter}` if the study gives no other pattern."""
    pattern = pattern or "{size}-{budget}-{letter}"
    try:
        return str(pattern).format(**labels)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"scaling: {NAMES}: found {pattern!r}; expected a pattern with {{size}}, {{budget}} and {{letter}}"
        ) from error


def _checked_question(question: object, where: str) -> str:
    if question is not None and not isinstance(question, str):
        raise UserError(f"{where}: question is {question!r}; expected a sentence: write it in quotes")
    return question or ""


class _Seeds:
    """The study's `seeds:`. The seeds of a run go before those of its budget, and these before those of its family.

    Null removes an inherited list.
    """

    def __init__(self, lists: dict, where: str):
        self.lists = {name: seeds for name, seeds in lists.items() if seeds is not None}
        self.where, self.known = where, set(FAMILY_KEYS.values())
        for name, seeds in self.lists.items():
            valid = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
            if not valid or len(set(seeds)) < len(seeds):
                raise UserError(
                    f"{where}: seeds: {name}: found {seeds!r}, expected a list of different whole numbers from 0: "
                    "[42, 43, 44]"
                )

    def of(self, family: str, name: str, budget: str | None) -> list[int] | None:
        names = [name, *([budget] if budget else []), FAMILY_KEYS[family]]
        self.known.update(names)
        return next((self.lists[known] for known in names if known in self.lists), None)

    def refuse_unknown(self, ablations: list[str]) -> None:
        """Raise UserError for seeds of an unknown run. `ablations`: all, also those that the study leaves out."""
        known = sorted(map(str, self.known | set(ablations)))
        for name in self.lists:
            if name not in known:
                raise UserError(
                    f"{self.where}: seeds: {name!r} is no ablation or grid run of this study, "
                    f"{suggest(str(name), known)} (a stage has one seed, since each starts from the one before)"
                )


def _paths(content: dict, prefix: str = "") -> list[str]:
    """Return the dotted paths of all fields and branches."""
    result = []
    for key, value in content.items():
        result.append(prefix + key)
        if isinstance(value, dict):
            result += _paths(value, f"{prefix}{key}.")
    return result
