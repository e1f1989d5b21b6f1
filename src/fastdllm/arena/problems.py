"""Problems with known answers, and when an answer counts as right."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from fastdllm.errors import OptionError
from fastdllm.files import read_text

FILE = "problems.jsonl"
"""Held-out problems lie under this name in a checkpoint's folder."""
SHAPE = 'an object with the texts "question" and "answer"'
FINAL = re.compile(r"####\s*\$?(-?\d[\d,]*(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question and the answer it should get."""

    number: int
    """Line of the file, 1 the first."""
    question: str
    answer: str

    def solved_by(self, text: str) -> bool:
        """Whether the final numbers are the same; where the answer has none, whether the texts are."""
        expected = final_number(self.answer)
        return text.strip() == self.answer.strip() if expected is None else final_number(text) == expected


def final_number(text: str) -> str | None:
    """The number after the first ``####`` (GSM8K's mark), thousands separators aside."""
    found = FINAL.search(text)
    return found.group(1).replace(",", "") if found else None


def read_problems(path: Path, count: int) -> tuple[Problem, ...]:
    """The first ``count`` problems of a file of JSON lines, or all where it holds fewer.

    Raises:
        OptionError: a line is not what :data:`SHAPE` says, or there is no problem.
    """
    numbered = [(n, line) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    if not numbered:
        raise OptionError(f"{path} is empty; each line should be {SHAPE}.")
    return tuple(_problem(path, number, line) for number, line in numbered[:count])


def _problem(path: Path, number: int, line: str) -> Problem:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{path} line {number} is not JSON ({error}); give {SHAPE}.") from None
    given = value if isinstance(value, dict) else {}
    question, answer = given.get("question"), given.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise OptionError(f"{path} line {number} is not {SHAPE}.")
    return Problem(number=number, question=question, answer=answer)


def digest(path: Path) -> str:
    """A short name for the content of a file of problems: changes when anything in it does."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
