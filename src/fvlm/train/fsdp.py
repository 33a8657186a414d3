"""How a model lies on the ranks: whole on each of them, or with its weights split over all of them (FSDP2).

Between the passes, a rank holds its part of each split tensor as a DTensor. Files always hold whole tensors, so a run
can resume with another number of ranks, split or not. FSDP and DTensor take half a CPU second to import, so they are
imported where a model is split.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn

from fvlm.batch import Batch
from fvlm.data.batches.loader import IMAGE
from fvlm.errors import UserError
from fvlm.model.foveated import Output, VideoLanguageModel
from fvlm.train.ranks import Ranks


class DataParallel:
    """The whole model on each rank, or on the only one. The gradients of a step are summed over the ranks."""

    def __init__(self, model: VideoLanguageModel, device: torch.device, ranks: Ranks):
        self.model, self.ranks = model, ranks
        self._place(device)

    def _place(self, device: torch.device) -> None:
        self.model.to(device)

    def in_step(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the micro-batches that this rank passes, step by step; if any rank fails to load them, all stop.

        steps   this rank's micro-batches of each step; every rank has as many steps
        """
        remaining = iter(steps)
        while True:
            batches, error = None, None
            try:
                batches = next(remaining, None)
            except UserError as problem:
                error = problem
            counts = self.ranks.agree(0 if batches is None else len(batches), error)
            if batches is None:
                return
            yield self._filled(batches, max(counts))

    def _filled(self, batches: list[Batch], count: int) -> list[Batch]:
        return batches

    def reduce_gradients(self, parameters: list[nn.Parameter], batches: list[Batch]) -> None:
        """Sum the gradients of a step over the ranks, after the backward passes of its micro-batches."""
        self.ranks.sum_gradients(parameters)


class FullySharded(DataParallel):
    """Weights, gradients and moments split over the ranks, for a model that is too large for one GPU.

    Each pass gathers the weights, so all ranks must make as many passes through the same modules. A rank with fewer
    micro-batches passes empty ones, and a micro-batch without frames is passed with a black frame that has no weight.
    """

    def _place(self, device: torch.device) -> None:
        """Split the model, which is the same on all ranks.

        A pass gathers one projection of an attention or one MLP at a time, and all other weights at its beginning. The
        model calls these modules themselves, never a layer.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        model, mesh = self.model, init_device_mesh(device.type, (dist.get_world_size(),))
        layers = [*model.llm.llama.layers]
        if model.config.variant.sees:
            layers += model.dino.layers
            use_all_weights(model)
        for layer in layers:
            attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp):
                fully_shard(part, mesh=mesh)
        # by default the rest stays gathered until a backward pass, which would train on a validation's averaged weights
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the units of all ranks already
                module.set_force_sum_reduction_for_comms(True)

    def _filled(self, batches: list[Batch], count: int) -> list[Batch]:
        return batches + [empty_batch() for _ in range(count - len(batches))]

    def reduce_gradients(self, parameters: list[nn.Parameter], batches: list[Batch]) -> None:
        """Remove the zero gradients that black frames alone have left; the backward passes have summed all others.

        AdamW would decay a weight with a zero gradient, but leaves a weight without gradient as it is.
        """
        if not any(self.ranks.gather(any(bool(batch.frame_counts.any()) for batch in batches))):
            groups = self.model.parameter_groups()
            for parameter in (*groups["dino"].values(), *groups["connector"].values()):
                parameter.grad = None


def empty_batch() -> Batch:
    """Return a batch without samples."""
    none = torch.zeros(0, dtype=torch.int64)
    frames = torch.zeros(0, IMAGE, IMAGE, 3, dtype=torch.uint8)
    return Batch(frames, none, none, none, none, none.bool(), [], [])


class _WithBlank(Batch):
    """A batch whose last sample is a black frame and one token that is not scored."""


def use_all_weights(model: VideoLanguageModel) -> None:
    """Let a pass without frames use the same weights as one with frames, and give the same result as before."""

    def add_blank(_model: nn.Module, arguments: tuple) -> tuple:
        batch, *options = arguments
        return arguments if batch.frame_counts.any() else (_with_blank(batch), *options)

    def drop_blank(_model: nn.Module, arguments: tuple, output: Output) -> Output:
        if not isinstance(arguments[0], _WithBlank):
            return output
        coarse = None if output.coarse_sum_B is None else output.coarse_sum_B[:-1]
        scored = output.nats_X, output.targets_X  # none of the blank sample
        return Output(output.loss_sum_B[:-1], output.count_B[:-1], *scored, output.objective_B[:-1], coarse)

    model.register_forward_pre_hook(add_blank)
    model.register_forward_hook(drop_blank)


def _with_blank(batch: Batch) -> _WithBlank:
    one = torch.ones(1, dtype=torch.int64)
    blank = batch.frames.new_zeros(1, *batch.frames.shape[1:])
    return _WithBlank(
        frames=torch.cat([batch.frames, blank]),
        frame_index=torch.cat([batch.frame_index, one * len(batch.frames)]),
        frame_counts=torch.cat([batch.frame_counts, one]),
        token_ids=torch.cat([batch.token_ids, batch.token_ids.new_zeros(1)]),
        token_counts=torch.cat([batch.token_counts, one]),
        loss_mask=torch.cat([batch.loss_mask, one == 0]),
        keys=[*batch.keys, "blank"],
        sources=[*batch.sources, "blank"],
        question_counts=torch.cat([batch.question_counts, 0 * one]),
    )


def is_split(tensor: object) -> bool:
    """Return whether a tensor is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a split tensor, in the same memory; a whole tensor is returned as it is."""
    return tensor.to_local() if is_split(tensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a split tensor as a whole one; all ranks must call this."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def full_state(content: object) -> object:
    """Return nested dicts, lists and tuples with whole tensors in host memory instead of split ones.

    All else stays as it is. All ranks must call this.
    """
    if is_split(content):
        return full_tensor(content).cpu()
    if isinstance(content, Mapping):
        return {key: full_state(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(full_state(value) for value in content)
    return content


def split_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, which every rank has, split as `like` is; as it is if `like` is not split."""
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load whole tensors into a model."""
    current = model.state_dict()
    model.load_state_dict({name: split_like(w, current.get(name, w)) for name, w in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load whole moments into an optimizer."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {name: split_like(x, parameters[number]) if x.ndim else x for name, x in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
