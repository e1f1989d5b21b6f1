"""Answers to many prompts, whatever happens to some of them: each is handed over as soon as it is there.

The first batch of a run is not timed: it warms the machine up, and its operations are counted, which is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastdllm.arena.flops import Counter, answers
from fastdllm.completion import Completion
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.errors import NumericalError, out_of_memory


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A prompt to answer."""

    id: str
    prompt: str
    tokens: tuple[int, ...]
    truncated: bool = False
    """Whether the prompt's beginning was left out, as all of it does not fit the model."""
    repeat: int = 0
    """Which sample of this prompt it is, 0 the first; samples differ in their noise."""


Line = dict[str, object]
"""What is known of an answer, JSON-ready; it has an ``error`` where there is no answer."""


class Answerer:
    """Answers prompts in batches, smaller ones when memory runs out, each alone when one of them fails.

    Args:
        batch_size: prompts to run together; halved for good whenever they do not fit.
        keep: called with each answer.
        say: called with a sentence when something did not go as it should.
    """

    def __init__(
        self, engine: Engine, options: GenerationOptions, *, batch_size: int,
        keep: Callable[[Line], None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.engine, self.options = engine, options
        self.seed = GenerationConfig(**options).seed
        self.batch_size, self.keep, self.say = batch_size, keep, say
        self.batches, self.warm = 0, False

    def answer(self, asks: Sequence[Ask]) -> None:
        """Answer all, the longest first: neighbours of like length pad little, and what does not fit shows at once."""
        waiting = sorted(asks, key=lambda ask: -len(ask.tokens))
        if not self.warm:  # operations are counted in the first batch, which should be like the others
            step = max(1, len(waiting) // self.batch_size)
            first = waiting[step // 2 :: step][: self.batch_size]
            waiting = first + [ask for ask in waiting if ask not in first]
        while waiting:
            batch, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            waiting = [*self._left(batch), *waiting]

    def _left(self, batch: list[Ask]) -> list[Ask]:
        """Answer a batch; what is left of it when memory ran out."""
        open_asks = {ask.id: ask for ask in batch}
        try:
            for ask, line in self._run(batch):
                del open_asks[ask.id]
                self.keep(line)
        except (MemoryError, RuntimeError, NumericalError) as error:
            if not (out_of_memory(error) or isinstance(error, NumericalError)):
                raise
            left = list(open_asks.values())
            if len(batch) == 1:
                self._fail(left[0], error)
                return []
            if out_of_memory(error):
                self.batch_size = max(1, len(batch) // 2)
                self.say(f"{len(batch)} prompts together do not fit in memory; going on with {self.batch_size}")
                return left
            for ask in left:  # one of them has logits that are not numbers; alone, the others can be answered
                self._left([ask])
        return []

    def _fail(self, ask: Ask, error: BaseException) -> None:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.say(f"{ask.id} has no answer: {message}")
        self.keep({"id": ask.id, "prompt": ask.prompt, "error": message, "truncated": ask.truncated})

    def _run(self, batch: list[Ask]) -> Iterator[tuple[Ask, Line]]:
        """Each answer of a batch when the pass that ends it is done."""
        self.batches += 1  # also of one that breaks off: what is left of it is another batch
        warm_up = not self.warm
        own: GenerationOptions = {**self.options, "seed": self._seeds(batch)}
        generation = self.engine.start([ask.tokens for ask in batch], **own)
        for done, flops in answers(generation, Counter(self.engine.model) if warm_up else None):
            ask = batch[done.index]
            of_batch = {"batch": self.batches, "batch_size": len(batch), "warm_up": warm_up}
            yield ask, {**_line(ask, done), "flops": flops, **of_batch}
        self.warm = True

    def _seeds(self, batch: list[Ask]) -> list[int]:
        assert isinstance(self.seed, int)
        return [self.seed + ask.repeat for ask in batch]


def _line(ask: Ask, completion: Completion) -> Line:
    return {
        "id": ask.id,
        "prompt": ask.prompt,
        "text": completion.text,
        "tokens": len(completion.tokens),
        "nfe": completion.nfe,
        "rows": completion.rows_computed,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "truncated": ask.truncated,
        "seconds": round(completion.seconds, 6),
    }
