"""Find this package for the Snakefile and its jobs, wherever the workflow lies.

The Snakefile runs this file before it can import the package, so it uses only the standard library and Snakemake.
"""

import importlib.util
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod
from snakemake.shell import shell
from snakemake.sourcecache import HostingProviderFile, LocalSourceFile, SourceFile

ROOT = Path(__file__).parents[3]  # of the workflow, or of Snakemake's cache of its files
AT_PARSE = ("numpy", "pydantic")  # third-party packages that this process imports, besides Snakemake's
OF_JOBS = ("av", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "seaborn", "simplejpeg", "torch", "transformers")


def find_package(workflow) -> str:
    """Let this process and its jobs import the package beside the Snakefile, and run the same python.

    workflow   Snakemake's, while it parses the Snakefile
    returns    the package as pip installs it
    raises     WorkflowError if there is no package, or a module of the same process has loaded another one
    """
    place = workflow.current_basedir
    root, source = _checkout(place), _source(place)
    package = str(root / "src")
    refuse_missing(AT_PARSE, AT_PARSE if uses_conda(workflow) else (source,))
    loaded = sys.modules.get("fvlm")
    if loaded and Path(loaded.__file__).resolve().parents[1] != Path(package).resolve():
        raise WorkflowError(
            f"one Snakefile uses fvlm from two places, {Path(loaded.__file__).parents[2]} and {root}; use one of them "
            "for all modules"
        )
    sys.path[:] = [package, *(path for path in sys.path if path != package)]
    if uses_conda(workflow):
        _export_in_shells(package)  # PATH stays, so that the environment's python comes first
        return source
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([package, *(path for path in others if path not in ("", package))])
    own = Path(sys.executable).with_name("python")
    if own.exists() and shutil.which("python") != str(own):
        os.environ["PATH"] = f"{own.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return source


def uses_conda(workflow) -> bool:
    """Return whether the jobs run in the conda environments of their rules."""
    return DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method


def refuse_missing(packages: tuple[str, ...], install: tuple[str, ...]) -> None:
    """Raise WorkflowError if packages are missing, with the names or sources that pip should install."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkflowError(
            f"{sys.executable} lacks Python packages of this workflow ({', '.join(missing)}); install them with: "
            f"{shlex.join([sys.executable, '-m', 'pip', 'install', *install])}"
        )


def _checkout(place: SourceFile) -> Path:
    """The folder that holds Snakefile and src/ as files; `place` is the Snakefile's folder as Snakemake names it."""
    if isinstance(place, LocalSourceFile):
        return Path(place.path)
    if isinstance(place, HostingProviderFile):
        return _unpacked(place)
    raise WorkflowError(
        f"{place}: the Python package of this workflow cannot be loaded from there; use a local clone, or "
        'github("OWNER/REPOSITORY", path="workflow/Snakefile", tag="...")'
    )


def _source(place: SourceFile) -> str:
    if isinstance(place, LocalSourceFile):
        return place.path
    return f"git+https://{place.host}/{place.repo}@{place.ref}"


def _unpacked(place: HostingProviderFile) -> Path:
    """Unpack a commit from Snakemake's clone into its cache, where jobs find it too."""
    folder = ROOT / "checkout"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=ROOT, ignore_cleanup_errors=True) as temporary:
            archive, files = Path(temporary) / "files.tar", Path(temporary) / "files"
            with open(archive, "wb") as stream:
                place.hosted_repo.repo.archive(stream, place.ref)
            with tarfile.open(archive) as tar:
                tar.extractall(files, filter="data")
            try:
                files.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return folder


def _export_in_shells(package: str) -> None:
    """Set PYTHONPATH in each shell command; Snakemake removes the variable from conda environments."""
    command = f"export PYTHONPATH={shlex.quote(package)}; "
    prefix = shell._get_process_prefix()
    if command not in prefix:
        shell.prefix((prefix + command).replace("{", "{{").replace("}", "}}"))
