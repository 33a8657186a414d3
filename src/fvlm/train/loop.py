"""The training loop: one for all stages, ablations and grid runs, on texts and on pairs of answers.

`Trainer.train` goes from step to step; `Trainer._update` is one step, from its micro-batches to its logged record.
"""

import gc
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from fvlm.batch import Batch
from fvlm.data.batches.loader import Steps, load_steps
from fvlm.device import autocast, memory_gb
from fvlm.errors import Stopped
from fvlm.records import MetricsLog
from fvlm.train.average import Average
from fvlm.train.fsdp import full_state, full_tensor
from fvlm.train.objective import Totals, make_objective
from fvlm.train.optim import make_optimizer, rates_at, set_rates
from fvlm.train.progress import Progress
from fvlm.train.resume import checkpoint_of, restore
from fvlm.train.setup import Setup
from fvlm.train.signals import StopRequest
from fvlm.train.state import clear, load_on_all_ranks, save_checkpoint, write_weights
from fvlm.train.trackers import Trackers
from fvlm.train.watch import Watch


class Trainer:
    """One run in training. It can stop after any step and resume there.

    setup   the run, its data and its model
    stop    a signal's request to stop
    """

    def __init__(self, setup: Setup, stop: StopRequest):
        run, ranks = setup.run, setup.ranks
        self.setup, self.run, self.model, self.parallel = setup, run, setup.model, setup.parallel
        self.device, self.ranks, self.spent, self.stop = setup.device, ranks, setup.spent, stop
        self.context = autocast(run, self.device)
        self.objective = make_objective(run, self.model, setup.reference)
        self.optimizer = make_optimizer(self.model.parameter_groups(), run.optim)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = None if run.optim.ema is None else Average(self.model, run.optim.ema)
        self.flops, self.work = (np.concatenate([[0.0], np.cumsum(x)]) for x in (setup.flops, setup.work))
        self.total = len(setup.steps)
        every = self.total / run.train.evaluations
        self.evaluate_after = {max(1, round((i + 1) * every)) for i in range(run.train.evaluations)}
        self.best_by = "train_loss" if setup.validation is None else "val_loss"
        self.step, self.since_evaluation = 0, [0.0, 0]  # sum and count of the objective
        self.best = self.saved_best = self.last_evaluation = None
        saved = load_on_all_ranks(setup.state, setup.identity, ranks)
        if saved is not None:
            restore(self, saved)
        self.resume_step = None if saved is None else self.step
        ranks.at_first(self._open_logs)
        # the identity in Weights & Biases also names this training: one from the start is another run there
        name = f"{setup.identity[:16]}{self.spent.begun:016x}"
        self.trackers = Trackers(run, setup.study.study, setup.folder, name, self.resume_step, ranks)
        self.watch = Watch(run, setup.study, setup.folder)
        self.saved_at = time.monotonic()

    def _open_logs(self) -> None:
        """Open `metrics` and `validations`, which only the first rank has."""
        evaluated = self.resume_step
        if self.resume_step is None:
            clear(self.setup.folder)
        elif self._evaluation_due:  # the checkpoint is from before the validation of its step
            evaluated = self.resume_step - 1
        self.metrics = MetricsLog(self.setup.state / "metrics.jsonl", self.resume_step)
        self.validations = MetricsLog(self.setup.state / "validation.jsonl", evaluated)

    def train(self) -> None:
        """Train from the last checkpoint to the end.

        raises   Stopped after a signal; the run is then saved after its last step
        """
        self.stop.wait_for_step()
        if self._evaluation_due:
            self._evaluate()
            self._save()
        gc.collect()
        gc.freeze()  # objects that stay to the end need no look at every collection
        gc.disable()  # a collection within a step takes longer than the memory is worth
        try:
            self._train_steps()
        finally:
            gc.enable()
            gc.unfreeze()
        self.trackers.close()

    def _train_steps(self) -> None:
        progress = Progress(self)
        ended = time.monotonic()
        for batches in self._batches(self.setup.steps, self.step):
            record, overdue, requested = self._update(batches, ended)
            if requested:
                self._save_and_stop(requested)
            if self._evaluation_due:
                self._evaluate()
            if overdue or not self.step % self.run.operation.checkpoint_steps or self.step == self.total:
                self._save()
                gc.collect()
            if self.ranks.first:
                progress.show(record)
            ended = time.monotonic()

    def _update(self, batches: list[Batch], started: float) -> tuple[dict, bool, int]:
        """Make one optimizer step over this rank's micro-batches, and log it.

        started   when the step before ended
        returns   the step's record; whether a checkpoint is due by time; and the exit status that a signal has
                  requested of any rank, 0 without a signal
        raises    UserError if the loss or gradient norm is not finite. The step is then neither logged nor saved.
        """
        waited, samples_before = time.monotonic() - started, self.samples_seen
        rates = rates_at(self.run.optim, self.step, self.total)
        set_rates(self.optimizer, rates)

        # Every scored token, or pair, of the step has the same weight, in whichever micro-batch or rank it is.
        units = max(1, sum(self.ranks.gather(sum(self.objective.units(batch) for batch in batches))))
        totals = Totals()
        for batch in batches:
            with self.context:
                terms = self.objective(batch.to(self.device))
            totals.add(terms)
            if terms.objective.requires_grad:  # texts have no gradient if only the connector is trained
                (terms.objective / units).backward()

        self.parallel.reduce_gradients(self.trained, batches)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.trained, self.run.optim.clip, foreach=True))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

        # without any gradient the norm is on the CPU
        (norm,), requested = totals.read(self.ranks, norm.to(self.device), status=self.stop.status)
        means = totals.means()
        loss = means.pop("objective", None)
        self._check_finite({"loss": loss, "gradient norm": norm}, batches)
        self.step += 1
        self.since_evaluation[0] += totals.sums.get("objective", 0.0)
        self.since_evaluation[1] += totals.counts["objective"]

        seconds = time.monotonic() - started
        self.spent.steps += seconds
        samples = self.samples_seen
        flops_per_s = float(self.work[samples] - self.work[samples_before]) / seconds
        fine, coarse, _ = (means.pop(name, None) for name in ("loss_fine", "loss_coarse", "loss"))
        record = {
            "step": self.step, "samples": samples, "flops": float(self.flops[samples]),
            "train_loss": loss, "loss_fine": fine, "loss_coarse": coarse,
            "fine_coarse_ratio": fine / coarse if fine is not None and coarse else None,
            "grad_norm": norm, **{f"lr_{name}": rate for name, rate in rates.items()}, **means,
            "samples_per_s": (samples - samples_before) / seconds,
            "mfu": flops_per_s / self.setup.peak if self.setup.peak else None, "tflops": flops_per_s / 1e12,
            "memory_gb": memory_gb(self.device), "data_wait_s": waited,
        }  # fmt: skip
        overdue = self.ranks.at_first(partial(self._log, record))
        self.trackers.log("train", record)
        return record, overdue, requested

    def _log(self, record: dict) -> bool:
        """Log a step; return whether a checkpoint is due by the clock of the first rank, which is the only one used."""
        self.metrics.append(record)
        return time.monotonic() - self.saved_at >= 60 * (self.run.operation.checkpoint_minutes or math.inf)

    def _batches(self, steps: Steps, first: int = 0) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches, step by step."""
        workers, pin = self.run.operation.loader_workers, self.device.type == "cuda"
        return self.parallel.in_step(load_steps(steps, first, workers, pin))

    def _check_finite(self, values: dict[str, float | None], batches: list[Batch]) -> None:
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                keys = self.ranks.gather([key for batch in batches for key in batch.keys])
                keys = ", ".join(dict.fromkeys(key for rank in keys for key in rank))  # both halves of a pair have one
                self._refuse(f"the {name} is {value} at step {self.step + 1}, samples {keys}", "look at these samples")

    def _refuse(self, mistake: str, remedy: str) -> None:
        raise self.ranks.common_error(
            f"run {self.run.name!r}: {mistake}; the last checkpoint is intact; {remedy} or lower optim.lr"
        )

    @property
    def samples_seen(self) -> int:
        return min(self.step * self.run.optim.batch_size, len(self.setup.steps.order))

    @property
    def _evaluation_due(self) -> bool:
        """Whether this is an evaluation point that was not evaluated to its end."""
        point = not self.step or self.step in self.evaluate_after
        return point and (self.last_evaluation is None or self.last_evaluation["step"] != self.step)

    def averaged(self):
        """Context in which the model holds the weights to validate and save: their average, if one is kept."""
        return nullcontext() if self.average is None else self.average.swapped()

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Log the validation losses and the training loss since the last evaluation; keep the best weights.

        raises   Stopped after a signal; the run is then saved as before the evaluation, which is repeated on resume
        """
        started = time.monotonic()
        total, count = self.since_evaluation
        record = {
            "step": self.step, "samples": self.samples_seen, "flops": float(self.flops[self.samples_seen]),
            "val_loss": None, "train_loss": total / count if count else None,
        }  # fmt: skip
        requested = 0
        with self.averaged():
            self.model.eval()
            if self.setup.validation is not None:
                losses, requested = self._validate()
                record |= losses
            if not requested:
                self.watch(self.model, self.step, self.device, self.context, self.ranks)
            self.model.train()
            if not requested:
                self._keep_if_best(record)
        if requested:
            self._save_and_stop(requested)
        self.since_evaluation = [0.0, 0]
        self.ranks.at_first(lambda: self.validations.append(record))
        self.trackers.log("validation", record)
        self.spent.validations += time.monotonic() - started
        self.spent.validation_count += 1

    def _validate(self) -> tuple[dict, int]:
        """Return the losses of the held-out samples, and the exit status that a signal requested meanwhile, else 0."""
        totals = Totals()
        for batches in self._batches(self.setup.validation):
            for batch in batches:
                with self.context:
                    totals.add(self.objective(batch.to(self.device), validating=True))
            requested = max(self.ranks.gather(self.stop.status))
            if requested:
                return {}, requested
        totals.read(self.ranks)
        means = totals.means()
        means.pop("objective", None)
        loss = means.pop("loss", math.nan)
        if not math.isfinite(loss):
            self._refuse(f"the validation loss is {loss} after step {self.step}", "start from other weights")
        first = {name: means.pop(name, None) for name in ("loss_fine", "loss_coarse", "attention_entropy")}
        return {"val_loss": loss, **first, **means}, 0

    def _keep_if_best(self, record: dict) -> None:
        """Write the weights if their validation loss is the lowest; without held-out samples, their training loss."""
        self.last_evaluation = {key: record[key] for key in ("step", "samples", "flops", "val_loss", "train_loss")}
        if not self.step or record[self.best_by] is None:
            return
        if self.best is None or record[self.best_by] < self.best[self.best_by]:
            self.best = self.last_evaluation
            self.write_weights(self.path_of_best(self.best))

    def write_weights(self, path: Path) -> None:
        """Write the model's current weights; all ranks must call this."""
        weights = full_state(self.model.state_dict())
        self.ranks.at_first(lambda: write_weights(path, lambda part: save_file(weights, str(part))))

    def path_of_best(self, best: dict) -> Path:
        """Return the file of the best weights. Its name has their step, so each checkpoint has its own best weights."""
        return self.setup.state / f"best_{best['step']:08d}.safetensors"

    def _save_and_stop(self, status: int) -> None:
        self._save()
        raise Stopped(status, f"after step {self.step} of {self.total}, which is saved")

    def _save(self) -> None:
        """Write a checkpoint; all ranks must call this."""
        started = time.monotonic()
        self.spent.checkpoint_count += 1
        content = checkpoint_of(self)
        size = self.ranks.at_first(lambda: self._write_checkpoint(content))
        self.saved_best, self.saved_at = self.best, time.monotonic()
        self.spent.checkpoint_bytes = max(size, self.spent.checkpoint_bytes)
        self.spent.checkpoints += self.saved_at - started

    def _write_checkpoint(self, content: dict) -> int:
        """Write a checkpoint and delete old ones, with their best weights; return its bytes."""
        self.metrics.sync()
        self.validations.sync()
        finished = self.step == self.total
        size = save_checkpoint(self.setup.state, self.step, content, keep=1 if finished else 2)
        # an unfinished run keeps two checkpoints, and the best weights of both
        kept = {self.path_of_best(best) for best in (self.best, None if finished else self.saved_best) if best}
        for old in set(self.setup.state.glob("best_*.safetensors")) - kept:
            old.unlink()
        return size
