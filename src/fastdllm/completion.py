"""Answers, folded from the events of the passes that made them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastdllm.errors import NumericalError
from fastdllm.events import FinishReason, RowEvent, StepEvent


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The answer to one prompt.

    Counts follow the field: NFE is the number of forward passes this row took part in, and an
    answer's tokens are those left of its first end token.
    """

    index: int
    """Which prompt this answers."""
    tokens: tuple[int, ...]
    """Ids left of the first end token."""
    canvas: tuple[int, ...]
    """All ``gen_length`` ids; slots that were never computed hold the padding id."""
    text: str
    """The tokens as text; empty when the checkpoint has no tokenizer."""
    nfe: int
    """Forward passes in which this row was active."""
    finish_reason: FinishReason
    """``stop`` when the answer holds an end token, else ``length``."""
    rows_computed: int
    """Canvas rows that went through the network for this prompt, over all passes."""
    committed_at: tuple[int, ...]
    """For each slot of the canvas the pass (1 the first) that committed it; 0 where it was filled."""
    confidences: tuple[float, ...]
    """For each slot the probability it was committed with; 1.0 where it was filled."""
    prompt_tokens: int
    seconds: float
    """From the start of the batch to the end of this row."""

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens divided by the passes in which this row was active (TPF)."""
        return len(self.tokens) / self.nfe

    @property
    def rows_per_token(self) -> float:
        """Rows computed for each answer token: what a token costs on any hardware; infinite for an empty answer."""
        return self.rows_computed / len(self.tokens) if self.tokens else float("inf")

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens for each second from the start of the batch to the end of this row."""
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Draft:
    """One answer as it grows: the fold of a row's events."""

    index: int
    prompt_tokens: int
    gen_length: int
    mask_id: int
    pad_id: int
    started: float = field(default_factory=time.perf_counter)
    nfe: int = 0
    rows_computed: int = 0
    finish_reason: FinishReason | None = None
    seconds: float = 0.0
    canvas: list[int] = field(init=False)
    committed_at: list[int] = field(init=False)
    confidences: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.canvas = [self.mask_id] * self.gen_length
        self.committed_at = [0] * self.gen_length
        self.confidences = [1.0] * self.gen_length

    def add(self, event: RowEvent) -> None:
        """Take in what one pass did to this row."""
        for at, token, confidence in zip(event.positions, event.tokens, event.confidences, strict=True):
            self.canvas[at], self.committed_at[at], self.confidences[at] = token, event.nfe, confidence
        for at in event.remasked:
            self.canvas[at], self.committed_at[at], self.confidences[at] = self.mask_id, 0, 1.0
        self.nfe = event.nfe
        self.rows_computed += event.rows_computed
        self.finish_reason = event.finish_reason
        self.seconds = time.perf_counter() - self.started

    def answer(self, eos_ids: Sequence[int]) -> list[int]:
        """Ids so far left of the first end token; open slots hold the mask id."""
        return self.canvas[: self.first_end(eos_ids)]

    def first_end(self, eos_ids: Sequence[int]) -> int:
        """Slot of the first end token so far; ``gen_length`` when there is none."""
        return next((slot for slot, token in enumerate(self.canvas) if token in eos_ids), self.gen_length)

    def finish(self, text: str, tokens: Sequence[int]) -> Completion:
        """The answer, once its last event is in."""
        assert self.finish_reason is not None
        return Completion(
            index=self.index,
            tokens=tuple(tokens),
            canvas=tuple(self.pad_id if token == self.mask_id else token for token in self.canvas),
            text=text,
            nfe=self.nfe,
            finish_reason=self.finish_reason,
            rows_computed=self.rows_computed,
            committed_at=tuple(self.committed_at),
            confidences=tuple(self.confidences),
            prompt_tokens=self.prompt_tokens,
            seconds=self.seconds,
        )


def fold(drafts: dict[int, Draft], event: StepEvent) -> list[Draft]:
    """Add one pass to the drafts; return those that it finished.

    Raises:
        NumericalError: the model's logits for a row were not numbers.
    """
    for row in event.rows:
        if row.failed:
            raise NumericalError(f"the model's logits for prompt {row.index} are not numbers.")
        drafts[row.index].add(row)
    return [drafts[row.index] for row in event.rows if row.finish_reason]
