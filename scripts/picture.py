"""The README's picture: the screen of ``fastdllm generate --compare``, as SVG.

python scripts/picture.py
"""

from __future__ import annotations

import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from fastdllm.cli import compare
from fastdllm.cli.app import app

OUT = Path(__file__).parent.parent / "docs" / "compare.svg"
QUESTION = (
    "Ana has 19 apples. She gives 4 apples to each of 2 friends and then finds 11 more. "
    "How many apples does Ana have now?"
)
WITHOUT_WEB_FONTS = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def picture() -> None:
    console = Console(record=True, width=88, force_terminal=True, color_system="truecolor", highlight=False)
    compare.stdout = lambda: console  # type: ignore[assignment]
    options = ["--gen-length", "64", "--block-length", "8"]
    app(["generate", "--compare", *options, QUESTION], standalone_mode=False)
    OUT.write_text(console.export_svg(title="fastdllm generate --compare", code_format=WITHOUT_WEB_FONTS))


if __name__ == "__main__":
    picture()
