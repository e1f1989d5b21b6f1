"""What a program may use, and the two ways to start one: shut in by bubblewrap, or as a bare process.

A strategy's one verb is ``launch``: it starts :mod:`fastdllm.evals.sandbox_runner` on a program and, when the caller
is done, ends everything that is left of it.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

from fastdllm.checks import check_above
from fastdllm.errors import SandboxError
from fastdllm.evals import sandbox_runner
from fastdllm.evals.sandbox_syscalls import syscall_filter

MIB = 2**20
# All a program sees of the environment. One order of sets for every run: an answer has one verdict.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
LINKER_CACHE = "/etc/ld.so.cache"
PROGRAM = "program.py"
OPEN_FILES = 256
NOBODY = "65534"

Launch = AbstractContextManager["subprocess.Popen[bytes]"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    Memory is limited for each process (``RLIMIT_AS``), so that all of a program's together hold at most
    ``processes * memory``, and ``file_bytes`` of files beside.
    """

    seconds: float = 30.0
    """From its start to its end, by the clock: what stops a program that sleeps."""
    cpu_seconds: int = 15
    """Of each process: what stops one that computes, however busy the machine is. Of the reference solutions of
    HumanEval and MBPP one, MBPP's 123, takes 3 to 6 seconds and no other a quarter of one."""
    memory: int = 1024 * MIB
    """Bytes of address space of each process."""
    processes: int = 8
    """Processes and threads at once, the first included."""
    file_bytes: int = 16 * MIB
    """The largest file, and all files together."""
    output_bytes: int = 16 * MIB
    """What it may print."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_above(name, value)

    def resources(self) -> dict[str, int]:
        """Limits that the kernel holds each process to; the number of processes depends on the isolation."""
        return {
            "AS": self.memory,
            "CPU": self.cpu_seconds,
            "FSIZE": self.file_bytes,
            "NOFILE": OPEN_FILES,
            "CORE": 0,
            "MSGQUEUE": 0,
        }


class Isolation(Protocol):
    """A way to start a program apart from everything else."""

    @property
    def name(self) -> str:
        """What a record says of it."""

    def launch(self, program: bytes, limits: Limits, channel: socket.socket) -> Launch:
        """Start the runner on ``program``, with ``channel`` open in it and output to a pipe; end it all on leaving."""


@dataclass(frozen=True, kw_only=True)
class Bubblewrap:
    """Namespaces of its own for everything: no network, no processes but its own, and hardly any files.

    A program sees the system's libraries, the interpreter and its standard library, all read-only, four devices and
    an empty ``/tmp`` of ``Limits.file_bytes`` in memory; no ``/proc`` or ``/sys``, of ``/etc`` the linker's cache
    alone, no home folder, no environment, and no installed package to import. System calls are filtered
    (:mod:`fastdllm.evals.sandbox_syscalls`).

    The kernel counts processes by user and by user namespace. An ordinary user's programs get a namespace each
    (before Linux 5.14, where the count goes over all of the user's processes, a program may then be unable to start
    any). It counts none of root's: with ``other_user`` a program runs as a user of its own, under a number that
    nobody has.
    """

    path: str
    other_user: bool

    @property
    def name(self) -> str:
        return version(self.path)

    @contextmanager
    def launch(self, program: bytes, limits: Limits, channel: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
        with ExitStack() as files:
            program_fd = files.enter_context(in_memory(program)).fileno()
            filter_fd = files.enter_context(in_memory(syscall_filter(platform.machine()))).fileno()
            command = [
                *(self.path, *NAMESPACES, "--die-with-parent", "--new-session", "--hostname", "sandbox"),
                *("--cap-drop", "ALL"),
                *self.user(),
                *("--perms", "1777", "--size", str(limits.file_bytes), "--tmpfs", "/tmp"),
                *mounts(),
                *("--perms", "0444", "--file", str(program_fd), f"/{PROGRAM}"),
                *("--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(filter_fd), "--"),
                *runner(f"/{PROGRAM}", channel, self.new_user(), self.resources(limits)),
            ]
            with running(command, (program_fd, filter_fd, channel.fileno())) as process:
                yield process

    def user(self) -> Sequence[str]:
        if self.other_user:  # to become it, and lost with it
            return ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        return ("--unshare-user", "--uid", NOBODY, "--gid", NOBODY)

    def new_user(self) -> str:
        if not self.other_user:
            return ""
        first, count = users()
        return str(first + count - 2 - secrets.randbelow(min(2**16, count // 4)))

    def resources(self, limits: Limits) -> dict[str, int]:
        # bubblewrap's own first process stands in the namespace too, and is not of the other user.
        return limits.resources() | {"NPROC": limits.processes + (not self.other_user)}


@dataclass(frozen=True, kw_only=True)
class Unsafe:
    """A bare process: limited in time, memory and output and in the size of each file, and in nothing else.

    It sees and may change all that the user does, the network included; processes that leave its session outlive it.
    """

    name: str = "none"

    @contextmanager
    def launch(self, program: bytes, limits: Limits, channel: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
        with tempfile.TemporaryDirectory(prefix="fastdllm-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, PROGRAM)
            path.write_bytes(program)
            command = runner(str(path), channel, "", limits.resources())
            with running(command, (channel.fileno(),), folder) as process:
                yield process


def bubblewrap(path: str) -> Bubblewrap:
    """The isolation by the ``bwrap`` at ``path``, as the user who asks needs it."""
    return Bubblewrap(path=path, other_user=os.geteuid() == 0 and users()[1] > 1)


def runner(path: str, channel: socket.socket, user: str, resources: Mapping[str, int]) -> list[str]:
    """The command that runs the program at ``path``: a bare interpreter, without site packages or a venv."""
    limits = [f"{name}={value}" for name, value in resources.items()]
    return [interpreter(), "-S", "-s", "-B", "-c", runner_text(), path, str(channel.fileno()), user, *limits]


@contextmanager
def running(command: Sequence[str], fds: Sequence[int], folder: str = "/tmp") -> Iterator[subprocess.Popen[bytes]]:
    """Start ``command`` in a session of its own and, on leaving, kill and reap what is left of it."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | {"HOME": folder},
            cwd=folder,
            pass_fds=fds,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"The sandbox could not be started: {error}.") from error
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def in_memory(content: bytes) -> BinaryIO:
    """An open file without a name, at its beginning."""
    file = open(os.memfd_create("fastdllm"), "w+b")  # noqa: SIM115 - the caller's
    file.write(content)
    file.seek(0)
    return file


@cache
def runner_text() -> str:
    return Path(sandbox_runner.__file__).read_text(encoding="utf-8")


@cache
def version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()


@cache
def users() -> tuple[int, int]:
    """The highest range of user numbers that exist here: its first, and how many."""
    first, _, count = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()[-1].split()
    return int(first), int(count)


def interpreter() -> str:
    """The Python that a virtual environment was made from."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def own_places() -> tuple[str, ...]:
    """Where the interpreter and its standard library are, outside the system's folders."""
    prefix = Path(sys.base_prefix)
    places = (Path(interpreter()), prefix / "lib", prefix / "lib64")
    return tuple(str(p) for p in places if p.exists() and not any(p.is_relative_to(folder) for folder in SYSTEM))


@cache
def mounts() -> tuple[str, ...]:
    """What a bare Python needs, read-only."""
    folders = {parent: None for place in (*DEVICES, LINKER_CACHE, *own_places()) for parent in parents(place)}
    arguments = []
    for folder in folders:  # bubblewrap would make them for its own user alone
        arguments += ["--perms", "0755", "--dir", folder]
    for folder in filter(os.path.exists, SYSTEM):
        kind, source = ("--symlink", os.readlink(folder)) if os.path.islink(folder) else ("--ro-bind", folder)
        arguments += [kind, source, folder]
    for device in DEVICES:
        arguments += ["--dev-bind", device, device]
    for place in own_places():
        arguments += ["--ro-bind", place, place]
    return (*arguments, "--ro-bind-try", LINKER_CACHE, LINKER_CACHE, "--symlink", "/tmp", "/dev/shm")


def parents(path: str) -> list[str]:
    """The folders above it, from the top, without the root."""
    return [str(folder) for folder in reversed(Path(path).parents[:-1])]


def top_folders() -> set[str]:
    """All that a program in bubblewrap should see at ``/``."""
    paths = (*SYSTEM, *DEVICES, LINKER_CACHE, *own_places(), "/tmp", f"/{PROGRAM}")
    return {Path(path).parts[1] for path in paths}
