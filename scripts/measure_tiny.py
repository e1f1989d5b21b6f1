"""Measure the embedded model: the README's table, the comparison of all methods, and the model card.

    python scripts/measure_tiny.py [--problems 500]

Both tables are made by ``fastdllm arena``, which goes on from where a stopped run was. What it writes is
copied into docs/ and between the markers of README.md and the model card.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastdllm.arena.report import insert
from fastdllm.results import read_results
from word_problems import COPIED

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "src" / "fastdllm" / "checkpoints" / "tiny"
WORK = ROOT / "build" / "measure"
ALL_METHODS = """# All methods on the embedded model

Every cache with plain decoding and with a threshold, and every decoder with the dual cache, on held-out problems.
`make measure` writes this page; `scripts/all.methods` lists the pairs.

![Accuracy against rows per token of every method](arena.png)

"""


def arena(name: str, problems: int) -> Path:
    """Run the methods of ``name``.methods; a folder with the table. All share their answers, so none is given twice."""
    command = ["arena", "--methods", f"scripts/{name}.methods", "--count", str(problems), "--dtype", "float32"]
    command += ["--threads", "1"]  # the model is so small that a second thread slows it down
    subprocess.run(
        [sys.executable, "-m", "fastdllm", *command, "--out", str(WORK.relative_to(ROOT))], cwd=ROOT, check=True
    )
    kept = WORK / name
    kept.mkdir(exist_ok=True)
    for kind in ("json", "md", "png"):
        shutil.copy(WORK / f"arena.{kind}", kept / f"arena.{kind}")
    return kept


def own_words(method: str) -> tuple[int, int]:
    """Answers of a method whose names and things are all in the question, and how many answers there are."""
    lines = [line for line in read_results(WORK / "answers.jsonl") if line["id"].startswith(f"{method} #")]
    return sum(words(line["text"]) <= words(line["prompt"]) for line in lines), len(lines)


def words(text: str) -> set[str]:
    return COPIED & set(re.findall("[A-Za-z]+", text))


def copied(folder: Path) -> str:
    """How many answers speak of what the question speaks of, plain and accelerated."""
    kept: dict[str, Any] = json.loads((folder / "arena.json").read_text())
    wanted = ("none/topk:k=1", "dual/threshold:threshold=0.9")
    keys = {entry["name"]: entry["key"] for entry in kept["methods"]}
    counts = [own_words(keys[name]) for name in wanted]
    return " and ".join(f"{own} of {total} (`{name}`)" for (own, total), name in zip(counts, wanted, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    args = parser.parse_args()
    tiny, everything = arena("tiny", args.problems), arena("all", args.problems)
    table = (tiny / "arena.md").read_text()
    for document in (ROOT / "README.md", CHECKPOINT / "README.md"):
        insert(document, "measured", table)
        insert(document, "copied", f"All names and things are the question's in {copied(tiny)}.")
    (ROOT / "docs" / "arena.md").write_text(ALL_METHODS + (everything / "arena.md").read_text())
    shutil.copy(tiny / "arena.json", ROOT / "docs" / "tiny-measured.json")
    for kind in ("json", "png"):
        shutil.copy(everything / f"arena.{kind}", ROOT / "docs" / f"arena.{kind}")


if __name__ == "__main__":
    main()
