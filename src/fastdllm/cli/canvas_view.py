"""The canvas in the terminal: each token coloured by the pass that committed it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group
from rich.style import Style
from rich.text import Text

from fastdllm.cli.console import printable
from fastdllm.pieces import END, OPEN
from fastdllm.pieces import pieces as text_pieces

if TYPE_CHECKING:
    from fastdllm.completion import Draft
    from fastdllm.engine import Engine, Generation
    from fastdllm.events import StepEvent

# Early to late; each is readable on a dark and on a light background.
PALETTE = ("#4f7cff", "#1f9fd0", "#14a58c", "#4fa63a", "#a8941c", "#d9822b", "#df5548", "#c653b4")


def shade(nfe: int, passes: int) -> str:
    """Colour of what pass ``nfe`` of ``passes`` committed, 1 the first."""
    return PALETTE[_bucket(nfe, passes) * (len(PALETTE) - 1) // max(1, min(len(PALETTE), passes) - 1)]


def _bucket(nfe: int, passes: int) -> int:
    return (nfe - 1) * min(len(PALETTE), passes) // passes


def legend(passes: int) -> Text:
    """One line that says which colour means which passes."""
    line = Text("pass ", style="dim")
    for _, same in groupby(range(1, passes + 1), lambda nfe: _bucket(nfe, passes)):
        group = list(same)
        label = f"{group[0]}" if len(group) == 1 else f"{group[0]}-{group[-1]}"
        line.append(f"{label} ", style=shade(group[0], passes))
    return line.append(f" {END} end token", style="dim")


def canvas_text(engine: Engine, draft: Draft) -> Text:
    """The slots of an answer as they stand; of a finished one, those up to its first end token."""
    config, text = engine.config, Text()
    first_end = draft.first_end(config.eos_ids)
    for at, piece in enumerate(pieces(engine, draft.canvas)):
        if draft.finish_reason and at > first_end:
            break
        if draft.canvas[at] == config.mask_id:
            text.append(OPEN, style="dim")
        else:
            style = Style(color=shade(draft.committed_at[at], draft.nfe), dim=at > first_end)
            text.append(piece if text.plain else piece.lstrip(), style=style)
    return text


def pieces(engine: Engine, canvas: Sequence[int]) -> list[str]:
    """What each slot adds to the text, safe to print."""
    config = engine.config
    return [printable(piece) for piece in text_pieces(engine.text, canvas, config.mask_id, config.eos_ids)]


def frame(generation: Generation, event: StepEvent) -> Group:
    """The canvas of a generation of one prompt after a pass, with a legend and a line of numbers."""
    engine, config, draft = generation.engine, generation.config, generation.drafts[0]
    mask = engine.config.mask_id
    committed = sum(token != mask for token in draft.canvas)
    answer = sum(token != mask for token in draft.answer(engine.config.eos_ids))
    blocks = math.ceil(config.gen_length / config.block_length)
    where = f"pass {draft.nfe} · block {event.rows[0].block + 1} of {blocks}"
    line = f"{where} · {committed} of {config.gen_length} slots committed · TPF {answer / draft.nfe:.2f}"
    return Group(canvas_text(engine, draft), Text(), legend(draft.nfe), Text(line, style="dim"))
