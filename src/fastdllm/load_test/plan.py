"""What a load test sends, how much of it, and when."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastdllm.checks import check_above, check_least
from fastdllm.errors import OptionError
from fastdllm.load_test.request import Request

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests come: so many at a time, or so many a second by chance; one of the two."""

    concurrency: int | None = None
    """Closed loop: each answer is followed by the next request."""
    rate: float | None = None
    """Open loop: arrivals of a Poisson process, whatever the server does."""

    def __post_init__(self) -> None:
        assert (self.concurrency is None) != (self.rate is None)
        if self.concurrency is not None:
            check_least("concurrency", self.concurrency, 1)
        if self.rate is not None:
            check_above("rate", self.rate)
            check_least("rate", self.rate)

    @property
    def name(self) -> str:
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g} a second"


def loads(concurrency: str | None, rate: str | None) -> tuple[Load, ...]:
    """The loads of two lists of numbers, such as ``1,4,16``.

    Raises:
        OptionError: a list is none, or a number of it is out of range or stands there twice.
    """
    found = [Load(concurrency=int(text)) for text in _numbers("--concurrency", concurrency, r"\d+")]
    found += [Load(rate=float(text)) for text in _numbers("--rate", rate, r"\d+(\.\d+)?|\.\d+")]
    for load in found:
        if found.count(load) > 1:
            raise OptionError(f"the load of {load.name} is given twice.")
    return tuple(found)


def _numbers(option: str, text: str | None, pattern: str) -> list[str]:
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(pattern, part) for part in parts):
        raise OptionError(f"{option} {text!r} must be a number, or several with commas, such as 1,4,16.")
    return parts


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What one request asks.

    Args:
        content: a text, or token ids.
        check: whether an answer is right, where that is known.
    """

    content: str | tuple[int, ...]
    check: Callable[[str], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Posed:
    """Prompts, and what to record of where they come from."""

    name: str
    digest: str
    prompts: Sequence[Prompt]

    def as_json(self) -> dict[str, Any]:
        return {"prompts": self.name, "digest": self.digest, "count": len(self.prompts)}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What all requests ask beside their prompts.

    Args:
        max_tokens: fewest and most of an answer; each request has a number between, drawn by its own number.
        chat: send conversations, else texts or ids as they are; None: conversations if the server takes them.
        temperature, top_p: None leaves them out.
        seed: of the lengths and, request by request, of the noise.
        extension: the field ``fastdllm``; empty leaves it out, for servers that do not know it.
    """

    max_tokens: tuple[int, int]
    chat: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    extension: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least, most = self.max_tokens
        check_least("max_tokens", least, 1)
        check_least("max_tokens", most, least)

    def requests(self, prompts: Sequence[Prompt], count: int, *, model: str, chats: bool) -> list[Request]:
        """So many requests: one for each prompt, from the first again when they do not suffice.

        Args:
            chats: whether the server takes conversations.

        Raises:
            OptionError: token ids cannot be sent as a conversation.
        """
        chat = chats if self.chat is None else self.chat
        chosen = [prompts[number % len(prompts)] for number in range(count)]
        path = CHAT if chat else COMPLETIONS
        return [
            Request(
                number=number, path=path, check=prompt.check,
                body={"model": model, **_as_field(prompt, chat), **self._options(number)},
            )
            for number, prompt in enumerate(chosen)
        ]  # fmt: skip

    def _options(self, number: int) -> dict[str, Any]:
        """The fields beside model and prompt of the request of that number, the same at every load."""
        options = {
            "max_tokens": random.Random(f"{self.seed} {number}").randint(*self.max_tokens),
            "temperature": self.temperature, "top_p": self.top_p, "fastdllm": dict(self.extension) or None,
            "seed": self.seed + number if self.temperature else None,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return {name: value for name, value in options.items() if value is not None}


def _as_field(prompt: Prompt, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"prompt": prompt.content if isinstance(prompt.content, str) else list(prompt.content)}
    if not isinstance(prompt.content, str):
        raise OptionError("a prompt of token ids cannot be sent as a conversation; give --raw.")
    return {"messages": [{"role": "user", "content": prompt.content}]}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is sent.

    Args:
        requests: of each load in each round; all loads send the same ones in the same order.
        rounds: turns of each load; a round has a turn of every load, in their order.
        warm_up: requests before the first round, which do not count; None: 8, or as many as the highest load
            has at a time.
        seconds: after which a turn sends no more.
        timeout: seconds after which a request is given up.
        seed: of the arrivals.
    """

    loads: Sequence[Load]
    requests: int = 128
    rounds: int = 3
    warm_up: int | None = None
    seconds: float = 60.0
    timeout: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "rounds"):
            check_least(name, getattr(self, name), 1)
        check_least("warm_up", self.warm_ups)
        for name, value in {"time": self.seconds, "timeout": self.timeout}.items():
            check_above(name, value)
            check_least(name, value)
        if self.widest > self.requests:
            raise OptionError(f"requests={self.requests} do not fill a load of {self.widest} at a time; give more.")

    @property
    def widest(self) -> int:
        """Most requests at a time of a load that says so."""
        return max((load.concurrency or 1 for load in self.loads), default=1)

    @property
    def warm_ups(self) -> int:
        return max(8, self.widest) if self.warm_up is None else self.warm_up

    def arrivals(self, load: Load, turn: int) -> Iterator[float]:
        """When requests come, in seconds from the start of a turn: a Poisson process of its own for each round."""
        assert load.rate is not None
        rng, at = random.Random(f"{self.seed} {turn}"), 0.0
        while True:
            at += rng.expovariate(load.rate)
            yield at

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "warm_up": self.warm_ups, "loads": [load.name for load in self.loads]}
