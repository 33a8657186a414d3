"""Greedy text generation behind a prompt and a video, in either order."""

import torch

from fvlm.batch import Batch
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.language import Cache


@torch.no_grad()
def generate(
    model: VideoLanguageModel, batch: Batch, end_id: int | None, max_new_tokens: int, mode: str | None = None
) -> list[int]:
    """Return the generated tokens: at each step the most likely one, with the language model's cache.

    batch    one sample; its text tokens are the prompt
    end_id   the token that ends an answer (it is not returned); None: no token does
    mode     one of the model's modes; None: the architecture's `inference_mode`
    raises   ValueError if the batch has more than one sample
    """
    if len(batch) != 1:
        raise ValueError(f"generate takes one sample, got {len(batch)}")
    mode = model.check_mode(mode or model.config.variant.inference_mode)
    plan, text_SE = model.plan(batch), model.llm.embed(batch.token_ids)
    visual_PE = model.visual_tokens(batch, text_SE, plan, mode)[0]
    question, rest = text_SE.tensor_split([int(plan.question_B[0])])
    next_1SE, cache = torch.cat([question, visual_PE.to(text_SE.dtype), rest])[None], Cache()
    start, generated = 0, []
    while len(generated) < max_new_tokens:
        hidden = model.llm.run_next(next_1SE, start, cache)[:, -1]
        token = model.llm.logits(hidden).argmax(-1)
        if int(token) == end_id:
            break
        generated.append(int(token))
        start += next_1SE.shape[1]
        next_1SE = model.llm.embed(token)[:, None]
    return generated
