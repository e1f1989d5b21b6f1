"""``fastdllm``: the commands, and how a run ends when something goes wrong.

Exit codes: 0 done, 2 an error that is one sentence on stderr, 130 interrupted, 141 the reader of a pipe left.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import fastdllm
from fastdllm import processes
from fastdllm.cli.arena import arena
from fastdllm.cli.bench import bench
from fastdllm.cli.bench_serve import bench_serve
from fastdllm.cli.chat import chat
from fastdllm.cli.console import BROKEN_PIPE, INTERRUPTED, quiet_libraries
from fastdllm.cli.frequencies import frequencies
from fastdllm.cli.generate import generate
from fastdllm.cli.info import info
from fastdllm.cli.lm_eval import SETTINGS, lm_eval
from fastdllm.cli.methods import methods
from fastdllm.cli.report import report
from fastdllm.cli.serve import serve
from fastdllm.cli.together import first_speaks
from fastdllm.cli.tune import tune
from fastdllm.errors import FastdllmError, out_of_memory

OUT_OF_MEMORY = (
    "there is not enough memory; give a smaller --batch-size, --gen-length or --block-length, or another "
    "--dtype (fastdllm info says what is needed)."
)

LOST = "another of the processes that share the model has ended."


class Commands(TyperGroup):
    """The one place where errors become a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # What is still buffered would fail again, noisily, when the interpreter closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except FastdllmError as error:
            raise _failed(str(error)) from None
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise _failed(f"{what}.") from None
        except (MemoryError, RuntimeError) as error:
            if processes.lost(error):
                raise _failed(LOST) from None
            if not (out_of_memory(error) and processes.is_first()):  # another may be alone with it, and is silent
                raise
            raise _failed(OUT_OF_MEMORY) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _failed(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastdllm {fastdllm.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(info)
app.command()(frequencies)
app.command()(methods)
app.command()(arena)
app.command("lm-eval", context_settings=SETTINGS)(lm_eval)
app.add_typer(report, name="report")
app.command()(tune)
app.command()(bench)
app.command()(bench_serve)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fast, exact and batched generation with masked diffusion language models (LLaDA, Dream)."""


def main() -> None:
    """Entry point of the ``fastdllm`` command."""
    quiet_libraries()
    with first_speaks():
        app(prog_name="fastdllm")
