"""Runs one program inside the sandbox and tells the parent how it ended.

The text of this file is handed to a bare Python (``python -S -s -B -c TEXT PROGRAM CHANNEL UID LIMIT...``), which
cannot see this package: so it uses nothing but the standard library, and little of that, for contextlib alone takes
as long to import as Python takes to start.

The channel is a socket that holds the parent's token from the beginning. ``STARTED`` goes out when the limits are
set; the token is taken from it and sent back after the program's last line, by the process that started it.
"""

from __future__ import annotations

import os
import sys

STARTED, OUT_OF_MEMORY = b"+", b"memory"
NAME = "program"  # the module's; as in the benchmarks' own harnesses, what stands under __main__ does not run


def confine(uid: str, limits: tuple[str, ...]) -> None:
    """Become user ``uid`` (empty: stay) and set ``limits`` such as ``NPROC=8``, within those that hold already."""
    import resource  # unknown to Windows, where this module is imported for its names and then refused

    if uid:
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    for limit in limits:
        name, _, value = limit.partition("=")
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        soft = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
        # A second more until the kill: at the soft limit the signal says that it was time.
        hard = soft + 1 if name == "CPU" and soft != most else soft
        resource.setrlimit(kind, (soft, hard))


def main(path: str, channel: int, uid: str, *limits: str) -> None:
    # Held here, so that a program that replaces them does not change how its own end is told.
    write, read, leave, process = os.write, os.read, os._exit, os.getpid
    show, streams, own = sys.excepthook, (sys.stdout, sys.stderr), os.getpid()
    with open(path, "rb") as file:
        source = file.read()
    module = type(sys)(NAME)
    module.__file__ = path
    sys.modules[NAME], sys.argv, sys.path = module, [path], [folder for folder in sys.path if folder]
    confine(uid, limits)
    write(channel, STARTED)
    try:
        exec(compile(source.decode("utf-8", "surrogatepass"), path, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        if isinstance(error, MemoryError):
            write(channel, OUT_OF_MEMORY)
        here = error.__traceback__  # this function's frame, which is not the program's
        try:
            sys.stdout, sys.stderr = streams
            sys.stdout.flush()
            show(type(error), error.with_traceback(here and here.tb_next), None)
        except BaseException:
            pass
        leave(0 if isinstance(error, SystemExit) else 1)
    if process() == own:
        write(channel, read(channel, 64))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
