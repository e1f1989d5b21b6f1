"""A command that starts Ray, in a session of its own: all processes that come of it can be found, and are ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 240.0
"""Seconds until something is taken not to happen: a loaded machine needs a minute to start a Ray."""


class Session:
    """A command at work. What it prints goes to a file."""

    def __init__(self, command: list[str], folder: str, **variables: str) -> None:
        self.output = Path(folder) / "output"
        # Ray's sockets lie in its folder, and their names may have no more than about a hundred characters.
        own = {"RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **variables}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **own},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.output.read_text()

    def processes(self, *words: str) -> list[int]:
        """Those of the session whose command line holds all these words, in any case."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()
                title = (folder / "cmdline").read_bytes().decode(errors="replace").lower()
                if int(state[3]) == self.process.pid and state[0] != "Z" and all(word in title for word in words):
                    found.append(int(folder.name))
        return sorted(found)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the session does."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def wait(self) -> int:
        """The exit code of the command, once it has ended."""
        return self.process.wait(PATIENCE)

    def gone(self) -> bool:
        """Whether nothing is left soon after the command has ended."""
        deadline = time.monotonic() + 30
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.processes()

    def close(self) -> None:
        """End everything."""
        while left := self.processes():
            for one in left:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)


@contextmanager
def session(*command: str, **variables: str) -> Iterator[Session]:
    folder = tempfile.mkdtemp(prefix="fd", dir="/tmp")
    made = Session([sys.executable, "-m", *command], folder, **variables)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
