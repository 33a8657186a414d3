"""Finished runs and SmolVLM2 answer benchmarks: what a batch of options gives is what each option gives alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tokenizers import Tokenizer

from fvlm.__main__ import main
from fvlm.data.demo.corpus import make_corpus
from fvlm.data.shards.text import train_tokenizer
from fvlm.evaluate.benchmarks.answerer import FinishedRun, Sample
from fvlm.evaluate.benchmarks.shown import NOTHING, Shown, load
from fvlm.model.build import build_model
from fvlm.use.answer import Answers
from tests.benchmark_cases import demo, pope, questions_of, video_mme
from tests.conftest import ROOT
from tests.evaluate_cases import content_of, finished, run_of

TEXTS = ["What colour is the shape at the top left?", "red green blue yellow", "A. B. C. D. Answer with the letter"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "tokenizer"
    train_tokenizer(TEXTS * 3, 300, folder)
    return folder


def study_with(folder: Path, tokens: Path, benchmarks: dict[str, Path], **settings) -> Path:
    """A study with one finished run with untrained weights, and benchmarks in folders."""
    run, _ = run_of(folder / "results", **settings)
    finished(folder / "results/runs/baseline", run)
    (folder / "results/tokenizer").symlink_to(tokens)
    content = content_of(folder / "results", **settings)
    tables = {"demo": ("folder", "samples.jsonl"), "video_mme": ("video_mme", "videomme/test-*.parquet")}
    content["sources"] |= {
        name: {"kind": "video", "reader": tables[name][0], "table": tables[name][1], "path": str(path)}
        for name, path in benchmarks.items()
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def frames_of(count: int, seed: int = 0) -> Shown:
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 7, 7, 3), np.uint8)
    frames = pixels.repeat(32, 1).repeat(32, 2)
    return Shown(frames, tuple(map(float, range(count))), count)


@pytest.mark.parametrize(
    "settings",
    [{}, {"data.question_first": 1.0}, {"model.architecture": "multi_token"}, {"model.architecture": "blind"}],
    ids=["foveated", "question first", "pooled", "blind"],
)
def test_options_in_one_batch_score_as_each_one_alone(tmp_path, tokens, settings, monkeypatch):
    study_with(tmp_path, tokens, {}, **settings)
    answerer = FinishedRun(tmp_path / "results/runs/baseline")
    own, other = frames_of(4), frames_of(2, seed=1)
    shown = [own, own, own.shuffled(3), NOTHING, other, own]
    answers = ("red", "a", "blue", "b", "c", "no")
    samples = [Sample(view, "What colour is it?", answer) for view, answer in zip(shown, answers, strict=True)]
    for mode in answerer.modes:
        together = answerer.losses(samples, mode)
        alone = [answerer.losses([sample], mode)[0] for sample in samples]
        for one, other_one in zip(together, alone, strict=True):
            assert one == pytest.approx(other_one, rel=1e-4)
        monkeypatch.setattr("fvlm.evaluate.benchmarks.answerer.TOKENS", 8)  # a pass per sample
        assert answerer.losses(samples, mode)[0] == pytest.approx(together[0], rel=1e-4)
        monkeypatch.undo()
        reordered = Shown(own.frames[list(shown[2].order)], own.times_s, 4)
        same = answerer.losses([Sample(reordered, "What colour is it?", "blue")], mode)[0]
        assert same == pytest.approx(together[2], rel=1e-4)
    assert answerer.modes[0] == answerer.run.model.variant.inference_mode


def test_an_image_stands_at_as_many_positions_as_in_training(tmp_path, tokens):
    study_with(tmp_path, tokens, {})
    answerer = FinishedRun(tmp_path / "results/runs/baseline")
    asked = questions_of("pope", pope(tmp_path, {"random": "y"})).usable[0]
    shown = load(asked.media, tmp_path, True, answerer.max_frames, answerer.static_frames)
    assert (len(shown.frames), shown.positions, shown.still) == (1, answerer.run.data.static_frames, True)
    assert answerer._batch([Sample(shown, "Is it?", "yes")]).frame_index.tolist() == [0] * shown.positions


def test_a_generated_answer_is_that_of_fvlm_ask(tmp_path, tokens):
    study_with(tmp_path, tokens, {})
    folder, asked = tmp_path / "results/runs/baseline", questions_of("demo", demo(tmp_path / "d")).usable[0]
    run, _ = run_of(tmp_path / "results")
    finished(folder, run, build_model(run.model, 12))  # whose first tokens are no special ones
    shown = load(asked.media, tmp_path / "d", True, 64, 1)
    answer = FinishedRun(folder).generated(shown, asked.text, 12)
    assert answer == "".join(Answers(folder, None, 12).video(shown.frames).ask(asked.text)).strip() and answer


def test_a_run_answers_a_benchmark_from_end_to_end(tmp_path, tokens, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = video_mme(tmp_path / "d", here=2)
    (folder / "subtitle").mkdir()
    (folder / "subtitle/v1.srt").write_text("1\n00:00:00,000 --> 00:00:09,000\nHello\n")
    study = study_with(tmp_path, tokens, {"video_mme": folder})
    for name in ("video_mme", "video_mme_subtitles"):
        assert main(["benchmark", "baseline", name, "--study", str(study), "--out", str(tmp_path / f"{name}.csv")]) == 0
    table = pd.read_csv(tmp_path / "video_mme.csv")
    assert set(table["mode"]) == {"coarse_only", "coarse_fine", "autoregressive"}
    assert set(table.loc[table["frames"] != "own", "mode"]) == {"autoregressive"}
    assert {"letter", "text", "text_per_token", "generated"} == set(table["way"])
    assert (table["missing"] == 2).all() and (table["total"] == 6).all() and table["main"].sum() == 1
    assert "2 questions lack their video" in capsys.readouterr().err
    lines = (tmp_path / "video_mme_subtitles.jsonl").read_text().splitlines()[1:]
    prompts = {row["id"]: row["prompt"] for line in lines if "prompt" in (row := json.loads(line)["rows"][0])}
    assert prompts["002"].startswith("Hello\nWhich 2?\nA. red") and prompts["000"].startswith("Which 0?\nA. red")


def test_mistakes_are_one_sentence(tmp_path, tokens, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    study = study_with(tmp_path, tokens, {"video_mme": tmp_path / "nowhere"})
    beginning = ["benchmark", "baseline"]
    ending = ["--study", str(study), "--out", str(tmp_path / "x.csv")]
    for command, words in (
        ([*beginning, "video_mme", *ending], "no folder"),
        (["benchmark", "nothing", "video_mme", *ending], "is no finished run"),
        ([*beginning, "video_mme", "--study", str(study), "--out", str(tmp_path)], "expected the name of a .csv file"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    (tmp_path / "x.jsonl").write_text('{"file": "a.mp4"}\n')
    assert main([*beginning, "demo", *ending]) == 2
    assert f"{tmp_path / 'x.jsonl'} is no record of answers" in capsys.readouterr().err
    assert (tmp_path / "x.jsonl").read_text() == '{"file": "a.mp4"}\n'
    with pytest.raises(SystemExit):
        main([*beginning, "videomme", *ending])
    assert "invalid choice: 'videomme'" in capsys.readouterr().err


def test_the_arguments_are_checked_before_torch_is_loaded(tmp_path):
    code = "import sys; import fvlm.evaluate.benchmarks.command; print({'torch', 'scipy', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_demo_has_two_questions_about_each_video_with_all_answers_in_turn(tmp_path):
    make_corpus("benchmark", tmp_path / "demo", samples=24, seed=7, processes=1)
    found = questions_of("demo", tmp_path / "demo")
    assert len(found.usable) == 24 and len({question.video for question in found.usable}) == 12
    assert {question.categories["task"] for question in found.usable} == {"what", "where", "when", "how many", "order"}
    assert all(len(set(question.options)) == 4 for question in found.usable)
    assert len({question.answer for question in found.usable}) == 4
    shown = load(found.usable[0].media, tmp_path / "demo", True, 64, 1)
    assert len(shown.frames) == 4


# --- SmolVLM2, with random weights of a small size ---


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory) -> Path:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

    folder = tmp_path_factory.mktemp("weights") / "SmolVLM2-tiny"
    train_tokenizer(TEXTS * 3, 300, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    shutil.rmtree(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    size = tokenizer.get_vocab_size()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = small | {"vocab_size": size, "num_key_value_heads": 2, "model_type": "llama", "pad_token_id": 0}
    vision = small | {"image_size": 64, "patch_size": 16}
    config = SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=tokenizer.token_to_id("<image>"), scale_factor=2
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_smolvlm2_scores_as_one_forward_pass_of_transformers(smolvlm):
    from fvlm.evaluate.benchmarks.smolvlm import SmolVLM2

    answerer, shown = SmolVLM2(smolvlm), frames_of(3)
    samples = [Sample(shown, "Which?", answer) for answer in ("red", "a long answer")]
    losses = answerer.losses(samples, "direct")
    assert answerer.tokens_per_frame == 4
    ids = answerer._ids(f"{answerer.text_of(shown, 'Which?')} a long answer<end_of_utterance>")
    assert int((ids == answerer.model.config.image_token_id).sum()) == 3 * 4
    pixels = torch.nn.functional.interpolate(
        torch.from_numpy(shown.frames).movedim(-1, 1).float() / 127.5 - 1, (64, 64), mode="bicubic", antialias=True
    )
    with torch.no_grad():
        logits = answerer.model(input_ids=ids[None], pixel_values=pixels[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")[-len(losses[1]) :]
    assert losses[1] == pytest.approx(expected.tolist(), rel=1e-4)
    assert answerer.losses(samples[::-1], "direct")[1] == pytest.approx(losses[0], rel=1e-5)
    shuffled = answerer.losses([Sample(shown.shuffled(1), "Which?", "red")], "direct")[0]
    assert shuffled != pytest.approx(losses[0], rel=1e-6)
    assert isinstance(answerer.generated(shown, "Which?", 5), str)


def test_smolvlm2_is_asked_in_the_form_of_its_processor(smolvlm):
    from fvlm.evaluate.benchmarks.smolvlm import SmolVLM2, _in_words

    answerer = SmolVLM2(smolvlm)
    place = "<fake_token_around_image><global-img>" + 4 * "<image>" + "<fake_token_around_image>"
    text = answerer.text_of(frames_of(2), "Which?")
    assert text == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:00:01 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{place}\nFrame from 00:01:{place}\n\nWhich?<end_of_utterance>\nAssistant:"
    )
    assert answerer.text_of(NOTHING, "Which?") == "<|im_start|>User: Which?<end_of_utterance>\nAssistant:"
    assert [_in_words(n) for n in (1, 20, 64)] == ["one", "twenty", "sixty-four"]


def test_weights_of_smolvlm2_answer_a_benchmark(tmp_path, tokens, smolvlm, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    study = study_with(tmp_path, tokens, {"demo": demo(tmp_path / "d")})
    command = ["benchmark", str(smolvlm), "demo", "--study", str(study), "--out", str(tmp_path / "x.csv")]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "x.csv")
    assert set(table["run"]) == {"SmolVLM2-tiny"} and set(table["mode"]) == {"direct"}
    (smolvlm.parent / "other").mkdir()
    (smolvlm.parent / "other/config.json").write_text('{"model_type": "llama"}')
    command[1] = str(smolvlm.parent / "other")
    assert main(command) == 2
    assert "its model is 'llama'; expected SmolVLM2" in capsys.readouterr().err
