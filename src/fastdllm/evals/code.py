"""HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021): the program that judges a completion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FENCE = "```"
OPENING = re.compile(r"```[^`\n]*\n")


def extract_code(text: str, *, fence_open: bool = False) -> str:
    """The code in an instruct model's answer: its first fenced block, closed or not; without one, all of it.

    Args:
        fence_open: the prompt ended inside a block that the answer goes on with, as the instruct tasks of lm-eval
            do; an answer that opens one again all the same is read as if it had not been open.
    """
    opening = OPENING.match(text.lstrip()) if fence_open else OPENING.search(text)
    if opening:
        text = opening.string[opening.end() :]
    elif not fence_open:
        return text
    return text.partition(FENCE)[0]


def humaneval_program(doc: Mapping[str, Any], completion: str) -> str:
    """The program of a HumanEval problem: its prompt, the completion, its tests and the call that runs them.

    A completion may be the function's body, indented, or the whole function again: that definition then holds, and
    imports and helpers of the prompt stay.
    """
    return f"{doc['prompt']}{completion}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def mbpp_program(doc: Mapping[str, Any], completion: str) -> str:
    """The program of an MBPP problem: the completion, then its assertions, with what they need around it.

    Set-up code (problems 367 and 927 of the full set) uses classes that the completion defines, so it comes after;
    the imports of the sanitized set come before. Challenge tests are left out, as in every published number.
    """
    parts = (*doc.get("test_imports", ()), completion, doc.get("test_setup_code", ""), *doc["test_list"])
    return "".join(f"{part}\n" for part in parts)
