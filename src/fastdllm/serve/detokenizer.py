"""Text of an answer from left to right: as tokens become final, and no further than a stop string may begin."""

from __future__ import annotations

from collections.abc import Sequence

from fastdllm.pieces import LONGEST_CHARACTER, PARTIAL
from fastdllm.text import Text


class Detokenizer:
    """Characters that each token adds, given one token after the other.

    A character spread over several tokens comes with the last of them. What is said depends on the tokens alone and
    not on when they came, so the parts of a streamed answer make up the text of one that is not streamed.

    Args:
        text: the tokenizer; without one, nothing is said.
    """

    def __init__(self, text: Text | None) -> None:
        self._text = text
        self._window: list[int] = []
        self._said = 0
        """Characters of the window that were given already."""

    def push(self, token: int) -> str:
        """The characters that are complete with this token and were not before."""
        if self._text is None:
            return ""
        self._window.append(token)
        shown = self._settled()
        fresh = shown[self._said :]
        if len(self._window) > 2 * LONGEST_CHARACTER:  # what came before no longer matters
            del self._window[:-LONGEST_CHARACTER]
            shown = self._settled()
        self._said = len(shown)
        return fresh

    def flush(self) -> str:
        """What an unfinished character at the end of the answer is shown as."""
        return "" if self._text is None else self._text.decode(self._window)[self._said :]

    def _settled(self) -> str:
        # The bytes that begin a character, while others of it are to come, are decoded as one replacement character.
        assert self._text is not None
        return self._text.decode(self._window).removesuffix(PARTIAL)


class Stops:
    """Lets text through up to the first stop string, and holds back an end that could become one.

    The first is the one that is complete first; of several that end together, the one that began first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, fresh: str) -> str:
        """What can be said now that ``fresh`` has followed."""
        text = self._held + fresh
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, as nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
