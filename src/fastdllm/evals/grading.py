"""When an answer counts as right: code by its tests in the sandbox, mathematics by two metrics.

The functions are parts of lm-eval task configurations: programs are made and run in a *filter*, which sees all
answers at once, so that several run side by side.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from fastdllm.evals.code import extract_code, humaneval_program, mbpp_program
from fastdllm.evals.sandbox import Isolation, run_programs

ANTLR = {"antlr4-python3-runtime": "4.11"}

Doc = Mapping[str, Any]
Program = Callable[[Doc, str], str]
PASSED = "pass@1"


def humaneval_instruct_program(doc: Doc, text: str) -> str:
    """The answer goes on from an open fence in which the prompt stands."""
    return humaneval_program(doc, extract_code(text, fence_open=True))


def mbpp_instruct_program(doc: Doc, text: str) -> str:
    return mbpp_program(doc, extract_code(text, fence_open=True))


def code_task(program: Program, isolation: Isolation | None) -> dict[str, Any]:
    """The part of a task that runs each answer's program and scores 1 when it passes."""
    run = partial(run_all, program, isolation)
    return {
        "filter_list": [{"name": "run", "filter": [{"function": "custom", "filter_fn": run}]}],
        "process_results": passed,
        "metric_list": [{"metric": PASSED, "aggregation": "mean", "higher_is_better": True}],
    }


def run_all(
    program: Program, isolation: Isolation | None, answers: Iterable[Sequence[str]], docs: Iterable[Doc]
) -> list[list[str]]:
    """How each answer's program ended: ``passed``, or the reason why not."""
    assert isolation is not None
    each = [(doc, text) for doc, texts in zip(docs, [list(a) for a in answers], strict=True) for text in texts]
    outcomes = run_programs([program(doc, text) for doc, text in each], isolation=isolation)
    return [[outcome.reason] for outcome in outcomes]


def passed(doc: Doc, results: Sequence[Any]) -> dict[str, int]:
    (reasons,) = results
    return {PASSED: int(reasons[0] == "passed")}


def math_task() -> dict[str, Any]:
    """The part of a task that scores mathematics: ``math_verify`` compares values, ``exact_match`` final answers.

    They disagree by how an answer is put: ``exact_match`` wants Minerva's closing sentence (arXiv 2206.14858).
    """
    names = ("math_verify", "exact_match")
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]
    return {"process_results": math_scores, "metric_list": metrics}


def math_scores(doc: Doc, results: Sequence[str]) -> dict[str, int]:
    from math_verify import parse, verify

    (text,) = results
    minerva = minerva_utils()
    given = minerva.normalize_final_answer(minerva.get_unnormalized_answer(text))
    true = minerva.normalize_final_answer(str(doc["answer"]))
    equal = given == true or bool(verify(parse(f"${true}$"), parse(f"${given}$")))
    return {"math_verify": int(bool(verify(parse(str(doc["solution"])), parse(text)))), "exact_match": int(equal)}


def minerva_examples() -> list[dict[str, Any]]:
    """The four worked examples of Minerva's prompt."""
    return [dict(example) for example in minerva_utils().list_fewshot_samples()]


@cache
def minerva_utils() -> Any:
    """lm-eval's module with Minerva's prompt and normalisation.

    It will not be imported without antlr 4.11, for an equality test that is not used here; Hydra needs 4.9, and
    math-verify works with either.
    """
    importlib.import_module("math_verify")  # which chooses its grammar by the version that is really there
    real = importlib.metadata.version
    importlib.metadata.version = lambda distribution_name: ANTLR.get(distribution_name) or real(distribution_name)
    try:
        return importlib.import_module("lm_eval.tasks.minerva_math.utils")
    finally:
        importlib.metadata.version = real
