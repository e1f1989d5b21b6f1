"""The studies of speed and accuracy: their numbers against the answers they come from, their pictures against their
numbers, what is kept when they are stopped, and what they refuse."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fastdllm
from fastdllm.arena.methods import parse_method
from fastdllm.arena.problems import FILE, ProblemSet, WordProblem, read_problems
from fastdllm.arena.score import Score, wilson
from fastdllm.config import GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.models.checkpoint import resolve
from fastdllm.results import Results
from fastdllm.studies.lengths import LengthsOptions
from fastdllm.studies.lengths import run as measure_lengths
from fastdllm.studies.sensitivity import SensitivityOptions, Task
from fastdllm.studies.shots import with_examples
from fastdllm.studies.study import Bench
from helpers import lines_of, refused, run

pytestmark = pytest.mark.usefixtures("uncounted")
LENGTHS = ("--gen-length", "12", "--block-length", "6")
FAST = (*LENGTHS, "--rounds", "1", "--timed", "1")
SHARED: GenerationOptions = {"gen_length": 12, "block_length": 6, "seed": 0}
QUESTIONS = ("One", "Two and a half", "A third", "Four", "And the fifth")
PLAIN = {"cache": "none", "decoder": "topk:k=1"}


@pytest.fixture(scope="module")
def problems(model, tmp_path_factory) -> Path:
    """Five problems of two kinds; plain decoding has those right whose answer is what it says."""
    engine = fastdllm.load(model)
    said = [done.text for done in engine.generate(list(QUESTIONS), gen_length=12, block_length=6, **PLAIN)]
    path = tmp_path_factory.mktemp("problems") / "few.jsonl"
    lines = [
        {"question": q, "answer": said[i] if i < 3 else "no such thing", "kind": "odd" if i % 2 else "even"}
        for i, q in enumerate(QUESTIONS)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


class NotCounting:
    """In place of the counter of operations, which takes most of the time here and has tests of its own."""

    total = 0

    def __init__(self, model: object) -> None: ...

    def __enter__(self) -> NotCounting:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def uncounted(monkeypatch) -> None:
    monkeypatch.setattr("fastdllm.arena.run.Counter", NotCounting)


@pytest.fixture(autouse=True)
def pictures(monkeypatch) -> list[Figure]:
    """The figures that are written, in their order; in few pixels."""
    figures: list[Figure] = []
    write = Figure.savefig

    def keep(self: Figure, path: Path, **options: Any) -> None:
        figures.append(self)
        write(self, path, dpi=30)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def report(study: str, model: str, problems: Path, out: Path, *more: str | Path) -> dict[str, Any]:
    """What a study writes as JSON."""
    result = run("report", study, "--model", model, "--problems", problems, "--out", out, *FAST, *more)
    assert result.exit_code == 0, (result.output, result.exception)
    assert (out / f"{study}.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((out / f"{study}.json").read_text())
    return found


def by_label(contest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {label: method for method in contest["methods"] for label in method["labels"]}


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points of the line with this label, from its error bars' container."""
    (container,) = [c for c in axes.containers if c.get_label() == label]
    return [(float(x), float(y)) for x, y in zip(*container.lines[0].get_data(), strict=True)]


def test_components_are_what_the_engine_gives(model, problems, tmp_path):
    found = report("components", model, problems, tmp_path / "out", "--count", "4")
    engine, (contest,) = fastdllm.load(model), found["contests"]
    methods = by_label(contest)
    assert list(methods) == [
        "plain", "+ prefix cache", "+ dual cache", "+ parallel", "prefix + parallel", "dual + parallel",
    ]  # fmt: skip
    answers = [json.loads(line)["answer"] for line in problems.read_text().splitlines()]
    pairs = {"plain": ("none", "topk:k=1"), "dual + parallel": ("dual", "threshold:threshold=0.9")}
    for label, (cache, decoder) in pairs.items():
        alone = [
            engine.generate(q, gen_length=12, block_length=6, cache=cache, decoder=decoder)[0] for q in QUESTIONS[:4]
        ]
        method, tokens = methods[label], sum(len(done.tokens) for done in alone)
        right = sum(done.text.strip() == answer.strip() for done, answer in zip(alone, answers, strict=False))
        assert (method["right"], method["problems"]) == (right, 4)
        assert method["interval"] == list(wilson(right, 4))
        assert method["nfe"] == sum(done.nfe for done in alone) / 4
        assert method["tokens_per_forward"] == tokens / sum(done.nfe for done in alone)
        assert method["rows_per_token"] == sum(done.rows_computed for done in alone) / tokens
        written = (tmp_path / "out" / "components.md").read_text().splitlines()
        row = next(line for line in written if line.startswith(f"| {label} |"))
        low, high = wilson(right, 4)
        assert f"{25 * right:.1f} ({low:.1f}-{high:.1f})" in row
        assert f"{method['nfe']:.1f} | {method['tokens_per_forward']:.2f} | {method['rows_per_token']:.1f}" in row
    assert methods["plain"]["right"] == 3


def test_speeds_are_those_of_the_rounds(model, problems, tmp_path):
    out = tmp_path / "out"
    (contest,) = report("components", model, problems, out, "--count", "2", "--rounds", "2")["contests"]
    (timings,) = out.glob("timings/components/*/timings.jsonl")
    turns = {line["id"]: line["tokens"] / line["seconds"] for line in lines_of(timings)}
    for label, method in by_label(contest).items():
        own, plain = (
            [turns[f"{key} round {i}"] for i in (1, 2)] for key in (method["key"], contest["methods"][0]["key"])
        )
        assert method["tokens_per_second"]["rounds"] == own
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        assert method["speedup"] == {"median": statistics.median(ratios), "rounds": ratios}
        fast, times = statistics.median(own), statistics.median(ratios)
        text = (out / "components.md").read_text()
        assert f"{fast:.0f} tok/s, {times:.1f}x" in text, label
        assert (
            f"{fast:.0f} ({min(own):.0f}-{max(own):.0f}) | {times:.1f}x ({min(ratios):.1f}-{max(ratios):.1f})" in text
        )


def test_what_numbers_depend_on_is_beside_them(model, problems, tmp_path):
    found = report("components", model, problems, tmp_path / "out", "--count", "2", "--seed", "3")
    assert found["study"] == "components"
    assert found["command"].startswith("fastdllm report components --problems ")
    assert found["command"].endswith("--gen-length 12 --block-length 6 --seed 3")
    assert found["options"]["decoder"] == "threshold:threshold=0.9"
    (contest,) = found["contests"]
    assert contest["problem_set"] == "few.jsonl"
    assert contest["settings"].keys() >= {"weights", "problems", "dtype", "device", "batch_size", "revision"}
    assert (contest["timed"], contest["timed_on"][0]["threads"]) == (1, 1)
    for method in contest["methods"]:
        assert (method["settings"]["seed"], method["settings"]["gen_length"]) == (3, 12)
        assert method["answered_on"][0].keys() >= {"hardware", "torch", "fastdllm", "commit", "threads", "started"}
    written = (tmp_path / "out" / "components.md").read_text()
    assert f"Made by `{found['command']}`." in written
    assert contest["settings"]["weights"] in written
    assert written.startswith("![Accuracy and speed of each component](components.png)")


def test_what_is_done_is_not_done_again(model, problems, tmp_path, monkeypatch):
    command = ("report", "components", "--model", model, "--problems", problems, *FAST, "--count", "3")
    straight, out = report("components", model, problems, tmp_path / "straight", "--count", "3"), tmp_path / "out"
    add = Results.add

    def stop_at_the_eighth(self: Results, result: dict[str, object]) -> None:
        if self.path and len(lines_of(self.path)) == 7:
            raise KeyboardInterrupt
        add(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", stop_at_the_eighth)
        result = run(*command, "--out", out)
    assert result.exit_code == 130
    assert result.stderr == f"interrupted: what is done is kept in {out}; run the same command again to continue\n"
    (answers,) = out.glob("answers/*/answers.jsonl")
    before = answers.read_text()
    resumed = report("components", model, problems, out, "--count", "3")
    assert answers.read_text().startswith(before)
    varying = {"answered_on", "flops_per_token", "tokens_per_second", "speedup"}
    for one, other in zip(*(found["contests"][0]["methods"] for found in (straight, resumed)), strict=True):
        assert {k: v for k, v in one.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }
    kept = answers.read_bytes()
    report("components", model, problems, out, "--count", "3")
    assert answers.read_bytes() == kept


def test_studies_share_answers_and_not_timings(model, problems, tmp_path):
    out = tmp_path / "out"
    report("components", model, problems, out, "--count", "2")
    (answers,) = out.glob("answers/*/answers.jsonl")
    first = {line["id"] for line in lines_of(answers)}
    report(
        "thresholds", model, problems, out, "--count", "2", "--threshold", "0.3,0.9", "--factor", "1", "--fixed", "1,2"
    )
    ids = [line["id"] for line in lines_of(answers)]
    assert len(ids) == len(set(ids)) == len(first) + 2 * 3  # threshold 0.3, factor 1 and two a pass are new
    timed = {path.parent.parent.name: len(lines_of(path)) for path in out.glob("timings/*/*/timings.jsonl")}
    assert timed == {"components": 6, "thresholds": 5}


def test_the_picture_of_the_components(model, problems, tmp_path, pictures):
    (contest,) = report("components", model, problems, tmp_path / "out", "--count", "3")["contests"]
    (figure,), methods = pictures, list(by_label(contest).values())
    speed, right = figure.axes
    assert [bar.get_width() for bar in speed.patches] == [m["tokens_per_second"]["median"] for m in methods]
    shown = [container.lines[0].get_data() for container in right.containers]
    assert [(x[0], y[0]) for x, y in shown] == [(m["accuracy"], place) for place, m in enumerate(methods)]
    ends = [container.lines[2][0].get_segments()[0][:, 0].tolist() for container in right.containers]
    assert ends == [pytest.approx(m["interval"]) for m in methods]


def test_blocks(model, problems, tmp_path, pictures):
    out = tmp_path / "out"
    found = report("blocks", model, problems, out, "--count", "3", "--block-lengths", "3,6,12,24", "--cache", "dual")
    assert found["options"]["block_lengths"] == [3, 6, 12]
    methods = by_label(found["contests"][0])
    assert [m["settings"]["block_length"] for m in methods.values()] == [6, 3, 6, 12]
    (figure,), own = pictures, [methods[f"dual, blocks of {length}"] for length in (3, 6, 12)]
    right, rows, speed = figure.axes
    assert [y for _, y in points(right, "cache dual")] == [m["accuracy"] for m in own]
    assert [y for _, y in points(rows, "cache dual")] == [m["rows_per_token"] for m in own]
    assert [y for _, y in points(speed, "cache dual")] == [m["tokens_per_second"]["median"] for m in own]
    assert [x for x, _ in points(right, "cache dual")] == [3, 6, 12]
    row = next(line for line in (out / "blocks.md").read_text().splitlines() if line.startswith("| 12 |"))
    assert f"{own[2]['accuracy']:.1f} (" in row
    assert f"<br>{own[2]['rows_per_token']:.1f} rows/token<br>" in row


def test_coinciding_lines_stand_beside_each_other(model, problems, tmp_path, pictures):
    report("blocks", model, problems, tmp_path / "out", "--count", "2", "--block-lengths", "12", "--cache", "none",
           "--cache", "prefix", "--decoder", "topk:k=12")  # fmt: skip
    right = pictures[0].axes[0]
    ((left, one),), ((beside, other),) = (points(right, f"cache {cache}") for cache in ("none", "prefix"))
    assert one == other
    assert left < beside


def test_thresholds(model, problems, tmp_path, pictures):
    values = ("--threshold", "0.9,0.2,0.2", "--factor", "1", "--fixed", "1,3")
    found = report("thresholds", model, problems, tmp_path / "out", "--count", "3", *values)
    methods = by_label(found["contests"][0])
    assert list(methods) == ["1 a pass", "3 a pass", "threshold 0.2", "threshold 0.9", "factor 1"]
    over, against = pictures[0].axes
    thresholds = [methods["threshold 0.2"], methods["threshold 0.9"]]
    assert points(over, "threshold") == [(i, m["accuracy"]) for i, m in enumerate(thresholds)]
    levels = [line.get_ydata()[0] for line in over.lines if line.get_label() in ("1 a pass", "3 a pass")]
    assert levels == [methods["1 a pass"]["accuracy"], methods["3 a pass"]["accuracy"]]
    for name, own in {"fixed number a pass": ["1 a pass", "3 a pass"], "factor": ["factor 1"]}.items():
        expected = [(methods[label]["tokens_per_forward"], methods[label]["accuracy"]) for label in own]
        assert points(against, name) == expected


def test_another_cache_has_plain_decoding_beside_it(model, problems, tmp_path):
    values = ("--cache", "dual", "--threshold", "0.9", "--factor", "1", "--fixed", "1")
    found = report("thresholds", model, problems, tmp_path / "out", "--count", "1", *values)
    methods = by_label(found["contests"][0])
    assert list(methods) == ["plain", "1 a pass", "threshold 0.9", "factor 1"]
    assert methods["plain"]["settings"]["cache"] == "none"


def test_lengths(model, problems, tmp_path, pictures):
    out, values = tmp_path / "out", ("--shots", "0,1", "--gen-lengths", "6,12", "--cache", "dual", "--rounds", "2")
    found = report("lengths", model, problems, out, "--count", "9", *values)
    cells = {(cell["shots"], cell["gen_length"]): cell for cell in found["cells"]}
    assert list(cells) == [(0, 6), (0, 12), (1, 6), (1, 12)]
    assert [contest["settings"]["stop_at_eos"] for contest in found["full_canvas"]] == [False, False]
    plain = cells[1, 12]["methods"][0]
    assert plain["problems"] == 4  # the fifth is the example
    *_, digest = sorted(path.name for path in (out / "answers").iterdir())
    assert digest.endswith("-1of1")
    fifth = json.loads(problems.read_text().splitlines()[4])
    asked = {line["prompt"] for line in lines_of(out / "answers" / digest / "answers.jsonl")}
    assert asked == {f"{fifth['question']}\n{fifth['answer']}\n\n{question}" for question in QUESTIONS[:4]}
    full = {line["id"]: 12 / line["seconds"] for line in lines_of(out / f"timings/lengths/{digest}-full/timings.jsonl")}
    expected = [full[f"{plain['key']} round {i}"] for i in (1, 2)]
    assert cells[1, 12]["full_canvas"]["plain"] == {"slots_per_second": expected, "speedup": [1.0, 1.0]}
    own = cells[1, 12]["full_canvas"]["dual + parallel"]
    assert own["speedup"] == [a / b for a, b in zip(own["slots_per_second"], expected, strict=True)]
    _check_lengths_picture(pictures[0], cells)


def _check_lengths_picture(figure: Figure, cells: dict[tuple[int, int], dict[str, Any]]) -> None:
    speeds, rights = figure.axes[:2], figure.axes[2:]
    for shots, (speed, right) in enumerate(zip(speeds, rights, strict=True)):
        own = [cells[shots, 6], cells[shots, 12]]
        accuracies = [by_label(cell)["dual + parallel"]["accuracy"] for cell in own]
        assert [y for _, y in points(right, "dual + parallel")] == accuracies
        full, ends = (c for c in speed.containers if c.get_label() == "dual + parallel")
        shown = [statistics.median(cell["full_canvas"]["dual + parallel"]["speedup"]) for cell in own]
        assert full.lines[0].get_ydata().tolist() == shown
        to_the_end = [by_label(cell)["dual + parallel"]["speedup"]["median"] for cell in own]
        assert ends.lines[0].get_ydata().tolist() == to_the_end


def test_lengths_that_do_not_fit_are_said_to_be_left_out(model, problems, tmp_path):
    out = tmp_path / "out"
    found = report("lengths", model, problems, out, "--shots", "0", "--gen-lengths", "6,250", "--cache", "dual")
    assert found["left_out"] == [{"shots": 0, "gen_length": 250, "why": "too few positions"}]
    assert "Left out, examples with gen_length: 0 with 250 (too few positions)." in (out / "lengths.md").read_text()


@dataclass(frozen=True)
class Riddle:
    """A problem that nobody has solved in writing."""

    number: int
    question: str

    def solved_by(self, text: str) -> bool:
        return bool(text)


def test_problems_without_answers_have_no_examples(model, tmp_path):
    riddles = ProblemSet(name="riddles", problems=tuple(Riddle(i, q) for i, q in enumerate(QUESTIONS, 1)), digest="r")
    engine = fastdllm.load(model)
    bench = Bench(
        engine=engine, checkpoint=Path(model), revision=None, shared=SHARED, chat=True, batch_size=5, rounds=1, timed=1,
        folder=tmp_path, command="test",
    )  # fmt: skip
    found = measure_lengths(bench, riddles, 9, LengthsOptions(shots=(0, 1), gen_lengths=(6,), caches=("dual",)))
    assert [(cell.shots, cell.contest.plain.problems) for cell in found.cells] == [(0, 5)]
    assert [(pair.shots, pair.why) for pair in found.left_out] == [(1, "no answers to show in full")]


def test_examples_are_never_asked():
    words = tuple(WordProblem(number=i, question=f"q{i}", answer=f"a{i}") for i in range(1, 6))
    posed = ProblemSet(name="five", problems=words, digest="d")
    two = with_examples(posed, 9, 2, 3)
    assert [problem.question for problem in two.problems] == [f"q3\na3\n\nq4\na4\n\nq{i}" for i in (1, 2)]
    assert two.problems[1].solved_by("a2")
    assert not two.problems[1].solved_by("a4")
    assert [p.question for p in with_examples(posed, 9, 0, 3).problems] == ["q1", "q2"]
    with pytest.raises(OptionError, match="5 worked examples and a question take 6 problems, and five has 5"):
        with_examples(posed, 1, 0, 5)


def test_sensitivity_by_kind(model, problems, tmp_path, pictures):
    found = report("sensitivity", model, problems, tmp_path / "out", "--threshold", "0.2,0.9", "--margin", "30")
    tasks = {task["task"]: task for task in found["tasks"]}
    assert {name: task["problems"] for name, task in tasks.items()} == {"even": 3, "odd": 2, "all": 5}
    (answers,) = (tmp_path / "out").glob("answers/*/answers.jsonl")
    right = {line["id"]: line["right"] for line in lines_of(answers)}
    for name, numbers in {"even": (1, 3, 5), "odd": (2, 4), "all": (1, 2, 3, 4, 5)}.items():
        plain = [right[f"{tasks[name]['plain']['key']} #{n}"] for n in numbers]
        for threshold in tasks[name]["thresholds"]:
            own = [right[f"{threshold['key']} #{n}"] for n in numbers]
            assert (threshold["right"], threshold["problems"]) == (sum(own), len(numbers))
            assert threshold["against_plain"]["difference"] == (sum(own) - sum(plain)) / len(numbers)
            assert threshold["against_plain"]["bound"] <= threshold["against_plain"]["difference"]
    assert [axes.get_title().partition("\n")[0] for axes in pictures[0].axes] == ["even", "odd", "all"]
    shown = {
        point
        for container in pictures[0].axes[2].containers
        for point in zip(*container.lines[0].get_data(), strict=True)
    }
    assert shown == {(i, threshold["accuracy"]) for i, threshold in enumerate(tasks["all"]["thresholds"])}


def test_the_embedded_problems_are_of_eight_kinds():
    kinds = [getattr(problem, "kind", None) for problem in read_problems(resolve("tiny") / FILE)]
    assert None not in kinds
    assert len(set(kinds)) == 8


def test_sensitivity_of_several_sets(model, problems, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "More?", "answer": "no"}\n')
    found = report("sensitivity", model, problems, tmp_path / "out", "--problems", other, "--threshold", "0.9")
    assert [(task["task"], task["problems"]) for task in found["tasks"]] == [
        ("few.jsonl", 5), ("other.jsonl", 1), ("all", 6),
    ]  # fmt: skip
    assert found["command"].count("--problems") == 2


def score(right: int, gained: int, lost: int, total: int = 80) -> Score:
    return Score(
        number=2, method=parse_method("none/topk:k=1", SHARED), problems=total, right=right, gained=gained, lost=lost,
        nfe=1.0, tokens_per_forward=1.0, rows_per_token=1.0, flops_per_token=None, speeds=(),
    )  # fmt: skip


def test_a_threshold_is_safe_only_if_all_above_it_are():
    good, bad, unsure = score(79, 3, 0), score(56, 0, 20), score(75, 2, 3)
    plain, options = score(76, 0, 0), SensitivityOptions(margin=0.05, confidence=0.95)

    def task(**scores: Score) -> Task:
        return Task(name="t", plain=plain, scores={float(k[1:]) / 10: s for k, s in scores.items()}, options=options)

    assert [task(_9=one).verdict(0.9) for one in (good, unsure, bad)] == ["shown", "seems", "loses"]
    every = task(_5=bad, _6=good, _7=unsure, _8=good, _9=good)
    assert (every.safe, every.seemingly) == (0.8, 0.6)
    first = task(_5=good, _9=bad)
    assert (first.safe, first.seemingly) == (None, None)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("components", "--cache", "double"), "cache 'double' is not one of"),
        (("components", "--decoder", "threshold:threshold=2,3"), "threshold"),
        (("thresholds", "--threshold", "0.9;0.8"), "--threshold '0.9;0.8' is not numbers separated by commas"),
        (("thresholds", "--fixed", "1.5"), "--fixed '1.5' is not whole numbers separated by commas"),
        (("blocks", "--block-lengths", "99"), "are all beyond gen_length=12"),
        (("lengths", "--shots", "-1"), "shots=(-1,) must hold a number, and none below 0"),
        (("lengths", "--shots", "0,5"), "5 worked examples and a question take 6 problems"),
        (("lengths", "--shots", "0", "--gen-lengths", "300"), "with the 256 positions of"),
        (("sensitivity", "--margin", "0"), "margin=0 must be"),
        (("sensitivity", "--confidence", "1"), "confidence=1 must be"),
    ],
)
def test_refusals_are_a_sentence_before_anything_runs(model, problems, tmp_path, args, complaint):
    out = tmp_path / "out"
    assert complaint in refused("report", *args, "--model", model, "--problems", problems, "--out", out, *LENGTHS)
    assert not out.exists()


def test_other_settings_are_refused(model, problems, tmp_path):
    report("sensitivity", model, problems, tmp_path, "--threshold", "0.9")
    command = ("report", "sensitivity", "--model", model, "--problems", problems, "--out", tmp_path, *LENGTHS)
    assert "seed 0 (now 1)" in refused(*command, "--seed", "1")


def test_quick_asks_less(model, problems, tmp_path):
    found = report("thresholds", model, problems, tmp_path / "out", "--quick", "--count", "1")
    assert found["options"]["threshold"] == [0.5, 0.7, 0.9]


def test_every_study_in_one_command(model, problems, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(LengthsOptions, "quick", lambda: LengthsOptions(shots=(0,), gen_lengths=(6, 12)))
    result = run(
        "report", "all", "--model", model, "--problems", problems, "--out", out, *FAST, "--quick", "--count", "1"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    names = ("components", "thresholds", "blocks", "lengths", "sensitivity", "similarity", "drift", "order")
    written = {path.name for path in out.iterdir() if path.is_file()}
    assert written == {f"{name}.{kind}" for name in names for kind in ("json", "md", "png")} | {"replay.html"}
    for name in names:
        held = json.loads((out / f"{name}.json").read_text())
        assert (held["study"], held["command"].split()[:3]) == (name, ["fastdllm", "report", "all"])
