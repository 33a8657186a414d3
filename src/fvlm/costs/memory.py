"""Peak GPU memory of a training, predicted from its configuration before anything runs. No torch here.

There are the weights with their gradients and AdamW moments, all float32; the tensors that the forward pass saved for
the backward pass, counted here layer by layer as `fvlm.model` saves them; and the temporaries of the logits. Most is
used as the backward pass of a micro-batch begins, or, where weights outweigh activations, once it has passed the texts:
a weight that was used twice waits with a second gradient until its other use is passed, and so do the gradients of keys
and values. Every choice is the larger one: the fullest micro-batch, rows packed as badly as first fit can, every text
token scored. Attention is that of a fused kernel, which keeps no scores.

With `operation.recompute` the layers of encoder and language model keep their inputs alone, and one of them is there
whole while it is computed again. With `operation.shard_weights` each rank holds its share of weights,
gradients and moments, and the whole weights of two layers or of the embeddings while they are used.

`item`: bytes of a number in matrix products, 2 under autocast to bfloat16, else 4.
"""

from bisect import bisect_right
from dataclasses import dataclass

from fvlm.config import schema
from fvlm.costs.flops import Trained, parameters
from fvlm.data.decode.media import MAX_FRAMES

GB = 2**30  # bytes, as drivers and metrics.csv count
STATE = 16  # bytes of a trained parameter: weight, gradient and AdamW's two moments in float32
AVERAGE = 4  # and of its moving average, where one is kept
RESERVE = 2 * GB  # the driver, CUDA's context and the workspaces of its libraries
FRAGMENTS = 0.05  # of all that a step allocates and frees: what the allocator cannot reuse
CHUNK = 2**26  # logits computed at a time, as in fvlm.model.losses


@dataclass(frozen=True)
class Load:
    """What one forward pass is given, and the room it takes.

    frames, positions, text_tokens   distinct frames, visual positions and text tokens of all samples
    query_cells                      rows of the fine pass's attention: frames x most positions at one frame
    visual_cells, cells              rows x width of the packed visual tokens with the questions before them, and of
                                     visual and text tokens
    visual_width, width              cells of a row of each; 0 if no two samples share a row (then no mask)
    """

    frames: int
    positions: int
    text_tokens: int
    query_cells: int
    visual_cells: int
    cells: int
    visual_width: int
    width: int


def largest_load(run: schema.Run) -> Load:
    """The fullest micro-batch that `operation` allows. A sample beyond the limits is a micro-batch of its own.

    A pair of answers is one sample of two halves, each with all frames and a text of its own.
    """
    halves = 2 if run.data.loss == "preference" else 1
    mine = -(-run.optim.batch_size // run.operation.total_ranks)  # a rank's share of a step
    samples, visual, text = halves * mine, run.model.visual_tokens, run.data.max_text_tokens
    positions = max(halves * MAX_FRAMES, min(run.operation.micro_frames, samples * MAX_FRAMES))
    text_tokens = max(halves * text, min(run.operation.micro_tokens, samples * text))
    asked = bool(run.data.question_first)  # then a whole text may stand before the frames

    def cells(tokens: int, longest: int) -> int:
        # first fit leaves no two rows that would fit into one, so that more than half of all cells are filled
        return max(halves * longest, min(2 * tokens, samples * longest))

    width, visual_width = MAX_FRAMES * visual + text, MAX_FRAMES * visual + asked * text
    return Load(
        frames=positions,
        positions=positions,
        text_tokens=text_tokens,
        query_cells=positions * run.data.static_frames,
        visual_cells=cells(positions * visual + asked * text_tokens, visual_width),
        cells=cells(positions * visual + text_tokens, width),
        visual_width=visual_width,
        width=width,
    )


def predicted_bytes(run: schema.Run) -> int:
    """Peak memory of a run's training on each of its GPUs, with the reserve."""
    load, item = largest_load(run), item_bytes(run)
    trained = Trained.all_but(run.optim.freeze)
    pixels = load.frames * 3 * run.model.encoder.image**2
    language = run.model.language
    # of one chunk's logits and of the embeddings: a gradient in `item` bytes and two in float32
    logits = min(CHUNK, load.text_tokens * language.vocabulary) + language.vocabulary * language.width
    step = peak_bytes(run.model, trained, item, load, run.operation.recompute) + pixels + (8 + item) * logits
    return round(_state_bytes(run, trained) + (1 + FRAGMENTS) * step) + RESERVE


def _state_bytes(run: schema.Run, trained: Trained) -> float:
    """Weights, gradients and moments of a rank."""
    state = STATE + (AVERAGE if run.optim.ema else 0)
    counts = parameters(run.model)
    whole = sum(counts[part] * (state if getattr(trained, part) else 4) for part in ("connector", "dino", "llm"))
    if not run.operation.splits_weights:
        return whole
    language = run.model.language
    embeddings = language.vocabulary * language.width
    largest = max(embeddings, (counts["llm"] - embeddings) / language.layers, counts["dino"] / run.model.encoder.layers)
    # weights and gradients in float32 of what is gathered: one part in use, the next one on its way
    return whole / run.operation.total_ranks + 2 * 8 * largest


def operation_that_fits(run: schema.Run, most: float) -> dict[str, int | bool]:
    """Settings of `operation` with which a run keeps within `most` bytes; empty if none are known.

    Smaller micro-batches where they are enough; else layers computed again as well; else weights split over more GPUs.
    """
    remedies = [{}, {"recompute": True}]
    remedies += [{"recompute": True, "shard_weights": True, "gpus": gpus} for gpus in (2, 4, 8)]
    for remedy in remedies:
        changed = {name: value for name, value in remedy.items() if getattr(run.operation, name) != value}
        if remedy and (not changed or remedy.get("gpus", 8) < run.operation.gpus):
            continue
        limits = _limits_that_fit(_with(run, **changed), most)
        if limits is not None:
            return changed | limits
    return {}


def _limits_that_fit(run: schema.Run, most: float) -> dict[str, int] | None:
    """The largest limits of a micro-batch that keep a run within `most` bytes, as far as they have to change.

    micro_frames alone is lowered where that is enough; below the longest sample's frames it changes nothing.
    returns     None if no limits do
    """
    if predicted_bytes(run) <= most:
        return {}
    frames = range(MAX_FRAMES, max(MAX_FRAMES, run.operation.micro_frames) + 1)
    tokens = run.operation.micro_tokens
    while True:
        fitting = bisect_right(
            frames, most, key=lambda count, t=tokens: predicted_bytes(_with(run, micro_frames=count, micro_tokens=t))
        )
        if fitting:
            found = {"micro_frames": frames[fitting - 1], "micro_tokens": tokens}
            return {name: limit for name, limit in found.items() if limit < getattr(run.operation, name)}
        if tokens <= run.data.max_text_tokens:
            return None
        tokens = max(run.data.max_text_tokens, tokens // 2)


def _with(run: schema.Run, **operation: int | bool) -> schema.Run:
    return run.model_copy(update={"operation": run.operation.model_copy(update=operation)})


def unsplit(run: schema.Run) -> schema.Run:
    """The run with all its weights in every process."""
    return _with(run, shard_weights=False)


def item_bytes(run: schema.Run) -> int:
    return 2 if run.train.precision == "bfloat16" else 4


def saved_bytes(model: schema.Model, trained: Trained, item: int, load: Load, recompute: bool = False) -> int:
    """Bytes that a forward pass in the model's training mode keeps for the backward pass, weights apart."""
    if not trained.any:
        return 0
    scores = _passes(model)[2]
    language = _language_again if recompute else _language
    one_score = language(model.language, trained, item, load.cells, load.width)
    one_score += load.text_tokens * (item * model.language.width + 4 * model.language.vocabulary)  # logits
    total = _seen_bytes(model, trained, item, load, recompute) + scores * one_score
    return total + _copies(model, trained, item, load, recompute and not trained.llm)


def _seen_bytes(model: schema.Model, trained: Trained, item: int, load: Load, recompute: bool) -> int:
    """Of these the ones that making the visual tokens keeps."""
    if not model.variant.sees:
        return 0
    looks, reads, _ = _passes(model)
    total = (_encode_again if recompute else _encode)(model, trained, item, load)
    total += _read(model, trained, item, load.frames, load.frames) if reads else _pool(model, item, load)
    if looks:
        one_look = _read(model, trained, item, load.positions, load.query_cells)
        language = _language_again if recompute else _language
        one_look += language(model.language, trained, item, load.visual_cells, load.visual_width)
        total += looks * one_look
    return total


def peak_bytes(model: schema.Model, trained: Trained, item: int, load: Load, recompute: bool = False) -> int:
    """Most bytes of a micro-batch beside weights, their gradients and the temporaries of the logits."""
    begins = saved_bytes(model, trained, item, load, recompute)
    if not trained.any:
        return begins
    looks, _, scores = _passes(model)
    counts, language = parameters(model), model.language
    embeddings = language.vocabulary * language.width
    seen = _seen_bytes(model, trained, item, load, recompute)
    twice = trained.llm * (counts["llm"] - embeddings) * (scores + looks > 1)
    twice += trained.dino * counts["dino"] * (model.variant.keeps == "keys")
    later = seen + item * twice + trained.dino * _key_gradients(model, item, load)
    later += _copies(model, trained, item, load, recompute)  # autocast drops its own as the forward pass ends
    if recompute:
        later += _one_layer(model, trained, item, load)
    return max(begins, later)


def _key_gradients(model: schema.Model, item: int, load: Load) -> int:
    """Of the keys and values of all layers, which wait for the layers' own turn; of a shallow query the features'."""
    tokens, width = load.frames * (model.encoder.patches + 1), model.encoder.width
    if not model.variant.sees:
        return 0
    deep = model.variant.keeps == "keys"
    return tokens * width * (model.encoder.layers * 2 * item if deep else 4)


def _passes(model: schema.Model) -> tuple[int, int, int]:
    """How often the model looks behind a pass of the language model, reads frames with a query, and scores texts."""
    mode = model.training_mode
    looks = model.fine_passes if mode == "coarse_fine" else 0
    reads = 0 if mode == "direct" else 1 + looks
    return looks, reads, 2 if mode == "coarse_fine" and model.lambda_coarse > 0 else 1


def _copies(model: schema.Model, trained: Trained, item: int, load: Load, without_layers: bool) -> int:
    """Autocast's bfloat16 weights: made once if they are trained, at every use if they are frozen.

    without_layers   those of the language model's layers are not kept
    """
    if item != 2:
        return 0
    looks, reads, scores = _passes(model)
    counts, language = parameters(model), model.language
    chunks = -(-load.text_tokens * language.vocabulary // CHUNK)
    embeddings = language.vocabulary * language.width
    layers = (counts["llm"] - embeddings) * (not without_layers)
    llm = layers + embeddings if trained.llm else (scores + looks) * layers + chunks * embeddings
    dino = counts["dino"] * (1 if trained.dino else reads * (model.variant.keeps == "keys"))
    return 2 * (llm + dino + counts["connector"])


def _encoder_token(size: schema.EncoderSize, item: int, trained: int) -> int:
    """A query token in one layer. Trained weights need their inputs, frozen ones only pass gradients through."""
    norms = 2 * (4 * size.width + 8)  # inputs in float32, mean and deviation
    attention = 2 * item * size.width + 4 * size.heads  # query, what it saw, log of the softmax's sum
    hidden = item * size.mlp_ratio * size.width  # input of GELU
    # inputs of the query's and output projection and of the MLP's two, and of the two layer scales; what the output
    # projection reads is what the query saw
    inputs = 4 * item * size.width + hidden
    return norms + attention + hidden + trained * inputs


def _encode(model: schema.Model, trained: Trained, item: int, load: Load) -> int:
    size = model.encoder
    tokens, width = load.frames * (size.patches + 1), size.width
    key_value = 2 * item * width
    deep = model.variant.keeps == "keys"
    if not trained.dino:  # no graph; what is read is kept
        return tokens * (size.layers * key_value if deep else 4 * width)
    layers = size.layers * tokens * (_encoder_token(size, item, 1) + key_value)
    if deep:  # the last layer ends with its keys and values
        layers -= tokens * (_encoder_token(size, item, 1) - 4 * width - item * width)
    else:
        layers += tokens * 4 * width  # input of the final norm
    return layers + load.frames * size.patches * 3 * size.patch**2 * item  # and the patches' pixels


def _encode_again(model: schema.Model, trained: Trained, item: int, load: Load) -> int:
    """As `_encode`, of layers that are computed again: their inputs, and the keys and values that queries read."""
    size = model.encoder
    tokens, width = load.frames * (size.patches + 1), size.width
    deep = model.variant.keeps == "keys"
    if not trained.dino:
        return _encode(model, trained, item, load)
    layers = tokens * (size.layers * (4 + 2 * item * deep) * width + (not deep) * 4 * width)
    return layers + load.frames * size.patches * 3 * size.patch**2 * item


def _one_layer(model: schema.Model, trained: Trained, item: int, load: Load) -> int:
    """The largest layer while it is computed again."""
    encoder = model.encoder
    cells, width = max((load.cells, load.width), (load.visual_cells, load.visual_width))
    largest = cells * _language_cell(model.language, trained, item, width)
    if model.variant.sees and trained.dino:
        tokens = load.frames * (encoder.patches + 1)
        largest = max(largest, tokens * (_encoder_token(encoder, item, 1) + 2 * item * encoder.width))
    return largest


def _pool(model: schema.Model, item: int, load: Load) -> int:
    return load.frames * model.variant.tokens * item * model.variant.token_width


def _read(model: schema.Model, trained: Trained, item: int, queries: int, cells: int) -> int:
    """One reading with `queries` queries that take `cells` rows of the attention."""
    size, width = model.encoder, model.encoder.width
    # the query and its projection, both sides of the connector's layers, the hidden state that predicts
    ends = queries * (4 * width + item * (model.query_dim + 3 * width + model.language.width))
    if model.variant.keeps == "keys":
        spread = (cells - queries) * (2 * item * width + 4 * size.heads)
        spread += queries * item * width if cells > queries else 0  # gathered again
        return ends + size.layers * (queries * _encoder_token(size, item, trained.dino) + spread)
    features = 4 if item == 2 else 0  # cast once as keys and once as values
    return ends + cells * 2 * item * width + queries * (size.patches + 1) * features * width


def _language(size: schema.LanguageSize, trained: Trained, item: int, cells: int, width: int) -> int:
    """All layers over `cells` cells in rows of `width` with a mask, 0: without."""
    ends = 4 * size.width * (1 + trained.llm) + 4 + 4 * size.width  # of the final norm; the embedded tokens
    return cells * (size.layers * _language_cell(size, trained, item, width) + ends)


def _language_again(size: schema.LanguageSize, trained: Trained, item: int, cells: int, width: int) -> int:
    """As `_language`, of layers that are computed again: their inputs, with cos, sin and the mask once."""
    ends = 4 * size.width * (1 + trained.llm) + 4 + 4 * size.width
    head = size.width // size.heads
    return cells * (size.layers * 4 * size.width + ends + 2 * 4 * head + width)


def _language_cell(size: schema.LanguageSize, trained: Trained, item: int, width: int) -> int:
    """One layer's bytes for one cell."""
    head = size.width // size.heads
    flash = not width and item == 2  # else the keys and values are copied for every head
    keys = head * size.kv_heads if flash else size.width
    norm = 4 * size.width * (1 + trained.llm) + 4  # input and, for its weight, the normed one; float32
    attention = item * (2 * size.width + 2 * keys + 2 * head + width) + 4 * size.heads  # with cos, sin and the mask
    mlp = 3 * item * size.ffn
    inputs = item * (2 * size.width + size.ffn)  # of the projections; the output projection reads what is kept
    return 2 * norm + attention + mlp + trained.llm * inputs
