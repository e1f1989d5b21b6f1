"""Text files that come from users, and files that must not be left half written."""

from __future__ import annotations

import os
from pathlib import Path

from fastdllm.errors import OptionError


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OptionError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def write_whole(path: Path, content: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, path)
