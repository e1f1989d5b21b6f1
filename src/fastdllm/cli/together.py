"""One command in several processes, as torchrun starts them: all of them run it, and the first speaks for all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from fastdllm import processes
from fastdllm.errors import OptionError

APART = "lm-eval"  # here every process has a model and problems of its own
REFUSED = 2
PATIENCE = 60.0  # seconds; torchrun ends the others once the first has ended


@contextmanager
def first_speaks() -> Iterator[None]:
    """The first process of several runs the command as if it were alone, the others run it in silence.

    What all of them refuse is said once: as torchrun ends all when one has failed, the others wait for the first
    to speak. An error that nobody foresaw is raised by each that met it.
    """
    if processes.is_first() or sys.argv[1:2] == [APART]:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except SystemExit as end:
        if end.code == REFUSED:
            time.sleep(PATIENCE)
        raise


def meet(tensor_parallel: str, device: str) -> None:
    """Join the other processes that were started; nothing where there are none.

    Raises:
        OptionError: there are others, and the model is not to be split over them.
    """
    size = processes.split_size(tensor_parallel)
    if size < processes.count():
        raise OptionError(
            f"{processes.count()} processes were started, and this runs in one; fastdllm generate runs in all of "
            "them, with its model split over them (--tensor-parallel auto)."
        )
    if size > 1:
        from fastdllm.loading import choose_device

        processes.join(choose_device(processes.own_device(device)))
