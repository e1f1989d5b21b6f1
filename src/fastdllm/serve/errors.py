"""What goes wrong, in OpenAI's shape: a status, a sentence, and the field that is meant."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from fastdllm.errors import NumericalError, OptionError, out_of_memory
from fastdllm.serve.jobs import OutOfMemory, QueueFull, ServerClosing, TimedOut
from fastdllm.serve.schema import FIELDS, FORMS, UNSERVED

logger = logging.getLogger("fastdllm.serve")

GONE = 499
"""Status in log and metrics of a request whose client left, as nginx has it; it is never sent."""
RETRY = 2
"""Seconds after which a client should try again where nothing better is known."""
NOT_JSON = "the body must be JSON; send it with the header Content-Type: application/json."
ROUTE_MESSAGES = {404: "there is nothing at {method} {path}.", 405: "{path} does not take {method}."}


class Json(JSONResponse):
    """JSON in ASCII: half a surrogate pair, which a request may hold and a message repeat, is spelt and not encoded."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


class ApiError(HTTPException):
    """A refusal or a failure, as the client is told of it."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: float | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        wait = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, message, {**wait, **(headers or {})})
        plain = message.partition(" ")[0].isalpha()  # no name=value, which is spelt as it was given
        self.message = message[:1].upper() + message[1:] if plain else message
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, object]:
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Json(self.body, status_code=self.status_code, headers=self.headers)


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def api_error(error: BaseException, *, param: str | None = None) -> ApiError:
    """What a client is told of an exception; ``param`` is the field of an option that is refused."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OptionError):
        return invalid(str(error), param)
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ServerClosing):
        return ApiError(503, str(error), code="server_closing", retry_after=RETRY)
    if isinstance(error, TimedOut):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, NumericalError):
        return ApiError(500, str(error), code="numerical_error")
    if isinstance(error, OutOfMemory) or out_of_memory(error):
        message = "there is not enough memory for this request now; try again, or with fewer max_tokens."
        return ApiError(503, message, code="out_of_memory", retry_after=RETRY)
    logger.error("a request failed", exc_info=error)
    return _failure()


def _failure() -> ApiError:
    return ApiError(500, "the server failed to answer this request; its log says why.", code="internal_error")


def install(app: FastAPI) -> None:
    """Have every error of the application answered in this shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _other)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error.response()
    if error.status_code in ROUTE_MESSAGES:
        message = ROUTE_MESSAGES[error.status_code].format(method=request.method, path=request.url.path[:200])
        return ApiError(error.status_code, message, headers=error.headers).response()
    return ApiError(error.status_code, "the body cannot be read as JSON in UTF-8.", headers=error.headers).response()


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error.body, bytes) and kind != "application/json":
        return ApiError(415, NOT_JSON).response()
    return refused(error.errors()).response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _other(request: Request, error: Exception) -> Response:
    return _failure().response()  # the error itself is raised again behind this, and logged by uvicorn


def refused(errors: Sequence[Any]) -> ApiError:
    """The one of a body's errors that says most: where a field takes several types, the one that lies deepest."""
    error = max(errors, key=lambda one: len(one["loc"]))
    kind, path = error["type"], _path(error)
    param = _spell(path) or None
    if kind == "json_invalid":
        return invalid(f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}.", None)
    if param is None:
        return invalid("the body must be a JSON object.", None)
    if kind == "missing":
        return invalid(f"missing required parameter: '{param}'.", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(f"unknown parameter: '{param}'.", param, "unknown_parameter")
    field = next((part for part in reversed(path) if isinstance(part, str)), "")
    if field in UNSERVED:
        return invalid(f"'{param}' is not served with this value; leave it out.", param, "unsupported_parameter")
    if field in FORMS and path[-1] == field:
        return invalid(f"invalid value for '{param}': it must be {FORMS[field]}.", param, "invalid_value")
    message = error["msg"][:1].lower() + error["msg"][1:]
    return invalid(f"invalid value for '{param}': {message}.", param, "invalid_value")


def _path(error: Any) -> list[str | int]:
    """The place of an error in the body: pydantic's, less the names of the types that a field may take."""
    inside, made_up = error["loc"][1:], error["type"] == "extra_forbidden"
    last = len(inside) - 1
    path = [part for i, part in enumerate(inside) if isinstance(part, int) or part in FIELDS or (made_up and i == last)]
    return path[:1] if path[:1] == ["prompt"] else path  # which of its four types was meant cannot be told


def _spell(path: Sequence[str | int]) -> str:
    """As in ``messages[0].content``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
