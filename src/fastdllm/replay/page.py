"""The page: one HTML file that plays recordings, with all it needs in it.

Nothing in it asks another host for anything, and its content policy forbids it to. What the model wrote stands in
it as JSON in which no character can end the element, and reaches the page as text alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from fastdllm.completion import Draft
from fastdllm.pieces import pieces
from fastdllm.replay.recording import Recording, RowPass
from fastdllm.text import Text

FOLDER = Path(__file__).parent
LONGEST_NAME = 60
SHOWN = ("cache", "decoder", "temperature", "seed", "dtype", "device")
"""Settings under the heading, of those that are set."""


def page(recording: Recording, text: Text | None) -> str:
    """The page as HTML.

    Args:
        text: the tokenizer that the ids belong to; without one, slots show ids.
    """
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = "; ".join(
        ["default-src 'none'", "img-src data:", f"style-src '{_hash(style)}'", f"script-src '{_hash(script)}'"]
    )
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        policy=html.escape(policy),
        title=html.escape(f"Decoding replay: {recording.settings['model']}"),
        style=style,
        script=script,
        recording=safe_json(content(recording, text)),
    )


def _hash(source: str) -> str:
    """How a content policy names an inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def safe_json(value: object) -> str:
    """JSON that can stand in a script element: no character in it can begin a tag, a comment or a line."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: what is beyond is escaped
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def content(recording: Recording, text: Text | None) -> dict[str, Any]:
    """What the page's script reads."""
    settings = recording.settings
    return {
        "model": str(settings["model"]),
        "settings": {name: str(settings[name]) for name in SHOWN if settings.get(name) is not None},
        "slots": recording.gen_length,
        "block": min(int(settings["block_length"]), recording.gen_length),
        "prompts": [
            {
                "name": _name(prompt, text),
                "tokens": pieces(text, prompt, -1, ()),
                "passes": _passes(recording, passes, text),
            }
            for prompt, passes in zip(recording.prompts, recording.passes, strict=True)
        ],
    }


def _name(prompt: Sequence[int], text: Text | None) -> str:
    """How a prompt begins, on one line."""
    said = f"{len(prompt)} tokens" if text is None else " ".join(text.decode(prompt).split())
    return said if len(said) <= LONGEST_NAME else f"{said[: LONGEST_NAME - 1]}…"


def _passes(recording: Recording, passes: Sequence[RowPass], text: Text | None) -> list[Mapping[str, Any]]:
    """Each pass with the slots whose text it changed: a character of several tokens appears with its last one."""
    draft = Draft(0, 0, recording.gen_length, recording.mask_id, recording.pad_id)
    memo, found = dict[tuple[int, ...], str](), list[Mapping[str, Any]]()
    before = _shown(recording, draft.canvas, text, memo)
    for one in passes:
        event = one.event
        draft.add(event)
        after = _shown(recording, draft.canvas, text, memo)
        written = zip(event.positions, event.tokens, event.confidences, strict=True)
        found.append(
            {
                "block": event.block,
                "rows": event.rows_computed,
                "computed": one.computed,
                "written": [[at, token, round(sure, 6)] for at, token, sure in written],
                "opened": event.remasked,
                "text": [[at, new] for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new],
                "end": event.finish_reason,
                "answer": draft.first_end(recording.eos_ids),
            }
        )
        before = after
    return found


def _shown(
    recording: Recording, canvas: Sequence[int], text: Text | None, memo: dict[tuple[int, ...], str]
) -> list[str]:
    """The text of each slot, empty for open ones."""
    shown = pieces(text, canvas, recording.mask_id, recording.eos_ids, memo)
    return ["" if token == recording.mask_id else piece for token, piece in zip(canvas, shown, strict=True)]
