"""What the jobs of a run request from a scheduler."""

from fvlm.config.schema import Run
from fvlm.costs.limits import too_little_memory
from fvlm.costs.memory import GB, predicted_bytes
from fvlm.errors import UserError

KINDS = ("gpu_models", "gpu_constraints")  # default-resources that list a cluster's kinds of GPU as NAME:GB
STAGES_FIRST = 50  # priority of a stage; that of all other jobs is 0


class Resources:
    """Resources of the rules. A method that takes `wildcards` is given to a rule with the wildcard `run` as it is.

    runs       all runs of the study
    defaults   a profile's default-resources as NAME=VALUE
    raises     UserError if a run fits no GPU that the profile lists
    """

    def __init__(self, runs: dict[str, Run], defaults: list[str]):
        self.runs = runs
        values = dict(text.split("=", 1) for text in defaults)
        self._kinds = {name: values.get(name, "").strip("'\"").split() for name in KINDS}
        for name in KINDS:
            for run in sorted(runs.values(), key=predicted_bytes, reverse=True):
                self._smallest_gpu(run, name)  # a run that fits none fails the plan instead of its job

    def threads(self, wildcards) -> int:
        """CPU cores of a training: those of all its processes on one node."""
        operation = self.runs[wildcards.run].operation
        return operation.threads * operation.ranks_per_node

    def priority(self, wildcards) -> int:
        """Stages wait for each other, so they start before all other jobs that are ready."""
        return STAGES_FIRST if self.runs[wildcards.run].family == "stage" else 0

    def gpus(self, wildcards) -> int:
        """GPUs of a training, on all its nodes."""
        operation = self.runs[wildcards.run].operation
        return operation.gpus * operation.nodes

    def nodes(self, wildcards) -> int | None:
        """The number of nodes, where a training takes several; it starts one task on each."""
        nodes = self.runs[wildcards.run].operation.nodes
        return nodes if nodes > 1 else None

    def mpi(self, wildcards) -> str | None:
        """The command that starts the tasks of several nodes."""
        return self.nodes(wildcards) and "srun"

    def gpu_model(self, wildcards) -> str | None:
        return self._smallest_gpu(self.runs[wildcards.run], "gpu_models")

    def gpu_constraint(self, wildcards) -> str | None:
        return self._smallest_gpu(self.runs[wildcards.run], "gpu_constraints")

    # Preflight and calibration try all runs, so they go where the run that needs the most memory will go.

    @property
    def most_threads(self) -> int:
        return max(run.operation.threads for run in self.runs.values())

    @property
    def most_gpus(self) -> int:
        return max(run.operation.gpus for run in self.runs.values())

    @property
    def largest_gpu_model(self) -> str | None:
        return self._smallest_gpu(self._largest_run(), "gpu_models")

    @property
    def largest_gpu_constraint(self) -> str | None:
        return self._smallest_gpu(self._largest_run(), "gpu_constraints")

    def _largest_run(self) -> Run:
        return max(self.runs.values(), key=lambda run: (run.operation.gpus > 0, predicted_bytes(run)))

    def _smallest_gpu(self, run: Run, name: str) -> str | None:
        """The smallest of the profile's kinds of GPU that a run fits; None if it lists none or the run uses no GPU."""
        kinds = [word.rsplit(":", 1) for word in self._kinds[name]]
        if not kinds or not run.operation.gpus:
            return None
        needed = predicted_bytes(run) / GB
        fitting = [(float(memory), kind) for kind, memory in kinds if float(memory) >= needed]
        if not fitting:
            most = max(float(memory) for _, memory in kinds)
            raise UserError(too_little_memory(run, f"the largest GPU that the profile lists under {name}", most))
        return min(fitting)[1]
