"""Answers on disk at once, from several processes, whatever number of them there was before.

Each process writes a file of its own, ``answers.KIND.RANK.jsonl``, and reads those of all at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdllm.evals.workers import Workers
from fastdllm.results import Results, check_prompts, check_same, open_results, read_results


class Journal:
    """What has been answered, by request id.

    Args:
        folder: where the files are; None keeps answers in memory alone.
    """

    def __init__(self, folder: Path | None, workers: Workers) -> None:
        self.folder, self.workers = folder, workers
        self.held: dict[str, dict[str, Any]] = {}
        self._results: Results | None = None

    @contextmanager
    def open(
        self, kind: str, prompts: Mapping[str, object], settings: dict[str, object], environment: dict[str, object]
    ) -> Iterator[None]:
        """While open, what is added is written; what earlier runs wrote is in :attr:`held`.

        Raises:
            OptionError: the folder holds answers to other prompts or of other settings.
        """
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"answers.{kind}.{self.workers.rank}.jsonl"
        earlier = [path for path in files_of(self.folder, kind) if path != own]
        for path in earlier:
            check_same(path, settings)
        self.workers.wait()  # nobody writes until all have seen what is there
        self._hold(earlier, prompts)
        asked: dict[Any, object] = {name: prompt for name, prompt in prompts.items() if name not in self.held}
        with open_results(own, asked, settings, environment) as results:
            self._hold([own], prompts)
            self._results = results
            self.workers.wait()
            yield
        self._results = None

    def _hold(self, paths: list[Path], prompts: Mapping[str, object]) -> None:
        for path in paths:
            lines = {line["id"]: line for line in read_results(path)} if path.exists() else {}
            check_prompts(path, {name: line["prompt"] for name, line in lines.items()}, prompts)
            self.held |= lines

    def add(self, line: dict[str, object]) -> None:
        """Keep an answer, on disk before anything else happens."""
        if self._results is not None:
            self._results.add(line)
        self.held[str(line["id"])] = line


def files_of(folder: Path, kind: str) -> list[Path]:
    """The answers of every process that ever wrote to a folder."""
    return sorted(folder.glob(f"answers.{kind}.*.jsonl"))
