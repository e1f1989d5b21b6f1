"""The arena: its numbers against counts by hand, what it keeps when it is stopped, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import fastdllm
from fastdllm.arena.methods import default_methods, parse_method, parse_methods
from fastdllm.arena.problems import WordProblem, final_number
from fastdllm.arena.report import insert
from fastdllm.arena.run import Arena, answer_all
from fastdllm.arena.score import pareto, sign_test, wilson
from fastdllm.caches import CACHES
from fastdllm.config import GenerationOptions
from fastdllm.decoders import DECODERS
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.results import Results
from helpers import lines_of, refused, run, write_checkpoint

SHARED: GenerationOptions = {"gen_length": 12, "block_length": 6, "seed": 0}
LENGTHS = ("--gen-length", "12", "--block-length", "6")
QUESTIONS = ("One", "Two and a half", "A third question")
PAIRS = ("none/topk:k=2", "dual/threshold:threshold=0.3", "dual/topk:k=2@block_length=12")


def write_problems(path: Path, problems: dict[str, str]) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in problems.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def problems(tmp_path) -> Path:
    return write_problems(tmp_path / "problems.jsonl", dict.fromkeys(QUESTIONS, "#### 7"))


def arena(model: str, problems: Path, out: Path, *more: str | Path) -> Any:
    result = run("arena", *PAIRS, "--model", model, "--problems", problems, "--out", out, *LENGTHS, *more)
    assert result.exit_code == 0, result.output
    return result


def test_the_table_holds_what_the_engine_gives(model, tmp_path):
    engine = fastdllm.load(model)
    (first, *_), (second, *_) = alone = [
        engine.generate([q], gen_length=12, block_length=6, cache="none", decoder="topk:k=2") for q in QUESTIONS[:2]
    ]
    given = write_problems(tmp_path / "p.jsonl", {QUESTIONS[0]: first.text + " ", QUESTIONS[1]: "something else"})
    result = arena(model, given, tmp_path / "out", "--rounds", "1", "--timed", "1", "--batch-size", "2")
    summary = json.loads((tmp_path / "out" / "arena.json").read_text())
    method = summary["methods"][0]
    tokens = len(first.tokens) + len(second.tokens)
    assert (method["right"], method["accuracy"]) == (1, 50.0)
    assert method["nfe"] == (first.nfe + second.nfe) / 2
    assert method["tokens_per_forward"] == tokens / (first.nfe + second.nfe)
    assert method["rows_per_token"] == sum(c.rows_computed for (c,) in alone) / tokens
    assert [line["text"] for line in lines_of(tmp_path / "out" / "answers.jsonl")[:2]] == [first.text, second.text]
    written = (tmp_path / "out" / "arena.md").read_text()
    assert f"| {method['nfe']:.1f} | {method['tokens_per_forward']:.2f} |" in written
    assert "50.0 (9.5-90.5)" in written
    assert "50.0 (9.5-90.5)" in result.stdout
    assert "Made by `fastdllm arena none/topk:k=2 dual/" in written
    assert (tmp_path / "out" / "arena.png").read_bytes().startswith(b"\x89PNG")


def test_each_method_has_beside_it_what_its_numbers_depend_on(model, problems, tmp_path):
    arena(model, problems, tmp_path / "out", "--rounds", "2", "--timed", "2")
    summary = json.loads((tmp_path / "out" / "arena.json").read_text())
    for method, block, decoder in zip(summary["methods"], (6, 6, 12), ("topk", "threshold", "topk"), strict=True):
        settings, (ran_on,) = method["settings"], method["answered_on"]
        assert (settings["gen_length"], settings["block_length"], settings["seed"]) == (12, block, 0)
        assert settings["decoder"].startswith(f"{decoder}:")
        assert "alg=maskgit_plus" in settings["decoder"]
        assert settings.keys() >= {"model", "weights", "cache", "dtype", "problems", "batch_size"}
        assert ran_on.keys() >= {"threads", "torch", "fastdllm", "commit", "hardware"}
        assert len(method["tokens_per_second"]["rounds"]) == 2
    assert summary["timed_on"][0]["threads"] == 1


def test_what_is_done_is_not_done_again(model, problems, tmp_path, monkeypatch):
    out, answers = tmp_path / "out", tmp_path / "out" / "answers.jsonl"
    arena(model, problems, tmp_path / "straight", "--no-timing")
    add = Results.add

    def stop_at_the_fifth(self: Results, result: dict[str, object]) -> None:
        if len(lines_of(answers)) == 4:
            raise KeyboardInterrupt
        add(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", stop_at_the_fifth)
        result = run("arena", *PAIRS, "--model", model, "--problems", problems, "--out", out, *LENGTHS, "--no-timing")
    assert result.exit_code == 130
    assert result.stderr == f"interrupted: what is done is kept in {out}; run the same command again to continue\n"
    before = answers.read_text()
    answers.write_text(before + '{"id": "dual/thr')
    assert "4 of 9 answers are in" in arena(model, problems, out, "--no-timing").stderr
    assert answers.read_text().startswith(before)
    assert [line["run"] for line in lines_of(answers)] == [0] * 4 + [1] * 5
    straight, resumed = (json.loads((folder / "arena.json").read_text()) for folder in (tmp_path / "straight", out))
    for one, other in zip(straight["methods"], resumed["methods"], strict=True):
        varying = ("answered_on", "flops_per_token")
        assert {k: v for k, v in one.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }
    kept = answers.read_bytes()
    arena(model, problems, out, "--no-timing")
    assert answers.read_bytes() == kept


def test_rounds_of_timing_are_kept(model, problems, tmp_path):
    timings = tmp_path / "out" / "timings.jsonl"
    arena(model, problems, tmp_path / "out", "--rounds", "1", "--timed", "1")
    first = timings.read_text()
    assert first.count("\n") == len(PAIRS)
    arena(model, problems, tmp_path / "out", "--rounds", "2", "--timed", "1")
    assert timings.read_text().startswith(first)
    assert [line["id"].rpartition(" ")[2] for line in lines_of(timings)] == ["1"] * 3 + ["2"] * 3


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("dual",), "method 'dual': a method is CACHE/DECODER"),
        (("dual/threshold", "double/topk"), "method 'double/topk': cache 'double' is not one of"),
        (("dual/topk:k=0",), "method 'dual/topk:k=0': k=0 must be"),
        (("none/topk@blocks=8",), "not 'blocks=8'"),
        (("none/topk@block_length=8.5",), "block_length='8.5' is not a number of its kind"),
        (("dual/topk@cfg_scale=1",), "method 'dual/topk@cfg_scale=1': cfg_scale=1.0 works with cache none alone"),
        (("none/topk@gen_length=4000",), "longer than the 256 positions"),
        (("none/topk", "--problems", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
    ],
)
def test_refusals_are_a_sentence_before_anything_runs(model, problems, tmp_path, args, complaint):
    given = () if "--problems" in args else ("--problems", problems)
    assert complaint in refused("arena", *args, "--model", model, *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_problems_needs_some(model, tmp_path):
    assert "comes without problems" in refused("arena", "none/topk", "--model", model, "--out", tmp_path / "out")


def test_bad_problems_are_named(model, tmp_path):
    path = tmp_path / "p.jsonl"
    for content, complaint in (("", "is empty"), ('{"question": "x"}', "line 1 is not an object"), ("{", "not JSON")):
        path.write_text(content)
        assert complaint in refused("arena", "none/topk", "--model", model, "--problems", path, "--out", tmp_path / "o")


def test_other_settings_are_refused(model, problems, tmp_path):
    command = ("arena", "none/topk:k=2", "--model", model, "--problems", problems, "--out", tmp_path / "out")
    assert run(*command, *LENGTHS, "--rounds", "1", "--timed", "1").exit_code == 0
    assert "seed 0 (now 3)" in refused(*command, *LENGTHS, "--seed", "3")
    assert "timed 1 (now 2)" in refused(*command, *LENGTHS, "--timed", "2")
    problems.write_text(problems.read_text().replace("7", "8"))
    assert "was made with problems" in refused(*command, *LENGTHS)


def test_methods_from_a_file(model, problems, tmp_path):
    listed = tmp_path / "methods.txt"
    listed.write_text("# plain\nnone/topk:k=2\n\ndual/topk:k=3  # in threes\n")
    command = ("arena", "--model", model, "--problems", problems, "--out", tmp_path / "out", "--count", "1", *LENGTHS)
    assert run(*command, "--methods", listed, "--no-timing").exit_code == 0
    names = [m["name"] for m in json.loads((tmp_path / "out" / "arena.json").read_text())["methods"]]
    assert names == ["none/topk:k=2", "dual/topk:k=3"]
    listed.write_text("# nothing\n")
    assert "holds no method" in refused(*command, "--methods", listed)


def test_without_matplotlib_the_table_is_there_all_the_same(model, problems, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastdllm.arena.plot", None)
    result = arena(model, problems, tmp_path / "out", "--no-timing", "--count", "1")
    assert "matplotlib is missing" in result.stderr
    assert (tmp_path / "out" / "arena.md").exists()
    assert not (tmp_path / "out" / "arena.png").exists()


def spent(engine: Engine, questions: list[str], pair: str, folder: Path, **options: Any) -> list[int]:
    """FLOPs of each answer's line."""
    shared: GenerationOptions = {"gen_length": 2, "block_length": 2, "seed": 0, "stop_at_eos": False, **options}
    posed = tuple(WordProblem(number=i, question=q, answer="") for i, q in enumerate(questions, start=1))
    contest = Arena(
        engine=engine, methods=parse_methods([pair], shared), problems=posed, shared=shared, provenance={}, chat=False,
        batch_size=len(posed), folder=folder,
    )  # fmt: skip
    path = folder / "lines.jsonl"
    with path.open("w") as file:
        answer_all(contest, Results(path, frozenset(), 0, file), lambda: None)
    return [line["flops"] for line in sorted(lines_of(path), key=lambda line: line["id"])]


def by_hand(engine: Engine, rows: int, slots: int, seen: int) -> int:
    """FLOPs of a pass over ``rows`` that look at ``seen`` slots, with logits for ``slots``; two for each product."""
    c = engine.config
    width, kv_width = c.hidden_size, c.num_kv_heads * c.head_dim
    layer = rows * (2 * width * width + 2 * width * kv_width + 3 * width * c.intermediate_size)
    attention = 2 * rows * seen * width
    return 2 * (c.num_layers * (layer + attention) + slots * width * c.vocab_size)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_flops_are_those_of_a_count_by_hand(family, tmp_path):
    engine = fastdllm.load(write_checkpoint(tmp_path / "model", family=family))
    prompt = len(engine.encode(["seven b"], chat=False)[0])
    canvas, block = prompt + 2, 2 + engine.config.shift
    plain, dual = (spent(engine, ["seven b"], f"{cache}/topk:k=1", tmp_path) for cache in ("none", "dual"))
    opening = by_hand(engine, canvas, 2, canvas)
    assert plain == [opening + by_hand(engine, canvas, 1, canvas)]
    assert dual == [opening + by_hand(engine, block, 1, canvas)]


def test_a_batch_of_equals_shares_its_flops(model, tmp_path):
    engine = fastdllm.load(model)
    (alone,) = spent(engine, ["seven b"], "dual/topk:k=1", tmp_path)
    assert spent(engine, ["seven b", "seven b"], "dual/topk:k=1", tmp_path) == [alone, alone]


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(8, 10, 49.02, 94.33), (0, 10, 0.0, 27.75), (10, 10, 72.25, 100.0)]
)
def test_wilson(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=0.01)


def test_sign_test():
    assert [sign_test(*split) for split in ((5, 0), (0, 0), (1, 1), (2, 8))] == [0.0625, 1.0, 1.0, 0.109375]


def test_pareto():
    points = [(10.0, 90.0), (20.0, 95.0), (15.0, 90.0), (20.0, 95.0), (30.0, 94.0), (5.0, 50.0), (20.0, 93.0)]
    assert pareto(points) == [True, True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 5. #### 12", "12"), ("####-3.", "-3"), ("#### 1,234 #### 5", "1234"), ("#### $2.50", "2.50"), ("12", None)],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_solved():
    numbered = WordProblem(number=1, question="", answer="6*2=12. #### 12")
    assert numbered.solved_by("twelve #### 12 or so")
    assert not numbered.solved_by("#### 120")
    assert not numbered.solved_by("12")
    assert WordProblem(number=1, question="", answer=" blue\n").solved_by("blue ")


def test_default_methods_hold_every_cache_and_decoder():
    methods, left_out = default_methods(SHARED)
    kinds = [method.kinds for method in methods]
    assert {cache for cache, _ in kinds} == set(CACHES)
    missing = set(DECODERS) - {decoder for _, decoder in kinds}
    assert all(any(f"/{name}'" in why for why in left_out) for name in missing)
    assert len({method.key for method in methods}) == len(methods)


def test_two_names_of_one_method_are_one():
    one, other = (parse_method(text, SHARED) for text in ("dual/topk", "dual/topk:k=1@block_length=6"))
    assert one.key == other.key
    assert parse_method("dual/topk@block_length=4", SHARED).key == f"{one.key}@block_length=4"


def test_insert(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t: start -->\nold\n<!-- t: end -->\nb\n")
    insert(page, "t", "new")
    assert page.read_text() == "a\n<!-- t: start -->\nnew\n<!-- t: end -->\nb\n"
    with pytest.raises(OptionError, match="lacks the markers"):
        insert(page, "other", "new")
