"""Log-probabilities of an answer's tokens when they were committed, in OpenAI's two shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from fastdllm.engine import Engine
from fastdllm.pieces import PARTIAL
from fastdllm.serve.answer import Token
from fastdllm.text import Text

LOWEST = -9999.0
"""For a confidence of 0, as OpenAI has it: JSON knows no infinity."""


def chat_logprobs(engine: Engine, tokens: Sequence[Token]) -> dict[str, object]:
    """``choices[].logprobs`` of a chat completion."""
    content = [
        {
            "token": spelling(engine.text, token.id),
            "logprob": _log(token.confidence),
            "bytes": token_bytes(engine.text, token.id),
            "top_logprobs": [],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(engine: Engine, tokens: Sequence[Token]) -> dict[str, object]:
    """``choices[].logprobs`` of a text completion."""
    return {
        "tokens": [spelling(engine.text, token.id) for token in tokens],
        "token_logprobs": [_log(token.confidence) for token in tokens],
        "top_logprobs": None,
        "text_offset": [token.offset for token in tokens],
    }


def _log(confidence: float) -> float:
    return max(LOWEST, math.log(confidence)) if confidence > 0 else LOWEST


def spelling(text: Text | None, token: int) -> str:
    """A token by itself: its text, the name of a special one, or the id where there is no tokenizer."""
    return str(token) if text is None else text.decode([token]) or text.token(token)


def token_bytes(text: Text | None, token: int) -> list[int] | None:
    """The bytes of a token; None for a part of a character that is not spelt byte by byte."""
    if text is None:
        return None
    shown = spelling(text, token)
    if PARTIAL not in shown:
        return list(shown.encode())
    spelt = [_byte_alphabet().get(character) for character in text.token(token)]
    return None if None in spelt else [byte for byte in spelt if byte is not None]


@functools.lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers (GPT-2's and its followers') spell each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
