"""``fastdllm methods``: every cache and decoder, from the registries themselves."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fastdllm.cli import options as opt
from fastdllm.cli.console import stdout

REGENERATE = "fastdllm methods --markdown > docs/methods.md"
INTRO = f"""\
# Methods

A method is a cache (which rows enter the network in a pass, and whose keys and values are reused) and a decoder (which
slots are committed after it). Any cache goes with any decoder, and both are given as a *spec*: a name, or a name with
the parameters that differ from their defaults, as in `--cache dual --decoder threshold:threshold=0.8`.
`fastdllm arena` compares methods on a set of problems.

Written by `{REGENERATE}`."""

Markdown = Annotated[bool, typer.Option("--markdown", help="Print the page docs/methods.md.")]
Json = Annotated[bool, typer.Option("--json", help="Print the list as JSON.")]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a researcher wants to know of a cache or decoder before choosing it."""

    name: str
    parameters: dict[str, str]
    """Each with its default, written as in a spec."""
    what: str
    source: str
    """The paper it comes from; empty where nobody claims it."""


def catalogue() -> dict[str, list[Entry]]:
    """The registries' entries under a heading for each."""
    from fastdllm.caches import CACHES
    from fastdllm.decoders import DECODERS

    return {"Caches": _entries(CACHES), "Decoders": _entries(DECODERS)}


def _entries(registry: Mapping[str, type]) -> list[Entry]:
    return [
        Entry(
            name=name,
            parameters={f.name: "" if f.default is MISSING else _spelt(f.default) for f in fields(cls)},
            what=first_sentence(inspect.getdoc(cls) or ""),
            source=getattr(cls, "source", ""),
        )
        for name, cls in registry.items()
    ]


def _spelt(value: object) -> str:
    """A value as specs write it: none, true and false are lower case."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, less a reference in brackets at its end, which has a column of its own."""
    paragraph = " ".join(doc.split("\n\n")[0].split()).replace("``", "`")
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph, maxsplit=1)[0]
    return re.sub(r"\s*\([^()]*\)\.$", ".", sentence)


def markdown(tables: Mapping[str, list[Entry]]) -> str:
    """The page docs/methods.md."""
    parts = [INTRO]
    for heading, entries in tables.items():
        head = f"## {heading}\n\n| name | parameters and defaults | what it does | from |\n|---|---|---|---|"
        rows = [f"| `{e.name}` | {_listed(e)} | {e.what} | {e.source or '-'} |" for e in entries]
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def _listed(entry: Entry) -> str:
    return ", ".join(f"`{name}={default}`" for name, default in entry.parameters.items()) or "-"


def methods(as_markdown: Markdown = False, as_json: Json = False) -> None:
    """Every cache and decoder: parameters, defaults, what it does, and its paper."""
    opt.refuse_together({"--markdown": as_markdown, "--json": as_json}, why="each is a format")
    tables = catalogue()
    if as_markdown:
        typer.echo(markdown(tables))
    elif as_json:
        typer.echo(json.dumps({k: [asdict(entry) for entry in entries] for k, entries in tables.items()}, indent=2))
    else:
        for heading, entries in tables.items():
            stdout().print(_table(heading, entries))


def _table(heading: str, entries: list[Entry]) -> Table:
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, expand=True)
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("parameters", no_wrap=True, style="dim")
    table.add_column("what it does", ratio=3)
    table.add_column("from", ratio=2)
    for entry in entries:
        parameters = "\n".join(f"{name}={default}" for name, default in entry.parameters.items())
        table.add_row(entry.name, Text(parameters or "-"), Text(entry.what.replace("`", "")), Text(entry.source or "-"))
    table.add_row()
    return table
