"""Generations kept pass by pass: what a trace file holds, and how it is written and read.

A trace is JSON lines: a header with settings, environment and the prompt's ids, then a ``StepEvent`` a line. To each
of its rows ``computed`` is added: spans [first, last) of the canvas whose rows that pass computed in every layer.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdllm.errors import OptionError
from fastdllm.events import RowEvent
from fastdllm.files import read_text

if TYPE_CHECKING:
    from torch import Tensor

    from fastdllm.caches import Pass
    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine
    from fastdllm.events import StepEvent

FORMAT = 1
LARGEST = 2**31
"""Above all ids and counts."""


@dataclass(frozen=True, kw_only=True)
class RowPass:
    """What one pass did to one prompt."""

    event: RowEvent
    computed: tuple[tuple[int, int], ...] | None
    """Spans of the canvas, prompt included; None where the trace does not say."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Prompts with everything that was done to them.

    Args:
        prompts: token ids of each.
        passes: of each prompt, in their order.
    """

    settings: Mapping[str, Any]
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    prompts: Sequence[Sequence[int]]
    passes: Sequence[Sequence[RowPass]]

    @property
    def gen_length(self) -> int:
        return int(self.settings["gen_length"])


def header(engine: Engine, options: GenerationOptions, *, chat: bool) -> dict[str, Any]:
    """Everything needed to fold events into answers, less the prompts."""
    from fastdllm.config import GenerationConfig
    from fastdllm.record import environment, settings

    return {
        "fastdllm_trace": FORMAT,
        "settings": settings(engine, GenerationConfig(**options), chat=chat),
        "environment": environment(engine),
        **{name: getattr(engine.config, name) for name in ("mask_id", "eos_ids", "pad_id")},
    }


class Recorder:
    """Notes which rows each pass of a generation computes; give the generation :meth:`options` instead of its own."""

    def __init__(self, options: GenerationOptions) -> None:
        self._given, self._computed = options, deque[tuple["Tensor", int]]()

    @property
    def options(self) -> GenerationOptions:
        from fastdllm.caches import Watched
        from fastdllm.config import GenerationConfig

        return {**self._given, "cache": Watched(GenerationConfig(**self._given).policy, self._see)}

    def _see(self, seen: Pass) -> None:
        # Nothing is asked of the device here: a generation that is recorded runs as fast as others.
        self._computed.append((seen.computed, seen.canvas.width))

    def line(self, event: StepEvent) -> dict[str, Any]:
        """The next event as a line of a trace; call it once for each, in their order."""
        rows, width = self._computed.popleft()
        found = [{"computed": _spans(row, width)} for row in rows.tolist()]
        rows_of = [asdict(row) | more for row, more in zip(event.rows, found, strict=True)]
        return {"step": event.step, "rows": rows_of}


def _spans(positions: Iterable[int], width: int) -> list[list[int]]:
    """Runs [first, last) of the positions below ``width``."""
    spans: list[list[int]] = []
    for at in sorted(set(positions) - {width}):
        if spans and spans[-1][1] == at:
            spans[-1][1] = at + 1
        else:
            spans.append([at, at + 1])
    return spans


def record(engine: Engine, prompts: Sequence[Sequence[int]], options: GenerationOptions, *, chat: bool) -> Recording:
    """Answer the prompts in one batch."""
    recorder = Recorder(options)
    lines = [recorder.line(event) for event in engine.start(prompts, **recorder.options)]
    return _recording(header(engine, options, chat=chat), prompts, lines)


def read_trace(path: Path) -> Recording:
    """The recording in a trace file.

    Raises:
        OptionError: it is no trace; the message says in which line it goes wrong.
    """
    first, *rest = read_text(path).splitlines() or [""]
    try:
        head = json.loads(first)
        version = head["fastdllm_trace"]
    except (ValueError, KeyError, TypeError):
        raise OptionError(f"{path} is no trace; write one with fastdllm generate --trace FILE.") from None
    if version != FORMAT:
        raise OptionError(f"{path} is a trace of format {version!r}; this version reads format {FORMAT}.")
    lines: list[Any] = []
    for number, line in enumerate(rest, start=2):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise OptionError(f"{path} line {number} is not JSON ({error}).") from None
    try:
        return _recording(head, [head["prompt_tokens"]], lines)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise OptionError(f"{path} is a trace with a part missing or wrong ({error!r}).") from None


def _recording(head: Mapping[str, Any], prompts: Sequence[Sequence[int]], lines: Sequence[Any]) -> Recording:
    passes: list[list[RowPass]] = [[] for _ in prompts]
    slots = _whole(head["settings"]["gen_length"], LARGEST, least=1)
    _whole(head["settings"]["block_length"], LARGEST, least=1)
    for line in lines:
        for row in line["rows"]:
            index = _whole(row["index"], len(prompts))
            passes[index].append(_row_pass(row, slots, len(prompts[index])))
    return Recording(
        settings=head["settings"],
        mask_id=int(head["mask_id"]),
        eos_ids=tuple(map(int, head["eos_ids"])),
        pad_id=int(head["pad_id"]),
        prompts=[[_whole(token, LARGEST) for token in prompt] for prompt in prompts],
        passes=passes,
    )


def _row_pass(row: Mapping[str, Any], slots: int, prompt: int) -> RowPass:
    """A row of a trace's line; what it holds is checked, as files come from anywhere."""
    computed, reason = row.get("computed"), row["finish_reason"]
    event = RowEvent(
        index=_whole(row["index"], LARGEST),
        nfe=_whole(row["nfe"], LARGEST),
        block=_whole(row["block"], slots),
        rows_computed=_whole(row["rows_computed"], LARGEST),
        positions=tuple(_whole(at, slots) for at in row["positions"]),
        tokens=tuple(_whole(token, LARGEST) for token in row["tokens"]),
        confidences=tuple(_probability(sure) for sure in row["confidences"]),
        remasked=tuple(_whole(at, slots) for at in row["remasked"]),
        finish_reason=reason,
    )
    if reason not in (None, "stop", "length"):
        raise ValueError(f"{reason!r} is no finish_reason")
    if not len(event.positions) == len(event.tokens) == len(event.confidences):
        raise ValueError("positions, tokens and confidences of a row differ in number")
    spans = None if computed is None else tuple(_span(span, prompt + slots) for span in computed)
    return RowPass(event=event, computed=spans)


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1 + 1e-6:
        raise ValueError(f"{value!r} is not a probability")
    return float(value)


def _span(span: Sequence[Any], width: int) -> tuple[int, int]:
    first, last = span
    return _whole(first, width), _whole(last, width + 1)


def _whole(value: Any, limit: int, least: int = 0) -> int:
    """A whole number from ``least`` to below ``limit``."""
    if type(value) is not int or not least <= value < limit:
        raise ValueError(f"{value!r} is not a whole number from {least} to {limit - 1}")
    return value
