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
from fastdllm.cli.summary import EMPTY, machine, rows_per_token, shown

if TYPE_CHECKING:
    from fastdllm.completion import Completion, Draft
    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine

WARM_UP_PASSES = 3
PLAIN: GenerationOptions = {"cache": "none", "decoder": "topk:k=1"}


def compare(task: Task) -> None:
    """Run both, after passes of each that are not timed, and print the two answers with their numbers."""
    plain_task = replace(task, options={**task.options, **PLAIN}, trace=None)
    for either in (plain_task, task):
        for _ in islice(either.start(), WARM_UP_PASSES):
            pass
    (plain,), generation = plain_task.run().completions, task.run()
    (chosen,) = generation.completions
    console = stdout()
    console.print(Text(f"Plain and accelerated decoding by {machine(task.engine)}", style="bold"))
    console.print(Text(_lengths(task.options), style="dim"))
    console.print(Padding(Text(printable(task.question.strip())), (1, 0)))
    console.print(_table(task, plain, chosen))
    console.print(Padding(_verdict(plain, chosen), (1, 0)))
    _print_canvas(console, task.engine, generation.drafts[0])
    if not chosen.tokens:
        note(EMPTY)


def _lengths(options: GenerationOptions) -> str:
    lengths = f"gen_length {options['gen_length']} in blocks of {min(options['block_length'], options['gen_length'])}"
    return f"{lengths} · temperature {options['temperature']:g}" if options["temperature"] else lengths


def _table(task: Task, plain: Completion, chosen: Completion) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column(width=10, style="dim")
    table.add_column("plain", ratio=1)
    table.add_column("accelerated", ratio=1)
    table.add_row("answer", *(Text(printable(shown(task.engine, c)) or "(empty)") for c in (plain, chosen)))
    table.add_row()
    table.add_row("cache", str(PLAIN["cache"]), str(task.options["cache"]))
    table.add_row("decoder", str(PLAIN["decoder"]), str(task.options["decoder"]))
    left, right = _numbers(plain), _numbers(chosen)
    for name in left:
        table.add_row(name, left[name], right[name])
    return table


def _numbers(completion: Completion) -> dict[str, str]:
    rows = rows_per_token(completion)
    return {
        "NFE": f"{completion.nfe}",
        "tokens": f"{len(completion.tokens)}",
        "TPF": f"{completion.tokens_per_forward:.2f}",
        "rows/token": "-" if rows is None else f"{rows:.1f}",
        "seconds": f"{completion.seconds:.3f}",
        "tokens/s": f"{completion.tokens_per_second:.1f}",
    }


def _verdict(plain: Completion, chosen: Completion) -> Text:
    same = plain.tokens == chosen.tokens
    outcome = "the answers are identical" if same else "the answers differ"
    if not (plain.tokens and chosen.tokens):
        return Text(f"An empty answer has no speed; {outcome}.", style="bold")
    speed = chosen.tokens_per_second / plain.tokens_per_second
    line = Text(f"{speed:.1f}x the tokens per second, {plain.nfe / chosen.nfe:.1f}x fewer passes; ", style="bold")
    return line.append(f"{outcome}.", style="green" if same else "yellow")


def _print_canvas(console: Console, engine: Engine, draft: Draft) -> None:
    console.print(Text("The accelerated answer, coloured by the pass that committed each token:", style="dim"))
    console.print(canvas_text(engine, draft))
    console.print(legend(draft.nfe))
