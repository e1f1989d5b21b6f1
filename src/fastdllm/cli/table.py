"""Tables whose settings have long names."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fastdllm.cli.console import stdout

WIDE = 120  # columns of a terminal that has room for long names beside their numbers


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool], *, long: str) -> None:
    """Print a table; on a narrow terminal the column ``long`` stands above it, each cell after its row's first."""
    console, at = stdout(), names.index(long)
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names if wide else [name for name in names if name != long]:
        if name == long:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name.replace(" (", "\n(").replace("/token", "\n/token"), justify="right", no_wrap=True)
    for row, is_bold in zip(rows, bold, strict=True):
        texts, style = [Text(text) for text in row], "bold" if is_bold else ""
        if not wide:
            console.print(Text(f"{row[0]:>3}  {texts.pop(at)}", style=style))
        table.add_row(*texts, style=style)
    console.print(table)
