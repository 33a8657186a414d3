"""What types cannot say about a configuration: each check is one sentence with the place and the remedy."""

import difflib
import os
import re
from itertools import combinations

from fvlm.config.schema import Run, Source, Study
from fvlm.errors import UserError


def suggest(word: str, known: list[str]) -> str:
    """What was probably meant, or all that is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def check_run(run: Run, where: str) -> None:
    """One run for itself; raises UserError."""
    total = sum(run.data.share.values())
    if abs(total - 1) > 1e-6 or min(run.data.share.values()) < 0:
        raise UserError(f"{where}: data.share adds up to {total:g}; the shares of the kinds must add up to 1")
    if (run.train.samples is None) == (run.train.flops is None):
        raise UserError(f"{where}: set exactly one of train.samples and train.flops, the other to null")
    if (run.optim.schedule == "converging") != (run.optim.final_lr is not None):
        raise UserError(
            f"{where}: optim.final_lr belongs to schedule 'converging' and only to it; "
            f"the schedule is {run.optim.schedule!r}"
        )
    if run.train.seed < 0:
        raise UserError(f"{where}: train.seed is {run.train.seed}; give 0 or more")
    parts = {"llm"} if run.model.architecture == "blind" else {"connector", "dino", "llm"}
    if not parts - set(run.optim.freeze):
        raise UserError(
            f"{where}: optim.freeze is {list(run.optim.freeze)}, which leaves nothing to train in architecture "
            f"{run.model.architecture!r}; take one of {', '.join(sorted(parts))} out of it"
        )
    _check_preference(run, where)
    _check_tokens(run, where)
    _check_ranks(run, where)


def _check_preference(run: Run, where: str) -> None:
    """DPO wants pairs of answers and a reference: the weights that it starts from."""
    if run.data.loss != "preference":
        return
    others = [kind for kind, share in run.data.share.items() if share and kind != "preference"]
    if others:
        raise UserError(
            f"{where}: data.loss is 'preference', but data.share has {', '.join(others)}; only pairs of answers can be "
            "preferred: write data.share: {preference: 1.0}"
        )
    if run.model.lambda_coarse:
        raise UserError(
            f"{where}: model.lambda_coarse is {run.model.lambda_coarse:g}, but data.loss 'preference' has no coarse "
            "loss; set it to 0 in this stage"
        )
    if run.parent is None:
        raise UserError(
            f"{where}: data.loss is 'preference', which holds the model against the weights it starts from; give "
            "`parent:`, for example stage3"
        )


def _check_tokens(run: Run, where: str) -> None:
    tokens, patches = run.model.tokens_per_frame, run.model.encoder.patches
    if run.model.architecture == "multi_token" and (round(tokens**0.5) ** 2 != tokens or tokens > patches):
        raise UserError(
            f"{where}: model.tokens_per_frame is {tokens}; pooling {patches} patches needs a square of at most "
            f"that many: "
            "1, 4, 9 or 16"
        )
    if run.model.architecture == "pixel_shuffle" and tokens != 49:
        raise UserError(f"{where}: model.tokens_per_frame is {tokens}; pixel_shuffle always gives 49")


def _check_ranks(run: Run, where: str) -> None:
    gpus, ranks = run.operation.gpus, run.operation.ranks
    if gpus and ranks not in (None, gpus):
        raise UserError(
            f"{where}: operation.ranks is {ranks} and operation.gpus {gpus}; each process takes one GPU: write "
            "operation.ranks: null"
        )


def check_study(study: Study) -> None:
    """Runs, sources and tokenizer together; raises UserError."""
    odd = re.search(r"^-|[{}*?\\]|[\x00-\x1f\x7f\x85\u2028\u2029]", study.results)
    if odd:
        raise UserError(
            f"study {study.study!r}: results is {study.results!r}; {odd[0]!r} cannot be there, as Snakemake, or a "
            "command's options, would take it for something else; rename the folder"
        )
    if study.results != os.path.normpath(study.results):
        plain = os.path.normpath(study.results)
        raise UserError(f"study {study.study!r}: results is {study.results!r}; write it as {plain!r}")
    if "all" in study.sources:
        raise UserError(f"study {study.study!r}: a source is called 'all', as sums are in tables; rename it")
    for name in study.prepare:
        _known_source(name, study, f"study {study.study!r}: prepare")
    for source in study.sources.values():
        _check_held_out(source, study)
        for place in filter(None, (source.path, source.table)):
            if len(place.splitlines()) > 1 or place.endswith("\n"):
                raise UserError(
                    f"config/sources.yaml: source {source.name!r}: {place!r} has a line break, which Snakemake does "
                    "not take in the name of an input; rename it (names of files inside may have one)"
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
            _known_source(name, study, f"run {run.name!r}: data.sources")
        _check_files(run, study)
        _check_kinds(run, study)
        _check_parent(run, study)
        words = run.model.language.vocabulary
        if study.tokenizer.vocabulary and study.tokenizer.vocabulary > words:
            raise UserError(
                f"run {run.name!r}: its language model {run.model.language.name} has {words} words, the tokenizer "
                f"{study.tokenizer.vocabulary}; lower tokenizer.vocabulary or choose another model.language"
            )


def _known_source(name: str, study: Study, where: str) -> None:
    if name not in study.sources:
        raise UserError(
            f"{where} names {name!r}, which config/sources.yaml lacks; {suggest(name, list(study.sources))}"
        )


def _check_held_out(source: Source, study: Study) -> None:
    """A partner exists, is of the same kind, and no run trains on it."""
    partner = source.held_out
    where = f"config/sources.yaml: source {source.name!r}: held_out names {partner!r}"
    if isinstance(partner, float) and not 0 < partner < 1:
        raise UserError(
            f"config/sources.yaml: source {source.name!r}: held_out is {partner:g}; a share lies between 0 and 1"
        )
    if not isinstance(partner, str):
        return
    if partner not in study.sources:
        raise UserError(f"{where}, which is no source; give a source or a share such as 0.1")
    if study.sources[partner].kind != source.kind:
        raise UserError(
            f"{where} of kind {study.sources[partner].kind}; it must be {source.kind} like the source itself"
        )
    if _files(study.sources[partner]) == _files(source):
        raise UserError(f"{where}, which has the very same files; name other files there, or give a share such as 0.1")
    for run in study.runs.values():
        if partner in run.data.sources:
            raise UserError(f"{where}, which run {run.name!r} trains on; hold out what no run trains on")


def _check_files(run: Run, study: Study) -> None:
    """No source, and no two names of the same files, would show a run its samples twice."""
    for one, other in combinations(run.data.sources, 2):
        if _files(study.sources[one]) == _files(study.sources[other]):
            what = f"{one!r} twice" if one == other else f"{one!r} and {other!r}, which have the very same files"
            raise UserError(f"run {run.name!r}: data.sources names {what}; no sample is trained on twice: take one out")


def _files(source: Source) -> tuple:
    """Equal for two sources of the same files."""
    if source.reader == "demo" or source.path is None:
        return source.demo_family or source.name, source.demo_seed
    return os.path.normpath(source.path), source.table


def _check_kinds(run: Run, study: Study) -> None:
    sources = [study.sources[name] for name in run.data.sources]
    kinds = {source.kind for source in sources}
    for kind, share in run.data.share.items():
        if share > 0 and kind not in kinds:
            raise UserError(
                f"run {run.name!r}: data.share wants {share:.0%} {kind}, but none of its sources "
                f"({', '.join(run.data.sources)}) is of that kind"
            )
    _check_weights(run, sources)
    if not any(source.held_out for source in sources if run.data.share.get(source.kind, 0) > 0):
        raise UserError(
            f"run {run.name!r}: none of its sources ({', '.join(run.data.sources)}) holds anything out, so it "
            f"could not "
            "be evaluated; give one `held_out: 0.1` in config/sources.yaml"
        )


def _check_weights(run: Run, sources: list[Source]) -> None:
    """Weights are positive, of the run's own sources, and for all sources of a kind or for none of it."""
    where = f"run {run.name!r}: data.weights"
    for name, weight in run.data.weights.items():
        if name not in run.data.sources:
            raise UserError(f"{where} names {name!r}, which data.sources lacks; {suggest(name, [*run.data.sources])}")
        if weight <= 0:
            raise UserError(f"{where}: {name} has {weight:g}; give a number above 0, or take it out of data.sources")
    weighted = {source.kind for source in sources if source.name in run.data.weights}
    for source in sources:
        if source.kind in weighted and source.name not in run.data.weights:
            raise UserError(f"{where} has other {source.kind} sources, but not {source.name!r}; give it one too")


def _check_parent(run: Run, study: Study) -> None:
    if run.parent is None:
        return
    if run.parent not in study.runs:
        known = suggest(run.parent, list(study.runs))
        raise UserError(f"run {run.name!r}: its parent {run.parent!r} is no run of this study; {known}")
    parent, same = study.runs[run.parent], ("architecture", "encoder", "language", "query_dim", "tokens_per_frame")
    for field in same:
        if getattr(parent.model, field) != getattr(run.model, field):
            raise UserError(
                f"run {run.name!r}: model.{field} differs from that of its parent {run.parent!r}, whose weights it "
                "starts from; make them equal"
            )
