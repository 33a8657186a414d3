"""The parts of the training loop: objective, average of the weights, hardware, attention maps, schedules, records."""

import math
import subprocess
import sys

import pytest
import torch

from fvlm.config.schema import Gpu, Optim
from fvlm.costs.gpus import PEAK_TFLOPS, tflops_of
from fvlm.device import peak_flops
from fvlm.model.build import build_model
from fvlm.records import MetricsLog, write_csv
from fvlm.train.average import Average
from fvlm.train.objective import make_objective
from fvlm.train.optim import make_optimizer, rates_at
from fvlm.train.ranks import Ranks
from fvlm.train.watch import Watch
from tests.loader_cases import make_results, run_of
from tests.model_cases import ALL, both_orders, joined, sample, tiny
from tests.train_cases import study_in

CPU = torch.device("cpu")


def text_objective(folder, architecture="foveated", **changes):
    run, _ = run_of(folder)
    model = tiny(architecture, **changes)
    return make_objective(run.model_copy(update={"model": model.config}), model, None), model


def of_three_sources():
    samples = both_orders()
    for i, one in enumerate(samples):
        one.sources = [("web", "own", "chat")[i % 3]]
    return samples


# --- objective of a text ---


@pytest.mark.parametrize("architecture", sorted({architecture for architecture, _ in ALL}))
def test_units_are_the_tokens_that_the_model_scores(tmp_path, architecture):
    objective, model = text_objective(tmp_path, architecture)
    batch = joined(both_orders())
    batch.loss_mask[:] = True
    terms = objective(batch)
    assert objective.units(batch) == terms.counts["loss"] == int(model(batch).count_B.sum())
    unseen = sum(batch.question_counts.tolist()[i] > 0 or not batch.frame_counts[i] for i in range(len(batch)))
    unseen = len(batch) if architecture == "blind" else unseen
    assert objective.units(batch) == len(batch.token_ids) - unseen, "a token with nothing before it is not scored"


def test_the_loss_of_a_source_is_that_of_its_samples(tmp_path):
    objective, model = text_objective(tmp_path)
    samples = of_three_sources()
    terms = objective(joined(samples))
    for name in ("web", "own", "chat"):
        alone = [model(one) for one in samples if one.sources == [name]]
        assert terms.counts[f"loss:{name}"] == sum(int(output.count_B) for output in alone)
        found = float(terms.sums[f"loss:{name}"])
        assert found == pytest.approx(sum(float(output.loss_sum_B.detach()) for output in alone), rel=1e-9)
    parts = [name for name in terms.sums if name.startswith("loss:")]
    assert len(parts) == 3 and sum(terms.counts[name] for name in parts) == terms.counts["loss"]


def test_a_source_without_scored_tokens_has_no_loss(tmp_path):
    objective, _ = text_objective(tmp_path)
    mute = sample(2, 5, seed=1)
    mute.loss_mask[:], mute.sources = False, ["mute"]
    terms = objective(joined([mute, sample(3, 6, seed=2)]))
    assert set(terms.sums) == set(terms.counts) == {"loss", "objective", "loss_fine", "loss:random"}
    alone = objective(mute)
    assert not alone.sums and float(alone.objective.detach()) == 0


def test_the_objective_adds_the_weighted_loss_of_the_coarse_pass(tmp_path):
    plain, _ = text_objective(tmp_path)
    weighted, model = text_objective(tmp_path, lambda_coarse=0.5)
    batch = joined(both_orders())
    terms, without = weighted(batch), plain(batch)
    sums = {name: float(total) for name, total in terms.sums.items()}
    assert (
        sums["objective"] == pytest.approx(sums["loss"] + 0.5 * sums["loss_coarse"]) == float(terms.objective.detach())
    )
    assert sums["loss_fine"] == sums["loss"] == pytest.approx(float(without.sums["objective"]))
    assert "loss_coarse" not in without.sums
    terms.objective.backward()
    assert not any(total.requires_grad for total in terms.sums.values())
    assert float(model.connector.q_static.grad.abs().sum()) > 0


@pytest.mark.parametrize(("architecture", "changes", "names"), [
    ("foveated", {}, {"loss_fine", "loss_coarse", "attention_entropy"}),
    ("foveated", {"fine_pass": False}, {"loss_coarse", "attention_entropy"}),
    ("multi_token", {}, set()),
    ("blind", {}, set()),
])  # fmt: skip
def test_validations_have_metrics_of_their_own(tmp_path, architecture, changes, names):
    objective, model = text_objective(tmp_path, architecture, **changes)
    batch = joined(both_orders())
    terms = objective(batch, validating=True)
    assert set(terms.sums) - {"loss", "objective", "loss:random"} == names
    if "attention_entropy" in names:
        assert terms.counts["attention_entropy"] == len(batch.frame_index)
        mean = float(terms.sums["attention_entropy"]) / len(batch.frame_index)
        assert 0 < mean < math.log(model.config.encoder.patches + 1)
    if "loss_coarse" in names:
        coarse = model(batch, "coarse_only").loss_sum_B.sum()
        assert float(terms.sums["loss_coarse"]) == pytest.approx(float(coarse.detach()), rel=1e-9)


def test_sums_are_not_rounded_to_bfloat16(tmp_path):
    objective, model = text_objective(tmp_path)
    batch = joined(both_orders())
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective(batch, validating=True)
        entropy = model(batch, with_attention=True).entropy_P
    assert {total.dtype for total in terms.sums.values()} == {torch.float32}
    assert float(terms.sums["attention_entropy"]) == pytest.approx(float(entropy.double().sum()), rel=1e-5)
    assert entropy.dtype == torch.float32 and (entropy != entropy.bfloat16()).any()


# --- average ---


def trained_a_little(steps: int, decay: float):
    """A model after some steps, its average, and the weights of the trained parameters after each step."""
    model = tiny()
    model.freeze(["dino"])
    average, path = Average(model, decay), [weights_of(model)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model(sample(2, 9, seed=step)).loss_sum_B.sum().backward()
        optimizer.step()
        average.update()
        path.append(weights_of(model))
    return model, average, path


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_average_equals_that_of_a_plain_loop():
    model, average, path = trained_a_little(30, decay=0.6)
    expected = path[0]
    for n, weights in enumerate(path[1:], start=1):
        decay = min(0.6, n / (n + 9))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    with average.swapped():
        found = weights_of(model)
    moved = {name for name in found if not torch.equal(path[0][name], path[-1][name])}
    assert moved and all(name.startswith("dino.") for name in set(found) - moved)
    for name in moved:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
        assert not torch.equal(found[name], path[-1][name])
    for name in set(found) - moved:
        assert torch.equal(found[name], path[0][name])


def test_swapping_restores_the_weights_bit_for_bit_also_after_an_error():
    model, average, path = trained_a_little(3, decay=0.9)
    parameters = [id(p) for p in model.parameters()]
    with pytest.raises(KeyError), average.swapped():
        assert not torch.equal(weights_of(model)["connector.q_init"], path[-1]["connector.q_init"])
        raise KeyError
    assert all(torch.equal(found, path[-1][name]) for name, found in weights_of(model).items())
    assert parameters == [id(p) for p in model.parameters()], "the optimizer holds these very objects"


# --- hardware ---


@pytest.mark.parametrize(("name", "tflops"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
    ("NVIDIA L4", 121), ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA H100 NVL", None),
])  # fmt: skip
def test_the_peak_of_a_gpu_is_found_by_its_name(name, tflops):
    assert tflops_of(name) == tflops


def test_the_peak_follows_the_precision_and_the_study(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    assert peak_flops(cuda, None, "bfloat16") == PEAK_TFLOPS["L4"] * 1e12
    assert peak_flops(cuda, None, "float32") == PEAK_TFLOPS["L4"] * 1e12 / 2
    own = Gpu(name="mine", memory_gb=24, tflops=50)
    assert peak_flops(cuda, own, "bfloat16") == 50e12
    assert peak_flops(cuda, Gpu(name="mine", memory_gb=24), "bfloat16") == PEAK_TFLOPS["L4"] * 1e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some other GPU")
    assert peak_flops(cuda, None, "bfloat16") is None
    assert peak_flops(CPU, own, "bfloat16") is None


def test_memory_gb_reports_the_memory_of_the_process():
    script = (
        "import numpy, torch; from fvlm.device import memory_gb; cpu = torch.device('cpu'); "
        "before = memory_gb(cpu); held = numpy.ones(2**26); print(before, memory_gb(cpu))"  # 0.5 x 2^30 bytes
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = map(float, output.split())
    assert before > 0.05 and after - before == pytest.approx(0.5, abs=0.05)


# --- attention maps ---


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("results"))


def test_watch_changes_nothing(results, tmp_path):
    run, study = run_of(results, **{"operation.attention_videos": 1})
    model, watch = build_model(run.model, 0), Watch(run, study, tmp_path)
    weights, random = weights_of(model), torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        watch(model, 1, CPU, torch.autocast("cpu", enabled=False), Ranks())
        assert all(module.training == training for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(found, weights[name]) for name, found in weights_of(model).items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("changes", [
    {"operation.attention_videos": 0},
    {"model.architecture": "multi_token"},
    {"model.architecture": "blind"},
    {"data.sources": ["pictures", "chat"], "data.share": {"image": 0.5, "text": 0.5}},
])  # fmt: skip
def test_watch_does_nothing_without_queries_or_videos(results, tmp_path, changes):
    run, study = run_of(results, **{"operation.attention_videos": 2, **changes})
    Watch(run, study, tmp_path)(build_model(run.model, 0), 0, CPU, torch.autocast("cpu", enabled=False), Ranks())
    assert not list(tmp_path.iterdir())


def test_schedules():
    base = {"batch_size": 1, "lr": {"connector": 1e-3, "dino": 1e-5, "llm": 1e-5},
            "final_lr": None, "schedule": "cosine",
            "warmup": 0.1, "weight_decay": 0.0, "clip": 1.0, "betas": (0.9, 0.999), "freeze": (),
            "ema": None, "dpo_beta": 0.1}  # fmt: skip
    cosine = Optim(**base)
    assert rates_at(cosine, 0, 100)["connector"] == pytest.approx(1e-4)
    assert rates_at(cosine, 9, 100)["connector"] == pytest.approx(1e-3)
    assert 0 < rates_at(cosine, 99, 100)["connector"] < 1e-6 and rates_at(cosine, 100, 100)["connector"] == 0
    constant = Optim(**{**base, "schedule": "constant"})
    assert rates_at(constant, 99, 100)["llm"] == 1e-5
    ends = {"connector": 3e-5, "dino": 3e-5, "llm": 3e-5}
    converging = Optim(**{**base, "schedule": "converging", "final_lr": ends})
    assert rates_at(converging, 99, 100) == pytest.approx(ends)


def test_weight_decay_leaves_out_norms_biases_and_embeddings(prepared):
    study = study_in(prepared)
    model = build_model(study.runs["baseline"].model, 0)
    optimizer = make_optimizer(model.parameter_groups(), study.runs["baseline"].optim)
    undecayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in undecayed) == (parameter.ndim < 2 or "embed" in name), name
    for name in ("connector.q_static", "connector.q_init", "dino.dino.embeddings.position_embeddings",
                 "dino.dino.embeddings.cls_token", "llm.llama.embed_tokens.weight"):  # fmt: skip
        assert id(dict(model.named_parameters())[name]) in undecayed, name


def test_a_table_takes_fields_that_no_header_knew(tmp_path):
    """The header has the fields of all records."""
    write_csv(tmp_path / "t.csv", [{"a": 1}, {"a": 2, "returncode": 0}])
    assert (tmp_path / "t.csv").read_text() == "a,returncode\n1,\n2,0\n"


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = MetricsLog(path, 2)
    log.append({"step": 3})
    assert [record["step"] for record in log.records()] == [1, 2, 3]
