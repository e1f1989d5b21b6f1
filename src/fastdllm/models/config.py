"""Shape of a model, whatever the family's own names for it are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["llada", "dream"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything the transformer needs to know; :mod:`fastdllm.models.checkpoint` reads it from config.json.

    ``shift`` is the one quirk of a family that reaches generation: row ``p - shift`` predicts
    position ``p`` (0 for LLaDA, 1 for Dream).
    """

    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    max_length: int
    rope_theta: float
    rms_norm_eps: float
    qkv_bias: bool
    tie_embeddings: bool
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def shift(self) -> int:
        return 1 if self.family == "dream" else 0
