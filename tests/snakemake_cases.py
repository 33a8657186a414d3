"""Objects of Snakemake for the tests of what the rules call."""

from pathlib import Path
from types import SimpleNamespace

from snakemake.settings.enums import Quietness


def of(**names: str) -> SimpleNamespace:
    """Wildcards of a job."""
    return SimpleNamespace(**names)


def of_snakemake(
    snakefile: Path = Path("Snakefile"), files: tuple[str, ...] = (), quiet: Quietness | None = None, failed: tuple = ()
) -> SimpleNamespace:
    """Snakemake's object of a workflow, as far as the report needs it."""
    return SimpleNamespace(
        main_snakefile=str(snakefile),
        config_settings=SimpleNamespace(configfiles=files, config={}, replace_workflow_config=False),
        output_settings=SimpleNamespace(quiet=quiet and {quiet}),
        scheduler=SimpleNamespace(failed=failed),
    )
