"""Requests of a soak: good ones with the answer that each gets alone, and bad ones with their refusals."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from fastdllm.engine import Engine
from fastdllm.serve.replies import ChatReply, CompletionReply, ErrorReply

MODEL, POISON = "toy", "Q"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WIDTH, MOST_CHOICES, MOST_BYTES = 160, 4, 20_000
PROMPTS = ("hello", "Tom has 5 apples", "\u00e9t\u00e9", "a b c d", "1 + 1 =", "x")
CACHES = ("none", "prefix", "dual", "dual", "sliding:suffix_window=4", "dkv:refresh=3")
DECODERS = ("topk:k=2", "threshold:threshold=0.5", "threshold:threshold=0.5", "factor", "wino", "edit", "saber")

PLAIN = {"model": MODEL, "prompt": "hello", "max_tokens": 8}
BAD: tuple[tuple[dict[str, Any], int, str | None], ...] = (
    ({**PLAIN, "max_tokens": 0}, 400, "max_tokens"),
    ({**PLAIN, "max_tokens": 10_000}, 400, "max_tokens"),
    ({**PLAIN, "prompt": "long " * 40}, 400, "prompt"),
    ({**PLAIN, "prompt": "x" * MOST_BYTES}, 413, None),
    ({**PLAIN, "temperature": 3}, 400, "temperature"),
    ({**PLAIN, "best": 1}, 400, "best"),
    ({**PLAIN, "n": MOST_CHOICES + 1}, 400, "n"),
    ({**PLAIN, "stop": [""]}, 400, "stop[0]"),
    ({**PLAIN, "stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({**PLAIN, "fastdllm": {"cache": "doual"}}, 400, "fastdllm.cache"),
    ({**PLAIN, "fastdllm": {"decoder": "topk:k=0"}}, 400, "fastdllm.decoder"),
    ({**PLAIN, "model": "other"}, 404, "model"),
    ({"model": MODEL, "max_tokens": 8}, 400, "prompt"),
)
"""Bodies of text completions, with the status and the field of their refusal."""
POISONED = {**PLAIN, "prompt": f"a{POISON}"}
"""Its logits are no numbers."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A good request, and what every answer to it must be."""

    path: str
    body: dict[str, Any]
    texts: list[str]
    reasons: list[str]
    prompt_tokens: int
    nfe: int | None
    """Passes of all choices; None where a stop string may end them before."""


def cases(engine: Engine, count: int, seed: int = 0) -> list[Case]:
    """So many good requests of all sorts."""
    rng = random.Random(seed)
    return [_case(engine, rng) for _ in range(count)]


def _case(engine: Engine, rng: random.Random) -> Case:
    assert engine.text is not None
    prompt, n, seed = rng.choice(PROMPTS), rng.choice([1, 1, 1, 1, 2, 3]), rng.randrange(1000)
    extension = {"cache": rng.choice(CACHES), "decoder": rng.choice(DECODERS), "block_length": rng.choice([4, 8])}
    length, temperature = rng.choice([4, 8, 16]), rng.choice([0.0, 0.9])
    path = rng.choice([CHAT, COMPLETIONS])
    turns = [{"role": "user", "content": prompt}]
    ids = engine.text.encode_chat(turns) if path == CHAT else engine.text.encode(prompt)
    alone = [
        engine.generate([ids], gen_length=length, temperature=temperature, seed=seed + i, **extension)[0]
        for i in range(n)
    ]
    stop = _stop(alone[0].text, rng) if rng.random() < 0.4 else None
    body = {
        "model": MODEL, **({"messages": turns} if path == CHAT else {"prompt": prompt}), "max_tokens": length, "n": n,
        "temperature": temperature, "seed": seed, "fastdllm": extension, **({"stop": stop} if stop else {}),
    }  # fmt: skip
    cut = [stop is not None and stop in one.text for one in alone]
    return Case(
        path=path, body=body, prompt_tokens=len(ids), nfe=None if stop else sum(one.nfe for one in alone),
        texts=[one.text.partition(stop)[0] if stop else one.text for one in alone],
        reasons=["stop" if is_cut else one.finish_reason for one, is_cut in zip(alone, cut, strict=True)],
    )  # fmt: skip


def _stop(text: str, rng: random.Random) -> str | None:
    """Two characters of an answer; None where it has no two that are plain."""
    pairs = [text[i : i + 2] for i in range(len(text) - 1) if text[i : i + 2].isascii()]
    return rng.choice(pairs) if pairs else None


def check_whole(case: Case, content: dict[str, Any]) -> None:
    """The answer has the protocol's shape, every choice once, and each is what the request gets alone."""
    (ChatReply if case.path == CHAT else CompletionReply).model_validate(content)
    choices = content["choices"]
    assert [one["index"] for one in choices] == list(range(len(case.texts))), "every choice once"
    texts = [one["message"]["content"] if case.path == CHAT else one["text"] for one in choices]
    assert texts == case.texts, case.body
    assert [one["finish_reason"] for one in choices] == case.reasons, case.body
    check_usage(case, content["usage"])


def check_usage(case: Case, usage: dict[str, Any]) -> None:
    assert usage["prompt_tokens"] == case.prompt_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert case.nfe is None or usage["nfe"] == case.nfe, case.body


def check_stream(case: Case, chunks: list[dict[str, Any]]) -> None:
    """The parts of every choice add up to its answer, end once, and nothing follows but the usage."""
    assert len({chunk["id"] for chunk in chunks}) == 1
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usage) == 1
    check_usage(case, usage[0])
    texts, reasons = [""] * len(case.texts), [list[str]() for _ in case.texts]
    for part in (part for chunk in chunks for part in chunk["choices"]):
        assert not reasons[part["index"]], "nothing follows the end of a choice"
        texts[part["index"]] += (part["delta"].get("content") if case.path == CHAT else part["text"]) or ""
        reasons[part["index"]] += [part["finish_reason"]] if part["finish_reason"] else []
    assert texts == case.texts, case.body
    assert reasons == [[reason] for reason in case.reasons], case.body


def check_error(content: dict[str, Any], param: str | None = None) -> str | None:
    """The code of an error, whose shape is the protocol's and whose field is ``param``."""
    error = ErrorReply.model_validate(content).error
    assert error.param == param, error
    return error.code
