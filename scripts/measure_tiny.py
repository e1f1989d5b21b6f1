"""Measure the embedded model on held-out problems: every decoder of the README's table with every cache.

    python scripts/measure_tiny.py [--problems 500] [--out docs/tiny-measured.json]

Accuracy, NFE, TPF and rows per token come from batches (a row's answer does not depend on its batch);
tokens per second from one prompt at a time, settings interleaved round by round, on the first problems.
Each setting's results are saved as soon as it is done, with whether each single problem was right, and a
run that was stopped goes on from there. The tables in README.md and the model card are written from them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import torch

import fastdllm
from fastdllm.record import environment, fingerprint

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "src" / "fastdllm" / "checkpoints" / "tiny"
CACHES = ("none", "prefix", "dual")
DECODERS = (
    "topk:k=1", "topk:k=2", "topk:k=4", "topk:k=8",
    "threshold:threshold=0.95", "threshold:threshold=0.9", "threshold:threshold=0.8",
    "threshold:threshold=0.7", "threshold:threshold=0.5", "factor:factor=1.0",
)  # fmt: skip
GEN_LENGTH, BLOCK_LENGTH, BATCH, TIMED, ROUNDS = 64, 8, 25, 5, 3


def final_number(text: str) -> str | None:
    found = re.search(r"#### (-?\d+)", text)
    return found.group(1) if found else None


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion, in percent."""
    z, p = 1.96, right / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return 100 * (middle - half) / (1 + z * z / total), 100 * (middle + half) / (1 + z * z / total)


def quality(engine: fastdllm.Engine, problems: list[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
    done = engine.generate([p["question"] for p in problems], batch_size=BATCH, **options)
    right = [final_number(c.text) == final_number(p["answer"]) for c, p in zip(done, problems, strict=True)]
    tokens = sum(len(c.tokens) for c in done)
    return {
        "accuracy": 100 * sum(right) / len(right),
        "interval": wilson(sum(right), len(right)),
        "nfe": statistics.mean(c.nfe for c in done),
        "tokens_per_forward": tokens / sum(c.nfe for c in done),
        "rows_per_token": sum(c.rows_computed for c in done) / tokens,
        "right": right,
    }


def speed(engine: fastdllm.Engine, problems: list[dict[str, str]], options: dict[str, Any]) -> float:
    """Answer tokens per second over the problems, one prompt at a time."""
    done = [engine.generate(p["question"], **options)[0] for p in problems]
    return sum(len(c.tokens) for c in done) / sum(c.seconds for c in done)


def measure(problems: list[dict[str, str]], out: Path) -> dict[str, Any]:
    engine = fastdllm.load(CHECKPOINT, dtype="float32")
    record: dict[str, Any] = {
        "weights": fingerprint(CHECKPOINT), "dtype": "float32", "environment": environment(engine),
        "gen_length": GEN_LENGTH, "block_length": BLOCK_LENGTH, "problems": len(problems), "settings": {},
    }  # fmt: skip
    if out.exists():
        before = json.loads(out.read_text())
        if all(before[key] == record[key] for key in ("weights", "problems", "gen_length", "block_length")):
            record["settings"] = before["settings"]
    settings = [(cache, decoder) for decoder in DECODERS for cache in CACHES]
    for cache, decoder in settings:
        if f"{cache} {decoder}" not in record["settings"]:
            result = quality(engine, problems, options_of(cache, decoder))
            record["settings"][f"{cache} {decoder}"] = result
            out.write_text(json.dumps(record) + "\n")
            print(
                f"{cache:7} {decoder:26} {result['accuracy']:5.1f} % TPF {result['tokens_per_forward']:.2f}", flush=True
            )
    speed(engine, problems[:2], options_of("dual", "topk:k=1"))  # warm up
    rounds = [{s: speed(engine, problems[:TIMED], options_of(*s)) for s in settings} for _ in range(ROUNDS)]
    for cache, decoder in settings:
        each = sorted(r[(cache, decoder)] for r in rounds)
        record["settings"][f"{cache} {decoder}"]["tokens_per_second"] = {
            "median": statistics.median(each), "low": each[0], "high": each[-1],
        }  # fmt: skip
    out.write_text(json.dumps(record) + "\n")
    return record


def options_of(cache: str, decoder: str) -> dict[str, Any]:
    return {"gen_length": GEN_LENGTH, "block_length": BLOCK_LENGTH, "cache": cache, "decoder": decoder}


def table(record: dict[str, Any]) -> str:
    lines = [
        "| decoder | cache | right, % (95 % interval) | NFE | TPF | rows/token | tokens/s (lowest-highest) |",
        "|---|---|---|---|---|---|---|",
    ]
    for decoder in DECODERS:
        for cache in CACHES:
            r = record["settings"][f"{cache} {decoder}"]
            low, high = r["interval"]
            tps = r.get("tokens_per_second")
            speed_text = f"{tps['median']:.0f} ({tps['low']:.0f}-{tps['high']:.0f})" if tps else "not timed"
            lines.append(
                f"| `{decoder}` | {cache} | {r['accuracy']:.1f} ({low:.1f}-{high:.1f}) | {r['nfe']:.1f} | "
                f"{r['tokens_per_forward']:.2f} | {r['rows_per_token']:.1f} | "
                f"{speed_text} |"
            )
    e = record["environment"]
    lines.append(
        f"\n{record['problems']} held-out problems, gen_length {record['gen_length']}, block_length "
        f"{record['block_length']}, greedy, {record['dtype']}, {e['hardware']}, {e['threads']} threads, "
        f"torch {e['torch']}, commit {e['commit']}. Tokens per second: one prompt at a time, median of {ROUNDS} "
        f"interleaved rounds over {TIMED} problems; answer tokens up to the end token, prompt excluded."
    )
    return "\n".join(lines)


def insert(path: Path, text: str) -> None:
    """Replace what stands between the markers of a document."""
    start, end = "<!-- measured: start -->", "<!-- measured: end -->"
    before, rest = path.read_text().split(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tiny-measured.json")
    args = parser.parse_args()
    lines = (CHECKPOINT / "problems.jsonl").read_text().splitlines()[: args.problems]
    torch.set_grad_enabled(False)
    record = measure([json.loads(line) for line in lines], args.out)
    for document in (ROOT / "README.md", CHECKPOINT / "README.md"):
        insert(document, table(record))


if __name__ == "__main__":
    main()
