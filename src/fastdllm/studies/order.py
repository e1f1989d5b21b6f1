"""The order in which one answer is decoded: what each pass was sure of, and what it committed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastdllm.caches import Pass
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.events import RowEvent
from fastdllm.pieces import pieces
from fastdllm.studies.passes import Question, caption, document, encode, settings_of, watched
from fastdllm.studies.table import Table

NAME, TITLE = "order", "Decoding order of one answer"
NOTES = (
    "Blocks count from 0. Leftmost open slot: the share of the committed slots that left no open slot to their left, "
    "100 where an answer is decoded from left to right."
)


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """How the answer is decoded."""

    gen_length: int = 64
    block_length: int = 8
    cache: str = "dual"
    decoder: str = "threshold:threshold=0.9"
    seed: int = 0

    def __post_init__(self) -> None:
        GenerationConfig(**self.generation)

    @property
    def generation(self) -> GenerationOptions:
        return {
            "gen_length": self.gen_length, "block_length": self.block_length, "cache": self.cache,
            "decoder": self.decoder, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OrderPass:
    """One pass. Slots count from the first of the answer."""

    block: int
    confidence: dict[int, float]
    """Of the best token of each slot that could have been committed."""
    committed: dict[int, float]
    """Slots written, with the confidence of the token."""
    tokens: tuple[int, ...]
    """What was written into them."""
    remasked: tuple[int, ...]
    leftmost: int
    """How many of the committed slots left no open slot to their left."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One answer, pass by pass.

    Args:
        labels: the text of each slot, empty for those that were not decoded.
    """

    options: OrderOptions
    settings: dict[str, Any]
    question: str
    prompt_tokens: Sequence[int]
    labels: Sequence[str]
    passes: Sequence[OrderPass]

    @property
    def block_length(self) -> int:
        return int(self.settings["block_length"])

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; slots count from the first of the answer, passes from 1."""
        return {
            "settings": self.settings,
            "question": self.question,
            "prompt_tokens": list(self.prompt_tokens),
            "slots": list(self.labels),
            "passes": [
                {
                    "pass": number,
                    "block": one.block,
                    "confidence": _slots(one.confidence),
                    "committed": [
                        {"slot": slot, "token": token, "confidence": round(sure, 6)}
                        for (slot, sure), token in zip(one.committed.items(), one.tokens, strict=True)
                    ],
                    "remasked": list(one.remasked),
                    "leftmost": one.leftmost,
                }
                for number, one in enumerate(self.passes, start=1)
            ],
        }

    @property
    def tables(self) -> list[Table]:
        """A row for each block and one for the answer."""
        head = ["block", "passes", "slots committed", "tokens per pass", "mean confidence", "leftmost open slot, %"]
        blocks = sorted({one.block for one in self.passes})
        rows = [_cells(str(block), [one for one in self.passes if one.block == block]) for block in blocks]
        return [Table(head, [*rows, _cells("all", self.passes)])]

    def markdown(self) -> str:
        """Picture, table and notes."""
        return document(NAME, TITLE, self.tables, NOTES, f"{self.caption}.")

    @property
    def caption(self) -> str:
        """What was decoded, on one line."""
        return caption(self.settings, 1, f"cache {self.options.cache}", self.options.decoder)


def _slots(confidence: dict[int, float]) -> list[dict[str, float]]:
    return [{"slot": slot, "confidence": round(sure, 6)} for slot, sure in confidence.items()]


def _cells(name: str, passes: Sequence[OrderPass]) -> list[str]:
    """One row of the table."""
    sure = [confidence for one in passes for confidence in one.committed.values()]
    count = len(sure)
    leftmost = f"{100 * sum(one.leftmost for one in passes) / count:.0f}" if count else "-"
    mean = f"{math.fsum(sure) / count:.3f}" if count else "-"
    return [name, str(len(passes)), str(count), f"{count / len(passes):.2f}", mean, leftmost]


def run(engine: Engine, problems: Sequence[Question], options: OrderOptions) -> Order:
    """Decode the first problem and note what every pass did."""
    (prompt,) = encode(engine, problems[:1], options.generation)
    mask, draft = engine.config.mask_id, engine.draft(0, len(prompt), options.gen_length)
    passes, seen = list[OrderPass](), list[dict[int, float]]()

    def see(one: Pass) -> None:
        seen.append(_confidence(one, len(prompt)))

    for row in watched(engine, prompt, options.generation, see):
        passes.append(_pass(row, seen[-1], [at for at, token in enumerate(draft.canvas) if token == mask]))
        draft.add(row)
    shown = pieces(engine.text, draft.canvas, mask, engine.config.eos_ids)
    return Order(
        options=options,
        settings=settings_of(engine, options.generation),
        question=problems[0].question,
        prompt_tokens=prompt,
        labels=["" if token == mask else piece for token, piece in zip(draft.canvas, shown, strict=True)],
        passes=passes,
    )


def _confidence(seen: Pass, prompt: int) -> dict[int, float]:
    """Confidence of each slot that this pass may commit."""
    chosen = seen.prediction.candidate[0]
    slots = (seen.prediction.positions[0, chosen] - prompt).tolist()
    return dict(zip(slots, seen.prediction.confidence[0, chosen].tolist(), strict=True))


def _pass(row: RowEvent, confidence: dict[int, float], was_open: Sequence[int]) -> OrderPass:
    committed = dict(zip(row.positions, row.confidences, strict=True))
    fresh = sorted(set(was_open) & committed.keys())
    return OrderPass(
        block=row.block,
        confidence=confidence,
        committed=committed,
        tokens=row.tokens,
        remasked=row.remasked,
        leftmost=sum(slot == place for slot, place in zip(fresh, sorted(was_open), strict=False)),
    )
