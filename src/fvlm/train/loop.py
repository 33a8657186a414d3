"""The training loop: one for all stages, ablations and grid runs."""

import gc
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from fvlm.batch import Batch
from fvlm.data.loader import Steps, load_steps
from fvlm.errors import UserError
from fvlm.files import write_beside
from fvlm.schema import Run
from fvlm.train.optim import make_optimizer, rates_at, set_rates
from fvlm.train.progress import Progress
from fvlm.train.state import MetricsLog, clear, load_checkpoint, save_checkpoint


def device_of(run: Run) -> torch.device:
    """The GPU, if the run asks for one and there is one."""
    return torch.device("cuda" if run.operation.gpus and torch.cuda.is_available() else "cpu")


def precision_on(run: Run, device: torch.device) -> str:
    """The precision that a run really has here: bfloat16 falls back to float32 on a CPU that can only emulate it."""
    if run.train.precision == "bfloat16" and device.type == "cpu":
        can = torch.cpu.get_capabilities()
        if not any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")):
            return "float32"
    return run.train.precision


def autocast(run: Run, device: torch.device):
    """Context of a forward pass in the run's precision; weights and loss stay float32."""
    if precision_on(run, device) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Trainer:
    """Trains one run step by step and can stop and go on anywhere.

    steps       the run's training steps; validation: held-out steps or None
    flops       (samples,) cumulated training FLOPs after each sample of the order
    state       the run's undeclared folder: checkpoints, metrics logs, best weights
    identity    of configuration, data and parent: a checkpoint of another one is not continued
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        steps: Steps,
        validation: Steps | None,
        flops,
        state: Path,
        identity: str,
        device: torch.device,
    ):
        self.run, self.model, self.steps, self.validation, self.flops = run, model, steps, validation, flops
        self.state, self.identity, self.device, self.total = state, identity, device, len(steps)
        self.optimizer = make_optimizer(model.parameter_groups(), run.optim)
        every = self.total / run.train.evaluations
        self.evaluate_after = {max(1, round((i + 1) * every)) for i in range(run.train.evaluations)}
        self.step, self.best, self.final, self.train_seconds = 0, None, None, 0.0
        saved = load_checkpoint(state, identity)
        if saved is None:
            clear(state)
        else:
            self._restore(saved)
        self.fresh, resume = saved is None, None if saved is None else self.step
        self.metrics = MetricsLog(state / "metrics.jsonl", resume)
        self.validations = MetricsLog(state / "validation.jsonl", resume)

    def train(self) -> None:
        """From the last checkpoint to the end, validating and saving on the way."""
        progress = Progress(self.run, self.step, self.total)
        context = autocast(self.run, self.device)
        if self.fresh:
            self._validate(context)
            self._save()
        gc.disable()  # a collection in the middle of a step costs more than it frees
        for batches in load_steps(self.steps, self.step, self.run.operation.loader_workers):
            started = time.perf_counter()
            record = self._update(batches, context)
            record["samples_per_s"] = sum(len(b) for b in batches) / (time.perf_counter() - started)
            record["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
            self.train_seconds += time.perf_counter() - started
            self.metrics.append(record)
            if self.step in self.evaluate_after:
                self._validate(context)
            if self.step % self.run.operation.checkpoint_steps == 0 or self.step == self.total:
                self._save()
                gc.collect()
            progress.show(record, self.final)
        gc.enable()

    def _update(self, batches: list[Batch], context) -> dict:
        """One optimizer step over all micro-batches; every scored token of the step weighs the same."""
        rates = rates_at(self.run.optim, self.step, self.total)
        set_rates(self.optimizer, rates)
        scored = max(1, sum(int(batch.loss_mask.sum()) for batch in batches))
        objective = fine = coarse = 0.0
        for batch in batches:
            with context:
                output = self.model(batch.to(self.device), self.run.model.training_mode)
            loss = output.objective_B.sum() / scored
            if loss.requires_grad:  # texts alone reach no part that is trained when only the connector is
                loss.backward()
            objective += loss.item()
            fine += output.loss_sum_B.sum().item() / scored
            coarse += output.coarse_sum_B.sum().item() / scored if output.coarse_sum_B is not None else 0.0
        if not math.isfinite(objective):
            self._refuse(objective, batches)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.run.optim.clip).item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        seen = self.samples_seen
        model = self.run.model
        both = model.training_mode == "coarse_fine" and coarse > 0
        return {
            "step": self.step, "samples": seen, "flops": float(self.flops[seen - 1]),
            "train_loss": objective, "loss_fine": fine if model.training_mode == "coarse_fine" else None,
            "loss_coarse": coarse or None, "fine_coarse_ratio": fine / coarse if both else None,
            "grad_norm": norm, **{f"lr_{name}": rate for name, rate in rates.items()},
        }  # fmt: skip

    @property
    def samples_seen(self) -> int:
        return min(self.step * self.run.optim.batch_size, len(self.steps.order))

    def _refuse(self, loss: float, batches: list[Batch]) -> None:
        names = ", ".join(key for batch in batches for key in batch.keys)
        raise UserError(
            f"run {self.run.name!r}: the loss is {loss} at step {self.step + 1}, samples {names}; the last "
            "checkpoint is intact; look at these samples or lower optim.lr"
        )

    @torch.no_grad()
    def _validate(self, context) -> None:
        """Held-out loss per source, of both passes, and the fine pass's attention entropy; keeps the best weights."""
        if self.validation is None:
            return
        self.model.eval()
        two_passes = self.run.model.training_mode == "coarse_fine"
        foveated = self.run.model.architecture == "foveated"
        sums: dict[str, list[float]] = {}
        coarse = entropy = positions = 0.0
        for batches in load_steps(self.validation, 0, 0):
            for batch in batches:
                with context:
                    output = self.model(batch.to(self.device), self.run.model.training_mode,
                                        with_coarse_loss=two_passes, with_attention=foveated)  # fmt: skip
                for name, loss, count in zip(
                    batch.sources, output.loss_sum_B.tolist(), output.count_B.tolist(), strict=True
                ):
                    total = sums.setdefault(name, [0.0, 0.0])
                    total[0], total[1] = total[0] + loss, total[1] + count
                coarse += output.coarse_sum_B.sum().item() if two_passes else 0.0
                if output.entropy_P is not None:
                    entropy, positions = (
                        entropy + output.entropy_P.sum().item(),
                        positions + len(output.entropy_P),
                    )
        self.model.train()
        tokens = sum(count for _, count in sums.values())
        loss = sum(total for total, _ in sums.values()) / tokens
        seen = self.samples_seen
        record = {
            "step": self.step, "samples": seen, "flops": float(self.flops[seen - 1]) if seen else 0.0, "val_loss": loss,
            "loss_fine": loss if two_passes else None,
            "loss_coarse": coarse / tokens if two_passes else (loss if foveated else None),
            "attention_entropy": entropy / positions if positions else None,
            **{f"loss:{name}": total / count for name, (total, count) in sums.items()},
        }  # fmt: skip
        self.validations.append(record)
        self._keep_if_best(record)

    def _keep_if_best(self, record: dict) -> None:
        self.final = {key: record[key] for key in ("step", "samples", "flops", "val_loss")}
        if self.step and record["val_loss"] < (self.best["val_loss"] if self.best else math.inf):
            self.best = self.final
            write_beside(self.best_path, lambda beside: save_model(self.model, str(beside)))

    @property
    def best_path(self) -> Path:
        """The best weights, under their step's name: the checkpoint says which, so a resumed run finds its own."""
        return self.state / f"best_{self.best['step']:08d}.safetensors"

    def load_best(self) -> None:
        """Put the best weights back into the model; the final ones where nothing was held out."""
        if self.best is not None:
            load_model(self.model, str(self.best_path), device=str(self.device))

    def _save(self) -> None:
        finished = self.step == self.total  # nothing will need the optimizer's moments any more
        content = {
            "identity": self.identity, "step": self.step, "model": self.model.state_dict(),
            "optimizer": None if finished else self.optimizer.state_dict(), "best": self.best, "final": self.final,
            "train_seconds": self.train_seconds, "rng": torch.get_rng_state(),
        }  # fmt: skip
        save_checkpoint(self.state, self.step, content, keep=1 if finished else 2)
        keep = self.best_path.name if self.best else None
        for old in self.state.glob("best_*.safetensors"):
            if old.name != keep:
                old.unlink()

    def _restore(self, saved: dict) -> None:
        self.model.load_state_dict(saved["model"])
        if saved["optimizer"] is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best, self.final = saved["step"], saved["best"], saved["final"]
        self.train_seconds = saved["train_seconds"]
        torch.set_rng_state(saved["rng"])
        if self.step < self.total:
            said = f"continuing at step {self.step} of {self.total}"
        else:
            said = f"already trained with this configuration, data and parent; to train anew, delete {self.state}"
        print(f"{self.run.name}: {said}", file=sys.stderr, flush=True)
