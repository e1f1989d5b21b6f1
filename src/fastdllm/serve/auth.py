"""API keys: where they come from, and the check that every request passes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from fastdllm.errors import OptionError
from fastdllm.files import read_text
from fastdllm.serve.errors import ApiError

VARIABLE = "FASTDLLM_API_KEYS"
CHALLENGE = {"WWW-Authenticate": "Bearer"}


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of a file (one a line, # begins a comment) and of the variable, where commas or blanks part them.

    Raises:
        OptionError: file or variable is there and holds no key, or one that no header can carry.
    """
    keys: list[str] = []
    if VARIABLE in environment:
        keys += _checked(environment[VARIABLE].replace(",", " ").split(), VARIABLE)
    if file is not None:
        lines = (line.strip() for line in read_text(file).splitlines())
        keys += _checked([line for line in lines if line and not line.startswith("#")], str(file))
    return tuple(dict.fromkeys(keys))


def _checked(keys: list[str], source: str) -> list[str]:
    if not keys:
        raise OptionError(f"{source} holds no API key.")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise OptionError(f"{source} holds an API key with characters other than printable ASCII without blanks.")
    return keys


class Auth:
    """Lets a request through when its ``Authorization: Bearer`` holds one of the keys, or its path is open to all."""

    def __init__(self, app: ASGIApp, keys: Collection[str], is_open: Collection[str]) -> None:
        self._app, self._open = app, frozenset(is_open)
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._knows(scope):
            await self._app(scope, receive, send)
            return
        message = "a valid API key is needed; send it with the header Authorization: Bearer KEY."
        refusal = ApiError(401, message, code="invalid_api_key", headers=CHALLENGE)
        await refusal.response()(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Takes as long whichever key it is, and whether it is one."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that the comparison does not tell a key's
