"""`fvlm evaluate`, `attention` and `caption`, and finished runs that cannot be read."""

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fvlm.__main__ import main
from fvlm.analysis.plots.attention import heatmaps
from fvlm.config.schema import Run
from fvlm.data.shards.text import encode_chat, load_tokenizer, question_length
from fvlm.errors import UserError
from fvlm.evaluate import losses
from fvlm.evaluate.load import load_run
from fvlm.evaluate.maps import attention_maps, fixed_videos
from fvlm.evaluate.read import read_run
from fvlm.model.build import build_model
from fvlm.train.ranks import Ranks
from fvlm.train.watch import Watch
from fvlm.use.answer import prompt_batch
from fvlm.use.options import shown_like
from tests.conftest import ROOT
from tests.decode_cases import X264, write
from tests.evaluate_cases import (
    finished,
    finished_study,
    has_frames,
    make_chats,
    make_held_out,
    model_of,
    run_of,
    shown_frames,
    talkative,
)
from tests.model_cases import by_argmax
from tests.train_cases import study_in, trained

CPU = torch.device("cpu")
NO_AUTOCAST = torch.autocast("cpu", enabled=False)
COLUMNS = ["run", "order", "mode", "frames", "source", "kind", "key", "group", "loss_sum", "tokens",
           "loss_sum_without_end", "tokens_without_end", "entropy"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_held_out(tmp_path_factory.mktemp("evaluate") / "results")


@pytest.fixture
def study(data, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    return finished_study(data, tmp_path)


def evaluate(study: Path, out: str = "table.csv") -> Path:
    table = study.with_name(out)
    assert main(["evaluate", "baseline", "--out", str(table), "--study", str(study)]) == 0
    return table


def rows_of(table: Path) -> list[dict]:
    with table.open() as file:
        return list(csv.DictReader(file))


# --- the table, and resuming ---


def stopped_after_a_batch(study: Path, monkeypatch) -> None:
    """Leave the file of an evaluation that ended with an error after its first batch."""
    score, calls = losses.score, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise UserError("stopped")
        return score(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(losses, "score", failing)
        assert main(["evaluate", "baseline", "--out", str(study.with_name("table.csv")), "--study", str(study)]) == 2
    assert len(study.with_name("table.scored.jsonl").read_text().splitlines()) == 2


def other_weights(study: Path, data: Path) -> None:
    run, _ = run_of(study.parent / "results")
    finished(study.parent / "results/runs/baseline", run, build_model(run.model, 1))


def other_samples(study: Path, data: Path) -> None:
    study.write_text(study.read_text().replace("samples: 40", "samples: 7"))


def other_texts(study: Path, data: Path) -> None:
    results = study.parent / "results"
    for name in ("index", "chat_held_out.tar"):
        (results / name).unlink()
    shutil.copytree(data / "index", results / "index")
    make_chats(results, first=1)


@pytest.mark.parametrize("change", [None, other_weights, other_samples, other_texts])
def test_an_interrupted_evaluation_resumes_unless_its_weights_or_data_are_others(
    study, data, monkeypatch, capsys, change
):
    stopped_after_a_batch(study, monkeypatch)
    if change is not None:
        change(study, data)
    capsys.readouterr()
    resumed = evaluate(study).read_bytes()
    assert ("batch 1 of" in capsys.readouterr().err) == (change is not None)
    assert resumed == evaluate(study, "fresh.csv").read_bytes()
    assert not study.with_name("table.scored.jsonl").exists()


def test_an_evaluation_in_another_precision_or_version_starts_anew(data, tmp_path, monkeypatch):
    run, study = run_of(data, **{"train.precision": "bfloat16"})
    folder, steps = finished(tmp_path, run), losses.held_out_samples(run, study)
    hashes = {losses.identity(run, study, folder, steps, torch.device(device)) for device in ("cpu", "cpu", "cuda")}
    for name, value in {"__version__": "other", "COLUMNS": losses.COLUMNS[:-1]}.items():
        with monkeypatch.context() as patched:
            patched.setattr(losses, name, value)
            hashes.add(losses.identity(run, study, folder, steps, CPU))
    assert len(hashes) == 4


def test_the_table_has_the_documented_columns(study):
    rows = rows_of(evaluate(study))
    assert list(rows[0]) == COLUMNS
    for row in rows:
        assert row["run"] == "baseline" and int(row["tokens"]) > int(row["tokens_without_end"]) > 0
        assert float(row["loss_sum"]) > float(row["loss_sum_without_end"]) > 0
        assert (row["entropy"] != "") == (row["frames"] == "own" and has_frames(row["key"]))


# --- attention maps ---


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_attention_maps_sum_to_1_and_are_in_the_order_of_the_frames(data, share):
    """Frame t's coarse map is that of the frame alone; its fine map does not change if the later frames are cut off."""
    run, study = run_of(data, **{"data.question_first": share})
    model = model_of(run)
    run = run.model_copy(update={"model": model.config})
    videos = fixed_videos(run, study, 3)
    arrays = attention_maps(run, model, videos, CPU, NO_AUTOCAST)
    assert len(videos) == len(set(arrays["keys"].tolist())) == 3 and set(arrays["sources"].tolist()) == {"grid"}
    side = round(run.model.encoder.patches**0.5)
    for k in range(len(videos)):
        (batch,) = videos[k]
        frames, entropy = arrays[f"frames_{k}"], arrays[f"entropy_fine_{k}"]
        frames_of_batch = batch.frames[batch.frame_index]
        assert np.array_equal(frames, frames_of_batch) and len(frames) > 1
        assert (entropy > 0).all() and (entropy < np.log(run.model.encoder.patches + 1) + 1e-6).all()
        assert str(arrays["captions"][k]).startswith("What colour is it? ")
        for t in range(len(frames)):
            count = torch.tensor([t + 1])
            start = replace(batch, frames=frames_of_batch[: t + 1], frame_index=torch.arange(t + 1), frame_counts=count)
            with torch.no_grad():
                output = model(start, "coarse_fine", with_attention=True)
            for name, attention in (("fine", output.fine), ("coarse", output.coarse)):
                maps = arrays[f"{name}_{k}"]
                assert maps.shape == (len(frames), side, side) and maps[t].sum() == pytest.approx(1, rel=1e-5)
                np.testing.assert_allclose(maps[t].ravel(), attention.patches[-1], rtol=1e-5)
    assert not np.allclose(arrays["fine_0"], arrays["fine_0"][::-1], rtol=1e-3)  # the order matters


def test_the_command_writes_the_maps_that_the_figure_draws(study, tmp_path):
    out = tmp_path / "maps.npz"
    assert main(["attention", "baseline", "--out", str(out), "--study", str(study)]) == 0
    _, numbers = heatmaps([out])
    with np.load(out) as arrays:
        assert list(dict.fromkeys(numbers["key"])) == arrays["keys"].tolist()[:3]


@pytest.mark.parametrize("settings", [{}, {"model.fine_pass": False}], ids=["fine pass", "coarse only"])
def test_the_figure_draws_the_maps_of_a_run_that_still_trains(data, tmp_path, settings):
    """Of a video with more frames than the figure has columns, training stores the maps of all, and 8 frames."""
    run, study = run_of(data, **settings, **{"operation.attention_videos": 3})
    model = model_of(run)
    watch = Watch(run.model_copy(update={"model": model.config}), study, tmp_path)
    watch(model, 5, CPU, NO_AUTOCAST, Ranks())
    file = tmp_path / "attention/step_00000005.npz"
    with np.load(file) as arrays:
        frames = [len(arrays[f"entropy_fine_{k}"]) for k in range(3)]
        assert max(frames) > 8 and [len(arrays[f"frames_{k}"]) for k in range(3)] == [min(n, 8) for n in frames]
        first_and_last = [[float(arrays[f"entropy_fine_{k}"][i]) for i in (0, -1)] for k in range(3)]
    figure, numbers = heatmaps([file])
    assert set(numbers["run"]) == {file.stem} and numbers["column"].max() == 7
    assert len(figure.subfigs[0].axes) == 8 * (2 if settings else 3) + 1
    drawn = [rows["entropy_fine"].iloc[[0, -1]].tolist() for _, rows in numbers.groupby("key", sort=False)]
    assert drawn == first_and_last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.architecture": "blind"}, "blind"),
        ({"data.max_frames": 1}, "data.max_frames is 1, so the model reads one frame of a video"),
        ({"data.sources": ["chat"], "data.share": {"text": 1.0}}, "held_out"),
    ],
)
def test_a_run_without_attention_or_videos_is_refused(data, tmp_path, monkeypatch, capsys, settings, message):
    monkeypatch.chdir(ROOT)
    study = finished_study(data, tmp_path, **settings)
    assert main(["attention", "baseline", "--out", str(tmp_path / "maps.npz"), "--study", str(study)]) == 2
    error = capsys.readouterr().err
    assert "'baseline'" in error and message in error and not (tmp_path / "maps.npz").exists()


# --- captions ---


QUESTION = "What is this?"


@pytest.fixture
def picture(tmp_path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    ("share", "mode", "most"),
    [(0.0, None, 64), (0.5, "coarse_fine", 64), (1.0, None, 2), (1.0, "coarse_only", 64)],
)
@torch.no_grad()
def test_a_caption_is_the_repeated_argmax_of_full_forward_passes(data, tmp_path, picture, capsys, share, mode, most):
    """The question stands before the frames if it did so in more than half of the run's training samples."""
    (tmp_path / "tokenizer").symlink_to(data / "tokenizer")
    run, _ = run_of(data, **{"data.question_first": share, "data.max_frames": most})
    tokenizer = load_tokenizer(data / "tokenizer")
    model = talkative(run, tokenizer)
    folder = finished(tmp_path / "runs/baseline", run, model)
    video = write(tmp_path / "video.mp4", "160x120", "25", 3, X264)
    ids, mask = encode_chat(tokenizer, {"user": QUESTION, "assistant": "red"})  # as a training sample
    prompt, question = ids[: int(np.argmax(mask))], question_length(tokenizer, ids, mask)
    options = ["--mode", mode] if mode else []
    main(["caption", str(picture), str(video), "--run", str(folder), "--question", QUESTION, "--tokens", "6", *options])
    printed = capsys.readouterr().out
    for file, frames in ((picture, run.data.static_frames), (video, min(3, run.data.max_frames))):
        shown = shown_frames(file, run)
        batch = prompt_batch(shown, frames, prompt, question if share > 0.5 else 0)
        assert batch.frame_counts.tolist() == [frames]
        answer = by_argmax(model, batch, 6, mode or "autoregressive")
        assert len(set(answer)) > 3 and f"{file}: {tokenizer.decode(answer).strip()}\n" in printed


@pytest.mark.parametrize(
    ("file", "options", "facts"),
    [("picture.png", ["--mode", "direct"], ["direct", "coarse_fine"]), ("study.yaml", [], ["study.yaml", "video"])],
)
def test_a_caption_in_an_unknown_mode_or_of_no_video_is_refused(study, picture, capsys, file, options, facts):
    folder = study.parent / "results/runs/baseline"
    assert main(["caption", str(study.with_name(file)), "--run", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert all(fact in error for fact in facts), error


def shown(kind: str, crop: bool, prompt: str) -> dict:
    return {"kind": kind, "crop": crop, "prompt": prompt}


@pytest.mark.parametrize(
    ("kind", "expected", "warned"),
    [
        ("video", shown("video", False, "Describe."), ["squashed", "clips"]),
        ("image", shown("image", True, "What?"), []),
    ],
)
def test_a_file_is_shown_as_the_sources_of_its_kind(capsys, kind, expected, warned):
    sources = {
        "chat": shown("text", True, "Say."), "films": shown("video", False, "Describe."),
        "pictures": shown("image", True, "What?"), "clips": shown("video", True, "Tell."),
    }  # fmt: skip
    assert shown_like(sources, kind, "A6") == expected
    error = capsys.readouterr().err
    assert all(word in error for word in warned) and bool(error) == bool(warned)
    assert shown_like({"films": sources["films"]}, "image", "A6") == sources["films"]
    assert shown_like({}, kind, "A6") == {}


def test_a_shallow_run_of_an_earlier_version_is_refused(tmp_path):
    """Its weights have the same names and shapes, but their query was another one."""
    study = study_in(tmp_path, baseline={"model.deep_query": False})
    folder = finished(tmp_path / "runs", study.runs["baseline"])
    summary = folder / "run_summary.json"
    for digest, refused in (("of an earlier version", True), (study.runs["baseline"].digest, False)):
        summary.write_text(json.dumps({"run": "baseline", "digest": digest}))
        with pytest.raises(UserError, match="shallow query of an earlier version") if refused else nullcontext():
            load_run(folder)


def test_a_run_saves_how_its_sources_show_their_samples(prepared, tmp_path):
    trained(prepared, tmp_path)
    run, beside = read_run(tmp_path / "baseline")
    sources = beside["sources"]
    study = study_in(prepared)
    assert run == study.runs[run.name] and set(sources) == set(run.data.sources)
    assert all(entry["crop"] is True and entry["prompt"] == study.sources[n].prompt for n, entry in sources.items())


@pytest.mark.parametrize(
    "arguments",
    ["evaluate nowhere --out x", "attention nowhere --out x", "caption x.mp4 --run nowhere", "train nowhere",
     "ask x.mp4 What? --run nowhere", "chat x.mp4 --run nowhere", "look x.mp4 --run nowhere --out x",
     "preflight --study nowhere.yaml", "calibrate nowhere"],
)  # fmt: skip
def test_a_wrong_path_or_name_is_reported_without_torch(arguments):
    code = "import sys; from fvlm.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 False\n", done
    assert "Traceback" not in done.stderr


# --- runs that cannot be read ---


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def of_another_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later_field": 1}))


def of_another_model(path: Path) -> None:
    run = Run.model_validate_json((path.parent / "run.json").read_text())
    blind = run.model.model_copy(update={"architecture": "blind"})
    (path.parent / "run.json").write_text(run.model_copy(update={"model": blind}).model_dump_json())


@pytest.mark.parametrize(
    ("name", "damage", "remedy"),
    [
        ("run.json", Path.unlink, "train it"),
        ("run.json", cut, "train it again"),
        ("run.json", of_another_version, "train it again"),
        ("best.safetensors", Path.unlink, "train the run again"),
        ("best.safetensors", cut, "train the run again"),
        ("best.safetensors", of_another_model, "train the run again"),
    ],
)
def test_a_run_that_cannot_be_read_names_file_and_remedy(data, tmp_path, name, damage, remedy):
    run, _ = run_of(data)
    file = finished(tmp_path, run) / "model" / name
    damage(file)
    with pytest.raises(UserError) as refused:
        load_run(tmp_path)
    assert str(file) in str(refused.value) and remedy in str(refused.value)
