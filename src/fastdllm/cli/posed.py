"""``--problems``: a file, or a benchmark by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.arena.problems import ProblemSet


def open_problems(source: Path | None, folder: Path, model: str, count: int | None = None) -> ProblemSet:
    """The first ``count`` problems (None: all) of what ``--problems`` says.

    Args:
        source: a file of JSON lines, ``NAME`` or ``NAME:FOLDER`` of a benchmark that lm-eval knows (from the hub,
            or with its files in the folder), or None for the problems that the checkpoint comes with.
        folder: the checkpoint's.
        model: what it is called.

    Raises:
        OptionError: there is no such file or benchmark.
    """
    from fastdllm.arena import problems

    if source is None or source.is_file() or Path(str(source).partition(":")[0]).suffix:
        return problems.open_problems(source, folder, model, count)
    name, _, data = str(source).partition(":")
    try:
        from fastdllm.evals.problems import read_benchmark
    except ImportError as error:
        raise OptionError(
            f"--problems {source}: there is no such file, and for a benchmark {error.name} is missing: "
            "pip install 'fastdllm[eval]'."
        ) from None
    from fastdllm.text import load_text

    text = load_text(folder)
    return read_benchmark(name, count, path=data or None, chat=bool(text and text.has_chat_template))
