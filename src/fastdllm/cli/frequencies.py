"""``fastdllm frequencies``: count the tokens of a corpus, for the decoder ``pc``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.cli.console import note
from fastdllm.errors import OptionError
from fastdllm.files import read_text, write_whole

Files = Annotated[list[Path], typer.Argument(metavar="TEXTFILE...", help="Texts of the kind to be written.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The counts, as JSON.")]
Field = Annotated[str, typer.Option(metavar="NAME", help="What holds the text in each line of a .jsonl file.")]


def frequencies(
    files: Files, out: Out, model: opt.Model = opt.MODEL, revision: opt.Revision = None, field: Field = "text"
) -> None:
    """Count the tokens of texts, for the decoder pc; reads no weights."""
    from fastdllm.frequencies import build
    from fastdllm.models.checkpoint import resolve
    from fastdllm.text import load_text

    text = load_text(resolve(model, revision, weights=False))
    if text is None:
        raise OptionError(f"{model} has no tokenizer to count the tokens of.")
    counted = build((content for file in files for content in _texts(file, field)), text.encode)
    if not counted["num_token"]:
        raise OptionError(f"{', '.join(map(str, files))} hold no text.")
    write_whole(out, json.dumps(counted) + "\n")
    note(f"{counted['num_token']} tokens counted into {out}")


def _texts(file: Path, field: str) -> Iterator[str]:
    """The text of a file, or of each line of a .jsonl file."""
    content = read_text(file)
    if file.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _field(line, field, f"{file} line {number}")


def _field(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{where} is not JSON ({error}).") from None
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        raise OptionError(f"{where} has no text under {field!r}; --field names what holds it.")
    return str(value[field])
