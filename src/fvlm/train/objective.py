"""The objective of a step and its metrics: cross-entropy of texts, or the preference between two answers.

Nothing here waits for the device: sums stay on it as 0-dim tensors, counts are in host memory.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from fvlm.batch import Batch
from fvlm.config.schema import Run
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.losses import sum_per_sample
from fvlm.train.ranks import Ranks
from fvlm.train.reference import Reference


@dataclass
class Terms:
    """Sums over one batch.

    objective   the sum to minimise, 0-dim, with its graph
    sums        metric -> detached 0-dim tensor on the device
    counts      metric -> number of terms of that sum, at least 1. The metric of several batches is the sum of their
                sums divided by the sum of their counts
    """

    objective: torch.Tensor
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, total: torch.Tensor, count: int) -> None:
        """Add a metric, unless it has no terms."""
        if count:
            self.sums[name], self.counts[name] = total.detach(), count

    def add_sources(self, sources: Sequence[str], values_B: torch.Tensor, counts_B: np.ndarray) -> None:
        """Add `loss:SOURCE` for each source. Its samples are summed in a fixed order, also on GPUs."""
        names, of_sample = np.unique(np.array(sources), return_inverse=True)
        by_source = torch.from_numpy(np.argsort(of_sample, kind="stable"))
        samples = torch.from_numpy(np.bincount(of_sample))
        device = values_B.device
        sorted_B = values_B.detach()[by_source.to(device, non_blocking=True)]
        sums = sum_per_sample(sorted_B, samples.to(device, non_blocking=True))
        for i, name in enumerate(names.tolist()):
            self.add(f"loss:{name}", sums[i], int(counts_B[of_sample == i].sum()))


class Totals:
    """Sums and counts of several batches. The sums stay on the device until `read` transfers all of them at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[torch.Tensor] = []
        self.sums: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def add(self, terms: Terms) -> None:
        self.names += terms.sums
        self.values += terms.sums.values()
        self.counts.update(terms.counts)

    def read(self, ranks: Ranks, *others: torch.Tensor, status: int = 0) -> tuple[list[float], int]:
        """Set `sums` and `counts` to those of all ranks: one transfer from the device, one exchange between the ranks.

        others    0-dim tensors on the same device, transferred along with the sums
        status    the exit status that a signal has requested of this rank
        returns   the values of `others`, and the largest status of all ranks
        """
        values = torch.stack([*others, *self.values]).tolist() if others or self.values else []
        own = dict.fromkeys(self.names, 0.0)
        for name, value in zip(self.names, values[len(others) :], strict=True):
            own[name] += value
        replies = ranks.gather((own, dict(self.counts), status))
        self.sums, self.counts = {}, Counter()
        for sums, counts, _ in replies:
            self.counts.update(counts)
            for name, value in sums.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        return values[: len(others)], max(status for _, _, status in replies)

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


class TextObjective:
    """Cross-entropy of the scored text tokens in the run's training mode, plus lambda_coarse x that of the coarse pass.

    Metrics in nats per scored token: loss, objective, loss_fine and loss_coarse if that pass was scored, loss:SOURCE;
    in validations also attention_entropy (nats per visual position).
    """

    def __init__(self, run: Run, model: VideoLanguageModel):
        self.model, self.mode = model, run.model.training_mode
        self.queries = run.model.variant.queries

    def units(self, batch: Batch) -> int:
        """Return the number of tokens that the model scores."""
        return int(self.model.plan(batch).count_B.sum())

    def __call__(self, batch: Batch, validating: bool = False) -> Terms:
        output = self.model(
            batch,
            self.mode,
            with_attention=validating and self.queries,
            with_coarse_loss=validating and self.mode == "coarse_fine",
        )
        tokens = int(output.count_B.sum())
        terms = Terms(output.objective_B.sum())
        loss = output.loss_sum_B.sum()
        terms.add("loss", loss, tokens)
        terms.add("objective", terms.objective, tokens)
        if self.mode == "coarse_fine":
            terms.add("loss_fine", loss, tokens)
        if output.coarse_sum_B is not None:
            terms.add("loss_coarse", output.coarse_sum_B.sum(), tokens)
        terms.add_sources(batch.sources, output.loss_sum_B, output.count_B.numpy())
        if output.entropy_P is not None:
            dtype = torch.promote_types(output.entropy_P.dtype, torch.float32)  # a sum in bfloat16 has three digits
            terms.add("attention_entropy", output.entropy_P.sum(dtype=dtype), len(output.entropy_P))
        return terms


class PreferenceObjective:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7): -log sigmoid(reward_chosen - reward_rejected).

    reward = dpo_beta x (log-probability of the answer - log-probability under the parent's weights), in nats, summed
    over the answer's tokens. A batch holds pairs: samples 2 i and 2 i + 1 are the chosen and the rejected answer of
    pair i.
    Metrics per pair: loss = objective, reward_accuracy (share of pairs whose chosen answer has the larger reward),
    reward_margin, reward_chosen, reward_rejected, loss:SOURCE.
    """

    def __init__(self, run: Run, model: VideoLanguageModel, reference: Reference):
        self.model, self.mode = model, run.model.training_mode
        self.reference, self.beta = reference, run.optim.dpo_beta

    def units(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return len(batch) // 2

    def __call__(self, batch: Batch, validating: bool = False) -> Terms:
        pairs = self.units(batch)
        current = -self.model(batch, self.mode).loss_sum_B
        parent = self.reference.of(batch, validating).to(current.device, non_blocking=True)
        chosen, rejected = (self.beta * (current - parent)).unflatten(0, (pairs, 2)).unbind(1)
        margin = chosen - rejected
        loss = -F.logsigmoid(margin)
        terms = Terms(loss.sum())
        for name, values in {
            "loss": loss,
            "objective": loss,
            "reward_accuracy": (margin > 0).to(margin.dtype),
            "reward_margin": margin,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }.items():
            terms.add(name, values.sum(), pairs)
        terms.add_sources(batch.sources[::2], loss, np.ones(pairs, np.int64))
        return terms


Objective = TextObjective | PreferenceObjective


def make_objective(run: Run, model: VideoLanguageModel, reference: Reference | None) -> Objective:
    """Return the objective that `data.loss` names; "preference" needs a reference."""
    if run.data.loss != "preference":
        return TextObjective(run, model)
    return PreferenceObjective(run, model, reference)
