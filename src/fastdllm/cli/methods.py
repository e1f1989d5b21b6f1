"""``fastdllm methods``: every cache and decoder, from the registries themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fastdllm.catalogue import Entry, catalogue
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


def markdown(tables: Mapping[str, list[Entry]]) -> str:
    """The page docs/methods.md."""
    parts = [INTRO]
    for heading, entries in tables.items():
        head = f"## {heading}\n\n| name | parameters and defaults | what it does | from |\n|---|---|---|---|"
        rows = [f"| `{e.name}` | {_listed(e)} | {e.what} | {e.source or '-'} |" for e in entries]
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def _listed(entry: Entry) -> str:
    return ", ".join(f"`{p.name}={p.spelt}`" for p in entry.parameters) or "-"


def _plain(entry: Entry) -> dict[str, object]:
    return asdict(entry) | {"parameters": {p.name: p.spelt for p in entry.parameters}}


def methods(as_markdown: Markdown = False, as_json: Json = False) -> None:
    """Every cache and decoder: parameters, defaults, what it does, and its paper."""
    opt.refuse_together({"--markdown": as_markdown, "--json": as_json}, why="each is a format")
    tables = catalogue()
    if as_markdown:
        typer.echo(markdown(tables))
    elif as_json:
        typer.echo(json.dumps({k: [_plain(entry) for entry in entries] for k, entries in tables.items()}, indent=2))
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
        parameters = "\n".join(f"{p.name}={p.spelt}" for p in entry.parameters)
        table.add_row(entry.name, Text(parameters or "-"), Text(entry.what.replace("`", "")), Text(entry.source or "-"))
    table.add_row()
    return table
