"""The embedded model's tokenizer: byte-level BPE in which every domain word and every number to 200 is one token.

Any other text still encodes, byte by byte. A space stands apart from a number, so that ``6`` in
"has 6 apples" and in "6*4" is the same token; words carry their leading space.

    python scripts/build_tokenizer.py OUT_DIR
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from word_problems import TEMPLATES, make

SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>")
SPLIT = r"\p{N}{1,3}| ?\p{L}+| ?#+|\n+| ?[^\s\p{L}\p{N}]|\s"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n ' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def corpus() -> list[str]:
    """Words of every template, each number, and the role names, repeated until each is worth a merge.

    Words and numbers stand apart, so that the result does not depend on which numbers the templates draw.
    """
    rng = random.Random(0)
    problems = [make(rng, (name,)) for name in TEMPLATES for _ in range(1000)]
    words = {w for p in problems for w in re.findall(r" ?[A-Za-z#]+", f" {p.question} {p.answer}")}
    numbers = [str(n) for n in range(201)]
    return [*sorted(words), *numbers, "user", "assistant", "system", "\n\n"] * 200


def build() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=150,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def save(out: Path) -> Tokenizer:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": SPECIAL[0],
                "eos_token": SPECIAL[1],
                "pad_token": SPECIAL[1],
                "mask_token": SPECIAL[5],
                "clean_up_tokenization_spaces": False,
                "model_max_length": 512,
                "chat_template": TEMPLATE,
            },
            indent=2,
        )
        + "\n"
    )
    return tokenizer


if __name__ == "__main__":
    made = save(Path(sys.argv[1]))
    print(f"{made.get_vocab_size()} tokens")
