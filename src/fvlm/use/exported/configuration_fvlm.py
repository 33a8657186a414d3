"""Configuration of fVLM: a DINOv2 encoder, a connector, and a Llama language model."""

from transformers import Dinov2Config, LlamaConfig
from transformers.configuration_utils import PretrainedConfig

ARCHITECTURES = ("foveated", "multi_token", "pixel_shuffle", "blind")


class FvlmConfig(PretrainedConfig):
    """
    architecture      one of ARCHITECTURES
    tokens_per_frame  visual tokens of a frame: 1 if foveated, 0 if blind
    deep_query        the query passes through all layers of the encoder; False: it reads the final features once
    fine_passes       passes in which queries are predicted; 0: every frame is read with the static query
    lambda_coarse     weight of the coarse pass's own loss
    query_dim         width of a query
    query_init_std    standard deviation of the static and the initial query at the start of a training
    visual_scale      factor of every visual token
    image_size        pixels, side of a frame; the stored position embeddings may be those of another size
    frame_token_id    stands in `input_ids` where a visual token goes
    """

    model_type = "fvlm"
    sub_configs = {"vision_config": Dinov2Config, "text_config": LlamaConfig}

    def __init__(
        self,
        vision_config=None,
        text_config=None,
        architecture="foveated",
        tokens_per_frame=1,
        deep_query=True,
        fine_passes=1,
        lambda_coarse=0.0,
        query_dim=384,
        query_init_std=1.0,
        visual_scale=0.14,
        image_size=224,
        frame_token_id=0,
        **kwargs,
    ):
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
        self.vision_config = _built(Dinov2Config, vision_config)
        self.text_config = _built(LlamaConfig, text_config)
        self.architecture = architecture
        self.tokens_per_frame = tokens_per_frame
        self.deep_query = deep_query
        self.fine_passes = fine_passes
        self.lambda_coarse = lambda_coarse
        self.query_dim = query_dim
        self.query_init_std = query_init_std
        self.visual_scale = visual_scale
        self.image_size = image_size
        self.frame_token_id = frame_token_id
        kwargs.setdefault("tie_word_embeddings", True)  # read here, not in text_config
        super().__init__(**kwargs)


def _built(kind, config):
    return kind(**config) if isinstance(config, dict) else config or kind()


__all__ = ["FvlmConfig"]
