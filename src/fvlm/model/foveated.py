"""The video-language model: foveated reading in two or more passes, its inference mode, and the baselines.

Letters: B samples, U distinct frames, P visual positions (a frame may stand at several), S text tokens,
D encoder width, Q query width, E language width.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fvlm.batch import Batch
from fvlm.config import schema
from fvlm.errors import UserError
from fvlm.model.connector import Connector
from fvlm.model.encoder import Attention, Encoder, FrameStates, Visits
from fvlm.model.language import Cache, Language
from fvlm.model.losses import scored_cross_entropy, sum_per_sample
from fvlm.model.packing import Plan, count_up


@dataclass
class Output:
    """The result of a forward pass.

    loss_sum_B     cross-entropy of the mode, nats summed over each sample's scored text tokens
    count_B        (B,) int64 in host memory, scored text tokens of each sample
    nats_X         cross-entropy of each scored text token, sample after sample; targets_X: ids of these tokens
    objective_B    the sum that training minimises: loss_sum_B, plus lambda_coarse x coarse_sum_B in mode coarse_fine
    coarse_sum_B   the same as loss_sum_B after the coarse pass; None if it was not computed
    fine           attention of the fine (or autoregressive) queries; None without attention or fine pass
    coarse         attention of the static query; None without attention or static query
    """

    loss_sum_B: torch.Tensor
    count_B: torch.Tensor
    nats_X: torch.Tensor
    targets_X: torch.Tensor
    objective_B: torch.Tensor
    coarse_sum_B: torch.Tensor | None = None
    fine: Attention | None = None
    coarse: Attention | None = None

    @property
    def entropy_P(self) -> torch.Tensor | None:
        """Attention entropy in nats of the pass that the loss comes from."""
        attention = self.fine or self.coarse
        return None if attention is None else attention.entropy


class VideoLanguageModel(nn.Module):
    """Encoder, connector and language model of one configuration.

    In every mode `Encoder.encode`, `read` and the connector make visual tokens, and `_score` scores the texts behind
    them. The blind model has no encoder and ignores frames.
    """

    def __init__(
        self,
        config: schema.Model,
        dino: Encoder | nn.Module,
        llm: Language,
        connector: Connector,
    ):
        """`dino` is an empty module in a blind model."""
        super().__init__()
        self.config = config
        self.dino = dino
        self.llm = llm
        self.connector = connector

    def forward(
        self,
        batch: Batch,
        mode: str | None = None,
        with_attention: bool = False,
        with_coarse_loss: bool = False,
    ) -> Output:
        """Score the texts of a batch.

        mode               one of `config.modes`; None: the training mode
        with_attention     also return the attention of the queries
        with_coarse_loss   in mode coarse_fine also return the loss after the coarse pass, which costs one more pass
                           over the texts; always returned if the objective contains it
        raises             UserError for a mode that this architecture does not have
        """
        mode = self.check_mode(mode)
        plan = self.plan(batch)
        text_SE = self.llm.embed(batch.token_ids)
        visual_PE, coarse_PE, fine, coarse = self.visual_tokens(batch, text_SE, plan, mode, with_attention)
        nats_X, targets_X = self._score(visual_PE, text_SE, batch, plan)
        loss_B = sum_per_sample(nats_X, plan.on_device(plan.count_B))
        output = Output(loss_B, plan.count_B, nats_X, targets_X, loss_B, None, fine, coarse)
        weight = self.config.lambda_coarse
        if mode == "coarse_only":
            output.coarse_sum_B = loss_B
        elif mode == "coarse_fine" and (weight > 0 or with_coarse_loss):
            with nullcontext() if weight > 0 else torch.no_grad():  # a metric needs no graph
                coarse_X, _ = self._score(coarse_PE, text_SE, batch, plan)
                output.coarse_sum_B = sum_per_sample(coarse_X, plan.on_device(plan.count_B))
            if weight > 0:
                output.objective_B = loss_B + weight * output.coarse_sum_B
        return output

    def plan(self, batch: Batch) -> Plan:
        """Return the layout of a batch.

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
        self,
        batch: Batch,
        text_SE: torch.Tensor,
        plan: Plan,
        mode: str,
        with_attention: bool = False,
        states: FrameStates | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Attention | None, Attention | None]:
        """Return the visual tokens (P, E) of a mode, those of the coarse pass, and fine and coarse attention.

        text_SE   embedded text tokens; queries depend on the questions before the frames
        states    of the batch's frames, from `encode`; None: they are encoded here
        """
        if not plan.visual_B.any():
            return text_SE[:0], text_SE[:0], None, None
        states = states or self.encode(batch.frames)
        if mode == "direct":
            tokens = self.connector.project(states.features)
            tokens = tokens if plan.shown is None else tokens[plan.shown]
            return tokens.flatten(0, 1), None, None, None
        if mode == "autoregressive":
            tokens, fine = self._read_in_turn(states, text_SE, plan, with_attention)
            return tokens, None, fine, None
        coarse_PE, coarse = self._read_static(states, plan, with_attention)
        if mode == "coarse_only":
            return coarse_PE, coarse_PE, None, coarse
        tokens = coarse_PE
        for _ in range(self.config.fine_passes):
            query_PQ = self.predict(tokens, text_SE, plan)
            tokens, fine = self.read(query_PQ, states, plan.visits, with_attention)
        return tokens, coarse_PE, fine, coarse

    def encode(self, frames: torch.Tensor) -> FrameStates:
        """Phase 1; without a graph if the encoder is frozen."""
        trained = any(parameter.requires_grad for parameter in self.dino.parameters())
        keeps = self.config.variant.keeps
        with nullcontext() if trained else torch.no_grad():
            states = self.dino.encode(frames, keys=keeps == "keys", features=keeps != "keys")
            return self.dino.last_keys(states.features) if keeps == "last" else states

    def read(
        self, query_PQ: torch.Tensor, states: FrameStates, visits: Visits, with_attention: bool
    ) -> tuple[torch.Tensor, Attention | None]:
        """Read frames by queries (P, Q): visual tokens (P, E). Every mode with queries takes this path."""
        read = self.dino.read if self.config.variant.keeps == "keys" else self.dino.read_shallow
        seen_PD, attention = read(self.connector.query_input_proj(query_PQ), states, visits, with_attention)
        return self.connector.project(seen_PD), attention

    def _read_static(self, states: FrameStates, plan: Plan, with_attention: bool):
        """Read every frame once with the static query; return the tokens at each position."""
        each_frame = Visits(None, 1)
        query_UQ = self.connector.q_static.expand(plan.frames, -1)
        tokens, attention = self.read(query_UQ, states, each_frame, with_attention)
        if plan.shown is None:
            return tokens, attention
        return tokens[plan.shown], attention and attention.select(plan.shown)

    def predict(self, visual_PE: torch.Tensor, text_SE: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Return the queries (P, Q) of the next pass: from the token before each frame, else the initial query.

        visual_PE   the visual tokens of the pass before
        """
        tokens, rows = visual_PE, plan.visual_rows
        if plan.questions is not None:
            tokens = torch.cat([visual_PE.to(text_SE.dtype), text_SE[plan.questions]])
        hidden = self.llm.run_packed(tokens, rows)
        # the token before a frame is in the cell before; of a sample's first cell it is another sample's, and replaced
        query_PQ = self.connector.llm_to_query(hidden[rows.cells[: len(visual_PE)] - 1])
        return self._initial_where(plan.initial_P, query_PQ)

    def _initial_where(self, initial: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Return queries (*, Q) with the initial query at the places (*,) that are True."""
        return torch.where(initial[:, None], self.connector.q_init.to(query.dtype), query)

    @torch.no_grad()
    def _read_in_turn(self, states: FrameStates, text_SE: torch.Tensor, plan: Plan, with_attention: bool):
        """Read frame by frame with the language model's cache, all samples side by side; no gradient.

        The samples with most frames come first, so that those still running are always the first rows.
        """
        counts = plan.frame_counts
        longest_first = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        starts = (np.cumsum(counts) - counts)[longest_first]
        cache, order, tokens, attentions = Cache(), [], [], []
        query, question_R1, in_question = self._ask(text_SE, plan, longest_first, cache)
        for time in range(counts.max()):
            rows = int((counts > time).sum())
            positions = torch.from_numpy(starts[:rows] + time)
            frames = states.select(plan.on_device(plan.frame_index[positions]))
            token, attention = self.read(query[:rows], frames, Visits(None, 1), with_attention)
            order.append(positions)
            tokens.append(token)
            attentions.append(attention)
            cache.keep(rows)
            mask = None if in_question is None else F.pad(in_question[:rows], (0, time + 1), value=True)
            hidden = self.llm.run_next(token[:, None], question_R1[:rows] + time, cache, mask)
            query = self.connector.llm_to_query(hidden[:, 0])
        back = plan.on_device(torch.cat(order).argsort())
        if not with_attention:
            return torch.cat(tokens)[back], None
        entropy, patches = zip(*((attention.entropy, attention.patches) for attention in attentions), strict=True)
        return torch.cat(tokens)[back], Attention(torch.cat(entropy), torch.cat(patches)).select(back)

    def _ask(self, text_SE: torch.Tensor, plan: Plan, samples: np.ndarray, cache: Cache):
        """Put the questions of some samples into the cache, one row each.

        returns   the queries of the first frames (R, Q); the length of each question (R, 1); and the cells of the
                  cache that hold a question, (R, 1, 1, longest) bool, None if there are no questions
        """
        lengths, starts = plan.question_B[samples], (np.cumsum(plan.text_B) - plan.text_B)[samples]
        count, longest = len(lengths), int(lengths.max())
        question_R1 = plan.on_device(torch.from_numpy(lengths))[:, None]
        if not longest:
            return self.connector.q_init.expand(count, -1), question_R1, None
        row, place = np.repeat(np.arange(count), lengths), count_up(lengths)
        cells, tokens = (plan.on_device(torch.from_numpy(x)) for x in (row * longest + place, starts[row] + place))
        question = text_SE.new_zeros(count * longest, text_SE.shape[1]).index_copy(0, cells, text_SE[tokens])
        # a shorter question ends in empty cells; its tokens stand before them and do not attend to them
        hidden = self.llm.run_next(question.unflatten(0, (count, longest)), 0, cache)
        last = hidden[torch.arange(count, device=plan.device), question_R1[:, 0] - 1]
        query = self._initial_where(question_R1[:, 0] == 0, self.connector.llm_to_query(last))
        return query, question_R1, (torch.arange(longest, device=plan.device) < question_R1)[:, None, None]

    def _score(
        self, visual_PE: torch.Tensor, text_SE: torch.Tensor, batch: Batch, plan: Plan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy (X,) of each scored token, and the tokens (X,), sample after sample."""
        hidden = self.hidden(visual_PE, text_SE, plan)
        cells = plan.rows.cells[len(visual_PE) :]
        scored = plan.on_device(plan.scored)
        # a sample's tokens are neighbours, so the token before is in the cell before
        targets = batch.token_ids[scored]
        return scored_cross_entropy(self.llm, hidden[cells[scored] - 1], targets), targets

    def hidden(self, visual_PE: torch.Tensor, text_SE: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Return the hidden states of visual and text tokens in the cells of `plan.rows`."""
        return self.llm.run_packed(torch.cat([visual_PE.to(text_SE.dtype), text_SE]), plan.rows)

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return all parameters by group (connector, dino, llm) and full name."""
        groups = {
            group: {f"{group}.{name}": parameter for name, parameter in getattr(self, group).named_parameters()}
            for group in ("connector", "dino", "llm")
        }
        if sum(map(len, groups.values())) != len(list(self.parameters())):
            raise RuntimeError("parameter groups do not add up to all parameters")
        return groups

    def recompute_layers(self, recompute: bool) -> None:
        """Switch activation checkpointing of encoder and language model on or off; results stay the same."""
        self.llm.recompute = recompute
        if isinstance(self.dino, Encoder):  # a blind model has none
            self.dino.recompute = recompute

    def freeze(self, groups: Iterable[str]) -> None:
        """Take whole groups out of training."""
        for group in groups:
            for parameter in self.parameter_groups()[group].values():
                parameter.requires_grad_(False)
