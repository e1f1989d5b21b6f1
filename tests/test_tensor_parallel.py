"""A model split over the processes of one torchrun answers as in one process, with its share of the memory in each."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastdllm
from fastdllm import processes
from fastdllm.config import parse_cache, parse_decoder
from fastdllm.errors import OptionError
from fastdllm.memory import Memory, memory
from fastdllm.models import weights
from fastdllm.models.checkpoint import save_checkpoint
from fastdllm.models.config import ModelConfig
from fastdllm.models.weights import list_tensors, whole
from helpers import QUICK, lines_of, run, write_checkpoint
from split_worker import decode, look
from toys import prompts_of, toy_config, toy_model

pytestmark = pytest.mark.slow
PROCESSES = 2
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llada": {"family": "llada"},
    "llada_grouped": {"family": "llada", "num_kv_heads": 2, "qkv_bias": True, "tie_embeddings": True},
    "dream": {"family": "dream", "num_heads": 8, "num_kv_heads": 4},
    "dream_tied": {"family": "dream", "tie_embeddings": True},
}
CACHES = ("none", "prefix", "dual", "sliding", "dkv", "dllm:kp=5,kr=3,rou=0.4", "d2cache:current_k=6,rollout_p=0.3")
DECODERS = ("threshold:threshold=0.5", "wino", "topk:k=2", "saber")


def jobs() -> list[dict[str, Any]]:
    """Every cache on both families, with decoders and checkpoints in turn; then noise, filters and guidance."""
    decoders, found = cycle(DECODERS), []
    for names in (("llada", "llada_grouped"), ("dream", "dream_tied")):
        for cache, name in zip(CACHES, cycle(names), strict=False):
            found.append(job(name, cache=cache, decoder=next(decoders)))
    noise = {"temperature": 0.8, "top_p": 0.9, "seed": [5, 6, 7]}
    found.append(job("llada", cache="dual", decoder="threshold:threshold=0.6", **noise))
    found.append(job("dream", cache="prefix", decoder="timestep:steps=12,alg=entropy,alg_temp=0.3", **noise))
    found.append(job("dream_tied", cache="none", decoder="factor:factor=1.0", cfg_scale=1.5))
    return found


def job(checkpoint: str, **options: Any) -> dict[str, Any]:
    name = " ".join([checkpoint, *(f"{key}={value}" for key, value in options.items())])
    asked = {"gen_length": 16, "block_length": 8, **options}
    return {"name": name, "checkpoint": checkpoint, "prompts": prompts_of([3, 14, 6]), "options": asked}


JOBS = jobs()
LINES = [json.dumps({"id": i, "prompt": f"prompt {i}" * i}) for i in range(1, 6)]


def torchrun(*command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in two processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", PROCESSES, *command]
    return subprocess.run([*map(str, words)], input=stdin, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    for name, shape in {**CHECKPOINTS, "one_head": {"family": "llada", "num_kv_heads": 1}}.items():
        save_checkpoint(toy_model(layers=2, **shape), folder / name)
    (folder / "jobs.json").write_text(json.dumps(JOBS))
    write_checkpoint(folder / "text", family="dream")
    for out, lines in {"alone": LINES, "split": LINES[:2]}.items():
        assert run(*generate(folder, out), stdin="\n".join(lines)).exit_code == 0
    return folder


def generate(folder: Path, out: str) -> list[str]:
    """The command that answers prompts from standard input and keeps the answers in a file."""
    where = ("--model", folder / "text", "--out", folder / f"{out}.jsonl")
    return ["generate", "--jsonl", *map(str, where), "--batch-size", "2", *QUICK]


@pytest.fixture(scope="module")
def ended(folder: Path) -> subprocess.CompletedProcess[str]:
    """One torchrun that does all jobs and then the command."""
    worker = Path(__file__).with_name("split_worker.py")
    ended = torchrun(worker, folder, *generate(folder, "split"), stdin="\n".join(LINES))
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def split(folder: Path, ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each process found."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, fastdllm.Engine]:
    return {name: fastdllm.load(folder / name, dtype="float32", device="cpu") for name in CHECKPOINTS}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["name"])
def test_answers_are_those_of_one_process(job, split, engines):
    alone = json.loads(json.dumps(decode(engines[job["checkpoint"]], job)))
    first, other = (found[job["checkpoint"]]["jobs"][job["name"]] for found in split)
    assert first == other  # to the last bit of every confidence
    assert first["answers"] == alone["answers"]
    sure = [[row.pop("confidences") for event in of["events"] for row in event["rows"]] for of in (first, alone)]
    assert first["events"] == alone["events"]
    for ours, theirs in zip(*sure, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_all_processes_have_the_same_bits(name, split, engines):
    first, other = (found[name] for found in split)
    assert first["bits"] == other["bits"]
    assert torch.allclose(torch.tensor(first["logits"]), torch.tensor(look(engines[name])["logits"]), atol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_process_holds_its_share(name, split, engines):
    alone = look(engines[name])
    for found in (found[name] for found in split):
        need = told(engines[name].config, tensor_parallel=PROCESSES)
        assert found["store"] * PROCESSES == alone["store"] == need.kv_store * PROCESSES
        tied = "head.weight" not in found["weights"]
        assert tied == engines[name].config.tie_embeddings
        assert sum(found["weights"].values()) == need.weights
        assert found["weights"].keys() == alone["weights"].keys()
        for weight, held in found["weights"].items():
            assert held * (1 if "norm" in weight else PROCESSES) == alone["weights"][weight], weight


def told(config: ModelConfig, tensor_parallel: int) -> Memory:
    """What ``fastdllm info`` says that each process needs for two canvases of ten slots."""
    sizes = {"batch_size": 2, "prompt_length": 2, "gen_length": 8, "block_length": 8, "itemsize": 4}
    return memory(config, parse_cache("dual"), parse_decoder("topk"), **sizes, tensor_parallel=tensor_parallel)


def test_refusals_name_what_is_wrong_and_reach_every_process(split):
    first, other = (found["refusals"] for found in split)
    assert first == other
    prompts, seeds, dtypes, heads, size, *other_options = first
    assert "different prompts or options" in prompts
    assert "different prompts or options" in seeds
    assert "different models or dtypes" in dtypes
    assert "tensor_parallel=2 does not divide a model with 1 key/value heads" in heads
    assert heads.endswith("it can be 1.")
    assert "tensor_parallel=4 needs 4 processes, and here are 2" in size
    for option, why in zip(("compile=True", "packed=True", "dtype='int8'"), other_options, strict=True):
        assert why.startswith(f"{option} does not go with tensor_parallel=2")


def test_generate_reads_and_writes_once(ended, folder):
    """Prompts came from standard input, which the processes share, and a file held two of the answers already."""
    assert not ended.stdout
    assert ended.stderr.count("2 of 5 answers are in") == 1
    assert ended.stderr.count("3 answers in ") == 1
    assert "2 processes" in ended.stderr
    alone = {line["id"]: line["text"] for line in lines_of(folder / "alone.jsonl")}
    assert {line["id"]: line["text"] for line in lines_of(folder / "split.jsonl")} == alone
    assert len(lines_of(folder / "split.jsonl")) == len(LINES)
    runs = json.loads((folder / "split.jsonl.run.json").read_text())["runs"]
    assert [ran["tensor_parallel"] for ran in runs] == [1, PROCESSES]


def test_an_error_is_one_sentence_said_once(tmp_path):
    ended = torchrun("-m", "fastdllm", "chat", "--model", write_checkpoint(tmp_path / "model"))
    assert ended.returncode == 1  # torchrun's own
    assert not ended.stdout
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: 2 processes were started, and this runs in one; ")
    assert "exitcode  : 2 " in ended.stderr
    assert "fastdllm.errors" not in ended.stderr


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (2, "tensor_parallel=2 needs 2 processes, and here is 1; start them with torchrun --nproc-per-node 2."),
        (0, "tensor_parallel=0 must be auto or a number of 1 or more."),
        ("all", "tensor_parallel=all must be auto or a number of 1 or more."),
    ],
)
def test_processes_that_are_not_there_are_refused(size, why):
    with pytest.raises(OptionError, match=f"^{why}$"):
        fastdllm.load("tiny", tensor_parallel=size)


def test_a_process_alone_loads_as_ever():
    assert fastdllm.load("tiny", tensor_parallel="auto").model.kv_heads == toy_config().num_kv_heads


@pytest.mark.parametrize(
    ("device", "gpus", "own"),
    [("auto", 2, "cuda:1"), ("cuda", 4, "cuda:1"), ("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("mps", 0, "mps")],
)
def test_each_process_takes_the_gpu_of_its_number(device, gpus, own, monkeypatch):
    started(monkeypatch, gpus=gpus)
    assert processes.own_device(device) == own


@pytest.mark.parametrize(("device", "why"), [("cuda:0", "one GPU for 2 processes"), ("auto", "has 1 GPU, too few")])
def test_a_gpu_for_several_is_refused(device, why, monkeypatch):
    started(monkeypatch, gpus=1)
    with pytest.raises(OptionError, match=why):
        processes.own_device(device)


def started(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """The second of two processes on a machine with so many GPUs."""
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize("window", [(slice(5, 10), slice(0, 8)), (slice(0, 10), slice(4, 8))])
def test_a_part_of_a_tensor_is_read_without_the_rest(window, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 3 * 8 * 4)  # three rows of it
    held = torch.arange(80.0).view(10, 8)
    save_file({"it": held}, tmp_path / "model.safetensors")
    (stored,) = list_tensors(tmp_path).values()
    part = weights._read(stored, "it", window, torch.float32, torch.device("cpu"))
    assert torch.equal(part, held[window])
    assert part.untyped_storage().nbytes() == held.nbytes // 2
    assert torch.equal(weights._read(stored, "it", whole(stored.shape), torch.float32, torch.device("cpu")), held)
