"""Types of all settings of a run and of a study. They are constant, and an unknown key is an error.

No torch here: Snakemake resolves the configuration while it parses the Snakefile.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo, model_serializer, model_validator

from fvlm.config.architectures import ARCHITECTURES, Architecture
from fvlm.config.comparisons import Comparisons

ADDED = {"added": True}  # marks a field that is left out of digests while it is neutral
NOT_IN_DIGEST = {"operation", "question", "labels"}  # fields of a run that training does not depend on
DIGEST = "digest"  # serialization context of `for_digest`
Kind = Literal["video", "image", "text", "preference"]
Reader = Literal[
    "folder", "files", "shards", "demo", "video2dataset",
    "webvid", "openvid", "vript", "sharegpt4video", "llava_video", "vista", "cauldron", "smoltalk", "rlaif_v",
    "video_mme", "mvbench", "mlvu", "pope", "scienceqa",
]  # fmt: skip
Benchmark = Literal[
    "video_mme", "video_mme_subtitles", "mvbench", "mlvu", "pope", "scienceqa", "captions", "demo",
]  # fmt: skip


def added(neutral: Any, **limits: Any) -> Any:
    """Return a field that is added after runs were trained without it.

    neutral     the default: the value that gives what runs did before the field existed. It must never change
    limits      of pydantic's Field: `gt=0`, for example
    """
    return Field(default=neutral, validate_default=True, json_schema_extra=ADDED, **limits)


class Strict(BaseModel):
    """Typed settings. They cannot be changed, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def for_digest(self, **options: Any) -> dict:
        """Return all fields but the added ones that are neutral, at every level.

        options     of pydantic's `model_dump`: `mode="json"`, `exclude={"operation"}`
        """
        return self.model_dump(context=DIGEST, **options)

    @model_serializer(mode="wrap")
    def _serialized(self, serialize: Any, info: SerializationInfo) -> dict:
        content = serialize(self)
        if info.context != DIGEST:
            return content
        return {name: value for name, value in content.items() if not self._is_neutral(name)}

    def _is_neutral(self, name: str) -> bool:
        field = type(self).model_fields[name]
        return field.json_schema_extra == ADDED and getattr(self, name) == field.default


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
    def side(self) -> int:
        """Patches per side of a frame."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """Patch tokens per frame, without the CLS token."""
        return self.side**2


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
    architecture: Literal[*ARCHITECTURES]
    encoder: EncoderSize
    language: LanguageSize
    deep_query: bool
    fine_pass: bool
    fine_passes: int = Field(ge=1, le=8)  # number of fine passes, if there is one
    query_dim: int = Field(gt=0)
    query_init_std: float = Field(gt=0)
    visual_scale: float = Field(gt=0)
    lambda_coarse: float = Field(ge=0)
    tokens_per_frame: int = Field(gt=0)  # of the pooled baselines; the foveated model has one, the blind model none

    @property
    def variant(self) -> Architecture:
        """All that follows from the architecture and its settings."""
        return ARCHITECTURES[self.architecture](self)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens per frame that the language model sees."""
        return self.variant.tokens

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways to evaluate this model."""
        return self.variant.modes

    @property
    def training_mode(self) -> str:
        return self.variant.training_mode


class Rates(Strict):
    """Learning rates of the three parameter groups."""

    connector: float = Field(ge=0)
    dino: float = Field(ge=0)
    llm: float = Field(ge=0)


class Optim(Strict):
    batch_size: int = Field(gt=0)  # samples per step
    lr: Rates
    final_lr: Rates | None  # last rates of schedule `converging`
    schedule: Literal["cosine", "constant", "converging"]
    warmup: float = Field(ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)  # largest gradient norm
    betas: tuple[float, float]
    ema: float | None = Field(gt=0, lt=1)  # decay of a moving average of the weights; null: no average
    dpo_beta: float = Field(gt=0)  # of the preference loss
    freeze: tuple[Literal["connector", "dino", "llm"], ...]


class Data(Strict):
    sources: tuple[str, ...] = Field(min_length=1)
    share: dict[Kind, float]  # share of the samples by kind; sums to 1
    weights: dict[str, float]  # weight of a source among those of its kind; empty: by their numbers of samples
    static_frames: int = Field(ge=1, le=64)  # an image is repeated to this many frames
    max_frames: int = added(neutral=64, ge=1, le=64)  # of a sample with more, so many frames are read, evenly spaced
    max_text_tokens: int = Field(gt=0)
    question_first: float = Field(ge=0, le=1)  # share of the samples with the question before the frames
    loss: Literal["all", "answers", "preference"]  # text tokens in the loss; preference: DPO on pairs of answers


class Train(Strict):
    samples: int | None = Field(gt=0)  # length of the training: samples, ...
    flops: float | None = Field(gt=0)  # ... or training FLOPs; the other is null
    seed: int
    epoch: int = Field(ge=0)  # selects the order of the samples; different from the parent's if sources repeat
    precision: Literal["float32", "bfloat16"]
    evaluations: int = Field(gt=0)  # validations over the run, evenly spaced, the last at the end
    validation_samples: int = Field(gt=0)  # per source, at each validation


class Operation(Strict):
    """How a run is executed. It does not change the result, so it is not in the digest."""

    micro_frames: int = Field(gt=0)  # visual positions per forward pass; a step may take several
    micro_tokens: int = Field(gt=0)  # text tokens per forward pass
    checkpoint_steps: int = Field(gt=0)
    checkpoint_minutes: float | None = Field(gt=0)  # whichever comes first
    attention_videos: int = Field(ge=0)  # held-out videos whose attention maps are saved at each validation
    loader_workers: int = Field(ge=0)
    threads: int = Field(gt=0)  # CPU threads of torch
    gpus: int = Field(ge=0)  # requested from the scheduler, per node
    nodes: int = Field(default=1, ge=1)
    ranks: int | None = Field(default=None, ge=1)  # processes per node; null: one per GPU
    shard_weights: bool = False  # FSDP2: weights, gradients and moments split over the ranks
    recompute: bool = False  # activation checkpointing: the backward pass computes layers again
    log_seconds: float = Field(gt=0)
    wandb: Literal["online", "offline"] | None
    tensorboard: bool

    @property
    def ranks_per_node(self) -> int:
        """Number of training processes on each node."""
        return self.ranks or max(1, self.gpus)

    @property
    def total_ranks(self) -> int:
        """Number of training processes on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def splits_weights(self) -> bool:
        """True if the weights are split over several processes."""
        return self.shard_weights and self.total_ranks > 1


class Run(Strict):
    """One training with all its settings."""

    name: str
    family: Literal["stage", "ablation", "grid", "pairs"]
    parent: str | None  # the run whose best weights this one starts from, or a file or folder of weights
    question: str = ""
    model: Model
    data: Data
    optim: Optim
    train: Train
    operation: Operation
    labels: dict[str, str] = {}  # of grid and pairs: size, budget, letter of the architecture
    sources_digest: str = ""  # hash of splits, prompts and kinds of the sources

    @property
    def parent_path(self) -> str | None:
        """The file or folder of weights that this run starts from; None if it starts from a run, or from none."""
        return self.parent if self.parent and "/" in self.parent else None

    @property
    def digest(self) -> str:
        """Hash of all that training depends on. A field that is added later does not change it while it is neutral."""
        content = self.for_digest(mode="json", exclude=NOT_IN_DIGEST)
        if self.model.variant.keeps == "last":
            content["shallow_query"] = "heads of the last layer"  # an earlier version had one head over the features
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Source(Strict):
    """One dataset of config/sources.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    kind: Kind
    reader: Reader
    path: str | None = None
    table: str | None = None  # null: the dataset's usual name; a wildcard or {00000..00099} names several
    prompt: str = "Describe the video."
    samples: int | None = Field(default=None, gt=0)
    held_out: float | str | None = None
    frames: float = Field(default=8, ge=0)  # expected mean, for the plan
    text_tokens: float = Field(default=100, gt=0)  # expected mean, for the plan
    max_reject: float = Field(default=0.5, ge=0, le=1)  # a larger share of rejected inputs fails the source
    deadline_s: float = Field(default=60, gt=0)  # for decoding one file; slower files are rejected
    crop: bool = True  # the centre of a frame; false: the whole frame squashed to a square
    demo_family: str | None = None
    demo_seed: int = 0
    broken: int = Field(default=0, ge=0)  # number of broken files in the demo's source
    licence: str = ""


class TokenizerChoice(Strict):
    """Either a pretrained tokenizer by name or folder, or the vocabulary of one trained on the corpus."""

    weights: str | None = None
    vocabulary: int | None = Field(default=None, ge=260)

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizerChoice":
        if (self.weights is None) == (self.vocabulary is None):
            raise ValueError("give either `weights` or `vocabulary`, and null for the other")
        return self


class Shards(Strict):
    samples: int = Field(gt=0)  # per shard


class Evaluation(Strict):
    samples: int = Field(gt=0)  # held-out samples per source
    attention_videos: int = Field(gt=0)
    families: tuple[Literal["stage", "ablation", "grid", "pairs"], ...] = ("stage", "ablation", "grid", "pairs")
    benchmarks: tuple[Benchmark, ...] = ()  # answered by the last stage, DPO and the runs of comparisons.yaml


class Gpu(Strict):
    """The GPU that runs are trained on. A run that needs more memory is an error before the first job."""

    name: str
    memory_gb: float = Field(gt=0)  # 2^30 bytes, as in its name: 24, 32, 80
    tflops: float | None = Field(default=None, gt=0)  # dense bfloat16 peak, for the utilisation; null: known by name
    utilisation: float | None = Field(default=None, gt=0, le=1)  # share of that peak which the plan assumes; null: none
    price_per_hour: float | None = Field(default=None, gt=0)  # of one GPU, for the plan's costs; null: no costs
    currency: str = "USD"


class Study(Strict):
    """A study with all its runs, as `load_study` returns it."""

    study: str
    results: str
    data_root: str = "data"  # replaces {data_root} in the paths of sources.yaml
    tokenizer: TokenizerChoice
    shards: Shards
    evaluation: Evaluation
    sources: dict[str, Source]
    runs: dict[str, Run]
    comparisons: Comparisons
    gpu: Gpu | None = None  # null: memory is not checked
    only: dict[Literal["stages", "ablations", "grid"], list[str]] = {}
    seeds: dict[str, list[int]] = {}  # of a run, a budget or all `ablations` or `grid` runs
    prepare: list[str] = []  # more sources to shard and index, which no run trains on
    results_from: tuple[str, ...] = ()  # finished results to make tables and figures of, without training

    @property
    def used_sources(self) -> list[str]:
        """Sources of all runs and of `prepare`, and their held-out sources, in the order of sources.yaml."""
        used = {name for run in self.runs.values() for name in run.data.sources}
        used |= set(self.prepare)
        partners = {self.sources[name].held_out for name in used}
        return [name for name in self.sources if name in used | partners]

    @property
    def benchmarked(self) -> list[str]:
        """The runs that answer benchmarks: the last stage, with DPO also the one before it, and those that
        comparisons.yaml names."""
        stages = [run for run in self.runs.values() if run.family == "stage"]
        last = [run.name for run in stages if run.data.loss != "preference"][-1:]
        last += [run.name for run in stages if run.data.loss == "preference"]
        return [name for name in dict.fromkeys([*last, *self.comparisons.benchmarks.runs]) if name in self.runs]

    def benchmark_source(self, benchmark: str) -> Source | None:
        """The entry of sources.yaml with the files of a benchmark; with subtitles they are the same files."""
        return self.sources.get(benchmark.removesuffix("_subtitles"))

    def shown_to(self, run: Run) -> dict[str, dict]:
        """How the sources of a run show their samples: source -> {"kind", "crop", "prompt"}."""
        sources = [self.sources[name] for name in run.data.sources]
        return {source.name: source.model_dump(include={"kind", "crop", "prompt"}) for source in sources}

    @property
    def tokenizer_sources(self) -> list[str]:
        """Sources that a tokenizer is trained on: those of the stages, so that no ablation changes it."""
        runs = [run for run in self.runs.values() if run.family == "stage"] or list(self.runs.values())
        used = {name for run in runs for name in run.data.sources}
        return [name for name in self.sources if name in used]
