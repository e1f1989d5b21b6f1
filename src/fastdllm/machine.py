"""What is known of this machine and this source without a model; torch is not needed for it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def cpu_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def source_commit() -> str | None:
    """Commit of the source this package runs from (``-dirty`` when changed); None when it is installed."""
    root = PACKAGE.parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def largest_resident() -> int:
    """Bytes of memory that this process held at most since it began."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB elsewhere


def load_average() -> tuple[float, float, float] | None:
    """Of the last 1, 5 and 15 minutes; None where the system does not tell."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names; empty where the system does not tell."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
