"""Train a run, or resume it, and write its results.

Declared to Snakemake: run_summary.json, metrics.csv, validation.csv, model/. Not declared, so that a failed or killed
job keeps them: state/ with checkpoints, their configuration, logs, a preference run's reference and the lock;
attention/, wandb/, tensorboard/.
"""

import shutil
from pathlib import Path

import torch

from fvlm.config.changes import STARTED, configuration_of, report_changes
from fvlm.config.schema import Run, Study
from fvlm.config.trained import (
    CONFIGURATION,
    FILES,
    FINISHED,
    LAST_WEIGHTS,
    METRICS,
    VALIDATION,
    WEIGHTS,
    digests_of_files,
    drop_alike,
    keep_earlier,
)
from fvlm.costs.limits import check_run_memory
from fvlm.data.batches.loader import counted_split
from fvlm.device import device_of, gpu_of
from fvlm.errors import Stopped
from fvlm.evaluate.read import SOURCES, SPLIT
from fvlm.files import write_json
from fvlm.records import write_csv
from fvlm.train.loop import Trainer
from fvlm.train.ranks import Ranks, ReportedElsewhere
from fvlm.train.setup import prepare
from fvlm.train.signals import StopRequest
from fvlm.train.state import RunLock, write_weights
from fvlm.train.summary import summary_of


def train_here(run: Run, study: Study, folder: Path, stop: StopRequest) -> int:
    """Train a run in this process, alone or as one of the ranks that torchrun has started; return the exit status.

    raises  Stopped in the first rank, if a signal ended the training
    """
    torch.set_num_threads(run.operation.threads)
    ranks = Ranks.of_environment()
    try:
        device = device_of(run, ranks.local, ranks.count)
        with ranks.joined(device):
            with ranks.together():
                check_run_memory(run, study, gpu_of(device))
            with RunLock(folder / "state", ranks, run.digest):
                ranks.at_first(lambda: keep_earlier(folder, run.digest))
                train(run, study, folder, ranks, stop)
    except ReportedElsewhere:
        return 2
    except Stopped as stopped:
        if ranks.first:
            raise
        return stopped.status
    return 0


def train(run: Run, study: Study, folder: Path, ranks: Ranks | None = None, stop: StopRequest | None = None) -> None:
    """Train `run` from its last checkpoint to the end and write its results into `folder`.

    ranks   the processes that train it, all of which call this; None: this process alone
    stop    the request of a signal to stop; None: no signal is handled
    """
    setup = prepare(run, study, folder, ranks or Ranks())
    setup.ranks.at_first(lambda: report_changes(run, folder))
    trainer = Trainer(setup, stop or StopRequest())
    setup.ranks.at_first(lambda: write_json(folder / STARTED, configuration_of(run)))
    trainer.train()
    with trainer.averaged():
        trainer.write_weights(folder / LAST_WEIGHTS)
    trainer.ranks.at_first(lambda: _write_results(trainer, folder))


def _write_results(trainer: Trainer, folder: Path) -> None:
    """Write the tables, the best weights and last the summary: if it exists, all other files do."""
    write_csv(folder / METRICS, trainer.metrics.records())
    write_csv(folder / VALIDATION, trainer.validations.records())
    best = trainer.path_of_best(trainer.best)
    write_weights(folder / WEIGHTS, lambda part: shutil.copyfile(best, part))
    study = trainer.setup.study
    beside = {SOURCES: study.shown_to(trainer.run), SPLIT: counted_split(study, trainer.setup.steps.corpus)}
    write_json(folder / CONFIGURATION, trainer.run.model_dump(mode="json") | beside)
    write_json(folder / FINISHED, summary_of(trainer) | {FILES: digests_of_files(folder)})
    drop_alike(folder)
