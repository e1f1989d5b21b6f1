"""The bidirectional transformer behind LLaDA and Dream.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward
(LLaDA, arXiv 2502.09992; Dream, arXiv 2508.15487). There is no causal mask. The forward takes
the *rows* (canvas positions) to compute; keys and values of all other slots come from a store.

Shapes: B batch, R rows of this pass, T canvas length, E model width, H query heads,
K key/value heads, D head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdllm.kv import KVStore
from fastdllm.models.attention import MIXES, Mix, Mixing, attend, weights
from fastdllm.models.config import ModelConfig

Angles: TypeAlias = tuple[Tensor, Tensor]
CHUNK = 512
"""Rows that go through a feed-forward layer together on a CPU, or all of a layer's products: more are no faster."""


class KeyValues(Protocol):
    """What attention asks of a store for one layer of one pass."""

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take this pass's rows (B, K, R, D); give the keys and values (B, K, T, D) to attend to."""
        ...


class LayerStack(Protocol):
    """Runs all layers in place of the blocks, one after another."""

    def __call__(self, x: Tensor, angles: Angles, visible: Tensor | None, store: KeyValues | None) -> Tensor | None:
        """States (B, R, E) after the last layer, from those before the first; None: the blocks must do it."""
        ...


class LayerHook(Protocol):
    """Runs the layers in place of :class:`Block`, for caches that look into them or leave parts of them out."""

    def run(self, block: Block, layer: int, x: Tensor, angles: Angles, visible: Tensor | None) -> Tensor:
        """States (B, R, E) after one layer, from those before it.

        Args:
            angles: rotary angles of the R rows, as :func:`rotary_angles` gives them.
            visible: what each row may attend to, (B, 1, 1 or R, T); None when it may to all.
        """
        ...


def rotary_angles(positions_BR: Tensor, head_dim: int, theta: float) -> Angles:
    """Cosine and sine (B, R, 1, D), float32 whatever the model's dtype (LLaDA's ``rope_full_precision``).

    The first half of the sines is negative, as :func:`rotate` wants them.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions_BR.device, dtype=torch.float32) / head_dim
    angles = positions_BR[:, :, None, None].float() * (1.0 / theta**exponent)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BRHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions by halves: element i turns with element i + D/2."""
    x = x_BRHD.float()
    turned, half = x * cos, x.shape[-1] // 2
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned.to(x_BRHD.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # Torch has no kernel for it on CPUs and takes twice the time with plain operations.
        full = x.float()
        power: Tensor = torch.linalg.vector_norm(full, dim=-1, keepdim=True).square() / x.shape[-1]
        return (full * (power + self.eps).rsqrt()).mul_(self.weight.float()).to(x.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, which may write into what it computes."""
    return F.silu(gate).mul_(up)


def _all_here(of_own_heads: Tensor) -> Tensor:
    return of_own_heads


class Attention(nn.Module):
    """Attention over all heads, or in tensor parallelism over those of this process.

    ``over_heads`` makes a sum over the heads at hand one over all heads; a policy that looks into a layer asks it.
    ``rotate`` and ``mixes`` are how it computes: kernels of this machine may take their place.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.group_size = config.num_heads // config.num_kv_heads
        self.grouped = self.group_size > 1
        self.num_heads = config.num_heads
        self.over_heads: Callable[[Tensor], Tensor] = _all_here
        self.mixing: Mixing = "auto"
        self.mixes: Mapping[str, Mix] = MIXES
        self.rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.k = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.out = nn.Linear(width, width, bias=False)

    def heads(self, projected: Tensor) -> Tensor:
        """Split (B, R, heads * D) into (B, R, heads, D)."""
        return projected.view(*projected.shape[:-1], -1, self.head_dim)

    def queries(self, x: Tensor, angles: Angles) -> Tensor:
        """Queries (B, H, R, D) of the rows ``x`` (B, R, E)."""
        return self.rotate(self.heads(self.q(x)), *angles).transpose(1, 2)

    def keys(self, x: Tensor, angles: Angles) -> Tensor:
        """Keys (B, K, R, D), rotated."""
        return self.rotate(self.heads(self.k(x)), *angles).transpose(1, 2)

    def values(self, x: Tensor) -> Tensor:
        """Values (B, K, R, D)."""
        return self.heads(self.v(x)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """What the rows of ``q`` (B, H, R, D) take from ``k`` and ``v`` (B, K, T, D), projected out: (B, R, E)."""
        return self.merge(attend(q, k, v, visible, self.mixing, self.mixes))

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """How much each row of ``q`` takes from each key, (B, H, R, T), for those who must see it."""
        return weights(q, k, visible).flatten(1, 2)

    def repeated(self, x: Tensor) -> Tensor:
        """Keys or values (B, K, T, D) once for each query head (B, H, T, D)."""
        return x.repeat_interleave(self.group_size, dim=1) if self.grouped else x

    def mean_over_heads(self, x: Tensor) -> Tensor:
        """The mean (B, R, T), float32, of what each head has (B, H, R, T)."""
        return self.over_heads(x.sum(1, dtype=torch.float32)) / self.num_heads

    def merge(self, mixed: Tensor) -> Tensor:
        """Project the heads' results (B, H, R, D) out: (B, R, E)."""
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, angles: Angles, visible: Tensor | None, layer: int, store: KeyValues | None) -> Tensor:
        q, k, v = self.queries(x, angles), self.keys(x, angles), self.values(x)
        if store is not None:
            k, v = store.exchange(layer, k, v)
        return self.attend(q, k, v, visible)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gated: Callable[[Tensor, Tensor], Tensor] = gated

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[:-1].numel() > CHUNK:
            parts = [self.of_rows(rows) for rows in x.flatten(0, -2).split(CHUNK)]
            return torch.cat(parts).view(x.shape)
        return self.of_rows(x)

    def of_rows(self, x: Tensor) -> Tensor:
        """Outputs (..., E) of the rows ``x`` (..., E), whose wide states are all held at once."""
        out: Tensor = self.down(self.gated(self.gate(x), self.up(x)))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, angles: Angles, visible: Tensor | None, layer: int, store: KeyValues | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, visible, layer, store)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Transformer(nn.Module):
    """LLaDA's and Dream's network under neutral names; the checkpoint reader maps theirs onto these."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tensor_parallel = 1
        """Processes that hold a part of this network each."""
        self.quantized: str | None = None
        """What the linear layers' weights are rounded to, where they are."""
        self.stack: LayerStack | None = None
        """Runs all layers at once, where there is something that can."""
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    @property
    def mixing(self) -> Mixing:
        """How attention is computed, one of :data:`fastdllm.models.attention.Mixing`."""
        return cast(Block, self.blocks[0]).attention.mixing

    @mixing.setter
    def mixing(self, mixing: Mixing) -> None:
        for block in self.blocks:
            cast(Block, block).attention.mixing = mixing

    @property
    def kv_heads(self) -> int:
        """Key/value heads of this process."""
        return self.config.num_kv_heads // self.tensor_parallel

    def room(self, length: int) -> int:
        """Slots of the canvas that holds ``length`` tokens: as many."""
        return length

    def allocate(self, batch: int, length: int) -> KVStore:
        """An empty store for every layer and slot of ``batch`` canvases of ``length`` slots, in the model's dtype."""
        config, weight = self.config, self.embed.weight
        return KVStore(
            config.num_layers, batch, self.kv_heads, length, config.head_dim, dtype=weight.dtype, device=weight.device
        )

    def forward(
        self,
        tokens_BR: Tensor,
        positions_BR: Tensor,
        visible: Tensor | None = None,
        store: KeyValues | None = None,
        layers: LayerHook | None = None,
    ) -> Tensor:
        """Hidden states (B, R, E) after the last norm.

        Args:
            tokens_BR: ids of the rows to compute.
            positions_BR: canvas position of each row.
            visible: True where a slot may be attended to, (B, T), or (B, R, T) where rows differ; None when all may.
            store: keys and values of the whole canvas; None when the rows are the whole canvas.
            layers: runs the layers, with a store of its own, in place of the plain ones.
        """
        if visible is not None:
            visible = visible[:, None, None, :] if visible.ndim == 2 else visible[:, None]
        angles = rotary_angles(positions_BR, self.config.head_dim, self.config.rope_theta)
        x: Tensor = self.embed(tokens_BR)
        states = self.stack(x, angles, visible, store) if self.stack and layers is None else None
        if states is None:
            states = x
            for layer, block in enumerate(self.blocks):
                if layers is None:
                    states = block(states, angles, visible, layer, store)
                else:
                    states = layers.run(cast(Block, block), layer, states, angles, visible)
        hidden: Tensor = self.norm(states)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the hidden states (..., E) that were asked for, in the model's dtype."""
        logits: Tensor = self.head(hidden)
        return logits
