"""How alike keys and values stay from pass to pass (Fast-dLLM, arXiv 2505.22618, Figure 3).

Two states of a slot in the same layer are compared by their cosine over all heads. Keys are compared after
rotation, which changes no cosine, as a slot does not move.

Shapes: S passes looked at, L layers looked at, P slots of a part, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.caches import Pass
from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.studies.passes import Question, caption, document, encode, settings_of, watched
from fastdllm.studies.table import Table

PARTS, KINDS = ("prompt", "last block"), ("keys", "values")
NAME, TITLE = "similarity", "Similarity of keys and values from pass to pass"
NOTES = (
    "Cosine similarity of the keys and values that attention reads in two passes, slot by slot over all heads, and the "
    "mean over slots, layers and problems. Answers are decoded to their full length."
)


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions:
    """What is decoded, and which of its states are kept for comparison.

    Kept at once are those of one problem: ``2 S L (slots + block_length) K D`` numbers in the model's dtype, in
    host memory. Answers do not end at an end token, so that problems take the same passes.

    Args:
        layer: look at this layer alone, 0 the first; None for all.
        every: look at every so many passes.
        slots: most slots of a prompt to look at, evenly spread over it.
    """

    gen_length: int = 64
    block_length: int = 8
    cache: str = "none"
    decoder: str = "topk:k=1"
    seed: int = 0
    layer: int | None = None
    every: int = 1
    slots: int = 64

    def __post_init__(self) -> None:
        check_least("every", self.every, 1)
        check_least("slots", self.slots, 1)
        GenerationConfig(**self.generation)

    @property
    def generation(self) -> GenerationOptions:
        return {
            "gen_length": self.gen_length, "block_length": self.block_length, "cache": self.cache,
            "decoder": self.decoder, "seed": self.seed, "stop_at_eos": False,
        }  # fmt: skip

    def layers(self, count: int) -> list[int]:
        """Those of a model with ``count`` layers to look at."""
        if self.layer is None:
            return list(range(count))
        if not 0 <= self.layer < count:
            raise OptionError(f"layer={self.layer} must be from 0 to {count - 1}.")
        return [self.layer]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Mean cosine of the states of two passes, for each pair of passes.

    Args:
        settings: what was decoded, and which states of it were compared.
        passes: numbers of the passes looked at, 1 the first.
        problems: how many problems had each of them; a pair counts those that had both.
        opened: block that each pass was in, 0 the first; None where problems differ.
        matrices: (2, 2, S, S) by part (:data:`PARTS`) and kind (:data:`KINDS`), over slots, layers and problems.
        neighbours: (L, 2, 2): mean over passes of the cosine to the pass looked at before, by layer.
    """

    options: SimilarityOptions
    settings: dict[str, Any]
    layers: Sequence[int]
    passes: Sequence[int]
    problems: Sequence[int]
    blocks: Sequence[int] | None
    matrices: Tensor
    neighbours: Tensor

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; matrices are lists of rows, their numbers rounded to six digits."""
        return {
            "settings": self.settings,
            "layers": list(self.layers),
            "passes": list(self.passes),
            "problems_with_pass": list(self.problems),
            "block_of_pass": None if self.blocks is None else list(self.blocks),
            "cosine": {part: {kind: _rounded(m) for kind, m in self._of(part)} for part in PARTS},
            "neighbours_by_layer": {
                part: {kind: _rounded(self.neighbours[:, p, k]) for k, kind in enumerate(KINDS)}
                for p, part in enumerate(PARTS)
            },
        }

    def _of(self, part: str) -> list[tuple[str, Tensor]]:
        return list(zip(KINDS, self.matrices[PARTS.index(part)], strict=True))

    @property
    def tables(self) -> list[Table]:
        """A row for each part and kind: neighbouring passes, a block apart, first and last."""
        apart = self.blocks_apart()
        head = ["states", "next pass, mean", "next pass, least", *([f"{apart} passes apart, mean"] if apart else [])]
        rows = []
        for part in PARTS:
            for kind, matrix in self._of(part):
                near = matrix.diagonal(1)
                far = [matrix.diagonal(apart).mean()] if apart else []
                cells = [near.mean(), near.min(), *far, matrix[0, -1]]
                rows.append([f"{part}, {kind}", *(f"{float(cell):.4f}" for cell in cells)])
        return [Table([*head, "first and last pass"], rows)]

    def markdown(self) -> str:
        """Picture, table and notes."""
        return document(NAME, TITLE, self.tables, NOTES, f"{self.caption}.")

    @property
    def caption(self) -> str:
        """What was decoded and looked at, on one line."""
        o = self.options
        layers = "all layers" if len(self.layers) > 1 else f"layer {self.layers[0]}"
        return caption(self.settings, max(self.problems), f"cache {o.cache}", o.decoder, f"mean over {layers}")

    def blocks_apart(self) -> int | None:
        """Passes from one block to the next, where all are looked at and all blocks take as many; None otherwise."""
        if self.blocks is None or self.options.every > 1:
            return None
        opening = [i for i, block in enumerate(self.blocks) if i == 0 or block != self.blocks[i - 1]]
        gaps = {after - before for before, after in pairwise(opening)}
        return gaps.pop() if len(gaps) == 1 else None


def _rounded(values: Tensor) -> list[Any]:
    found: list[Any] = values.double().mul(1e6).round().div(1e6).tolist()
    return found


def run(
    engine: Engine,
    problems: Sequence[Question],
    options: SimilarityOptions,
    advance: Callable[[], None] = lambda: None,
) -> Similarity:
    """Decode every problem and compare its states; ``advance`` is called for each problem."""
    prompts = encode(engine, problems, options.generation)
    layers = options.layers(engine.config.num_layers)
    cosines, blocks = list[Tensor](), list[list[int]]()
    for prompt in prompts:
        kept = Kept(layers, _spread(len(prompt), options.slots), options)
        for _ in watched(engine, prompt, options.generation, kept.see):
            pass
        cosines.append(kept.cosines(engine.device))
        blocks.append(kept.blocks)
        advance()
    settings = settings_of(engine, options.generation) | {"every": options.every, "slots": options.slots}
    return _result(options, settings, layers, cosines, blocks)


def _spread(length: int, most: int) -> Tensor:
    """At most ``most`` places of ``length``, first and last among them."""
    return torch.linspace(0, length - 1, min(length, most)).round().long()


class Kept:
    """The states of one problem's prompt and last block, pass by pass, on the host."""

    def __init__(self, layers: Sequence[int], prompt: Tensor, options: SimilarityOptions) -> None:
        self.layers, self.prompt, self.options = layers, prompt, options
        self.states = list[Tensor]()
        self.blocks = list[int]()

    def see(self, seen: Pass) -> None:
        """Keep what attention read in this pass, if it is one of those looked at."""
        if int(seen.region.nfe[0]) % self.options.every:
            return
        assert seen.store is not None
        length, batch = int(seen.region.length[0]), torch.zeros(1, dtype=torch.long, device=seen.canvas.device)
        last = (self.options.gen_length - 1) % GenerationConfig(**self.options.generation).block_length + 1
        slots = torch.cat((self.prompt, torch.arange(length - last, length))).to(seen.canvas.device)
        layers = []
        for layer in self.layers:
            pair = seen.store.read(layer, batch, length)
            layers.append(torch.stack([states[0, :, slots].transpose(0, 1).flatten(1) for states in pair]))
        self.states.append(torch.stack(layers).cpu())
        self.blocks.append(int(seen.region.block[0]))

    def cosines(self, device: torch.device) -> Tensor:
        """Mean over slots (L, 2, 2, S, S) by layer, part and kind."""
        return torch.stack([self._of_layer(layer, device) for layer in range(len(self.layers))])

    def _of_layer(self, layer: int, device: torch.device) -> Tensor:
        states = torch.stack([one[layer] for one in self.states], dim=1).to(device).float()  # (2, S, slots, K D)
        parts = F.normalize(states, dim=-1).split([len(self.prompt), states.shape[2] - len(self.prompt)], dim=2)
        return torch.stack([(part.flatten(2) @ part.flatten(2).mT / part.shape[2]).cpu() for part in parts])


def _result(
    options: SimilarityOptions,
    settings: dict[str, Any],
    layers: Sequence[int],
    cosines: Sequence[Tensor],
    blocks: Sequence[Sequence[int]],
) -> Similarity:
    """The mean over problems, each pair of passes over those that had both."""
    most = max(len(passes) for passes in blocks)
    if most < 2:
        raise OptionError(f"every={options.every} leaves one pass, and nothing to compare it with.")
    total, counts = torch.zeros(len(layers), 2, 2, most, most, dtype=torch.double), torch.zeros(most)
    for cosine in cosines:
        size = cosine.shape[-1]
        total[..., :size, :size] += cosine
        counts[:size] += 1
    mean = total / torch.minimum(counts, counts[:, None])
    return Similarity(
        options=options,
        settings=settings,
        layers=layers,
        passes=[1 + i * options.every for i in range(most)],
        problems=counts.long().tolist(),
        blocks=list(blocks[0]) if all(other == blocks[0] for other in blocks) else None,
        matrices=mean.mean(0),
        neighbours=mean.diagonal(1, dim1=-2, dim2=-1).mean(-1),
    )
