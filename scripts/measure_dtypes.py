"""Measure what rounding costs: the same problems in float32, bfloat16 and int8, paired with float32.

    python scripts/measure_dtypes.py [--model tiny] [--problems 500]

Writes docs/int8.json and docs/int8.md; goes on from where a stopped run was. A head that is tied to the embedding
stays as that is; what rounding it, too, would cost is measured beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import fastdllm
from fastdllm.arena.contest import hold, provenance
from fastdllm.arena.methods import parse_method
from fastdllm.arena.problems import open_problems
from fastdllm.arena.run import Answer, Arena
from fastdllm.arena.score import sign_test, wilson
from fastdllm.config import GenerationOptions
from fastdllm.engine import Engine
from fastdllm.files import write_whole
from fastdllm.memory import weight_bytes
from fastdllm.models.checkpoint import resolve
from fastdllm.models.quantized import Int8Linear, Rows
from fastdllm.record import environment

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "dtypes"
SHARED: GenerationOptions = {"gen_length": 64, "block_length": 8}
METHOD = "dual/threshold:threshold=0.9"
HEAD_TOO = "int8, head too"
KINDS = ("float32", "bfloat16", "int8", HEAD_TOO)
HEADER = "| weights | right, % (95 % interval) | against float32 | same text | passes | MB |\n|---|---|---|---|---|---|"


def engine_of(kind: str, model: str) -> Engine:
    engine = fastdllm.load(model, dtype=kind.partition(",")[0], device="cpu", attention="sdpa")
    if kind == HEAD_TOO and not isinstance(engine.model.head, Int8Linear):
        engine.model.head = Int8Linear(engine.model.embed.weight, None, Rows())
    return engine


def answers_of(kind: str, model: str, count: int) -> tuple[list[Answer], Engine, dict[str, object]]:
    folder, engine = resolve(model), engine_of(kind, model)
    posed = open_problems(None, folder, model, count)
    arena = Arena(
        engine=engine, methods=(parse_method(METHOD, SHARED),), problems=tuple(posed.problems), shared=SHARED,
        provenance=provenance(posed, folder, None), chat=True, batch_size=25,
        folder=WORK / kind.replace(", ", "-").replace(" ", "-"), counts_flops=False,
    )  # fmt: skip
    report = hold(arena, command="")
    (answers,) = report.answers.values()
    return list(answers), engine, arena.settings_of(arena.methods[0])


def entry(kind: str, answers: list[Answer], exact: list[Answer], engine: Engine) -> dict[str, Any]:
    pairs = [(a.right, b.right) for a, b in zip(answers, exact, strict=True)]
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    right = sum(answer.right for answer in answers)
    itemsize, quantized = engine.dtype.itemsize, bool(engine.model.quantized)
    return {
        "weights": kind,
        "problems": len(answers),
        "right": right,
        "accuracy": 100 * right / len(answers),
        "interval": wilson(right, len(answers)),
        "against_float32": {"gained": gained, "lost": lost, "p": sign_test(gained, lost)},
        "same_text": sum(a.text == b.text for a, b in zip(answers, exact, strict=True)),
        "nfe": sum(answer.nfe for answer in answers) / len(answers),
        "bytes": weight_bytes(engine.config, itemsize, quantized=quantized),
    }


def line(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    against = found["against_float32"]
    paired = f"+{against['gained']} -{against['lost']} (p {against['p']:.2f})" if found["weights"] != "float32" else "-"
    size = "" if found["weights"] == HEAD_TOO else f"{found['bytes'] / 1e6:.1f}"
    return (
        f"| {found['weights']} | {found['accuracy']:.1f} ({low:.1f}-{high:.1f}) | {paired} | "
        f"{found['same_text']} of {found['problems']} | {found['nfe']:.1f} | {size} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the model is so small that a second thread slows it down
    exact, found, settings = list[Answer](), list[dict[str, Any]](), dict[str, object]()
    for kind in KINDS:
        answers, engine, own = answers_of(kind, args.model, args.problems)
        exact, settings = exact or answers, settings or {**own, "dtype": KINDS}
        found.append(entry(kind, answers, exact, engine))
        print(line(found[-1]), flush=True)
    runs_on = environment(engine)
    command = f"python scripts/measure_dtypes.py --model {args.model} --problems {args.problems}"
    content = {"command": command, "method": METHOD, "settings": settings, "environment": runs_on, "weights": found}
    write_whole(ROOT / "docs" / "int8.json", json.dumps(content, indent=1) + "\n")
    where = f"{runs_on['hardware']}, torch {runs_on['torch']}, commit {runs_on['commit']}"
    origin = f"`{METHOD}`, {args.problems} held-out problems, model {args.model}, {where}.\n\nMade by `{command}`.\n"
    table = "\n".join([HEADER, *map(line, found)])
    write_whole(ROOT / "docs" / "int8.md", f"# What rounding weights costs\n\n{table}\n\n{origin}")


if __name__ == "__main__":
    main()
