"""The checkpoint formats this package reads: config keys, tensor names and limits of LLaDA and Dream.

The tables are the facts of the published checkpoints (GSAI-ML/LLaDA-8B, Dream-org/Dream-v0-7B);
reading and writing both follow them, so that what is written is what a real checkpoint looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdllm.models.config import Family, ModelConfig

HEAD = "head.weight"


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one family writes config.json and names its tensors.

    Attributes:
        architecture: the entry of ``architectures`` in config.json.
        model_type: the ``model_type`` in config.json.
        keys: field of ModelConfig → key of config.json.
        rms_norm_eps: the value when config.json names none.
        settings: keys of config.json that change the network → values served, the usual one first;
            None stands for null or absent.
        extras: further keys that the family's own classes read; written, never asked for.
        tensors: name of a tensor in the file → our parameter's, ``{i}`` being the layer.
    """

    architecture: str
    model_type: str
    keys: Mapping[str, str]
    rms_norm_eps: float
    settings: Mapping[str, tuple[object, ...]]
    extras: Mapping[str, object]
    tensors: Mapping[str, str]

    def tensor_names(self, config: ModelConfig) -> dict[str, str]:
        """Name in the file → our parameter's name, for every tensor a checkpoint of this shape holds."""
        names: dict[str, str] = {}
        for theirs, ours in self.tensors.items():
            if (ours == HEAD and config.tie_embeddings) or (ours.endswith(".bias") and not config.qkv_bias):
                continue
            layers = range(config.num_layers) if "{i}" in theirs else range(1)
            names.update((theirs.format(i=i), ours.format(i=i)) for i in layers)
        return names

    @property
    def head_name(self) -> str:
        """Name in the file of the output head, which a tied checkpoint does not need."""
        return next(theirs for theirs, ours in self.tensors.items() if ours == HEAD)


LLADA = Format(
    architecture="LLaDAModelLM",
    model_type="llada",
    keys={
        "vocab_size": "embedding_size",
        "hidden_size": "d_model",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "num_kv_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_length": "max_sequence_length",
        "rope_theta": "rope_theta",
        "rms_norm_eps": "rms_norm_eps",
        "qkv_bias": "include_qkv_bias",
        "tie_embeddings": "weight_tying",
        "mask_id": "mask_token_id",
        "pad_id": "pad_token_id",
    },
    rms_norm_eps=1e-5,
    settings={
        "block_type": ("llama",),
        "activation_type": ("silu",),
        "layer_norm_type": ("rms",),
        "rope": (True,),
        "alibi": (False, None),
        "input_emb_norm": (False, None),
        "scale_logits": (False, None),
        "attention_layer_norm": (False, None),
        "include_bias": (False, None),
        "bias_for_layer_norm": (False, None),
        "layer_norm_with_affine": (True, None),
        "multi_query_attention": (None, False, True),
        "block_group_size": (1, None),
        "clip_qkv": (None,),
    },
    extras={
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "flash_attention": False,
        "rope_full_precision": True,
        "use_cache": False,
    },
    tensors={
        "model.transformer.wte.weight": "embed.weight",
        "model.transformer.blocks.{i}.attn_norm.weight": "blocks.{i}.attention_norm.weight",
        "model.transformer.blocks.{i}.q_proj.weight": "blocks.{i}.attention.q.weight",
        "model.transformer.blocks.{i}.q_proj.bias": "blocks.{i}.attention.q.bias",
        "model.transformer.blocks.{i}.k_proj.weight": "blocks.{i}.attention.k.weight",
        "model.transformer.blocks.{i}.k_proj.bias": "blocks.{i}.attention.k.bias",
        "model.transformer.blocks.{i}.v_proj.weight": "blocks.{i}.attention.v.weight",
        "model.transformer.blocks.{i}.v_proj.bias": "blocks.{i}.attention.v.bias",
        "model.transformer.blocks.{i}.attn_out.weight": "blocks.{i}.attention.out.weight",
        "model.transformer.blocks.{i}.ff_norm.weight": "blocks.{i}.feed_forward_norm.weight",
        "model.transformer.blocks.{i}.ff_proj.weight": "blocks.{i}.feed_forward.gate.weight",
        "model.transformer.blocks.{i}.up_proj.weight": "blocks.{i}.feed_forward.up.weight",
        "model.transformer.blocks.{i}.ff_out.weight": "blocks.{i}.feed_forward.down.weight",
        "model.transformer.ln_f.weight": "norm.weight",
        "model.transformer.ff_out.weight": HEAD,
    },
)

DREAM = Format(
    architecture="DreamModel",
    model_type="Dream",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "intermediate_size": "intermediate_size",
        "max_length": "max_position_embeddings",
        "rope_theta": "rope_theta",
        "rms_norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
        "mask_id": "mask_token_id",
        "pad_id": "pad_token_id",
    },
    rms_norm_eps=1e-6,
    settings={
        "hidden_act": ("silu", None),
        "rope_scaling": (None,),
        "use_sliding_window": (False, None),
        "use_mrope": (False, None),
    },
    extras={"attention_dropout": 0.0, "sliding_window": None, "use_cache": False},
    tensors={
        "model.embed_tokens.weight": "embed.weight",
        "model.layers.{i}.input_layernorm.weight": "blocks.{i}.attention_norm.weight",
        "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attention.q.weight",
        "model.layers.{i}.self_attn.q_proj.bias": "blocks.{i}.attention.q.bias",
        "model.layers.{i}.self_attn.k_proj.weight": "blocks.{i}.attention.k.weight",
        "model.layers.{i}.self_attn.k_proj.bias": "blocks.{i}.attention.k.bias",
        "model.layers.{i}.self_attn.v_proj.weight": "blocks.{i}.attention.v.weight",
        "model.layers.{i}.self_attn.v_proj.bias": "blocks.{i}.attention.v.bias",
        "model.layers.{i}.self_attn.o_proj.weight": "blocks.{i}.attention.out.weight",
        "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.feed_forward_norm.weight",
        "model.layers.{i}.mlp.gate_proj.weight": "blocks.{i}.feed_forward.gate.weight",
        "model.layers.{i}.mlp.up_proj.weight": "blocks.{i}.feed_forward.up.weight",
        "model.layers.{i}.mlp.down_proj.weight": "blocks.{i}.feed_forward.down.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": HEAD,
    },
)

FORMATS: dict[Family, Format] = {"llada": LLADA, "dream": DREAM}
