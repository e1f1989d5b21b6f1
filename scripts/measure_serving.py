"""The table of docs/bench-serve.md: the embedded model served on one thread, and asked by as many as 16 at a time.

python scripts/measure_serving.py [--page]

``--page`` measures nothing and writes the page's tables from docs/bench-serve.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdllm.arena.report import insert
from fastdllm.load_test.report import Report
from fastdllm.load_test.tables import markdown

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = Path("docs/bench-serve.md"), Path("docs/bench-serve.json")
PORT = "8077"  # fixed, so that the recorded command can be typed again
SERVE = ("serve", "tiny", "--threads", "1", "--port", PORT)
BENCH = (
    "bench-serve", f"http://127.0.0.1:{PORT}", "--concurrency", "1,4,16", "--rate", "4", "--requests", "80",
    "--rounds", "3", "--max-tokens", "64-128", "--cache", "dual", "--decoder", "threshold:threshold=0.9",
    "--block-length", "8",
)  # fmt: skip
FASTDLLM = [sys.executable, "-m", "fastdllm"]


@contextmanager
def serving() -> Iterator[None]:
    """The server, from the moment it listens."""
    with subprocess.Popen([*FASTDLLM, *SERVE], stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            if " at http://" not in (said := process.stderr.readline()):
                sys.exit(f"the server does not start: {said}")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # so that its log does not fill the pipe
            yield
        finally:
            process.terminate()


def measure() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the client's own
    with serving():
        subprocess.run([*FASTDLLM, *BENCH, "--json", str(RESULTS)], env=environment, cwd=ROOT, check=True)


def write_page() -> None:
    report = Report.from_json(json.loads((ROOT / RESULTS).read_text(encoding="utf-8")))
    insert(ROOT / PAGE, "bench-serve", f"{markdown(report)}\n\nThe server: `fastdllm {' '.join(SERVE)}`.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    if not parser.parse_args().page:
        measure()
    write_page()
