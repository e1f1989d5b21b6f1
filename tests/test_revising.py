"""Decoders that take back what they committed, against their definitions, on confidences given by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastdllm.canvas import Canvas, Delta, Slots
from fastdllm.config import parse_decoder
from fastdllm.events import RowEvent
from fastdllm.sampling import Noise, Prediction, Sampling
from fastdllm.state import RowState
from toys import EOS, FAMILIES, MASK, VOCAB, prompts_of, toy_engine, turn_of


class Block:
    """A block whose slots hold tokens (or the mask), stepped by a decoder on likeliest tokens with confidences."""

    def __init__(self, decoder: str, held: list[int]) -> None:
        self.decoder, self.held, self.notes, self.passes = parse_decoder(decoder), list(held), RowState(), 0
        self.hold = False

    def step(self, likeliest: list[int], confidence: list[float], verifier: list[float] | None = None) -> None:
        """One pass; ``verifier`` are probabilities of the tokens that stand there."""
        M, current = len(self.held), torch.tensor([self.held])
        known = torch.ones(1, M, dtype=torch.bool)
        slots = Slots(
            positions=torch.arange(M)[None], current=current, known=known, fresh=known,
            candidate=current == MASK, revisable=current != MASK,
        )  # fmt: skip
        tokens = torch.tensor([likeliest])
        prediction = Prediction(
            slots=slots, tokens=tokens, confidence=torch.tensor([confidence]),
            logits=self._logits(tokens, torch.tensor([confidence])), noise=Noise(torch.tensor([0]), torch.tensor([0])),
            sampling=Sampling.of(1),
        )  # fmt: skip
        turn = turn_of(prediction, step=self.passes, logits=self._verdicts(current, verifier))
        delta = self.decoder.step(replace(turn, notes=self.notes))
        for at in delta.commit[0].nonzero()[:, 0].tolist():
            self.held[at] = likeliest[at]
        for at in delta.remask[0].nonzero()[:, 0].tolist():
            self.held[at] = MASK
        self.hold = delta.hold is not None and bool(delta.hold[0])
        self.passes += 1

    @staticmethod
    def _logits(tokens: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
        """Logits (1, M, V), the best 0, that give ``tokens`` those probabilities and the rest to all others."""
        p = confidence[..., None].double().clamp(1e-9, 1 - 1e-9)
        logits = ((1 - p) / (VOCAB - 2)).expand(*tokens.shape, VOCAB).clone()
        logits[..., MASK] = 0
        logits.scatter_(-1, tokens[..., None], p)
        return logits.log().float() - logits.log().amax(-1, keepdim=True).float()

    def _verdicts(self, current: torch.Tensor, verifier: list[float] | None) -> torch.Tensor | None:
        if verifier is None:
            return None
        at = current.masked_fill(current == MASK, 0)
        return self._logits(at, torch.tensor([verifier]))


def test_edit_overwrites_what_reads_otherwise_and_stops_when_nothing_does():
    block = Block("edit:threshold=0.8,edit_threshold=0.7", [MASK] * 4)
    block.step([1, 2, 3, 4], [0.9, 0.5, 0.8, 0.3])
    assert block.held == [1, MASK, 3, MASK]
    block.step([1, 2, 5, 4], [0.2, 0.5, 0.71, 0.6])  # slot 2 reads 5 now; slot 0 has the same token
    assert block.held == [1, MASK, 5, 4]
    block.step([6, 2, 7, 4], [0.7, 0.9, 0.6, 0.6])  # 0.7 is not above 0.7
    assert (block.held, block.hold) == ([1, 2, 5, 4], True)
    block.step([6, 2, 5, 4], [0.8, 0.9, 0.9, 0.9])
    assert (block.held, block.hold) == ([6, 2, 5, 4], True)
    block.step([6, 2, 5, 4], [0.8, 0.9, 0.9, 0.9])
    assert (block.held, block.hold) == ([6, 2, 5, 4], False)


@pytest.mark.parametrize("post_steps", [0, 1, 3])
def test_edit_that_swings_ends_after_post_steps(post_steps):
    block = Block(f"edit:threshold=0,post_steps={post_steps}", [MASK, MASK])
    block.step([1, 2], [0.95, 0.95])
    extra = 0
    while block.hold:
        block.step([3 + extra % 2, 2], [0.95, 0.95])
        extra += 1
    assert extra == post_steps


def test_an_end_token_that_is_edited_away_gives_back_what_lies_right_of_it():
    canvas = Canvas([[1, 2]], gen_length=4, block_length=4, mask_id=MASK, eos_ids=[EOS])

    def write(slots: dict[int, int]) -> RowEvent:
        at = torch.tensor([[2 + slot for slot in slots]])
        yes = torch.ones_like(at, dtype=torch.bool)
        tokens = torch.tensor([list(slots.values())])
        delta = Delta(positions=at, tokens=tokens, confidence=yes.float(), commit=yes, remask=~yes)
        return canvas.advance(canvas.write(delta), torch.ones(1, dtype=torch.long), 0).rows[0]

    write({1: EOS})
    assert canvas.slots(canvas.region(0)).tolist() == [[2]]  # what lies right of the end is not decoded
    write({1: 7})
    assert canvas.slots(canvas.region(0)).tolist() == [[2, 4, 5]]
    write({0: 8, 2: EOS})
    assert canvas.unfinished() == []


def test_saber_commits_above_the_mean_and_opens_what_fell_most():
    block = Block("saber:n=2", [MASK] * 12)
    block.step(list(range(12)), [0.9, 0.8] + [0.1] * 10)  # no commits yet: the mean is 1, the best two go
    assert block.held == [0, 1] + [MASK] * 10
    # Mean 0.85: slots 2, 3, 4 are above. Of 3 commits one opens (n // 2): slot 1 fell, slot 0 rose.
    block.step(list(range(12)), [0.95, 0.3, 0.9, 0.88, 0.86, 0.84] + [0.1] * 6)
    assert block.held == [0, MASK, 2, 3, 4] + [MASK] * 7
    # Mean of all five commits, the one taken back included: 0.868. Of eight commits one opens: slot 4 fell by 0.76.
    block.step(list(range(12)), [0.2, 0.99, 0.5, 0.87, 0.1] + [0.99] * 7)
    assert block.held == [0, 1, 2, 3, MASK, *range(5, 12)]
    # A single commit opens nothing: fewer open than were committed.
    block.step(list(range(12)), [0.0] * 12)
    assert MASK not in block.held


def test_wino_drafts_to_its_cap_and_takes_back_the_worst():
    size = 12
    block = Block("wino:threshold=0.6,threshold_back=0.9", [MASK] * size)
    confidence = [0.99 - 0.01 * i for i in range(size)]
    block.step(list(range(size)), confidence)
    assert block.held == [*range(8), *[MASK] * 4]  # 70 % of 12 masks
    verifier = [0.1, 0.95, 0.2, 0.3, 0.89, 0.9, 0.91, 0.99] + [0.0] * 4
    block.step(list(range(size)), confidence, verifier)  # four commits; bad are 0, 2, 3, 4, fewer than 8
    assert block.held == [MASK, 1, MASK, MASK, MASK, 5, 6, 7, 8, 9, 10, 11]
    block.step(list(range(size)), [0.7] * size, [0.0] * size)  # all eight are bad, but the last pass committed four
    assert [at for at in range(size) if block.held[at] == MASK] == [1, 5, 6]
    block.step(list(range(size)), [0.5] * size, [0.0] * size)  # a single draft: nothing is taken back
    assert [at for at in range(size) if block.held[at] == MASK] == [5, 6]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", ["edit:threshold=0.4,edit_threshold=0.4", "saber", "wino:threshold=0.4"])
@pytest.mark.parametrize("cache", ["none", "dual", "dllm:kp=4,kr=3", "d2cache:current_k=6", "dkv:refresh=3"])
def test_with_temperature_a_row_alone_is_the_row_in_a_batch(family, decoder, cache):
    engine, prompts = toy_engine(family, seed=2), prompts_of([40, 3, 90])
    options = {"gen_length": 24, "block_length": 8, "temperature": 0.8, "cache": cache, "decoder": decoder}
    together = engine.generate(prompts, seed=[5, 6, 7], **options)
    for index, prompt in enumerate(prompts):
        (alone,) = engine.generate([prompt], seed=5 + index, **options)
        assert alone.canvas == together[index].canvas
        assert (alone.nfe, alone.rows_computed) == (together[index].nfe, together[index].rows_computed)
