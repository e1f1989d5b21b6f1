"""One pass against the same pass computed anew.

Shapes: L layers, T slots of the canvas, M slots predicted, K key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.caches import Pass
from fastdllm.canvas import Region
from fastdllm.events import RowEvent
from fastdllm.kv import Store
from fastdllm.models.transformer import Transformer
from fastdllm.studies.means import Means

STATES = ("key_cosine", "key_error", "value_cosine", "value_error")
LOGITS = ("logits_cosine", "logits_error", "agreement")
PARTS = ("prompt", "decoded", "block", "suffix")
ALL = 0
"""The one label of means over everything."""

_states, _logits = partial(Means, STATES), partial(Means, LOGITS)


@dataclass
class Found:
    """Means over the passes looked at.

    Of the *states* that attention read, over slots and layers: the cosine (over all heads) of keys and of values to
    the reference, and the length of the difference relative to that of the reference. Of the *logits* of the block's
    open slots the same, with the mask token left out and their mean at 0, as softmax does not see a constant;
    ``agreement`` is the share of slots whose best token is the reference's.
    """

    passes: int = 0
    states: Means = field(default_factory=_states)
    parts: Means = field(default_factory=_states)
    """By place in :data:`PARTS`: prompt, answer left of the block, block, answer right of it."""
    distances: Means = field(default_factory=_states)
    """By distance to the block, as :func:`distance_labels` puts it."""
    ages: Means = field(default_factory=_states)
    """By passes since the slot's row was last computed in every layer; 0 when this pass did."""
    blocks: Means = field(default_factory=_states)
    """By the block being decoded, 0 the first."""
    logits: Means = field(default_factory=_logits)
    logits_by_block: Means = field(default_factory=_logits)
    logits_by_step: Means = field(default_factory=_logits)
    """By passes since the block was opened; 0 the pass that opens it."""
    committed: Means = field(default_factory=partial(Means, ("agreement",)))
    """Of the slots that were committed alone."""

    def absorb(self, other: Found) -> None:
        """Take in what was found elsewhere."""
        self.passes += other.passes
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if isinstance(mine, Means):
                mine.absorb(theirs)

    def overall(self) -> dict[str, float]:
        """Every measure over everything."""
        return {**self.states.flat(ALL), **self.logits.flat(ALL)}


class Against:
    """Compares the passes of one prompt's generation with plain ones; ``found`` grows with each.

    Args:
        every: look at every so many passes, beginning with the first.
    """

    def __init__(self, model: Transformer, every: int) -> None:
        self.model, self.every, self.found = model, every, Found()
        self._age = torch.zeros(0, dtype=torch.long)
        self._agrees: dict[int, bool] = {}

    def see(self, seen: Pass) -> None:
        """Look at a pass before anything of it is committed."""
        width = seen.canvas.width
        age = torch.zeros(width + 1, dtype=torch.long) if not len(self._age) else self._age + 1
        self._age = age.scatter(0, seen.computed[0].cpu(), 0)
        self._agrees = {}
        if int(seen.region.nfe[0]) % self.every:
            return
        assert seen.store is not None
        self.found.passes += 1
        reference = Reference(seen.store, int(seen.plan.reach[0]))
        positions = torch.arange(width, device=seen.canvas.device)[None]
        hidden = self.model(seen.canvas.tokens, positions, None, reference)
        self._add_states(torch.stack(reference.measures, dim=1).cpu(), seen.region)
        self._add_logits(hidden, seen)

    def _add_states(self, values: Tensor, region: Region) -> None:
        """Take in the measures (4, L, T) of the slots that attention read."""
        found, count = self.found, values.shape[-1]
        slots = torch.arange(count)
        found.states.add(torch.full_like(slots, ALL), values)
        found.parts.add(part_labels(slots, region), values)
        found.distances.add(distance_labels(slots, region), values)
        found.ages.add(self._age[:count], values)
        found.blocks.add(torch.full_like(slots, int(region.block[0])), values)

    def _add_logits(self, hidden: Tensor, seen: Pass) -> None:
        """Compare the logits of the block's open slots with those of the reference's states ``hidden`` (1, T, E)."""
        prediction, config = seen.prediction, self.model.config
        chosen = prediction.candidate[0]
        slots = prediction.positions[0, chosen]
        given = prediction.logits[0, chosen]
        reference = self.model.logits(hidden[0, (slots - config.shift).clamp(min=0)]).float()
        others = torch.arange(reference.shape[-1], device=reference.device) != config.mask_id
        given, reference = given[:, others], reference[:, others]
        agrees = given.argmax(-1) == reference.argmax(-1)
        measures = compare(given - given.mean(-1, keepdim=True), reference - reference.mean(-1, keepdim=True))
        values, found = torch.stack((*measures, agrees.float())).cpu(), self.found
        label = torch.ones(values.shape[-1], dtype=torch.long)
        found.logits.add(label * ALL, values)
        found.logits_by_block.add(label * int(seen.region.block[0]), values)
        found.logits_by_step.add(label * int(seen.region.step[0]), values)
        self._agrees = dict(zip(slots.tolist(), agrees.tolist(), strict=True))

    def note_committed(self, row: RowEvent, prompt: int) -> None:
        """Take in which of the slots looked at the pass has committed; ``prompt`` slots come before the answer."""
        agrees = [self._agrees[at + prompt] for at in row.positions if at + prompt in self._agrees]
        if agrees:
            self.found.committed.add(torch.full((len(agrees),), ALL), torch.tensor([agrees], dtype=torch.float))


class Reference:
    """The store of a plain pass: gives back what it is handed, and measures what ``store`` holds against it."""

    def __init__(self, store: Store, reach: int) -> None:
        self.store, self.reach, self.measures = store, reach, list[Tensor]()

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Note measures (4, T) of a layer for the slots in reach."""
        batch = torch.zeros(1, dtype=torch.long, device=keys.device)
        pairs = zip(self.store.read(layer, batch, self.reach), (keys, values), strict=True)
        found = [compare(_by_slot(held), _by_slot(fresh[:, :, : self.reach])) for held, fresh in pairs]
        self.measures.append(torch.stack([*found[0], *found[1]]))
        return keys, values


def _by_slot(states: Tensor) -> Tensor:
    """States (1, K, T, D) as (T, K D), float32."""
    return states[0].transpose(0, 1).flatten(1).float()


def compare(given: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine, and length of the difference relative to that of ``reference``; (n,) each, of vectors (n, width)."""
    error = (given - reference).norm(dim=-1) / reference.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return F.cosine_similarity(given, reference, dim=-1), error


def part_labels(slots: Tensor, region: Region) -> Tensor:
    """Place in :data:`PARTS` of each slot (T,) of the one row."""
    bounds = torch.stack((region.prompt[0], region.start[0], region.end[0]))
    return torch.bucketize(slots, bounds, right=True)


def distance_labels(slots: Tensor, region: Region) -> Tensor:
    """0 in the block; ±n at a distance of 2^(n-1) to 2^n - 1 slots from it, negative to the left."""
    left, right = (region.start[0] - slots).clamp(min=0), (slots - region.end[0] + 1).clamp(min=0)
    return _doublings(right) - _doublings(left)


def _doublings(distance: Tensor) -> Tensor:
    """How often 1 doubles before it passes the distance: 0, 1, 2, 2, 3, 3, 3, 3, 4, ..."""
    return torch.where(distance > 0, (distance.clamp(min=1) + 0.5).log2().floor().long() + 1, 0)


def distance_bounds(label: int) -> list[int]:
    """Least and largest distance of a label, with its sign."""
    if label == 0:
        return [0, 0]
    low, high, sign = 2 ** (abs(label) - 1), 2 ** abs(label) - 1, 1 if label > 0 else -1
    return sorted((sign * low, sign * high))
