"""Plain decoding and the chosen settings side by side on one prompt."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastdllm.cli.canvas_view import canvas_text, legend
from fastdllm.cli.console import note, printable, stdout
from fastdllm.cli.one import Task
from fastdllm.cli.summary import EMPTY, machine, rows_per_token, shown, strategy

if TYPE_CHECKING:
    from fastdllm.completion import Completion, Draft
    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine

WARM_UP_PASSES = 3


def compare(task: Task) -> None:
    """Run both, after passes of each that are not timed, and print the two answers with their numbers."""
    plain_task = replace(task, options={**task.options, "cache": "none", "decoder": "topk:k=1"}, trace=None)
    for either in (plain_task, task):
        for _ in islice(either.start(), WARM_UP_PASSES):
            pass
    (plain,), generation = plain_task.run().completions, task.run()
    (chosen,) = generation.completions
    console = stdout()
    console.print(Text(f"Plain decoding (one token per pass, no cache) against {strategy(task.options)}", style="bold"))
    console.print(Text(f"{machine(task.engine)} · {_lengths(task.options)}", style="dim"))
    console.print(Padding(Text(printable(task.question.strip())), (1, 0)))
    console.print(_table(task.engine, plain, chosen))
    console.print(Padding(_verdict(plain, chosen), (1, 0)))
    _print_canvas(console, task.engine, generation.drafts[0])
    if not chosen.tokens:
        note(EMPTY)


def _lengths(options: GenerationOptions) -> str:
    lengths = f"gen_length {options['gen_length']} in blocks of {min(options['block_length'], options['gen_length'])}"
    return f"{lengths} · temperature {options['temperature']:g}" if options["temperature"] else lengths


def _table(engine: Engine, plain: Completion, chosen: Completion) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, show_header=True, header_style="bold")
    table.add_column(width=10, style="dim")
    table.add_column("plain", ratio=1)
    table.add_column("accelerated", ratio=1)
    table.add_row("answer", *(Text(printable(shown(engine, c)) or "(empty)") for c in (plain, chosen)))
    table.add_row()
    for name, of in (
        ("NFE", lambda c: f"{c.nfe}"),
        ("tokens", lambda c: f"{len(c.tokens)}"),
        ("TPF", lambda c: f"{c.tokens_per_forward:.2f}"),
        ("rows/token", lambda c: f"{rows_per_token(c) or float('nan'):.1f}"),
        ("seconds", lambda c: f"{c.seconds:.3f}"),
        ("tokens/s", lambda c: f"{c.tokens_per_second:.1f}"),
    ):
        table.add_row(name, of(plain), of(chosen))
    return table


def _verdict(plain: Completion, chosen: Completion) -> Text:
    same = "The two answers are identical." if plain.tokens == chosen.tokens else "The two answers differ."
    if not (plain.tokens and chosen.tokens):
        return Text(f"An empty answer has no speed. {same}", style="bold")
    speed = chosen.tokens_per_second / plain.tokens_per_second
    fewer = plain.nfe / chosen.nfe
    line = Text(f"{speed:.1f} times the tokens per second, with {fewer:.1f} times fewer passes. ", style="bold")
    return line.append(same, style="green" if plain.tokens == chosen.tokens else "yellow")


def _print_canvas(console: Console, engine: Engine, draft: Draft) -> None:
    console.print(Text("The accelerated answer, coloured by the pass that committed each token:", style="dim"))
    console.print(canvas_text(engine, draft))
    console.print(legend(draft.nfe))
