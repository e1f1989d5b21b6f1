"""``eval.py`` as it is typed: benchmarks on the embedded model, in several processes, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdllm.errors import OptionError
from fastdllm.evals.datasets import load_tasks
from fastdllm.evals.main import main
from fastdllm.evals.problems import read_benchmark
from fastdllm.results import open_results, read_results
from helpers import refused, run

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "benchmarks"
SHORT = ["generation.gen_length=32", "generation.block_length=8", "dataset.n_shot=0", f"dataset.path={DATA}"]
ENVIRONMENT = {
    **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
}  # fmt: skip
LAUNCH = ["-m", "accelerate.commands.launch"]
TWO = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2"]  # without GPUs, accelerate starts one unless told
COMMANDS = (
    "dataset.name=humaneval batch_size=1 seed=1234 cache=prefix generation=vanilla generation.block_length=32",
    "dataset.name=math-500 batch_size=1 seed=1234 cache=dllm cache.rou=0.25 cache.kp=50 cache.kr=1 generation=vanilla",
    "dataset.name=humaneval batch_size=1 seed=1234 attn_implementation=eager cache=d2cache cache.rollout_p=0.1 "
    "cache.current_k=32 cache.sigma=10 generation=vanilla",
    "dataset.name=humaneval batch_size=1 seed=1234 cache=d2cache cache.rollout_p=0.1 cache.current_k=32 cache.sigma=10 "
    "cache.inflate_w=4 generation.sigma=0",
)


def launched(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    how = TWO if processes == 2 else ["--num_machines", "1", "--num_processes", "1"]
    command = [sys.executable, *LAUNCH, *how, str(ROOT / "eval.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)


def answers(folder: Path, kind: str = "generate") -> dict[str, Any]:
    """Every answer in a folder by its id; none may be there twice."""
    lines = [line for path in folder.glob(f"answers.{kind}.*.jsonl") for line in read_results(path)]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.usefixtures("isolation")
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_the_published_commands_run_with_two_processes(tmp_path, number):
    out = tmp_path / "out"
    done = launched(*COMMANDS[number].split(), "model=tiny", "dataset.size=3", f"dataset.path={DATA}", f"out={out}")
    assert done.returncode == 0, done.stderr
    found = result(out)
    assert {path.name for path in out.glob("answers.generate.*.jsonl")} == {
        "answers.generate.0.jsonl", "answers.generate.1.jsonl"
    }  # fmt: skip
    assert len(answers(out)) == found["costs"]["answers"] == found["scores"][0]["samples"] == 3
    assert found["failures"] == []
    wanted = {"math_verify", "exact_match"} if "math" in COMMANDS[number] else {"pass@1"}
    assert {score["metric"] for score in found["scores"]} == wanted
    assert found["settings"]["gen_length"] == 256
    assert found["settings"]["seed"] == 1234
    assert COMMANDS[number].split()[-1] in found["command"]
    assert done.stdout.count(f"| tiny | {found['scores'][0]['task']}") == len(wanted)


def test_a_result_says_what_it_depends_on(tmp_path, capsys):
    assert main(["dataset.name=gsm8k", "batch_size=2", "cache=dual", *SHORT, f"out={tmp_path}"]) == 0
    found, table = result(tmp_path), capsys.readouterr().out
    assert table == (tmp_path / "result.md").read_text() + "\n"
    assert found["settings"]["weights"] == "9321e405f602"
    assert found["settings"]["chat"] is True
    run = found["runs"]["answers.generate.0.jsonl"][0]
    assert run.keys() >= {"fastdllm", "torch", "transformers", "python", "hardware", "threads", "commit", "batch_size"}
    assert found["libraries"].keys() == {"lm-eval", "datasets", "accelerate", "hydra-core", "math-verify"}
    assert found["peak_memory"] > 10_000_000
    assert {(s["metric"], s["filter"]) for s in found["scores"]} == {
        ("exact_match", "strict-match"), ("exact_match", "flexible-extract")
    }  # fmt: skip
    costs, lines = found["costs"], answers(tmp_path).values()
    assert costs["tokens"] == sum(line["tokens"] for line in lines)
    assert costs["tokens_per_forward"] == costs["tokens"] / sum(line["nfe"] for line in lines)
    assert costs["flops_per_token"] > 0
    low, high = found["scores"][0]["interval"]
    assert 0 <= low <= found["scores"][0]["score"] <= high <= 100
    samples = read_results(tmp_path / "samples.gsm8k.jsonl")
    assert [sample["doc_id"] for sample in samples] == [0, 0, 1, 1, 2, 2, 3, 3]
    before = {path: path.read_bytes() for path in tmp_path.glob("answers.*")}
    assert main(["dataset.name=gsm8k", "batch_size=2", "cache=dual", *SHORT, f"out={tmp_path}"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("answers.*")} == before  # nothing is answered again


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path):
    command = [sys.executable, str(ROOT / "eval.py"), "dataset.name=gsm8k", "generation.temperature=0.7", *SHORT]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    file = killed / "answers.generate.0.jsonl"
    process = subprocess.Popen(
        [*command, f"out={killed}"], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (file.exists() and file.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {line["id"]: line for line in read_results(file)}
    assert 1 <= len(before) < 4
    with file.open("ab") as torn:
        torn.write(b'{"id": "gsm8k#3.0.0", "pro')
    assert main([*command[2:], f"out={killed}"]) == 0
    assert main([*command[2:], f"out={whole}"]) == 0
    after = answers(killed)
    assert {name: after[name] for name in before} == before
    same = ("text", "tokens", "nfe", "rows", "finish_reason")
    assert {n: [x[k] for k in same] for n, x in after.items()} == {
        n: [x[k] for k in same] for n, x in answers(whole).items()
    }
    assert result(killed)["scores"] == result(whole)["scores"]
    assert len(result(killed)["runs"]["answers.generate.0.jsonl"]) == 2


def test_multiple_choice_is_scored_by_likelihood(tmp_path):
    rows = [
        {"id": i, "question": q, "choices": {"text": [right, "x"], "label": ["A", "B"]}, "answerKey": key}
        for i, q, right, key in (("a", "How many is 2 and 3?", "5", "A"), ("b", "Two and two?", "4", "B"))
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["dataset.name=arc_easy", f"dataset.path={tmp_path}", "generation.gen_length=16", "mc_num=6"]
    out = tmp_path / "out"
    assert main([*command, f"out={out}"]) == 0
    found, held = result(out), answers(out, "loglikelihood")
    assert found["costs"] is None
    assert len(held) == 4
    best = [max((0, 1), key=lambda choice: held[f"arc_easy#{doc}.{choice}.0"]["score"]) for doc in (0, 1)]
    accuracy = next(score for score in found["scores"] if score["metric"] == "acc")
    assert accuracy["score"] == 50 * ((best[0] == 0) + (best[1] == 1))
    assert main([*command, f"out={out}"]) == 0
    assert answers(out, "loglikelihood") == held


@pytest.mark.usefixtures("isolation")
def test_any_checkpoint_can_be_evaluated_by_its_folder(model, tmp_path):
    command = ["model=llada-inst", f"model.path={model}", "dataset.name=mbpp", "cache=d2cache", "dataset.size=2"]
    assert main([*command, *SHORT, f"out={tmp_path}"]) == 0
    found = result(tmp_path)
    assert found["settings"]["model"] == Path(model).name
    assert found["scores"][0]["task"] == "mbpp_instruct"
    assert found["costs"]["answers"] == 2
    assert found["sandbox"]["isolation"].startswith("bubblewrap")


def test_what_has_no_score_counts_as_wrong_and_is_listed(tmp_path, monkeypatch):
    rows = [{"id": "a", "question": "Which?", "choices": {"text": ["5", "6"], "label": ["A", "B"]}, "answerKey": "A"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["dataset.name=arc_easy", f"dataset.path={tmp_path}", "generation.gen_length=16", "mc_num=2"]

    def broken(*_: Any, **__: Any) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("fastdllm.evals.lm.log_likelihood", broken)
    assert main([*command, f"out={tmp_path / 'out'}"]) == 0
    found = result(tmp_path / "out")
    assert [failure["error"] for failure in found["failures"]] == ["out of memory"] * 2
    assert {score["score"] for score in found["scores"]} == {0.0}
    assert json.loads((tmp_path / "out" / "samples.arc_easy.jsonl").read_text())["failed"] is True


def test_a_model_without_a_tokenizer_is_refused(bare, tmp_path, capsys):
    assert main([f"model.path={bare}", *SHORT, f"out={tmp_path / 'out'}"]) == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_code_outside_the_sandbox_must_be_allowed(monkeypatch):
    monkeypatch.setattr(
        "fastdllm.evals.datasets._load", lambda *_, **__: {"tasks": {"x": SimpleNamespace(UNSAFE_CODE=True)}}
    )
    with pytest.raises(OptionError, match="x of lm-eval runs what the model wrote outside the sandbox; say --unsafe"):
        load_tasks("x", path=None, chat=False, unsafe=False)
    assert load_tasks("x", path=None, chat=False, unsafe=True)["tasks"].keys() == {"x"}


def test_any_character_can_be_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    with open_results(path, {"a": "p\u2028"}, {}, {}) as results:
        results.add({"id": "a", "prompt": "p\u2028", "text": "x\u2029y\x85z"})
    assert [line["text"] for line in read_results(path)] == ["x\u2029y\x85z"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*SHORT, f"out={tmp_path / 'file' / 'out'}"]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_lm_eval_knows_the_model():
    code = "from lm_eval.api.registry import get_model; import fastdllm.evals.lm; print(get_model('fastdllm').__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == "FastDLLM\n"
    help_text = subprocess.run(
        [sys.executable, "-m", "fastdllm", "lm-eval", "run", "--help"],
        capture_output=True, text=True, env=ENVIRONMENT, check=True,
    ).stdout  # fmt: skip
    assert "--model_args" in help_text


@pytest.mark.parametrize(
    ("name", "gold", "more"),
    [
        ("gsm8k", "answer", ""),
        ("math-500", "solution", ""),
        ("humaneval", "canonical_solution", "\ndef unrelated():"),
        ("mbpp", "code", "\n[DONE] and more"),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_true_answers_are_right(request, name, gold, more, chat):
    if name in ("humaneval", "mbpp"):
        request.getfixturevalue("isolation")
    posed = read_benchmark(name, None, path=str(DATA), chat=chat)
    assert len(posed.problems) == {"gsm8k": 4, "math-500": 4, "humaneval": 3, "mbpp": 3}[name]
    assert read_benchmark(name, 2, path=str(DATA), chat=chat).digest == posed.digest  # of the whole set, examples too
    for problem in posed.problems:
        true = str(problem.request.doc[gold])  # type: ignore[attr-defined]
        assert problem.solved_by(true + ("\n```\nThat is it." if name == "mbpp" and chat else more))
        assert not problem.solved_by("I do not know.")
        if name in ("humaneval", "mbpp") and chat:
            assert problem.solved_by(f"\n```python\n{true}\n```")


def test_examples_are_those_of_the_field():
    shots = {"gsm8k": 5, "math-500": 4, "humaneval": 0, "mbpp": 3}
    for name, count in shots.items():
        (task,) = load_tasks(name, path=str(DATA), chat=False, unsafe=True)["tasks"].values()
        assert task.config.num_fewshot == count
    (task,) = load_tasks("mbpp", path=str(DATA), chat=False, unsafe=True)["tasks"].values()
    task.build_all_requests(limit=1)
    prompt = task.instances[0].args[0]
    assert prompt.count("[DONE]") == 3
    assert prompt.index("similar elements") < prompt.index("non-prime") < prompt.index("heap queue")
    assert prompt.endswith("[BEGIN]\n")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["dataset.name=nonsense"], "dataset.name=nonsense is none of gsm8k, math-500, humaneval, mbpp"),
        (["dataset.path=/nowhere"], "dataset.path=/nowhere has no train.jsonl of gsm8k."),
        (
            ["dataset.name=humaneval", "dataset.n_shot=2", "unsafe=true"],
            "humaneval_instruct has not so many examples to show.",
        ),
        (["dataset.n_shot=9"], "dataset.n_shot=9: gsm8k has not so many examples to show."),
        (["generation.gen_length=512"], "gen_length=512 leaves no room for a prompt: tiny has 512 positions."),
        (["model.path=/nowhere"], "is neither tiny, nor a folder, nor a hub id"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(tmp_path, capsys, overrides, sentence):
    usual = [] if overrides[0].startswith("dataset.path=") else [f"dataset.path={DATA}"]
    given = [*usual, *overrides, f"out={tmp_path / 'out'}"]
    assert main(given) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.glob("out/answers.*"))


def test_without_a_sandbox_code_is_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["dataset.name=humaneval", *SHORT, f"out={tmp_path / 'out'}"]) == 2
    assert "unsafe" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("isolation")
def test_the_arena_and_the_studies_take_benchmarks(tmp_path):
    lengths = ("--gen-length", "16", "--block-length", "8", "--count", "2", "--out", tmp_path / "out")
    done = run("arena", "none/topk:k=4", "--problems", f"humaneval:{DATA}", "--no-timing", *lengths)
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "out" / "arena.json").read_text())
    assert found["methods"][0]["problems"] == 2
    kept = read_results(tmp_path / "out" / "answers.jsonl")
    assert all(line["prompt"].startswith("Write a solution to the following problem") for line in kept)
    assert "No such file" in refused("arena", "none/topk", "--problems", "nothing.jsonl")
