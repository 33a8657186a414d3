"""What a step minimises and what is told of it: the text's cross-entropy, or the preference between two answers.

Nothing here waits for the device: sums stay on it as 0-dim tensors, counts are known in host memory.
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

    objective   0-dim, of what is minimised, with its graph
    sums        name -> detached 0-dim tensor on the device
    counts      name -> what that sum is to be divided by, at least 1; a metric over several batches is the sum of its
                sums over the sum of its counts
    """

    objective: torch.Tensor
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, total: torch.Tensor, count: int) -> None:
        """A mean over nothing is left out."""
        if count:
            self.sums[name], self.counts[name] = total.detach(), count

    def add_sources(self, sources: Sequence[str], values_B: torch.Tensor, counts_B: np.ndarray) -> None:
        """`loss:SOURCE` for each source: values of its samples added in a fixed order, also on GPUs."""
        names, of_sample = np.unique(np.array(sources), return_inverse=True)
        together = torch.from_numpy(np.argsort(of_sample, kind="stable"))
        samples = torch.from_numpy(np.bincount(of_sample))
        device = values_B.device
        sorted_B = values_B.detach()[together.to(device, non_blocking=True)]
        sums = sum_per_sample(sorted_B, samples.to(device, non_blocking=True))
        for i, name in enumerate(names.tolist()):
            self.add(f"loss:{name}", sums[i], int(counts_B[of_sample == i].sum()))


class Totals:
    """They stay on the device until they are read, all at once."""

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

    def over(self, ranks: Ranks, sums: dict[str, float], asked: int) -> tuple[dict[str, float], int]:
        """Sums over all ranks, in their order, with the counts that they are to be divided by.

        asked     the status with which a signal asked this rank to stop
        returns   sums, and the largest `asked` of all ranks
        """
        told = ranks.gather((sums, dict(self.counts), asked))
        if len(told) > 1:
            self.counts, sums = Counter(), {}
            for theirs, counts, _ in told:
                self.counts.update(counts)
                for name, value in theirs.items():
                    sums[name] = sums.get(name, 0.0) + value
        return sums, max(status for _, _, status in told)

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in sums.items()}


class TextObjective:
    """Cross-entropy of the scored text tokens in the mode that the run trains in, plus lambda_coarse x the coarse one.

    Metrics, nats per scored token: loss, objective, loss_fine and loss_coarse where a pass of that name was scored,
    loss:SOURCE; while validating also attention_entropy (nats, per visual position).
    """

    def __init__(self, run: Run, model: VideoLanguageModel):
        self.model, self.mode = model, run.model.training_mode
        self.queries = run.model.variant.queries

    def units(self, batch: Batch) -> int:
        """Scored tokens, as the model counts them."""
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
            finer = torch.promote_types(output.entropy_P.dtype, torch.float32)  # a sum in bfloat16 has three digits
            terms.add("attention_entropy", output.entropy_P.sum(dtype=finer), len(output.entropy_P))
        return terms


class PreferenceObjective:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7): -log sigmoid(reward_chosen - reward_rejected).

    reward = dpo_beta x (log-probability of the answer now - under the parent's weights), nats, summed over its tokens.
    A batch holds pairs: samples 2 i and 2 i + 1 are the chosen and the rejected answer of pair i.
    Metrics, per pair: loss = objective, reward_accuracy (share of pairs whose chosen answer has the larger reward),
    reward_margin, reward_chosen, reward_rejected, loss:SOURCE.
    """

    def __init__(self, run: Run, model: VideoLanguageModel, reference: Reference):
        self.model, self.mode = model, run.model.training_mode
        self.reference, self.beta = reference, run.optim.dpo_beta

    def units(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch) // 2

    def __call__(self, batch: Batch, validating: bool = False) -> Terms:
        pairs = self.units(batch)
        now = -self.model(batch, self.mode).loss_sum_B
        before = self.reference.of(batch, validating).to(now.device, non_blocking=True)
        chosen, rejected = (self.beta * (now - before)).unflatten(0, (pairs, 2)).unbind(1)
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
    """The objective that `data.loss` names; a preference needs the `reference`."""
    if run.data.loss != "preference":
        return TextObjective(run, model)
    if reference is None:
        raise ValueError("data.loss is 'preference': the objective needs a reference, found None")
    return PreferenceObjective(run, model, reference)
