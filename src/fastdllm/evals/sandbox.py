"""Run programs that a model wrote, apart from the user's files, network and processes, and tell whether they passed.

A program passed if it reached its last line without an error: the process that ran it then returns a random token to
the parent, and ends. One that leaves early, with whatever status, in a child, or by killing itself, returns nothing.
The token lies in a socket that the program holds too. Only a program written against this very runner can take it
from there, or out of the runner's frames, and only one that fakes its tests (an object equal to everything, a
replaced built-in) can pass them wrongly: what runs in the same interpreter as its own tests cannot be kept from that.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from fastdllm.checks import check_least
from fastdllm.errors import OptionError, SandboxError
from fastdllm.evals.sandbox_isolation import Isolation, Limits, Unsafe, bubblewrap, top_folders
from fastdllm.evals.sandbox_runner import OUT_OF_MEMORY, STARTED

__all__ = ["Isolation", "Limits", "Outcome", "Unsafe", "find_isolation", "run_program", "run_programs"]

Reason = Literal["passed", "failed", "exited", "timeout", "memory", "output", "killed"]

LIMITS = Limits()
TAIL = 2000  # bytes kept of what a program printed
START_SECONDS = 60.0  # for the sandbox itself, before the program's clock starts
TICK, CLOSED_TICK = 50, 2  # milliseconds between looks at whether a program has ended, which its closed output tells
SHELL_SIGNAL = 128  # bubblewrap's status for a program that a signal ended is this and the signal


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    reason: Reason
    """``passed``; ``failed`` with an error; ``exited`` by itself before its end; ``timeout`` of the clock or the
    processor; ``memory`` ran out; too much ``output``; or ``killed`` by a signal."""
    tail: str
    """The end of what it printed, errors last."""

    @property
    def passed(self) -> bool:
        return self.reason == "passed"


def run_program(source: str, *, limits: Limits = LIMITS, isolation: Isolation) -> Outcome:
    """Run a program to its end or to one of its limits. Whatever it does is an outcome, never an error.

    Its module is not ``__main__``, it reads nothing from standard input, and it can import the standard library.

    Raises:
        SandboxError: the sandbox did not start, so that nothing is known of the program.
    """
    token = secrets.token_hex(16).encode()
    outer, inner = socket.socketpair()
    with outer, inner:
        outer.sendall(token)
        with isolation.launch(source.encode("utf-8", "surrogatepass"), limits, inner) as process:
            inner.close()
            await_start(process, outer)
            cut, tail = follow(process, limits)
        reason = cut or verdict(process.returncode, received(outer), token)
    return Outcome(reason=reason, tail=tail.decode("utf-8", "replace"))


def run_programs(
    sources: Iterable[str], *, limits: Limits = LIMITS, isolation: Isolation, workers: int | None = None
) -> Iterator[Outcome]:
    """Run programs side by side; outcomes come in the order of ``sources``, each as soon as it and all before it end.

    Args:
        workers: programs at once; None for one on each processor. Together they may use ``workers`` times what
            ``limits`` allows one.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    check_least("workers", workers, 1)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(partial(run_program, limits=limits, isolation=isolation), sources)


def find_isolation(*, unsafe: bool = False) -> Isolation:
    """The sandbox that works on this machine; it has been tried.

    Args:
        unsafe: do without, see :class:`Unsafe`.

    Raises:
        OptionError: there is none.
    """
    if sys.platform != "linux":
        raise OptionError(
            f"Code benchmarks run what a model wrote, which can be shut in on Linux alone, not on {sys.platform}."
        )
    if unsafe:
        return Unsafe()
    path = shutil.which("bwrap")
    if path is None:
        raise OptionError(
            "Code benchmarks run what a model wrote, and bubblewrap, which shuts it in, is not installed: "
            "install the package bubblewrap (0.7 or newer), or run the code without a sandbox with --unsafe."
        )
    path = os.path.abspath(path)
    fault = fault_of(path)
    if fault:
        raise OptionError(
            f"Code benchmarks run what a model wrote, and bubblewrap at {path} does not shut it in here ({fault}): "
            "allow user namespaces and use bubblewrap 0.7 or newer, or run the code without a sandbox with --unsafe."
        )
    return bubblewrap(path)


def await_start(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    """Wait until the runner has set its limits and is about to run the program."""
    channel.settimeout(START_SECONDS)
    try:
        word = channel.recv(1)
    except TimeoutError:
        raise SandboxError(f"The sandbox did not start a program within {START_SECONDS:g} seconds.") from None
    except ConnectionResetError:  # the other end was closed with the token still in it
        word = b""
    if word != STARTED:
        assert process.stdout is not None
        said = process.stdout.read().decode("utf-8", "replace").strip()
        raise SandboxError(f"The sandbox did not start a program: {said[-TAIL:] or 'it says nothing'}.")


def follow(process: subprocess.Popen[bytes], limits: Limits) -> tuple[Literal["timeout", "output"] | None, bytes]:
    """Read what a program prints until it has ended (None) or must be ended, and the end of what it printed."""
    assert process.stdout is not None
    output, tail, printed, tick = process.stdout.fileno(), b"", 0, TICK
    poll = select.poll()
    poll.register(output, select.POLLIN)
    deadline = time.monotonic() + limits.seconds
    while time.monotonic() < deadline:
        ready = poll.poll(tick)
        chunk = os.read(output, 2**16) if ready else b""
        if chunk:
            printed += len(chunk)
            tail = (tail + chunk)[-TAIL:]
            if printed > limits.output_bytes:
                return "output", tail
        elif ended(process):
            return None, tail
        elif ready:
            poll.unregister(output)
            tick = CLOSED_TICK
    return "timeout", tail


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has; it stays unreaped, so that its number still names its session."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def received(channel: socket.socket) -> bytes:
    """What the runner and, for all we know, the program sent."""
    channel.setblocking(False)
    try:
        return channel.recv(2**16)
    except (BlockingIOError, ConnectionResetError):
        return b""


def verdict(status: int, words: bytes, token: bytes) -> Reason:
    """How a program ended that was not cut short, by its status and what came through the channel."""
    if status == 0:
        return "passed" if token in words else "exited"
    if OUT_OF_MEMORY in words:
        return "memory"
    number = -status if status < 0 else status - SHELL_SIGNAL
    if number == signal.SIGXCPU:
        return "timeout"
    return "killed" if number > 0 else "failed"


# Runs with Limits(processes=2): each sentence is what is wrong where its check fails.
PROBE = """
import os, socket, time

def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError:
        return True

def crowd():
    for _ in range(64):
        if os.fork() == 0:
            time.sleep(60)

seen = set(os.listdir("/")) - {known}
assert not seen, f"programs see /{{', /'.join(seen)}}"
assert refused(open, "/file", "w"), "programs write outside their folder"
assert refused(socket.socket), "programs open sockets"
assert refused(crowd), "programs start any number of processes"
"""


@cache
def fault_of(path: str) -> str | None:
    """What is wrong with the sandbox that the ``bwrap`` at ``path`` makes; None if nothing is."""
    try:
        outcome = run_program(PROBE.format(known=top_folders()), limits=Limits(processes=2), isolation=bubblewrap(path))
    except (SandboxError, OSError, subprocess.SubprocessError) as error:
        return str(error).rstrip(".")
    return None if outcome.passed else (outcome.tail.strip().splitlines() or [outcome.reason])[-1]
