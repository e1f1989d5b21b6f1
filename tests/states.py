"""Keys and values of plain passes, and the canvases of a generation, found without what the studies use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdllm.engine import Engine


@dataclass(frozen=True)
class Asked:
    question: str


class Texts:
    """A tokenizer of numbers: ``"3 1 4"`` is three tokens."""

    has_chat_template = False

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    def token(self, index: int) -> str:
        return f"<{index}>"


def with_texts(engine: Engine) -> Engine:
    engine.text = Texts()  # type: ignore[assignment]
    return engine


def asked(prompts: list[list[int]]) -> list[Asked]:
    return [Asked(" ".join(map(str, prompt))) for prompt in prompts]


class Noted:
    """The store of a plain pass: keeps (2, T, K D) of each layer."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append(torch.stack([x[0].transpose(0, 1).flatten(1).double() for x in (keys, values)]))
        return keys, values


@torch.inference_mode()
def plain(engine: Engine, canvas: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values (L, 2, T, K D) and hidden states (T, E) of a pass over the whole canvas."""
    noted = Noted()
    hidden = engine.model(torch.tensor([canvas]), torch.arange(len(canvas))[None], None, noted)
    return torch.stack(noted.layers), hidden[0]


def canvases(engine: Engine, prompt: list[int], **options: Any) -> Iterator[tuple[list[int], Any]]:
    """The canvas that each pass sees, and what it did."""
    generation = engine.start([prompt], **options)
    canvas = prompt + [engine.config.mask_id] * generation.config.gen_length
    for event in generation:
        (row,) = event.rows
        yield list(canvas), row
        for at, token in zip(row.positions, row.tokens, strict=True):
            canvas[len(prompt) + at] = token
        for at in row.remasked:
            canvas[len(prompt) + at] = engine.config.mask_id
