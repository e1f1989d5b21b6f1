"""StepEvents as JSON lines: a header with settings and prompt tokens, then an event a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdllm.events import StepEvent

FORMAT = 1


@contextmanager
def trace_file(path: Path | None, header: dict[str, object]) -> Iterator[Callable[[StepEvent], None]]:
    """A function that writes events; the file appears under its name only once every event is in it."""
    if path is None:
        yield lambda _: None
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"fastdllm_trace": FORMAT, **header}) + "\n")
            yield lambda event: print(json.dumps(asdict(event)), file=file)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
