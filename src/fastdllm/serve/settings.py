"""How a server behaves: defaults of requests, limits, and who may ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastdllm.checks import check_above, check_least
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.serve.jobs import Limits

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a server but its model.

    Args:
        name: what requests call the model; None: the engine's own name.
        aliases: other names that requests may use.
        options: of a generation, where a request says nothing; ``gen_length`` is the default of max_tokens.
        limits: of the scheduler.
        max_choices: most answers (prompts times n) of a request.
        max_body: bytes of a request's body.
        timeout: seconds from a request's arrival until it is given up.
        drain_seconds: seconds that running requests have once the server is told to stop.
        api_keys: one of which a request must bring; without any, all are served.
        allow_origins: pages of which other hosts may call the server from a browser; ``*`` is any.
        log_text: write prompts and answers into the log.
        playground: serve the page at ``/``.
        fingerprint: a name for the weights, given as ``system_fingerprint``.
    """

    name: str | None = None
    aliases: tuple[str, ...] = ()
    options: GenerationOptions = field(default_factory=lambda: GenerationOptions())
    limits: Limits = field(default_factory=Limits)
    max_choices: int = 32
    max_body: int = 2 * MIB
    timeout: float = 600.0
    drain_seconds: float = 30.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_origins: tuple[str, ...] = ()
    log_text: bool = False
    playground: bool = True
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        check_least("max_choices", self.max_choices, 1)
        check_least("max_body", self.max_body, 1)
        check_above("timeout", self.timeout)
        check_least("drain_seconds", self.drain_seconds)
        if any(not key for key in self.api_keys):
            raise OptionError("an API key is empty.")
        GenerationConfig(**self.options)
