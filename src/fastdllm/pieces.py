"""What each slot of a canvas adds to the text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastdllm.text import Text

OPEN, END = "░", "∎"
PARTIAL = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4


def pieces(
    text: Text | None,
    canvas: Sequence[int],
    mask_id: int,
    eos_ids: Collection[int],
    memo: dict[tuple[int, ...], str] | None = None,
) -> list[str]:
    """The text of each slot; a character spread over several tokens stands at its last one.

    Args:
        text: the tokenizer; without one, slots show their ids.
        mask_id: the id of an open slot, which shows :data:`OPEN`.
        eos_ids: ids that show :data:`END`.
        memo: what the tokenizer has said before; the same dictionary at every call makes many canvases quick.
    """
    memo = {} if memo is None else memo
    shown, waiting = [""] * len(canvas), list[int]()
    for at, token in enumerate(canvas):
        if token == mask_id or token in eos_ids:
            shown[at], waiting = (OPEN if token == mask_id else END), []
            continue
        waiting.append(token)
        key = tuple(waiting)
        if key not in memo:
            memo[key] = _piece(text, key)
        shown[at] = memo[key]
        if shown[at].endswith(PARTIAL) and len(waiting) < LONGEST_CHARACTER:
            continue
        for before in range(at - len(waiting) + 1, at):
            shown[before] = ""
        waiting = []
    return shown


def _piece(text: Text | None, tokens: Sequence[int]) -> str:
    """The text of tokens that may form one character; ids where there is no tokenizer."""
    if text is None:
        return f"{tokens[-1]} "
    return text.decode(tokens) or text.token(tokens[-1])
