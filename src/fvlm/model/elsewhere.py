"""Weights of another program, in the names of this one.

The published study has the same architectures under other names: its connector is spread over encoder and model, and
its DINOv2 has the names of transformers 4. A folder of `fvlm export` has the names of transformers. Files
are safetensors, or checkpoints of torch (.pt): a dictionary with the weights under `model_state_dict`.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fvlm.config import schema
from fvlm.errors import BROKEN, UserError, first_line
from fvlm.files import check_archive, check_pickle
from fvlm.model.build import build_model

STATE = "model_state_dict"  # key of the weights in a checkpoint
SUFFIXES = (".pt", ".pth", ".safetensors")
PLAIN = re.compile(  # what a pickle of tensors and plain values refers to
    r"collections (OrderedDict|defaultdict)|(builtins|__builtin__) (dict|list)|torch \w+Storage|"
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device|bfloat16|float\d+|int\d+|bool)"
)
UNUSED = re.compile(r"(encoder\._device_probe|.*\.rotary_emb\.inv_freq)")  # hold nothing that a model learns
TIED = ("llm.lm_head.weight", "lm_head.weight")
NAMES = (  # pattern of a name there -> name here
    (r"encoder\.(query_input_proj|output_proj)\.", r"connector.\1."),
    (r"(dino_to_llm|llm_to_query)\.", r"connector.\1."),
    (r"(q_static|q_init)$", r"connector.\1"),
    (r"encoder\.dino\.", "dino.dino."),
    (r"dino\.(?=embeddings\.|encoder\.|layernorm\.)", "dino.dino."),
    (r"llm\.model\.", "llm.llama."),
    (r"vision_model\.", "dino.dino."),  # of an exported folder, as the next
    (r"language_model\.", "llm.llama."),
)
DINO_4 = {  # of transformers 4 -> of transformers 5
    **{f"attention.attention.{name}.": f"attention.{name[0]}_proj." for name in ("query", "key", "value")},
    "attention.output.dense.": "attention.o_proj.",
}


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a file, and what a checkpoint holds beside them.

    raises   UserError if the file is missing, damaged, or holds anything but tensors and plain values
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, {}  # noqa: SIM118 - no mapping
        except (*BROKEN, SafetensorError) as error:
            raise UserError(
                f"{path}: cannot be read as safetensors ({first_line(error)}); expected whole weights: copy them again"
            ) from error
    content = _load(path)
    state = content.get(STATE) if isinstance(content, dict) else None
    if not (isinstance(state, dict) and state and all(isinstance(x, torch.Tensor) for x in state.values())):
        raise UserError(f"{path}: expected a dictionary with weights under {STATE!r}; name a checkpoint of a training")
    return state, {key: value for key, value in content.items() if key != STATE and not key.endswith("_state_dict")}


def _load(path: Path) -> Any:
    try:
        check_archive(path)
        try:
            check_pickle(path, PLAIN)
        except ValueError as error:
            raise UserError(
                f"{path}: a pickle with more in it than tensors and plain values ({first_line(error)}), which is not "
                "loaded, since it could run code; save its weights as safetensors and name that file"
            ) from error
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (*BROKEN, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint of torch ({first_line(error)}); copy it again"
        ) from error


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under the names of this package; weights that have these names already stay as they are.

    raises   UserError if two tensors get one name, or the output weights differ from the embeddings
    """
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        new = new_name(name)
        if new is None:
            continue
        if new in result:
            raise UserError(f"the weights have {new} twice, once as {name}; expected each tensor once")
        is_query = new in ("connector.q_static", "connector.q_init")
        result[new] = tensor.flatten() if is_query and tensor.ndim == 2 and len(tensor) == 1 else tensor
    embedding = result.get("llm.llama.embed_tokens.weight")
    for tied in TIED:
        if tied in state and embedding is not None and not torch.equal(state[tied], embedding):
            raise UserError(
                f"{tied} differs from the embeddings; the models here use one tensor for both: retrain with tied "
                "weights"
            )
    return result


def new_name(name: str) -> str | None:
    """Return the name that a tensor has here; None if no model here has it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]  # of torch.compile
    name = ".".join(parts[1:] if parts[0] == "module" else parts)  # of data-parallel training
    if UNUSED.fullmatch(name) or name in TIED:
        return None
    if name.startswith(("connector.", "dino.dino.", "llm.llama.")):
        return name
    for pattern, new in NAMES:
        name, count = re.subn(f"^{pattern}", new, name)
        if count:
            break
    if name.startswith("dino."):
        for old, new in DINO_4.items():
            name = name.replace(old, new)
    return name


def check_weights(state: dict[str, torch.Tensor], model: schema.Model, where: str) -> None:
    """Check that renamed weights are exactly those of a model: every tensor, each of the right shape.

    where    file and run, for the message
    raises   UserError
    """
    with torch.device("meta"):
        expected = {name: tuple(x.shape) for name, x in build_model(model, 0, pretrained=False).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing, unknown = sorted(expected.keys() - found), sorted(found.keys() - expected)
    sizes = [name for name in expected if name in found and expected[name] != found[name]]
    if sizes:
        raise UserError(
            f"{where}: the weights are of another size: {sizes[0]} has shape {found[sizes[0]]}, expected "
            f"{expected[sizes[0]]} for {model.encoder.name} and {model.language.name}; name a run of their size"
        )
    if missing or unknown:
        both = ((what, names) for what, names in (("missing", missing), ("not part of it", unknown)) if names)
        listed = "; ".join(f"{what}: {_first_of(names)}" for what, names in both)
        size = all(re.search(r"\.layers?\.\d+\.", name) for name in (*missing, *unknown))
        what = "another number of layers" if size else f"another architecture than {model.architecture}"
        raise UserError(f"{where}: the weights are of {what} ({listed}); name the run that they belong to")


def _first_of(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def load_elsewhere(model: nn.Module, config: schema.Model, path: Path) -> None:
    """Load weights of this or of another program into a model of this configuration.

    raises   UserError if they cannot be read, or are of another model
    """
    state = renamed(read_weights(path)[0])
    check_weights(state, config, str(path))
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
