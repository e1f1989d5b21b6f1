"""Programs that try to get out of the sandbox, to use up the machine, or to pass unearned."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

from fastdllm.evals import sandbox
from fastdllm.evals.sandbox_isolation import MIB, Limits, own_places

GOOD = "import math\ndef area(r): return math.pi * r * r\nassert round(area(1), 2) == 3.14"
# The odd number of bytes is how tests find the processes of their own programs among all others.
LIMITS = Limits(seconds=20, cpu_seconds=5, memory=256 * MIB + os.getpid(), processes=6, file_bytes=MIB)
SHORT = replace(LIMITS, seconds=1.0)
CPU = replace(LIMITS, cpu_seconds=1)

# What leaves or stalls before the last line; none of it may pass.
UNEARNED = {
    "exit": ("import sys; sys.exit(0)", "exited"),
    "exit with an error": ("raise SystemExit(3)", "exited"),
    "hard exit": ("import os; os._exit(0)", "exited"),
    "exit in a test": ("def f():\n    exit_(0)\nfrom sys import exit as exit_\nassert f() == 1", "exited"),
    "exec": ("import os; os.execv('/bin/true', ['true'])", "exited"),
    "C exit": ("import ctypes; ctypes.CDLL(None).exit(0)", "exited"),
    "the child ends, the parent leaves": (
        "import os, time\nif os.fork():\n    os.wait()\n    os._exit(0)",
        "exited",
    ),
    "exit in a thread": (
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\ntime.sleep(5)",
        "exited",
    ),
    "abort": ("import os; os.abort()", "killed"),
    "kill itself": ("import os; os.kill(os.getpid(), 9)", "killed"),
    "overflow the stack": ("import ctypes; ctypes.string_at(0)", "killed"),
    "close every file": ("import os; os.closerange(0, 256)", "failed"),
    "interrupt": ("raise KeyboardInterrupt", "failed"),
    "break the end": ("import os, sys\nos.write = os._exit = sys.excepthook = None\nsys.stderr = 3\n1 / 0", "failed"),
    "write on every file": (
        "import os\nfor fd in range(256):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
        "exited",
    ),
    "recursion": ("def f(): f()\nf()", "failed"),
    "not Python": ("this is the answer:", "failed"),
    "surrogates": ("x = '\ud800'", "failed"),
    "surrogates in a comment": ("# \udfff\ud800", "failed"),
    "NUL": ("x = 1\0", "failed"),
    "deep nesting": ("x = " + "(" * 5000 + ")" * 5000, "failed memory"),
    "long and wrong": ("x = 1\n" * 175_000 + "assert x == 2", "failed memory"),
}

SLEEP = "import time\nwhile True: time.sleep(9)"
# What would use up the machine: the program, its limits, and how it may end.
EXHAUSTING = {
    "endless loop": ("while True: pass", CPU, "timeout"),
    "endless loop that ignores the limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        CPU,
        "killed",
    ),
    "sleep": (SLEEP, SHORT, "timeout"),
    "sleep in silence": ("import os; os.closerange(0, 256)\n" + SLEEP, SHORT, "timeout"),
    "stop": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", SHORT, "timeout"),
    "no interruptions": (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        + SLEEP,
        SHORT,
        "timeout",
    ),
    "fork bomb": ("import os\nwhile True: os.fork()", LIMITS, "failed"),
    "fork bomb that goes on": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        SHORT,
        "timeout",
    ),
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
        LIMITS,
        "failed",
    ),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(10**6))", LIMITS, "memory"),
    "one large object": ("x = bytearray(10**10)", LIMITS, "memory"),
    "memory bomb in C": (
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 10**7))",
        LIMITS,
        "failed memory",
    ),
    "huge file": ("f = open('f', 'wb')\nwhile True: f.write(bytes(10**5))", LIMITS, "failed"),
    "huge sparse file": ("import os; os.truncate(os.open('f', os.O_CREAT | os.O_RDWR), 2**40)", LIMITS, "failed"),
    "many files": ("for n in range(10**6): open(str(n), 'wb').write(bytes(10**5))", LIMITS, "failed"),
    "shared memory": (
        "from multiprocessing.shared_memory import SharedMemory\n"
        "for s in [SharedMemory(create=True, size=10**6) for _ in range(9)]: s.buf[:] = bytes(s.size)",
        LIMITS,
        "failed killed",
    ),
    "anonymous files": ("import os\nos.memfd_create('x')", LIMITS, "failed"),
    "endless printing": ("while True: print('x' * 10**4)", LIMITS, "output"),
    "endless printing of errors": ("import os\nwhile True: os.write(2, bytes(10**4))", LIMITS, "output"),
    "every file open": ("x = []\nwhile True: x.append(open('/dev/null'))", LIMITS, "failed"),
}

# Each passes as a bare process, and so would show if it worked in the sandbox; without a network, on this machine.
ESCAPES = {
    "look into the home folder": "assert any(os.path.lexists(path) for path in PRIVATE)",
    "read a file": "assert open(SECRET).read() == 'secret'",
    "read through a symlink": "os.symlink(SECRET, 'link')\nassert open('link').read() == 'secret'",
    "read by way of the root": "assert open('/' + '../' * 9 + SECRET.strip('/')).read() == 'secret'",
    "read another's memory": "assert open(f'/proc/{PARENT}/maps').read()",
    "see other processes": "os.kill(PARENT, 0)",
    "write a file": "open(FOLDER + '/new', 'w').write('x')",
    "write through a symlink": "os.symlink(FOLDER, 'link')\nopen('link/new', 'w').write('x')",
    "overwrite a file": "open(SECRET, 'r+').write('x')",
    "delete a file": "os.remove(SECRET)",
    "delete a folder": "shutil.rmtree(FOLDER)",
    "hard link": "os.link(SECRET, FOLDER + '/new')",
    "connect": "socket.create_connection(ADDRESS, timeout=5)",
    "open a socket": "socket.socket()",
    "open a socket in C": "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    "open a port": "socket.create_server(('127.0.0.1', 0))",
    "ask for routes": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "connect to a local service": "s = socket.socket(socket.AF_UNIX)\ns.connect(LOCAL)",
    "look at the machine": "assert os.listdir('/sys/class/net') and open('/etc/passwd').read()",
}


class Outside:
    """What a program might reach: files, a port and a socket of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text("secret")
        self.port = socket.create_server(("127.0.0.1", 0))
        self.local = socket.socket(socket.AF_UNIX)
        self.local.bind(f"\0fastdllm-{os.getpid()}-{folder.name}")
        self.local.listen()

    def fill(self, program: str) -> str:
        kept = {Path(place).parts for place in own_places()}
        private = [p for p in Path.home().iterdir() if not any(parts[: len(p.parts)] == p.parts for parts in kept)]
        places = {
            "FOLDER": str(self.folder),
            "SECRET": str(self.secret),
            "PRIVATE": [str(path) for path in (*private, self.secret, Path(__file__), Path(sandbox.__file__))],
            "ADDRESS": self.port.getsockname(),
            "LOCAL": self.local.getsockname(),
            "PARENT": os.getpid(),
        }
        return "import os, shutil, socket\n" + "".join(f"{k} = {v!r}\n" for k, v in places.items()) + program

    def unharmed(self) -> bool:
        return sorted(self.folder.iterdir()) == [self.secret] and self.secret.read_text() == "secret"

    def close(self) -> None:
        self.port.close()
        self.local.close()
