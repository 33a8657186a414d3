"""Checks of a configuration beyond types and ranges. Each raises UserError with the place, the value and the remedy."""

import difflib
import os
import re
from itertools import combinations

from fvlm.config.schema import Run, Source, Study
from fvlm.errors import UserError

PARENT_FIELDS = ("architecture", "encoder", "language", "query_dim", "tokens_per_frame")  # must equal the parent's


def suggest(word: str, known: list[str]) -> str:
    """Return the known word that is most similar, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


# --- one run ---


def check_run(run: Run, where: str) -> None:
    """Check a run by itself. `where`: file and entry, for the message."""
    total = sum(run.data.share.values())
    if abs(total - 1) > 1e-6 or min(run.data.share.values()) < 0:
        raise UserError(f"{where}: data.share adds up to {total:g}; the shares of the kinds must add up to 1")
    if (run.train.samples is None) == (run.train.flops is None):
        raise UserError(f"{where}: set exactly one of train.samples and train.flops, the other to null")
    if (run.optim.schedule == "converging") != (run.optim.final_lr is not None):
        raise UserError(
            f"{where}: optim.schedule is {run.optim.schedule!r}; set optim.final_lr for schedule 'converging', and to "
            "null for any other"
        )
    if run.train.seed < 0:
        raise UserError(f"{where}: train.seed is {run.train.seed}; expected 0 or more")
    parts = {"connector", "dino", "llm"} if run.model.variant.sees else {"llm"}
    if not parts - set(run.optim.freeze):
        raise UserError(
            f"{where}: optim.freeze is {list(run.optim.freeze)}, which leaves nothing to train in architecture "
            f"{run.model.architecture!r}; remove one of {', '.join(sorted(parts))}"
        )
    _check_preference(run, where)
    if run.model.variant.problem:
        raise UserError(f"{where}: {run.model.variant.problem}")
    gpus, ranks = run.operation.gpus, run.operation.ranks
    if gpus and ranks not in (None, gpus):
        raise UserError(
            f"{where}: operation.ranks is {ranks} and operation.gpus {gpus}, but each process uses one GPU; write "
            "operation.ranks: null"
        )


def _check_preference(run: Run, where: str) -> None:
    """Check that DPO has only pairs of answers, no coarse loss, and a parent as its reference."""
    if run.data.loss != "preference":
        return
    others = [kind for kind, share in run.data.share.items() if share and kind != "preference"]
    if others:
        raise UserError(
            f"{where}: data.loss is 'preference', which needs pairs of answers, but data.share has "
            f"{', '.join(others)}; write data.share: {{preference: 1.0}}"
        )
    if run.model.lambda_coarse:
        raise UserError(
            f"{where}: model.lambda_coarse is {run.model.lambda_coarse:g}, but data.loss 'preference' has no coarse "
            "loss; set it to 0 in this stage"
        )
    if run.parent is None:
        raise UserError(
            f"{where}: data.loss is 'preference', which compares the model with the weights it starts from; add "
            "`parent:`, for example stage3"
        )


# --- a study ---


def check_study(study: Study) -> None:
    """Check runs, sources and tokenizer together."""
    _check_results(study)
    if "all" in study.sources:
        raise UserError(f"study {study.study!r}: rename the source 'all'; tables use this name for sums")
    for name in study.prepare:
        _check_source_exists(name, study, f"study {study.study!r}: prepare")
    for source in study.sources.values():
        _check_held_out(source, study)
        if source.reader == "shards" and not source.crop:
            raise UserError(
                f"config/sources.yaml: source {source.name!r}: crop is false, but the frames of finished shards "
                "(reader: shards) are not cut any more; remove `crop`, or say so where the shards are made"
            )
        for place in filter(None, (source.path, source.table)):
            if len(place.splitlines()) > 1 or place.endswith("\n"):
                raise UserError(
                    f"config/sources.yaml: source {source.name!r}: {place!r} has a line break, which Snakemake does "
                    "not accept in an input; rename it (names of files inside it may have one)"
                )
    for run, place in study.comparisons.named.items():
        if run not in study.comparisons.ablations:
            known = suggest(run, list(study.comparisons.ablations))
            raise UserError(
                f"config/comparisons.yaml, or comparisons of study {study.study!r}: {place}: no ablation {run!r} in "
                f"config/ablations.yaml or the study, {known}"
            )
    for run in study.runs.values():
        for name in run.data.sources:
            _check_source_exists(name, study, f"run {run.name!r}: data.sources")
        _check_no_sample_twice(run, study)
        _check_kinds(run, study)
        _check_parent(run, study)
        size, vocabulary = run.model.language.vocabulary, study.tokenizer.vocabulary
        if vocabulary and vocabulary > size:
            raise UserError(
                f"run {run.name!r}: tokenizer.vocabulary is {vocabulary}, but model.language "
                f"{run.model.language.name} has {size} words; lower tokenizer.vocabulary or choose another "
                "model.language"
            )


def _check_results(study: Study) -> None:
    odd = re.search(r"^-|[{}*?\\]|[\x00-\x1f\x7f\x85\u2028\u2029]", study.results)
    if odd:
        raise UserError(
            f"study {study.study!r}: results is {study.results!r}, but {odd[0]!r} has a special meaning for Snakemake "
            "or in options; rename the folder"
        )
    plain = os.path.normpath(study.results)
    if study.results != plain:
        raise UserError(f"study {study.study!r}: results is {study.results!r}; write it as {plain!r}")


def _check_source_exists(name: str, study: Study, where: str) -> None:
    if name not in study.sources:
        raise UserError(f"{where}: no source {name!r} in config/sources.yaml; {suggest(name, list(study.sources))}")


def _check_held_out(source: Source, study: Study) -> None:
    """Check that held_out is a share, or a source of the same kind with other files that no run trains on."""
    partner = source.held_out
    where = f"config/sources.yaml: source {source.name!r}: held_out"
    if isinstance(partner, float) and not 0 < partner < 1:
        raise UserError(f"{where} is {partner:g}; expected a share between 0 and 1")
    if not isinstance(partner, str):
        return
    where += f" names {partner!r}"
    if partner not in study.sources:
        raise UserError(f"{where}, which is no source; write the name of a source or a share such as 0.1")
    kind = study.sources[partner].kind
    if kind != source.kind:
        raise UserError(f"{where} of kind {kind}; expected a source of kind {source.kind}")
    if _files(study.sources[partner]) == _files(source):
        raise UserError(f"{where}, which has the very same files; name a source with other files, or a share like 0.1")
    for run in study.runs.values():
        if partner in run.data.sources:
            raise UserError(f"{where}, which run {run.name!r} trains on; name a source that no run trains on")


def _check_no_sample_twice(run: Run, study: Study) -> None:
    for one, other in combinations(run.data.sources, 2):
        if _files(study.sources[one]) == _files(study.sources[other]):
            what = f"{one!r} twice" if one == other else f"{one!r} and {other!r}, which have the very same files"
            raise UserError(f"run {run.name!r}: data.sources has {what}; a run sees each sample once: remove one")


def _files(source: Source) -> tuple:
    """Return a key that is equal for two sources of the same files."""
    if source.reader == "demo" or source.path is None:
        return source.demo_family or source.name, source.demo_seed
    return os.path.normpath(source.path), source.table


def _check_kinds(run: Run, study: Study) -> None:
    """Check that each kind in data.share has sources, and that the run has held-out samples."""
    sources = [study.sources[name] for name in run.data.sources]
    names, kinds = ", ".join(run.data.sources), {source.kind for source in sources}
    for kind, share in run.data.share.items():
        if share > 0 and kind not in kinds:
            raise UserError(
                f"run {run.name!r}: data.share has {share:.0%} {kind}, but no source in data.sources ({names}) is of "
                "that kind; add one, or set the share to 0"
            )
    _check_weights(run, sources)
    if not any(source.held_out for source in sources if run.data.share.get(source.kind, 0) > 0):
        raise UserError(
            f"run {run.name!r}: none of its sources ({names}) has held-out samples, so it cannot be evaluated; give "
            "one of them `held_out: 0.1` in config/sources.yaml"
        )


def _check_weights(run: Run, sources: list[Source]) -> None:
    """Check that weights are positive, of the run's own sources, and for all sources of a kind or for none of it."""
    where = f"run {run.name!r}: data.weights"
    for name, weight in run.data.weights.items():
        if name not in run.data.sources:
            raise UserError(f"{where}: {name!r} is not in data.sources; {suggest(name, [*run.data.sources])}")
        if weight <= 0:
            raise UserError(f"{where}: {name} is {weight:g}; expected more than 0, or remove it from data.sources")
    weighted = {source.kind for source in sources if source.name in run.data.weights}
    for source in sources:
        if source.kind in weighted and source.name not in run.data.weights:
            raise UserError(
                f"{where} has other sources of kind {source.kind}, but not {source.name!r}; add a weight for it"
            )


def _check_parent(run: Run, study: Study) -> None:
    if run.parent is None or run.parent_path:  # weights of another size are refused when they are read
        return
    if run.parent not in study.runs:
        known = suggest(run.parent, list(study.runs))
        if os.path.exists(run.parent):
            known = f"a file or folder of weights is written with a /: ./{run.parent}"
        raise UserError(f"run {run.name!r}: parent {run.parent!r} is no run of this study; {known}")
    for field in PARENT_FIELDS:
        if getattr(study.runs[run.parent].model, field) != getattr(run.model, field):
            raise UserError(
                f"run {run.name!r}: model.{field} differs from that of its parent {run.parent!r}, which gives its "
                "first weights; make them equal"
            )
