"""Every setting of a run and of a study, typed, frozen and strict: an unknown key is refused.

No torch here: the whole configuration is resolved while Snakemake parses the Snakefile.
"""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fvlm.config.comparisons import Comparisons

Kind = Literal["video", "image", "text", "preference"]
Reader = Literal[
    "folder", "files", "shards", "demo", "video2dataset",
    "webvid", "openvid", "vript", "sharegpt4video", "llava_video", "vista", "cauldron", "smoltalk", "rlaif_v",
    "video_mme", "mvbench", "mlvu", "pope", "scienceqa",
]  # fmt: skip


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderSize(Strict):
    """A DINOv2 encoder. `weights` is a hub name or a local folder; null builds it from these numbers."""

    name: str
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: int = 4
    patch: int = 14
    image: int = 224  # pixels; side of a frame
    position_side: int | None = None  # patches per side of the stored position embeddings; null: image / patch
    weights: str | None = None

    @property
    def patches(self) -> int:
        """Patch tokens per frame, without the CLS token."""
        return (self.image // self.patch) ** 2


class LanguageSize(Strict):
    """A Llama language model with tied embeddings. `weights` as in `EncoderSize`."""

    name: str
    width: int = Field(gt=0)
    ffn: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-5
    max_positions: int = 8192
    weights: str | None = None


class Model(Strict):
    architecture: Literal["foveated", "multi_token", "pixel_shuffle", "blind"]
    encoder: EncoderSize
    language: LanguageSize
    deep_query: bool
    fine_pass: bool
    fine_passes: int = Field(ge=1, le=8)  # where there is a fine pass, how often
    query_dim: int = Field(gt=0)
    query_init_std: float = Field(gt=0)
    visual_scale: float = Field(gt=0)
    lambda_coarse: float = Field(ge=0)
    tokens_per_frame: int = Field(gt=0)  # of the pooled baselines; the foveated model always has one, the blind none

    @property
    def visual_tokens(self) -> int:
        """Visual tokens per frame that the language model sees."""
        return {"foveated": 1, "blind": 0}.get(self.architecture, self.tokens_per_frame)

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways this model can be evaluated."""
        if self.architecture != "foveated":
            return ("direct",)
        return ("coarse_only", "coarse_fine", "autoregressive")

    @property
    def training_mode(self) -> str:
        if self.architecture != "foveated":
            return "direct"
        return "coarse_fine" if self.fine_pass else "coarse_only"


class Rates(Strict):
    """Learning rates of the three parameter groups."""

    connector: float = Field(ge=0)
    dino: float = Field(ge=0)
    llm: float = Field(ge=0)


class Optim(Strict):
    batch_size: int = Field(gt=0)  # samples per step
    lr: Rates
    final_lr: Rates | None  # where schedule `converging` ends
    schedule: Literal["cosine", "constant", "converging"]
    warmup: float = Field(ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)  # largest gradient norm
    betas: tuple[float, float]
    ema: float | None = Field(gt=0, lt=1)  # decay of a moving average of the weights; null: none is kept
    dpo_beta: float = Field(gt=0)  # of the preference loss
    freeze: tuple[Literal["connector", "dino", "llm"], ...]


class Data(Strict):
    sources: tuple[str, ...] = Field(min_length=1)
    share: dict[Kind, float]  # share of the samples by kind; sums to 1
    weights: dict[str, float]  # weight of a source among those of its kind; empty: by their numbers of samples
    static_frames: int = Field(ge=1, le=64)  # an image is repeated to this many frames
    max_text_tokens: int = Field(gt=0)
    question_first: float = Field(ge=0, le=1)  # share of the samples whose question stands before the frames
    loss: Literal["all", "answers", "preference"]  # which text tokens are scored; preference: DPO on pairs of answers


class Train(Strict):
    samples: int | None = Field(gt=0)  # how long: samples seen ...
    flops: float | None = Field(gt=0)  # ... or training FLOPs spent, whichever is given
    seed: int
    epoch: int = Field(ge=0)  # a run that sees its parent's sources again takes another one: another order
    precision: Literal["float32", "bfloat16"]
    evaluations: int = Field(gt=0)  # validations over the run, evenly spaced, the last at the end
    validation_samples: int = Field(gt=0)  # per source, at each validation


class Operation(Strict):
    """How a run is executed. Nothing here changes what is learnt, so none of it is in the digest."""

    micro_frames: int = Field(gt=0)  # visual positions per forward pass; a step may take several
    micro_tokens: int = Field(gt=0)  # text tokens per forward pass
    checkpoint_steps: int = Field(gt=0)
    checkpoint_minutes: float | None = Field(gt=0)  # whichever comes first
    attention_videos: int = Field(ge=0)  # held-out videos whose attention maps are saved at each validation
    loader_workers: int = Field(ge=0)
    threads: int = Field(gt=0)  # CPU threads of torch
    gpus: int = Field(ge=0)  # asked of the scheduler, per node
    nodes: int = Field(default=1, ge=1)
    ranks: int | None = Field(default=None, ge=1)  # processes per node; null: one per GPU
    shard_weights: bool = False  # FSDP2: weights, gradients and moments split over the ranks
    recompute: bool = False  # activation checkpointing: layers are computed again in the backward pass
    log_seconds: float = Field(gt=0)
    wandb: Literal["online", "offline"] | None
    tensorboard: bool

    @property
    def ranks_per_node(self) -> int:
        """Processes that train the run on each node."""
        return self.ranks or max(1, self.gpus)

    @property
    def total_ranks(self) -> int:
        """Processes that train the run, on all its nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def splits_weights(self) -> bool:
        """Whether no process has all weights."""
        return self.shard_weights and self.total_ranks > 1


class Run(Strict):
    """One training, fully resolved."""

    name: str
    family: Literal["stage", "ablation", "grid"]
    parent: str | None  # the run whose best weights this one starts from
    question: str = ""
    model: Model
    data: Data
    optim: Optim
    train: Train
    operation: Operation
    labels: dict[str, str] = {}  # of the grid: size, budget, letter of the architecture
    sources_digest: str = ""  # of what the sources' entries say about splits and prompts

    @property
    def digest(self) -> str:
        """Changes exactly when something changes that training depends on."""
        content = self.model_dump(mode="json", exclude={"operation", "question", "labels"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Source(Strict):
    """One dataset of config/sources.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    kind: Kind
    reader: Reader
    path: str | None = None
    table: str | None = None  # null: as the reader's dataset calls it; a wildcard or {00000..00099} names several
    prompt: str = "Describe the video."
    samples: int | None = Field(default=None, gt=0)
    held_out: float | str | None = None
    frames: float = Field(default=8, ge=0)  # expected mean, for the plan
    text_tokens: float = Field(default=100, gt=0)  # expected mean, for the plan
    max_reject: float = Field(default=0.5, ge=0, le=1)  # a larger share of rejected inputs fails the source
    deadline_s: float = Field(default=60, gt=0)  # for decoding one file; what takes longer is rejected
    crop: bool = True  # the centre of a frame; false: the whole frame squashed to a square
    demo_family: str | None = None
    demo_seed: int = 0
    broken: int = Field(default=0, ge=0)  # broken files the demo puts in on purpose
    licence: str = ""


class TokenizerChoice(Strict):
    """Either a pretrained tokenizer by name or folder, or the vocabulary of one trained on the corpus."""

    weights: str | None = None
    vocabulary: int | None = Field(default=None, ge=260)

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizerChoice":
        if (self.weights is None) == (self.vocabulary is None):
            raise ValueError("give either `weights` or `vocabulary`")
        return self


class Shards(Strict):
    samples: int = Field(gt=0)  # per shard


class Evaluation(Strict):
    samples: int = Field(gt=0)  # held-out samples per source
    attention_videos: int = Field(gt=0)
    families: tuple[Literal["stage", "ablation", "grid"], ...] = ("stage", "ablation", "grid")


class Gpu(Strict):
    """What trainings run on; a run that does not fit is refused before anything starts."""

    name: str
    memory_gb: float = Field(gt=0)  # 2^30 bytes, as in its name: 24, 32, 80
    tflops: float | None = Field(default=None, gt=0)  # dense bfloat16 peak, for the utilisation; null: known by name
    utilisation: float | None = Field(default=None, gt=0, le=1)  # share of that peak which the plan assumes; null: none
    price_per_hour: float | None = Field(default=None, gt=0)  # of one GPU, for the plan's costs; null: no costs
    currency: str = "USD"


class Study(Strict):
    """Everything a study builds: what `load_study` returns."""

    study: str
    results: str
    tokenizer: TokenizerChoice
    shards: Shards
    evaluation: Evaluation
    sources: dict[str, Source]
    runs: dict[str, Run]
    comparisons: Comparisons
    gpu: Gpu | None = None  # null: memory is not checked
    only: dict[Literal["stages", "ablations"], list[str]] = {}
    seeds: dict[str, list[int]] = {}  # of a run, a budget or all `ablations` or `grid` runs; the first keeps its name
    prepare: list[str] = []  # sources to shard and index though no run trains on them yet
    results_from: tuple[str, ...] = ()  # finished results from elsewhere: their tables and figures, and no training

    @property
    def used_sources(self) -> list[str]:
        """Sources of all runs, those only prepared, and their held-out partners, in the order of sources.yaml."""
        used = {name for run in self.runs.values() for name in run.data.sources}
        used |= set(self.prepare)
        partners = {self.sources[name].held_out for name in used}
        return [name for name in self.sources if name in used | partners]

    @property
    def tokenizer_sources(self) -> list[str]:
        """Sources whose texts a tokenizer is trained on: those of the stages, so that no ablation changes it."""
        runs = [run for run in self.runs.values() if run.family == "stage"] or list(self.runs.values())
        used = {name for run in runs for name in run.data.sources}
        return [name for name in self.sources if name in used]
