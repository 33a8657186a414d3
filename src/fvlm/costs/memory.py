"""Peak GPU memory of a training, predicted from its configuration before anything runs. No torch here.

Memory holds the weights with their gradients and AdamW moments, all float32; the tensors that the forward pass saves
for the backward pass, counted layer by layer as `fvlm.model` saves them; and the temporaries of the logits. The peak is
either where the backward pass of a micro-batch begins, or, if weights outweigh activations, where it has passed the
texts: a weight that is used twice then has a second gradient until the backward pass reaches its other use, and so do
keys and values. Each estimate is an upper one: the fullest micro-batch, the worst packing of first fit, every text
token scored. Attention is a fused kernel, which keeps no scores.

With `operation.recompute` the layers of encoder and language model keep only their inputs, and one layer at a time is
whole while it is computed again. With `operation.shard_weights` each rank holds its share of weights, gradients and
moments, and the whole weights of two layers or of the embeddings while they are in use.
"""

from bisect import bisect_right
from dataclasses import dataclass

from fvlm.config import schema
from fvlm.costs.flops import Trained, parameters

GB = 2**30  # bytes, as drivers and metrics.csv count
STATE = 16  # bytes of a trained parameter: weight, gradient and AdamW's two moments in float32
AVERAGE = 4  # bytes of its moving average, if there is one
RESERVE = 2 * GB  # the driver, CUDA's context and the workspaces of its libraries
PROCESS = GB // 2  # Python, torch and other libraries, and frames that wait, of a process that trains on CPUs
FRAGMENTS = 0.05  # share of a step's memory that the allocator cannot reuse
CHUNK = 2**26  # logits computed at a time, as in fvlm.model.losses


@dataclass(frozen=True)
class Load:
    """The sizes of one forward pass.

    frames, positions, text_tokens   distinct frames, visual positions and text tokens of all samples
    query_cells                      rows of the fine pass's attention: frames x most positions at one frame
    visual_cells, cells              rows x width of the packed visual tokens with the questions before them, and of
                                     visual and text tokens
    visual_width, width              cells of a row of each; 0 if no two samples share a row (then there is no mask)
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
    """Return the fullest micro-batch that `operation` allows. A sample beyond the limits is a micro-batch of its own.

    A pair of answers is one sample of two halves, each with all frames and a text of its own.
    """
    halves = 2 if run.data.loss == "preference" else 1
    per_rank = -(-run.optim.batch_size // run.operation.total_ranks)
    samples, visual, text = halves * per_rank, run.model.visual_tokens, run.data.max_text_tokens
    longest = max(run.data.max_frames, run.data.static_frames)
    positions = max(halves * longest, min(run.operation.micro_frames, samples * longest))
    text_tokens = max(halves * text, min(run.operation.micro_tokens, samples * text))
    question_first = bool(run.data.question_first)  # then a whole text may stand before the frames

    def cells(tokens: int, row: int) -> int:
        # no two rows of first fit would fit into one, so more than half of all cells are filled
        return max(halves * row, min(2 * tokens, samples * row))

    width, visual_width = longest * visual + text, longest * visual + question_first * text
    return Load(
        frames=positions,
        positions=positions,
        text_tokens=text_tokens,
        query_cells=positions * run.data.static_frames,
        visual_cells=cells(positions * visual + question_first * text_tokens, visual_width),
        cells=cells(positions * visual + text_tokens, width),
        visual_width=visual_width,
        width=width,
    )


def predicted_bytes(run: schema.Run) -> int:
    """Return the peak memory of a run's training on each of its GPUs, with the reserve."""
    return RESERVE + _tensor_bytes(run)


def cpu_bytes(run: schema.Run) -> int:
    """Return the peak memory of each process of a run that trains on CPUs.

    There bfloat16 attention is plain products, which keep the encoder's scores; those of the few text tokens are left
    out.
    """
    scores = 0
    if run.train.precision == "bfloat16" and run.model.variant.sees and "dino" not in run.optim.freeze:
        size = run.model.encoder
        layers = 1 if run.operation.recompute else size.layers
        scores = 2 * largest_load(run).frames * layers * size.heads * (size.patches + 1) ** 2
    return PROCESS + _tensor_bytes(run) + scores


def _tensor_bytes(run: schema.Run) -> int:
    """Return the peak bytes of weights, gradients, moments and a step's tensors."""
    load, item = largest_load(run), 2 if run.train.precision == "bfloat16" else 4
    trained = Trained.all_but(run.optim.freeze)
    pixels = load.frames * 3 * run.model.encoder.image**2
    language = run.model.language
    # one chunk's logits and the embeddings: a gradient in `item` bytes and two in float32
    logits = min(CHUNK, load.text_tokens * language.vocabulary) + language.vocabulary * language.width
    step = Pass(run.model, trained, item, load, run.operation.recompute).peak_bytes() + pixels + (8 + item) * logits
    return round(_state_bytes(run, trained) + (1 + FRAGMENTS) * step)


def _state_bytes(run: schema.Run, trained: Trained) -> float:
    """Return the bytes of a rank's weights, gradients and moments."""
    state = STATE + (AVERAGE if run.optim.ema else 0)
    counts = parameters(run.model)
    total = sum(counts[part] * (state if getattr(trained, part) else 4) for part in ("connector", "dino", "llm"))
    if not run.operation.splits_weights:
        return total
    language = run.model.language
    embeddings = language.vocabulary * language.width
    largest = max(embeddings, (counts["llm"] - embeddings) / language.layers, counts["dino"] / run.model.encoder.layers)
    # weights and gradients in float32 of the gathered parts: one in use, the next one on its way
    return total / run.operation.total_ranks + 2 * 8 * largest


def operation_that_fits(run: schema.Run, most: float) -> dict[str, int | bool]:
    """Return settings of `operation` with which a run fits `most` bytes; empty if none are known.

    The first remedy that suffices: smaller micro-batches, layers computed again, weights split over more GPUs.
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
    """Return the largest limits of a micro-batch with which a run fits `most` bytes, without unchanged ones.

    Only micro_frames is lowered if that suffices. It has no effect below the frames of the longest sample.
    returns     None if no limits fit
    """
    if predicted_bytes(run) <= most:
        return {}
    longest = max(run.data.max_frames, run.data.static_frames)
    frames = range(longest, max(longest, run.operation.micro_frames) + 1)
    tokens = run.operation.micro_tokens
    while True:
        fitting = bisect_right(
            frames, most, key=lambda count, t=tokens: predicted_bytes(_with(run, micro_frames=count, micro_tokens=t))
        )
        if fitting:
            limits = {"micro_frames": frames[fitting - 1], "micro_tokens": tokens}
            return {name: limit for name, limit in limits.items() if limit < getattr(run.operation, name)}
        if tokens <= run.data.max_text_tokens:
            return None
        tokens = max(run.data.max_text_tokens, tokens // 2)


def _with(run: schema.Run, **operation: int | bool) -> schema.Run:
    return run.model_copy(update={"operation": run.operation.model_copy(update=operation)})


def unsplit(run: schema.Run) -> schema.Run:
    """Return the run with all its weights in every process."""
    return _with(run, shard_weights=False)


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass of a micro-batch in the model's training mode.

    item        bytes of a number in matrix products: 2 under autocast to bfloat16, else 4
    recompute   layers are computed again in the backward pass
    """

    model: schema.Model
    trained: Trained
    item: int
    load: Load
    recompute: bool = False

    def peak_bytes(self) -> int:
        """Return the most bytes beside weights, their gradients and the temporaries of the logits."""
        begins = self.saved_bytes()
        if not self.trained.any:
            return begins
        counts = parameters(self.model)
        second_use = self.trained.llm * (counts["llm"] - self._embeddings) * (self._scores + self._looks > 1)
        second_use += self.trained.dino * counts["dino"] * self._deep
        later = self._visual() + self.item * second_use + self.trained.dino * self._key_gradients()
        later += self._copies(self.recompute)  # autocast drops its copies when the forward pass ends
        if self.recompute:
            later += self._one_layer()
        return max(begins, later)

    def saved_bytes(self) -> int:
        """Return the bytes that the forward pass keeps for the backward pass, weights apart."""
        if not self.trained.any:
            return 0
        size, load = self.model.language, self.load
        logits = load.text_tokens * (self.item * size.width + 4 * size.vocabulary)
        total = self._visual() + self._scores * (self._language(load.cells, load.width) + logits)
        return total + self._copies(self.recompute and not self.trained.llm)

    @property
    def _deep(self) -> bool:
        return self.model.variant.keeps == "keys"

    @property
    def _shallow(self) -> bool:
        return self.model.variant.keeps == "last"

    @property
    def _looks(self) -> int:
        """Passes of the language model that predict queries, each with a reading by them."""
        return self.model.fine_passes if self.model.training_mode == "coarse_fine" else 0

    @property
    def _scores(self) -> int:
        """Passes over the texts."""
        return 2 if self.model.training_mode == "coarse_fine" and self.model.lambda_coarse > 0 else 1

    @property
    def _embeddings(self) -> int:
        return self.model.language.vocabulary * self.model.language.width

    @property
    def _patch_tokens(self) -> int:
        return self.load.frames * (self.model.encoder.patches + 1)

    def _visual(self) -> int:
        """Bytes that making the visual tokens keeps."""
        variant, load = self.model.variant, self.load
        if not variant.sees:
            return 0
        if not variant.queries:
            return self._encode() + load.frames * variant.tokens * self.item * variant.token_width
        look = self._read(load.positions, load.query_cells) + self._language(load.visual_cells, load.visual_width)
        return self._encode() + self._read(load.frames, load.frames) + self._looks * look

    def _key_gradients(self) -> int:
        """Gradients of the keys and values of all layers, which the layers read later; or of the final features."""
        if not self.model.variant.sees:
            return 0
        numbers = self.model.encoder.layers * 2 * self.item if self._deep else 4 + 2 * self.item * self._shallow
        return self._patch_tokens * self.model.encoder.width * numbers

    def _copies(self, without_layers: bool) -> int:
        """Autocast's bfloat16 weights: made once if they are trained, at every use if they are frozen.

        without_layers   the language model's layers keep none
        """
        if self.item != 2:
            return 0
        counts = parameters(self.model)
        chunks = -(-self.load.text_tokens * self.model.language.vocabulary // CHUNK)
        layers = (counts["llm"] - self._embeddings) * (not without_layers)
        if self.trained.llm:
            llm = layers + self._embeddings
        else:
            llm = (self._scores + self._looks) * layers + chunks * self._embeddings
        dino = counts["dino"] * (1 if self.trained.dino else (1 + self._looks) * self._deep)
        return 2 * (llm + dino + counts["connector"])

    def _encode(self) -> int:
        """Bytes that phase 1 keeps, with the keys and values or features that are read."""
        size, item = self.model.encoder, self.item
        if not self.trained.dino:  # no graph
            layers = size.layers if self._deep else int(self._shallow)
            return self._patch_tokens * size.width * (layers * 2 * item or 4)
        ends = 0 if self._deep else 4 * size.width  # input of the final norm
        if self._shallow:  # its result, normed once more for the keys and values; those
            ends += (4 + 3 * item) * size.width + 8
        if self.recompute:
            token = size.layers * (4 + 2 * item * self._deep) * size.width
        else:
            layer = self._encoder_token(1)
            token = size.layers * (layer + 2 * item * size.width)
            if self._deep:  # the last layer ends with its keys and values
                token -= layer - 4 * size.width - item * size.width
        pixels = self.load.frames * size.patches * 3 * size.patch**2 * item
        return self._patch_tokens * (token + ends) + pixels

    def _encoder_token(self, trained: int) -> int:
        """A query token in one layer. Trained weights need their inputs, frozen ones only pass gradients through."""
        size, item = self.model.encoder, self.item
        norms = 2 * (4 * size.width + 8)  # inputs in float32, mean and deviation
        attention = 2 * item * size.width + 4 * size.heads  # query, result, log of the softmax's sum
        hidden = item * size.mlp_ratio * size.width  # input of GELU
        # inputs of the query's and output projection, of the MLP's two and of the two layer scales; the input of the
        # output projection is the result of the attention
        inputs = 4 * item * size.width + hidden
        return norms + attention + hidden + trained * inputs

    def _read(self, queries: int, cells: int) -> int:
        """One reading with `queries` queries that take `cells` rows of the attention."""
        size, width, item = self.model.encoder, self.model.encoder.width, self.item
        # the query and its projection, both sides of the connector's layers, the hidden state that predicts
        ends = queries * (4 * width + item * (self.model.query_dim + 3 * width + self.model.language.width))
        if self._deep:
            spread = (cells - queries) * (2 * item * width + 4 * size.heads)
            spread += queries * item * width if cells > queries else 0  # gathered again
            return ends + size.layers * (queries * self._encoder_token(self.trained.dino) + spread)
        gathered = queries * item * width if cells > queries else 0
        norm = queries * (4 * width + 8)
        return ends + cells * (2 * item * width + 4 * size.heads) + gathered + norm

    def _language(self, cells: int, width: int) -> int:
        """All layers over `cells` cells in rows of `width` with a mask, 0: without."""
        size = self.model.language
        ends = 4 * size.width * (1 + self.trained.llm) + 4 + 4 * size.width  # of the final norm; the embedded tokens
        if self.recompute:  # the layers' inputs, with cos, sin and the mask once
            return cells * (size.layers * 4 * size.width + 2 * 4 * (size.width // size.heads) + width + ends)
        return cells * (size.layers * self._language_cell(width) + ends)

    def _language_cell(self, width: int) -> int:
        """One cell in one layer."""
        size, item, trained = self.model.language, self.item, self.trained.llm
        head = size.width // size.heads
        flash = not width and item == 2  # else the keys and values are copied for every head
        keys = head * size.kv_heads if flash else size.width
        norm = 4 * size.width * (1 + trained) + 4  # input and, for its weight, the normed one; float32
        attention = item * (2 * size.width + 2 * keys + 2 * head + width) + 4 * size.heads  # with cos, sin and the mask
        mlp = 3 * item * size.ffn
        inputs = item * (2 * size.width + size.ffn)  # of the projections; the output projection reads a kept tensor
        return 2 * norm + attention + mlp + trained * inputs

    def _one_layer(self) -> int:
        """The largest layer while it is computed again."""
        load, size = self.load, self.model.encoder
        cells, width = max((load.cells, load.width), (load.visual_cells, load.visual_width))
        largest = cells * self._language_cell(width)
        if self.model.variant.sees and self.trained.dino:
            largest = max(largest, self._patch_tokens * (self._encoder_token(1) + 2 * self.item * size.width))
        return largest
