"""Write a trained state into the package as the checkpoint "tiny", with its tokenizer and held-out problems.

    python scripts/export_tiny.py TRAINING_DIR [--out DIR]

The published problems have their own seed: training watched others of the held-out side, never these.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer

from fastdllm.models.checkpoint import save_checkpoint
from fastdllm.models.transformer import Transformer
from train_tiny import model_config
from word_problems import problems

PACKAGED = Path(__file__).parent.parent / "src" / "fastdllm" / "checkpoints" / "tiny"
PUBLISHED_SEED, PUBLISHED = 7, 1000


def export(training: Path, out: Path) -> None:
    saved = torch.load(training / "state.pt", weights_only=True)
    layers = 1 + max(int(name.split(".")[1]) for name in saved["model"] if name.startswith("blocks."))
    model = Transformer(model_config(Tokenizer.from_file(str(training / "tokenizer.json")), layers))
    model.load_state_dict(saved["model"])
    save_checkpoint(model, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(training / name, out / name)
    stream = problems(PUBLISHED_SEED, held_out=True)
    kept = {p.question: p for p in (next(stream) for _ in range(2 * PUBLISHED))}
    lines = [
        json.dumps({"question": p.question, "answer": p.answer, "template": p.template, "numbers": p.numbers})
        for p in list(kept.values())[:PUBLISHED]
    ]
    (out / "problems.jsonl").write_text("\n".join(lines) + "\n")
    print(f"step {saved['step']}, {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.1f} MB in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    args = parser.parse_args()
    export(args.training, args.out)


if __name__ == "__main__":
    main()
