"""`fvlm look`: where runs look, on which frames an answer depends, and the page in a browser."""

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaModel

from fvlm.__main__ import main
from fvlm.data.decode.video import decode_video
from fvlm.data.shards.text import load_tokenizer
from fvlm.model.pretrained import language_config
from fvlm.use.answer import Answers, prompt_batch
from fvlm.use.looking import Sample, added_text, held_out_samples, look
from fvlm.use.page import PageVideo, content_of, write_page
from tests.browser_cases import brightness, browse, in_a_browser, in_a_frame
from tests.conftest import ROOT
from tests.decode_cases import X264, write
from tests.evaluate_cases import as_frames, finished, make_held_out, run_of, talkative
from tests.evaluate_cases import content_of as study_content
from tests.model_cases import exact, visual_tokens
from tests.snakemake_cases import of

KINDS = {
    "foveated": {},
    "one_pass": {"model.fine_pass": False},
    "pooled": {"model.architecture": "multi_token"},
    "blind": {"model.architecture": "blind"},
    "asked_first": {"data.question_first": 1.0},
}
EVIL = '</script><img src=x onerror="document.title = 1"> & "quotes" \ud83d'


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind, and the study file of the first one; no test changes them."""
    root = tmp_path_factory.mktemp("look")
    results = make_held_out(root / "results")
    tokenizer, made = load_tokenizer(results / "tokenizer"), {"study": root / "study.yaml"}
    for name, settings in KINDS.items():
        run, _ = run_of(results, **settings)
        made[name] = finished(results / "runs" / name, run.model_copy(update={"name": name}), talkative(run, tokenizer))
    made["study"].write_text(yaml.safe_dump(study_content(results)))
    return made


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("videos") / "street.mp4", "160x120", "10", 5, X264)


def language_states(model, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states (M, E) of one sequence, by transformers; gradients reach the tokens."""
    llama = LlamaModel(language_config(model.config.language)).to(tokens.dtype).eval()
    llama.load_state_dict(model.llm.llama.state_dict())
    return llama(inputs_embeds=tokens[None], use_cache=False).last_hidden_state[0]


def sample(frames: int = 3, still: bool = False) -> Sample:
    noise = np.random.default_rng(0).integers(0, 256, (frames, 224, 224, 3), dtype=np.uint8)
    return Sample("street.mp4", noise, None if still else np.arange(frames) * 1.0, still, "What colour is it?")


# --- what the page shows ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("still", [False, True])
def test_the_answer_and_its_attention_are_those_of_the_run(folders, kind, still):
    answers = Answers(folders[kind], None, 6)
    one = sample(1 if still else 3, still)
    looked = look(answers, one)
    positions = answers.run.data.static_frames if still else None
    assert "".join(looked.tokens).strip() == "".join(answers.video(as_frames(one.frames, positions)).ask(one.question))
    count, side = (0 if kind == "blind" else positions or 3), answers.run.model.encoder.side
    expected = {"foveated": {"fine", "coarse"}, "asked_first": {"fine", "coarse"}, "one_pass": {"coarse"}}
    assert set(looked.passes) == expected.get(kind, set())
    assert looked.shown.tolist() == ([0] * count if still else list(range(count)))
    for patches, entropy in looked.passes.values():
        assert patches.shape == (count, side**2) and entropy.shape == (count,)
        np.testing.assert_allclose(patches.sum(1), 1, rtol=1e-5)
    if "fine" in looked.passes:
        fine, coarse = looked.passes["fine"][0], looked.passes["coarse"][0]
        assert not np.allclose(fine[1:], coarse[1:], rtol=1e-2)
        assert np.allclose(coarse[0], coarse[1], rtol=1e-5) == still  # the same query, at the same picture or another


@pytest.mark.parametrize("kind", ["foveated", "pooled", "asked_first"])
def test_the_dependence_is_the_gradient_of_whole_passes(folders, kind):
    """Of the log-odds of each token, by the exported model, in float64."""
    answers, one = Answers(folders[kind], None, 3), sample(3)
    model = answers.model.double()
    with torch.no_grad():  # with large weights the attention of the language model is nearly 0 or 1
        for parameter in model.llm.llama.layers.parameters():
            parameter /= 3
    looked, reference = look(answers, one), exact(model)
    before, behind = answers.prompt(one.question)
    video = answers.video(as_frames(one.frames))
    "".join(video.ask(one.question))
    answer = [*video.reading.text[len(behind) :], video.reading.waiting][: answers.tokens]
    batch = prompt_batch(one.frames, 3, [*before, *behind], len(before))
    with torch.no_grad():
        visual = visual_tokens(model, batch, answers.mode)
        text = model.llm.embed(torch.tensor(before + behind + answer))

    def likely(visual: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([text[: len(before)], visual, text[len(before) :]])
        states = reference.language_model(inputs_embeds=tokens[None], use_cache=False).last_hidden_state[0]
        logits = reference.lm_head(states[-len(answer) - 1 : -1])
        chances = logits.softmax(-1)[range(len(answer)), answer]
        return chances.log() - (1 - chances).log()

    jacobian = torch.autograd.functional.jacobian(likely, visual)  # tokens of the answer, visual tokens, width
    norms = jacobian.reshape(len(answer), 3, -1).norm(dim=2).numpy()
    assert looked.depends.shape == norms.shape == (3, 3)
    np.testing.assert_allclose(looked.depends, norms / norms.sum(1, keepdims=True), rtol=1e-4)
    assert norms.max() > 1.2 * norms.min()


def test_tokens_that_split_a_character_add_it_once(tokenizer):
    tokens = load_tokenizer(tokenizer)
    ids = tokens.encode("ü 漢, 🙂 red").ids
    parts = added_text(ids, tokens.decode)
    assert len(parts) == len(ids) and "".join(parts) == tokens.decode(ids) and "" in parts
    assert "".join(added_text(ids[:1], tokens.decode)) == tokens.decode(ids[:1])


def test_held_out_videos_come_with_their_first_question(folders):
    answers = Answers(folders["foveated"], None, 3)
    _, study = run_of(folders["study"].parent / "results")
    evaluation = study.evaluation.model_copy(update={"attention_videos": 3})
    samples = list(held_out_samples(answers.run, study.model_copy(update={"evaluation": evaluation})))
    assert len({one.name for one in samples}) == 3
    for one in samples:
        assert one.question == "What colour is it?" and one.reference in ("red", "green", "blue", "grey")
        assert one.about == "grid" and len(one.frames) > 1


def test_a_map_is_packed_as_one_byte_per_patch(folders):
    one = sample(3)
    looked = look(Answers(folders["foveated"], None, 3), one)
    (run,) = content_of(PageVideo(one, [(one, looked)]))["runs"]
    stored = np.frombuffer(base64.b64decode(run["maps"]["fine"]), np.uint8).reshape(3, -1)
    patches = looked.passes["fine"][0]
    expected = np.minimum(patches * patches.shape[1], run["scale"])
    np.testing.assert_allclose(stored / 255 * run["scale"], expected, atol=run["scale"] / 100)


# --- the command ---


def page_of(folders, video, out: Path, *kinds: str, question: str = "What colour is it?") -> Path:
    runs = [option for kind in kinds for option in ("--run", str(folders[kind]))]
    assert main(["look", str(video), question, *runs, "--tokens", "6", "--out", str(out)]) == 0
    return out


def data_in(page: Path) -> list[dict]:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*)</script>', page.read_text())[1])


def test_a_page_has_all_runs_and_says_what_one_lacks(folders, video, tmp_path):
    page = page_of(folders, video, tmp_path / "page.html", *KINDS)
    (content,) = data_in(page)
    assert [run["name"] for run in content["runs"]] == list(KINDS)
    assert len(content["pictures"]) == 5  # equal frames are there once
    lacks = {run["name"]: run["missing"] for run in content["runs"]}
    assert lacks["foveated"] == lacks["asked_first"] == ""
    assert "no fine pass" in lacks["one_pass"] and "no encoder" in lacks["blind"]
    assert "pools each frame into 16 tokens" in lacks["pooled"]
    assert content["runs"][0]["times"] == [0, 1, 2, 3, 4]


def test_runs_of_one_name_are_told_apart_by_their_folders(folders, video, tmp_path, monkeypatch):
    monkeypatch.chdir(folders["foveated"].parents[2])
    out = tmp_path / "exported"
    assert main(["export", "results/runs/foveated", "--out", str(out)]) == 0
    runs = ["--run", "results/runs/foveated", "--run", str(out)]
    assert main(["look", str(video), "What?", *runs, "--tokens", "3", "--out", str(tmp_path / "page.html")]) == 0
    first, second = data_in(tmp_path / "page.html")[0]["runs"]
    assert first.pop("name") == "results/runs/foveated" and second.pop("name") == str(out)
    assert first == second  # the exported folder looks where its run does


def test_a_film_shows_each_frame_for_a_second(folders, video, tmp_path):
    film = tmp_path / "film.mp4"
    runs = ["--run", str(folders["foveated"]), "--run", str(folders["blind"])]
    command = ["look", str(video), "What?", *runs, "--tokens", "3", "--out", str(tmp_path / "page.html")]
    assert main([*command, "--video", str(film)]) == 0
    clip = decode_video(film, crop=False)
    assert clip.duration_s == 5 and len(clip.frames) == 5
    fine, coarse, plain = np.split(clip.frames[:, 24:], [75, 150], axis=2)
    assert plain.mean() > fine.mean() + 20 and plain.mean() > coarse.mean() + 20
    assert len(np.unique(plain.reshape(5, -1), axis=0)) == 5


def test_a_page_loads_nothing(folders, video, tmp_path):
    text = page_of(folders, video, tmp_path / "page.html", "foveated").read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"$]", text) == [] and "url(" not in text and "import" not in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_held_out_videos_of_a_study_are_on_one_page(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out, options = tmp_path / "page.html", ["--study", str(folders["study"])]
    runs = ["--run", str(folders["foveated"]), "--run", str(folders["pooled"])]
    assert main(["look", *runs, "--tokens", "3", "--out", str(out), *options]) == 0
    contents = data_in(out)
    assert len(contents) == 2 and all(len(content["runs"]) == 2 for content in contents)
    assert all(content["reference"] for content in contents)


def test_a_run_of_another_study_is_refused(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run = tmp_path / "results/runs/foveated"
    shutil.copytree(folders["foveated"], run)
    (tmp_path / "results/tokenizer").symlink_to(folders["foveated"].parents[1] / "tokenizer")
    (run / "model/run.json").write_text((run / "model/run.json").read_text().replace('"grid"', '"mine"'))
    command = ["look", "--run", str(run), "--out", str(tmp_path / "page.html")]
    assert main([*command, "--study", str(folders["study"])]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "'mine', which study 'smoke' does not have" in printed.err, printed.err


def test_texts_of_videos_cannot_become_part_of_the_page(folders, tmp_path):
    answers = Answers(folders["foveated"], None, 3)
    one = replace(sample(2), name=EVIL, question=EVIL, reference=EVIL, about=EVIL)
    looked = replace(look(answers, sample(2)), tokens=[EVIL, "b", "c"])
    write_page(tmp_path / "page.html", [PageVideo(one, [(one, looked)])] * 2)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<img src=x" not in text and text.count("<option") == 2


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["gone.mp4", "What?"], ["gone.mp4: no such file"]),
        (["text.mp4", "What?"], ["text.mp4", "not_media"]),
        (["-", "What?"], ["- is a stream"]),
        (["street.mp4", " "], ["a question is empty"]),
        (["street.mp4", "What?", "--tokens", "0"], ["--tokens is 0"]),
        (["street.mp4", "What?", "--tokens", "8192"], ["tokens; the language model has 8,192 positions"]),
        (["street.mp4", "red blue " * 4500], ["tokens; the language model has 8,192 positions", "shorten"]),
        (["street.mp4", "What?", "--video", "."], [". cannot be written: . is a folder"]),
        (["street.mp4", "What?", "--run", "RUN"], ["--run names a run twice"]),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(folders, video, tmp_path, monkeypatch, capsys, arguments, facts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "street.mp4").symlink_to(video)
    (tmp_path / "text.mp4").write_text("no video")
    run = str(folders["foveated"])
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    assert main(["look", *arguments, "--run", run, "--out", "page.html"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and all(fact in printed.err for fact in facts), printed.err
    assert not (tmp_path / "page.html").exists()


# --- the workflow ---


def test_a_study_has_a_page_of_its_last_stage_and_one_of_runs_side_by_side(opened):
    study = opened()
    assert study.looks.pages == ["results/smoke/look/stage3.html", "results/smoke/look/baseline.html"]
    options = "--run results/smoke/runs/baseline --run results/smoke/runs/A6 --run results/smoke/runs/B1"
    assert study.looks.options(of(run="baseline")) == options
    inputs = study.looks.inputs(of(run="baseline"))
    assert {f"results/smoke/runs/{name}/model/best.safetensors" for name in ("baseline", "A6", "B1")} <= set(inputs)
    assert len(inputs) == len(set(inputs)) and "results/smoke/index/grid_held_out.npz" in inputs
    assert study.looks.options(of(run="A1")) == "--run results/smoke/runs/A1"
    one_frame = opened(baseline={"data.max_frames": 1})  # is no video to show
    assert "results/smoke/look/baseline.html" not in one_frame.looks.pages
    for families in (["ablation"], ["stage"]):
        evaluation = {"families": families}
        only = {"stages": [], "ablations": ["baseline"], "grid": []}
        alone = opened(only=only, seeds={"A6": None, "B1": None}, evaluation=evaluation)
        assert alone.looks.pages == [] and alone.looks.options(of(run="baseline")).endswith("/runs/baseline")


@pytest.mark.workflow
def test_the_workflow_makes_both_pages(smoke_results):
    for name, runs in (("stage3", ["stage3"]), ("baseline", ["baseline", "A6", "B1"])):
        contents = data_in(smoke_results / f"look/{name}.html")
        assert len(contents) == 2 and len({content["name"] for content in contents}) == 2
        assert all([run["name"] for run in content["runs"]] == runs for content in contents)


# --- the page in a browser ---


def after(page: Path, script: str, fragment: str = "") -> str:
    """Return the page as it is after its own script and one of the test."""
    copy = page.with_name(f"tested_{page.name}")
    copy.write_text(page.read_text() + drawn_then(script))
    return browse(copy, fragment=fragment)


def drawn_then(script: str) -> str:
    """A script that runs once the page has drawn its first video."""
    return f"<script>ready.then(() => {{ {script} }});</script>"


@in_a_browser
def test_the_arrow_keys_change_the_frame_and_a_token_shows_its_dependence(folders, video, tmp_path):
    page = page_of(folders, video, tmp_path / "page.html", "foveated", "pooled", "blind")
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}'}}));"
    shown = {
        "": "frame 1 of 5 · 0 s",
        press.format("ArrowRight") * 2: "frame 3 of 5 · 2 s",
        press.format("ArrowRight") * 9: "frame 5 of 5 · 4 s",
        press.format("End") + press.format("ArrowLeft"): "frame 4 of 5 · 3 s",
        "slider.value = 1; slider.oninput();": "frame 2 of 5 · 1 s",
    }
    for script, place in shown.items():
        assert f">{place}<" in after(page, script)
    content = after(page, "document.querySelector('.answer button').click();", "#frame=2")
    assert ">frame 3 of 5 · 2 s<" in content and content.count('aria-pressed="true"') == 1
    assert content.count("<canvas") == 4  # two of the foveated run, the plain frame of the others
    assert content.count("<rect") == 2 * 5 and content.count("Dependence of “") == 2  # and as a label


@in_a_browser
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_the_window_and_draws_every_map(folders, video, tmp_path, width):
    page = page_of(folders, video, tmp_path / "page.html", *KINDS)
    report = "[document.documentElement.scrollWidth, innerWidth, [...document.querySelectorAll('canvas')].map(ink)]"
    ink = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, 448, 448).data).size"
    inner = page.with_name("inner.html")
    inner.write_text(page.read_text() + drawn_then(f"const ink = {ink}; parent.postMessage({report}, '*')"))
    content, inside, inks = in_a_frame(inner, width)
    assert content <= inside == width  # there may be a scroll bar
    assert len(inks) == 2 + 1 + 1 + 1 + 2 and min(inks) > 100


@in_a_browser
def test_the_page_follows_the_colours_of_the_system(folders, video, tmp_path):
    page = page_of(folders, video, tmp_path / "page.html", "foveated")
    assert brightness(page, "light") > 180 and brightness(page, "dark") < 90
