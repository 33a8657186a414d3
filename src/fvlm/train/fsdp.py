"""Weights, gradients and moments split over the ranks, for a model that is too large for one GPU (FSDP2).

Outside the passes each rank has its part of every tensor, as a DTensor; files always hold whole tensors, so that a run
can go on with other ranks, or with one.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fvlm.model.foveated import VideoLanguageModel


def shard(model: VideoLanguageModel, device: torch.device) -> None:
    """Split a model over all ranks, each of which has the same whole one.

    What is gathered for a pass at a time is a projection of an attention, or an MLP, and at last all the rest: the
    walks through the layers call these modules, never a layer as a whole.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = [*model.llm.llama.layers]
    if model.config.variant.sees:
        layers += model.dino.layers
    for layer in layers:
        attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp):
            fully_shard(part, mesh=mesh)
    # as it is, the rest stays gathered until a backward pass: an average's weights, validated, would be trained on
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the units of all ranks already
            module.set_force_sum_reduction_for_comms(True)
    model.always_sees = True


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a split tensor; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_state(content: object) -> object:
    """Nested dicts, lists and tuples with whole tensors in host memory instead of split ones; all ranks must call it.

    What is not split stays what it was.
    """
    if isinstance(content, DTensor):
        return gathered(content).cpu()
    if isinstance(content, Mapping):
        return {key: gathered_state(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(gathered_state(value) for value in content)
    return content


def split_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every rank has, split as another one is; itself, if that one is not split."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """`load_state_dict` of whole tensors."""
    there = model.state_dict()
    model.load_state_dict({name: split_like(w, there.get(name, w)) for name, w in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """`load_state_dict` of whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {name: split_like(x, parameters[number]) if x.ndim else x for name, x in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
