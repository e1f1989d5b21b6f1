"""Tuning: what the race drops, what the test shows, what is chosen and written, on fakes and on a random model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdllm
from fastdllm.arena.methods import Method, parse_methods
from fastdllm.arena.problems import Problem, WordProblem
from fastdllm.arena.run import Answer
from fastdllm.arena.score import Score, scores
from fastdllm.config import GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.results import Results
from fastdllm.tune import report
from fastdllm.tune.confirm import confirm, split
from fastdllm.tune.grid import default_texts
from fastdllm.tune.race import ladder, race
from fastdllm.tune.run import PLAIN, Tuned, check_enough, fastest, problems_for
from fastdllm.tune.trial import Goal, Objective, Trial
from helpers import lines_of, refused, run, write_checkpoint

GOAL = Goal(margin=0.05, confidence=0.95, objective="rows")
LENGTHS = ("--gen-length", "12", "--block-length", "6")


@dataclass(frozen=True)
class Behaviour:
    """A made-up setting: it loses every so many-th problem (0: none), and a token costs so many rows and passes."""

    lost_every: int = 0
    rows: int = 100
    passes: int = 10


@dataclass
class Fake:
    """Answers without a model. Plain decoding has all problems right."""

    behaviours: dict[str, Behaviour]
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)

    def __call__(self, what: str, methods: Sequence[Method], problems: Sequence[Problem]) -> Sequence[Score]:
        answers = {m.key: [self.answer(m.key, i, p.number) for i, p in enumerate(problems)] for m in methods}
        return scores(methods, answers, {})

    def answer(self, key: str, place: int, number: int) -> Answer:
        self.answered[key, number] += 1
        own = self.behaviours[key]
        right = own.lost_every == 0 or place % own.lost_every != own.lost_every - 1
        return Answer(
            id="", prompt="", text="", right=right, tokens=10, nfe=own.passes, rows=10 * own.rows, flops=None, run=0
        )


def method(name: str) -> Method:
    return Method(name=name, key=name, options={})


def posed(count: int) -> list[Problem]:
    return [WordProblem(number=i, question=f"question {i}", answer="") for i in range(1, count + 1)]


def tuned(
    behaviours: dict[str, Behaviour], goal: Goal = GOAL, count: int = 200
) -> tuple[list[Trial], list[Trial], Fake]:
    """All trials and those shown, with plain decoding at 100 rows and 10 passes."""
    fake = Fake({"plain": Behaviour(), **behaviours})
    selection, confirmation = split(posed(count))
    plain, candidates = method("plain"), [method(name) for name in behaviours]
    trials = race(plain, candidates, selection, goal, fake)
    (reference,) = fake("plain", [plain], selection)
    shown = confirm(plain, ladder(trials, reference, goal), confirmation, goal, fake)
    return trials, shown, fake


def fates(trials: Sequence[Trial]) -> dict[str, str]:
    return {trial.method.name: trial.fate for trial in trials}


def test_the_cheapest_of_the_harmless_is_shown_and_the_others_are_out_for_their_reasons():
    crowd = {f"crowd {i}": Behaviour(rows=60 + i) for i in range(20)}
    trials, shown, fake = tuned({
        "best": Behaviour(rows=20), "reckless": Behaviour(rows=5, lost_every=2),
        "dear": Behaviour(rows=120), "as dear": Behaviour(rows=95), **crowd,
    })  # fmt: skip
    found = fates(trials)
    assert found["best"] == "shown"
    assert (found["reckless"], found["dear"], found["as dear"]) == ("worse", "no cheaper", "no cheaper")
    assert [trial.method.name for trial in shown][-1] == "best"
    raced = {p.number for p in split(posed(200))[0]}
    assert sum(key == "reckless" for key, _ in fake.answered) == len(raced) / 4
    of_crowd = sum(1 for key, number in fake.answered if key.startswith("crowd") and number in raced)
    assert of_crowd < 0.5 * 20 * len(raced)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(2, 60), st.integers(20, 150), st.integers(1, 20)), max_size=12))
def test_a_setting_that_loses_nothing_and_costs_least_is_always_shown(others):
    behaviours = {f"other {i}": Behaviour(*other) for i, other in enumerate(others)}
    behaviours["best"] = Behaviour(rows=15, passes=1)
    trials, shown, _ = tuned(behaviours)
    assert fates(trials)["best"] == "shown"
    assert all(trial.bound >= -GOAL.margin for trial in shown)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 99)), min_size=1, max_size=8, unique_by=lambda b: b[1]))
def test_tests_go_from_safe_to_cheap_and_end_with_the_first_failure(given_behaviours):
    trials, shown, _ = tuned({f"{rows} rows": Behaviour(lost, rows) for lost, rows in given_behaviours})
    steps = [t for t in trials if t.confirmation or t.fate == "not tested"]
    steps.sort(key=lambda t: -GOAL.costs(t.selection)[0])
    assert [t.fate for t in steps if t.fate == "shown"] == [t.fate for t in steps][: len(shown)]
    assert sum(t.fate == "not shown" for t in steps) <= 1
    assert [t.method.key for t in steps[: len(shown)]] == [t.method.key for t in shown]
    costs = [GOAL.costs(t.selection)[0] for t in shown]
    assert all(later * 1.1 < earlier for earlier, later in zip([100.0, *costs], costs, strict=False))


def test_a_long_ladder_takes_longer_steps_down_to_the_cheapest():
    many = {f"{rows} rows": Behaviour(rows=rows) for rows in range(90, 4, -1)}
    fake = Fake({"plain": Behaviour(), **many})
    reference, *others = fake("", [method("plain"), *map(method, many)], posed(60))
    trials = [Trial(method=score.method, selection=score, fate="not tested") for score in others]
    steps = ladder(trials, reference, GOAL)
    assert 3 <= len(steps) <= 6
    assert GOAL.costs(steps[-1].selection)[0] < 10
    assert {trial.fate for trial in trials if trial not in steps} == {"no cheaper"}


def test_what_is_tested_is_tested_on_problems_that_had_no_part_in_its_selection():
    problems = posed(101)
    selection, confirmation = split(problems)
    assert len(selection) == math.ceil(0.3 * 101)
    assert sorted(p.number for p in selection + confirmation) == [p.number for p in problems]
    assert split(problems[::-1]) == (selection, confirmation)
    assert [p.number for p in selection] != sorted(p.number for p in selection)
    trials, _, _ = tuned({"good": Behaviour(rows=10)}, count=101)
    assert (trials[0].selection.problems, trials[0].confirmation.problems) == (31, 70)


def test_a_setting_that_falls_apart_in_the_test_is_given_up_early():
    """It loses nothing in the race, and every second problem afterwards."""
    fake = Fake({"plain": Behaviour(), "lucky": Behaviour(rows=10)})
    selection, confirmation = split(posed(400))
    trials = race(method("plain"), [method("lucky")], selection, GOAL, fake)
    (reference,) = fake("plain", [method("plain")], selection)
    steps = ladder(trials, reference, GOAL)
    fake.behaviours["lucky"] = Behaviour(rows=10, lost_every=2)
    assert confirm(method("plain"), steps, confirmation, GOAL, fake) == []
    assert (trials[0].fate, trials[0].p) == ("not shown", None)
    assert trials[0].confirmation.problems == len(confirmation) // 4


def test_where_speed_is_the_goal_fewer_passes_count_as_well():
    behaviours = {"few rows": Behaviour(rows=20, passes=9), "few passes": Behaviour(rows=60, passes=2)}
    _, for_rows, _ = tuned(behaviours)
    _, for_speed, _ = tuned(behaviours, Goal(margin=0.05, confidence=0.95, objective="speed"))
    assert {t.method.name for t in for_speed} == {"few rows", "few passes"}
    assert [t.method.name for t in for_rows][-1] == "few rows"


def test_the_fastest_is_chosen_unless_plain_decoding_is():
    def timed(name: str, rows: int, *speeds: float) -> Score:
        (score,) = Fake({name: Behaviour(rows=rows)})("", [method(name)], posed(5))
        return replace(score, speeds=speeds)

    def chosen(objective: Objective, plain: Score, *found: Score) -> str | None:
        shown = [Trial(method=score.method, selection=score, fate="shown") for score in found]
        report = SimpleNamespace(scores=[plain, *found])
        best = fastest(shown, report, Goal(margin=0.02, confidence=0.95, objective=objective))  # type: ignore[arg-type]
        return best and best.method.name

    plain, steady = timed("plain", 100, 40, 41, 42), timed("steady", 20, 50, 51, 52)
    lucky, slow = timed("lucky", 30, 10, 45, 99), timed("slow", 10, 30, 39, 60)
    assert chosen("speed", plain, steady, lucky, slow) == "steady"
    assert chosen("speed", plain, slow) is None
    assert chosen("speed", plain) is None
    assert chosen("rows", plain, steady, lucky, slow) == "slow"


def test_a_higher_confidence_and_a_smaller_margin_show_less():
    loses = {"some": Behaviour(rows=10, lost_every=40)}
    assert tuned(loses, count=400)[1]
    assert not tuned(loses, Goal(margin=0.05, confidence=0.999, objective="rows"), count=400)[1]
    assert not tuned(loses, Goal(margin=0.03, confidence=0.95, objective="rows"), count=400)[1]


def test_plain_decoding_that_solves_nothing_is_refused():
    fake = Fake({"plain": Behaviour(lost_every=1), "other": Behaviour()})
    with pytest.raises(OptionError, match=r"plain decoding \(plain\) solves none of 20 problems"):
        race(method("plain"), [method("other")], posed(20), GOAL, fake)
    assert all(key == "plain" for key, _ in fake.answered)


def test_too_few_problems_are_refused_with_the_number_that_would_do():
    total = problems_for(GOAL.least)
    check_enough(total, len(split(posed(total))[1]), GOAL)
    with pytest.raises(OptionError, match=f"takes {total} or more"):
        check_enough(total - 1, len(split(posed(total - 1))[1]), GOAL)


@pytest.mark.parametrize(("gen_length", "block_length"), [(64, 8), (256, 32), (16, 16)])
def test_the_default_grid_fits_the_lengths(gen_length, block_length):
    shared: GenerationOptions = {"gen_length": gen_length, "block_length": block_length, "seed": 0}
    methods = parse_methods([PLAIN, *default_texts(shared)], shared)
    assert 40 <= len(methods) <= 60
    assert all(m.config.block_length <= gen_length for m in methods)
    assert len({m.kinds[0] for m in methods}) >= 6
    assert len({m.kinds[1] for m in methods}) >= 9


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> str:
    """A model of one layer: there every cache of keys and values gives plain decoding's answers."""
    return str(write_checkpoint(tmp_path_factory.mktemp("shallow"), layers=1))


@pytest.fixture(scope="module")
def problems(shallow, tmp_path_factory) -> Path:
    """Problems whose answers are plain decoding's, so that it is always right."""
    questions = [f"What is {i} and {i * i}?" for i in range(50)]
    engine = fastdllm.load(shallow)
    answers = engine.generate(questions, gen_length=12, block_length=6, cache="none", decoder="topk:k=1")
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    lines = [{"question": q, "answer": a.text} for q, a in zip(questions, answers, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


CANDIDATES = ("prefix/topk:k=1", "dual/topk:k=1", "dual/topk:k=6")


def tune(model: str, problems: Path, out: Path, *more: str | Path) -> Any:
    given = CANDIDATES if not any("/topk" in str(word) for word in more) else ()
    command = ("--model", model, "--problems", problems, "--margin", "10", "--out", out, *LENGTHS)
    return run("tune", *given, *command, *more)


def test_the_preset_holds_the_chosen_setting_with_its_evidence(shallow, problems, tmp_path):
    out = tmp_path / "out"
    result = tune(shallow, problems, out, "--objective", "rows", "--preset-out", tmp_path / "presets" / "my.json")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "presets" / "my.json").read_text())
    assert (written["fastdllm_preset"], written["name"]) == (1, "my")
    assert written["options"]["cache"].startswith("dual:")
    assert written["options"]["decoder"].startswith("topk:k=1,")
    assert (written["options"]["gen_length"], written["options"]["block_length"]) == (12, 6)
    about = written["tuned"]
    assert about["goal"] == {"margin": 0.1, "confidence": 0.95, "objective": "rows"}
    assert (about["plain"]["right"], about["result"]["right"], about["result"]["problems"]) == (35, 35, 35)
    assert (about["result"]["gained"], about["result"]["lost"], about["result"]["difference"]) == (0, 0, 0.0)
    assert about["result"]["p"] <= 0.05
    assert -0.1 <= about["result"]["bound"] < 0
    rows = about["plain"]["rows_per_token"] / about["result"]["rows_per_token"]
    assert about["times_faster"] == {"rows_per_token": rows}
    assert rows > 2
    assert about["command"].startswith("fastdllm tune prefix/topk:k=1 dual/topk:k=1")
    assert about.keys() >= {"model", "weights", "problems", "selection_problems", "date", "environment", "dtype"}
    assert "dual/topk:k=1 is the fastest setting shown to be not worse" in result.stdout
    assert written["about"] in (out / "tune.md").read_text()
    everything = json.loads((out / "tune.json").read_text())
    assert {t["name"]: t["chosen"] for t in everything["trials"]}["dual/topk:k=1"]
    assert {t["name"]: t["fate"] for t in everything["trials"]}["dual/topk:k=6"] in ("worse", "not shown")


def test_no_answer_is_given_twice_and_a_stopped_run_comes_to_the_same_preset(shallow, problems, tmp_path, monkeypatch):
    more = ("--objective", "rows")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert tune(shallow, problems, straight, *more).exit_code == 0
    add, added = Results.add, [0]

    def stop(self: Results, result: dict[str, object]) -> None:
        added[0] += 1
        if added[0] in (8, 70, 120):
            raise KeyboardInterrupt
        add(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", stop)
        for _ in range(3):
            result = tune(shallow, problems, stopped, *more)
            assert result.exit_code == 130
            assert result.stderr.endswith(f"is kept in {stopped}; run the same command again to continue\n")
            assert not (stopped / "preset.json").exists()
    assert tune(shallow, problems, stopped, *more).exit_code == 0
    one, other = (sorted(line["id"] for line in lines_of(folder / "answers.jsonl")) for folder in (straight, stopped))
    assert one == other
    assert len(set(one)) == len(one)
    presets = [json.loads((folder / "preset.json").read_text()) for folder in (straight, stopped)]
    for preset in presets:
        for varying in ("date", "command"):
            del preset["tuned"][varying]
    assert presets[0] == presets[1]
    kept = {path: path.read_bytes() for path in stopped.iterdir() if path.suffix != ".md"}
    assert tune(shallow, problems, stopped, *more).exit_code == 0
    assert kept == {path: path.read_bytes() for path in kept}


def test_for_speed_the_finalists_are_timed(shallow, problems, tmp_path):
    result = tune(shallow, problems, tmp_path, "--rounds", "2", "--timed", "1")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "tune.json").read_text())
    timed = {t["name"]: t["confirmation"]["rounds"] for t in written["trials"] if t["fate"] == "shown"}
    assert timed
    assert {len(rounds) for rounds in (*timed.values(), written["plain"]["rounds"])} == {2}
    speeds = {t["name"]: t["confirmation"]["tokens_per_second"] for t in written["trials"] if t["fate"] == "shown"}
    fastest = max(speeds, key=lambda name: speeds[name])
    chosen = [t["name"] for t in written["trials"] if t["chosen"]]
    assert chosen == ([fastest] if speeds[fastest] > written["plain"]["tokens_per_second"] else [])


def test_where_nothing_qualifies_the_preset_is_plain_decoding(shallow, problems, tmp_path):
    result = tune(shallow, problems, tmp_path, "none/topk:k=6", "--objective", "rows")
    assert result.exit_code == 0, result.output
    assert "the preset is plain decoding" in result.stdout
    written = json.loads((tmp_path / "preset.json").read_text())
    assert (written["options"]["cache"], written["options"]["decoder"]) == ("none", "topk:k=1,alg=maskgit_plus")
    assert "result" not in written["tuned"]
    assert written["tuned"]["plain"]["right"] == 35


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--margin", "0"), "margin=0 must be 0.1 or more"),
        (("--confidence", "1"), "confidence=1 must be 0.5 or more, and below 1"),
        (("--objective", "best"), "objective='best' is not one of speed, rows"),
        (("--margin", "2"), "50 problems are too few"),
        (("--count", "10"), "10 problems are too few"),
        (("none/topk:k=1",), "there is no setting to try besides plain decoding"),
        (("dual/topk:k=0",), "method 'dual/topk:k=0': k=0 must be"),
        (("dual/topk@gen_length=4000",), "longer than the 256 positions"),
    ],
)
def test_refusals_are_a_sentence_before_anything_runs(shallow, problems, tmp_path, args, complaint):
    given = CANDIDATES if args[0].startswith("--") else ()
    options = ("--model", shallow, "--problems", problems, "--margin", "10", "--out", tmp_path / "out", *LENGTHS)
    assert complaint in refused("tune", *given, *options, *args)
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_wrong_answers_throughout_are_refused(shallow, problems, tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    lines = [json.dumps({**line, "answer": "#### 7"}) for line in lines_of(problems)]
    wrong.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    options = ("--model", shallow, "--problems", wrong, "--margin", "10", "--out", out, *LENGTHS)
    assert "solves none of 15 problems" in refused("tune", *CANDIDATES, *options)
    assert not (out / "preset.json").exists()


def test_an_interval_that_is_too_wide_says_how_many_problems_would_do():
    trials, shown, fake = tuned({"some": Behaviour(rows=10, lost_every=40)}, count=120)
    assert not shown
    (plain,) = fake("plain", [method("plain")], posed(84))

    found = Tuned(
        goal=GOAL, trials=trials, steps=trials, shown=shown, chosen=None, selection_problems=36,
        report=SimpleNamespace(scores=[plain]),  # type: ignore[arg-type]
    )  # fmt: skip
    said = report.verdict(found)
    assert "No setting is shown to be not worse than plain decoding by more than 5 points (95 % confidence)" in said
    assert "some gained 0 and lost 2 of 84 problems, a difference of -2.4 and at least" in said
    wanted = int(said.rpartition("about ")[2].split()[0])
    assert 120 < wanted < 2000
    larger, shown, _ = tuned({"some": Behaviour(rows=10, lost_every=40)}, count=wanted)
    assert shown
    assert larger[0].confirmation.problems > 84
