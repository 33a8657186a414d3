"""The video-language model: two-pass foveated reading, its inference mode, and the baselines.

Letters: B samples, U distinct frames, P visual positions (a frame may stand at several), S text tokens,
D encoder width, Q query width, E language width.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from fvlm import schema
from fvlm.batch import Batch
from fvlm.errors import UserError
from fvlm.model.connector import PooledConnector, QueryConnector
from fvlm.model.encoder import Attention, Encoder, FrameStates, Visits
from fvlm.model.language import Cache, Language
from fvlm.model.losses import scored_cross_entropy, sum_per_sample
from fvlm.model.packing import Rows, count_up, pack


@dataclass
class Output:
    """What a forward pass gives.

    loss_sum_B     cross-entropy of the mode, nats summed over each sample's scored text tokens
    count_B        (B,) int64 in host memory, scored text tokens of each sample
    objective_B    what training minimises: loss_sum_B, plus lambda_coarse x coarse_sum_B in mode coarse_fine
    coarse_sum_B   the same sum after the coarse pass; None if it was not computed
    fine           where the fine (or autoregressive) queries looked; None without attention or fine pass
    coarse         where the static query looked; None without attention or static query
    """

    loss_sum_B: torch.Tensor
    count_B: torch.Tensor
    objective_B: torch.Tensor
    coarse_sum_B: torch.Tensor | None = None
    fine: Attention | None = None
    coarse: Attention | None = None

    @property
    def entropy_P(self) -> torch.Tensor | None:
        """Attention entropy in nats of the pass that the loss comes from."""
        looked = self.fine or self.coarse
        return None if looked is None else looked.entropy


class Plan:
    """Where everything of a batch stands, worked out in host memory.

    A GPU is never waited for: nothing is read back from it, and a non-blocking copy to it returns at once.
    """

    def __init__(self, batch: Batch, visual_tokens: int, device: torch.device):
        self.device = device
        self.frame_counts = batch.frame_counts.numpy()
        self.visual_B = self.frame_counts * visual_tokens
        self.text_B = batch.token_counts.numpy()
        self.frame_index = batch.frame_index
        self.frames = len(batch.frames)
        # a token with nothing before it cannot be predicted
        place = count_up(self.text_B) + np.repeat(self.visual_B, self.text_B)
        scored = batch.loss_mask.numpy() & (place > 0)
        self.scored = torch.from_numpy(np.flatnonzero(scored))
        sample = np.repeat(np.arange(len(batch)), self.text_B)
        self.count_B = torch.from_numpy(np.bincount(sample[scored], minlength=len(batch)))

    @cached_property
    def rows(self) -> Rows:
        """Visual and text tokens together."""
        return pack(self.visual_B, self.text_B, self.device)

    @cached_property
    def visual_rows(self) -> Rows:
        """The visual tokens alone."""
        return pack(self.visual_B, np.zeros_like(self.text_B), self.device)

    @cached_property
    def visits(self) -> Visits:
        return Visits.of(self.frame_index, self.frames, self.device)

    @cached_property
    def shown(self) -> torch.Tensor | None:
        """The frame of each position; None if position i shows frame i."""
        return None if self.visits.cells is None else self.on_device(self.frame_index)

    @cached_property
    def first_P(self) -> torch.Tensor:
        """True at each sample's first frame."""
        return self.on_device(torch.from_numpy(count_up(self.frame_counts) == 0))

    def on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)


class VideoLanguageModel(nn.Module):
    """Encoder, connector and language model of one configuration, in one of its modes.

    Every mode makes visual tokens by `Encoder.encode`, `read` and the connector, and scores them by `_score`.
    """

    def __init__(
        self,
        config: schema.Model,
        dino: Encoder,
        llm: Language,
        connector: QueryConnector | PooledConnector,
    ):
        super().__init__()
        self.config = config
        self.dino = dino
        self.llm = llm
        self.connector = connector
        dino.dino.embeddings.mask_token.requires_grad_(False)  # of DINOv2's own pretraining; never used here

    def forward(
        self,
        batch: Batch,
        mode: str | None = None,
        with_attention: bool = False,
        with_coarse_loss: bool = False,
    ) -> Output:
        """Score the texts of a batch.

        mode               one of `config.modes`; None: the one the configuration trains in
        with_attention     also return where the queries looked
        with_coarse_loss   in mode coarse_fine also the loss that the coarse tokens give, which costs one more
                           forward pass over the texts; always given if the objective has it
        raises             UserError for a mode that this architecture does not have
        """
        mode = self.check_mode(mode)
        plan = self.plan(batch)
        text_SE = self.llm.embed(batch.token_ids)
        visual_PE, coarse_PE, fine, coarse = self.visual_tokens(batch, plan, mode, with_attention)
        loss_B = self._score(visual_PE, text_SE, batch, plan)
        output = Output(loss_B, plan.count_B, loss_B, None, fine, coarse)
        weight = self.config.lambda_coarse
        if mode == "coarse_only":
            output.coarse_sum_B = loss_B
        elif mode == "coarse_fine" and (weight > 0 or with_coarse_loss):
            with nullcontext() if weight > 0 else torch.no_grad():  # merely watched, it needs no graph
                output.coarse_sum_B = self._score(coarse_PE, text_SE, batch, plan)
            if weight > 0:
                output.objective_B = loss_B + weight * output.coarse_sum_B
        return output

    def plan(self, batch: Batch) -> Plan:
        """Where everything stands.

        raises   UserError if a sample is longer than the language model's positions
        """
        plan = Plan(batch, self.config.visual_tokens, next(self.parameters()).device)
        lengths, most = plan.visual_B + plan.text_B, self.config.language.max_positions
        if len(lengths) and lengths.max() > most:
            worst = int(lengths.argmax())
            raise UserError(
                f"sample {batch.keys[worst]} has {plan.visual_B[worst]} visual and {plan.text_B[worst]} text "
                f"tokens; the language model has {most} positions (max_positions): lower data.max_text_tokens"
            )
        return plan

    def check_mode(self, mode: str | None) -> str:
        mode = mode or self.config.training_mode
        if mode not in self.config.modes:
            known = ", ".join(self.config.modes)
            raise UserError(f"mode is {mode!r}; architecture {self.config.architecture} has {known}")
        return mode

    def visual_tokens(
        self, batch: Batch, plan: Plan, mode: str, with_attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, Attention | None, Attention | None]:
        """The visual tokens (P, E) of a mode, the coarse ones if they differ, and where both kinds looked."""
        if not len(plan.frame_index):
            nothing = self.llm.embed(batch.token_ids[:0])
            return nothing, nothing, None, None
        states = self.encode(batch.frames)
        if mode == "direct":
            tokens = self.connector.project(states.features)
            tokens = tokens if plan.shown is None else tokens[plan.shown]
            return tokens.flatten(0, 1), None, None, None
        if mode == "autoregressive":
            tokens, fine = self._read_in_turn(states, plan, with_attention)
            return tokens, None, fine, None
        coarse_PE, coarse = self._read_static(states, plan, with_attention)
        if mode == "coarse_only":
            return coarse_PE, coarse_PE, None, coarse
        hidden = self.llm.run_packed(coarse_PE, plan.visual_rows)[plan.visual_rows.cells]
        tokens, fine = self.read(self._predict(hidden, plan.first_P), states, plan.visits, with_attention)
        return tokens, coarse_PE, fine, coarse

    def encode(self, frames: torch.Tensor) -> FrameStates:
        """Phase 1; without a graph when the encoder is frozen."""
        trained = any(parameter.requires_grad for parameter in self.dino.parameters())
        deep = self.config.architecture == "foveated" and self.config.deep_query
        with nullcontext() if trained else torch.no_grad():
            return self.dino.encode(frames, keys=deep, features=not deep)

    def read(
        self, query_PQ: torch.Tensor, states: FrameStates, visits: Visits, with_attention: bool
    ) -> tuple[torch.Tensor, Attention | None]:
        """Queries (P, Q) -> visual tokens (P, E): the one path, deep or shallow, of every foveated mode."""
        read = self.dino.read if self.config.deep_query else self.dino.read_shallow
        seen_PD, attention = read(self.connector.query_input_proj(query_PQ), states, visits, with_attention)
        return self.connector.project(seen_PD), attention

    def _read_static(self, states: FrameStates, plan: Plan, with_attention: bool):
        """Every frame read once with the same query, then shown at each of its positions."""
        each_frame = Visits(None, 1)
        query_UQ = self.connector.q_static.expand(plan.frames, -1)
        tokens, attention = self.read(query_UQ, states, each_frame, with_attention)
        if plan.shown is None:
            return tokens, attention
        if attention is not None:
            attention = Attention(attention.entropy[plan.shown], attention.patches[plan.shown])
        return tokens[plan.shown], attention

    def _predict(self, hidden_PE: torch.Tensor, first_P: torch.Tensor) -> torch.Tensor:
        """Queries (P, Q): the initial one for a sample's first frame, else that of the position before."""
        query_PQ = self.connector.llm_to_query(hidden_PE)
        before = torch.cat([query_PQ[:1], query_PQ[:-1]])
        return torch.where(first_P[:, None], self.connector.q_init.to(before.dtype), before)

    @torch.no_grad()
    def _read_in_turn(self, states: FrameStates, plan: Plan, with_attention: bool):
        """Frame by frame with the language model's cache, all samples abreast, longest first; no gradient."""
        counts = plan.frame_counts
        longest_first = np.argsort(-counts, kind="stable")
        starts = (np.cumsum(counts) - counts)[longest_first]
        cache, query, order, tokens, looked = Cache(), None, [], [], []
        for time in range(counts.max()):
            rows = int((counts > time).sum())
            positions = torch.from_numpy(starts[:rows] + time)
            seen = states.select(plan.on_device(plan.frame_index[positions]))
            if query is None:
                query = self.connector.q_init.expand(rows, -1)
            token, attention = self.read(query[:rows], seen, Visits(None, 1), with_attention)
            order.append(positions)
            tokens.append(token)
            looked.append(attention)
            cache.keep(rows)
            query = self.connector.llm_to_query(self.llm.run_next(token[:, None], time, cache)[:, 0])
        back = plan.on_device(torch.cat(order).argsort())
        if not with_attention:
            return torch.cat(tokens)[back], None
        entropy = torch.cat([attention.entropy for attention in looked])[back]
        return torch.cat(tokens)[back], Attention(entropy, torch.cat([a.patches for a in looked])[back])

    def _score(self, visual_PE: torch.Tensor, text_SE: torch.Tensor, batch: Batch, plan: Plan) -> torch.Tensor:
        """Summed cross-entropy (B,) of each sample's scored tokens behind its visual tokens."""
        hidden = self.hidden(visual_PE, text_SE, plan)
        cells = plan.rows.cells[len(visual_PE) :]
        scored = plan.on_device(plan.scored)
        # the token before stands in the cell before: a sample's tokens are neighbours
        values = scored_cross_entropy(self.llm, hidden[cells[scored] - 1], batch.token_ids[scored])
        return sum_per_sample(values, plan.on_device(plan.count_B))

    def hidden(self, visual_PE: torch.Tensor, text_SE: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Hidden states of [visual tokens, text tokens] in the cells of `plan.rows`."""
        return self.llm.run_packed(torch.cat([visual_PE.to(text_SE.dtype), text_SE]), plan.rows)

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by group, connector, dino and llm, under their full names; together all there are."""
        groups = {
            group: {f"{group}.{name}": parameter for name, parameter in getattr(self, group).named_parameters()}
            for group in ("connector", "dino", "llm")
        }
        if sum(map(len, groups.values())) != len(list(self.parameters())):
            raise RuntimeError("parameter groups do not add up to all parameters")
        return groups

    def freeze(self, groups: Iterable[str]) -> None:
        """Take whole groups out of training."""
        for group in groups:
            for parameter in self.parameter_groups()[group].values():
                parameter.requires_grad_(False)
