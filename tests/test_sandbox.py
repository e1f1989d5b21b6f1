"""Programs try to get out of the sandbox, to use up the machine and to pass unearned; the run goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from attacks import CPU, ESCAPES, EXHAUSTING, GOOD, LIMITS, SHORT, SLEEP, UNEARNED, Outside
from fastdllm.errors import OptionError, SandboxError
from fastdllm.evals import sandbox
from fastdllm.evals.sandbox import Outcome, find_isolation, run_program, run_programs
from fastdllm.evals.sandbox_isolation import MIB, Bubblewrap, Isolation, Limits, Unsafe, users
from fastdllm.evals.sandbox_syscalls import MACHINES, REFUSED, WATCHED, syscall_filter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux namespaces")

HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process of a test's programs outlives it for more than a moment."""
    yield
    deadline = time.monotonic() + 10
    while left := left_over():
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def left_over() -> list[str]:
    """Numbers of the living processes that run programs of these tests, as the machine sees them."""
    mark, found = f"AS={LIMITS.memory}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:  # it has just ended
            continue
    return found


def run(program: str, isolation: Isolation, limits: Limits = LIMITS) -> Outcome:
    """Run it, and see that the next one is none the worse for it."""
    outcome = run_program(program, limits=limits, isolation=isolation)
    assert run_program(GOOD, limits=LIMITS, isolation=isolation).passed
    return outcome


def test_a_right_program_passes_and_a_wrong_one_says_where(isolation) -> None:
    assert run(GOOD, isolation) == Outcome(reason="passed", tail="")
    outcome = run("x = 1\nprint('seen')\nassert x == 2, 'no'", isolation)
    assert outcome.reason == "failed"
    assert not outcome.passed
    assert outcome.tail.startswith("seen\nTraceback")
    assert 'File "/program.py", line 3, in <module>\n    assert x == 2' in outcome.tail
    assert outcome.tail.endswith("AssertionError: no\n")


def test_modules_and_classes_work_as_in_any_program(isolation) -> None:
    program = """
import dataclasses, json, pickle, random, re, subprocess, sys, threading, typing
from multiprocessing import Lock
@dataclasses.dataclass
class Point:
    x: "typing.ClassVar[int]" = 1
assert isinstance(pickle.loads(pickle.dumps(Point())), Point)
assert subprocess.run(["sh", "-c", "echo $HOME"], capture_output=True, text=True).stdout == "/tmp\\n"
thread = threading.Thread(target=Lock().acquire)
thread.start(); thread.join()
open("note", "w").write("kept"); assert open("/tmp/note").read() == "kept"
assert sys.stdin.read() == ""
assert __name__ != "__main__"
"""
    assert run(program, isolation) == Outcome(reason="passed", tail="")


def test_sets_have_one_order(isolation) -> None:
    tails = {run_program("print({*'abcdefgh'}); 1 / 0", isolation=isolation).tail for _ in range(4)}
    assert len(tails) == 1


@pytest.mark.parametrize(("program", "reasons"), UNEARNED.values(), ids=UNEARNED)
def test_what_does_not_reach_its_end_has_not_passed(program, reasons, isolation) -> None:
    outcome = run(program, isolation)
    assert not outcome.passed
    assert outcome.reason in reasons.split(), outcome


def test_a_megabyte_of_program_passes(isolation) -> None:
    program = "x = 1\n" * 175_000 + GOOD
    assert len(program) > MIB
    assert run(program, isolation, replace(LIMITS, memory=Limits().memory)).passed


@pytest.mark.parametrize(("program", "limits", "reasons"), EXHAUSTING.values(), ids=EXHAUSTING)
def test_the_machine_is_not_used_up(program, limits, reasons, isolation) -> None:
    outcome = run(program, isolation, limits)
    assert not outcome.passed
    assert outcome.reason in reasons.split(), outcome
    assert len(outcome.tail.encode()) < 10_000


@pytest.mark.parametrize("start", ["if os.fork() == 0: time.sleep(9)", "Thread(target=time.sleep, args=(9,)).start()"])
def test_processes_and_threads_are_counted_exactly(start, isolation) -> None:
    """Exact where the kernel counts by namespace or by the number of a user that is nobody else's."""
    program = f"""
import os, time
from threading import Thread
n = 1
try:
    while n < 99:
        {start}
        n += 1
except (OSError, RuntimeError):
    pass
assert n == {LIMITS.processes}, n
"""
    outcomes = list(run_programs([program] * 6, limits=LIMITS, isolation=isolation, workers=3))
    assert all(outcome.passed for outcome in outcomes), outcomes


def test_memory_is_limited_where_it_says(isolation) -> None:
    assert run(f"x = bytearray({LIMITS.memory // 2})", isolation).passed
    assert run(f"x = bytearray({LIMITS.memory})", isolation).reason == "memory"


def test_a_surviving_child_neither_stalls_the_run_nor_survives(isolation) -> None:
    """It leaves its session, is nobody's child, and holds the output open."""
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(999)\n    os._exit(0)"
    )
    outcome = run(program, isolation)
    assert outcome.passed, outcome  # it would have run into its time limit with the pipe held open


def test_programs_end_with_the_run_that_started_them(isolation) -> None:
    """Killed outright, it has no chance to end them; that none is left is checked after every test."""
    program = f"import os; os.fork()\n{SLEEP}"
    script = f"""
from fastdllm.evals.sandbox import Limits, find_isolation, run_program
run_program({program!r}, limits=Limits(memory={LIMITS.memory}), isolation=find_isolation())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    while len(left_over()) < 4:  # bubblewrap outside, bubblewrap inside, the program, the child it has started
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.wait()


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1", "0"])
def test_nobody_outside_can_be_killed(target, isolation) -> None:
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    try:
        for name in ("SIGTERM", "SIGKILL"):
            run(
                f"import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.kill({target}, signal.{name})",
                isolation,
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not caught


@pytest.fixture
def outside() -> Iterator[Outside]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # what keeps programs off is not whose folder it is
        world = Outside(Path(folder))
        yield world
        world.close()


@pytest.mark.parametrize("program", ESCAPES.values(), ids=ESCAPES)
def test_nothing_outside_is_read_changed_or_reached(program, isolation, outside) -> None:
    outcome = run(outside.fill(program), isolation)
    assert outcome.reason == "failed", outcome
    assert outside.unharmed()


@pytest.mark.parametrize("program", ESCAPES.values(), ids=ESCAPES)
def test_a_bare_process_escapes(program, outside) -> None:
    """Or the test above would prove nothing."""
    outcome = run_program(outside.fill(program), limits=LIMITS, isolation=Unsafe())
    assert outcome.passed, outcome


def test_a_private_copy_of_a_path_is_no_way_out(isolation, outside) -> None:
    assert run(outside.fill("os.makedirs(FOLDER)\nopen(SECRET, 'w').write('x')"), isolation).passed
    assert outside.unharmed()


@pytest.mark.parametrize("path", ["/new", "/usr/new", "/dev/new", "/program.py", os.__file__, "/etc/ld.so.cache"])
def test_all_but_the_working_folder_is_read_only(path, isolation) -> None:
    tail = run(f"open({path!r}, 'a')", isolation).tail
    assert "Read-only file system" in tail or "Permission denied" in tail


def test_the_environment_is_not_seen(isolation, monkeypatch) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "0123")
    names = {"PATH", "HOME", "LANG", "PYTHONHASHSEED", "PWD", "LC_CTYPE"}
    program = (
        f"import os\nassert set(os.environ) <= {names}, set(os.environ)\nassert not os.path.exists('/proc/1/environ')"
    )
    outcome = run(program, isolation)
    assert outcome.passed, outcome
    assert run_program("import os\nassert 'SOME_API_TOKEN' not in os.environ", isolation=Unsafe()).passed


def test_installed_packages_are_not_seen(isolation) -> None:
    """The same standard library alone for everyone: no verdict depends on what else is installed."""
    assert "ModuleNotFoundError" in run("import torch", isolation).tail


def test_system_calls_are_refused(isolation) -> None:
    """Named by the C library where it has a wrapper, so that a wrong number in the table would show."""
    program = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def error(call, *arguments):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno()) if call(*arguments) == -1 else None
for name, arguments in {{
    "unshare": (0x10000000,), "setns": (0, 0), "memfd_create": (b"x", 0), "shmget": (0, 4096, 0o1600),
    "semget": (0, 1, 0o1600), "msgget": (0, 0o1600), "ptrace": (0, 0, 0, 0), "klogctl": (10, 0, 0),
    "process_vm_readv": (1, 0, 0, 0, 0, 0), "process_vm_writev": (1, 0, 0, 0, 0, 0),
}}.items():
    if hasattr(libc, name):
        assert error(getattr(libc, name), *arguments) == "EPERM", name
for number in {[numbers[MACHINES[os.uname().machine].column] for numbers in REFUSED.values()]}:
    assert error(libc.syscall, number, 0, 0, 0, 0, 0, 0) == "EPERM", number
assert error(libc.syscall, 435, 0, 0) == "ENOSYS"
"""
    outcome = run(program, isolation)
    assert outcome.passed, outcome


@pytest.mark.parametrize(("machine", "header"), HEADERS.items())
def test_system_calls_have_the_numbers_of_linux(machine, header) -> None:
    if not Path(header).exists():
        pytest.skip("no Linux headers here")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", Path(header).read_text()))
    column = MACHINES[machine].column
    for name, known in (REFUSED | WATCHED).items():
        assert known[column] == int(numbers[name]), name


def test_no_privilege_can_be_had_back(isolation) -> None:
    program = """
import os
for act in (os.setuid, os.setgid, os.seteuid, os.setegid):
    try:
        act(0)
    except OSError:
        continue
    raise AssertionError(act)
assert os.getuid() and os.getgid() and 0 not in os.getgroups()
"""
    outcome = run(program, isolation)
    assert outcome.passed, outcome


def test_outcomes_come_in_order_whatever_happens_between(isolation) -> None:
    bad = ["while True: pass", "import os\nwhile True: os.fork()", "x = bytearray(10**10)", "import os; os._exit(0)"]
    programs = [program for attack in bad for program in (attack, GOOD)]
    outcomes = list(run_programs(programs, limits=CPU, isolation=isolation, workers=4))
    reasons = ["timeout", "passed", "failed", "passed", "memory", "passed", "exited", "passed"]
    assert [outcome.reason for outcome in outcomes] == reasons
    with pytest.raises(OptionError, match="workers=0 must be 1 or more"):
        list(run_programs(programs, isolation=isolation, workers=0))


def fake_bwrap(folder: Path, script: str) -> None:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_bubblewrap_it_refuses_unless_told_otherwise(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match=r"^Code benchmarks.*bubblewrap.*is not installed: install .*--unsafe\.$"):
        find_isolation()
    isolation = find_isolation(unsafe=True)
    assert isolation.name == "none"
    assert run_program(GOOD, isolation=isolation).passed


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions to create new namespace"),
        ("exit 1", "it says nothing"),
        # As if all was well, with no isolation at all.
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "does not shut it in"),
    ],
)
def test_a_bubblewrap_that_does_not_work_is_refused(script, fault, tmp_path, monkeypatch) -> None:
    fake_bwrap(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(OptionError, match=fault) as error:
        find_isolation()
    assert "--unsafe" in str(error.value)


def test_a_sandbox_that_fails_later_is_an_error_and_no_failed_sample(tmp_path) -> None:
    fake_bwrap(tmp_path, "echo 'bwrap: no space' >&2; exit 1")
    with pytest.raises(SandboxError, match="no space"):
        run_program(GOOD, isolation=Bubblewrap(path=str(tmp_path / "bwrap"), other_user=False))
    with pytest.raises(SandboxError, match="could not be started"):
        run_program(GOOD, isolation=Bubblewrap(path=str(tmp_path / "nowhere"), other_user=False))


@pytest.mark.skipif(os.geteuid() != 0 or users()[1] == 1, reason="only root's processes are not counted")
def test_the_probe_sees_a_sandbox_that_does_not_count_processes(isolation, monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "bubblewrap", lambda path: Bubblewrap(path=path, other_user=False))
    assert "programs start any number of processes" in sandbox.fault_of.__wrapped__(isolation.path)


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(OptionError, match="x86_64, aarch64, not of riscv64"):
        syscall_filter("riscv64")


@pytest.mark.parametrize(
    ("program", "limits", "reason"),
    [
        ("while True: pass", CPU, "timeout"),
        (SLEEP, SHORT, "timeout"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", LIMITS, "memory"),
        ("while True: print('x' * 10**4)", LIMITS, "output"),
        ("f = open('f', 'wb')\nwhile True: f.write(bytes(10**5))", LIMITS, "failed"),
        ("import os; os._exit(0)", LIMITS, "exited"),
        ("import os; os.kill(os.getpid(), 9)", LIMITS, "killed"),
        ("import os, time\nif os.fork() == 0: time.sleep(999)", LIMITS, "passed"),
        ("x = '\ud800'", LIMITS, "failed"),
    ],
)
def test_unsafe_still_limits_time_memory_and_output(program, limits, reason) -> None:
    assert run(program, find_isolation(unsafe=True), limits).reason == reason


@pytest.mark.parametrize("name", ["seconds", "cpu_seconds", "memory", "processes", "file_bytes", "output_bytes"])
def test_limits_are_above_zero(name) -> None:
    with pytest.raises(OptionError, match=f"{name}=0 must be above 0"):
        Limits(**{name: 0})
