"""A run that exceeds GPU memory is an error before it starts, in the study and in `fvlm train`, and the remedy fits."""

import re

import pytest
import torch
import yaml

from fvlm.__main__ import main
from fvlm.costs.limits import check_memory, check_run_memory
from fvlm.costs.memory import GB, operation_that_fits, predicted_bytes
from fvlm.device import gpu_of
from fvlm.errors import UserError
from fvlm.study.plan import plan_rows, plan_text
from tests.config_cases import CONFIG, load
from tests.rank_cases import Team
from tests.train_cases import content_in

SIZES = dict.fromkeys(("135M", "360M", "1.7B"))  # none


def proposed_settings(message: str) -> dict:
    settings = re.findall(r"(operation\.\w+) to (\w+)", message)
    return {name: yaml.safe_load(value) for name, value in settings}


@pytest.mark.parametrize(("memory_gb", "settings"), [
    (64, {}), (40, {}), (32, {}), (20, {"operation.micro_frames": 256}), (24, {"operation.gpus": 4}),
])  # fmt: skip
def test_a_study_with_the_proposed_settings_fits(memory_gb, settings):
    card = {"name": "card", "memory_gb": memory_gb}
    with pytest.raises(UserError, match=r"'1\.7B-") as caught:
        check_memory(load(CONFIG, "paper.yaml", gpu=card, baseline=settings))
    proposed = settings | proposed_settings(str(caught.value))
    assert proposed != settings
    check_memory(load(CONFIG, "paper.yaml", gpu=card, baseline=proposed))


def test_the_message_names_the_most_frames_that_fit_and_a_gpu_that_is_large_enough():
    def check(memory_gb: float, frames: int) -> None:
        check_memory(load(
            CONFIG, "paper.yaml", gpu={"name": "card", "memory_gb": memory_gb}, scaling={"sizes": SIZES},
            baseline={"operation.micro_frames": frames}, only={"stages": [], "ablations": ["baseline"]},
        ))  # fmt: skip

    with pytest.raises(UserError) as caught:
        check(24, 256)
    (frames,) = proposed_settings(str(caught.value)).values()
    (larger,) = re.findall(r"at least (\d+) GB", str(caught.value))
    check(24, frames)
    check(int(larger), 256)
    with pytest.raises(UserError):
        check(24, frames + 1)


def test_the_paper_fits_its_gpu_and_the_plan_shows_the_memory_of_each_run():
    study = load(CONFIG, "paper.yaml")
    check_memory(study)
    rows = {row["run"]: row["memory_gb"] for row in plan_rows(study)}
    assert 60 < rows["1.7B-C1-F"] < rows["1.7B-C1-B"] < study.gpu.memory_gb == 80 and rows["135M-C1-F"] < 24
    assert " GB " in plan_text(study) and f"{rows['baseline']:.1f}" in plan_text(study)
    on_cpus = load(CONFIG, "paper.yaml", gpu={"name": "card", "memory_gb": 0.1}, baseline={"operation.gpus": 0})
    check_memory(on_cpus)
    without_reserve = {row["run"]: row["memory_gb"] for row in plan_rows(on_cpus)}
    assert all(0.5 * rows[name] < without_reserve[name] < 1.2 * rows[name] for name in rows)


@pytest.mark.parametrize("memory_gb", [40, 50, 60])
def test_proposed_limits_are_lower_than_the_present_ones(memory_gb):
    run = load(CONFIG, "paper.yaml", baseline={"operation.micro_frames": 16}).runs["1.7B-C1-F"]
    settings = operation_that_fits(run, memory_gb * GB)
    assert list(settings) == ["micro_tokens"] and settings["micro_tokens"] < run.operation.micro_tokens


def with_operation(run, **changes):
    return run.model_copy(update={"operation": run.operation.model_copy(update=changes)})


def test_split_weights_need_less_memory_the_more_ranks_there_are():
    run = load(CONFIG, "paper.yaml").runs["1.7B-C1-F"]
    needed = [predicted_bytes(with_operation(run, shard_weights=True, gpus=gpus)) for gpus in (1, 2, 4, 8)]
    assert needed == sorted(needed, reverse=True) and needed[0] == predicted_bytes(run)
    assert needed[3] < predicted_bytes(with_operation(run, gpus=8)) - 0.6 * 16 * 1.7e9


@pytest.mark.parametrize(("memory_gb", "remedy"), [(40, "recompute"), (32, "shard_weights")])
def test_the_message_for_the_largest_model_has_the_mildest_settings_that_fit(memory_gb, remedy):
    study = load(CONFIG, "paper.yaml", gpu={"name": "card", "memory_gb": memory_gb})
    with pytest.raises(UserError) as caught:
        check_memory(study)
    message, run = str(caught.value), study.runs["1.7B-C1-B"]
    assert "'1.7B-C1-B'" in message and f"operation.{remedy} to true" in message and "at least 77 GB" in message
    assert predicted_bytes(with_operation(run, **operation_that_fits(run, memory_gb * GB))) <= memory_gb * GB
    if memory_gb == 32:  # only split weights help
        smallest = {"micro_frames": 64, "micro_tokens": 512, "recompute": True}
        assert predicted_bytes(with_operation(run, **smallest)) > 32 * GB
        assert "operation.gpus to 2" in message


def test_no_settings_are_proposed_for_a_gpu_that_is_too_small_for_all_of_them():
    with pytest.raises(UserError) as caught:
        check_memory(load(CONFIG, "paper.yaml", gpu={"name": "toy", "memory_gb": 2}))
    assert "operation." not in str(caught.value) and "more runs do not fit" in str(caught.value)


def test_the_gpu_of_the_machine_counts_and_not_that_of_the_study():
    small = load(CONFIG, "paper.yaml", gpu={"name": "card", "memory_gb": 32})
    run = small.runs["1.7B-C1-B"]
    with pytest.raises(UserError, match=r"'1\.7B-C1-B'.* 76\.5 GB .* card has 32 GB; .*\(gpu: in the study\)"):
        check_run_memory(run, small)
    check_run_memory(run, small, ("large card", 139.8))
    large = load(CONFIG, "paper.yaml", gpu={"name": "card", "memory_gb": 80})
    check_run_memory(run, large)
    with pytest.raises(UserError, match=r"but small card has 22\.04 GB; set .*, or use a GPU with at least 77 GB$"):
        check_run_memory(run, large, ("small card", 22.0439))
    check_run_memory(run, load(CONFIG, "paper.yaml", gpu=None), ("small card", 22.0))
    assert gpu_of(torch.device("cpu")) is None


@pytest.fixture
def study(prepared, tmp_path):
    """Writes a study on real shards, whose results are its own, with a GPU and settings of all runs."""
    results = tmp_path / "results"
    results.mkdir()
    for name in ("tokenizer", "index", "shards"):
        (results / name).symlink_to(prepared / name)

    def written(memory_gb: float, **settings):
        baseline = {f"operation.{name}": value for name, value in settings.items()}
        content = content_in(results, gpu={"name": "card", "memory_gb": memory_gb}, baseline=baseline)
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "study.yaml"

    return written


def test_train_alone_stops_if_the_run_does_not_fit(study, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a real one would be judged by its own memory
    path = study(2, gpus=1)
    assert main(["train", "baseline", "--study", str(path)]) == 2
    message = capsys.readouterr().err
    assert [fact for fact in ("'baseline'", "up to 2.", "card has 2 GB", "at least 3 GB") if fact not in message] == []
    assert not (path.parent / "results/runs").exists()
    assert main(["train", "baseline", "--study", str(study(3, gpus=1))]) == 0
    assert main(["train", "F1", "--study", str(study(2, gpus=0))]) == 0  # on a CPU nothing is judged


def test_all_ranks_stop_with_one_message(study):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, which is judged by its own memory")
    path = study(2, gpus=2)
    team = Team(2, path, "baseline")
    assert team.wait() == [2, 2] and team.output.count("card has 2 GB") == 1, team.output
    assert not (path.parent / "results/runs").exists()
