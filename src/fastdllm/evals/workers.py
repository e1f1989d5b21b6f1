"""The processes of one evaluation: ``accelerate launch`` starts them, each answers its share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

PATIENCE = timedelta(days=14)  # the first process to be done waits for the last, which may be long


@dataclass(frozen=True)
class Workers:
    """This process among all."""

    rank: int
    count: int
    device: torch.device
    """Where this process computes when it may choose."""

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def gather(self, value: Any) -> list[Any] | None:
        """Every process's value on the first, in order of rank; None on the others."""
        if self.count == 1:
            return [value]
        held: list[Any] | None = [None] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(value, held, dst=0)
        return held

    def gather_all(self, numbers: torch.Tensor) -> torch.Tensor:
        """Every process's tensor on all, joined in order of rank along the first axis."""
        if self.count == 1:
            return numbers
        held: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(held, numbers.cpu())
        return torch.stack(held) if numbers.ndim == 0 else torch.cat(held)

    def leave(self) -> None:
        """Go apart, all at once: one that ends while others still talk would break them off."""
        if self.count > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def find_workers() -> Workers:
    """The processes that accelerate has started; one, where it has not."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Workers(int(state.process_index), int(state.num_processes), state.device)
