"""HumanEval and MBPP: references pass, wrong answers do not, and the scoring is the field's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastdllm.evals.code import extract_code, humaneval_program, mbpp_program

DATA = Path(__file__).parent / "data" / "code"


def rows(name: str) -> dict[Any, dict[str, Any]]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return {row["task_id"]: row for row in map(json.loads, lines)}


HUMANEVAL, MBPP = rows("humaneval.jsonl"), rows("mbpp.jsonl")


def passes(program: str) -> bool:
    """Run here and now: these programs are ours and the references'."""
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), {})
    except (AssertionError, NameError, SyntaxError):
        return False
    return True


@pytest.mark.parametrize("doc", HUMANEVAL.values(), ids=str)
def test_humaneval_takes_a_body_or_the_whole_function(doc) -> None:
    body = doc["canonical_solution"]
    assert passes(humaneval_program(doc, body))
    assert passes(humaneval_program(doc, extract_code(f"Here it is:\n```python\n{doc['prompt']}{body}```\nIt works.")))
    signature = next(line for line in doc["prompt"].splitlines() if line.startswith(f"def {doc['entry_point']}("))
    # Without the prompt's helper, which problem 38 needs: it stays in view.
    assert passes(humaneval_program(doc, f"{signature}\n{body}"))


@pytest.mark.parametrize(
    "completion", ["    pass\n", "", "    return len(string) + 1", "return 0", "    return 0\n    ("]
)
def test_humaneval_fails_a_wrong_body(completion) -> None:
    assert not passes(humaneval_program(HUMANEVAL["HumanEval/23"], completion))


@pytest.mark.parametrize("doc", MBPP.values(), ids=lambda doc: str(doc["task_id"]))
def test_mbpp_references_pass_and_nothing_does_not(doc) -> None:
    assert passes(mbpp_program(doc, doc["code"]))
    assert not passes(mbpp_program(doc, "pass"))


def test_mbpp_set_up_code_comes_after_the_class_it_uses() -> None:
    doc = MBPP[367]
    assert not passes(mbpp_program({**doc, "test_setup_code": ""}, doc["code"]))
    wrong = doc["code"].replace("return False", "return True")
    assert not passes(mbpp_program(doc, wrong))


def test_mbpp_imports_what_its_tests_need() -> None:
    doc, code = MBPP[82], "def volume_sphere(r):\n    return 4.18879020478639 * r**3"
    assert passes(mbpp_program(doc, code))
    assert not passes(mbpp_program({**doc, "test_imports": []}, code))


def test_mbpp_leaves_challenge_tests_out() -> None:
    """This answer meets the three tests, and not the challenge of an empty string."""
    doc = MBPP[11]
    code = doc["code"] + "\nremove_all = remove_Occ\ndef remove_Occ(s, ch):\n    s[0]\n    return remove_all(s, ch)"
    program = mbpp_program(doc, code)
    assert passes(program)
    with pytest.raises(IndexError):
        exec(program + doc["challenge_test_list"][1], {})


@pytest.mark.parametrize(
    ("text", "fence_open", "code"),
    [
        ("def f(): ...", False, "def f(): ..."),
        ("Sure!\n```python\nx = 1\n```\nDone.\n```\ny\n```", False, "x = 1\n"),
        ("```\nx = 1\n```", False, "x = 1\n"),
        ("```py3\r\nx = 1", False, "x = 1"),
        ("    return 1\n```\nThis returns `1`:\n```python\nf()\n```", True, "    return 1\n"),
        ("    return 1", True, "    return 1"),
        ("\n```python\ndef f(): ...\n```\n", True, "def f(): ...\n"),
        ("", False, ""),
        ("", True, ""),
    ],
)
def test_code_is_taken_out_of_fences(text, fence_open, code) -> None:
    assert extract_code(text, fence_open=fence_open) == code
