"""Problems with known answers, and when an answer counts as right."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastdllm.errors import OptionError
from fastdllm.files import read_text

FILE = "problems.jsonl"
"""Held-out problems lie under this name in a checkpoint's folder."""
SHAPE = 'an object with the texts "question" and "answer"'
KINDS = ("kind", "template")
"""Fields of a line, the first that is there, that may say what kind of problem it is."""
FINAL = re.compile(r"####\s*\$?(-?\d[\d,]*(?:\.\d+)?)")


class Problem(Protocol):
    """What a method is asked, and whether it was right."""

    @property
    def number(self) -> int:
        """Its place in its set, 1 the first."""

    @property
    def question(self) -> str:
        """The prompt, without a chat template."""

    def solved_by(self, text: str) -> bool:
        """Whether an answer of this text is right."""


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Problems, and what to record of where they come from."""

    name: str
    problems: tuple[Problem, ...]
    digest: str
    """Changes when anything in the set does."""


@dataclass(frozen=True, kw_only=True)
class WordProblem:
    """A question and the answer it should get."""

    number: int
    """Line of the file, 1 the first."""
    question: str
    answer: str
    kind: str | None = None
    """Problems of a set that are of one sort; None where the file does not say."""

    def solved_by(self, text: str) -> bool:
        """Whether the final numbers are the same; where the answer has none, whether the texts are."""
        expected = final_number(self.answer)
        return text.strip() == self.answer.strip() if expected is None else final_number(text) == expected


def final_number(text: str) -> str | None:
    """The number after the first ``####`` (GSM8K's mark), thousands separators aside."""
    found = FINAL.search(text)
    return found.group(1).replace(",", "") if found else None


def open_problems(path: Path | None, folder: Path, model: str, count: int | None = None) -> ProblemSet:
    """The first ``count`` problems (None: all) of a file, or of those that lie in the checkpoint's ``folder``.

    Raises:
        OptionError: no file is given and ``model`` comes without problems, or the file cannot be read.
    """
    held_out = folder / FILE
    if path is None and not held_out.exists():
        raise OptionError(f"{model} comes without problems; give some with --problems FILE.")
    found = path or held_out
    name = f"{model}'s held-out problems" if path is None else path.name
    return ProblemSet(name=name, problems=read_problems(found, count), digest=digest(found))


def read_problems(path: Path, count: int | None = None) -> tuple[WordProblem, ...]:
    """The first ``count`` problems of a file of JSON lines; all where that is None, or the file holds fewer.

    Raises:
        OptionError: a line is not what :data:`SHAPE` says, or there is no problem.
    """
    numbered = [(n, line) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    if not numbered:
        raise OptionError(f"{path} is empty; each line should be {SHAPE}.")
    return tuple(_problem(path, number, line) for number, line in numbered[:count])


def _problem(path: Path, number: int, line: str) -> WordProblem:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{path} line {number} is not JSON ({error}); give {SHAPE}.") from None
    given = value if isinstance(value, dict) else {}
    question, answer = given.get("question"), given.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise OptionError(f"{path} line {number} is not {SHAPE}.")
    kind = next((given[name] for name in KINDS if isinstance(given.get(name), str)), None)
    return WordProblem(number=number, question=question, answer=answer, kind=kind)


def digest(path: Path) -> str:
    """A short name for the content of a file of problems: changes when anything in it does."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
