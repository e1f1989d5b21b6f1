"""config.json of both families: what the published ones say, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastdllm.errors import CheckpointError
from fastdllm.models.checkpoint import read_config, save_checkpoint
from toys import EOS, toy_model


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    save_checkpoint(toy_model("llada"), tmp_path)
    return tmp_path


@pytest.fixture
def dream(tmp_path: Path) -> Path:
    save_checkpoint(toy_model("dream"), tmp_path)
    return tmp_path


def test_config_of_llada_8b(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32,'
        '"n_kv_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,'
        '"max_sequence_length": 4096, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",'
        '"rms_norm_eps": 1e-05, "rope": true, "rope_theta": 500000.0, "rope_full_precision": true,'
        '"include_bias": false, "include_qkv_bias": false, "attention_layer_norm": false, "scale_logits": false,'
        '"input_emb_norm": false, "weight_tying": false, "alibi": false, "mask_token_id": 126336,'
        '"eos_token_id": 126081, "pad_token_id": 126081, "precision": "amp_bf16", "mlp_ratio": 4}'
    )
    config = read_config(tmp_path)
    assert (config.family, config.vocab_size, config.hidden_size, config.head_dim) == ("llada", 126464, 4096, 128)
    assert (config.num_layers, config.num_kv_heads, config.intermediate_size) == (32, 32, 12288)
    assert (config.max_length, config.rope_theta, config.rms_norm_eps) == (4096, 500000.0, 1e-5)
    assert (config.mask_id, config.eos_ids, config.pad_id, config.shift) == (126336, (126081,), 126081, 0)
    assert not config.qkv_bias
    assert not config.tie_embeddings


def test_config_of_dream_7b(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": 3584, "num_hidden_layers": 28,'
        '"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,'
        '"rope_theta": 1000000.0, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "mask_token_id": 151666,'
        '"eos_token_id": 151643, "pad_token_id": 151643, "max_position_embeddings": 131072, "hidden_act": "silu",'
        '"rope_scaling": null, "sliding_window": null, "use_sliding_window": false, "use_mrope": false}'
    )
    config = read_config(tmp_path)
    assert (config.family, config.vocab_size, config.hidden_size, config.head_dim) == ("dream", 152064, 3584, 128)
    assert (config.num_layers, config.num_kv_heads, config.intermediate_size) == (28, 4, 18944)
    assert (config.max_length, config.rope_theta, config.rms_norm_eps) == (131072, 1e6, 1e-6)
    assert (config.mask_id, config.eos_ids, config.pad_id, config.shift) == (151666, (151643,), 151643, 1)
    assert config.qkv_bias
    assert not config.tie_embeddings


def test_what_llada_may_leave_out(llada: Path) -> None:
    path = llada / "config.json"
    edit(path, n_kv_heads=None, mlp_hidden_size=None, mlp_ratio=2, pad_token_id=None, architectures=None)
    assert read_config(llada) == replace(toy_model("llada").config, num_kv_heads=4, intermediate_size=64, pad_id=EOS)
    edit(path, multi_query_attention=True)
    assert read_config(llada).num_kv_heads == 1
    edit(path, vocab_size=50, embedding_size=64)
    assert read_config(llada).vocab_size == 64
    edit(path, embedding_size=None, vocab_size=61)
    assert read_config(llada).vocab_size == 61


def test_end_ids_of_both_files(dream: Path) -> None:
    (dream / "generation_config.json").write_text('{"eos_token_id": [3, 57]}')
    assert read_config(dream).eos_ids == (57, 3)
    edit(dream / "config.json", eos_token_id=[5, 3])
    assert read_config(dream).eos_ids == (5, 3, 57)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("alibi", True, "alibi true; it must be false or null"),
        ("layer_norm_type", "default", 'layer_norm_type "default"; it must be "rms"'),
        ("block_type", "sequential", 'block_type "sequential"; it must be "llama"'),
        ("block_type", None, 'lacks block_type; it must be "llama"'),
        ("activation_type", "swiglu", 'activation_type "swiglu"; it must be "silu"'),
        ("input_emb_norm", True, "input_emb_norm true"),
        ("scale_logits", True, "scale_logits true"),
        ("attention_layer_norm", True, "attention_layer_norm true"),
        ("include_bias", True, "include_bias true"),
        ("bias_for_layer_norm", True, "bias_for_layer_norm true"),
        ("layer_norm_with_affine", False, "layer_norm_with_affine false"),
        ("rope", False, "rope false; it must be true"),
        ("block_group_size", 2, "block_group_size 2"),
        ("clip_qkv", 8.0, "clip_qkv 8.0"),
        ("multi_query_attention", True, "n_kv_heads 4; it must be 1 or null when multi_query_attention is true"),
        (
            "architectures",
            ["LlamaForCausalLM"],
            r'architectures \["LlamaForCausalLM"\]; it must be \["LLaDAModelLM"\] or',
        ),
        ("d_model", None, "lacks d_model; it must be a whole number of at least 1"),
        ("d_model", "32", 'd_model "32"; it must be a whole number'),
        ("n_layers", 0, "n_layers 0"),
        ("n_heads", True, "n_heads true"),
        ("n_heads", 3, "d_model 32, which n_heads 3 does not divide"),
        ("n_kv_heads", 3, "n_heads 4, which n_kv_heads 3 does not divide"),
        ("d_model", 36, "heads of width 9; rotary positions need an even width"),
        ("embedding_size", 59, "embedding_size 59; it must be at least vocab_size 60"),
        ("rope_theta", None, "lacks rope_theta; it must be a number above 0"),
        ("rope_theta", -1.0, "rope_theta -1.0"),
        ("rms_norm_eps", 0, "rms_norm_eps 0; it must be a number above 0"),
        ("weight_tying", "no", 'weight_tying "no"; it must be true or false'),
        ("mask_token_id", None, "lacks mask_token_id; it must be a token id"),
        ("mask_token_id", 60, "mask_token_id 60, outside the vocabulary of 60 tokens"),
        ("pad_token_id", -1, "pad_token_id -1, outside"),
        ("eos_token_id", [2, 99], "eos_token_id 99, outside"),
        ("eos_token_id", "</s>", 'eos_token_id "</s>"; it must be a token id'),
    ],
)
def test_llada_config_refused(llada: Path, key: str, value: object, says: str) -> None:
    edit(llada / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=says):
        read_config(llada)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "rope_scaling",
            {"type": "yarn", "factor": 4.0},
            'rope_scaling {"type": "yarn", "factor": 4.0}; it must be null',
        ),
        ("use_sliding_window", True, "use_sliding_window true; it must be false or null"),
        ("use_mrope", True, "use_mrope true"),
        ("hidden_act", "gelu", 'hidden_act "gelu"; it must be "silu" or null'),
        ("intermediate_size", None, "lacks intermediate_size"),
        ("vocab_size", None, "lacks vocab_size"),
        ("head_dim", 16, r"head_dim 16; it must be 8 \(hidden_size 32 over num_attention_heads 4\)"),
        ("mask_token_id", [1, 2], r"mask_token_id \[1, 2\]; it must be a token id"),
    ],
)
def test_dream_config_refused(dream: Path, key: str, value: object, says: str) -> None:
    edit(dream / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=says):
        read_config(dream)


def test_no_architecture_at_all(llada: Path) -> None:
    edit(llada / "config.json", architectures=None, model_type="llama")
    with pytest.raises(CheckpointError, match='model_type "llama"; it must be "llada" or "Dream"'):
        read_config(llada)


def test_neither_pad_nor_end_ids(llada: Path) -> None:
    (llada / "generation_config.json").unlink()
    edit(llada / "config.json", pad_token_id=None, eos_token_id=None)
    with pytest.raises(CheckpointError, match="lacks pad_token_id"):
        read_config(llada)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds a JSON list; an object is expected"),
        (None, "has no config.json"),
    ],
)
def test_config_file_refused(llada: Path, content: str | None, says: str) -> None:
    path = llada / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=says):
        read_config(llada)
