"""Errors of caches: zero where theory says so, and elsewhere those of states found another way."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.caches import CACHES
from fastdllm.canvas import Canvas
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.studies.against import ALL, PARTS, STATES, distance_bounds, distance_labels, part_labels
from fastdllm.studies.drift import CacheDrift, Drift, DriftOptions, run
from fastdllm.studies.drift_plot import draw
from fastdllm.studies.means import Means, half_width
from helpers import refused
from helpers import run as run_command
from states import asked, canvases, plain, with_texts
from toys import FAMILIES, MASK, prompts_of, toy_engine

LENGTHS = {"gen_length": 8, "block_length": 4}


def drift_of(engine: Engine, cache: str, prompts: list[list[int]], **options: object) -> CacheDrift:
    (found,) = drifts(engine, (cache,), prompts, **options).caches
    return found


def drifts(engine: Engine, caches: tuple[str, ...], prompts: list[list[int]], **options: object) -> Drift:
    return run(with_texts(engine), asked(prompts), DriftOptions(**{**LENGTHS, **options, "caches": caches}))


def is_exact(found: CacheDrift) -> None:
    """Nothing differs but what rounding leaves."""
    for means in (found.found.states, found.found.parts, found.found.distances, found.found.ages, found.found.blocks):
        for label in means.labels:
            values = means.flat(label)
            assert max(values["key_error"], values["value_error"]) < 1e-5
            assert min(values["key_cosine"], values["value_cosine"]) > 1 - 1e-5
    overall = found.found.overall()
    assert (overall["logits_error"] < 1e-5, overall["agreement"]) == (True, 1.0)
    assert found.found.committed.flat(ALL) == {"agreement": 1.0}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
def test_with_one_layer_no_cache_is_wrong(cache, family):
    is_exact(drift_of(toy_engine(family, layers=1), cache, prompts_of([6, 9])))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("cache", "decoder"),
    [
        ("none", "topk:k=1"),
        ("prefix", "topk:k=4"),  # each pass opens a block
        ("dual", "topk:k=4"),
        ("dkv:refresh=1", "topk:k=1"),
        ("dllm:kp=1,kr=1", "topk:k=1"),
        ("d2cache:current_k=8,rollout_p=1", "topk:k=1"),
    ],
)
def test_what_refreshes_everything_is_not_wrong(cache, decoder, family):
    is_exact(drift_of(toy_engine(family), cache, prompts_of([6, 9]), decoder=decoder))


def compared(given: Tensor, reference: Tensor) -> list[Tensor]:
    """Cosine and relative error of vectors, as means over all of them."""
    error = (given - reference).norm(dim=-1) / reference.norm(dim=-1)
    return [F.cosine_similarity(given, reference, dim=-1).mean(), error.mean()]


def test_the_errors_are_those_of_a_prompt_that_saw_another_canvas():
    """Two slots and two passes: in the second, attention reads of the prompt what the first pass computed."""
    engine, (prompt,) = toy_engine(), prompts_of([7])
    found = drift_of(engine, "dual", [prompt], gen_length=2, block_length=2).found
    settings = {"gen_length": 2, "block_length": 2, "cache": "dual", "decoder": "topk:k=1"}
    (first, _), (second, row) = canvases(engine, prompt, **settings)
    (held, _), (fresh, _) = plain(engine, first), plain(engine, second)
    expected = torch.stack([torch.stack(compared(held[:, k, :7], fresh[:, k, :7])) for k in range(2)]).flatten()
    of_age = found.ages.flat(1)
    assert [of_age[name] for name in STATES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert of_age["key_error"] > 0.01
    assert found.ages.counts == {0: 9 + 2, 1: 7}
    of_prompt = found.parts.flat(PARTS.index("prompt"))
    assert of_prompt["value_error"] == pytest.approx(of_age["value_error"] / 2, abs=1e-6)  # the first pass is exact
    by_layer = found.states.mean(ALL)[STATES.index("key_error")]
    errors = ((held - fresh).norm(dim=-1) / fresh.norm(dim=-1))[:, 0, :7]
    assert float(by_layer[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(by_layer[1]) == pytest.approx(float(errors[1].sum()) / 18, abs=1e-3)  # and what the block's rows miss
    (slot,) = {0, 1} - {at for at, token in enumerate(second[7:]) if token != MASK}
    assert list(row.positions) == [slot]
    assert found.logits_by_step.counts == {0: 2, 1: 1}
    assert found.committed.counts == {ALL: 2}


class Held:
    """What attention reads in the second pass of a dual cache: the prompt as it was, the block's rows as they are."""

    def __init__(self, prompt: int) -> None:
        self.prompt, self.layers = prompt, list[tuple[Tensor, Tensor]]()

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):  # the first pass
            self.layers.append((keys, values))
            return keys, values
        old_keys, old_values = self.layers[layer]
        held = old_keys[:, :, : self.prompt], old_values[:, :, : self.prompt]
        return torch.cat((held[0], keys), dim=2), torch.cat((held[1], values), dim=2)


def test_the_errors_of_logits_are_those_of_what_the_cache_gives():
    engine, (prompt,) = toy_engine(), prompts_of([7])
    found = drift_of(engine, "dual", [prompt], gen_length=2, block_length=2).found
    settings = {"gen_length": 2, "block_length": 2, "decoder": "topk:k=1"}
    (first, _), (second, row) = canvases(engine, prompt, cache="dual", **settings)
    (slot,), (token,) = row.positions, row.tokens
    held, others = Held(7), [i for i in range(engine.config.vocab_size) if i != MASK]
    with torch.inference_mode():
        engine.model(torch.tensor([first]), torch.arange(9)[None], None, held)
        cached = engine.model(torch.tensor([second[7:]]), torch.tensor([[7, 8]]), None, held)
        logits = engine.model.logits(torch.stack((cached[0, slot], plain(engine, second)[1][7 + slot]))).double()
    logits = logits[:, others]
    assert others[int(logits[0].argmax())] == token
    given, reference = logits - logits.mean(-1, keepdim=True)
    cosine, error = compared(given[None], reference[None])
    measured = found.logits_by_step.flat(1)
    assert measured["logits_cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert measured["logits_error"] == pytest.approx(float(error), rel=1e-3)
    assert measured["logits_error"] > 0.01
    assert measured["agreement"] == float(int(given.argmax()) == int(reference.argmax()))


def test_caches_that_reuse_are_measurably_wrong_and_more_so_with_age():
    result = drifts(toy_engine(layers=4), ("prefix", "dual"), prompts_of([6, 9, 12, 15]))
    prefix, dual = (cache.found for cache in result.caches)
    assert min(found.states.flat(ALL)["key_error"] for found in (prefix, dual)) > 0.01
    errors = [prefix.ages.flat(age)["value_error"] for age in (1, 2, 3)]
    assert all(later > earlier for earlier, later in pairwise(errors))
    layers = dual.states.mean(ALL)[STATES.index("key_error")].tolist()
    assert layers[0] < 1e-6 < layers[1] < layers[3]
    assert dual.blocks.labels == [0, 1]


def test_agreement_of_what_was_committed():
    """Each token a cached pass commits is the best of its logits; plain logits have it as their best, or not."""
    engine, prompts = toy_engine(layers=4), prompts_of([6, 9, 12])
    agree = total = 0
    for prompt in prompts:
        for canvas, row in canvases(engine, prompt, cache="dual", decoder="topk:k=1", **LENGTHS):
            logits = engine.model.logits(plain(engine, canvas)[1])
            logits[:, MASK] = float("-inf")
            for at, token in zip(row.positions, row.tokens, strict=True):
                total += 1
                agree += int(logits[len(prompt) + at].argmax()) == token
    found = drift_of(engine, "dual", prompts).found
    assert found.committed.counts == {ALL: total}
    assert found.committed.flat(ALL)["agreement"] == pytest.approx(agree / total, abs=1e-7)
    assert 0 < agree < total, "nothing is told apart"


def test_slots_out_of_reach_are_not_read():
    engine, prompts = toy_engine(), prompts_of([6])
    found = drift_of(engine, "dual:suffix_window=0", prompts).found
    assert PARTS.index("suffix") not in found.parts.labels
    per_block = [(4, 6 + 4), (4, 6 + 8)] if found.passes == 8 else []
    assert per_block, "the answer ended early: nothing is counted"
    assert found.states.counts == {ALL: sum(passes * slots for passes, slots in per_block)}


def test_every_other_pass():
    engine, prompts = toy_engine(), prompts_of([6, 9])
    whole, half = (drift_of(engine, "dual", prompts, every=every).found for every in (1, 2))
    assert half.passes == math.ceil(whole.passes / 2)
    assert half.ages.labels == [0, 2]  # of blocks of four, the first and the third pass
    assert half.ages.flat(2) == pytest.approx(whole.ages.flat(2), abs=1e-6)


def test_labels():
    region = Canvas([[0] * 5], gen_length=12, block_length=4, mask_id=MASK, eos_ids=[]).region(0)
    moved = torch.arange(17)
    assert part_labels(moved, region).tolist() == [0] * 5 + [2] * 4 + [3] * 8
    assert distance_labels(moved, region).tolist() == [-3, -3, -2, -2, -1, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4]
    assert [distance_bounds(label) for label in (-3, -1, 0, 2)] == [[-7, -4], [-1, -1], [0, 0], [2, 3]]
    far = Canvas([[0] * 5000], gen_length=4, block_length=4, mask_id=MASK, eos_ids=[]).region(0)
    for distance in (1, 2, 3, 4, 7, 8, 1023, 1024, 4095, 4096):
        low, high = distance_bounds(int(distance_labels(torch.tensor([5000 - distance]), far)))
        assert low <= -distance <= high


def test_means():
    means, other = Means(("a", "b")), Means(("a", "b"))
    means.add(torch.tensor([0, 1, 0]), torch.tensor([[1.0, 5.0, 3.0], [0.0, 1.0, 4.0]]))
    other.add(torch.tensor([0]), torch.tensor([[5.0], [2.0]]))
    means.absorb(other)
    assert (means.labels, means.counts) == ([0, 1], {0: 3, 1: 1})
    assert (means.flat(0), means.flat(1)) == ({"a": 3.0, "b": 2.0}, {"a": 5.0, "b": 1.0})
    assert half_width([1.0]) is None
    assert half_width([1.0, 3.0]) == pytest.approx(1.96)


def test_what_is_written(tmp_path):
    result = drifts(toy_engine(), ("none", "dual", "d2cache"), prompts_of([6, 9]))
    held = json.loads(json.dumps(result.as_json()))
    assert [one["cache"] for one in held["caches"]] == ["none", "dual", "d2cache"]
    dual = held["caches"][1]
    assert dual["settings"]["cache"] == "dual:prompt_every=1,suffix_window=None"
    assert len(dual["problems"]) == 2
    assert [entry["layer"] for entry in dual["by_layer"]] == [0, 1, 2]
    assert [entry["part"] for entry in dual["by_part"]] == list(PARTS)
    mean = sum(entry["key_error"] for entry in dual["by_layer"]) / 3
    assert dual["key_error"] == pytest.approx(mean, abs=1e-6)
    whole = sum(entry["count"] * entry["key_error"] for entry in dual["by_distance"])
    assert whole / sum(entry["count"] for entry in dual["by_distance"]) == pytest.approx(mean, abs=1e-6)
    assert f"| dual | {100 * dual['key_error']:.2f}±" in result.markdown()
    assert f"| dual | {dual['key_cosine']:.4f} |" in result.markdown()
    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_refusals():
    for options, complaint in (
        ({"caches": ()}, "no cache"),
        ({"caches": ("dual", "dula")}, "'dula' is not one of"),
        ({"every": 0}, "every=0 must be"),
    ):
        with pytest.raises(OptionError, match=complaint):
            DriftOptions(**options)


def test_the_command(tmp_path):
    out = tmp_path / "out"
    lengths = ("--gen-length", "8", "--block-length", "4", "--out", out)
    result = run_command("report", "drift", "dual", "dllm:kr=2", "--count", "2", *lengths)
    assert result.exit_code == 0, result.output
    held = json.loads((out / "drift.json").read_text())
    assert held.keys() >= {"command", "environment", "weights", "problems", "problem_set", "count"}
    assert [one["settings"]["cache"] for one in held["caches"]][1] == "dllm:kp=50,kr=2,rou=0.25"
    assert "Made by `fastdllm report drift dual dllm:kr=2 --count 2" in (out / "drift.md").read_text()
    assert f"{100 * held['caches'][0]['key_error']:.2f}" in result.stdout
    assert (out / "drift.png").exists()
    assert "cache 'dula' is not one of" in refused("report", "drift", "dula", *lengths)
