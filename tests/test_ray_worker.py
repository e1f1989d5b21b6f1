"""A worker of an offline job: what one prompt does wrong costs no other its answer."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

import fastdllm
from fastdllm.cluster.offline import ALONE, TOGETHER, Refused, Survey, Task, Worker, _survey
from fastdllm.cluster.workers import Checkpoint, NoCluster
from fastdllm.completion import Completion
from fastdllm.record import fingerprint
from helpers import write_checkpoint

POISON = [5, 6, 7]
OPTIONS = {"gen_length": 12, "block_length": 6, "decoder": "topk:k=2"}


class Counted(Worker):
    """Counts attempts in this process, where a job has an actor for it."""

    def __init__(self, task: Task, weights: object) -> None:
        super().__init__(task, weights, None)
        self.begun: Counter[str] = Counter()

    def _begin(self, what: str) -> int:
        self.begun[what] += 1
        return self.begun[what]

    def _end(self, what: str) -> None:
        del self.begun[what]


@pytest.fixture
def task(model) -> Task:
    checkpoint = Checkpoint(model=model, name="toy")
    return Task(checkpoint=checkpoint, options=OPTIONS, chat=None, batch_size=4)


@pytest.fixture
def worker(task) -> Counted:
    return Counted(task, fingerprint(task.checkpoint.resolve()))


def answer(worker: Worker, batch: list[tuple[int, list[int]]]) -> dict[int, Completion | str]:
    pairs = pickle.loads(worker({"batch": pickle.dumps(batch)})["answers"])
    assert len(pairs) == len(batch)
    return dict(pairs)


def plain(answers: dict[int, Completion | str]) -> dict[int, object]:
    return {i: (a.text, a.nfe, a.canvas) if isinstance(a, Completion) else a for i, a in answers.items()}


BATCH = [(7, [1, 2, 3]), (3, POISON), (9, [4] * 9)]


def expected(model: str) -> dict[int, object]:
    engine = fastdllm.load(model)
    answers = dict(zip([i for i, _ in BATCH], engine.generate([ids for _, ids in BATCH], **OPTIONS), strict=True))
    return plain(answers)


def test_answers_are_the_engines(worker, model):
    assert plain(answer(worker, BATCH)) == expected(model)
    assert worker.begun == {}


def test_a_prompt_that_fails_is_told_and_the_others_are_answered(worker, model, monkeypatch):
    engine = worker._engine
    generate = engine.generate

    def broken(prompts, **options):
        if POISON in prompts:
            raise fastdllm.errors.NumericalError("the logits are not numbers.")
        return generate(prompts, **options)

    monkeypatch.setattr(engine, "generate", broken)
    wanted = expected(model)
    found = plain(answer(worker, BATCH))
    assert found.pop(3) == "the logits are not numbers."
    del wanted[3]
    assert found == wanted


class Killed(BaseException):
    """Stands for the end of the worker's process."""


def test_a_prompt_that_ends_its_worker_is_found_and_given_up(worker, model, monkeypatch):
    """As Ray has it: the task is run again, on a new worker, whenever one has ended."""
    engine = worker._engine
    generate, together = engine.generate, []

    def deadly(prompts, **options):
        together.append(len(prompts))
        if POISON in prompts:
            raise Killed
        return generate(prompts, **options)

    wanted = expected(model)
    monkeypatch.setattr(engine, "generate", deadly)
    for kills in range(10):  # noqa: B007
        try:
            found = plain(answer(worker, BATCH))
            break
        except Killed:
            continue
    assert kills == TOGETHER + ALONE
    assert together.count(3) == TOGETHER
    assert found.pop(3) == "its worker ended each time it was tried"
    del wanted[3]
    assert found == wanted


def test_a_survey_refuses_before_work_begins(task):
    found = _survey(task, ["One", [1, 2, 99999]])
    assert isinstance(found, Refused)
    assert (found.index, "99999" in found.why) == (1, True)
    found = _survey(task, ["One", "Two " * 200])
    assert isinstance(found, Refused)
    assert found.index == 1
    lost = Task(checkpoint=Checkpoint(model="/no/such", name="x"), options=OPTIONS, chat=None, batch_size=1)
    found = _survey(lost, ["One"])
    assert isinstance(found, Refused)
    assert (found.index, "/no/such" in found.why) == (None, True)


def test_a_survey_says_what_answers_depend_on(task, model):
    found = _survey(task, ["One", [1, 2]])
    assert isinstance(found, Survey)
    engine = fastdllm.load(model)
    assert found.prompts == [engine.encode(["One"])[0], [1, 2]]
    assert (found.settings["model"], found.settings["chat"]) == ("toy", True)
    assert found.settings["weights"] == fingerprint(task.checkpoint.resolve())


def test_a_machine_with_other_weights_does_not_work(task, tmp_path):
    other = fingerprint(write_checkpoint(tmp_path, seed=1))
    with pytest.raises(NoCluster, match="other weights"):
        Counted(task, other)
