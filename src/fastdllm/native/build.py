"""Builds the kernels for the processor they run on, once; later runs load what was built.

They must share torch's threads: two pools on the same cores would wait for one another. So the library is linked with
the OpenMP runtime that torch has loaded, wherever that lies, and with no other.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from fastdllm.errors import OptionError
from fastdllm.machine import cpu_flags

logger = logging.getLogger("fastdllm.native")

HERE = Path(__file__).parent
SOURCE = HERE / "kernels.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")
PATIENCE = 120.0
"""Seconds after which a compiler is given up."""


def supports(dtype: torch.dtype) -> bool:
    """Whether this processor has what the kernels for ``dtype`` need: AVX-512, for bfloat16 its products of pairs."""
    if sys.platform != "linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    every = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
    needs = {torch.float32: every, torch.bfloat16: every | {"avx512_bf16"}}
    return dtype in needs and needs[dtype] <= cpu_flags()


def compiler() -> list[str] | None:
    """The command of the C++ compiler: ``$CXX``, or one of the usual names."""
    asked = list[str]()
    with suppress(ValueError):  # a quote that does not end
        asked = shlex.split(os.environ.get("CXX", ""))
    for command in (asked, ["g++"], ["c++"]):
        if command and (path := shutil.which(command[0])):
            return [path, *command[1:]]
    return None


@lru_cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The kernels of this machine for a dtype. What lies in the cache and cannot be loaded is built anew.

    Raises:
        OptionError: they cannot be built here.
    """
    command, threads = compiler(), runtime()
    if command is None:
        raise OptionError("the kernels of compile=True need a C++ compiler such as g++, and none was found.")
    if threads is None:
        raise OptionError("the kernels of compile=True need a torch with OpenMP, and this one has none.")
    try:
        folder = private(home())
        flags = (*FLAGS, *(["-DBFLOAT16"] if dtype == torch.bfloat16 else []))
        path = folder / f"kernels-{digest(command, flags, threads)}.so"
        if path.exists():
            with suppress(OSError):
                return ctypes.CDLL(str(path))
        return build(path, command, flags, threads)
    except OSError as error:
        raise OptionError(f"the kernels of compile=True cannot be kept or loaded ({error}).") from None


def home() -> Path:
    """The folder of what was built: ``fastdllm`` in the user's cache folder.

    Raises:
        OSError: the user has none.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdllm"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def private(folder: Path) -> Path:
    """The folder, there, and the user's alone: what lies in it is run.

    Raises:
        OSError: it cannot be made, or others could write there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise OSError(f"others than this user can write to {folder}; set XDG_CACHE_HOME to a folder of your own")
    return folder


def digest(command: Sequence[str], flags: Sequence[str], threads: Path) -> str:
    """A name for what a library is built from, by what, for which processor and with which runtime."""
    sources = [path.read_text() for path in sorted((*HERE.glob("*.h"), SOURCE))]
    of = [*sources, *flags, *sorted(cpu_flags()), str(threads), *command, str(Path(command[0]).stat().st_mtime_ns)]
    return hashlib.sha256("\n".join(of).encode()).hexdigest()[:16]


def runtime() -> Path | None:
    """The OpenMP runtime that torch computes with, of which a process may have loaded several."""
    try:
        address = ctypes.cast(_torch().omp_get_max_threads, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, *_, path = line.split(maxsplit=5)
        first, _, last = where.partition("-")
        if int(first, 16) <= address < int(last, 16):
            return Path(path)
    return None


def _torch() -> ctypes.CDLL:
    """Torch's library; a name that is looked up in it is looked up in those that it was linked with, too."""
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


def build(path: Path, command: Sequence[str], flags: Sequence[str], threads: Path) -> ctypes.CDLL:
    """Compile the kernels to ``path``, and say so; processes that do so at once do not meet.

    Raises:
        OptionError: the compiler fails.
        OSError: what it made cannot be loaded.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        logger.warning("building kernels for this processor, once: some seconds")
        made, whole = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        _run([*command, *flags, "-c", str(SOURCE), "-o", str(made)])
        _run([*command, "-shared", str(made), str(threads), "-o", str(whole)])  # no flags: they would add a runtime
        loaded = ctypes.CDLL(str(whole))
        whole.replace(path)
    return loaded


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-200:])
        raise OptionError(f"{command[0]} cannot build the kernels of compile=True ({said}).") from None
    except subprocess.TimeoutExpired:
        raise OptionError(f"{command[0]} takes more than {PATIENCE:.0f} s for the kernels of compile=True.") from None
