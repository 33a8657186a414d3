"""The exported model (`fvlm export`, src/fvlm/use/exported) with the weights and the batches of this package.

It is the obvious implementation: transformers' modules unchanged, batches padded to the longest sample, keys and values
computed anew by each reading from the hidden states of all layers, logits at every position. The benchmark of the
training step measures it, and the tests compare the package's model with it.

Letters: B samples, S tokens of the longest sample, T frames of the longest.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from fvlm.batch import Batch
from fvlm.model.elsewhere import new_name
from fvlm.model.encoder import PIXEL_MEAN, PIXEL_STD
from fvlm.model.foveated import VideoLanguageModel
from fvlm.use.export import config_of, exported_name
from fvlm.use.exported.configuration_fvlm import FvlmConfig
from fvlm.use.exported.modeling_fvlm import FvlmForConditionalGeneration, FvlmOutput

FRAME = -1  # stands for a frame; no text has it, so that texts may have all tokens


def exported(model: VideoLanguageModel) -> FvlmForConditionalGeneration:
    """Return the exported model with a copy of a model's weights, on the CPU."""
    reference = FvlmForConditionalGeneration(FvlmConfig(**config_of(model.config, FRAME))).eval()
    weights = {exported_name(name): tensor for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["language_model.embed_tokens.weight"]
    reference.load_state_dict(weights)
    if model.config.variant.sees:
        reference.vision_model.embeddings.mask_token.requires_grad_(False)
    return reference.to(model.llm.llama.norm.weight.dtype)


def padded(batch: Batch, reference: FvlmForConditionalGeneration, left: bool = False) -> dict[str, torch.Tensor]:
    """Return a batch as the exported model takes it; frames are still bytes.

    left      padding before the samples instead of behind them
    returns   input_ids, attention_mask and labels (B, S), frames (B, T, side, side, 3) uint8
    """
    counts, texts = batch.frame_counts.tolist(), batch.token_counts.tolist()
    labels = batch.token_ids.masked_fill(~batch.loss_mask, -100).split(texts)
    rows, targets = [], []
    for frames, question, ids, scored in zip(
        counts, batch.question_counts.tolist(), batch.token_ids.split(texts), labels, strict=True
    ):
        visual, question = frames * reference.config.tokens_per_frame, question if frames else 0
        rows.append(torch.cat([ids[:question], ids.new_full((visual,), FRAME), ids[question:]]))
        targets.append(torch.cat([scored[:question], ids.new_full((visual,), -100), scored[question:]]))
        targets[-1][:1] = -100  # nothing is before it
    side = {"batch_first": True, "padding_side": "left" if left else "right"}
    return {
        "input_ids": pad_sequence(rows, **side),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], **side),
        "labels": pad_sequence(targets, padding_value=-100, **side),
        "frames": pad_sequence(batch.frames[batch.frame_index].split(counts), batch_first=True),
    }


def outputs_of(
    reference: FvlmForConditionalGeneration, inputs: dict[str, torch.Tensor], mode: str | None = None
) -> FvlmOutput:
    """Return the output of the exported model for the inputs that `padded` made."""
    inputs = dict(inputs)
    pixels = normalised(inputs.pop("frames"), reference.dtype)
    embeds = reference.get_input_embeddings()(inputs["input_ids"].clamp(min=0))
    return reference(**inputs, inputs_embeds=embeds, pixel_values=pixels if pixels.shape[1] else None, mode=mode)


def normalised(frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(*, side, side, 3) bytes -> (*, 3, side, side), normalised as DINOv2 expects."""
    mean, std = (torch.tensor(values, dtype=dtype, device=frames.device) for values in (PIXEL_MEAN, PIXEL_STD))
    return ((frames.to(dtype) / 255 - mean) / std).movedim(-1, -3)


def named_as_ours(reference: FvlmForConditionalGeneration) -> dict[str, nn.Parameter]:
    """Return the parameters of the exported model by their names in a model of this package."""
    return {new_name(name): parameter for name, parameter in reference.named_parameters()}
