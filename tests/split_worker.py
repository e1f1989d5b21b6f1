"""What ``torchrun split_worker.py FOLDER COMMAND...`` runs: the jobs of FOLDER, into RANK.json, and then a command.

The functions that a single process runs, too, take an engine; the test calls them with a whole model.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import fastdllm
from fastdllm.cli.app import main as command_line
from fastdllm.engine import Engine


def decode(engine: Engine, job: dict[str, Any]) -> dict[str, Any]:
    """Every event of a generation, and what came out."""
    generation = engine.start(job["prompts"], batch_size=2, **job["options"])
    events = [asdict(event) for event in generation]
    return {"events": events, "answers": [completion.tokens for completion in generation.completions]}


def look(engine: Engine) -> dict[str, Any]:
    """What the network says of one canvas, and the bytes that this process holds."""
    model = engine.model
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        hidden = model(tokens, torch.arange(20).expand(2, -1))
        logits = model.logits(hidden)
    parts = {name: part(parameter) for name, parameter in model.named_parameters()}
    return {
        "bits": [digest(hidden), digest(logits)],
        "logits": logits.tolist(),
        "weights": {name: tensor.untyped_storage().nbytes() for name, tensor in parts.items()},
        "store": model.allocate(batch=2, length=10).nbytes,
    }


def part(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.data


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def refusals(folder: Path, engine: Engine, rank: int) -> list[str]:
    """What each process is told where they ask for different things, or for what cannot be."""
    asked = (
        lambda: engine.generate([[1, 2, 3 + rank]], gen_length=8),
        lambda: engine.generate([[1, 2]], gen_length=8, seed=rank),
        lambda: fastdllm.load(folder / "llada", tensor_parallel=2, dtype=("float32", "bfloat16")[rank]),
        lambda: fastdllm.load(folder / "one_head", tensor_parallel=2),
        lambda: fastdllm.load(folder / "llada", tensor_parallel=4),
        lambda: fastdllm.load(folder / "llada", tensor_parallel=2, compile=True),
        lambda: fastdllm.load(folder / "llada", tensor_parallel=2, packed=True),
        lambda: fastdllm.load(folder / "llada", tensor_parallel=2, dtype="int8"),
    )
    return [sentence(ask) for ask in asked]


def sentence(ask: Any) -> str:
    try:
        ask()
    except fastdllm.OptionError as error:
        return str(error)
    return "not refused"


def main(folder: Path, command: list[str]) -> None:
    warnings.simplefilter("error")
    jobs, found = json.loads((folder / "jobs.json").read_text()), {}
    for name in sorted({job["checkpoint"] for job in jobs}):
        engine = fastdllm.load(folder / name, tensor_parallel="auto", dtype="float32", device="cpu")
        answers = {job["name"]: decode(engine, job) for job in jobs if job["checkpoint"] == name}
        found[name] = {**look(engine), "jobs": answers}
    rank = torch.distributed.get_rank()
    found["refusals"] = refusals(folder, engine, rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    sys.argv = ["fastdllm", *command]
    command_line()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
