"""How likely a masked diffusion model finds a continuation: the Monte-Carlo estimate of its bound.

LLaDA (arXiv 2502.09992, equation 6): mask l of the continuation's L tokens, l uniform on 1 to L, and weigh the
log-likelihood of the masked ones by L / l. The l of the samples are spread evenly over 1 to L from a
random start, which has the same mean and less variance than independent ones.

Shapes: S samples, B rows of a batch of them, L tokens of the continuation, T of context and continuation, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdllm.engine import Engine
from fastdllm.errors import NumericalError


def masks(length: int, samples: int, generator: torch.Generator) -> Tensor:
    """Which tokens each sample masks: (S, L), row by row at least one; on the host.

    Args:
        length: L.
        generator: decides; on the host, so that every device gets the same ones.
    """
    start = int(torch.randint(length, (1,), generator=generator))
    counts = (start + torch.arange(samples) * length // samples) % length + 1
    order = torch.rand(samples, length, generator=generator).argsort(1).argsort(1)
    return order < counts[:, None]


@torch.inference_mode()
def log_likelihood(
    engine: Engine, context: Sequence[int], target: Sequence[int], *, samples: int, batch_size: int, seed: int
) -> float:
    """Estimate log p(target | context) in nats; exact for a target of one token.

    Args:
        context: token ids before the target.
        target: token ids, at least one.
        samples: how many maskings are averaged (LLaDA's ``mc_num``).
        batch_size: of them that run together.
        seed: of the maskings.

    Raises:
        NumericalError: the model's logits are not numbers.
    """
    hidden = masks(len(target), 1 if len(target) == 1 else samples, torch.Generator().manual_seed(seed))
    device = engine.device
    prompt, wanted = (torch.tensor(list(ids), dtype=torch.long, device=device) for ids in (context, target))
    total = 0.0
    for part in hidden.split(batch_size):
        total += _part(engine, prompt, wanted, part.to(device))
    mean = total / len(hidden)
    if mean != mean:
        raise NumericalError(f"{engine.name} gave logits that are not numbers.")
    return mean


def _part(engine: Engine, prompt: Tensor, wanted: Tensor, hidden: Tensor) -> float:
    """Sum over the samples ``hidden`` (B, L) of their weighted log-likelihoods."""
    model, rows = engine.model, len(hidden)
    answer = wanted.expand(rows, -1).masked_fill(hidden, engine.config.mask_id)
    tokens = torch.cat((prompt.expand(rows, -1), answer), dim=1)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    sources = (positions[:, len(prompt) :] - engine.config.shift).clamp(min=0)
    states = model(tokens, positions)
    states = states.gather(1, sources[..., None].expand(*sources.shape, states.shape[-1]))[hidden]
    logits = model.logits(states).float()
    right = logits.gather(1, wanted.expand(rows, -1)[hidden][:, None])[:, 0]
    weight = (hidden.shape[1] / hidden.sum(1, keepdim=True)).expand_as(hidden)[hidden]
    return float((weight * (right - logits.logsumexp(-1))).sum())


def greedily(engine: Engine, context: Sequence[int], target: Sequence[int]) -> bool:
    """Whether plain decoding, one token a pass over one block, writes just the target."""
    (completion,) = engine.generate(
        [list(context)], gen_length=len(target), block_length=len(target), cache="none", decoder="topk:k=1",
        stop_at_eos=False,
    )  # fmt: skip
    return completion.canvas == tuple(target)
