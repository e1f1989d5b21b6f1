"""What every study of a report needs: a model with problems or prompts, and a folder for what it finds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer
from rich import table as rich_table
from rich.text import Text

from fastdllm.cli import options as opt
from fastdllm.cli.command import command_of
from fastdllm.cli.console import note, printable, stdout
from fastdllm.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastdllm.engine import Engine
    from fastdllm.studies.passes import Question
    from fastdllm.studies.table import Table

NO_PLOT = "no picture is drawn, as matplotlib is missing: pip install 'fastdllm[viz]'"


class Study(Protocol):
    """What a study found."""

    @property
    def tables(self) -> list[Table]: ...

    def as_json(self) -> dict[str, Any]: ...

    def markdown(self) -> str: ...


@dataclass(frozen=True)
class Asked:
    """A prompt in place of a problem."""

    question: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model and the problems of a study, and what its numbers depend on beyond its own settings."""

    engine: Engine
    problems: Sequence[Question]
    asked: str
    """What documents call the problems."""
    record: dict[str, Any]


def open_subject(
    context: typer.Context, choice: opt.ModelChoice, problems: Path | None, count: int, prompts: Sequence[str] = ()
) -> Subject:
    """Load the model, with the first ``count`` problems, or with the ``prompts`` where there are any."""
    from fastdllm.arena.contest import provenance
    from fastdllm.cli.posed import open_problems
    from fastdllm.record import environment, fingerprint

    folder = choice.resolve()
    record: dict[str, Any] = {"command": command_of(context)}
    questions: Sequence[Question]
    if prompts:
        questions, asked = [Asked(prompt) for prompt in prompts], "prompts of the command"
        record |= {"revision": choice.revision, "weights": fingerprint(folder), "problems": None}
    else:
        posed = open_problems(problems, folder, choice.model, count)
        questions, asked = posed.problems, f"{posed.name} (`{posed.digest}`)"
        record |= provenance(posed, folder, choice.revision) | {"problem_set": posed.name}
    engine = choice.load(folder)
    record["environment"] = environment(engine)
    return Subject(engine=engine, problems=questions, asked=f"the first {len(questions)} of {asked}", record=record)


def publish(name: str, found: Study, subject: Subject, folder: Path) -> None:
    """Write ``name`` as JSON, Markdown and picture into the folder, and print its tables."""
    write_study(name, found, {**subject.record, "count": len(subject.problems)}, _origin(subject), folder)


def write_study(name: str, found: Study, record: dict[str, Any], origin: Sequence[str], folder: Path) -> None:
    """As :func:`publish`, with ``record`` before what was found in JSON, and ``origin`` after it in Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"study": name, **record, **found.as_json()}
    write_whole(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_whole(folder / f"{name}.md", "\n\n".join([found.markdown(), *origin]) + "\n")
    drawn = _draw(name, found, folder / f"{name}.png")
    for table in found.tables:
        print_study(table)
    written = [f"{name}.{kind}" for kind in ("json", "md", *(["png"] if drawn else []))]
    note(f"written to {folder}: {', '.join(written)}")


def _draw(name: str, found: Study, path: Path) -> bool:
    """Draw the picture, whose code lies beside the study's; False where matplotlib is missing."""
    try:
        draw = import_module(f"fastdllm.studies.{name}_plot").draw
    except ImportError:
        note(NO_PLOT)
        return False
    draw(found, path)
    return True


def _origin(subject: Subject) -> list[str]:
    """What the numbers depend on, as the last paragraphs of a document."""
    record, engine = subject.record, subject.engine
    runs_on = record["environment"]
    dtype = engine.precision
    versions = ", ".join(f"{name} {runs_on[name]}" for name in ("torch", "fastdllm", "commit"))
    where = f"{dtype}, {runs_on['hardware']}, threads {runs_on['threads']}, {versions}"
    return [
        f"On {subject.asked}, model {engine.name} (weights `{record['weights']}`), {where}.",
        f"Made by `{record['command']}`.",
    ]


def print_measured(title: Iterable[str], tables: Iterable[Table], sentences: Iterable[tuple[str, str]]) -> None:
    """What was measured on stdout: lines that say of what, tables, and named sentences under them."""
    console = stdout()
    for line in title:
        console.print(Text(printable(line), style="bold"), soft_wrap=True)
    for table in tables:
        console.print()
        print_study(table)
    console.print()
    grid = rich_table.Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in sentences:
        grid.add_row(Text(name), Text(printable(text)))
    console.print(grid)


def print_study(table: Table) -> None:
    """A table of a study on stdout."""
    shown = rich_table.Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, name in enumerate(table.header):
        shown.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(printable, row))
    stdout().print(shown)
