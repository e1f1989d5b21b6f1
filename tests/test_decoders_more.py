"""Decoders of the papers after Fast-dLLM, against their definitions and against one another."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdllm import Completion, OptionError, frequencies
from fastdllm.canvas import Delta
from fastdllm.config import describe, parse_decoder
from fastdllm.decoders import DECODERS, Klass, Threshold, TopK, Turn
from fastdllm.density import certainty_density
from fastdllm.state import RowState
from test_decoders import chosen, prediction_of
from toys import FAMILIES, VOCAB, prompts_of, toy_engine, turn_of

RAGGED = prompts_of([5, 17, 9], seed=4)


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> str:
    """Frequencies of a corpus that has every token of the toy vocabulary as often as any other."""
    return written(tmp_path_factory.mktemp("even") / "f.json", dict.fromkeys(range(VOCAB), 7))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> str:
    return written(tmp_path_factory.mktemp("uneven") / "f.json", {i: 1 + i * i for i in range(VOCAB - 9)})


def written(path: Path, counts: dict[int, int], total: int | None = None) -> str:
    path.write_text(json.dumps({"num_token": total or sum(counts.values()), "p_baseline_dict": counts}))
    return str(path)


def canvases(family: str, decoder: object, prompts: list[list[int]] = RAGGED, **options: object) -> list[object]:
    """What a toy writes, pass for pass: answers and passes of each prompt."""
    given: dict[str, object] = {"gen_length": 24, "block_length": 10, "cache": "none", "stop_at_eos": False}
    completions: list[Completion] = toy_engine(family).generate(prompts, decoder=decoder, **(given | options))
    return [(c.canvas, c.nfe) for c in completions]


def watch(decoder: str, passes: list[Tensor], first: int = 0) -> list[Delta]:
    """Decisions of successive passes over one block whose slots all stay open, from logits (1, M, V) of each."""
    notes, rule = RowState(), parse_decoder(decoder)
    turns = [replace(turn_of(prediction_of(logits), step=first + i), notes=notes) for i, logits in enumerate(passes)]
    return [rule.step(turn) for turn in turns]


def committed(delta: Delta) -> list[int]:
    return delta.commit[0].nonzero()[:, 0].tolist()


# --- certainty


@pytest.mark.parametrize("sigma", [0.3, 2.0, 50.0])
def test_density_is_its_definition(sigma):
    decoded = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    count = decoded.shape[1]
    weight = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(2 * count)]
    norm = weight[0] + 2 * sum(weight[1:])
    for row, found in zip(decoded.tolist(), certainty_density(decoded, sigma).tolist(), strict=True):
        around = [1] * count + row + row[-1:] * count
        expected = [sum(d * weight[abs(i + count - j)] for j, d in enumerate(around)) / norm for i in range(count)]
        assert found == pytest.approx(expected, abs=1e-14)


def test_density_is_never_negative_and_orders_what_is_far_from_all_decoded_slots():
    decoded = torch.zeros(1, 256, dtype=torch.bool)
    density = certainty_density(decoded, 10.0)[0]
    assert density.min() >= 0
    assert (density.diff() < 0).all()  # where an FFT has noise of either sign
    assert certainty_density(~decoded, 10.0).amax() == pytest.approx(1.0)


def test_certainty_prefers_what_lies_near_the_prompt():
    assert chosen("certainty:sigma=1", [0.5, 0.6, 0.9]) == [0]
    assert chosen("certainty:sigma=1,k=2", [0.5, 0.6, 0.9]) == [0, 1]
    assert chosen("certainty:sigma=inf,k=2", [0.5, 0.6, 0.9]) == [1, 2]
    near = certainty_density(torch.zeros(1, 3), 1.0)[0, 0].item()
    assert chosen(f"certainty:sigma=1,threshold={0.5 * near - 1e-6}", [0.5, 0.6, 0.9]) == [0]
    assert chosen("certainty:sigma=1,threshold=0.03", [0.5, 0.6, 0.9]) == [0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_infinite_sigma_is_topk(family):
    assert canvases(family, "certainty:sigma=inf,k=2") == canvases(family, "topk:k=2")


# --- entropy_bound


def logits_of_entropies(entropies: list[float]) -> Tensor:
    """Logits (1, M, 64) whose soft-max has about these entropies: one token and 63 equally unlikely others."""
    rows = []
    for wanted in entropies:
        low, high = 0.0, 63 / 64
        for _ in range(60):
            rest = (low + high) / 2
            entropy = -(1 - rest) * math.log(1 - rest) - rest * math.log(rest / 63)
            low, high = (rest, high) if entropy < wanted else (low, rest)
        rows.append([math.log(1 - low)] + [math.log(low / 63)] * 63)
    return torch.tensor([rows])


@pytest.mark.parametrize(
    ("gamma", "alg", "expected"),
    [
        # 0.1, 0.2, 0.3 and 1.5: all but the largest of the first n sum to 0, 0.1, 0.3 and 0.6.
        (0.05, "entropy", [1]),
        (0.15, "entropy", [1, 3]),
        (0.35, "entropy", [0, 1, 3]),
        (0.65, "entropy", [0, 1, 2, 3]),
        (0, "entropy", [1]),
        (math.inf, "entropy", [0, 1, 2, 3]),
    ],
)
def test_entropy_bound(gamma, alg, expected):
    (delta,) = watch(f"entropy_bound:gamma={gamma},alg={alg}", [logits_of_entropies([0.3, 0.1, 1.5, 0.2])])
    assert committed(delta) == expected


def test_the_largest_entropy_need_not_be_the_last():
    """By confidence the slots come with entropies 1.1, 0.1 and 0.2; what is left of 1.4 without 1.1 is 0.3."""
    wide = torch.log(torch.cat((torch.tensor([0.8]), torch.full((255,), 0.2 / 255))))
    pair = torch.log(torch.cat((torch.tensor([0.7, 0.3 - 1e-9]), torch.full((254,), 1e-9 / 254))))
    even = torch.log(torch.cat((torch.tensor([0.6, 0.4 - 1e-9]), torch.full((254,), 1e-9 / 254))))
    logits = torch.stack([even, wide, pair])[None]
    entropies = [float(-(row.exp() * row).sum()) for row in (wide, pair, even)]
    assert entropies[0] > entropies[2] > entropies[1]
    bounds = [0.0, entropies[1], entropies[1] + entropies[2]]
    for count, bound in enumerate(bounds, start=1):
        (delta,) = watch(f"entropy_bound:alg=maskgit_plus,gamma={bound + 1e-4}", [logits])
        assert committed(delta) == sorted([1, 2, 0][:count])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_entropy_to_spend_is_topk(family):
    """As long as no entropy is 0, which these unsure models see to."""
    assert canvases(family, "entropy_bound:gamma=0") == canvases(family, "topk:k=1,alg=entropy")


# --- klass


@pytest.mark.parametrize(("history", "seed"), [(1, 0), (2, 1), (3, 2)])
def test_klass_is_its_definition(history, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, passes = torch.randn(1, 8, 12, generator=generator) * 3, []
    for i in range(9):
        passes.append(logits)
        logits = logits + torch.randn(1, 8, 12, generator=generator) * (0.6 if i % 4 == 0 else 0.05)
    found = watch(f"klass:threshold=0.5,kl_threshold=0.02,history={history}", passes)
    changes: list[Tensor] = []
    for i, delta in enumerate(found):
        p = passes[i].double().softmax(-1)[0]
        q = passes[i - 1].double().softmax(-1)[0] if i else torch.zeros_like(p)
        changes.append((p * ((p + 1e-12) / (q + 1e-12)).log()).sum(-1))
        last = torch.stack([torch.zeros(8), *changes][-history:] if i else [changes[0]])
        ready = (last < 0.02).all(0) & (p.amax(-1) >= 0.5)
        assert committed(delta) == (ready.nonzero()[:, 0].tolist() or [int(p.amax(-1).argmax())]), i
    assert {len(committed(delta)) for delta in found[:history]} == {1}
    assert max(len(committed(delta)) for delta in found) > 1


def test_klass_counts_passes_that_brought_a_row_up_to_date():
    """A stale distribution agrees with itself: without a fresh pass a slot's history stays as it was."""
    logits, notes = torch.eye(4)[None] * 9, RowState()
    rule, everything = parse_decoder("klass:threshold=0.5,history=1"), {0, 1, 2, 3}
    passes = [(everything, {0, 2}), (everything, {0, 2}), ({0, 2}, {0, 2}), (everything, everything)]
    passes += [(everything, set()), (everything, everything)]
    found = []
    for step, (known, fresh) in enumerate(passes):
        mask, up_to_date = (torch.tensor([[at in some for at in range(4)]]) for some in (known, fresh))
        prediction = prediction_of(logits)
        slots = replace(prediction.slots, known=mask, fresh=up_to_date, candidate=mask)
        turn = replace(turn_of(replace(prediction, slots=slots), step=step), notes=notes)
        found.append(committed(rule.step(turn)))
    assert found == [[0], [0, 2], [0, 2], [0, 2], [0, 2], [0, 1, 2, 3]]


class Warm(Threshold):
    """One token in the pass that opens a block, the threshold rule after it."""

    def step(self, turn: Turn) -> Delta:
        first, after = TopK().step(turn), super().step(turn)
        return replace(after, commit=torch.where(turn.region.step[:, None] == 0, first.commit, after.commit))


@pytest.mark.parametrize("family", FAMILIES)
def test_klass_content_with_any_change_is_threshold_from_the_second_pass_of_a_block(family):
    """In the first there is nothing to compare with, and no slot counts as settled."""
    klass = Klass(threshold=0.4, kl_threshold=math.inf, history=1, scope="block")
    assert canvases(family, klass) == canvases(family, Warm(threshold=0.4))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("never", ["klass:kl_threshold=1e-30", "klass:threshold=1.01,kl_threshold=9"])
def test_klass_without_a_ready_slot_is_one_token_per_pass(family, never):
    assert canvases(family, never) == canvases(family, "topk:k=1")


# --- pc


def test_pc_is_its_definition(tmp_path):
    counts = {0: 60, 1: 30, 3: 10}
    file = written(tmp_path / "f.json", counts)
    logits = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(3)) * 2
    p, tokens = logits[0].softmax(-1).max(-1)
    for decay, clip in ((0.0, math.inf), (0.25, 10.0), (1.0, 0.5), (0.1, 0.05)):
        scores = [
            math.exp(-decay * i) * min(clip, -float(p[i]) * math.log(counts.get(int(tokens[i]), 1) / 100 + 1e-9))
            for i in range(6)
        ]
        best = sorted(range(6), key=lambda i: -scores[i])[:2]
        (delta,) = watch(f"pc:k=2,decay={decay},clip={clip},frequencies={file}", [logits])
        assert committed(delta) == sorted(best)


@pytest.mark.parametrize("family", FAMILIES)
def test_pc_with_equal_frequencies_and_no_decay_is_topk(family, even):
    assert canvases(family, f"pc:k=2,decay=0,clip=inf,frequencies={even}") == canvases(family, "topk:k=2")


def test_strong_decay_is_left_to_right(even):
    engine = toy_engine()
    spec = f"pc:decay=60,frequencies={even}"
    events = engine.stream(RAGGED, gen_length=12, block_length=6, decoder=spec, stop_at_eos=False)
    assert [row.positions for event in events for row in event.rows if row.index == 1] == [(i,) for i in range(12)]


def test_frequencies_are_counted_over_their_sum():
    built = frequencies.build(["abca", "b"], lambda text: [ord(letter) - 97 for letter in text])
    assert built == {"num_token": 5, "p_baseline_dict": {"0": 2, "1": 2, "2": 1}}


def test_unseen_tokens_count_once(tmp_path):
    file = written(tmp_path / "f.json", {1: 4}, total=5)
    table = frequencies.load(file, 3, torch.device("cpu"))
    torch.testing.assert_close(table, torch.tensor([0.2, 0.8, 0.2]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "holds no frequencies"),
        ("[]", "holds no frequencies"),
        ('{"num_token": 3}', "holds no frequencies"),
        ('{"num_token": 3, "p_baseline_dict": {"a": 3}}', "holds no frequencies"),
        ('{"num_token": [3], "p_baseline_dict": {"1": 3}}', "holds no frequencies"),
        ('{"num_token": 3, "p_baseline_dict": {}}', "holds counts that cannot be"),
        ('{"num_token": 3, "p_baseline_dict": {"1": 4}}', "holds counts that cannot be"),
        ('{"num_token": 3, "p_baseline_dict": {"-1": 3}}', "holds counts that cannot be"),
        ('{"num_token": 0, "p_baseline_dict": {"1": 0}}', "holds counts that cannot be"),
    ],
)
def test_what_holds_no_frequencies_is_refused(tmp_path, content, message):
    file = tmp_path / "f.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(OptionError) as refused:
        parse_decoder(f"pc:frequencies={file}")
    expected = f"frequencies={str(file)!r} {message}; make it with fastdllm frequencies --model MODEL --out FILE"
    assert str(refused.value).startswith(expected)


def test_frequencies_of_another_vocabulary_are_refused(tmp_path):
    file = written(tmp_path / "f.json", {VOCAB: 4})
    with pytest.raises(OptionError, match="counts the id 60, but the model's ids run from 0 to 59"):
        toy_engine().start(RAGGED, decoder=f"pc:frequencies={file}")


def test_frequencies_that_were_written_anew_are_read_anew(tmp_path):
    file = tmp_path / "f.json"
    for count in (3, 4):
        written(file, {1: count})
        os.utime(file, ns=(count, count))
        assert frequencies.read(str(file)) == (count, {1: count})


def test_the_embedded_model_has_frequencies():
    total, counts = frequencies.read("tiny")
    assert sum(counts.values()) == total > 10_000


# --- credit


def test_credit_is_its_definition():
    alpha, beta, gamma, threshold = 4.0, 0.9, 0.3, 0.8
    generator = torch.Generator().manual_seed(1)
    passes = [torch.randn(1, 5, 7, generator=generator) for _ in range(6)]
    found = watch(f"credit:threshold={threshold},alpha={alpha},beta={beta},gamma={gamma}", passes)
    credits = torch.zeros(5, 7, dtype=torch.float64)
    for logits, delta in zip(passes, found, strict=True):
        p, token = logits[0].double().softmax(-1).max(-1)
        credits *= beta
        for slot in range(5):
            credits[slot, token[slot]] += p[slot] ** gamma
        fused, tokens = (logits[0].double() + alpha * (1 + credits).log()).softmax(-1).max(-1)
        assert delta.tokens[0].tolist() == tokens.tolist()
        torch.testing.assert_close(delta.confidence[0].double(), fused, atol=1e-5, rtol=0)
        assert set(committed(delta)) == {*(fused >= threshold).nonzero()[:, 0].tolist(), int(fused.argmax())}
    assert any((d.tokens[0] != x[0].argmax(-1)).any() for d, x in zip(found, passes, strict=True))


def test_credit_starts_anew_with_each_block():
    generator, notes = torch.Generator().manual_seed(2), RowState()
    rule = parse_decoder("credit:alpha=3")
    turns = [
        replace(turn_of(prediction_of(torch.randn(1, 4, 6, generator=generator)), step=i), notes=notes)
        for i in (0, 1, 0)
    ]
    later = [rule.step(turn) for turn in turns][-1]
    alone = rule.step(replace(turns[-1], notes=RowState()))
    assert torch.equal(later.confidence, alone.confidence)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_credit_is_threshold(family, temperature):
    options = {"temperature": temperature, "seed": 3}
    plain = canvases(family, "threshold:threshold=0.4", **options)
    assert canvases(family, "credit:alpha=0,threshold=0.4", **options) == plain
    assert canvases(family, "credit:alpha=2,threshold=0.4", **options) != plain


# --- hierarchy


def at_positions(decoder: str, slots: dict[int, float], size: int) -> list[int]:
    """Positions that a decoder commits of open slots ``slots`` (position → confidence)."""
    positions, p = torch.tensor([list(slots)]), torch.tensor([list(slots.values())])
    prediction = prediction_of(torch.stack([p.log(), (1 - p).log()], dim=-1), p)
    prediction = replace(prediction, slots=replace(prediction.slots, positions=positions))
    delta = parse_decoder(decoder).step(turn_of(prediction, size=size))
    return positions[delta.commit].tolist()


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ({0: 0.5, 1: 0.6, 2: 0.55, 3: 0.1}, [1]),
        ({0: 0.5, 1: 0.6, 3: 0.45, 4: 0.41, 6: 0.3}, [1, 3]),
        ({0: 0.95, 1: 0.9, 2: 0.5, 4: 0.5, 5: 0.6}, [0, 1, 5]),
        ({0: 0.1, 1: 0.2, 3: 0.3, 7: 0.3}, [3]),
        ({1: 0.5, 2: 0.5, 4: 0.5, 5: 0.5}, [1, 4]),  # ties: the leftmost of each run
        ({1: 0.4, 3: 0.5}, [3]),  # surer than the low threshold, not just as sure
    ],
)
def test_hierarchy(slots, expected):
    assert at_positions("hierarchy", slots, size=8) == expected


def test_a_run_goes_on_over_slots_that_were_not_predicted():
    prediction = prediction_of(torch.zeros(1, 5, 2), torch.tensor([[0.5, 0.9, 0.6, 0.7, 0.45]]))
    candidate = torch.tensor([[True, False, True, False, True]])
    prediction = replace(prediction, slots=replace(prediction.slots, known=candidate, candidate=candidate))
    assert committed(parse_decoder("hierarchy").step(turn_of(prediction))) == [2]


@pytest.mark.parametrize("family", FAMILIES)
def test_hierarchy_with_one_threshold_is_threshold(family):
    """A slot surer than the low threshold is then one that the threshold commits anyway."""
    plain = canvases(family, "threshold:threshold=0.7")
    assert canvases(family, "hierarchy:threshold=0.7,low_threshold=0.7") == plain
    assert canvases(family, "hierarchy:threshold=0.7,low_threshold=0.2") != plain


# --- slowfast


def confidences(*passes: list[float]) -> list[Tensor]:
    return [torch.tensor([[[math.log(p), math.log(1 - p)] for p in row]]) for row in passes]


def test_slowfast_seeks_a_length_then_fills_it():
    early, late = [0.55, 0.6, 0.7, 0.51, 0.95, 0.51], [0.55, 0.6, 0.7, 0.51, 0.51, 0.95]
    # Estimates: 3, 3, so the cycle is [0, 3), and the third pass commits within it though others are surer.
    spec = "slowfast:threshold=0.9,low_threshold=0.65"
    found = watch(spec, confidences([0.55, 0.6, 0.7, 0.51, 0.51, 0.51], [0.55, 0.6, 0.7, 0.51, 0.51, 0.51], early))
    assert [committed(delta) for delta in found] == [[2], [2], [2]]
    # Estimates 5 and 6 deviate by a half, which is less than 1; by less than 0.5 they do not.
    found = watch(spec, confidences(early, late, early))
    assert [committed(delta) for delta in found] == [[4], [5], [4]]
    strict = f"{spec},deviation=0.5,slow_steps=3"
    # Never settled: the mean of 5 and 3 bounds the fast phase.
    found = watch(strict, confidences(late, early, [0.55, 0.6, 0.7, 0.51, 0.52, 0.51], early, early))
    assert [committed(delta) for delta in found] == [[5], [4], [2], [2], [2]]


def test_slowfast_takes_the_first_open_slot_when_it_is_unsure_of_all():
    found = watch("slowfast:low_threshold=0.99", confidences(*[[0.6, 0.7, 0.8]] * 3))
    assert [committed(delta) for delta in found] == [[2], [2], [0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_slowfast_that_reaches_to_the_last_open_slot_is_threshold(family):
    plain = canvases(family, "threshold:threshold=0.8")
    assert canvases(family, "slowfast:threshold=0.8,low_threshold=0") == plain
    assert canvases(family, "slowfast:threshold=0.8,low_threshold=0.99,slow_steps=1") != plain


# --- all of them

EVERY = (
    "certainty:sigma=3.0,k=2", "certainty:sigma=5.0,threshold=0.3", "entropy_bound:gamma=1.0",
    "entropy_bound:gamma=2.0,alg=topk_margin", "klass:threshold=0.3,kl_threshold=0.5,history=1",
    "klass:threshold=0.2,kl_threshold=5.0,history=2", "pc:k=2,decay=0.1,clip=2.0", "credit:threshold=0.4",
    "hierarchy:threshold=0.7,low_threshold=0.2", "slowfast:threshold=0.4,low_threshold=0.3",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", EVERY)
@pytest.mark.parametrize(
    ("cache", "temperature", "stop"), [("none", 0.0, False), ("dual", 0.8, True), ("prefix", 0.0, True)]
)
def test_a_row_alone_is_the_row_in_a_ragged_batch(family, decoder, cache, temperature, stop, uneven):
    spec = f"{decoder},frequencies={uneven}" if decoder.startswith("pc") else decoder
    options = {"cache": cache, "temperature": temperature, "stop_at_eos": stop}
    together = canvases(family, spec, seed=[1, 2, 3], **options)
    alone = [canvases(family, spec, [p], seed=i + 1, **options)[0] for i, p in enumerate(RAGGED)]
    assert together == alone


@pytest.mark.parametrize("decoder", EVERY)
def test_an_answer_is_filled_left_of_its_end_and_each_slot_written_once(decoder, uneven):
    spec = f"{decoder},frequencies={uneven}" if decoder.startswith("pc") else decoder
    seen: set[tuple[int, int]] = set()
    for event in toy_engine(seed=2).stream(RAGGED, gen_length=24, block_length=10, decoder=spec):
        for row in event.rows:
            assert row.positions
            written = {(row.index, at) for at in row.positions}
            assert not written & seen
            seen |= written


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("certainty:sigma=0", "sigma=0.0 must be above 0."),
        ("certainty:sigma=nan", "sigma=nan must be above 0."),
        ("certainty:k=0", "k=0 must be from 1 to 1048576."),
        ("certainty:threshold=-1", "threshold=-1.0 must be 0 or more, or none."),
        ("entropy_bound:gamma=-0.1", "gamma=-0.1 must be 0 or more."),
        ("entropy_bound:alg=random", "alg='random' is not one of entropy, maskgit_plus, topk_margin."),
        ("klass:threshold=nan", "threshold=nan must be 0 or more."),
        ("klass:kl_threshold=0", "kl_threshold=0.0 must be above 0."),
        ("klass:history=0", "history=0 must be from 1 to 1048576."),
        ("pc", "frequencies='' must be a file; make one with fastdllm frequencies --model MODEL --out FILE TEXTFILE."),
        ("pc:k=0,frequencies=tiny", "k=0 must be from 1 to 1048576."),
        ("pc:decay=-1,frequencies=tiny", "decay=-1.0 must be 0 or more."),
        ("pc:clip=0,frequencies=tiny", "clip=0.0 must be above 0."),
        ("credit:alpha=-1", "alpha=-1.0 must be 0 or more."),
        ("credit:beta=1.1", "beta=1.1 must be from 0 to 1."),
        ("credit:gamma=nan", "gamma=nan must be 0 or more."),
        ("hierarchy:low_threshold=-1", "low_threshold=-1.0 must be 0 or more."),
        ("slowfast:slow_steps=0", "slow_steps=0 must be from 1 to 1048576."),
        ("slowfast:deviation=-1", "deviation=-1.0 must be 0 or more."),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(OptionError) as refused:
        parse_decoder(spec)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_is_described_as_it_parses_and_names_its_paper(name):
    rule = parse_decoder("pc:frequencies=tiny" if name == "pc" else name)
    assert parse_decoder(describe(rule)) == rule
    assert rule.source
