"""A bar for work that takes long: how much is done, and how much time is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from fastdllm.cli.console import stderr


class Remaining(ProgressColumn):
    """Time left at the pace of this run as a whole: rows of a batch end in bursts, which fool a running estimate."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["before"]
        if not done or task.elapsed is None or task.total is None:
            return Text("-:--:-- left")
        return Text(f"{timedelta(seconds=int(task.elapsed / done * (task.total - task.completed)))} left")


@contextmanager
def progress(what: str, total: int, before: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal; call what it gives once for each piece of work done."""
    console = stderr()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn(), Remaining())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=before, before=before)
        yield lambda: bar.advance(task)
