"""Results of many prompts as JSON lines, and beside them ``FILE.run.json``: what every number depends on.

A line is written and flushed as soon as its answer is there. What a killed run leaves is whole lines
and at most one torn one, which the next run removes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from fastdllm.errors import OptionError
from fastdllm.files import write_whole

Id = str | int


@dataclass(frozen=True)
class Results:
    """Where results go: a file that may hold earlier ones, or stdout."""

    path: Path | None
    finished: frozenset[Id]
    run: int | None
    file: TextIO

    def add(self, result: dict[str, object]) -> None:
        """Write one result; ``run`` is the entry of the sidecar's ``runs`` that made it."""
        mark = {} if self.run is None else {"run": self.run}
        self.file.write(json.dumps({**result, **mark}, ensure_ascii=False) + "\n")
        self.file.flush()


@contextmanager
def open_results(
    path: Path | None, prompts: Mapping[Id, object], settings: dict[str, object], environment: dict[str, object]
) -> Iterator[Results]:
    """Results in ``path`` that go on from what it holds.

    Raises:
        OptionError: the file is not ours, or was made with other settings or other prompts.
    """
    if path is None:
        yield Results(None, frozenset(), None, sys.stdout)
        return
    sidecar = _sidecar(path)
    run: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "runs": []}
    held: dict[Id, object] = {}
    if path.exists() and path.stat().st_size:
        earlier = _read_sidecar(path, sidecar)
        _check_settings(path, earlier["settings"], run["settings"])
        run, held = earlier, _read_held(path)
    check_prompts(path, held, prompts)
    if held.keys() >= prompts.keys():  # nothing is left to do, so there is no run to record
        yield Results(path, frozenset(held), None, sys.stdout)
        return
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    run["runs"].append({"started": started, "finished_before": len(held), **environment})
    write_whole(sidecar, json.dumps(run, indent=2) + "\n")  # first: results without it could not be gone on from
    with path.open("a", encoding="utf-8") as file:
        yield Results(path, frozenset(held), len(run["runs"]) - 1, file)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.run.json")


def _read_sidecar(path: Path, sidecar: Path) -> dict[str, Any]:
    try:
        earlier = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OptionError(f"{path} exists, and no {sidecar.name} says how it was made; give another --out.") from None
    except ValueError as error:
        raise OptionError(f"{sidecar} cannot be read as JSON ({error}); give another --out.") from None
    if not isinstance(earlier, dict) or not {"settings", "runs"} <= earlier.keys():
        raise OptionError(f"{sidecar} lacks settings or runs; give another --out.")
    return earlier


def _check_settings(path: Path, earlier: dict[str, object], now: dict[str, object]) -> None:
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    if names:
        values = {name: (json.dumps(earlier.get(name)), json.dumps(now.get(name))) for name in names}
        differ = ", ".join(f"{name} {then} (now {this})" for name, (then, this) in values.items())
        raise OptionError(f"{path} was made with {differ}; give the same settings, or another --out.")


def _read_held(path: Path) -> dict[Id, object]:
    """Id → prompt of the results in a file; a torn last line is cut off."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    held: dict[Id, object] = {}
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            result = json.loads(line)
            held[result["id"]] = result["prompt"]
        except (ValueError, KeyError, TypeError):
            raise OptionError(f"{path} line {number} is not a result; mend the file, or give another --out.") from None
    if whole < len(content):
        os.truncate(path, whole)
    return held


def check_prompts(path: Path, held: Mapping[Any, object], prompts: Mapping[Any, object]) -> None:
    """Refuse answers that a file holds, by id, to other prompts than those that are asked now.

    Raises:
        OptionError: there is one; the message names its id.
    """
    for name in held.keys() & prompts.keys():
        if held[name] != prompts[name]:
            raise OptionError(f"{path} holds an answer to another prompt under the id {name!r}; give another --out.")


def check_same(path: Path, settings: dict[str, object]) -> None:
    """Refuse a file of results that were made with other settings.

    Raises:
        OptionError: as :func:`open_results`.
    """
    _check_settings(path, _read_sidecar(path, _sidecar(path))["settings"], json.loads(json.dumps(settings)))


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file that :func:`open_results` has left, but for a last line that a kill has torn."""
    content = path.read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].split(b"\n") if line]


def read_runs(path: Path) -> list[dict[str, Any]]:
    """What each run that wrote to a file ran on; a result's ``run`` is a place in this list."""
    runs: list[dict[str, Any]] = _read_sidecar(path, _sidecar(path))["runs"]
    return runs
