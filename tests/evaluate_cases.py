"""Held-out samples of every kind, and finished runs with untrained weights, for the tests of evaluation."""

from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_model

from fvlm.config.resolve import load_study
from fvlm.config.schema import Run, Study
from fvlm.config.study_file import merged, read_yaml
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.shards.samples import evenly_spaced
from fvlm.evaluate.frames import Frames
from fvlm.model.build import build_model
from fvlm.model.foveated import VideoLanguageModel
from tests.conftest import ROOT
from tests.loader_cases import frames_of, make_index, make_results, text_of
from tests.reader_cases import picture

VIDEOS, QUESTIONS = 6, 3  # held-out videos, and samples of each
LENGTHS = (2, 9, 3, 4)  # frames
PICTURES, CHATS = 10, 12


def make_held_out(results: Path) -> Path:
    """Tokenizer, shards and indices. Held out are videos with several samples each, single images and sets of three
    images, chats, of which every second one has an image, and preference pairs."""
    make_results(results)
    videos = [
        sample_of("grid_held_out", i, f"video-{i // QUESTIONS}", moving(i // QUESTIONS))
        for i in range(VIDEOS * QUESTIONS)
    ]
    make_index(results, "grid_held_out", "video", videos)
    sets = [{f"{n:03d}.jpg": picture(50 * n + 9 * i, "JPEG", (224, 224)) for n in range(3)} for i in range(PICTURES)]
    pictures = [
        sample_of("pictures_held_out", i, f"picture-{i}", sets[i] if i % 2 else frames_of("pictures", i))
        for i in range(PICTURES)
    ]
    make_index(results, "pictures_held_out", "image", pictures)
    make_chats(results, first=0)
    return results


def make_chats(results: Path, first: int) -> None:
    """The texts of the held-out chats are number `first`, `first` + 1, ...; files and images do not depend on it."""
    chats = [
        sample_of("chat_held_out", first + i, f"chat-{i}", {} if i % 2 else frames_of("pictures", i))
        for i in range(CHATS)
    ]
    make_index(results, "chat_held_out", "text", chats)


def has_frames(key: str) -> bool:
    return not key.startswith("chat") or int(key.split("-")[1]) % 2 == 0


def moving(number: int) -> dict[str, bytes]:
    """Frames of a video, in some videos more than a figure of attention has columns."""
    return {
        f"{i:03d}.jpg": picture((20 * i + 9 * number) % 255, "JPEG", (224, 224)) for i in range(LENGTHS[number % 4])
    }


def sample_of(source: str, number: int, file: str, frames: dict[str, bytes]) -> dict:
    return {"__key__": f"{source}-{number}", **frames, "json": {"file": file, **text_of(source, number)}}


def content_of(results: Path, **settings) -> dict:
    """The content of a study file with one run, `baseline`, with these settings."""
    content = {
        "results": str(results),
        "prepare": [],
        "only": {"ablations": ["baseline"]},
        "evaluation": {"samples": 40},
        "baseline": {"data.sources": ["grid", "pictures", "chat"], "train.samples": 16, **settings},
    }
    return merged(read_yaml(ROOT / "config/smoke.yaml"), content)


def run_of(results: Path, **settings) -> tuple[Run, Study]:
    study = load_study(content_of(results, **settings), ROOT / "config")
    return study.runs["baseline"], study


def model_of(run: Run, seed: int = 3) -> VideoLanguageModel:
    """Return a small untrained model in float64, so that equal losses are equal to many digits."""
    encoder = run.model.encoder.model_copy(update={"width": 16, "layers": 1, "patch": 56})
    config = run.model.model_copy(update={"encoder": encoder})
    return build_model(config, seed).double().eval()


def finished(folder: Path, run: Run, model: VideoLanguageModel | None = None) -> Path:
    """Write a run's folder with all that an evaluation reads, with the weights of `model` or untrained ones."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model/run.json").write_text(run.model_dump_json())
    save_model(model or build_model(run.model, 0), str(folder / "model/best.safetensors"))
    return folder


def shown_frames(file: Path, run: Run, crop: bool = True) -> np.ndarray:
    """The distinct frames (T, 224, 224, 3) that a run is shown of a video, or of a PNG image."""
    if file.suffix == ".png":
        return decode_image(file, crop).frames
    frames = decode_video(file, crop=crop).frames
    return frames[evenly_spaced(len(frames), run.data.max_frames)]


@torch.no_grad()
def talkative(run: Run, tokenizer, scale: float = 3.0):
    """A model with large random weights, which answers with varied words; other modes and orders change its answer.
    With scale 1.5, frames before a question change the losses of answers, too."""
    model = build_model(run.model, 1).eval()
    for parameter in [*model.llm.llama.layers.parameters(), *model.connector.parameters()]:
        parameter *= scale
    texts = [tokenizer.decode([i]).strip() for i in range(run.model.language.vocabulary)]
    no_words = [i for i, text in enumerate(texts) if not (text.isalpha() and text.isascii())]
    model.llm.llama.embed_tokens.weight[no_words] *= 0.3
    return model


def finished_study(data: Path, folder: Path, **settings) -> Path:
    """Write a study file on the shards of `data`, whose one run is finished; the results are in `folder`."""
    results = folder / "results"
    results.mkdir()
    for name in ("tokenizer", "index", *(path.name for path in data.glob("*.tar"))):
        (results / name).symlink_to(data / name)
    run, _ = run_of(results, **settings)
    finished(results / "runs/baseline", run)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content_of(results, **settings)))
    return path


def as_frames(frames: np.ndarray, positions: int | None = None) -> Frames:
    """Return frames (T, 224, 224, 3), one per second; of an image at so many positions."""
    return Frames(frames, np.arange(len(frames), dtype=float), positions or len(frames), still=positions is not None)
