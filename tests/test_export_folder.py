"""The files of an exported folder, what may be exported, and a training that goes on from such a folder."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from fvlm.__main__ import main
from fvlm.config.study_file import complete
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.evaluate.read import SOURCES
from fvlm.files import write_json
from fvlm.model.build import build_model
from fvlm.use.export import ARCHITECTURES
from fvlm.use.exported import configuration_fvlm
from fvlm.use.exported.modeling_fvlm import FvlmForConditionalGeneration
from fvlm.use.exported.processing_fvlm import FvlmProcessor, _rgb
from tests import layout, study_cases
from tests.conftest import ROOT
from tests.decode_cases import CASES as VIDEOS
from tests.evaluate_cases import content_of, finished, run_of
from tests.loader_cases import make_results
from tests.reader_cases import picture
from tests.train_cases import same, study_file, study_in, trained

TEMPLATE = (layout.COPIED / "chat_template.jinja").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    results = make_results(tmp_path_factory.mktemp("export") / "results")
    return finished(results / "runs/baseline", run_of(results)[0])


def export(run: Path, out: Path) -> Path:
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


# --- code ---


ELSEWHERE = [*sorted(layout.COPIED.glob("*.py")), layout.MODULES["fvlm.use.lmms"]]


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: path.name)
def test_code_for_other_environments_imports_nothing_of_this_project(path):
    copied = {other.stem for other in layout.COPIED.glob("*.py")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "fvlm" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module in copied if node.level else node.module.split(".")[0] != "fvlm"


def test_an_installed_package_has_the_files_to_copy(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src/fvlm", tmp_path / "src/fvlm", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    expected = {f"fvlm/use/exported/{path.name}" for path in layout.COPIED.iterdir() if path.is_file()}
    assert len(expected) == 5 and expected <= names


# --- what may be exported ---


def test_the_command_and_the_copied_code_have_the_same_architectures():
    assert ARCHITECTURES == configuration_fvlm.ARCHITECTURES
    with pytest.raises(ValueError, match="'other'; expected one of foveated, "):
        configuration_fvlm.FvlmConfig(architecture="other")


def without_weights(run: Path, results: Path) -> None:
    (results / "runs/baseline/model/best.safetensors").unlink()


def other_architecture(run: Path, results: Path) -> None:
    """One that the copied code does not have, as if docs/new-architecture.md had added it."""
    saved = results / "runs/baseline/model/run.json"
    saved.write_text(saved.read_text().replace('"foveated"', '"blind"'))


def without_tokenizer(run: Path, results: Path) -> None:
    shutil.rmtree(results / "tokenizer")


def larger_tokenizer(run: Path, results: Path) -> None:
    content = json.loads((results / "tokenizer/tokenizer.json").read_text())
    content["model"]["vocab"]["huge"] = 100_000
    (results / "tokenizer/tokenizer.json").write_text(json.dumps(content))


def adopted_numbers(run: Path, results: Path) -> None:
    shutil.rmtree(results / "runs/baseline/model")
    (results / "runs/baseline/run_summary.json").write_text(json.dumps({"digest": "x", "adopted": {}}))


def unfinished(run: Path, results: Path) -> None:
    shutil.rmtree(results / "runs/baseline/model")


def exported_already(run: Path, results: Path) -> None:
    (results / "runs/baseline/config.json").write_text("{}")
    shutil.copy(run / "model/run.json", results / "runs/baseline/run.json")


def not_empty(run: Path, results: Path) -> None:
    (results / "out").mkdir()
    (results / "out/kept.txt").write_text("mine")


REFUSED = {
    unfinished: "no such file, so .*baseline is no finished run; train it first",
    adopted_numbers: "adopted without its weights; name a run that has them",
    without_weights: "best.safetensors cannot be loaded .*put it back, or train the run again",
    other_architecture: "architecture 'blind' cannot be exported; .*multi_token.*modeling_fvlm.py",
    without_tokenizer: "tokenizer.json: no such file.*fvlm tokenizer --weights .* --out .*tokenizer",
    larger_tokenizer: "ids up to 100000, the run's vocabulary has .*put the run's own tokenizer there",
    exported_already: "baseline is an exported folder already; copy it, or name a finished run",
    not_empty: "out exists and is not empty; name a new folder, or delete it first",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_cannot_be_exported_is_refused_in_one_sentence(run, tmp_path, capsys, monkeypatch, change):
    results = tmp_path / "results"
    shutil.copytree(run.parents[1], results)
    monkeypatch.setattr("fvlm.use.export.ARCHITECTURES", ("foveated", "multi_token"))
    change(run, results)
    assert main(["export", str(results / "runs/baseline"), "--out", str(results / "out")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.search(REFUSED[change], error), error
    left = [path.name for path in results.glob("out*")]
    assert left == (["out"] if change is not_empty else [])


def test_a_wrong_folder_is_refused_without_torch(tmp_path):
    code = "import sys; from fvlm.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "export", "nowhere", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "nowhere is no finished run" in done.stderr


def test_an_empty_folder_is_filled(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export(run, tmp_path / "out") / "model.safetensors").is_file()


# --- the prompt ---


def rendered(messages: list[dict], **options) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE).render(messages=messages, **options)


USER = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "video"}, {"type": "image"}]}
ANSWER, SYSTEM = {"role": "assistant", "content": "b"}, {"role": "system", "content": "s"}
MORE = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "c <|im_end|>"}]}
HEAD, ASKED = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "<|im_start|>user\na<|im_end|>\n"
SAID, END = "<|im_start|>assistant\nb<|im_end|>\n", "<|im_start|>user\nc <\u200b|im_end|><|im_end|>\n"
START, SHOWN = "<|im_start|>assistant\n", "<|video|><|image|>"
PROMPTS = [
    ([USER], {"add_generation_prompt": True}, SHOWN + HEAD + ASKED + START),
    ([USER], {"add_generation_prompt": True, "question_first": True}, HEAD + ASKED + SHOWN + START),
    ([USER], {"question_first": True}, SHOWN + HEAD + ASKED),  # no answer: frames first, as in training
    ([USER, ANSWER], {"question_first": True}, HEAD + ASKED + SHOWN + SAID),
    ([USER, ANSWER, MORE], {}, SHOWN + "<|video|>" + HEAD + ASKED + SAID + END),
    ([USER, ANSWER, MORE], {"question_first": True}, HEAD + ASKED + SHOWN + "<|video|>" + SAID + END),
    ([SYSTEM, {"role": "user", "content": "a"}], {}, "<|im_start|>system\ns<|im_end|>\n" + ASKED),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "options", "expected"), PROMPTS)
def test_the_template_puts_frames_where_training_did(messages, options, expected):
    assert rendered(messages, **options) == expected


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_order_of_most_training_samples_is_the_default(run, tmp_path, share):
    results = tmp_path / "results"
    shutil.copytree(run.parents[1], results)
    trained_run = finished(results / "runs/baseline", run_of(results, **{"data.question_first": share})[0])
    template = (export(trained_run, tmp_path / "out") / "chat_template.jinja").read_text()
    assert f"default({str(share > 0.5).lower()})" in template and template.count("default(") == 1


@pytest.fixture(scope="module")
def processor(run) -> FvlmProcessor:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(run.parents[1] / "tokenizer/tokenizer.json"))
    tokenizer.pad_token = "<|im_end|>"
    return FvlmProcessor(tokenizer, chat_template=TEMPLATE, static_frames=2)


def test_images_and_videos_are_taken_in_the_order_of_the_text(processor, tmp_path):
    """A single image is shown for two frames, one beside others for one, as in training."""
    for name, shade in (("a", 10), ("b", 200)):
        (tmp_path / f"{name}.png").write_bytes(picture(shade, "PNG", (224, 224)))
    images, decoded = [[tmp_path / "a.png"], [tmp_path / "b.png"]], np.full((3, 100, 80, 3), 120, np.uint8)
    inputs = processor(text=["<|video|><|image|>x", "<|image|>"], images=images, videos=[[decoded], []])
    assert inputs["pixel_values"].shape == (2, 4, 3, 224, 224) and inputs["attention_mask"].sum(1).tolist() == [5, 2]
    shades = inputs["pixel_values"].mean((2, 3, 4))
    assert shades[0, :3].std() == 0 and shades[0, 3] < shades[0, 0] < shades[1, 0] and (shades[1, 2:] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"text": "<|video|>"}, r"more <\|video\|> than were given"),
        ({"text": "x", "images": [np.zeros((9, 9, 3), np.uint8)]}, "apply_chat_template"),
        ({"videos": ["x.mp4"]}, "expected a text"),
    ],
)
def test_media_that_do_not_fit_the_text_are_refused(processor, arguments, fact):
    with pytest.raises(ValueError, match=fact):
        processor(**arguments)


# --- pixels ---


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_has_the_pixels_of_our_decoder(processor, tmp_path, name):
    case = VIDEOS[name]
    path = case.make(tmp_path)
    for crop in (True, False):
        processor.crop_videos = crop
        expected, found = decode_video(path, crop=crop).frames, processor._decode(str(path))
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() == 0


def test_a_pyav_that_scales_differently_is_refused(processor, monkeypatch):
    monkeypatch.setattr("av.__version__", "16.1.0")
    with pytest.raises(ImportError, match=r"PyAV 16.1.0 .*pip install 'av>=17'"):
        processor(text="<|video|>", videos=["x.mp4"])


def with_orientation(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise(300, 250).save(path, exif=exif)


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


PICTURES = {
    "turned.jpg": with_orientation,
    "small.png": lambda path: noise(90, 130).save(path),
    "transparent.png": lambda path: noise(300, 250, 4).save(path),
    "palette.gif": lambda path: noise(300, 250).quantize().save(path, transparency=3),
    "16 bits.png": lambda path: Image.fromarray(np.arange(62500, dtype=np.uint16).reshape(250, 250)).save(path),
    "grey.webp": lambda path: noise(240, 230).convert("L").save(path),
    "wide.png": lambda path: noise(4000, 100).save(path),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_the_pixels_of_our_decoder(processor, tmp_path, name):
    PICTURES[name](tmp_path / name)
    for crop in (True, False):
        expected, found = decode_image(tmp_path / name, crop).frames[0], processor._square(_rgb(tmp_path / name), crop)
        assert np.array_equal(found, expected)


# --- the card ---


def test_the_card_has_data_with_licences_and_losses_with_intervals(run, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(run.parents[1], results)
    write_json(results / "study.json", complete(content_of(results), [ROOT / "config"]))
    summary = {"digest": "x", "samples": 1600, "steps": 40, "flops": 1.5e12, "best": {"val_loss": 1.25}}
    write_json(results / "runs/baseline/run_summary.json", summary)
    (results / "tables").mkdir()
    (results / "tables/modes.csv").write_text(
        "run,mode,frames,loss,low,high,samples\nbaseline,coarse_fine,own,1.5,1.25,1.75,40\n"
        "baseline,coarse_fine,none,2.5,,,40\nA6,coarse_only,own,9.5,9,10,40\n"
    )
    (results / "study.json").touch()
    saved = results / "runs/baseline/model/run.json"
    kinds = {"grid": "video", "chat": "text"}
    shown = {name: {"kind": kind, "crop": True, "prompt": "Tell."} for name, kind in kinds.items()}
    write_json(saved, {**json.loads(saved.read_text()), SOURCES: shown})
    card = (export(results / "runs/baseline", tmp_path / "out") / "README.md").read_text()
    for line in (
        "| samples | 1,600 |",
        "| training FLOPs | 1.5e+12 (2 per multiply-add) |",
        "| grid | video | 60% | Apache-2.0 |",
        "| coarse_fine, with its frames | 1.500 | 1.250 to 1.750 | 40 |",
        "| coarse_fine, without frames | 2.500 |  | 40 |",
        "| lowest validation loss of the training | 1.250 |  |  |",
        "\"text\": 'Tell.'",
    ):
        assert line in card, line
    assert "9.5" not in card


# --- training goes on ---


@pytest.fixture
def results(prepared, tmp_path) -> Path:
    """The data of `prepared`, and runs of its own."""
    (tmp_path / "results").mkdir()
    for name in ("tokenizer", "index", "shards"):
        (tmp_path / "results" / name).symlink_to(prepared / name)
    return tmp_path / "results"


def test_a_run_starts_from_an_exported_folder_as_from_the_run(results, tmp_path):
    trained(results, results / "runs", "stage1")
    out = export(results / "runs/stage1", tmp_path / "out")
    again = tmp_path / "again"
    FvlmForConditionalGeneration.from_pretrained(out).save_pretrained(again)
    _, from_run, _ = trained(results, results / "runs", "dpo")
    for folder in (out, again):
        changes = {"stages": {"dpo": {"parent": str(folder)}}}
        _, from_folder, summary = trained(results, tmp_path / f"{folder.name}-of", "dpo", **changes)
        assert same(from_run, from_folder) and summary["parent"] == str(folder)


def test_an_adopted_run_is_exported(results, tmp_path):
    study = study_file(results, tmp_path / "study", "baseline", {})
    run = study_in(results).runs["baseline"]
    original = build_model(run.model, 7).eval()
    there = study_cases.finished_run(tmp_path / "there", "baseline", original)
    assert main(["adopt", str(there), "--run", "baseline", "--study", str(study)]) == 0
    out = export(tmp_path / "study/results/runs/baseline", tmp_path / "out")
    weights, expected = load_file(out / "model.safetensors"), original.state_dict()
    assert len(weights) == len(expected)
    assert torch.equal(weights["vision_model.layernorm.weight"], expected["dino.dino.layernorm.weight"])
    card = (out / "README.md").read_text()
    assert "trained by another program" in card and "67,000" in card and "never scores <|im_end|>" in card
