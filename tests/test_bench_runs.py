"""What a bench runs: schedules and samples of them, passes and generations, settings, sizes. No test compares times."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from benches import TOY, setting
from fastdllm.bench import scaling
from fastdllm.bench.clock import Sample, Timed
from fastdllm.bench.commits import Hold, Replay, read_schedule
from fastdllm.bench.footprint import CLEAR, open_watched
from fastdllm.bench.generation import time_generations
from fastdllm.bench.passes import CACHED, Prober, time_passes
from fastdllm.bench.schedule import Pass, as_pass, check_as_planned, estimate, passes_of, sample
from fastdllm.bench.setting import Load, parse_setting
from fastdllm.bench.shapes import parse_shape
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.memory import parameters
from fastdllm.models.compiled import Compiled
from fastdllm.models.packed import PackedLinear
from fastdllm.models.quantized import Int8Linear
from helpers import run
from toys import FAMILIES, toy_config, toy_engine

BLOCKWISE = ("none", "prefix", "dual", "dual:suffix_window=4", "sliding:prompt_every=2")


def expected_commits(commits: list[int], gen_length: int, block_length: int) -> list[int]:
    """Tokens of each pass when pass n may commit ``commits[n]`` and the end of a block cuts it short."""
    made: list[int] = []
    for start in range(0, gen_length, block_length):
        left = min(block_length, gen_length - start)
        while left:
            made.append(min(left, commits[len(made) % len(commits)]))
            left -= made[-1]
    return made


def as_sample(one: Pass, seconds: float) -> Sample:
    return Sample(
        kind=one.kind, block=one.block, slots=one.slots, committed=one.committed, network=seconds / 2, whole=seconds
    )


class TestReplay:
    @pytest.mark.parametrize("cache", ["none", "dual"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_commits_the_schedule_and_fills_every_row(self, family, cache) -> None:
        engine, trace = toy_engine(family), (3, 1, 0, 5, 2)
        generation = engine.start(
            [[1, 2, 3], [4, 5, 6, 7, 8]], cache=cache, decoder=Replay(trace=trace), gen_length=21, block_length=8,
            stop_at_eos=False,
        )  # fmt: skip
        counts = [[len(row.positions) for row in event.rows] for event in generation]
        assert counts == [[n, n] for n in expected_commits([*trace], 21, 8)]
        for done in generation.completions:
            assert len(done.canvas) == 21
            assert engine.config.mask_id not in done.canvas

    @pytest.mark.parametrize(("tokens", "sums"), [(1.0, [1, 2, 3, 4]), (2.5, [2, 5, 7, 10]), (3.0, [3, 6, 9, 12])])
    def test_a_fraction_is_met_on_average(self, tokens, sums) -> None:
        decoder = Replay(tokens_per_pass=tokens)
        assert [sum(decoder.quota(nfe) for nfe in range(n + 1)) for n in range(4)] == sums

    def test_the_end_of_a_block_cuts_a_pass_short(self) -> None:
        made = passes_of(setting(gen_length=32, block_length=32, tokens_per_pass=3.0), toy_config())
        assert [one.committed for one in made] == [3] * 10 + [2]

    @pytest.mark.parametrize("tokens", [0.5, 0, -1, float("inf"), float("nan")])
    def test_refuses_less_than_a_token_a_pass(self, tokens) -> None:
        with pytest.raises(OptionError, match="tokens_per_pass="):
            Replay(tokens_per_pass=tokens)

    def test_a_trace_of_a_trained_model_is_replayed_pass_by_pass(self, model, tmp_path) -> None:
        path = tmp_path / "trace.jsonl"
        options = ("--gen-length", "24", "--block-length", "8", "--decoder", "factor:factor=3", "--trace", path)
        assert run("generate", "one two", "--model", model, *options).exit_code == 0
        schedule = read_schedule(path)
        if sum(schedule) < 24:
            pytest.fail(f"the toy answered with an end token; its trace commits {sum(schedule)} of 24 slots")
        made = passes_of(setting(gen_length=24, trace=schedule), toy_config())
        assert tuple(one.committed for one in made) == schedule

    def test_a_trace_that_revises_is_refused(self, model, tmp_path) -> None:
        path = tmp_path / "trace.jsonl"
        options = ("--gen-length", "24", "--decoder", "wino", "--trace", path)
        assert run("generate", "one two", "--model", model, *options).exit_code == 0
        with pytest.raises(OptionError, match="revises"):
            read_schedule(path)

    def test_hold_commits_nothing(self) -> None:
        events = toy_engine().start([[1, 2]], gen_length=8, block_length=4, decoder=Hold(), stop_at_eos=False)
        assert [event.rows[0].positions for event in islice(events, 6)] == [()] * 6


class TestSchedule:
    @pytest.mark.parametrize("cache", [*BLOCKWISE, "dllm"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("commits", [{"tokens_per_pass": 1.7}, {"decoder": "topk:k=2"}])
    def test_is_that_of_the_real_generation(self, family, cache, commits) -> None:
        engine, asked = toy_engine(family), setting(cache=cache, **commits)
        real = Timed(engine, asked.prompts(engine), asked.options)
        assert passes_of(asked, engine.config) == tuple(as_pass(one) for one in real)

    def test_does_not_depend_on_the_batch_alone(self) -> None:
        made = passes_of(setting(batch_size=3, tokens_per_pass=2.0), toy_config())
        assert sum(one.committed for one in made) == 29
        assert {len(one.kind.rows) for one in made} == {3}

    @pytest.mark.parametrize("cache", BLOCKWISE)
    @pytest.mark.parametrize("tokens", [1.0, 2.5])
    @pytest.mark.parametrize("wanted", [1, 3])
    def test_a_sample_is_as_planned_and_counts_every_pass(self, cache, tokens, wanted) -> None:
        engine, asked = toy_engine(), setting(cache=cache, tokens_per_pass=tokens, gen_length=60)
        whole = passes_of(asked, engine.config)
        planned = sample(whole, wanted, cache)
        options = {**asked.options, "decoder": Replay(trace=planned.commits)}
        made = [*islice(Timed(engine, asked.prompts(engine), options), len(planned.passes))]
        check_as_planned(cache, planned, made)
        kinds, sampled = Counter(one.kind for one in whole), Counter(one.kind for one in planned.passes)
        assert kinds.keys() == sampled.keys()
        if len(kinds) == 2:  # else a kind comes in one block alone, which a share of its passes stands for
            assert all(sampled[kind] >= min(wanted, count) for kind, count in kinds.items())
        second = [replace(one, whole=1.0) for one in made]
        found = estimate(whole, second, setup=0.25)
        assert found.seconds == pytest.approx(len(whole) + 0.25)
        assert sum(count for _, count, _ in found.kinds.values()) == len(whole)
        assert sum(timed for timed, _, _ in found.kinds.values()) == len(planned.passes)

    def test_a_whole_sample_is_the_whole(self) -> None:
        whole = passes_of(setting(tokens_per_pass=1.0), toy_config())
        assert sample(whole, 1000, "dual").passes == whole

    def test_extrapolates_a_cost_that_grows_with_open_slots(self) -> None:
        """Of 256 passes, 16 are made; what a pass costs depends on its rows and on the slots that it predicts."""

        def seconds(one) -> float:
            return sum(one.kind.rows) * 1e-3 + one.slots * 2e-3

        asked = setting(gen_length=256, block_length=32, tokens_per_pass=1.0)
        whole = passes_of(asked, toy_config())
        planned = sample(whole, 8, "dual")
        assert len(planned.passes) == 16
        made = [as_sample(one, seconds(one)) for one in planned.passes]
        truth = sum(seconds(one) for one in whole)
        assert estimate(whole, made, 0.0).seconds == pytest.approx(truth, rel=0.02)

    def test_a_median_withstands_a_pass_that_was_held_up(self) -> None:
        whole = passes_of(setting(gen_length=64, tokens_per_pass=1.0), toy_config())
        made = [as_sample(one, 1.0) for one in sample(whole, 5, "dual").passes]
        made[3] = replace(made[3], whole=100.0)
        assert estimate(whole, made, 0.0).seconds == len(whole)

    @pytest.mark.parametrize("cache", ["dllm", "dkv", "d2cache:current_k=6"])
    def test_a_cache_that_remembers_cannot_be_sampled(self, cache) -> None:
        with pytest.raises(OptionError, match="without --passes"):
            time_generations([(toy_engine("dream"), setting(cache=cache, tokens_per_pass=1.0, gen_length=60))], 1, 2)

    @pytest.mark.parametrize("decoder", ["threshold:threshold=0.9", "factor:factor=1.0", "wino"])
    def test_a_decoder_that_asks_the_model_cannot_be_sampled(self, decoder) -> None:
        with pytest.raises(OptionError, match="how many passes there will be is not known"):
            time_generations([(toy_engine(), setting(decoder=decoder))], 1, 2)


class TestTimed:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_full_and_cached_passes_come_in_turns(self, family) -> None:
        engine, asked = toy_engine(family), setting(batch_size=2)
        prober = Prober(engine, asked)
        rows = [one.kind.rows for one in (*prober.turn(), *prober.turn())]
        width = 8 + engine.config.shift
        assert rows == ([(40, 40)] + [(width, width)] * CACHED) * 2

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_compiled_network_makes_the_same_passes(self, family) -> None:
        engine, asked = toy_engine(family), setting()
        compiled = Engine(Compiled(engine.model, backend="eager"), name="toy")
        wanted, found = ([*islice(Prober(of, asked).start(of), 7)] for of in (engine, compiled))
        assert [as_pass(one) for one in found] == [as_pass(one) for one in wanted]

    @pytest.mark.parametrize(("changes", "kinds"), [
        ({"dtype": "int8"}, {Int8Linear}), ({"packed": True}, {PackedLinear}), ({"packed": False}, {nn.Linear}),
        ({}, {nn.Linear}),
    ])  # fmt: skip
    def test_random_weights_lie_as_those_of_a_checkpoint(self, changes, kinds) -> None:
        load = Load(shape=TOY, **{"dtype": "float32", **changes})
        engine = load.open()
        found = {type(layer) for layer in engine.model.modules() if hasattr(layer, "in_features")}
        assert found == kinds
        plain = load.plain(engine.dtype).open()
        assert {type(layer) for layer in plain.model.modules() if hasattr(layer, "in_features")} == {nn.Linear}
        assert plain.model.mixing == "sdpa"
        for name, weight in plain.model.named_parameters():
            if name.startswith(("embed", "norm")):
                assert torch.equal(weight, engine.model.get_parameter(name))

    def test_rounds_are_gathered_for_every_subject_in_turns(self) -> None:
        engine, ticks = toy_engine(), list[None]()
        subjects = [(engine, setting()), (engine, setting(prompt_length=3))]
        first, second = time_passes(subjects, 3, lambda: ticks.append(None))
        assert len(ticks) == 6
        assert [len(one.full.network.values) for one in (first, second)] == [3, 3]
        assert [len(one.cached.network.values) for one in (first, second)] == [3 * CACHED] * 2
        assert (first.full.work.rows, second.full.work.rows) == (40, 32)

    def test_a_pass_contains_its_network(self) -> None:
        engine = toy_engine()
        timed = Timed(engine, setting().prompts(engine), setting(tokens_per_pass=2.0).options)
        made = [*timed]
        assert all(0 < one.network < one.whole for one in made)
        assert timed.setup > 0
        assert sum(one.committed for one in made) == 29

    def test_an_end_token_ends_nothing(self) -> None:
        engine = toy_engine(eos_ids=tuple(range(57)))
        asked = setting(decoder="topk:k=1")
        assert len([*Timed(engine, asked.prompts(engine), asked.options)]) == 29

    def test_a_run_counts_every_slot_of_the_batch(self) -> None:
        (made,) = time_generations([(toy_engine(), setting(batch_size=2, tokens_per_pass=2.0))], 2, None)
        assert (made.tokens, made.passes, made.timed, made.extrapolated) == (58, 15, 15, False)
        assert len(made.seconds.values) == 2
        assert sum(kind.count for kind in made.kinds) == 15
        (sampled,) = time_generations([(toy_engine(), setting(batch_size=2, tokens_per_pass=1.0))], 2, 2)
        assert (sampled.passes, sampled.extrapolated) == (29, True)
        assert sampled.timed < 29
        assert sampled.as_json()["extrapolated"] is True


@pytest.mark.skipif(not CLEAR.exists(), reason="the system does not tell a process its peak")
class TestFootprint:
    def test_packing_keeps_no_second_copy_of_the_weights(self) -> None:
        shape = "d=512,layers=7,heads=8,ffn=1408,vocab=512"
        engine, found = open_watched(setting(load=Load(shape=shape, dtype="float32", packed=True)))
        assert found.weights == parameters(engine.config) * 4
        assert 0.95 * found.weights < found.loaded < 1.15 * found.weights
        assert found.loaded <= found.loading < 1.25 * found.weights
        assert found.generating < 1.15 * (found.weights + found.kv_store)
        assert found.over == found.generating / (found.weights + found.kv_store) - 1

    def test_what_was_held_before_does_not_count(self) -> None:
        held = torch.ones(2**24)
        _, found = open_watched(setting())
        assert found.loading < held.nbytes / 2


class TestSettings:
    USUAL = setting(decoder="topk:k=1")

    def test_semicolons_separate_what_a_setting_changes(self) -> None:
        made = parse_setting("cache=sliding:prompt_every=4,recent_blocks=2; dtype=bfloat16;batch_size=3", self.USUAL)
        assert (made.cache, made.load.dtype, made.batch_size) == ("sliding:prompt_every=4,recent_blocks=2",
                                                                  "bfloat16", 3)  # fmt: skip
        assert made.decoder == "topk:k=1"

    def test_how_a_model_is_loaded_can_differ(self) -> None:
        made = parse_setting("packed=false;compile=true;attention=matmul", self.USUAL).load
        assert (made.packed, made.compile, made.attention) == (False, True, "matmul")
        assert parse_setting("packed=auto", self.USUAL).load == self.USUAL.load

    def test_a_pair_may_stand_first(self) -> None:
        made = parse_setting("none/topk:k=2,alg=entropy;threads=2", self.USUAL)
        assert (made.cache, made.decoder, made.threads) == ("none", "topk:k=2,alg=entropy", 2)

    def test_what_a_pass_commits_is_replaced_whole(self) -> None:
        made = parse_setting("tokens_per_pass=3", self.USUAL)
        assert (made.decoder, made.tokens_per_pass) == (None, 3.0)
        assert parse_setting("decoder=topk:k=2", made).tokens_per_pass is None

    def test_a_model_takes_the_place_of_a_shape(self) -> None:
        made = parse_setting("model=tiny", self.USUAL)
        assert (made.load.model, made.load.shape) == ("tiny", None)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("dual", "not 'dual'"),
            ("cache=dual;cache=none", "each once"),
            ("cache=dual,dtype=bfloat16", "setting 'cache=dual,dtype=bfloat16': cache 'dual,dtype=bfloat16'"),
            ("packed=yes", "packed='yes' is not of its kind"),
            ("batch_size=two", "batch_size='two' is not of its kind"),
            ("batch_size=0", "batch_size=0 must be 1 or more"),
            ("decoder=topk:k=1;tokens_per_pass=2", "decoder and tokens_per_pass cannot be given together"),
            ("cache=dual;wings=2", "not 'wings=2'"),
            ("", "not ''"),
        ],
    )
    def test_refuses_in_a_sentence(self, text, said) -> None:
        with pytest.raises(OptionError, match=said):
            parse_setting(text, self.USUAL)

    def test_a_canvas_longer_than_the_model_is_refused(self) -> None:
        with pytest.raises(OptionError, match="longer than the 512 positions of d=16"):
            setting(prompt_length=500).check(toy_config())


class TestScaling:
    def test_one_size_at_a_time(self) -> None:
        usual = setting(load=Load(shape="220m"), prompt_length=64, gen_length=32, block_length=8)
        axes = scaling.sweep(usual, 10**6)
        assert {name: [size for size, _ in points] for name, points in axes.items()} == {
            "prompt": [16, 32, 64, 128], "answer": [8, 16, 32, 64], "block": [2, 4, 8, 16], "batch": [1, 2, 4],
            "model": [26417408, 72102400, 221275136],
        }  # fmt: skip
        for name, points in axes.items():
            assert [made for _, made in points].count(usual) == 1, name
            for size, made in points:
                if name == "model":
                    assert parameters(parse_shape(str(made.load.shape))) == size
                else:
                    assert replace(made, **{scaling.LENGTHS[name]: getattr(usual, scaling.LENGTHS[name])}) == usual

    def test_a_model_is_asked_for_no_longer_canvas_than_it_has(self) -> None:
        axes = scaling.sweep(setting(prompt_length=64, gen_length=64, load=Load(model="tiny")), 150)
        assert [size for size, _ in axes["prompt"]] == [16, 32, 64]
        assert "model" not in axes
