"""What requests may hold: OpenAI's fields as far as they are served, and one object of our own.

Types are strict, as in the protocol: "1" is no number. Fields of the protocol that are not served may stand there with
the value that means their absence; every other field is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

STOPS, STOP_LENGTH, SPEC_LENGTH, NAME_LENGTH = 4, 256, 256, 256
INT64 = 2**63


def _whole(value: object) -> object:
    """In JSON 1.0 is a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Zero: TypeAlias = Annotated[float, Field(ge=0, le=0)]
Nothing: TypeAlias = Annotated[list[Any], Field(max_length=0)]
EmptyObject: TypeAlias = Annotated[dict[str, Any], Field(max_length=0)]
StopText: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=STOP_LENGTH)]
Spec: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=SPEC_LENGTH)]
Id: TypeAlias = Annotated[Whole, Field(ge=0)]
Texts: TypeAlias = Annotated[list[str], Field(min_length=1)]
Ids: TypeAlias = Annotated[list[Id], Field(min_length=1)]

FORMS = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of lists of token ids",
    "stop": f"a text, or a list of at most {STOPS} texts, of 1 to {STOP_LENGTH} characters each",
    "content": "a text or a list of text parts",
}
"""In words, what fields that take several types may be."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Extension(Strict):
    """How the canvas is filled; what is left out is the server's default, which `GET /v1/models` tells."""

    cache: Spec | None = Field(
        default=None, description="Which keys and values are reused, as in `dual`.", examples=["dual"]
    )
    decoder: Spec | None = Field(
        default=None, description="What is committed after a pass.", examples=["threshold:threshold=0.9"]
    )
    block_length: Annotated[Whole, Field(ge=1)] | None = Field(default=None, description="Slots of a block.")
    stream_drafts: bool | None = Field(
        default=None, description="With `stream`: send the whole canvas after every pass, too."
    )


class StreamOptions(Strict):
    include_usage: bool | None = Field(default=None, description="End with a chunk that holds the usage and no choice.")
    include_obfuscation: Literal[False] | None = None


class Shared(Strict):
    """The fields that chat and text completions have in common."""

    model: str = Field(max_length=NAME_LENGTH, description="A model that `GET /v1/models` lists.")
    max_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="Answer slots (gen_length): the most tokens the answer can have."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[Whole, Field(ge=-INT64, lt=INT64)] | None = Field(
        default=None, description="Of the noise; choice i of a prompt uses seed + i. Drawn at random if it is left out."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=STOPS)] | None = Field(
        default=None, description="Texts at which the answer ends; they are not part of it."
    )
    n: Annotated[Whole, Field(ge=1)] | None = Field(default=None, description="Answers to each prompt.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Accepted and not used.")
    fastdllm: Extension | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: EmptyObject | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


Content: TypeAlias = str | Annotated[list[TextPart], Field(min_length=1)]


class Message(Strict):
    """A turn of the conversation; the fields that only answers have may come back as they were given."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: None = None
    refusal: None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class TextFormat(Strict):
    type: Literal["text"]


class ChatRequest(Shared):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="The same as max_tokens."
    )
    logprobs: bool | None = Field(default=None, description="Give each token's log-probability when it was committed.")
    top_logprobs: Annotated[Whole, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None
    metadata: EmptyObject | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(Shared):
    """Body of `POST /v1/completions`."""

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(min_length=1)]
    logprobs: Annotated[Whole, Field(ge=0, le=1)] | None = Field(
        default=None, description="Give each token's log-probability when it was committed; no alternatives."
    )
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[Whole, Field(ge=1, le=1)] | None = None


UNSERVED = frozenset((
    "frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs", "response_format", "modalities", "tools",
    "tool_choice", "functions", "function_call", "store", "metadata", "service_tier", "echo", "suffix", "best_of",
    "include_obfuscation", "name", "refusal", "annotations", "audio", "tool_calls",
))  # fmt: skip
"""Fields that may only say that they are not used."""

FIELDS = frozenset(
    name
    for model in (ChatRequest, CompletionRequest, Message, TextPart, TextFormat, StreamOptions, Extension)
    for name in model.model_fields
)
"""Every field that a request may have, at any depth."""
