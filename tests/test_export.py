"""`fvlm export`: transformers loads the folder, and it answers as the run does here."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.obvious import normalised
from fvlm.__main__ import main
from fvlm.config.schema import Run
from fvlm.data.shards.text import encode_prompt, load_tokenizer
from fvlm.evaluate.read import SOURCES, read_run
from tests.decode_cases import X264, turned, write
from tests.evaluate_cases import finished, make_held_out, run_of, shown_frames, talkative

PROGRAM = Path(__file__).with_name("use_exported.py")
QUESTIONS = ("What colours are there?", "  Is <|im_end|> red?\n", "<|endoftext|><|video|> What?", "Say\n\nwhat.")
TOKENS = 10
CASES = {  # settings of a run, and whether its samples were cropped
    "foveated": ({}, True),
    "question first, shallow, few frames, squashed": (
        {"data.question_first": 1.0, "model.deep_query": False, "data.max_frames": 2, "data.static_frames": 3}, False,
    ),
    "coarse only": ({"model.fine_pass": False}, True),
    "pooled": ({"model.architecture": "multi_token"}, True),
    "blind": ({"model.architecture": "blind"}, True),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_held_out(tmp_path_factory.mktemp("export") / "results")


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> list[Path]:
    """Two videos of different lengths and shapes, one of them turned, and a picture with transparency."""
    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(0).integers(0, 256, (250, 310, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    wide = write(folder / "wide.mp4", "160x120", "25", 5, X264)
    return [wide, folder / "picture.png", turned(90)(write(folder / "tall.mp4", "120x200", "10", 2.5, X264))]


def run_in(data: Path, results: Path, settings: dict, crop: bool = True) -> Path:
    """A finished run with weights that give varied answers, beside the tokenizer of `data`."""
    run, study = run_of(data, **settings)
    results.mkdir(exist_ok=True)
    (results / "tokenizer").symlink_to(data / "tokenizer")
    run = finished(results / "runs/baseline", run, talkative(run, load_tokenizer(data / "tokenizer")))
    saved = json.loads((run / "model/run.json").read_text())
    shown = {source: {**entry, "crop": crop} for source, entry in study.shown_to(study.runs["baseline"]).items()}
    (run / "model/run.json").write_text(json.dumps({**saved, SOURCES: shown}))
    return run


def chats_of(media: list[Path]) -> list[list[dict]]:
    parts = [{"type": "image" if path.suffix == ".png" else "video", "path": str(path)} for path in media]
    texts = [{"type": "text", "text": text} for text in QUESTIONS]
    contents = [*([part, text] for part, text in zip(parts, texts, strict=False)), texts[3:]]
    return [[{"role": "user", "content": content}] for content in contents]


@pytest.fixture(scope="module")
def exported(data, media, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """By case: the run, and what a program with transformers alone gets from its exported folder."""
    root, chats = tmp_path_factory.mktemp("exported"), chats_of(media)
    runs = {case: run_in(data, root / str(i), *of_case) for i, (case, of_case) in enumerate(CASES.items())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fvlm.use.export.TOKENS", TOKENS)
        for i, run in enumerate(runs.values()):
            assert main(["export", str(run), "--out", str(root / f"{i}/out")]) == 0
    (root / "chats.json").write_text(json.dumps(chats))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, PROGRAM, "chats.json", *(f"{i}/out" for i in range(len(runs)))]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [torch.load(root / f"{i}/out.used", weights_only=True) for i in range(len(runs))]
    return {case: (run, used) for (case, run), used in zip(runs.items(), found, strict=True)}


def caption(run: Path, file: Path, question: str) -> str:
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["caption", str(file), "--run", str(run), "--question", question, "--tokens", str(TOKENS)]) == 0
    return printed.getvalue().removeprefix(f"{file}: ").removesuffix("\n")


@pytest.mark.parametrize("case", CASES)
def test_transformers_answers_as_the_run_does_here(exported, media, case):
    (run, found), crop = exported[case], CASES[case][1]
    assert found["problems"] == {} and found["architecture"] == read_run(run)[0].model.architecture
    check_inputs(found, run, media, crop)
    assert found["texts"][:3] == [caption(run, *pair) for pair in zip(media, QUESTIONS, strict=False)]
    for way in ("together", "uncached", "static", "eager", "saved again"):
        assert found[way] == found["alone"], way
    assert found["pipeline"] == found["texts"] and len(set(found["texts"])) == 4
    assert all(0 < length <= TOKENS for length in found["some beams"])
    near = (found["bfloat16"].float() - found["float32"]).abs().mean() / found["float32"].std()
    assert found["bfloat16"].dtype == torch.bfloat16 and near < 0.1


@pytest.mark.parametrize("case", CASES)
def test_an_exported_folder_answers_as_its_run(exported, media, case):
    """Wherever it lies: nothing beside it is read."""
    run, folder = exported[case][0], exported[case][0].parents[1] / "out"
    assert read_run(folder) == read_run(run)
    for pair in zip(media, QUESTIONS, strict=False):
        assert caption(folder, *pair) == caption(run, *pair)


def test_what_transformers_saved_of_an_exported_folder_answers_with_its_run_json(exported, media, capsys):
    run = exported["foveated"][0]
    out, again = run.parents[1] / "out", run.parents[1] / "out.again"
    ask = ["ask", str(media[0]), QUESTIONS[0], "--run"]
    assert main([*ask, str(again)]) == 2
    assert "run.json: no such file; expected a finished run, or a folder of `fvlm export`" in capsys.readouterr().err
    shutil.copy(out / "run.json", again)
    assert main([*ask, str(again)]) == main([*ask, str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def check_inputs(found: dict, run: Path, media: list[Path], crop: bool) -> None:
    """The tokens of the prompts, and the pixels, are those that the run here is given."""
    config, tokenizer = read_run(run)[0], load_tokenizer(run.parents[1] / "tokenizer")
    frames = [frames_of(file, config, crop) for file in media] + [[]]
    for i, question in enumerate(QUESTIONS):
        ids = encode_prompt(tokenizer, question).tolist()
        first = 0
        if config.data.question_first > 0.5:  # all but the header of the answer
            first = len(ids) - 1 - ids[::-1].index(tokenizer.token_to_id("<|im_start|>"))
        visual = [0] * len(frames[i]) * config.model.visual_tokens
        assert found["ids"][i] == [*ids[:first], *visual, *ids[first:]]
        if visual:
            assert torch.equal(found["pixels"][i], normalised(torch.from_numpy(frames[i]), torch.float32))
        else:
            assert found["pixels"][i] is None


def frames_of(file: Path, run: Run, crop: bool) -> np.ndarray:
    """The frames (T, 224, 224, 3) that a run is shown of a video, or of an image."""
    frames = shown_frames(file, run, crop)
    return np.repeat(frames, run.data.static_frames, axis=0) if file.suffix == ".png" else frames
