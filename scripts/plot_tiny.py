"""Picture of docs/tiny-measured.json: what parallel decoding costs in accuracy, and what caches save.

python scripts/plot_tiny.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
FIXED = [f"topk:k={k}" for k in (1, 2, 4, 8)]
THRESHOLD = [f"threshold:threshold={t}" for t in ("0.95", "0.9", "0.8", "0.7", "0.5")]
COLOURS = {"none": "#1b6ca8", "prefix": "#d1495b", "dual": "#2e8b57"}


def series(axes: Axes, settings: dict[str, dict], x: str, decoders: list[str], cache: str, **style: object) -> None:
    points = [settings[f"{cache}/{decoder}"] for decoder in decoders]
    low = [p["accuracy"] - p["interval"][0] for p in points]
    high = [p["interval"][1] - p["accuracy"] for p in points]
    axes.errorbar(
        [p[x] for p in points], [p["accuracy"] for p in points], yerr=[low, high], capsize=2, lw=1.4, ms=5, **style
    )


def main() -> None:
    record = json.loads((ROOT / "docs" / "tiny-measured.json").read_text())
    settings = {entry["name"]: entry for entry in record["methods"]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained", sharey=True)
    series(
        left,
        settings,
        "tokens_per_forward",
        FIXED,
        "none",
        label="fixed: 1, 2, 4, 8 a pass",
        color="#888888",
        marker="s",
    )
    series(
        left,
        settings,
        "tokens_per_forward",
        THRESHOLD,
        "none",
        label="threshold: 0.95 ... 0.5",
        color=COLOURS["none"],
        marker="o",
    )
    left.set(
        xlabel="answer tokens per forward pass (TPF)",
        ylabel="problems right, %",
        title="Commit what is sure, not a fixed number",
    )
    for cache, colour in COLOURS.items():
        series(
            right,
            settings,
            "rows_per_token",
            [FIXED[0], *THRESHOLD],
            cache,
            label=f"cache {cache}",
            color=colour,
            marker="o",
        )
    right.set(xlabel="rows computed per answer token", xscale="log", title="Caches cut the rows of every pass")
    right.invert_xaxis()
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
    count = record["methods"][0]["problems"]
    figure.suptitle(f"Embedded model, {count} held-out problems, 95 % intervals", fontsize=10, color="#555555")
    figure.savefig(ROOT / "docs" / "tiny-measured.png", dpi=130)


if __name__ == "__main__":
    main()
