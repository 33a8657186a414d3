"""The content of a checkpoint: from a `Trainer` (fvlm.train.loop), and back into one."""

import sys

import torch

from fvlm.device import precision_on
from fvlm.train.fsdp import full_state, load_optimizer, load_weights


def checkpoint_of(trainer) -> dict:
    """Return all that a run needs to resume after its current step; all ranks must call this."""
    finished = trainer.step == trainer.total  # the moments are not needed any more
    return {
        "identity": trainer.setup.identity, "step": trainer.step, "model": full_state(trainer.model.state_dict()),
        "optimizer": None if finished else full_state(trainer.optimizer.state_dict()),
        "average": None if trainer.average is None else full_state(trainer.average.state_dict()),
        "best": trainer.best, "final": trainer.last_evaluation, "since_evaluation": trainer.since_evaluation,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(trainer.device) if trainer.device.type == "cuda" else None,
        "spent": trainer.spent.state_dict(), "precision": precision_on(trainer.run, trainer.device),
    }  # fmt: skip


def restore(trainer, saved: dict) -> None:
    """Set a trainer to what `checkpoint_of` has returned."""
    load_weights(trainer.model, saved["model"])
    if saved["optimizer"] is not None:
        load_optimizer(trainer.optimizer, saved["optimizer"])
    if trainer.average is not None:
        trainer.average.load_state_dict(saved["average"])
    trainer.step, trainer.since_evaluation = saved["step"], saved["since_evaluation"]
    trainer.best, trainer.saved_best, trainer.last_evaluation = saved["best"], saved["best"], saved["final"]
    trainer.spent.load_state_dict(saved["spent"])
    torch.set_rng_state(saved["rng"])
    if trainer.device.type == "cuda" and saved["cuda_rng"] is not None:
        torch.cuda.set_rng_state(saved["cuda_rng"], trainer.device)
    if trainer.ranks.first:
        print(f"{trainer.run.name}: {_description(trainer, saved)}", file=sys.stderr, flush=True)


def _description(trainer, saved: dict) -> str:
    if trainer.step == trainer.total:
        return (
            f"already trained with this configuration, data and parent; to train it anew, delete {trainer.setup.state}"
        )
    precision = precision_on(trainer.run, trainer.device)
    changed = f", now in {precision} instead of {saved['precision']}" if saved["precision"] != precision else ""
    return f"continuing at step {trainer.step} of {trainer.total}{changed}"
