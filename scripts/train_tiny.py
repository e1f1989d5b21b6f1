"""Train the embedded model: LLaDA's objective on word problems made by rule, two cores, about two hours.

    python scripts/train_tiny.py --out DIR [--steps N]

Resumes from DIR/state.pt when that exists. LLaDA masks the answer at random (arXiv 2502.09992,
section 2.2); decoding visits other states, so most sequences here are masked as a decoder would
have left them: everything right of a frontier, or the hard tokens last. The last steps alternate
with blocks seen through a dual cache, whose stale keys and values a plain run never meets.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from build_tokenizer import SPECIAL, save
from fastdllm.models.config import ModelConfig
from fastdllm.models.transformer import Transformer
from word_problems import COPIED, Problem, problems

LENGTHS = {96: 0.75, 112: 0.15, 176: 0.10}  # canvas length: share of the steps
TOKENS_PER_STEP = 4096
LAST_RATE, LAST_LENGTH = 0.2, 128  # of the steps that train on what caches leave
NEAR = 8  # how many tokens right of a frontier count for much
NEAR_WEIGHT, FAR_WEIGHT, PAD_WEIGHT = 0.5, 0.05, 0.1
FRONTIER, BLOCKWISE, HARD_LAST = 0.65, 0.82, 0.93  # kinds of row, as cumulative shares
DRILLS = 0.2  # share of rows that hold sums alone
CLOZE = 0.2  # share of the other rows that mask the copied words alone
AT_RESULT, AT_COPY = 0.45, 0.2  # shares of the frontiers that stand at a result, at a copied word
OFTEN = {"slices": 0.7, "save": 0.4, "change": 1.0, "give": 0.5, "boxes": 0.5}  # their words take longest to learn


def model_config(tokenizer: Tokenizer, layers: int = 4) -> ModelConfig:
    vocab = -(-tokenizer.get_vocab_size() // 32) * 32
    eos, eot, mask = (tokenizer.token_to_id(SPECIAL[i]) for i in (1, 4, 5))
    return ModelConfig(
        family="llada", vocab_size=vocab, hidden_size=256, num_layers=layers, num_heads=4, num_kv_heads=4,
        intermediate_size=688, max_length=512, rope_theta=10000.0, rms_norm_eps=1e-5, qkv_bias=False,
        tie_embeddings=True, mask_id=mask, eos_ids=(eos, eot), pad_id=eos,
    )  # fmt: skip


class Batches:
    """Canvases (B, T) of prompt, answer and end-of-text, with their prompt lengths and a class per token."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        made = problems(seed, held_out=False)
        self.stream = (p for p in made if self.rng.random() < OFTEN.get(p.template, 0.35))
        self.bos, self.eos, self.start, self.end, self.eot, self.mask = map(tokenizer.token_to_id, SPECIAL)
        names = ("user", "assistant", "\n\n")
        self.user, self.assistant, self.gap = (tokenizer.encode(w).ids[0] for w in names)
        self.equals, self.dollar = tokenizer.token_to_id("="), tokenizer.token_to_id("$")
        self.number = torch.zeros(tokenizer.get_vocab_size() + 64, dtype=torch.bool)
        self.number[[i for t, i in tokenizer.get_vocab().items() if t.isdigit()]] = True
        self.hard = torch.zeros(tokenizer.get_vocab_size() + 64, dtype=torch.bool)
        self.copied = torch.zeros_like(self.number)
        self.copied[[i for t, i in tokenizer.get_vocab().items() if t.removeprefix("Ġ") in COPIED]] = True
        self.hard[[i for t, i in tokenizer.get_vocab().items() if t.isdigit() or t in "Ġ$"]] = True
        self.hard |= self.copied

    def encode(self, batch: list[Problem]) -> list[tuple[list[int], list[int]]]:
        texts = [" " + text for p in batch for text in (p.question, p.answer)]
        ids = [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        head = [self.bos, self.start, self.user, self.end, self.gap]
        tail = [self.eot, self.start, self.assistant, self.end, self.gap]
        return [(head + q + tail, a) for q, a in zip(ids[::2], ids[1::2], strict=True)]

    def drill(self, length: int) -> list[int]:
        """The sums of several problems and nothing else: practice in arithmetic, few products as those come first."""
        sums = [s for _ in range(9) for s in re.findall(r"\d+[-+*/]\d+=\$?\d+", next(self.stream).answer)]
        sums = [s for s in sums if "*" not in s or self.rng.random() < 0.15]
        self.rng.shuffle(sums)
        return self.tokenizer.encode(" " + ". ".join(sums) + ".").ids[:length]

    def next(self, length: int, *, drills: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Tokens (B, T), prompt lengths (B,), answer lengths (B,), where results and copied words stand (B, T) each.

        Rows of sums come first and have no prompt.
        """
        rows = TOKENS_PER_STEP // length
        pairs = [([], self.drill(length)) for _ in range(int(DRILLS * rows) if drills else 0)]
        pairs += self.encode([next(self.stream) for _ in range(rows - len(pairs))])
        tokens = torch.full((len(pairs), length), self.eos)
        for row, (question, answer) in enumerate(pairs):
            text = torch.tensor((question + answer)[:length])
            tokens[row, : len(text)] = text
        previous = F.pad(tokens, (1, 0))[:, :-1]
        results = ((previous == self.equals) | (previous == self.dollar)) & self.number[tokens]
        prompts, answers = (torch.tensor([len(pair[i]) for pair in pairs]) for i in (0, 1))
        return tokens, prompts, answers, results, self.copied[tokens]


def aim(inside: Tensor, results: Tensor, copied: Tensor, prompts: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """A frontier per row (B, 1), as a slot of the answer, and the slot of one of its results (B, 1)."""
    result, copy = (
        ((torch.rand(at.shape) * (at & inside)).argmax(1, keepdim=True) - prompts[:, None]).clamp(min=0)
        for at in (results, copied)
    )
    kind = torch.rand(len(prompts), 1)
    anywhere = (torch.rand(len(prompts), 1) * (answers[:, None] + 1)).long()
    aimed = torch.where(kind < AT_RESULT, result, copy)
    return torch.where(kind < AT_RESULT + AT_COPY, aimed, anywhere), result


def corrupt(
    tokens: Tensor, prompts: Tensor, answers: Tensor, results: Tensor, copied: Tensor, hard: Tensor
) -> tuple[Tensor, Tensor]:
    """Which positions to mask and the loss weight of each, both (B, T).

    Four kinds of row: 65 % frontier (all right of a point is masked), 17 % block-wise as a decoder
    leaves it (clean left of a block, the hard tokens of the block last, all right of it masked),
    11 % the same over the whole answer, 7 % LLaDA's uniform masking. Frontiers stand at a result (45 %),
    at a word copied from the question (20 %), or anywhere. Of all these rows 20 % mask the copied words
    alone instead. Rows of sums mask their results, 90 % of them with all right of one of these.
    """
    B, T = tokens.shape
    slot = torch.arange(T)[None] - prompts[:, None]
    inside = slot >= 0
    kind = torch.rand(B, 1)
    frontier, at_result = aim(inside, results, copied, prompts, answers)
    size = torch.tensor([8, 16, 32])[torch.randint(3, (B, 1))]
    start = torch.where(kind < BLOCKWISE, (frontier // size) * size, 0)
    stop = torch.where(kind < BLOCKWISE, start + size, T)
    order = torch.rand(B, T) + torch.where(kind < HARD_LAST, 0.4 * torch.rand(B, 1) * hard[tokens], 0.0)
    rate = ((torch.arange(B) + torch.rand(B)) / B)[:, None].clamp(0.02, 1.0)
    rank = order.masked_fill((slot < start) | (slot >= stop), -1).argsort(1, descending=True).argsort(1)
    open_slots = ((slot >= start) & (slot < stop)).sum(1, keepdim=True)
    noised = (rank < (rate * open_slots).ceil()) & (slot >= start) & (slot < stop)
    masked = torch.where(kind < FRONTIER, slot >= frontier, noised | (slot >= stop)) & inside
    near = torch.where(kind < FRONTIER, slot < frontier + NEAR, slot < stop)
    ahead = torch.where((kind < FRONTIER) & (slot > frontier), NEAR_WEIGHT, 1.0)
    weight = torch.where(near, ahead, FAR_WEIGHT) * torch.where(slot > answers[:, None], PAD_WEIGHT, 1.0)
    cloze = copied & inside & (torch.rand(B, 1) < CLOZE)
    words = cloze.any(1, keepdim=True)
    masked, weight = torch.where(words, cloze, masked), torch.where(words, 1.0, weight)
    cut = torch.where(torch.rand(B, 1) < 0.9, at_result, T)
    drilled, drills = prompts[:, None] == 0, results & (slot <= cut)
    masked = torch.where(drilled, drills | (slot >= cut), masked)
    return masked, torch.where(drilled, drills, weight * masked)


@torch.no_grad()
def probe(model: Transformer, batches: Batches, held_out: list[tuple[list[int], list[int]]]) -> dict[str, float]:
    """Accuracy of the frontier token with all right of it masked, by class, on problems not trained on."""
    right: dict[str, list[float]] = {}
    rng = random.Random(0)
    T, rows, targets = 112, [], []
    for question, answer in held_out:
        for at in rng.sample(range(len(answer)), 8):
            row = (question + answer[:at])[:T]
            rows.append(row + [batches.mask] * (T - len(row)))
            targets.append((len(question) + at, answer[at], answer[at - 1] if at else -1))
    tokens = torch.tensor(rows)
    with torch.autocast("cpu", torch.bfloat16):
        positions = torch.arange(T).expand(len(tokens), T)
        at = torch.tensor([t[0] for t in targets])
        hidden = torch.cat([model(*pair) for pair in zip(tokens.split(64), positions.split(64), strict=True)])
        guess = model.logits(hidden[torch.arange(len(tokens)), at]).argmax(-1).tolist()
    ids = batches.tokenizer.id_to_token
    for (_, truth, before), got in zip(targets, guess, strict=True):
        word, previous = ids(truth), ids(before) if before >= 0 else ""
        kind = "word"
        if word.isdigit():
            kind = "result" if previous in ("=", "$") else "operand"
        elif word.removeprefix("Ġ") in COPIED:
            kind = "copied"
        right.setdefault(kind, []).append(float(got == truth))
    return {k: round(sum(v) / len(v), 4) for k, v in sorted(right.items())}


def optimizers(model: Transformer) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    muon = torch.optim.Muon(matrices, lr=4e-3, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)]


def rate_at(step: int, steps: int) -> float:
    """Warm up, hold, then fall in a straight line over the last 40 %: the end can be moved while it runs."""
    return min(1.0, (step + 1) / 150, max(0.01, (steps - step) / (0.4 * steps)))


def initialise(model: Transformer) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            if name.endswith(("out.weight", "down.weight")):
                scale /= (2 * model.config.num_layers) ** 0.5
            torch.nn.init.normal_(parameter, std=scale)


class OpenedBlock:
    """Keys and values as a dual cache holds them: those of the pass that opened the block, its own rows fresh."""

    def __init__(self) -> None:
        self.held: list[tuple[Tensor, Tensor]] = []
        self.rows: Tensor | None = None

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.rows is None:
            self.held.append((keys, values))
            return keys, values
        index = self.rows[:, None, :, None].expand_as(keys)
        old_keys, old_values = self.held[layer]
        return old_keys.scatter(2, index, keys), old_values.scatter(2, index, values)


class Trainer:
    """The run: its network, optimisers, data and place; ``state.pt`` holds what it needs to go on."""

    def __init__(self, out: Path, steps: int, cached_steps: int, layers: int, seed: int) -> None:
        torch.manual_seed(seed)
        tokenizer = save(out)
        self.steps, self.total, self.state, self.step = steps, steps + cached_steps, out / "state.pt", 0
        self.model = Transformer(model_config(tokenizer, layers))
        initialise(self.model)
        self.optimisers = optimizers(self.model)
        self.peaks = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]
        if self.state.exists():
            saved = torch.load(self.state, weights_only=True)
            self.model.load_state_dict(saved["model"])
            for optimiser, values in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(values)
            self.step = saved["step"]
        self.batches, self.rng = Batches(tokenizer, seed + self.step), random.Random(seed + self.step)
        stream = problems(999_983, held_out=True)  # validation; the published problems have another seed
        self.watched = self.batches.encode([next(stream) for _ in range(100)])
        self.compiled = torch.compile(self.model, dynamic=False)

    def run(self) -> None:
        began, seen, losses = time.time(), 0, []
        while self.step < self.total:
            rate = rate_at(self.step, self.steps)
            if self.step >= self.steps:
                rate = LAST_RATE * (self.total - self.step) / (self.total - self.steps)
            loss, tokens = self.cached_loss() if self.step >= self.steps and self.step % 2 else self.plain_loss()
            self.update(loss, rate)
            losses.append(loss.item())
            self.step, seen = self.step + 1, seen + tokens
            if self.step % 100 == 0 or self.step == self.total:
                mean, speed = sum(losses) / len(losses), seen / (time.time() - began)
                record = {"step": self.step, "loss": round(mean, 4), "tokens_per_s": round(speed)}
                print(json.dumps(record | probe(self.model, self.batches, self.watched)), flush=True)
                self.keep()
                losses = []

    def plain_loss(self) -> tuple[Tensor, int]:
        """Loss of one batch of whole canvases, and how many tokens that was."""
        length = self.rng.choices(list(LENGTHS), list(LENGTHS.values()))[0] if self.step < self.steps else LAST_LENGTH
        tokens, prompts, answers, results, copied = self.batches.next(length)
        masked, weight = corrupt(tokens, prompts, answers, results, copied, self.batches.hard)
        with torch.autocast("cpu", torch.bfloat16):
            noisy = tokens.masked_fill(masked, self.batches.mask)
            logits = self.model.logits(self.compiled(noisy, torch.arange(length).expand_as(tokens)))
        return weighted(logits[masked], tokens[masked], weight[masked]), tokens.numel()

    def cached_loss(self) -> tuple[Tensor, int]:
        """Loss of blocks whose rows see the rest of the canvas as the pass that opened the block left it."""
        tokens, prompts, answers, *_ = self.batches.next(LAST_LENGTH, drills=False)
        size = self.rng.choice((8, 16, 32))
        start = prompts + (torch.rand(len(prompts)) * (answers + 1) / size).long() * size
        rows = (start[:, None] + torch.arange(size)).clamp(max=LAST_LENGTH - 1)
        clean = tokens.gather(1, rows)
        order = torch.rand(clean.shape) + 0.4 * torch.rand(len(clean), 1) * self.batches.hard[clean]
        masked = order.argsort(1, descending=True).argsort(1) < (torch.rand(len(clean), 1) * size).ceil()
        opened, place = OpenedBlock(), torch.arange(LAST_LENGTH).expand_as(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                self.model(tokens.masked_fill(place >= start[:, None], self.batches.mask), place, None, opened)
            opened.rows = rows
            hidden = self.model(clean.masked_fill(masked, self.batches.mask), rows, None, opened)
            logits = self.model.logits(hidden)
        weight = torch.where(rows - prompts[:, None] > answers[:, None], PAD_WEIGHT, 1.0)
        return weighted(logits[masked], clean[masked], weight[masked]), tokens.numel()

    def update(self, loss: Tensor, rate: float) -> None:
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for peak, group in zip(self.peaks, groups, strict=True):
            group["lr"] = peak * rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def keep(self) -> None:
        unfinished = self.state.with_suffix(".new")
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        torch.save({"model": self.model.state_dict(), "optimisers": optimisers, "step": self.step}, unfinished)
        unfinished.replace(self.state)


def weighted(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy (N, V) against (N,), averaged with weights (N,)."""
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weight).sum() / weight.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--cached-steps", type=int, default=1000, help="last steps, half of them as a dual cache sees")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    Trainer(args.out, args.steps, args.cached_steps, args.layers, args.seed).run()


if __name__ == "__main__":
    main()
