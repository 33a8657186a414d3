"""Building, loading and freezing."""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import Dinov2Model, LlamaForCausalLM

from benchmarks.obvious import outputs_of, padded
from fvlm import hub
from fvlm.config import schema
from fvlm.errors import UserError
from fvlm.model.build import build_model, load_weights
from fvlm.model.pretrained import encoder_config, language_config
from tests.model_cases import (
    ALL,
    configuration,
    exact,
    joined,
    mixed,
    published,
    sample,
    sums_of,
    tiny,
    visual_tokens,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random weights in the published form, position embeddings stored for larger images."""
    folder = tmp_path_factory.mktemp("weights")
    config = configuration(encoder={"position_side": 7})
    torch.manual_seed(1)
    Dinov2Model(encoder_config(config.encoder)).save_pretrained(folder / "dino")
    LlamaForCausalLM(language_config(config.language)).save_pretrained(folder / "llm")
    return folder


def with_weights(folder, **changes) -> schema.Model:
    return configuration(
        encoder={"position_side": 7, "weights": str(folder / "dino"), **changes.get("encoder", {})},
        language={"weights": str(folder / "llm"), **changes.get("language", {})},
    )


def test_loaded_weights_give_the_outputs_of_their_models(checkpoints):
    model = build_model(with_weights(checkpoints), 0)
    dino = Dinov2Model.from_pretrained(checkpoints / "dino")
    llama = LlamaForCausalLM.from_pretrained(checkpoints / "llm")
    for found, expected in ((model.dino.dino, dino), (model.llm.llama, llama.model)):
        wanted = expected.state_dict()
        assert found.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in found.state_dict().items())
        assert all(value.dtype == torch.float32 for value in found.parameters())


def test_a_checkpoint_s_padding_token_is_trained_as_any_other(tmp_path):
    """It may be the token that ends every answer; transformers would keep its embedding from learning."""
    config = language_config(configuration().language)
    config.pad_token_id = 2
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    model = build_model(configuration(language={"weights": str(tmp_path / "llm")}), 0)
    model.llm.embed(torch.tensor([2, 3])).sum().backward()
    assert (model.llm.llama.embed_tokens.weight.grad[2:4] == 1).all()


@pytest.mark.parametrize("deep", [True, False])
def test_the_whole_model_with_loaded_weights_is_made_of_its_two_models(checkpoints, deep):
    model = build_model(with_weights(checkpoints).model_copy(update={"deep_query": deep}), 0).double()
    reference, batch = exact(model), sample(3, 9, seed=1, question=4)
    reference.vision_model.load_state_dict(Dinov2Model.from_pretrained(checkpoints / "dino").state_dict())
    llama = LlamaForCausalLM.from_pretrained(checkpoints / "llm").model
    reference.language_model.load_state_dict(llama.state_dict())
    inputs = padded(batch, reference)
    expected = sums_of(outputs_of(reference, inputs).logits, inputs["labels"])
    torch.testing.assert_close(model(batch).loss_sum_B, expected, rtol=1e-12, atol=1e-12)


def changed_encoder(checkpoints, folder, change) -> schema.Model:
    """The stored encoder with other tensors, in a folder of its own."""
    weights = load_file(checkpoints / "dino" / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((checkpoints / "dino" / "config.json").read_text())
    return with_weights(checkpoints, encoder={"weights": str(folder)})


def test_checkpoints_with_the_older_names_load(checkpoints, tmp_path):
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names["o_proj"] = "output.dense"

    def older(key: str) -> str:
        for new, old in names.items():
            key = key.replace(f"attention.{new}", f"attention.{old}")
        return key

    stored = changed_encoder(checkpoints, tmp_path, lambda weights: {older(key): x for key, x in weights.items()})
    model = build_model(stored, 0)
    wanted = build_model(with_weights(checkpoints), 0).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("part", ["encoder", "language"])
def test_weights_that_are_not_there_are_named(part, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=rf"model\.{part}\.weights: .*missing.* cannot be loaded"):
        build_model(configuration(**{part: {"weights": str(tmp_path / "missing")}}), 0)
    build_model(configuration(**{part: {"weights": str(tmp_path / "missing")}}), 0, pretrained=False)


def test_hub_names_without_a_network_are_not_tried_again_and_again(tmp_path):
    """The hub's library tries for 23 seconds."""
    code = (
        "from pathlib import Path\n"
        "from fvlm.data.shards.text import copy_tokenizer\n"
        "from fvlm.errors import UserError\n"
        "from fvlm.model.pretrained import encoder_weights, language_weights\n"
        "from tests.model_cases import configuration\n"
        "name = {'weights': 'somebody/something'}\n"
        "model = configuration(encoder=name, language=name)\n"
        "for load in (lambda: encoder_weights(model.encoder), lambda: language_weights(model.language),\n"
        "             lambda: copy_tokenizer('somebody/something', Path('tokenizer'))):\n"
        "    try:\n"
        "        load()\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    closed_port = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=os.environ | closed_port, capture_output=True, text=True, check=True)
    assert ended.stdout.count("no network") == 3 and "Retrying" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (urllib.error.HTTPError("", 403, "", None, None), True),
        (urllib.error.URLError(ssl.SSLCertVerificationError()), True),  # the hub's library has certificates of its own
        (urllib.error.URLError(ConnectionRefusedError()), False),
        (TimeoutError(), False),
        (http.client.BadStatusLine("x"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_hub_is_tried_if_anybody_answers(error, answers, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    for setting, local in (("", not answers), ("false", not answers), ("1", True)):
        monkeypatch.setenv("HF_HUB_OFFLINE", setting)
        hub._hub_answers.cache_clear()
        assert hub.only_local("somebody/something") == local
    hub._hub_answers.cache_clear()


def test_declared_sizes_must_agree(checkpoints):
    with pytest.raises(UserError, match="num_attention_heads is 4, declared 2"):
        build_model(with_weights(checkpoints, encoder={"heads": 2}), 0)
    with pytest.raises(UserError, match="rope_parameters"):
        build_model(with_weights(checkpoints, language={"rope_theta": 5.0}), 0)


@pytest.mark.parametrize("change, problem", [
    (lambda weights: {k: x for k, x in weights.items() if k != "layernorm.bias"}, "missing_keys 1.* layernorm.bias"),
    (lambda weights: {**weights, "extra": torch.zeros(3)}, "unexpected_keys 1.* extra"),
])  # fmt: skip
def test_every_tensor_must_match(checkpoints, tmp_path, change, problem):
    with pytest.raises(UserError, match=problem):
        build_model(changed_encoder(checkpoints, tmp_path, change), 0)


PUBLISHED = {  # parameters
    ("dinov2-small", "SmolLM2-135M"): (22_056_576, 134_515_008),
    ("dinov2-base", "SmolLM2-360M"): (86_580_480, 361_821_120),
    ("dinov2-small", "SmolLM2-1.7B"): (22_056_576, 1_711_376_384),
}


@pytest.mark.parametrize("encoder, language", PUBLISHED)
def test_the_sizes_of_the_configuration_are_those_of_the_published_models(encoder, language):
    """Without the weights, which then must have exactly these shapes to be loaded."""
    model = configuration(**published(encoder, language))
    with torch.device("meta"):
        groups = build_model(model, 0).parameter_groups()
    counts = tuple(sum(value.numel() for value in groups[group].values()) for group in ("dino", "llm"))
    assert counts == PUBLISHED[encoder, language]
    # the number of heads changes no count: all of them are 64 wide
    assert model.encoder.width == 64 * model.encoder.heads and model.language.width == 64 * model.language.heads
    assert (model.encoder.patches, model.language.rms_norm_eps, model.language.max_positions) == (256, 1e-5, 8192)
    assert model.language.rope_theta == (130_000 if language == "SmolLM2-1.7B" else 100_000)


def test_building_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first, again, other = (build_model(configuration(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["connector.q_static"], other["connector.q_static"])


def test_queries_start_at_the_declared_size():
    connector = build_model(configuration(query_dim=4096, query_init_std=0.3), 0).connector
    for query in (connector.q_static, connector.q_init):
        assert float(query.detach().std()) == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(connector.q_static, connector.q_init)


def like_pretrained(folder, encoder: str, language: str, embedding_std: float) -> schema.Model:
    """A published size with one layer and few words; its final norms have the statistics of real weights."""
    sizes = published(encoder, language)
    sizes["encoder"] |= {"layers": 1, "weights": str(folder / "dino")}
    sizes["language"] |= {"layers": 1, "vocabulary": 512, "weights": str(folder / "llm")}
    config = configuration(**sizes, query_dim=384, visual_scale=0.14)
    torch.manual_seed(1)
    dino = Dinov2Model(encoder_config(config.encoder))
    llama = LlamaForCausalLM(language_config(config.language))
    with torch.no_grad():  # as in DINOv2-small and SmolLM2-135M
        dino.layernorm.weight.normal_(3.3, 0.4)
        dino.layernorm.bias.normal_(0, 0.5)
        llama.model.norm.weight.normal_(1.8, 0.3)
        llama.model.embed_tokens.weight.normal_(0, embedding_std)
    dino.save_pretrained(folder / "dino")
    llama.save_pretrained(folder / "llm")
    return config


@torch.no_grad()
@pytest.mark.parametrize(("encoder", "language", "embedding_std"), [
    ("dinov2-small", "SmolLM2-135M", 0.1356), ("dinov2-base", "SmolLM2-360M", 0.08),
    ("dinov2-base", "SmolLM2-1.7B", 0.05),
])  # fmt: skip
def test_visual_tokens_and_queries_start_as_large_as_the_final_norms_make_them(
    encoder, language, embedding_std, tmp_path
):
    config = like_pretrained(tmp_path, encoder, language, embedding_std)
    for deep in (True, False):
        model = build_model(config.model_copy(update={"deep_query": deep}), 3)
        batch = sample(6, 40, 4, image=224)
        seen, written = model.dino.dino.layernorm, model.llm.llama.norm
        visual = visual_tokens(model, batch, "coarse_only")
        expected = 0.14 * float((seen.weight.square() + seen.bias.square()).mean().sqrt())
        assert float(visual.std()) == pytest.approx(expected, rel=0.25)
        queries = model.predict(visual, model.llm.embed(batch.token_ids), model.plan(batch))[1:]
        assert float(queries.std()) == pytest.approx(float(written.weight.square().mean().sqrt()), rel=0.25)


CHANGES = [
    {"architecture": "multi_token"},
    {"deep_query": False},
    {"architecture": "blind"},
    {"fine_pass": False},
    {"fine_passes": 2},
    {"query_dim": 17},
    {"query_init_std": 0.5},
    {"visual_scale": 0.2},
    {"lambda_coarse": 0.5},
    {"encoder": {"width": 40}},
    {"encoder": {"layers": 2}},
    {"encoder": {"heads": 2}},
    {"encoder": {"mlp_ratio": 2}},
    {"encoder": {"patch": 28}},
    {"encoder": {"position_side": 7}},
    {"language": {"width": 32}},
    {"language": {"ffn": 48}},
    {"language": {"layers": 1}},
    {"language": {"heads": 2}},
    {"language": {"kv_heads": 4}},
    {"language": {"vocabulary": 62}},
    {"language": {"rope_theta": 50.0}},
    {"language": {"rms_norm_eps": 1e-3}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_field_of_the_configuration_changes_the_loss(change):
    batch = joined(mixed()[:4])
    with torch.no_grad():
        plain, changed = (float(tiny(**fields)(batch).objective_B.sum()) for fields in ({}, change))
    assert abs(plain - changed) > 1e-6


def test_every_field_of_the_configuration_is_in_that_test():
    tested = {key for change in CHANGES for key in change}
    # tokens_per_frame, image, max_positions and weights have tests of their own; a name only labels
    assert tested == set(schema.Model.model_fields) - {"tokens_per_frame"}
    elsewhere = {"encoder": {"image", "weights", "name"}, "language": {"max_positions", "weights", "name"}}
    sizes = {"encoder": schema.EncoderSize, "language": schema.LanguageSize}
    for part, size in sizes.items():
        inside = {key for change in CHANGES for key in change.get(part, {})}
        assert inside == set(size.model_fields) - elsewhere[part]


@pytest.mark.parametrize("architecture, tokens, possible", [
    *(("multi_token", tokens, tokens in (1, 4, 16)) for tokens in (1, 4, 5, 16, 25)),
    ("pixel_shuffle", 16, False), ("pixel_shuffle", 49, True),
])  # fmt: skip
def test_tokens_per_frame_are_those_of_the_model_or_refused(architecture, tokens, possible):
    if possible:
        model = tiny(architecture, tokens_per_frame=tokens)
        assert len(visual_tokens(model, sample(3, 8, seed=1), "direct")) == 3 * tokens
        return
    with pytest.raises(UserError, match=f"tokens_per_frame is {tokens}"):
        tiny(architecture, tokens_per_frame=tokens)


def test_pooling_averages_and_shuffling_keeps_blocks():
    pooled = tiny("multi_token", tokens_per_frame=4).connector.pool
    windows = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    expected = torch.zeros(4, 16, dtype=torch.float64).scatter(1, windows, 0.25)
    torch.testing.assert_close(pooled, expected)
    # 14 x 14 patches in 2 x 2 blocks
    shuffled = tiny("pixel_shuffle", encoder={"patch": 4}).connector
    assert shuffled.pool.shape == (49 * 4, 196) and shuffled.pool[:4].argmax(1).tolist() == [0, 1, 14, 15]
    torch.testing.assert_close(shuffled.pool.sum(0), torch.ones(196, dtype=torch.float64))


@pytest.mark.parametrize("architecture", ["foveated", "multi_token"])
@pytest.mark.parametrize("frozen", [("dino",), ("llm",), ("connector",), ("llm", "dino")])
def test_frozen_parts_get_no_gradient_and_the_others_do(architecture, frozen):
    model = tiny(architecture)
    model.freeze(frozen)
    model(joined(mixed())).objective_B.sum().backward()
    for group, members in model.parameter_groups().items():
        with_gradient = {name for name, parameter in members.items() if parameter.grad is not None}
        unused = {"dino.dino.embeddings.mask_token"}
        assert with_gradient == (set() if group in frozen else set(members) - unused)
    states = model.encode(sample(1, 4, seed=1).frames)
    assert all(tensor.requires_grad == ("dino" not in frozen) for tensor in states.keys or [states.features])


@pytest.mark.parametrize("architecture", dict(ALL))
def test_weights_in_a_file_restore_a_model(architecture, tmp_path):
    model, other = tiny(architecture), tiny(architecture, seed=1)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_weights(other, tmp_path / "model.safetensors")
    batch = joined(mixed())
    assert torch.equal(model(batch).loss_sum_B, other(batch).loss_sum_B)


def test_a_number_in_single_precision_is_the_declared_one(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "llm", tmp_path / "llm")
    file = tmp_path / "llm/config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"rms_norm_eps": float(np.float32(content["rms_norm_eps"]))}))
    assert json.loads(file.read_text())["rms_norm_eps"] != content["rms_norm_eps"]
    build_model(configuration(language={"weights": str(tmp_path / "llm")}), 0)


def test_a_folder_without_a_config_is_named_as_that(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        build_model(configuration(language={"weights": str(tmp_path)}), 0)
