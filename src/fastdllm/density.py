"""How settled the surroundings of each answer slot are: d2Cache's certainty density (arXiv 2509.23094).

Its decoder ranks slots by it (the certainty prior), its cache chooses rows by it.

Shapes: B rows of the batch, G answer slots.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def certainty_density(decoded: Tensor, sigma: float) -> Tensor:
    """Share of decoded slots around each slot, weighted by a Gaussian of their distance; float64 (B, G).

    D_i = sum_j d(j) exp(-(i - j)^2 / 2 sigma^2) / sum_k exp(-k^2 / 2 sigma^2), where G decoded slots (the prompt)
    stand left of the answer and G copies of its last slot right of it, and k runs over all distances up to 2 G.
    The sum is taken as it stands: an FFT leaves rounding noise, some of it below 0, where few slots are decoded.

    Args:
        decoded: true or 1 where a slot holds a token, (B, G).
        sigma: width in slots, above 0; infinity counts all slots alike.
    """
    weights, prompt = _weights(decoded.shape[1], sigma, decoded.device)
    return decoded.double() @ weights + prompt


@functools.lru_cache(maxsize=8)
def _weights(count: int, sigma: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """What slot j gives to slot i, (G, G) by (j, i), with the copies of the last; and what the prompt gives, (G,)."""
    places = torch.arange(2 * count, dtype=torch.float64, device=device)
    near = (-0.5 * (places / sigma) ** 2).exp()
    near /= near[0] + 2 * near[1:].sum()
    tail = near.unfold(0, count, 1)[1:].sum(1)
    inside = near[(places[:count, None] - places[:count]).abs().long()]
    inside[-1] += tail.flip(0)
    return inside, tail
