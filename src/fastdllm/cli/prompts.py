"""JSON lines of prompts: an object with ``prompt`` and perhaps ``id``, or a text, on each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeGuard

from fastdllm.errors import OptionError

SHAPE = 'a text or an object with "prompt", such as {"prompt": "...", "id": 7}'


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One prompt: a text, or token ids."""

    line: int
    id: str | int
    prompt: str | list[int]

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompt as the engine takes them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt]


def read_entries(text: str, source: str) -> list[Entry]:
    """The prompts of ``text``, blank lines aside; an id not given is the line's number.

    Raises:
        OptionError: a line is not what :data:`SHAPE` says, an id comes twice, or there is no prompt.
    """
    entries = [_entry(line, number, source) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    seen: dict[str | int, int] = {}
    for entry in entries:
        first = seen.setdefault(entry.id, entry.line)
        if first != entry.line:
            raise OptionError(f"{source} line {entry.line}: the id {entry.id!r} is that of line {first} too.")
    return entries


def _entry(line: str, number: int, source: str) -> Entry:
    where = f"{source} line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{where} is not JSON ({error}); give {SHAPE}.") from None
    given = value if isinstance(value, dict) else {"prompt": value}
    prompt, name = given.get("prompt"), given.get("id", number)
    if not isinstance(prompt, str) and not _is_ids(prompt):
        raise OptionError(f"{where} has no prompt; give {SHAPE}.")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise OptionError(f"{where} has the id {json.dumps(name)}; an id is a text or a whole number.")
    return Entry(line=number, id=name, prompt=prompt)


def _is_ids(prompt: object) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and all(type(token) is int for token in prompt)
