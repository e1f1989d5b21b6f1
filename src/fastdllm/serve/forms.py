"""The two shapes of an answer, OpenAI's chat completion and text completion, whole and in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastdllm.engine import Engine
from fastdllm.serve.answer import Answer, Token
from fastdllm.serve.logprobs import chat_logprobs, completion_logprobs


class Form(Protocol):
    """How choices look on the wire."""

    prefix: str
    """Of the ids."""
    whole: str
    chunk: str
    """What ``object`` is called, of an answer that is sent whole and of one that is streamed."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a streamed choice begins with."""
        ...

    def part(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None = None) -> dict[str, Any]:
        """What is added to a choice."""
        ...

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """A complete choice."""
        ...


class ChatForm:
    """``chat.completion``."""

    prefix = "chatcmpl"
    whole, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, engine: Engine, logprobs: bool) -> None:
        self._engine, self._logprobs = engine, logprobs

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None = None) -> dict[str, Any]:
        delta = {"content": text} if text or tokens else {}
        logprobs = chat_logprobs(self._engine, tokens) if self._logprobs and tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        logprobs = chat_logprobs(self._engine, answer.told) if self._logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}


class CompletionForm:
    """``text_completion``."""

    prefix = "cmpl"
    whole = chunk = "text_completion"

    def __init__(self, engine: Engine, logprobs: bool) -> None:
        self._engine, self._logprobs = engine, logprobs

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def part(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None = None) -> dict[str, Any]:
        logprobs = completion_logprobs(self._engine, tokens) if self._logprobs and tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        logprobs = completion_logprobs(self._engine, answer.told) if self._logprobs else None
        return {
            "index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish_reason
        }  # fmt: skip
