"""`fvlm ask`, `chat` and `caption`: answers of a finished run about files, and mistakes of the user."""

import io
import json
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fvlm.__main__ import main
from fvlm.data.shards.text import END, SYSTEM_PROMPT, encode_chat, encode_prompt, load_tokenizer, question_length
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.generate import Reading, sampled
from fvlm.use import caption
from fvlm.use.answer import Answers, Video, pieces, prompt_batch
from fvlm.use.chat import Conversation
from fvlm.use.options import FinishedRun
from tests.decode_cases import X264, endless, write
from tests.evaluate_cases import finished, make_held_out, run_of, shown_frames, talkative
from tests.model_cases import by_argmax

QUESTIONS = ["What colour is it?", "What is in it?", "What colour is it?"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("ask") / "results")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("videos") / "street.mp4", "160x120", "25", 3, X264)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def make_run(data, tmp_path):
    """Writes a finished run with these settings and returns (folder, run, model)."""

    def make(**settings):
        run, _ = run_of(data, **settings)
        model = talkative(run, load_tokenizer(data / "tokenizer"))
        if not (tmp_path / "tokenizer").exists():
            (tmp_path / "tokenizer").symlink_to(data / "tokenizer")
        return finished(tmp_path / "runs/baseline", run, model), run, model

    return make


@torch.no_grad()
def answer_by_hand(model, run, tokenizer, file, messages: list[dict], still: bool = False, mode=None) -> str:
    """The answer to a conversation that ends with a question, by whole forward passes, in 6 tokens."""
    ids, mask = encode_chat(tokenizer, {"messages": [*messages, {"role": "assistant", "content": "red"}]})
    end = len(mask) - int(np.argmax(mask[::-1]))  # of the last answer
    prompt = ids[: end - int(np.argmin(mask[:end][::-1]))]
    before = question_length(tokenizer, ids, mask) if run.data.question_first > 0.5 else 0
    frames = shown_frames(file, run)
    batch = prompt_batch(frames, run.data.static_frames if still else len(frames), prompt, before)
    answer = by_argmax(model, batch, 6, mode or run.model.variant.inference_mode)
    assert len(set(answer)) > 2
    return tokenizer.decode(answer).strip()


def asked(question: str) -> dict:
    return {"role": "user", "content": question}


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        ("foveated", None),
        ("foveated", "coarse_fine"),
        ("foveated", "coarse_only"),
        ("multi_token", None),
        ("blind", None),
    ],
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_each_answer_is_the_repeated_argmax_of_whole_passes(make_run, video, capsys, architecture, mode, share):
    """Also of the second and third question, which do not see the others."""
    folder, run, model = make_run(**{"model.architecture": architecture, "data.question_first": share})
    options = ["--mode", mode] if mode else []
    assert main(["ask", str(video), *QUESTIONS, "--run", str(folder), "--tokens", "6", *options]) == 0
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    answers = [answer_by_hand(model, run, tokenizer, video, [asked(q)], mode=mode) for q in QUESTIONS]
    printed = capsys.readouterr()
    assert printed.out == "".join(f"> {q}\n{answer}\n" for q, answer in zip(QUESTIONS, answers, strict=True))
    assert ("no encoder" in printed.err) == (architecture == "blind")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_frame_is_encoded_once_whatever_is_asked(make_run, video, monkeypatch, capsys, share):
    folder, _, _ = make_run(**{"data.question_first": share})
    encode, frames = VideoLanguageModel.encode, []
    monkeypatch.setattr(VideoLanguageModel, "encode", lambda model, f: frames.append(len(f)) or encode(model, f))
    assert main(["ask", str(video), *QUESTIONS, "--run", str(folder)]) == 0
    assert frames == [3]


def test_an_image_is_shown_as_in_training(make_run, picture, capsys):
    folder, run, model = make_run(**{"data.static_frames": 4})
    main(["ask", str(picture), QUESTIONS[0], "--run", str(folder), "--tokens", "6"])
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    answer = answer_by_hand(model, run, tokenizer, picture, [asked(QUESTIONS[0])], still=True)
    assert capsys.readouterr().out == answer + "\n"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_conversation_keeps_its_history(make_run, video, capsys, monkeypatch, share):
    """The second answer is that behind the first question and answer, as in a training sample of several turns."""
    folder, run, model = make_run(**{"data.question_first": share})
    monkeypatch.setattr(sys, "stdin", io.StringIO("What colour is it?\n\n  And now?  \n"))
    assert main(["chat", str(video), "--run", str(folder), "--tokens", "6"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    tokenizer = load_tokenizer(folder.parents[1] / "tokenizer")
    messages = [asked("What colour is it?")]
    assert first == answer_by_hand(model, run, tokenizer, video, messages)
    messages += [{"role": "assistant", "content": first}, asked("And now?")]
    assert second == answer_by_hand(model, run, tokenizer, video, messages)
    assert second != answer_by_hand(model, run, tokenizer, video, messages[-1:])


def test_a_long_conversation_forgets_its_oldest_turns(make_run, video, capsys, monkeypatch, data):
    run, _ = run_of(data)
    prompt = len(encode_prompt(load_tokenizer(data / "tokenizer"), "And now?"))
    language = run.model.language.model_copy(update={"max_positions": prompt + 3 + 40})
    folder, _, model = make_run()
    finished(folder, run.model_copy(update={"model": run.model.model_copy(update={"language": language})}), model)
    monkeypatch.setattr(sys, "stdin", io.StringIO("And now?\n" * 6))
    assert main(["chat", str(video), "--run", str(folder), "--tokens", "6"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 6 and answers[0] != answers[1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_answer_that_ctrl_c_ends_changes_no_later_one(make_run, video, capsys, monkeypatch, share):
    """While frames are read (after the question, if that stands first), and while the answer is generated."""
    folder, _, _ = make_run(**{"data.question_first": share})
    answers, frames, later = Answers(folder, None, 6), FinishedRun(folder).frames(video), []
    for interrupted in ("take_frames", "next_token"):
        conversation, calls = Conversation(Video(answers)), []
        for frame in frames.frames:
            conversation.video.show(frame[None])
        method = getattr(Reading, interrupted)

        def once(*arguments, calls=calls, method=method):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return method(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Reading, interrupted, once)
            conversation.say(QUESTIONS[0])
        conversation.turns.clear()
        capsys.readouterr()
        conversation.say(QUESTIONS[0])
        later.append(capsys.readouterr().out)
    assert later == ["".join(answers.video(frames).ask(QUESTIONS[0])) + "\n"] * 2


def test_a_question_that_is_no_text_is_refused(make_run, video, capsys, monkeypatch):
    folder, _, _ = make_run()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert main(["chat", str(video), "--run", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a question is no text" in error and "expected one in utf-8" in error


def test_a_small_temperature_draws_the_most_likely_token():
    logits = torch.tensor([1.0, 300.0, 2.0, 299.0])
    assert [sampled(temperature, 0)(logits) for temperature in (1e-3, 1e-40, 5e-324)] == [1, 1, 1]


def test_draws_are_repeated_by_their_seed(make_run, video, capsys):
    folder, _, _ = make_run()
    answers = []
    for options in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"]):
        main(["ask", str(video), *QUESTIONS, "--run", str(folder), "--temperature", "1", *options])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]
    first, _, third = answers[0].split("> ")[1:]
    assert first == third  # the same question has the same answer, whatever was asked before


# --- pieces of text ---


@pytest.mark.parametrize("text", ["a red square", "ü and 漢字 and 🙂, 🙂", " \n white space \n", "ends half 🙂"])
def test_pieces_hold_whole_characters_and_make_up_the_text(tokenizer, text):
    """The tokenizer has single bytes for what it has not seen."""
    tokens = load_tokenizer(tokenizer)
    ids = tokens.encode(text).ids
    ids = ids[:-1] if text.startswith("ends") else ids
    parts = list(pieces(ids, tokens.decode))
    assert "".join(parts) == tokens.decode(ids).strip() and (len(parts) > 2 or text.strip() != text)
    assert all("\ufffd" not in part for part in parts[:-1])


def test_control_characters_do_not_reach_the_terminal():
    assert "".join(pieces([0], lambda ids: "a\x1b[2Jb\x07\x9bc\td\ne")) == "a [2Jb  c\td\ne"


# --- many captions ---


def test_captions_go_on_behind_the_last_one_and_bad_files_are_counted(make_run, video, picture, tmp_path, capsys):
    folder, _, _ = make_run()
    text, gone, out = tmp_path / "text.mp4", tmp_path / "gone.mp4", tmp_path / "captions.jsonl"
    text.write_text("no video")
    files = [str(text), str(picture), str(gone), str(video)]
    command = ["caption", *files, "--run", str(folder), "--tokens", "6", "--out", str(out)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{text} cannot be decoded (not_media" in error and f"{gone} cannot be decoded (missing" in error
    assert "2 of 4 files have no caption (1 not_media, 1 missing)" in error
    whole = out.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    assert [record["file"] for record in records] == [str(picture), str(video)]
    assert [record["frames"] for record in records] == [1, 3] and all(record["caption"] for record in records)
    lines = whole.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1][:20])  # as a kill leaves it
    text.unlink()
    write(text, "160x120", "25", 2, X264)
    gone.write_bytes(video.read_bytes())
    assert main(command) == 0
    assert "1 of 4 files have a caption" in capsys.readouterr().err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(record["file"] for record in records) == sorted(files)
    assert main(command) == 0 and out.read_text().count("\n") == 4


def test_a_folder_alone_is_named_as_what_it_is(make_run, tmp_path, capsys):
    folder, _, _ = make_run()
    assert main(["caption", str(tmp_path), "--run", str(folder)]) == 2
    assert f"{tmp_path} cannot be decoded (missing: {tmp_path}: not a regular file)" in capsys.readouterr().err


def test_a_file_that_cannot_be_decoded_in_time_costs_itself_only(make_run, video, tmp_path, capsys, monkeypatch):
    folder, _, _ = make_run()
    stuck = endless(tmp_path / "stuck.jpg")
    monkeypatch.setattr(caption, "DEADLINE_S", 2)
    assert main(["caption", str(stuck), str(video), "--run", str(folder), "--tokens", "6"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{video}: ") and printed.out.count("\n") == 1
    assert f"{stuck} cannot be decoded (timeout: {stuck}: not decoded within 2 s)" in printed.err
    assert "1 of 2 files have no caption (1 timeout)" in printed.err


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--tokens", "5"], "tokens 6, this command 5"),
        (["--question", "What?"], "question 'Say what happens in the video.', this command 'What?'"),
        (["--mode", "coarse_only"], "mode 'autoregressive', this command 'coarse_only'"),
        (["--temperature", "1"], "temperature None, this command 1.0"),
    ],
)
def test_captions_of_another_kind_are_not_mixed(make_run, video, tmp_path, capsys, options, fact):
    folder, _, _ = make_run()
    command = ["caption", str(video), "--run", str(folder), "--tokens", "6", "--out", str(tmp_path / "captions.jsonl")]
    assert main(command) == 0
    assert main([*command, *options]) == 2
    assert fact in capsys.readouterr().err


def test_a_file_of_something_else_is_not_continued(make_run, video, tmp_path, capsys):
    folder, _, _ = make_run()
    out = tmp_path / "notes.txt"
    for content in (b"my notes\n", b"my notes", b"\xff\xd8 an image", b'{"file": "a.mp4"}\n', b"[1]\n"):
        out.write_bytes(content)
        assert main(["caption", str(video), "--run", str(folder), "--out", str(out)]) == 2
        assert "name another --out" in capsys.readouterr().err and out.read_bytes() == content


def test_captions_of_any_name_and_text_are_resumed(make_run, video, tmp_path, capsysbinary):
    """Of a name that is no UTF-8, and a question with a line break of Unicode, which is none of JSON."""
    folder, _, _ = make_run()
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9\xe2\x80\xa8.mp4"))
    odd.symlink_to(video)
    command = ["caption", str(odd), str(odd), "--run", str(folder), "--tokens", "6", "--question", "Was\u2028ist da?"]
    assert main(command) == 0
    assert b"caf?" in capsysbinary.readouterr().out
    out = tmp_path / "captions.jsonl"
    for _ in range(2):
        assert main([*command, "--out", str(out)]) == 0
    (record,) = map(json.loads, out.read_text().splitlines())
    assert record["file"] == str(odd) and record["question"] == "Was\u2028ist da?"


@pytest.mark.parametrize("command", ["caption", "look"])
def test_a_name_that_no_file_can_have_is_refused_before_the_work(make_run, video, tmp_path, capsys, command):
    folder, _, _ = make_run()
    for out, fact in ((tmp_path, "is a folder"), (video / "out", f"{video} is a file")):
        assert main([command, str(video), "--run", str(folder), "--out", str(out)]) == 2
        assert fact in capsys.readouterr().err


# --- mistakes ---


@pytest.mark.parametrize(
    ("file", "questions", "options", "facts"),
    [
        ("sound.wav", ["What?"], [], ["sound.wav", "no_video_stream", "expected a video"]),
        ("empty.mp4", ["What?"], [], ["empty.mp4", "0 bytes"]),
        ("gone.mp4", ["What?"], [], ["gone.mp4", "no such file"]),
        (".", ["What?"], [], ["no such file"]),
        ("street.mp4", [""], [], ["a question is empty"]),
        ("street.mp4", ["What?", " \n"], [], ["a question is empty"]),
        ("street.mp4", ["What?"], ["--mode", "direct"], ["'direct'", "coarse_only, coarse_fine, autoregressive"]),
        ("street.mp4", ["What?"], ["--temperature", "-1"], ["--temperature is -1"]),
        ("street.mp4", ["What?"], ["--temperature", "nan"], ["--temperature is nan"]),
        ("street.mp4", ["What?"], ["--temperature", "inf"], ["--temperature is inf"]),
        ("street.mp4", ["What?"], ["--seed", str(2**64)], ["--seed is 18446744073709551616"]),
        ("street.mp4", ["Is \udce9 red?"], [], ["a question cannot be read", "UTF-8"]),
        ("street.mp4", ["red " * 300_000], [], ["a question cannot be read", "1,048,576"]),
        ("picture", ["What?"], [], ["a JPEG picture", "ends in .jpg"]),
        ("no frames.mp4", ["What?"], [], ["no frames.mp4"]),
        ("street.mp4", ["What?"], ["--tokens", "0"], ["--tokens is 0"]),
        ("street.mp4", ["What?"], ["--every", "3"], ["--every is 3", "stream"]),
        ("street.mp4", ["red blue " * 4500], [], ["tokens; the language model has 8,192 positions", "shorten"]),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(make_run, video, tmp_path, capsys, file, questions, options, facts):
    folder, _, _ = make_run()
    (tmp_path / "street.mp4").symlink_to(video)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "sound.wav").write_bytes(silence())
    Image.new("RGB", (64, 48)).save(tmp_path / "picture", "JPEG")
    write(tmp_path / "no frames.mp4", "64x48", "25", 1, X264, [("select", "0")])
    assert main(["ask", str(tmp_path / file), *questions, "--run", str(folder), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert all(fact in printed.err for fact in facts), printed.err


def silence() -> bytes:
    """A second of sound without a picture, as a WAV file."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    return content.getvalue()


def test_a_chat_without_a_question_is_refused(make_run, video, capsys, monkeypatch):
    folder, _, _ = make_run()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["chat", str(video), "--run", str(folder)]) == 2
    assert "standard input has no question" in capsys.readouterr().err


def test_of_a_video_of_ten_hours_64_frames_are_read(make_run, tmp_path, capsys):
    folder, _, _ = make_run()
    film = write(tmp_path / "film.mp4", "64x48", "1/12", 36_000, {**X264, "g": 10})
    answers = Answers(folder, None, 4)
    frames = FinishedRun(folder).frames(film)
    assert len(frames.frames) == 64 and len(np.unique(frames.frames, axis=0)) == 64
    assert "".join(answers.video(frames).ask("What?"))


def test_a_question_is_a_prompt_without_an_answer(data):
    tokenizer = load_tokenizer(data / "tokenizer")
    ids = encode_prompt(tokenizer, "And now?", [("What?", "red")])
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    assert text == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}{END}\n<|im_start|>user\nWhat?{END}\n<|im_start|>assistant\nred{END}\n"
        f"<|im_start|>user\nAnd now?{END}\n<|im_start|>assistant\n"
    )
