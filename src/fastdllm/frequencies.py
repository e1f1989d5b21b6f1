"""How often each token occurs in a corpus: what PC-Sampler holds against a confidence (arXiv 2508.13021).

A file of frequencies is JSON with the keys of those that PC-Sampler publishes, which are read here too:
``num_token``, all tokens of the corpus, and ``p_baseline_dict``, how many of them have each id.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdllm.errors import OptionError
from fastdllm.models.source import EMBEDDED

COMMAND = "fastdllm frequencies --model MODEL --out FILE TEXTFILE"


def build(texts: Iterable[str], encode: Callable[[str], Sequence[int]]) -> dict[str, object]:
    """The content of a file of frequencies.

    Args:
        texts: the corpus.
        encode: a tokenizer, such as :meth:`fastdllm.text.Text.encode`.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(encode(text))
    return {"num_token": counts.total(), "p_baseline_dict": {str(token): n for token, n in sorted(counts.items())}}


def read(source: str) -> tuple[int, dict[int, int]]:
    """Tokens of the corpus and how many of them have each id.

    Args:
        source: a file, or the name of a model of this package, which stands for the model's own.

    Raises:
        OptionError: there is no such file, or it holds something else.
    """
    path = EMBEDDED[source] / "frequencies.json" if source in EMBEDDED else Path(source)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        why = f"frequencies={source!r} cannot be read ({error.strerror})"
        raise OptionError(f"{why}; make it with {COMMAND}.") from None
    return _read(source, path, changed)


@functools.lru_cache(maxsize=8)
def _read(source: str, path: Path, changed: int) -> tuple[int, dict[int, int]]:
    """What a file held when it was last ``changed``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        total, counts = int(content["num_token"]), {int(k): int(n) for k, n in content["p_baseline_dict"].items()}
    except OSError as error:
        why = f"frequencies={source!r} cannot be read ({error.strerror})"
        raise OptionError(f"{why}; make it with {COMMAND}.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise OptionError(f"frequencies={source!r} holds no frequencies; make it with {COMMAND}.") from None
    if not counts or min(counts) < 0 or min(counts.values()) < 0 or not 1 <= sum(counts.values()) <= total:
        raise OptionError(f"frequencies={source!r} holds counts that cannot be; make it with {COMMAND}.")
    return total, counts


def check(source: str, vocab_size: int) -> None:
    """Refuse frequencies of another vocabulary.

    Raises:
        OptionError: as :func:`read`, or an id is none of ``vocab_size``.
    """
    highest = max(read(source)[1])
    if highest >= vocab_size:
        raise OptionError(
            f"frequencies={source!r} counts the id {highest}, but the model's ids run from 0 to {vocab_size - 1}; "
            f"make it for this model with {COMMAND}."
        )


@functools.lru_cache(maxsize=8)
def load(source: str, vocab_size: int, device: torch.device) -> Tensor:
    """Frequency of every token, float32 (V,): one that the corpus lacks counts as one that occurs once in it.

    Args:
        source: frequencies that :func:`check` has found to be of this vocabulary.
    """
    total, counts = read(source)
    occurs = torch.ones(vocab_size, dtype=torch.float64)
    occurs[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64).clamp(min=1)
    return (occurs / total).float().to(device)
