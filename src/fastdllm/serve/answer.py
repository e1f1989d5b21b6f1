"""One answer as it grows: what of it can no longer change, as text and as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdllm.engine import Engine
from fastdllm.events import FinishReason, RowEvent
from fastdllm.pieces import pieces
from fastdllm.serve.detokenizer import Detokenizer, Stops
from fastdllm.serve.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of the answer that can no longer change."""

    id: int
    offset: int
    """Characters of the answer before it."""
    confidence: float
    """The probability it was committed with."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a pass adds to an answer."""

    text: str
    tokens: tuple[Token, ...]
    """Those whose text begins with what has been said so far."""


class Answer:
    """The answer to a job, fed with its events.

    A slot is final once it and all slots left of it are committed; with a decoder that revises, once its block is
    done, too. The text of final slots is said, but for a character or a stop string that may be incomplete. A
    stop string ends the answer before it; tokens count up to the one that completes it.
    """

    def __init__(self, engine: Engine, job: Job, stops: Sequence[str] = ()) -> None:
        self.draft = engine.draft(0, len(job.prompt), job.config.gen_length)
        self.text = ""
        """What was said so far."""
        self.tokens: list[Token] = []
        """Final tokens left of the first end token."""
        self.finish_reason: FinishReason | None = None
        self._engine, self._ends = engine, frozenset(engine.config.eos_ids)
        self._block = job.config.block_length if job.config.rule.revises else None
        self._detokenizer, self._stops = Detokenizer(engine.text), Stops(stops)
        self._decoded = 0
        """Characters of the answer as far as its tokens are final, said or held back."""
        self._told = 0
        self._pieces: dict[tuple[int, ...], str] = {}

    @property
    def nfe(self) -> int:
        return self.draft.nfe

    @property
    def told(self) -> list[Token]:
        """The tokens that deltas have named: those whose text begins in what was said."""
        return self.tokens[: self._told]

    def add(self, event: RowEvent) -> Delta:
        """Take in what a pass did. Once there is a finish reason, nothing more may come."""
        assert self.finish_reason is None
        self.draft.add(event)
        said = len(self.text)
        final = self._final(event)
        while len(self.tokens) < final and not self._stops.found:
            self._take(len(self.tokens))
        if event.finish_reason and not self._stops.found:
            self._say(self._detokenizer.flush())
            if not self._stops.found:
                self.text += self._stops.flush()
        self.finish_reason = "stop" if self._stops.found else event.finish_reason
        return Delta(text=self.text[said:], tokens=self._tell())

    def _final(self, event: RowEvent) -> int:
        """Slots at the left that can no longer change; none of them holds an end token."""
        limit = len(self.draft.canvas)
        if self._block is not None and not event.finish_reason:
            limit = min(limit, event.block * self._block)
        stops = self._ends | {self.draft.mask_id}
        return next((s for s in range(len(self.tokens), limit) if self.draft.canvas[s] in stops), limit)

    def _take(self, slot: int) -> None:
        token = self.draft.canvas[slot]
        self.tokens.append(Token(id=token, offset=self._decoded, confidence=self.draft.confidences[slot]))
        self._say(self._detokenizer.push(token))

    def _say(self, fresh: str) -> None:
        self._decoded += len(fresh)
        self.text += self._stops.push(fresh)

    def _tell(self) -> tuple[Token, ...]:
        """The tokens that were not told of and whose text begins in what was said; at the end of an answer all."""
        every = self.finish_reason is not None and not self._stops.found
        until = self._told
        while until < len(self.tokens) and (every or self.tokens[until].offset < len(self.text)):
            until += 1
        fresh, self._told = tuple(self.tokens[self._told : until]), until
        return fresh

    def view(self, event: RowEvent) -> dict[str, object]:
        """The whole canvas after a pass, JSON-ready; what is open has no text, pass or confidence."""
        draft, engine = self.draft, self._engine
        end, mask = draft.first_end(engine.config.eos_ids), draft.mask_id
        shown = pieces(engine.text, draft.canvas, mask, self._ends, self._pieces)
        filled = [token != mask for token in draft.canvas]
        texts = ["" if token in self._ends else piece for token, piece in zip(draft.canvas, shown, strict=True)]
        return {
            "nfe": event.nfe,
            "block": event.block,
            "rows_computed": event.rows_computed,
            "finish_reason": self.finish_reason,
            "canvas": [text if there else None for text, there in zip(texts, filled, strict=True)],
            "committed_at": list(draft.committed_at),
            "confidence": [value if there else None for value, there in zip(draft.confidences, filled, strict=True)],
            "end": end if end < draft.gen_length else None,
            "text": self.text,
        }
