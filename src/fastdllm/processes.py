"""The processes of one ``torchrun`` that share a model: who they are, and what they tell one another.

Every process does the same, so that whatever one sends the others expect. Only what the outside world decides (what
stands on standard input, which answers a file holds already) is read by the first and told to the rest.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fastdllm.errors import FastdllmError, OptionError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
TORCHRUN = "torchrun --nproc-per-node"


def count() -> int:
    """Processes that torchrun (or accelerate) started; 1 where neither did."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return (os.environ.get("RANK") or "0") == "0"


def split_size(tensor_parallel: int | str) -> int:
    """Processes that a model is split over.

    Args:
        tensor_parallel: their number, which must be that of the processes that were started, or ``"auto"``: all of
            them. With 1 each process has a whole model, however many there are.

    Raises:
        OptionError: it is no such number.
    """
    started, given = count(), str(tensor_parallel)
    if given == "auto":
        return started
    if not given.isdecimal() or int(given) < 1:
        raise OptionError(f"tensor_parallel={tensor_parallel} must be auto or a number of 1 or more.")
    if int(given) not in (1, started):
        raise OptionError(
            f"tensor_parallel={given} needs {given} processes, and here {'is' if started == 1 else 'are'} {started}; "
            f"start them with {TORCHRUN} {given}."
        )
    return int(given)


def own_device(device: str | torch.device) -> str:
    """The device that this process of several shall use: the GPU of its number on this machine, or the CPU.

    Args:
        device: of all processes: ``auto``, ``cpu``, or ``cuda``; a single GPU cannot be everyone's.

    Raises:
        OptionError: there are fewer GPUs than processes, or a single GPU was named.
    """
    import torch

    asked = str(device)
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if kind != "cuda":
        return asked
    if number:
        raise OptionError(f"device={asked!r} is one GPU for {count()} processes; give cuda, and each takes its own.")
    here, own = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if own >= here:
        raise OptionError(
            f"this machine has {here} GPU{'s' * (here != 1)}, too few for its {os.environ.get('LOCAL_WORLD_SIZE')} "
            f"processes; start as many as there are with {TORCHRUN}, or give device=cpu."
        )
    return f"cuda:{own}"


def join(device: torch.device) -> None:
    """Meet the other processes, unless that has happened: over NCCL between GPUs, else over gloo.

    The group is left as the interpreter ends; one that stands already is used as it is, and not left.
    """
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if distributed.is_initialized():
        return
    on_gpu = device.type == "cuda"
    distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def from_first(read: Callable[[], T]) -> T:
    """What ``read`` gives, or refuses, on the first process; the others, which have joined, do not call it."""
    if count() == 1:
        return read()
    from torch import distributed

    told: list[tuple[T | None, Exception | None]] = [(None, None)]
    if is_first():
        try:
            told = [(read(), None)]
        except (FastdllmError, OSError) as error:
            told = [(None, error)]
    distributed.broadcast_object_list(told, src=0)
    value, refusal = told[0]
    if refusal is not None:
        raise refusal
    return value  # type: ignore[return-value]


def lost(error: BaseException) -> bool:
    """Whether this is what a process meets when another of the group has ended."""
    return count() > 1 and any(words in str(error) for words in ("by peer", "Broken pipe", "remote process exited"))


def agree(what: object, name: str) -> None:
    """Compare what every process of the group is about to do, before one waits for what another never sends.

    Args:
        what: its ``repr`` is compared.
        name: what the message calls it.

    Raises:
        OptionError: they differ; on every process.
    """
    from torch import distributed

    digests: list[object] = [None] * distributed.get_world_size()
    distributed.all_gather_object(digests, hashlib.sha256(repr(what).encode()).digest())
    if len(set(digests)) > 1:
        raise OptionError(f"the processes that share a model were given different {name}; give each of them the same.")
