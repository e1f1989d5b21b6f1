"""The system calls a sandboxed program is refused, as a filter that bubblewrap loads (seccomp, classic BPF).

Namespaces take files, processes and network away; what remains is the kernel itself. The filter closes what a limit
on address space does not count (shared memory without a mapping, anonymous files, namespaces of the program's own
with file systems of any size), the networks that a network namespace does not cover (vsock), and interfaces that a
benchmark program has no use for. Everything else is allowed: a filter that allowed only known calls would make
answers fail for reasons that depend on the machine's C library.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cache

from fastdllm.errors import OptionError

# struct seccomp_data: where the filter reads the number of the call, the architecture, and the first argument.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
X32_CALLS = 0x40000000  # numbers from here on are x86-64's second table of the same calls
CLONE_NEWUSER = 0x10000000
AF_UNIX = 1


@dataclass(frozen=True)
class Machine:
    """An architecture's number in ``linux/audit.h`` and its column in :data:`REFUSED` and :data:`WATCHED`."""

    architecture: int
    column: int


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}
# name: its number on x86-64 and on arm64 (asm/unistd_64.h and asm-generic/unistd.h of Linux)
REFUSED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "io_uring_setup": (425, 425),  # opens sockets past the filter
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),  # keyrings belong to no namespace
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
}
# Refused for some first arguments, or as unknown: C libraries then fall back on clone, whose flags a filter can read.
WATCHED = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199)}


def step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One ``struct sock_filter``; ``then`` and ``otherwise`` are how many steps a comparison skips."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def refuse(error: int) -> bytes:
    return step(RETURN, REFUSE | error)


def first_argument(number: int, comparison: bytes) -> bytes:
    """Refuse call ``number`` unless ``comparison`` of its first argument skips the refusal; other calls pass on."""
    check = step(LOAD, FIRST_ARGUMENT) + comparison + refuse(errno.EPERM) + step(RETURN, ALLOW)
    return step(EQUAL, number, otherwise=4) + check


@cache
def syscall_filter(machine: str) -> bytes:
    """The filter for an architecture by the name that ``platform.machine()`` gives it.

    Raises:
        OptionError: the numbers of its system calls are not known here.
    """
    if machine not in MACHINES:
        raise OptionError(f"The sandbox knows the system calls of {', '.join(MACHINES)}, not of {machine}.")
    column = MACHINES[machine].column
    clone, clone3, socket, socketpair = (numbers[column] for numbers in WATCHED.values())
    own_calls = step(EQUAL, MACHINES[machine].architecture, then=1) + step(RETURN, KILL) + step(LOAD, NUMBER)
    if machine == "x86_64":
        own_calls += step(AT_LEAST, X32_CALLS, otherwise=1) + refuse(errno.ENOSYS)
    refusals = [step(EQUAL, call[column], otherwise=1) + refuse(errno.EPERM) for call in REFUSED.values()]
    only_local = step(EQUAL, AF_UNIX, then=1)
    return b"".join(
        (
            step(LOAD, ARCHITECTURE),
            own_calls,
            *refusals,
            step(EQUAL, clone3, otherwise=1) + refuse(errno.ENOSYS),
            first_argument(clone, step(ANY_BIT, CLONE_NEWUSER, otherwise=1)),
            first_argument(socket, only_local),
            first_argument(socketpair, only_local),
            step(RETURN, ALLOW),
        )
    )
