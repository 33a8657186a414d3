"""Finished runs and SmolVLM2 answer benchmarks: the losses of options are those of whole forward passes."""

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
from fvlm.data.batches.loader import pack
from fvlm.data.decode.pool import decode
from fvlm.data.decode.video import decode_video
from fvlm.data.demo.corpus import make_corpus
from fvlm.data.shards.text import encode_chat, question_length, train_tokenizer
from fvlm.evaluate.frames import NO_FRAMES, Frames, load_frames
from fvlm.model.build import build_model
from fvlm.use.answer import Answers
from fvlm.use.smolvlm import SmolVLM2, _in_words
from tests.benchmark_cases import demo, pope, questions_of, video_mme
from tests.conftest import ROOT
from tests.evaluate_cases import as_frames, content_of, finished, run_of

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


def frames_of(count: int, seed: int = 0) -> Frames:
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 7, 7, 3), np.uint8)
    return as_frames(pixels.repeat(32, 1).repeat(32, 2))


@torch.no_grad()
def whole_pass(answers: Answers, frames: np.ndarray, question: str, answer: str, mode: str, first=None) -> list[float]:
    """The losses of an answer's tokens by one forward pass of the model over a sample, as in training."""
    ids, mask = encode_chat(answers.tokenizer, {"user": question, "assistant": answer})
    first = answers.run.data.question_first > 0.5 if first is None else first
    first = question_length(answers.tokenizer, ids, mask) if first else 0
    sample = {"frames": frames, "positions": len(frames), "ids": ids, "mask": mask, "question": first}
    return answers.model(pack([sample | {"key": "x", "source": "x"}]), mode).nats_X.tolist()


@pytest.mark.parametrize(
    "settings",
    [{}, {"data.question_first": 1.0}, {"model.architecture": "multi_token"}, {"model.architecture": "blind"}],
    ids=["foveated", "question first", "pooled", "blind"],
)
def test_the_losses_of_options_are_those_of_whole_passes(tmp_path, tokens, settings):
    """In all modes, after other questions about the video, with shuffled frames, and without frames."""
    study_with(tmp_path, tokens, {}, **settings)
    model, frames = Answers(tmp_path / "results/runs/baseline", None, 6), frames_of(4)
    video, nothing, order = model.video(frames), model.video(NO_FRAMES), [2, 0, 3, 1]
    options = ["red", "a", "blue or green", "b"]
    assert model.modes[0] == model.mode
    for mode in model.modes:
        for question in ("What colour is it?", "What is it?"):
            for view, shown in (
                (video if mode == model.mode else video.seen_in(mode), frames.frames),
                (video.seen_in(mode, order) if model.sees else video, frames.frames[order]),
                (nothing.seen_in(mode), NO_FRAMES.frames),
            ):
                losses = view.losses(question, options)
                for loss, option in zip(losses, options, strict=True):
                    assert loss == pytest.approx(whole_pass(model, shown, question, option, mode), rel=1e-4)
    before, after = (video.losses("What?", [option], start)[0] for option, start in (("Best:(A", ""), ("A", "Best:(")))
    assert len(before) > len(after) and after == pytest.approx(before[-2:], rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_run_trained_in_both_orders_answers_in_both(share, tmp_path, tokens, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {"data.question_first": share}
    study = study_with(tmp_path, tokens, {"demo": demo(tmp_path / "d")}, **settings)
    model, frames = Answers(tmp_path / "results/runs/baseline", None, 6), frames_of(4)
    video = model.video(frames)
    for mode in model.modes:
        for first in (True, False):
            loss = whole_pass(model, frames.frames, "What is it?", "red", mode, first)
            view = video.seen_in(mode, question_first=first)
            assert view.losses("What is it?", ["red"])[0] == pytest.approx(loss, rel=1e-4)
    out = tmp_path / "x.csv"
    assert main(["benchmark", "baseline", "demo", "--study", str(study), "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert set(table.loc[table["frames"] == "other_side", "mode"]) == set(model.modes)
    row = json.loads(out.with_suffix(".jsonl").read_text().splitlines()[1])["rows"][0]
    losses = {one["mode"]: one["text"] for one in row["passes"] if one["frames"] == "other_side"}
    clip = decode_video(tmp_path / "d" / row["files"][0]).frames
    for mode, found in losses.items():
        expected = [
            sum(whole_pass(model, clip, row["prompt"], option, mode, share <= 0.5)) for option in row["options"]
        ]
        assert found == pytest.approx(expected, rel=1e-4)


def test_an_image_stands_at_as_many_positions_as_in_training(tmp_path, tokens):
    study_with(tmp_path, tokens, {})
    model = Answers(tmp_path / "results/runs/baseline", None, 6)
    asked = questions_of("pope", pope(tmp_path, {"random": "y"})).usable[0]
    shown = load_frames(asked.media, lambda one: decode(one, tmp_path), model.max_frames, model.static_frames)
    assert (len(shown.frames), shown.positions, shown.still) == (1, model.run.data.static_frames, True)
    repeated = shown.frames.repeat(shown.positions, axis=0)
    loss = whole_pass(model, repeated, "Is it?", "yes", model.mode)
    assert model.video(shown).losses("Is it?", ["yes"])[0] == pytest.approx(loss, rel=1e-4)


def test_a_generated_answer_is_that_of_fvlm_ask_also_of_an_exported_folder(tmp_path, tokens, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    study = study_with(tmp_path, tokens, {"demo": demo(tmp_path / "d")})
    folder, asked = tmp_path / "results/runs/baseline", questions_of("demo", tmp_path / "d").usable[0]
    run, _ = run_of(tmp_path / "results")
    finished(folder, run, build_model(run.model, 12))  # whose first tokens are no special ones
    assert main(["benchmark", "baseline", "demo", "--study", str(study), "--out", str(tmp_path / "x.csv")]) == 0
    row = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[1])["rows"][0]
    assert main(["ask", str(tmp_path / "d/v0.mp4"), asked.text, "--run", str(folder), "--tokens", "8"]) == 0
    assert row["generated"] == capsys.readouterr().out.removesuffix("\n") != ""
    assert main(["export", str(folder), "--out", str(tmp_path / "exported")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "exported", "demo", "--study", str(study), "--out", "y.csv"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "y.csv"), pd.read_csv(tmp_path / "x.csv"))


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
    assert prompts["002"].startswith("This video's subtitles are listed below:\nHello\nSelect the best answer")
    assert "and the subtitles" in prompts["002"] and "subtitles" not in prompts["000"]


def test_a_question_beyond_the_positions_of_the_model_costs_itself_only(tmp_path, tokens, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = demo(tmp_path / "d") / "samples.jsonl"
    table.write_text(table.read_text().replace("What colour is 1?", "red " * 9000))
    study = study_with(tmp_path, tokens, {"demo": tmp_path / "d"})
    assert main(["benchmark", "baseline", "demo", "--study", str(study), "--out", str(tmp_path / "x.csv")]) == 0
    scores = pd.read_csv(tmp_path / "x.csv")
    assert (scores["total"] == 4).all() and (scores["unusable"] == 1).all() and (scores["missing"] == 0).all()
    rows = [json.loads(line)["rows"][0] for line in (tmp_path / "x.jsonl").read_text().splitlines()[1:]]
    (problem,) = (row["problem"] for row in rows if "problem" in row)
    assert "the language model has 8,192 positions" in problem


def test_mistakes_are_one_sentence(tmp_path, tokens, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    study = study_with(tmp_path, tokens, {"video_mme": tmp_path / "nowhere"})
    (tmp_path / "y.jsonl").mkdir()
    beginning = ["benchmark", "baseline"]
    ending = ["--study", str(study), "--out", str(tmp_path / "x.csv")]
    for command, words in (
        ([*beginning, "video_mme", *ending], "no folder"),
        (["benchmark", "nothing", "video_mme", *ending], "is no finished run"),
        ([*beginning, "video_mme", "--study", str(study), "--out", str(tmp_path)], "expected the name of a .csv file"),
        ([*beginning, "video_mme", "--study", str(study), "--out", str(study / "x.csv")], "study.yaml is a file"),
        ([*beginning, "video_mme", "--study", str(study), "--out", str(tmp_path / "y.csv")], "y.jsonl is a folder"),
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
    code = "import sys; import fvlm.use.benchmark; print({'torch', 'scipy', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_demo_has_two_questions_about_each_video_with_all_answers_in_turn(tmp_path):
    make_corpus("benchmark", tmp_path / "demo", samples=24, seed=7, processes=1)
    found = questions_of("demo", tmp_path / "demo")
    assert len(found.usable) == 24 and len({question.video for question in found.usable}) == 12
    assert {question.categories["task"] for question in found.usable} == {"what", "where", "when", "how many", "order"}
    assert all(len(set(question.options)) == 4 for question in found.usable)
    assert len({question.answer for question in found.usable}) == 4
    assert len(load_frames(found.usable[0].media, lambda one: decode(one, tmp_path / "demo"), 64, 1).frames) == 4


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
    model, frames, options = SmolVLM2(smolvlm, 5), frames_of(3), ["red", "a long answer"]
    video = model.video(frames)
    losses = video.losses("Which?", options)
    assert model.tokens_per_frame == 4
    ids = model.ids(f"{model.text_of(frames, 'Which?')} a long answer<end_of_utterance>")
    assert int((ids == model.model.config.image_token_id).sum()) == 3 * 4
    pixels = torch.nn.functional.interpolate(
        torch.from_numpy(frames.frames).movedim(-1, 1).float() / 127.5 - 1, (64, 64), mode="bicubic", antialias=True
    )
    with torch.no_grad():
        logits = model.model(input_ids=ids[None], pixel_values=pixels[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")[-len(losses[1]) :]
    assert losses[1] == pytest.approx(expected.tolist(), rel=1e-4)
    assert video.losses("Which?", options[::-1])[1] == pytest.approx(losses[0], rel=1e-5)
    assert video.losses("Which?", ["a long answer"], "The")[0] != pytest.approx(losses[1], rel=1e-6)
    assert video.seen_in("direct", [2, 0, 1]).losses("Which?", ["red"])[0] != pytest.approx(losses[0], rel=1e-6)


@torch.no_grad()
def test_smolvlm2_writes_the_most_likely_tokens(smolvlm):
    model = SmolVLM2(smolvlm, 5)
    video = model.video(frames_of(2))
    for start in ("", "Best option:("):
        embedded, ids = video._prompt("Which?", start), []
        for _ in range(5):
            ids.append(int(model.model(inputs_embeds=embedded).logits[0, -1].argmax()))
            embedded = torch.cat([embedded, model.embed(torch.tensor(ids[-1:]))], 1)
        assert video.ask("Which?", start) == model.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_smolvlm2_is_asked_in_the_form_of_its_processor(smolvlm):
    model = SmolVLM2(smolvlm, 5)
    place = "<fake_token_around_image><global-img>" + 4 * "<image>" + "<fake_token_around_image>"
    text = model.text_of(frames_of(2), "Which?")
    assert text == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:00:01 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{place}\nFrame from 00:01:{place}\n\nWhich?<end_of_utterance>\nAssistant:"
    )
    assert model.text_of(NO_FRAMES, "Which?") == "<|im_start|>User: Which?<end_of_utterance>\nAssistant:"
    assert [_in_words(n) for n in (1, 20, 64)] == ["one", "twenty", "sixty-four"]


def test_weights_of_smolvlm2_answer_a_benchmark(tmp_path, tokens, smolvlm, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = study_with(tmp_path, tokens, {"demo": demo(tmp_path / "d")})
    command = ["benchmark", str(smolvlm), "demo", "--study", str(study), "--out", str(tmp_path / "x.csv")]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "x.csv")
    assert set(table["run"]) == {"SmolVLM2-tiny"} and set(table["mode"]) == {"direct"}


@pytest.mark.parametrize(
    "content", [{"model_type": "llama"}, {"model_type": "fvlm", "auto_map": {"AutoConfig": "a.B"}}]
)
def test_weights_of_other_models_are_refused_in_a_sentence(tmp_path, tokens, monkeypatch, capsys, content):
    """Also an exported folder without run.json, whose code transformers would offer to run."""
    monkeypatch.chdir(ROOT)
    study = study_with(tmp_path, tokens, {"demo": demo(tmp_path / "d")})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(content))
    command = ["benchmark", str(tmp_path / "other"), "demo", "--study", str(study), "--out", str(tmp_path / "x.csv")]
    assert main(command) == 2
    printed = capsys.readouterr()
    sentence = f"{tmp_path / 'other'}: its model is {content['model_type']!r}; expected SmolVLM2"
    assert sentence in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""
