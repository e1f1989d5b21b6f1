"""Builds the kernels for the processor they run on, once; later runs load what was built.

They must share torch's threads: two pools on the same cores would wait for one another. So the library is linked with
the OpenMP runtime that torch has loaded, wherever that lies, and with no other.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from fastdllm.errors import OptionError
from fastdllm.machine import cpu_flags

HERE = Path(__file__).parent
SOURCE = HERE / "kernels.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")
RUNTIMES = re.compile(r"/(libgomp|libiomp5|libomp)[^/]*\.so[^/]*$")
PATIENCE = 120.0
"""Seconds after which a compiler is given up."""


def supports(dtype: torch.dtype) -> bool:
    """Whether this processor has what the kernels for ``dtype`` need: AVX-512, for bfloat16 AMX too."""
    if sys.platform != "linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    needs = {torch.float32: {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, torch.bfloat16: {"avx512f", "amx_bf16"}}
    return dtype in needs and needs[dtype] <= cpu_flags()


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or one of the usual names."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "c++")))), None)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The kernels of this machine.

    Raises:
        OptionError: they cannot be built here.
    """
    path = built()
    if not path.exists():
        build(path)
    return ctypes.CDLL(str(path))


def built() -> Path:
    """Where the library lies once it is built: its name says from what, for which processor and with which runtime."""
    sources = [path.read_text() for path in sorted((*HERE.glob("*.h"), SOURCE))]
    of = [*sources, *FLAGS, *sorted(cpu_flags()), str(runtime()), str(compiler())]
    digest = hashlib.sha256("\n".join(of).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fastdllm" / f"kernels-{digest}.so"


def runtime() -> Path | None:
    """The OpenMP runtime that this process has loaded with torch."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next((Path(line.split(maxsplit=5)[5]) for line in lines if RUNTIMES.search(line)), None)


def build(path: Path) -> None:
    """Compile the kernels to ``path``; processes that do so at once do not meet.

    Raises:
        OptionError: there is no compiler or no runtime, or the compiler fails.
    """
    command, threads = compiler(), runtime()
    if command is None:
        raise OptionError("the kernels of compile=True need a C++ compiler such as g++, and none was found.")
    if threads is None:
        raise OptionError("the kernels of compile=True need a torch with OpenMP, and this one has none.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made, whole = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
            _run([command, *FLAGS, "-c", str(SOURCE), "-o", str(made)])
            _run([command, "-shared", str(made), str(threads), "-o", str(whole)])
            whole.replace(path)
    except OSError as error:
        raise OptionError(f"the kernels of compile=True cannot be kept in {path.parent} ({error.strerror}).") from None


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-200:])
        raise OptionError(f"{command[0]} cannot build the kernels of compile=True ({said}).") from None
    except subprocess.TimeoutExpired:
        raise OptionError(f"{command[0]} takes more than {PATIENCE:.0f} s for the kernels of compile=True.") from None
