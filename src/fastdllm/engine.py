"""A model with its tokenizer, ready to answer prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from typing_extensions import Unpack

from fastdllm.canvas import Canvas
from fastdllm.checks import check_least
from fastdllm.completion import Completion, Draft, fold
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.events import StepEvent
from fastdllm.loop import decode
from fastdllm.models.transformer import Transformer
from fastdllm.processes import agree
from fastdllm.sampling import Sampling
from fastdllm.text import Text

Prompts: TypeAlias = "str | Sequence[str] | Sequence[Sequence[int]]"


class Engine:
    """Generates answers with one model. :func:`fastdllm.load` makes one from a checkpoint.

    Args:
        model: the network.
        text: its tokenizer; without one, prompts must be token ids and answers have no text.
        name: what results call the model.
    """

    def __init__(self, model: Transformer, text: Text | None = None, *, name: str = "model") -> None:
        self.model, self.text, self.name = model, text, name
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.weight.dtype

    @property
    def precision(self) -> str:
        """Name of the dtype of the linear layers' weights: ``"int8"``, or what :attr:`dtype` is."""
        return self.model.quantized or str(self.dtype).removeprefix("torch.")

    def encode(self, prompts: Prompts, *, chat: bool | None = None) -> list[list[int]]:
        """Token ids of each prompt.

        Args:
            prompts: one text, texts, or lists of token ids, which are taken as they are.
            chat: wrap texts in the checkpoint's chat template; by default when it has one.

        Raises:
            OptionError: an id is outside the vocabulary, or texts came without a tokenizer or template.
        """
        given: list[object] = [prompts] if isinstance(prompts, str) else list(prompts)
        if all(isinstance(p, str) for p in given):
            given = [*self._encode_texts([str(p) for p in given], chat)]
        return [self._checked(i, p) for i, p in enumerate(given)]

    def _encode_texts(self, texts: list[str], chat: bool | None) -> list[list[int]]:
        if not texts:
            return []
        if self.text is None:
            raise OptionError(f"{self.name} has no tokenizer; give prompts as lists of token ids.")
        if self.uses_template(chat):
            return [self.text.encode_chat([{"role": "user", "content": p}]) for p in texts]
        return [self.text.encode(p) for p in texts]

    def _checked(self, index: int, prompt: object) -> list[int]:
        try:
            ids = [int(token) for token in prompt]  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise OptionError(
                f"prompt {index} is {prompt!r}; prompts are one text, texts, or lists of token ids."
            ) from None
        wrong = [token for token in ids if not 0 <= token < self.config.vocab_size]
        if isinstance(prompt, str) or wrong:
            what = f"holds the id {wrong[0]}" if wrong else "is a text among lists of ids"
            raise OptionError(f"prompt {index} {what}; ids run from 0 to {self.config.vocab_size - 1}.")
        return ids

    def uses_template(self, chat: bool | None = None) -> bool:
        """Whether texts are wrapped in the chat template: as asked, or when the checkpoint has one."""
        return chat if chat is not None else self.text is not None and self.text.has_chat_template

    def canvas(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, index: Sequence[int], width: int
    ) -> Canvas:
        """The prompts with all of their answers masked.

        Args:
            index: the number of each, for events.
            width: slots of the canvas.
        """
        return Canvas(
            prompts,
            gen_length=config.gen_length,
            block_length=config.block_length,
            mask_id=self.config.mask_id,
            eos_ids=self.config.eos_ids,
            stop_at_eos=config.stop_at_eos,
            index=index,
            width=width,
            device=self.device,
        )

    def draft(self, index: int, prompt_tokens: int, gen_length: int) -> Draft:
        """The answer to prompt ``index`` before its first pass."""
        return Draft(index, prompt_tokens, gen_length, self.config.mask_id, self.config.pad_id)

    def start(
        self,
        prompts: Prompts,
        *,
        batch_size: int | None = None,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """A generation that has not begun: iterate it for events, then read its completions."""
        config = GenerationConfig(**options)
        config.rule.check_vocabulary(self.config.vocab_size)
        if batch_size is not None:
            check_least("batch_size", batch_size, 1)
        ids = self.encode(prompts, chat=chat)
        longest = max(map(len, ids), default=0)
        if longest + config.gen_length > self.config.max_length:
            raise OptionError(
                f"a prompt of {longest} tokens with gen_length={config.gen_length} is longer than the "
                f"{self.config.max_length} positions of {self.name}."
            )
        return Generation(self, ids, config, batch_size or max(1, len(ids)))

    def stream(
        self,
        prompts: Prompts,
        *,
        batch_size: int | None = None,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[StepEvent]:
        """The passes of :meth:`generate` as they happen, an event for each; the same arguments."""
        return iter(self.start(prompts, batch_size=batch_size, chat=chat, **options))

    def generate(
        self,
        prompts: Prompts,
        *,
        batch_size: int | None = None,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]:
        """Answer every prompt; one completion for each, in their order.

        Args:
            prompts: one text, texts, or lists of token ids. Rows of a batch may differ in length;
                what a prompt gets never depends on its neighbours.
            batch_size: most prompts to run together; all of them by default.
            chat: wrap texts in the chat template; by default when the checkpoint has one.
            options: those of :class:`fastdllm.GenerationConfig`: ``gen_length``, ``block_length``,
                ``cache``, ``decoder``, ``temperature``, ``top_p``, ``top_k``, ``cfg_scale``, ``seed``,
                ``stop_at_eos``.

        Raises:
            OptionError: an option is out of range or contradicts another.
            NumericalError: the model's logits are not numbers.
        """
        generation = self.start(prompts, batch_size=batch_size, chat=chat, **options)
        for _ in generation:
            pass
        return generation.completions


class Generation:
    """One call of :meth:`Engine.generate` as it runs: an iterator of events that gathers the answers.

    ``drafts`` holds the prompts of the batch at work, ``finished`` the answers so far by prompt number.
    """

    def __init__(self, engine: Engine, prompts: list[list[int]], config: GenerationConfig, batch_size: int) -> None:
        self.engine, self.prompts, self.config = engine, prompts, config
        self.batch_size = batch_size
        self.drafts: dict[int, Draft] = {}
        self.finished: dict[int, Completion] = {}
        self._sampling = sampling_of(config, len(prompts), engine.device)
        self._events = self._run()

    def __iter__(self) -> Iterator[StepEvent]:
        return self._events

    @property
    def completions(self) -> list[Completion]:
        """The answers in the order of their prompts, once every event has been read."""
        return [self.finished[i] for i in range(len(self.prompts))]

    def _run(self) -> Iterator[StepEvent]:
        if self.engine.model.tensor_parallel > 1:  # what a cache keeps to itself (a recorder, say) may differ
            agree((self.prompts, self.batch_size, replace(self.config, cache="none")), "prompts or options")
        for first in range(0, len(self.prompts), self.batch_size):
            batch = range(first, min(first + self.batch_size, len(self.prompts)))
            length = self.config.gen_length
            self.drafts = {i: self.engine.draft(i, len(self.prompts[i]), length) for i in batch}
            for event in self._decode(batch):
                for draft in fold(self.drafts, event):
                    self.finished[draft.index] = self._complete(draft)
                yield event

    def _decode(self, batch: range) -> Iterator[StepEvent]:
        engine, config = self.engine, self.config
        prompts = self.prompts[batch.start : batch.stop]
        width = engine.model.room(max(map(len, prompts)) + config.gen_length)
        canvas = engine.canvas(prompts, config, index=batch, width=width)
        return decode(engine.model, canvas, config.policy, config.rule, self._sampling.keep(batch), config.cfg_scale)

    def _complete(self, draft: Draft) -> Completion:
        tokens = draft.answer(self.engine.config.eos_ids)
        text = self.engine.text.decode(tokens) if self.engine.text else ""
        return draft.finish(text, tokens)


def sampling_of(config: GenerationConfig, count: int, device: torch.device | str) -> Sampling:
    """The sampling options of ``count`` rows.

    Raises:
        OptionError: one is out of range.
    """
    return Sampling.of(
        count, temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, seed=config.seed, device=device
    )
