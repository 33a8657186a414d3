"""The training loop: one for all stages, ablations and grid runs, on texts and on pairs of answers."""

import gc
import math
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

from fvlm.batch import Batch
from fvlm.data.loader import Steps, load_steps
from fvlm.errors import UserError
from fvlm.schema import Run
from fvlm.train.average import Average
from fvlm.train.device import autocast, precision_on
from fvlm.train.hardware import memory_gb
from fvlm.train.mirror import Mirrors
from fvlm.train.objective import Terms, make_objective
from fvlm.train.optim import make_optimizer, rates_at, set_rates
from fvlm.train.progress import Progress, Spent
from fvlm.train.reference import Reference
from fvlm.train.state import MetricsLog, clear, load_checkpoint, save_checkpoint, write_weights
from fvlm.train.watch import Watch


class Totals:
    """Sums over the batches of a step or of a validation. They stay on the device until they are read, all at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[torch.Tensor] = []
        self.counts: Counter[str] = Counter()

    def add(self, terms: Terms) -> None:
        self.names += terms.sums
        self.values += terms.sums.values()
        self.counts.update(terms.counts)

    def read(self, *others: torch.Tensor) -> tuple[dict[str, float], list[float]]:
        """Sums by name, and the other 0-dim tensors' values: the one transfer from the device."""
        values = torch.stack([*others, *self.values]).tolist() if others or self.values else []
        sums = dict.fromkeys(self.names, 0.0)
        for name, value in zip(self.names, values[len(others) :], strict=True):
            sums[name] += value
        return sums, values[: len(others)]

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in sums.items()}


class Trainer:
    """Trains one run step by step and can stop and go on anywhere.

    steps       the run's training steps; validation: held-out steps or None
    flops       (samples,) cumulated training FLOPs after each sample of the order
    work        the same without those spent before the first step, on a reference
    state       the run's undeclared folder: checkpoints, metrics logs, best weights
    identity    of configuration, data and parent: a checkpoint of another one is not continued
    reference   of a run that learns preferences
    spent       began with the process
    peak        FLOP/s of the device, or None where it is not known
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
    ):
        self.run, self.model, self.steps, self.validation = run, model, steps, validation
        self.flops, self.work = flops, work
        self.state, self.identity, self.device, self.total = state, identity, device, len(steps)
        self.spent, self.peak, self.context = spent, peak, autocast(run, device)
        self.objective = make_objective(run, model, reference)
        self.optimizer = make_optimizer(model.parameter_groups(), run.optim)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = None if run.optim.ema is None else Average(model, run.optim.ema)
        every = self.total / run.train.evaluations
        self.evaluate_after = {max(1, round((i + 1) * every)) for i in range(run.train.evaluations)}
        self.measure = "train_loss" if validation is None else "val_loss"
        self.step, self.best, self.final, self.saved_best = 0, None, None, None
        self.since_evaluation = [0.0, 0]  # sum and count of the objective
        saved = load_checkpoint(state, identity)
        if saved is None:
            clear(state)
        else:
            self._restore(saved)
        self.resume_step = None if saved is None else self.step
        self.metrics = MetricsLog(state / "metrics.jsonl", self.resume_step)
        self.validations = MetricsLog(state / "validation.jsonl", self.resume_step)

    def train(self, mirrors: Mirrors, watch: Watch) -> None:
        """From the last checkpoint to the end, evaluating and saving on the way."""
        if self.resume_step is None:
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
        for batches in load_steps(self.steps, self.step, operation.loader_workers, self.device.type == "cuda"):
            waited = time.monotonic() - ended
            samples, work = self.samples_seen, self._so_far(self.work)
            record = self._update(batches)
            seconds = time.monotonic() - ended
            self.spent.steps += seconds
            samples, work = self.samples_seen - samples, self._so_far(self.work) - work
            record |= self._speed(samples, work, seconds) | {"data_wait_s": waited}
            self.metrics.append(record)
            mirrors.log("train", record)
            if self.step in self.evaluate_after:
                self._evaluate(mirrors, watch)
            minutes = (time.monotonic() - saved) / 60
            due = minutes >= (operation.checkpoint_minutes or math.inf) or not self.step % operation.checkpoint_steps
            if due or self.step == self.total:
                self._save()
                gc.collect()
                saved = time.monotonic()
            progress.show(record, samples, work, self.final)
            ended = time.monotonic()

    def _update(self, batches: list[Batch]) -> dict:
        """One optimizer step over all micro-batches; every scored token, or pair, of the step weighs the same.

        raises   UserError if loss or gradient is not finite. The weights may be spoilt by then, but nothing of the
                 step has been logged or saved.
        """
        rates = rates_at(self.run.optim, self.step, self.total)
        set_rates(self.optimizer, rates)
        units = max(1, sum(self.objective.units(batch) for batch in batches))
        totals = Totals()
        for batch in batches:
            with self.context:
                terms = self.objective(batch.to(self.device))
            totals.add(terms)
            if terms.objective.requires_grad:  # texts alone reach no part that is trained when only the connector is
                (terms.objective / units).backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.run.optim.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        sums, (norm,) = totals.read(norm.to(self.device))  # without any gradient it is on the CPU
        means = totals.means(sums)
        loss = means.pop("objective", None)
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not math.isfinite(value):
                names = ", ".join(dict.fromkeys(key for batch in batches for key in batch.keys))  # a pair has one
                self._refuse(f"the {name} is {value} at step {self.step + 1}, samples {names}", "look at these samples")
        self.step += 1
        self.since_evaluation[0] += sums.get("objective", 0.0)
        self.since_evaluation[1] += totals.counts["objective"]
        means.pop("loss", None)
        fine, coarse = means.pop("loss_fine", None), means.pop("loss_coarse", None)
        return {
            "step": self.step, "samples": self.samples_seen, "flops": self._so_far(self.flops),
            "train_loss": loss, "loss_fine": fine, "loss_coarse": coarse,
            "fine_coarse_ratio": fine / coarse if fine is not None and coarse else None,
            "grad_norm": norm, **{f"lr_{name}": rate for name, rate in rates.items()}, **means,
        }  # fmt: skip

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
        raise UserError(f"run {self.run.name!r}: {what}; the last checkpoint is intact; {remedy} or lower optim.lr")

    def averaged(self):
        """Context in which the model holds the weights that are validated and saved: their average, if one is kept."""
        return nullcontext() if self.average is None else self.average.swapped()

    @torch.no_grad()
    def _evaluate(self, mirrors: Mirrors, watch: Watch) -> None:
        """Held-out losses, and the training loss since the last evaluation; keeps the best weights."""
        started = time.monotonic()
        total, count = self.since_evaluation
        self.since_evaluation = [0.0, 0]
        record = {
            "step": self.step, "samples": self.samples_seen, "flops": self._so_far(self.flops),
            "val_loss": None, "train_loss": total / count if count else None,
        }  # fmt: skip
        with self.averaged():
            self.model.eval()
            if self.validation is not None:
                record |= self._held_out()
            watch(self.model, self.step, self.device, self.context)
            self.model.train()
            self._keep_if_best(record)
        self.validations.append(record)
        mirrors.log("validation", record)
        self.spent.validations += time.monotonic() - started
        self.spent.validation_count += 1

    def _held_out(self) -> dict:
        totals = Totals()
        workers, pin = self.run.operation.loader_workers, self.device.type == "cuda"
        for batches in load_steps(self.validation, workers=workers, pin=pin):
            for batch in batches:
                with self.context:
                    totals.add(self.objective(batch.to(self.device), validating=True))
        means = totals.means(totals.read()[0])
        means.pop("objective", None)
        loss = means.pop("loss", math.nan)
        if not math.isfinite(loss):
            self._refuse(f"the validation loss is {loss} after step {self.step}", "start from other weights")
        known = {name: means.pop(name, None) for name in ("loss_fine", "loss_coarse", "attention_entropy")}
        return {"val_loss": loss, **known, **means}

    def _keep_if_best(self, record: dict) -> None:
        """By validation loss, or where nothing is held out by the training loss."""
        self.final = {key: record[key] for key in ("step", "samples", "flops", "val_loss", "train_loss")}
        if not self.step or record[self.measure] is None:
            return
        if self.best is None or record[self.measure] < self.best[self.measure]:
            self.best = self.final
            write_weights(self.path_of(self.best), lambda beside: save_model(self.model, str(beside)))

    def path_of(self, best: dict) -> Path:
        """Best weights, under their step's name: a checkpoint says which, so a resumed run finds its own."""
        return self.state / f"best_{best['step']:08d}.safetensors"

    def _save(self) -> None:
        started = time.monotonic()
        finished = self.step == self.total  # nothing will need the optimizer's moments any more
        self.metrics.sync()
        self.validations.sync()
        self.spent.checkpoint_count += 1
        content = {
            "identity": self.identity, "step": self.step, "model": self.model.state_dict(),
            "optimizer": None if finished else self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best, "final": self.final, "since_evaluation": self.since_evaluation,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "spent": self.spent.state_dict(), "precision": precision_on(self.run, self.device),
        }  # fmt: skip
        size = save_checkpoint(self.state, self.step, content, keep=1 if finished else 2)
        # the checkpoint before this one is kept as well, and so is what it calls the best
        kept = {self.path_of(best) for best in (self.best, None if finished else self.saved_best) if best}
        for old in set(self.state.glob("best_*.safetensors")) - kept:
            old.unlink()
        self.saved_best = self.best
        self.spent.checkpoint_bytes = max(size, self.spent.checkpoint_bytes)
        self.spent.checkpoints += time.monotonic() - started

    def _restore(self, saved: dict) -> None:
        self.model.load_state_dict(saved["model"])
        if saved["optimizer"] is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
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
        print(f"{self.run.name}: {said}", file=sys.stderr, flush=True)
