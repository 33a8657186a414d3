# What a training asks of a scheduler, and how its processes hear that their time is over.

import importlib.util
import signal

from fvlm.costs.memory import GB, predicted_bytes
from fvlm.costs.limits import too_little_memory


def several_nodes(run):
    """The number of nodes, where it is not one."""
    return run.operation.nodes if run.operation.nodes > 1 else None


def default_resource(name):
    """What a profile says of a resource under default-resources, or an empty text."""
    given = workflow.resource_settings.default_resources
    listed = dict(text.split("=", 1) for text in given.args) if given else {}
    return listed.get(name, "").strip("'\"")


def gpu_kind(run, names):
    """The smallest of the profile's kinds of GPU that a run fits; None if it lists none, or a run needs no GPU.

    names   gpu_models or gpu_constraints: words of the form NAME:GB
    """
    kinds = [word.rsplit(":", 1) for word in default_resource(names).split()]
    if not kinds or not run.operation.gpus:
        return None
    needed = predicted_bytes(run) / GB
    fitting = [
        (float(memory), name) for name, memory in kinds if float(memory) >= needed
    ]
    if not fitting:
        largest = f"the largest GPU that the profile lists under {names}"
        most = max(float(memory) for _, memory in kinds)
        raise WorkflowError(too_little_memory(run, largest, most))
    return min(fitting)[1]


for name in ("gpu_models", "gpu_constraints"):
    for run in sorted(RUNS.values(), key=predicted_bytes, reverse=True):
        gpu_kind(run, name)  # a run that fits none fails the plan, not the job

if not workflow.is_main_process:
    # Slurm warns all processes of a job before its time limit. Those around a training must not end before it does.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
elif not dry_run_asked() and importlib.util.find_spec(
    "snakemake_executor_plugin_slurm"
):

    include: "slurm.smk"
