"""What the document at `/openapi.json` says beyond the types of routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fastdllm.serve.replies import ErrorReply

TITLE = "fastdllm"
ABOUT = (
    "Masked diffusion language models behind OpenAI's protocol. Answers are filled pass by pass; the object `fastdllm` "
    "of a request says how."
)
REFUSALS = {
    400: "A field is wrong, or the request does not fit the model.",
    401: "There is no valid API key.",
    404: "There is no such model.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    429: "Too many requests wait; Retry-After says when to come back.",
    500: "The request failed.",
    503: "The server is closing or out of memory; Retry-After says when to come back.",
    504: "The request took longer than it may.",
}
STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With stream: chunks, then [DONE]."}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with; any other has the same shape."""
    listed: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorReply, "description": REFUSALS[status]} for status in statuses
    }
    return {**listed, "default": {"model": ErrorReply, "description": "Any other error."}}


def answers(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What a route that generates may answer."""
    return {200: {"model": model, "description": "The answer.", "content": STREAM}, **refusals(*REFUSALS)}
