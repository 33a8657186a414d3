"""`make test-lmms`: an exported folder answers in lmms-eval as its run does here.

Skipped, with the reason, if the packages of lmms-eval cannot be had.
"""

import json
import os
import shutil
import subprocess
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from fvlm.__main__ import main
from fvlm.data.shards.text import load_tokenizer
from tests.conftest import ROOT
from tests.decode_cases import X264, turned, write
from tests.evaluate_cases import content_of, finished, make_held_out, run_of, talkative
from tests.lmms.make import Unavailable, make, pip
from tests.reader_cases import picture

TASKS = Path(__file__).with_name("tasks")
TOKENS = 8  # of a generated answer, here and in the task
OPTIONS = ["red", "red and blue", "a green square", "no"]  # the end of an answer tells the first from the second
FLOAT32 = 1e-5  # relative difference of losses
LETTERS = ["A", "B", "C", "D"]
CASES = {
    "foveated": {"data.static_frames": 3},
    "pooled, question first": {"model.architecture": "multi_token", "data.question_first": 1.0},
}


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the programs of an environment with lmms-eval, made once and kept in the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fvlm-test-lmms"
    try:
        return make(folder)
    except Unavailable as reason:
        pytest.skip(f"lmms-eval cannot be had: {reason}")


@pytest.fixture(scope="session")
def installed(programs, tmp_path_factory) -> Path:
    """This project as `pip install --no-deps .` installs it, without the packages that it depends on."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src/fvlm", source / "src/fvlm", ignore=shutil.ignore_patterns("__pycache__"))
    pip(programs, "install", "--no-deps", "--target", str(target), str(source))
    return target


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """Videos of different lengths and shapes, pictures, and a table of questions about them."""
    folder = tmp_path_factory.mktemp("media")
    write(folder / "wide.mp4", "160x120", "25", 3, X264)
    write(folder / "long.mkv", "160x120", "10", 9, X264)  # of more than `max_frames` seconds
    turned(90)(write(folder / "tall.mp4", "120x200", "10", 2.5, X264))
    (folder / "frames").mkdir()
    frames = [f"frames/{i}.png" for i in range(6)]
    for i, name in enumerate(frames):
        (folder / name).write_bytes(picture(40 * i, size=(230 + i, 250)))
    shown = [["wide.mp4"], ["long.mkv"], ["turned_90.mp4"], frames[3:4], frames]
    about = [files for files in shown for _ in range(2)]
    rows = [
        {"files": files, "question": f"What is it {i}?", "answer": OPTIONS[i % 4], "options": OPTIONS}
        for i, files in enumerate(about)
    ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return make_held_out(tmp_path_factory.mktemp("data") / "results")


@pytest.fixture(params=CASES)
def study(request, data, media, tmp_path) -> Path:
    """A study with one finished run, with weights that give varied answers, and a benchmark of the questions."""
    settings, results = {"data.max_frames": 4, **CASES[request.param]}, tmp_path / "results"
    results.mkdir()
    (results / "tokenizer").symlink_to(data / "tokenizer")
    run, _ = run_of(data, **settings)
    finished(results / "runs/baseline", run, talkative(run, load_tokenizer(data / "tokenizer"), scale=1.5))
    content = content_of(results, **settings)
    content["sources"]["demo"] = {"kind": "video", "reader": "folder", "table": "samples.jsonl", "path": str(media)}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def benchmark(study: Path) -> list[dict]:
    """What `fvlm benchmark` records about each question."""
    out = study.with_name("answers.csv")
    assert main(["benchmark", "baseline", "demo", "--study", str(study), "--out", str(out)]) == 0
    return [json.loads(line)["rows"][0] for line in out.with_suffix(".jsonl").read_text().splitlines()[1:]]


def ask(run: Path, file: Path, question: str) -> str:
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["ask", str(file), question, "--run", str(run), "--tokens", str(TOKENS)]) == 0
    return printed.getvalue().removesuffix("\n")


def environment(installed: Path, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    return kept | offline | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def lmms_eval(programs: Path, installed: Path, folder: Path, tasks: str, model: str) -> None:
    """Run local tasks in a folder with questions.jsonl; the records are in its folder out/."""
    names = ",".join(f"local_{task}" for task in tasks.split(","))
    settings = {"--model": "fvlm", "--model_args": model, "--batch_size": "3", "--tasks": names}
    settings |= {"--include_path": TASKS, "--output_path": "out"}
    command = [programs / "lmms-eval", "--log_samples", *(word for pair in settings.items() for word in pair)]
    done = subprocess.run(command, cwd=folder, env=environment(installed, folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def samples(folder: Path, task: str) -> list[dict]:
    """What lmms-eval last recorded about each question of a task."""
    last = max((folder / "out").rglob(f"*_samples_{task}.jsonl"))
    return sorted(map(json.loads, last.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def loss_of_options(record: dict, way: str, frames: str, mode: str | None = None) -> list[float]:
    """The losses of a question's options; mode None: the first, which is the one of inference."""
    fitting = (one for one in record["passes"] if (one["frames"], one["rotation"]) == (frames, 0))
    return next(one[way] for one in fitting if mode in (None, one["mode"]))


def test_answers_and_losses_are_those_of_the_run(programs, installed, media, study):
    records, run, folder = benchmark(study), study.parent / "results/runs/baseline", study.parent
    assert main(["export", str(run), "--out", str(folder / "model")]) == 0
    rows = [
        {
            **{name: record[name] for name in ("prompt", "letter_prompt", "answer")},
            "files": [str(media / file) for file in record["files"]],
            "letters": LETTERS,
            "texts": [f"{option}<|im_end|>" for option in OPTIONS],
        }
        for record in records
    ]
    rows[-1]["files"] = [str(media / "frames")]  # as a folder
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lmms_eval(programs, installed, folder, "answers,letters,texts,blind", "pretrained=model")

    answers = [sample["filtered_resps"] for sample in samples(folder, "local_answers")]
    assert answers == [record["generated"] for record in records] and len(set(answers)) > len(rows) / 2
    for row, answer in zip(rows[:-2], answers[:-2], strict=True):  # `fvlm ask` takes one file
        assert answer == ask(run, Path(row["files"][0]), row["prompt"])
    for task, way, frames in (("letters", "letter", "own"), ("texts", "text", "own"), ("blind", "text", "none")):
        check_losses(samples(folder, f"local_{task}"), [loss_of_options(record, way, frames) for record in records])
    for record in records:
        other = pytest.approx(loss_of_options(record, "text", "other"), rel=10 * FLOAT32)
        assert loss_of_options(record, "text", "own") != other
    mode = records[0]["passes"][-1]["mode"]
    if mode != records[0]["passes"][0]["mode"]:  # a run with several modes
        lmms_eval(programs, installed, folder, "texts", f"pretrained=model,mode={mode}")
        expected = [loss_of_options(record, "text", "own", mode) for record in records]
        assert expected[0] != pytest.approx(loss_of_options(records[0], "text", "own"), rel=10 * FLOAT32)
        check_losses(samples(folder, "local_texts"), expected)


def check_losses(found: list[dict], expected: list[list[float]]) -> None:
    """The losses are those of the run, and lmms-eval takes the lowest one for the answer."""
    for sample, losses in zip(found, expected, strict=True):
        assert [float(loss) for loss, _ in sample["filtered_resps"]] == pytest.approx(losses, rel=FLOAT32)
        assert sample["acc"] == (losses.index(min(losses)) == int(sample["target"]))


def test_what_is_not_supported_is_one_sentence(programs, installed, tmp_path):
    refused = {
        "Fvlm('nowhere')": "pretrained=nowhere: no such model; expected a folder of `fvlm export`",
        "Fvlm('.', batch_size='auto')": "batch_size is auto; expected a number",
        "Fvlm('.', batch_size=0)": "batch_size is 0; expected a number of at least 1",
        "Fvlm._target(Of(task_dict={'t': {'s': [{}]}}), Of(args=('q', ' ', None, 0, 't', 's')))": "an option is empty",
        "Fvlm.generate_until_multi_round(None, [])": "leave out tasks with output_type generate_until_multi_round",
        "list(_parts({'array': [0.0], 'sampling_rate': 16000}))": "a task shows a dict; expected images, whole videos",
    }
    (tmp_path / "config.json").write_text("{}")
    lines = ["import lmms_eval.models", "from types import SimpleNamespace as Of"]
    lines += ["from fvlm.use.lmms import Fvlm, _parts"]
    lines += [f"try: {call}\nexcept (ValueError, NotImplementedError) as error: print(error)" for call in refused]
    command = [programs / "python", "-c", "\n".join(lines)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(installed, tmp_path), capture_output=True, text=True, check=True
    )
    for message, expected in zip(done.stdout.splitlines(), refused.values(), strict=True):
        assert expected in message
