"""The facts about each architecture, declared once: configuration, costs, model, training and figures read them here.

An architecture decides how frames become visual tokens. Its tensors stand in `fvlm.model.connector`. No torch here.
docs/new-architecture.md adds one.
"""


class Architecture:
    """The facts about one model; `model` is its `schema.Model`. The defaults are those of a model without queries.

    title           name in figures
    sees            it has an encoder and a connector
    queries         queries read the frames
    pooled          `model.tokens_per_frame` sets its visual tokens
    keeps           what the encoder keeps of a frame: "keys" (keys and values of every layer), "last" (the last layer's
                    keys and values of the final features), "features" (those themselves) or "nothing"
    tokens          visual tokens per frame
    modes           ways to evaluate it
    training_mode   the one that it trains in
    inference_mode  the one that captions are written in
    """

    title: str
    sees, queries, pooled = True, False, False
    keeps = "features"
    tokens: int
    modes: tuple[str, ...] = ("direct",)
    training_mode = inference_mode = "direct"

    def __init__(self, model):
        self.model = model

    @property
    def connector_parameters(self) -> int:
        raise NotImplementedError

    @property
    def problem(self) -> str | None:
        """An error message if the model's settings do not suit the architecture."""
        return None


class Foveated(Architecture):
    """One token per frame, read by a query: every frame with the same one, then with one predicted for it."""

    title = "foveated"
    queries = True
    tokens = 1
    modes = ("coarse_only", "coarse_fine", "autoregressive")

    @property
    def keeps(self) -> str:
        """A deep query walks through all layers of the encoder; a shallow one reads the final features once."""
        return "keys" if self.model.deep_query else "last"

    @property
    def training_mode(self) -> str:
        return "coarse_fine" if self.model.fine_pass else "coarse_only"

    @property
    def inference_mode(self) -> str:
        return "autoregressive" if self.model.fine_pass else "coarse_only"

    @property
    def connector_parameters(self) -> int:
        width, language, query = self.model.encoder.width, self.model.language.width, self.model.query_dim
        read = query * width + (width * width + width) + (width * language + language)
        predict = language * query + query
        return read + predict + 2 * query  # and the static and the initial query


class Pooled(Architecture):
    """A frame's patches, mixed by a fixed matrix into a few tokens, then one linear layer.

    rows_per_token   rows of the matrix whose results stand side by side in one token
    """

    pooled = True
    rows_per_token = 1

    @property
    def tokens(self) -> int:
        return self.model.tokens_per_frame

    @property
    def token_width(self) -> int:
        """Features of a token before the linear layer."""
        return self.rows_per_token * self.model.encoder.width

    @property
    def connector_parameters(self) -> int:
        return (self.token_width + 1) * self.model.language.width


class MultiToken(Pooled):
    """Averages over k x k windows of the patches, k^2 = tokens_per_frame."""

    title = "pooled tokens"

    @property
    def problem(self) -> str | None:
        tokens, patches = self.tokens, self.model.encoder.patches
        if round(tokens**0.5) ** 2 == tokens <= patches:
            return None
        return (
            f"model.tokens_per_frame is {tokens}; pooling {patches} patches needs a square of at most that many: "
            "1, 4, 9 or 16"
        )


class PixelShuffle(Pooled):
    """7 x 7 tokens, each a block of r x r patches side by side."""

    title = "pixel shuffle"
    side = 7  # tokens per side of a frame

    @property
    def rows_per_token(self) -> int:
        return max(1, self.model.encoder.side // self.side) ** 2

    @property
    def problem(self) -> str | None:
        if self.tokens == self.side**2:
            return None
        return f"model.tokens_per_frame is {self.tokens}; pixel_shuffle always gives {self.side**2}"


class Blind(Architecture):
    """The language model alone; it ignores frames."""

    title = "no frames"
    sees = False
    keeps = "nothing"
    tokens = connector_parameters = 0


ARCHITECTURES: dict[str, type[Architecture]] = {
    "foveated": Foveated,
    "multi_token": MultiToken,
    "pixel_shuffle": PixelShuffle,
    "blind": Blind,
}
