"""Shape of a model, whatever the family's own names for it are."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

from fastdllm.errors import OptionError

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


def check_divides(config: ModelConfig, size: int) -> None:
    """Refuse to split a model over ``size`` processes where its parts do not come out even.

    Raises:
        OptionError: names the numbers of processes that do.
    """
    heads, inner, tokens = config.num_kv_heads, config.intermediate_size, config.vocab_size
    most = gcd(heads, inner, tokens)
    if most % size:
        *few, last = (str(n) for n in range(1, most + 1) if most % n == 0)
        allowed = f"{', '.join(few)} or {last}" if few else last
        raise OptionError(
            f"tensor_parallel={size} does not divide a model with {heads} key/value heads, a feed-forward width of "
            f"{inner} and a vocabulary of {tokens}; it can be {allowed}."
        )
