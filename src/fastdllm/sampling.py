"""From logits to proposals: filters, noise, confidence and the scores that decoders rank by.

Everything is float32 whatever the model's dtype: a bf16 confidence of 0.8984 would pass a threshold
of 0.9. Noise is a pure function of (seed, pass, position, token), so that a row draws the same
numbers alone and in any batch.

Shapes: B rows of the batch, M candidate slots (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.canvas import Slots, to_device
from fastdllm.errors import OptionError

_MASK32 = 0xFFFFFFFF
HOTTEST = 1e6
ALGS = ("maskgit_plus", "topk_margin", "entropy", "random")


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit hash (xor-shift-multiply rounds), in int64 so that every device has the operations."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


@dataclass(frozen=True)
class Noise:
    """Counter-based random numbers of one pass: ``seed`` and ``nfe`` are (B,) on the device."""

    seed: Tensor
    nfe: Tensor

    def _keys(self, positions_BM: Tensor, stream: int) -> Tensor:
        low, high = self.seed & _MASK32, (self.seed >> 32) & _MASK32
        row = _mix(_mix(_mix(_mix(low ^ stream) ^ high) ^ self.nfe))
        return _mix(row[:, None] ^ _mix(positions_BM + 1))

    def uniform(self, positions_BM: Tensor) -> Tensor:
        """One number in (0, 1) for each position, float32 (B, M)."""
        return _unit(self._keys(positions_BM, stream=0x52414E4B))

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        """One standard Gumbel number for each position, float32 (B, M)."""
        return _gumbel(self._keys(positions_BM, stream=0x504F5349))

    def token_gumbel(self, positions_BM: Tensor, vocab_size: int) -> Tensor:
        """Standard Gumbel numbers, float32 (B, M, V)."""
        tokens = _mix(torch.arange(1, vocab_size + 1, device=positions_BM.device))
        return _gumbel(_mix(self._keys(positions_BM, stream=0x544F4B45)[..., None] ^ tokens))


def _unit(bits: Tensor) -> Tensor:
    return ((bits.float() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24)


def _gumbel(bits: Tensor) -> Tensor:
    # -log(1 - w) keeps full relative precision for small w, where the large values come from.
    return -torch.log(-torch.log1p(-_unit(bits)))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How proposals are drawn, for each row of a batch; tensors (B,) on the device.

    ``top_p`` of 1 and ``top_k`` of 0 are off. ``noisy`` and ``filtered`` say, without asking the
    device, whether any row has a temperature or a filter.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    seed: Tensor
    noisy: bool
    filtered: bool

    @classmethod
    def of(
        cls,
        batch: int,
        *,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | Sequence[int] = 0,
        device: torch.device | str = "cpu",
    ) -> Sampling:
        """The same options for ``batch`` rows; ``seed`` may be a list, one for each row.

        Raises:
            OptionError: an option is out of range or the seeds are not one for each row.
        """
        if not 0.0 <= temperature <= HOTTEST:
            raise OptionError(f"temperature={temperature} must be from 0 to {HOTTEST:g}.")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise OptionError(f"top_p={top_p} must be above 0 and at most 1.")
        if top_k is not None and not 1 <= top_k < 2**31:
            raise OptionError(f"top_k={top_k} must be from 1 to {2**31 - 1}.")
        seeds = [index(s) for s in seed] if isinstance(seed, Sequence) else [index(seed)] * batch
        if len(seeds) != batch:
            raise OptionError(
                f"seed has {len(seeds)} entries for {batch} prompts; give one number, or one for each prompt."
            )
        if any(not -(2**63) <= s < 2**63 for s in seeds):
            raise OptionError("seed must fit in 64 bits.")
        return cls(
            temperature=torch.full((batch,), float(temperature), device=device),
            top_p=torch.full((batch,), 1.0 if top_p is None else float(top_p), device=device),
            top_k=torch.full((batch,), 0 if top_k is None else top_k, device=device),
            seed=to_device(torch.tensor(seeds, dtype=torch.long), torch.device(device)),
            noisy=temperature > 0,
            filtered=top_k is not None or (top_p is not None and top_p < 1),
        )

    def keep(self, batch: Sequence[int]) -> Sampling:
        """The rows in ``batch`` alone."""
        kept = to_device(torch.tensor(batch, dtype=torch.long), self.seed.device)
        return Sampling(
            temperature=self.temperature[kept],
            top_p=self.top_p[kept],
            top_k=self.top_k[kept],
            seed=self.seed[kept],
            noisy=self.noisy,
            filtered=self.filtered,
        )

    def join(self, other: Sampling) -> Sampling:
        """The rows of both; options that are off for a row leave it as it is."""
        rows = ("temperature", "top_p", "top_k", "seed")
        return Sampling(
            **{name: torch.cat((getattr(self, name), getattr(other, name))) for name in rows},
            noisy=self.noisy or other.noisy,
            filtered=self.filtered or other.filtered,
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Proposals for the slots of a pass.

    ``confidence`` is a probability, the thing thresholds read; a *score* only orders slots.
    """

    slots: Slots
    tokens: Tensor
    """Proposed ids (B, M)."""
    confidence: Tensor
    """Probability of the proposal, float32 (B, M), before temperature and after filters."""
    logits: Tensor
    """Filtered logits, float32 (B, M, V)."""
    noise: Noise
    sampling: Sampling

    @property
    def positions(self) -> Tensor:
        """Canvas positions (B, M); padding points one past the canvas."""
        return self.slots.positions

    @property
    def candidate(self) -> Tensor:
        """True (B, M) where the slot may be committed."""
        return self.slots.candidate

    def redrawn(self, logits: Tensor) -> Prediction:
        """The same slots with proposals drawn anew, with the same noise, from other ``logits`` (B, M, V)."""
        return _draw(logits, logits.max(-1).indices, self.slots, self.sampling, self.noise)

    def score(self, alg: str) -> Tensor:
        """Order of preference (B, M), larger first: the names are Dream's, plus LLaDA's ``random``."""
        if alg == "maskgit_plus":
            return self.confidence
        if alg == "random":
            return self.noise.uniform(self.positions)
        log_p = F.log_softmax(self.logits, dim=-1)
        if alg == "topk_margin":
            top = log_p.topk(2, dim=-1).values.exp()
            return top[..., 0] - top[..., 1]
        p = log_p.exp()
        return (p * (p + 1e-10).log()).sum(-1)


def rank(score: Tensor, candidate: Tensor) -> Tensor:
    """Place of each slot (B, M), 0 the best; equal scores go left to right and padding comes last."""
    order = score.masked_fill(~candidate, float("-inf")).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def check_alg(alg: str) -> None:
    """Refuse a name that :meth:`Prediction.score` does not know."""
    if alg not in ALGS:
        raise OptionError(f"alg={alg!r} is not one of {', '.join(ALGS)}.")


def _filter(logits: Tensor, sampling: Sampling) -> Tensor:
    """Drop what top_p and top_k exclude; the likeliest token always stays.

    Confidences are those of what is left, at temperature 0 too: the smaller the nucleus, the more slots
    pass a threshold. That is Dream's sampler, and what thresholds published with a top_p mean.

    As Dream's sampler: a token goes when the tokens before it already hold more than ``top_p``
    of the (tempered) probability, then when it is below the ``top_k``-th. Ties at ``top_k`` stay.
    """
    tempered = torch.where(sampling.temperature > 0, sampling.temperature, 1.0)[:, None, None]
    ordered, tokens = (logits / tempered).sort(dim=-1, descending=True, stable=True)
    p = F.softmax(ordered, dim=-1)
    before = p.cumsum(-1) - p
    drop = (before > sampling.top_p[:, None, None]) & (sampling.top_p < 1)[:, None, None]
    drop[..., 0] = False
    logits = logits.masked_fill(drop.scatter(-1, tokens, drop), float("-inf"))
    rank = torch.where(sampling.top_k > 0, sampling.top_k, logits.shape[-1]).clamp(max=logits.shape[-1]) - 1
    least = logits.sort(dim=-1, descending=True).values.gather(-1, rank[:, None, None].expand(*logits.shape[:2], 1))
    return logits.masked_fill(logits < least, float("-inf"))


def propose(logits: Tensor, slots: Slots, sampling: Sampling, nfe: Tensor, mask_id: int) -> Prediction:
    """Draw a proposal for every slot.

    Temperature adds Gumbel noise to the logits, which samples softmax(logits / temperature), and
    leaves the confidence untempered (LLaDA's generate.py). The mask token is never proposed.

    Args:
        logits: (B, M, V) in the model's dtype; overwritten.
        slots: what the logits predict.
        sampling: options of each row.
        nfe: passes of each row so far, (B,) on the device.
        mask_id: the id that is forbidden.
    """
    logits[..., mask_id] = float("-inf")
    best, likeliest = logits.max(-1, keepdim=True)
    # With the best logit at 0 a confidence close to 1 keeps its digits: at 60 a float32 step is 4e-6.
    logits = logits.float().sub_(best)
    if sampling.filtered:
        logits = _filter(logits, sampling)
    return _draw(logits, likeliest[..., 0], slots, sampling, Noise(sampling.seed, nfe))


def _draw(logits: Tensor, likeliest: Tensor, slots: Slots, sampling: Sampling, noise: Noise) -> Prediction:
    """Proposals from ``logits`` (B, M, V), of which ``likeliest`` (B, M) are the best."""
    tokens = likeliest
    if sampling.noisy:
        noisy = logits + sampling.temperature[:, None, None] * noise.token_gumbel(slots.positions, logits.shape[-1])
        tokens = noisy.max(-1).indices  # on CPUs in half the time of argmax
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    confidence = (chosen - logits.logsumexp(-1)).exp()
    return Prediction(slots=slots, tokens=tokens, confidence=confidence, logits=logits, noise=noise, sampling=sampling)
