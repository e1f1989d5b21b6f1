"""Benchmarks as problems that the arena, the studies and ``tune`` can pose."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fastdllm.arena.problems import ProblemSet
from fastdllm.errors import OptionError
from fastdllm.evals.datasets import load_tasks
from fastdllm.evals.lm import stopped

SEED = 1234  # of the choice of worked examples, as in eval.py


@dataclass(frozen=True, kw_only=True)
class BenchmarkProblem:
    """A document of an lm-eval task."""

    number: int
    question: str
    task: Any
    request: Any
    metric: str
    filter: str

    def solved_by(self, text: str) -> bool:
        """Whether the task's first metric gives it full marks."""
        self.request.resps = [stopped(text, self.request.args[1].get("until"))]
        self.request.filtered_resps = {}
        for ensemble in self.task._filters:
            if ensemble.name == self.filter:
                ensemble.apply([self.request])
        marks = self.task.process_results(self.request.doc, [self.request.filtered_resps[self.filter]])
        return bool(marks[self.metric] >= 1)


def read_benchmark(name: str, count: int | None, *, path: str | None, chat: bool, unsafe: bool = False) -> ProblemSet:
    """The first ``count`` problems (None: all) of a benchmark that is answered in text.

    Args:
        name: as :func:`fastdllm.evals.datasets.load_tasks` takes it.
        path: folder with its files; None for the hub.
        chat: whether prompts go through a chat template, which some benchmarks are posed differently for.

    Raises:
        OptionError: there is no such benchmark, it is a group of several, or its answers are not texts.
    """
    tasks = list(load_tasks(name, path=path, chat=chat, unsafe=unsafe)["tasks"].values())
    if len(tasks) > 1 or tasks[0].OUTPUT_TYPE != "generate_until":
        raise OptionError(f"{name} is not one benchmark that is answered in text.")
    (task,) = tasks
    task.set_fewshot_seed(seed=SEED)
    task.build_all_requests()
    metric, kept = next(iter(task.aggregation())), task._filters[0].name
    problems = tuple(
        BenchmarkProblem(
            number=i, question=request.args[0], task=task, request=request, metric=metric, filter=kept
        )
        for i, request in enumerate(task.instances[:count], start=1)
    )  # fmt: skip
    content = json.dumps([[r.args[0], str(task.doc_to_target(r.doc))] for r in task.instances])
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return ProblemSet(name=f"{task.config.task} ({kept} {metric})", problems=problems, digest=digest)
