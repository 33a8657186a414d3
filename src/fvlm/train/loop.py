"""The training loop: one for all stages, ablations and grid runs, on texts and on pairs of answers."""

import gc
import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from fvlm.batch import Batch
from fvlm.config.schema import Run
from fvlm.data.batches.loader import Steps, load_steps
from fvlm.device import autocast, memory_gb, precision_on
from fvlm.errors import Stopped
from fvlm.records import MetricsLog
from fvlm.train.average import Average
from fvlm.train.fsdp import gathered, gathered_state, load_optimizer, load_weights
from fvlm.train.objective import Totals, make_objective
from fvlm.train.optim import make_optimizer, rates_at, set_rates
from fvlm.train.progress import Progress, Spent
from fvlm.train.ranks import Ranks, told
from fvlm.train.reference import Reference
from fvlm.train.signals import StopRequest
from fvlm.train.state import clear, continued, save_checkpoint, write_weights
from fvlm.train.trackers import Mirrors
from fvlm.train.watch import Watch


class Trainer:
    """Trains one run step by step and can stop and go on anywhere.

    steps       the run's training steps; validation: held-out steps or None
    flops       (samples,) cumulated training FLOPs after each sample of the order
    work        the same without those spent before the first step, on a reference
    state       the run's undeclared folder: checkpoints, metrics logs, best weights
    identity    of configuration, data and parent: a checkpoint of another one is not continued
    reference   of a run that learns preferences
    spent       began with the process
    peak        FLOP/s of all devices, or None where it is not known
    ranks       the processes that train together; only the first one writes
    stop        whether a signal wants the run to end
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        steps: Steps,
        validation: Steps | None,
        flops,
        work,
        state: Path,
        identity: str,
        device: torch.device,
        reference: Reference | None,
        spent: Spent,
        peak: float | None,
        ranks: Ranks,
        stop: StopRequest,
    ):
        self.run, self.model, self.steps, self.validation = run, model, steps, validation
        self.flops, self.work = flops, work
        self.state, self.identity, self.device, self.total = state, identity, device, len(steps)
        self.spent, self.peak, self.context = spent, peak, autocast(run, device)
        self.ranks, self.stop = ranks, stop
        self.objective = make_objective(run, model, reference)
        self.optimizer = make_optimizer(model.parameter_groups(), run.optim)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = None if run.optim.ema is None else Average(model, run.optim.ema)
        every = self.total / run.train.evaluations
        self.evaluate_after = {max(1, round((i + 1) * every)) for i in range(run.train.evaluations)}
        self.measure = "train_loss" if validation is None else "val_loss"
        self.step, self.best, self.final, self.saved_best = 0, None, None, None
        self.since_evaluation = [0.0, 0]  # sum and count of the objective
        saved = continued(state, identity, ranks)
        if saved is not None:
            self._restore(saved)
        self.resume_step = None if saved is None else self.step
        ranks.at_first(self._open_logs)

    def _open_logs(self) -> None:
        """`metrics` and `validations`, which the first rank alone has.

        The step that was saved may have been saved before its validation: then that is still to be done.
        """
        evaluated = self.resume_step
        if self.resume_step is None:
            clear(self.state)
        elif self._unevaluated:
            evaluated = self.resume_step - 1
        self.metrics = MetricsLog(self.state / "metrics.jsonl", self.resume_step)
        self.validations = MetricsLog(self.state / "validation.jsonl", evaluated)

    def train(self, mirrors: Mirrors, watch: Watch) -> None:
        """From the last checkpoint to the end, evaluating and saving on the way.

        raises   Stopped where a signal asked for it, saved at a step boundary
        """
        self.stop.wait_for_step()
        if self._unevaluated:
            self._evaluate(mirrors, watch)
            self._save()
        gc.collect()
        gc.freeze()  # what stays to the end need not be looked through at every checkpoint
        gc.disable()  # a collection in the middle of a step costs more than it frees
        try:
            self._train_steps(mirrors, watch)
        finally:
            gc.enable()
            gc.unfreeze()

    def _train_steps(self, mirrors: Mirrors, watch: Watch) -> None:
        operation = self.run.operation
        progress = Progress(self.run, self.step, self.total, self.evaluate_after, self.spent, self.peak)
        ended = saved = time.monotonic()
        for batches in self._loaded(self.steps, self.step):
            waited = time.monotonic() - ended
            samples, work = self.samples_seen, self._so_far(self.work)
            record, asked = self._update(batches)
            seconds = time.monotonic() - ended
            self.spent.steps += seconds
            samples, work = self.samples_seen - samples, self._so_far(self.work) - work
            record |= self._speed(samples, work, seconds) | {"data_wait_s": waited}
            late = self.ranks.at_first(partial(self._log, record, saved))
            mirrors.log("train", record)
            if asked:
                self._leave(asked)
            if self._unevaluated:
                self._evaluate(mirrors, watch)
            if late or not self.step % operation.checkpoint_steps or self.step == self.total:
                self._save()
                gc.collect()
                saved = time.monotonic()
            if self.ranks.first:
                progress.show(record, samples, work, self.final)
            ended = time.monotonic()

    def _log(self, record: dict, saved: float) -> bool:
        """Log a step; is a checkpoint due by time? One rank decides: the clocks of two never agree.

        saved   when the last one was
        """
        self.metrics.append(record)
        return time.monotonic() - saved >= 60 * (self.run.operation.checkpoint_minutes or math.inf)

    def _loaded(self, steps: Steps, first: int = 0) -> Iterator[list[Batch]]:
        """This rank's micro-batches of step after step."""
        workers, pin = self.run.operation.loader_workers, self.device.type == "cuda"
        return told(load_steps(steps, first, workers, pin), self.ranks)

    @property
    def _unevaluated(self) -> bool:
        """Is this an evaluation point that has not been evaluated, or whose evaluation was interrupted?"""
        due = not self.step or self.step in self.evaluate_after
        return due and (self.final is None or self.final["step"] != self.step)

    def _leave(self, status: int) -> None:
        self._save()
        raise Stopped(status, f"after step {self.step} of {self.total}, which is saved")

    def _update(self, batches: list[Batch]) -> tuple[dict, int]:
        """One optimizer step over all micro-batches; every scored token, or pair, of the step weighs the same.

        returns  the step's metrics, and the status with which a signal asked any rank to stop, else 0
        raises   UserError if loss or gradient is not finite. The weights may be spoilt by then, but nothing of the
                 step has been logged or saved.
        """
        rates = rates_at(self.run.optim, self.step, self.total)
        set_rates(self.optimizer, rates)
        units = max(1, sum(self.ranks.gather(sum(self.objective.units(batch) for batch in batches))))
        totals = Totals()
        for batch in batches:
            with self.context:
                terms = self.objective(batch.to(self.device))
            totals.add(terms)
            if terms.objective.requires_grad:  # texts alone reach no part that is trained when only the connector is
                (terms.objective / units).backward()
        self._reduce_gradients()
        norm = gathered(nn.utils.clip_grad_norm_(self.trained, self.run.optim.clip, foreach=True))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        sums, (norm,) = totals.read(norm.to(self.device))  # without any gradient it is on the CPU
        sums, asked = totals.over(self.ranks, sums, self.stop.status)
        means = totals.means(sums)
        loss = means.pop("objective", None)
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not math.isfinite(value):
                names = self.ranks.gather([key for batch in batches for key in batch.keys])
                names = ", ".join(dict.fromkeys(key for keys in names for key in keys))  # a pair has one
                self._refuse(f"the {name} is {value} at step {self.step + 1}, samples {names}", "look at these samples")
        self.step += 1
        self.since_evaluation[0] += sums.get("objective", 0.0)
        self.since_evaluation[1] += totals.counts["objective"]
        means.pop("loss", None)
        fine, coarse = means.pop("loss_fine", None), means.pop("loss_coarse", None)
        record = {
            "step": self.step, "samples": self.samples_seen, "flops": self._so_far(self.flops),
            "train_loss": loss, "loss_fine": fine, "loss_coarse": coarse,
            "fine_coarse_ratio": fine / coarse if fine is not None and coarse else None,
            "grad_norm": norm, **{f"lr_{name}": rate for name, rate in rates.items()}, **means,
        }  # fmt: skip
        return record, asked

    def _reduce_gradients(self) -> None:
        """Over the ranks. Weights that are split over them have done so in each backward pass."""
        if not self.model.always_sees:
            self.ranks.add_gradients(self.trained)
        elif not self.steps.sees(self.step):  # what stood in for frames has left zeros, where there should be nothing
            seeing = self.model.parameter_groups()
            for parameter in (*seeing["dino"].values(), *seeing["connector"].values()):
                parameter.grad = None

    def _speed(self, samples: int, flops: float, seconds: float) -> dict:
        """Of one step; `seconds` with the wait for its data, without evaluations and checkpoints."""
        return {
            "samples_per_s": samples / seconds,
            "mfu": flops / seconds / self.peak if self.peak else None,
            "tflops": flops / seconds / 1e12,
            "memory_gb": memory_gb(self.device),
        }

    @property
    def samples_seen(self) -> int:
        return min(self.step * self.run.optim.batch_size, len(self.steps.order))

    def _so_far(self, cumulated) -> float:
        return float(cumulated[self.samples_seen - 1]) if self.step else 0.0

    def _refuse(self, what: str, remedy: str) -> None:
        said = f"run {self.run.name!r}: {what}; the last checkpoint is intact; {remedy} or lower optim.lr"
        raise self.ranks.refusal(said)

    def averaged(self):
        """Context in which the model holds the weights that are validated and saved: their average, if one is kept."""
        return nullcontext() if self.average is None else self.average.swapped()

    @torch.no_grad()
    def _evaluate(self, mirrors: Mirrors, watch: Watch) -> None:
        """Held-out losses, and the training loss since the last evaluation; keeps the best weights.

        A signal interrupts it: the run is saved as it was after its last step, and evaluates when it goes on.
        """
        started = time.monotonic()
        total, count = self.since_evaluation
        record = {
            "step": self.step, "samples": self.samples_seen, "flops": self._so_far(self.flops),
            "val_loss": None, "train_loss": total / count if count else None,
        }  # fmt: skip
        asked = 0
        with self.averaged():
            self.model.eval()
            if self.validation is not None:
                held_out, asked = self._held_out()
                record |= held_out
            if not asked:
                watch(self.model, self.step, self.device, self.context, self.ranks)
            self.model.train()
            if not asked:
                self._keep_if_best(record)
        if asked:
            self._leave(asked)
        self.since_evaluation = [0.0, 0]
        self.ranks.at_first(lambda: self.validations.append(record))
        mirrors.log("validation", record)
        self.spent.validations += time.monotonic() - started
        self.spent.validation_count += 1

    def _held_out(self) -> tuple[dict, int]:
        """Losses of the held-out samples, and the status with which a signal interrupted it, else 0."""
        totals, asked = Totals(), 0
        for batches in self._loaded(self.validation):
            for batch in batches:
                with self.context:
                    totals.add(self.objective(batch.to(self.device), validating=True))
            asked = max(self.ranks.gather(self.stop.status))
            if asked:
                return {}, asked
        sums, _ = totals.over(self.ranks, totals.read()[0], 0)
        means = totals.means(sums)
        means.pop("objective", None)
        loss = means.pop("loss", math.nan)
        if not math.isfinite(loss):
            self._refuse(f"the validation loss is {loss} after step {self.step}", "start from other weights")
        known = {name: means.pop(name, None) for name in ("loss_fine", "loss_coarse", "attention_entropy")}
        return {"val_loss": loss, **known, **means}, 0

    def _keep_if_best(self, record: dict) -> None:
        """By validation loss, or where nothing is held out by the training loss."""
        self.final = {key: record[key] for key in ("step", "samples", "flops", "val_loss", "train_loss")}
        if not self.step or record[self.measure] is None:
            return
        if self.best is None or record[self.measure] < self.best[self.measure]:
            self.best = self.final
            self.write_weights(self.path_of(self.best))

    def write_weights(self, path: Path) -> None:
        """The model's weights as they are now; all ranks must call it."""
        weights = gathered_state(self.model.state_dict())
        self.ranks.at_first(lambda: write_weights(path, lambda beside: save_file(weights, str(beside))))

    def path_of(self, best: dict) -> Path:
        """Best weights, under their step's name: a checkpoint says which, so a resumed run finds its own."""
        return self.state / f"best_{best['step']:08d}.safetensors"

    def _save(self) -> None:
        started = time.monotonic()
        finished = self.step == self.total  # nothing will need the optimizer's moments any more
        self.spent.checkpoint_count += 1
        content = {
            "identity": self.identity, "step": self.step, "model": gathered_state(self.model.state_dict()),
            "optimizer": None if finished else gathered_state(self.optimizer.state_dict()),
            "average": None if self.average is None else gathered_state(self.average.state_dict()),
            "best": self.best, "final": self.final, "since_evaluation": self.since_evaluation,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "spent": self.spent.state_dict(), "precision": precision_on(self.run, self.device),
        }  # fmt: skip
        size = self.ranks.at_first(lambda: self._write(content, finished))
        self.saved_best = self.best
        self.spent.checkpoint_bytes = max(size, self.spent.checkpoint_bytes)
        self.spent.checkpoints += time.monotonic() - started

    def _write(self, content: dict, finished: bool) -> int:
        self.metrics.sync()
        self.validations.sync()
        size = save_checkpoint(self.state, self.step, content, keep=1 if finished else 2)
        # the checkpoint before this one is kept as well, and so is what it calls the best
        kept = {self.path_of(best) for best in (self.best, None if finished else self.saved_best) if best}
        for old in set(self.state.glob("best_*.safetensors")) - kept:
            old.unlink()
        return size

    def _restore(self, saved: dict) -> None:
        load_weights(self.model, saved["model"])
        if saved["optimizer"] is not None:
            load_optimizer(self.optimizer, saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.step, self.best, self.final, self.saved_best = saved["step"], saved["best"], saved["final"], saved["best"]
        self.since_evaluation = saved["since_evaluation"]
        self.spent.load_state_dict(saved["spent"])
        torch.set_rng_state(saved["rng"])
        if self.device.type == "cuda" and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"], self.device)
        if self.step < self.total:
            said = f"continuing at step {self.step} of {self.total}"
            now = precision_on(self.run, self.device)
            if saved["precision"] != now:
                said += f", in {now}, which began in {saved['precision']}: this machine computes otherwise"
        else:
            said = f"already trained with this configuration, data and parent; to train anew, delete {self.state}"
        if self.ranks.first:
            print(f"{self.run.name}: {said}", file=sys.stderr, flush=True)
