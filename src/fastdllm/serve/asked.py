"""From what a request says to the jobs that answer it, or the sentence that refuses it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fastdllm.config import GenerationConfig, GenerationOptions, parse_cache, parse_decoder
from fastdllm.errors import OptionError
from fastdllm.models.source import EMBEDDED
from fastdllm.serve.errors import api_error, invalid
from fastdllm.serve.jobs import Job
from fastdllm.serve.schema import INT64, ChatRequest, Extension, Shared
from fastdllm.serve.service import Service

FILE_PARAMETERS = ("frequencies",)
"""Parameters of strategies that name a file of the server's."""


def check(service: Service, body: Shared, prompts: int) -> None:
    """Refuse what can be refused before the prompts are read."""
    service.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options go with stream: true alone.", "stream_options")
    if body.fastdllm is not None and body.fastdllm.stream_drafts and not body.stream:
        raise invalid("stream_drafts goes with stream: true alone.", "fastdllm.stream_drafts")
    choices, most = prompts * (body.n or 1), service.settings.max_choices
    if choices > most:
        named = "n" if prompts == 1 else "prompt"
        raise invalid(f"{choices} answers (prompts times n) are asked for; at most {most} are served.", named)


def jobs(service: Service, body: Shared, prompts: Sequence[Sequence[int]], *, where: str) -> list[Job]:
    """A job for each choice of each prompt, the choices of a prompt in a row.

    Args:
        where: the field that holds the prompts.
    """
    deadline = time.monotonic() + service.settings.timeout
    seed = secrets.randbits(63) if body.seed is None else body.seed
    made = []
    for prompt in prompts:
        config = _config(service, body, _length(service, body, len(prompt), where))
        for choice in range(body.n or 1):
            own = replace(config, seed=(seed + choice + INT64) % (2 * INT64) - INT64)  # 64 bits wrap around
            made.append(Job(prompt=tuple(prompt), config=own, deadline=deadline))
    return made


def stops(body: Shared) -> tuple[str, ...]:
    """The stop strings."""
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _max_tokens(body: Shared) -> tuple[int | None, str]:
    """Answer slots as asked for, and the field that says so."""
    other = body.max_completion_tokens if isinstance(body, ChatRequest) else None
    if None not in (other, body.max_tokens) and other != body.max_tokens:
        raise invalid(
            f"max_completion_tokens={other} contradicts max_tokens={body.max_tokens}; give one.",
            "max_completion_tokens",
        )
    return (body.max_tokens, "max_tokens") if other is None else (other, "max_completion_tokens")


def _length(service: Service, body: Shared, prompt: int, where: str) -> int:
    """Answer slots of a prompt of that many tokens: as asked for, else the default or what is left."""
    most, default = service.max_model_len, service.settings.options.get("gen_length", GenerationConfig.gen_length)
    asked, field = _max_tokens(body)
    if asked is not None and asked > most:
        raise invalid(
            f"{field} is too large: {asked}; this model's maximum context length is {most} tokens, the {where} "
            "included.",
            field,
        )
    length = asked or max(1, min(default, most - prompt))
    if prompt + length > most:
        raise invalid(
            f"this model's maximum context length is {most} tokens. However, you requested {prompt + length} tokens "
            f"({prompt} in the {where}, {length} in the completion). Please reduce the length of the {where} or the "
            "completion.",
            where,
            "context_length_exceeded",
        )
    return length


def _config(service: Service, body: Shared, length: int) -> GenerationConfig:
    """The options of a generation of ``length`` slots: the request's over the server's."""
    asked = body.fastdllm or Extension()
    given = {
        "cache": asked.cache, "decoder": asked.decoder, "block_length": asked.block_length,
        "temperature": body.temperature, "top_p": body.top_p,
    }  # fmt: skip
    options = GenerationOptions(**service.settings.options)
    options.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    options["gen_length"] = length
    if asked.decoder is not None:
        _refuse_files(service, asked.decoder)
    with _naming("fastdllm.cache"):
        options["cache"] = parse_cache(options.get("cache", GenerationConfig.cache))
    with _naming("fastdllm.decoder"):
        options["decoder"] = parse_decoder(options.get("decoder", GenerationConfig.decoder))
        return GenerationConfig(**options)


def _refuse_files(service: Service, spec: str) -> None:
    """Requests do not say which files of the server are read, but for what its own decoder and models bring."""
    own = GenerationConfig(**service.settings.options).rule
    known = {*EMBEDDED, *(str(getattr(own, name)) for name in FILE_PARAMETERS if hasattr(own, name))}
    for part in spec.partition(":")[2].split(","):
        name, _, value = (side.strip() for side in part.partition("="))
        if name in FILE_PARAMETERS and value not in known:
            said = f"{name} names a file of the server; a request can name {', '.join(EMBEDDED)} alone."
            raise invalid(said, "fastdllm.decoder")


@contextmanager
def _naming(param: str) -> Iterator[None]:
    """Refusals of options name the field they came in."""
    try:
        yield
    except OptionError as error:
        raise api_error(error, param=param) from None
