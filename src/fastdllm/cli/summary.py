"""The numbers of an answer in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastdllm.completion import Completion
    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine


def rows_per_token(completion: Completion) -> float | None:
    """Rows computed for each answer token; None for an empty answer, which JSON could not say otherwise."""
    return completion.rows_per_token if completion.tokens else None


def shown(engine: Engine, completion: Completion) -> str:
    """The answer's text, stripped; its token ids where there is no tokenizer."""
    return completion.text.strip() if engine.text else " ".join(map(str, completion.tokens))


def machine(engine: Engine) -> str:
    """Model, dtype, device, threads and processes: what a speed depends on."""
    dtype, threads = engine.precision, torch.get_num_threads()
    split = f", {engine.model.tensor_parallel} processes" if engine.model.tensor_parallel > 1 else ""
    return f"{engine.name} · {dtype} on {engine.device}, {threads} thread{'s' * (threads > 1)}{split}"


def strategy(options: GenerationOptions) -> str:
    """Cache and decoder as they were asked for."""
    return f"cache {options['cache']} · {options['decoder']}"


def one_line(engine: Engine, completion: Completion, options: GenerationOptions, *, timed: bool = True) -> str:
    """Passes, tokens, speed and what they depend on."""
    rows = rows_per_token(completion)
    parts = [
        f"NFE {completion.nfe}",
        f"{len(completion.tokens)} tokens",
        f"TPF {completion.tokens_per_forward:.2f}",
        f"{rows:.1f} rows/token" if rows is not None else "no rows/token",
        f"{completion.tokens_per_second:.1f} tokens/s" if timed else "slowed down for watching",
        completion.finish_reason,
        strategy(options),
        machine(engine),
    ]
    return " · ".join(parts)


EMPTY = "warning: the answer is empty: the model ended it at once; try a temperature above 0, or another prompt."
