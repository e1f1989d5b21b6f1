"""What is answered, in OpenAI's shapes, for the document at `/openapi.json` and for the answers that are sent whole."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FINISH = Literal["stop", "length"]


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(Reply):
    message: str
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field that is wrong, as in `fastdllm.cache`.")
    code: str | None


class ErrorReply(Reply):
    error: ErrorBody


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int = Field(description="Up to the end token, or with the token that completed a stop string.")
    total_tokens: int
    nfe: int = Field(description="Forward passes, summed over the choices.")
    tokens_per_forward: float = Field(description="completion_tokens divided by nfe.")


class TokenLogprob(Reply):
    token: str
    logprob: float = Field(description="Of the token when it was committed.")
    bytes: list[int] | None = Field(description="Null where the tokenizer does not spell the token's bytes.")
    top_logprobs: list[Any] = Field(max_length=0)


class ChatLogprobs(Reply):
    content: list[TokenLogprob]
    refusal: None


class ChatMessage(Reply):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Reply):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FINISH


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None = Field(description="A name for the weights.")
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FINISH


class CompletionReply(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None = Field(description="A name for the weights.")
    choices: list[CompletionChoice]
    usage: Usage


class ParameterReply(Reply):
    name: str
    type: str
    default: bool | int | float | str | None


class StrategyReply(Reply):
    name: str
    summary: str
    source: str
    parameters: list[ParameterReply]


class DefaultsReply(Reply):
    max_tokens: int
    temperature: float
    top_p: float | None
    cache: str
    decoder: str
    block_length: int


class ModelDetails(Reply):
    family: str
    dtype: str
    device: str
    max_model_len: int = Field(description="Most tokens of prompt and answer together.")
    max_choices: int = Field(description="Most answers (prompts times n) of a request.")
    chat: bool = Field(description="Whether there is a chat template.")
    aliases: list[str]
    caches: list[StrategyReply]
    decoders: list[StrategyReply]
    defaults: DefaultsReply


class ModelReply(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    fastdllm: ModelDetails


class ModelsReply(Reply):
    object: Literal["list"]
    data: list[ModelReply]


class HealthReply(Reply):
    status: Literal["ok", "closing", "failed"]
    model: str
    version: str
