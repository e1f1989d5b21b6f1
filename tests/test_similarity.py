"""Similarity of keys and values: against states and cosines found another way, and where theory gives the answer."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.studies.similarity import KINDS, PARTS, Similarity, SimilarityOptions, run
from fastdllm.studies.similarity_plot import draw
from helpers import refused
from helpers import run as run_command
from states import asked, canvases, plain, with_texts
from toys import FAMILIES, prompts_of, toy_engine

LENGTHS = {"gen_length": 6, "block_length": 3}


def similar(engine: Engine, prompts: list[list[int]], **options: object) -> Similarity:
    return run(with_texts(engine), asked(prompts), SimilarityOptions(**{**LENGTHS, **options}))


def by_hand(engine: Engine, prompt: list[int], block: int, **options: object) -> Tensor:
    """Cosines (L, 2, 2, S, S) by layer, part, kind and passes, under cache none."""
    settings = {**LENGTHS, "cache": "none", "decoder": "topk:k=1", "stop_at_eos": False, **options}
    states = torch.stack([plain(engine, canvas)[0] for canvas, _ in canvases(engine, prompt, **settings)])
    every = F.cosine_similarity(states[:, None], states[None], dim=-1)  # (S, S, L, 2, T)
    parts = torch.stack([every[..., : len(prompt)].mean(-1), every[..., -block:].mean(-1)])
    return parts.permute(3, 0, 4, 1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_maps_are_the_cosines_of_the_states(family):
    engine, prompts = toy_engine(family), prompts_of([5, 9])
    result = similar(engine, prompts)
    expected = torch.stack([by_hand(engine, prompt, 3) for prompt in prompts]).mean(0)
    assert torch.allclose(result.matrices, expected.mean(0), atol=1e-5)
    near = expected.diagonal(1, dim1=-2, dim2=-1).mean(-1)
    assert torch.allclose(result.neighbours, near, atol=1e-5)
    assert float(result.matrices.min()) < 0.95
    assert (list(result.passes), list(result.problems), list(result.layers)) == ([*range(1, 7)], [2] * 6, [0, 1, 2])
    assert result.blocks == [0, 0, 0, 1, 1, 1]


def test_a_last_block_that_is_shorter():
    engine, (prompt,) = toy_engine(), prompts_of([4])
    result = similar(engine, [prompt], gen_length=5)
    expected = by_hand(engine, prompt, 2, gen_length=5)
    assert torch.allclose(result.matrices, expected.mean(0), atol=1e-5)


def test_one_layer_and_every_other_pass():
    engine, prompts = toy_engine(), prompts_of([5, 7])
    whole, single = similar(engine, prompts), [similar(engine, prompts, layer=layer).matrices for layer in range(3)]
    assert torch.allclose(whole.matrices, torch.stack(single).mean(0), atol=1e-6)
    assert not torch.allclose(single[1], single[2], atol=1e-3)
    thin = similar(engine, prompts, every=2)
    assert torch.allclose(thin.matrices, whole.matrices[..., ::2, ::2], atol=1e-6)
    assert list(thin.passes) == [1, 3, 5]
    assert thin.blocks_apart() is None
    assert whole.blocks_apart() == 3


def test_few_slots_of_a_long_prompt():
    engine, (prompt,) = toy_engine(), prompts_of([9])
    result = similar(engine, [prompt], slots=3)
    settings = {**LENGTHS, "cache": "none", "decoder": "topk:k=1", "stop_at_eos": False}
    states = torch.stack(
        [plain(engine, canvas)[0][..., [0, 4, 8], :] for canvas, _ in canvases(engine, prompt, **settings)]
    )
    expected = F.cosine_similarity(states[:, None], states[None], dim=-1).mean(-1).permute(2, 3, 0, 1).mean(0)
    assert torch.allclose(result.matrices[0], expected, atol=1e-5)


def test_with_one_layer_a_slot_changes_with_its_token_alone():
    result = similar(toy_engine(layers=1), prompts_of([5, 8]))
    prompt, last = result.matrices
    assert torch.allclose(prompt, torch.ones_like(prompt), atol=1e-6)
    before = last[:, :4, :4]  # the pass that opens the last block sees it as it always was
    assert torch.allclose(before, torch.ones_like(before), atol=1e-6)
    assert float(last[:, 0, 4:].max()) < 0.999


def test_a_dual_cache_keeps_the_prompt_within_a_block():
    matrices = similar(toy_engine(), prompts_of([6]), cache="dual").matrices
    prompt = matrices[0]
    assert torch.allclose(prompt[:, :3, :3], torch.ones(2, 3, 3, dtype=torch.double), atol=1e-6)
    assert torch.allclose(prompt[:, 3:, 3:], torch.ones(2, 3, 3, dtype=torch.double), atol=1e-6)
    assert float(prompt[:, 0, 3].max()) < 0.999


def test_a_pair_of_passes_counts_the_problems_that_had_both():
    engine, prompts = toy_engine(), prompts_of([5, 6, 7, 8], seed=3)
    decoder = "threshold:threshold=0.5"
    result = similar(engine, prompts, decoder=decoder)
    each = [by_hand(engine, prompt, 3, decoder=decoder).mean(0) for prompt in prompts]
    counts = [len(one[0, 0]) for one in each]
    assert len(set(counts)) > 1, "all problems take as many passes: nothing is tested"
    assert list(result.problems) == [sum(count > i for count in counts) for i in range(max(counts))]
    last = max(counts) - 1
    longest = torch.stack([one[:, :, 0, last] for one in each if len(one[0, 0]) > last]).mean(0)
    assert torch.allclose(result.matrices[:, :, 0, last], longest, atol=1e-5)


def test_what_is_written(tmp_path):
    result = similar(toy_engine(), prompts_of([5]))
    held = json.loads(json.dumps(result.as_json()))
    for p, part in enumerate(PARTS):
        for k, kind in enumerate(KINDS):
            assert torch.allclose(torch.tensor(held["cosine"][part][kind]).double(), result.matrices[p, k], atol=1e-6)
            assert len(held["neighbours_by_layer"][part][kind]) == 3
    assert held["settings"]["stop_at_eos"] is False
    near = result.matrices[1, 1].diagonal(1)
    cells = [near.mean(), near.min(), result.matrices[1, 1].diagonal(3).mean(), result.matrices[1, 1, 0, -1]]
    assert f"| last block, values | {' | '.join(f'{float(cell):.4f}' for cell in cells)} |" in result.markdown()
    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"layer": 3}, "layer=3 must be from 0 to 2"),
        ({"every": 6}, "every=6 leaves one pass"),
        ({"every": 0}, "every=0 must be 1 or more"),
        ({"slots": 0}, "slots=0 must be 1 or more"),
        ({"cache": "dula"}, "'dula' is not one of"),
        ({"gen_length": 600}, "longer than the 512 positions"),
    ],
)
def test_refusals(options, complaint):
    with pytest.raises(OptionError, match=complaint):
        similar(toy_engine(), prompts_of([5]), **options)


def test_no_problem_and_no_token():
    with pytest.raises(OptionError, match="no problem"):
        similar(toy_engine(), [])
    with pytest.raises(OptionError, match="has no token"):
        similar(toy_engine(), [[1], []])


def test_the_command(tmp_path):
    out = tmp_path / "out"
    command = ("report", "similarity", "--count", "2", "--gen-length", "8", "--block-length", "4", "--out", out)
    result = run_command(*command)
    assert result.exit_code == 0, result.output
    held = json.loads((out / "similarity.json").read_text())
    assert held.keys() >= {"command", "environment", "weights", "problems", "settings", "count"}
    assert (held["count"], held["problems_with_pass"]) == (2, [2] * 8)
    written = (out / "similarity.md").read_text()
    assert f"Made by `fastdllm report similarity --count 2 --out {out} --gen-length 8 --block-length 4`." in written
    assert f"{held['cosine']['prompt']['keys'][0][-1]:.4f}" in result.stdout
    assert (out / "similarity.png").exists()
    assert "layer=9 must be from 0 to 3" in refused(*command, "--layer", "9")
