"""This Snakefile as a module of another one: which rules are used, where its results go, and its handlers."""

from collections.abc import Callable
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.path_modifier import PathModifier

from fvlm.config.study_file import complete
from fvlm.errors import UserError


def is_whole(workflow) -> bool:
    """Return whether all rules are used; `use rule NAME from MODULE` parses the Snakefile again for a single one."""
    return workflow.modifier.rule_whitelist is None and workflow.modifier.avail_rulename("all") is not None


def is_training(job) -> bool:
    """Return whether a job of Snakemake is a training; a module may add a prefix to the rule's name."""
    return not job.is_group() and job.rule.name.endswith("train") and job.wildcards.get("run") is not None


_NAMES: dict[str, str] = {}  # results folder -> name of its rule `all`


def name_of_all(workflow, folder: str) -> str | None:
    """The name of the rule `all`, which a module may change; also while a single rule is parsed again."""
    name = workflow.modifier.avail_rulename("all")
    return _NAMES.setdefault(folder, name) if name else _NAMES.get(folder)


def with_prefix(workflow, config: dict) -> dict:
    """Return the configuration with the results in the folder that the module's `prefix` or `replace_prefix` gives.

    Snakemake would change the files of the rules, but not the folder that the commands read from the configuration.
    So the study gets the changed folder, and the rules get their files from the study.
    """
    if workflow.modifier.is_main_snakefile():
        return config
    paths, workflow.modifier.path_modifier = workflow.modifier.path_modifier, PathModifier(None, None, workflow)
    try:  # `results` may be in the study that this one is based on
        beside = [Path(file).parent for file in reversed(workflow.configfiles)]
        folder = config.get("results") or complete(config, beside).get("results")
    except UserError as error:
        raise WorkflowError(str(error)) from error
    return {**config, "results": paths.replace_prefix(f"{folder}/").rstrip("/")} if folder else config


def call_handlers(workflow) -> None:
    """Call onstart, onsuccess and onerror of this Snakefile in a module too, where Snakemake does not call them."""
    if workflow.modifier.is_main_snakefile() or not is_whole(workflow):
        return
    for name in ("_onstart", "_onsuccess", "_onerror"):
        setattr(workflow, name, _both(getattr(workflow, name), workflow.globals[name[1:]]))


def _both(first: Callable, second: Callable) -> Callable:
    def handler(log) -> None:
        first(log)
        second()

    return handler
