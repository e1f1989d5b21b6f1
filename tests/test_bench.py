"""What a bench judges by: shapes, what passes must do, the machine's ceilings, spreads. No test compares times."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benches import TOY, setting, shrink_square
from fastdllm.arena import flops
from fastdllm.bench import peaks
from fastdllm.bench import spread as spread_module
from fastdllm.bench.costs import Cost, Work, cost, products
from fastdllm.bench.passes import CACHED, Prober, works
from fastdllm.bench.peaks import Machine, Rate
from fastdllm.bench.setting import Load, Setting
from fastdllm.bench.shapes import SHAPES, parse_shape, random_model, spelled
from fastdllm.bench.spread import Spread, growth, ratio
from fastdllm.errors import OptionError
from fastdllm.kv import KVStore
from fastdllm.memory import parameters, weight_bytes
from fastdllm.models.quantized import ZERO, Int8Linear, int8_layout, round_rows
from fastdllm.models.transformer import Transformer
from toys import FAMILIES, toy_config, toy_engine


class TestShapes:
    @pytest.mark.parametrize("name", [*SHAPES, TOY, f"{TOY},kv_heads=1,family=dream", "220m:layers=2,heads=8"])
    def test_parameters_are_those_of_the_network(self, name) -> None:
        config = parse_shape(name)
        with torch.device("meta"):
            network = Transformer(config)
        assert parameters(config) == sum(parameter.numel() for parameter in network.parameters())

    @pytest.mark.parametrize(("name", "billions"), [("llada-8b", 8.02), ("dream-7b", 7.62), ("1b", 1.16)])
    def test_sizes_are_the_published_ones(self, name, billions) -> None:
        assert round(parameters(SHAPES[name]) / 1e9, 2) == billions

    def test_220m_is_the_shape_of_the_documents(self) -> None:
        config = SHAPES["220m"]
        assert spelled(config) == "d=1024,layers=12,heads=16,kv_heads=16,ffn=2816,vocab=32768,family=llada"
        assert parse_shape(spelled(config)) == config

    @pytest.mark.parametrize("family", FAMILIES)
    def test_weights_are_drawn_in_place(self, family) -> None:
        class Watch(TorchDispatchMode):
            widest = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor) and out.device.type == "cpu":
                    assert out.dtype != torch.float32, func
                    self.widest = max(self.widest, out.nbytes)
                return out

        config = toy_config(family)
        with Watch() as watch:
            network = random_model(config, torch.bfloat16, torch.device("cpu"))
        assert watch.widest == max(parameter.nbytes for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
        assert 0.015 < float(network.head.weight.float().std()) < 0.025
        assert not any(parameter.requires_grad for parameter in network.parameters())

    def test_tied_embeddings_are_drawn_once(self) -> None:
        network = random_model(toy_config(tie_embeddings=True), torch.float32, torch.device("cpu"))
        assert network.head.weight is network.embed.weight

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("3b", "shape '3b' is not one of 220m"),
            ("d=16,layers=2", "lacks heads=, ffn=, vocab="),
            ("d=16,d=2", "each once, not 'd=2'"),
            ("d=16,width=3", "not 'width=3'"),
            ("220m:family=dream", "not 'family=dream'"),
            (f"{TOY},family=gpt", "family='gpt' is not one of llada, dream"),
            ("d=x,layers=2,heads=2,ffn=24,vocab=40", "d='x' is not a whole number"),
            ("d=0,layers=2,heads=2,ffn=24,vocab=40", "d=0 must be 1 or more"),
            ("d=18,layers=2,heads=4,ffn=24,vocab=40", "d=18 does not split into heads=4"),
            (f"{TOY},kv_heads=3", "heads=2 is no multiple of kv_heads=3"),
            ("d=16,layers=2,heads=2,ffn=24,vocab=3", "vocab=3 must be 4 or more"),
        ],
    )
    def test_refuses_in_a_sentence(self, text, said) -> None:
        with pytest.raises(OptionError, match=said):
            parse_shape(text)


class TestCosts:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("groups", [4, 2, 1])
    def test_flops_are_those_that_torch_counts(self, family, groups, batch) -> None:
        engine = toy_engine(family, num_kv_heads=groups)
        asked = setting(batch_size=batch)
        passes = iter(Prober(engine, asked).start(engine))
        full, cached = works(engine.config, asked)
        for work in (full, *[cached] * CACHED, full):
            with flops.Counter(engine.model) as counter:
                next(passes)
            assert counter.total == cost(engine.config, work, itemsize=4).total_flops

    def test_products_make_up_the_flops(self) -> None:
        config, work = SHAPES["dream-7b"], Work(batch=3, rows=33, reach=768, slots=32)
        made = cost(config, work, itemsize=2).flops
        assert sum(p.flops * p.count for p in products(config, work)) == made["layers"] + made["head"]

    def test_the_220m_passes_cost_what_the_documents_say(self) -> None:
        full, cached = works(SHAPES["220m"], Setting(load=Load(shape="220m")))
        costs = [cost(SHAPES["220m"], work, itemsize=2).total_flops / 1e9 for work in (full, cached)]
        assert [round(costs[0]), round(costs[1], 1)] == [268, 13.2]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_bytes_are_those_of_weights_and_store(self, family) -> None:
        config, work = toy_config(family), Work(batch=3, rows=7, reach=20, slots=5)
        found = cost(config, work, itemsize=2)
        store = KVStore(
            config.num_layers, 3, config.num_kv_heads, 20, config.head_dim, dtype=torch.bfloat16,
            device=torch.device("cpu"),
        )  # fmt: skip
        table = config.vocab_size * config.hidden_size * 2
        assert found.bytes == {
            "weights": parameters(config) * 2 - table + 3 * 7 * config.hidden_size * 2,
            "kv_read": store.nbytes * 20 // 21,  # but for the spare slot
            "kv_written": store.nbytes * 7 // 21,
            "logits": 3 * 5 * config.vocab_size * 2,
        }
        assert found.total_bytes == sum(found.bytes.values())

    def test_tied_weights_are_read_by_the_head_and_no_store_moves_nothing(self) -> None:
        config, work = toy_config(tie_embeddings=True), Work(batch=1, rows=20, reach=20, slots=5, stores=False)
        found = cost(config, work, itemsize=4).bytes
        assert found["weights"] == parameters(config) * 4 + 20 * config.hidden_size * 4
        assert found["kv_read"] == found["kv_written"] == 0

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_weights_of_bytes_are_those_of_the_layers(self, family, tied) -> None:
        config = toy_config(family, tie_embeddings=tied)
        network = random_model(config, torch.float32, torch.device("cpu"), int8_layout())
        rounded = [layer for layer in network.modules() if isinstance(layer, Int8Linear)]
        assert len(rounded) == 7 * config.num_layers + (not tied)
        held = sum(layer.in_features * layer.out_features + layer.scale.nbytes for layer in rounded)
        others = sum(parameter.nbytes for parameter in network.parameters())
        assert weight_bytes(config, 4, quantized=True) == held + others


def test_costs_add_up_as_json() -> None:
    found = Cost(flops={"layers": 3, "head": 4}, bytes={"weights": 5}).as_json()
    assert found == {"flops": {"total": 7, "layers": 3, "head": 4}, "bytes": {"total": 5, "weights": 5}}


def machine_of(made, rate: float, reading: float, peak: float) -> Machine:
    rates = [Rate(product=p, layout="plain", seconds=p.flops / rate) for p in made]
    best = replace(made[0], rows=999)
    rates.append(Rate(product=best, layout="plain", seconds=best.flops / peak))
    return Machine(dtype="bfloat16", threads=1, rates=tuple(rates), reading=reading, reading_by="sum")


class TestCeilings:
    CONFIG = SHAPES["220m"]

    def test_the_roofline_is_the_longer_of_flops_and_bytes(self) -> None:
        _, work = works(self.CONFIG, Setting(load=Load(shape="220m")))
        need, made = cost(self.CONFIG, work, itemsize=2), products(self.CONFIG, work)
        found = peaks.ceiling(need, made, machine_of(made, 2e11, 25e9, 4e11))
        assert found.compute == pytest.approx(need.total_flops / 4e11)
        assert found.memory == pytest.approx(need.total_bytes / 25e9)
        assert (found.bound, found.roofline) == ("compute", found.compute)
        assert found.products == pytest.approx((need.flops["layers"] + need.flops["head"]) / 2e11
                                               + need.flops["attention"] / 4e11)  # fmt: skip
        slow = peaks.ceiling(need, made, machine_of(made, 2e11, 1e9, 4e11))
        assert (slow.bound, slow.roofline) == ("memory", slow.memory)
        said = found.as_json({"network": 2 * found.roofline, "whole": 4 * found.roofline})
        assert said["fraction_of_roofline"] == pytest.approx({"network": 0.5, "whole": 0.25})
        assert said["fraction_of_products"]["network"] == pytest.approx(found.products / found.roofline / 2)

    def test_the_peak_is_the_fastest_product(self) -> None:
        made = products(self.CONFIG, Work(batch=1, rows=32, reach=768, slots=32))
        assert machine_of(made, 2e11, 1e9, 4e11).peak == pytest.approx(4e11)
        assert machine_of(made, 5e11, 1e9, 4e11).peak == pytest.approx(5e11)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_every_layout_computes_the_same_product(self, dtype) -> None:
        engine, generator = Load(shape=TOY, dtype=dtype).open(), torch.Generator().manual_seed(0)
        weight, x = (torch.randn(shape, generator=generator).to(engine.dtype) for shape in ((24, 16), (5, 16)))
        wanted = x.double() @ weight.double().T
        for name, layout in peaks.layouts(engine).items():
            close = torch.allclose(layout(weight)(x).double(), wanted, atol=1e-5 if dtype == "float32" else 0.2)
            assert close, name

    def test_bytes_are_multiplied_without_their_rounding(self) -> None:
        (layout,) = peaks.layouts(Load(shape=TOY, dtype="int8").open()).values()
        rows, weight = torch.tensor([[100.0, -3.0], [7.0, 50.0]]), torch.tensor([[127.0, 2.0], [-127.0, 4.0]])
        rounded = round_rows(rows)[0].float() - ZERO
        assert layout(weight)(rows).tolist() == (rounded @ weight.T).tolist()  # weights up to 127 are whole already

    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_a_machine_is_measured_for_the_products_asked_for(self, monkeypatch, dtype) -> None:
        shrink_square(monkeypatch)
        engine, ticks = Load(shape=TOY, dtype=dtype).open(), list[None]()
        made = [p for work in works(engine.config, setting()) for p in products(engine.config, work)]
        found = peaks.measure(made, engine, 1000, lambda: ticks.append(None))
        assert len(ticks) == peaks.steps(made) == len(found.rates)
        assert found.dtype == dtype
        need = cost(engine.config, works(engine.config, setting())[0], itemsize=4)
        assert peaks.ceiling(need, made, found).roofline > 0  # it has every rate that is asked for


class TestSpread:
    def test_quartiles(self) -> None:
        spread = Spread(values=(4.0, 1.0, 3.0, 2.0, 5.0))
        assert (spread.median, spread.quartiles) == (3.0, (2.0, 4.0))
        assert spread.as_json()["values"] == [4.0, 1.0, 3.0, 2.0, 5.0]
        assert Spread(values=(7.0,)).quartiles == (7.0, 7.0)
        assert spread.scaled(10).median == 30.0

    def test_an_interval_of_a_ratio_holds_the_truth_about_as_often_as_it_says(self, monkeypatch) -> None:
        monkeypatch.setattr(spread_module, "RESAMPLES", 400)
        rng, held = random.Random(0), 0
        for _ in range(60):
            moods = [rng.uniform(0.5, 2.0) for _ in range(25)]  # of the machine, which both of a pair meet
            above = [1.8 * mood * rng.gauss(1, 0.05) for mood in moods]
            below = [mood * rng.gauss(1, 0.05) for mood in moods]
            interval = ratio(above, below).interval
            assert interval is not None
            held += interval[0] <= 1.8 <= interval[1]
        assert held >= 51  # 57 are expected, and less than 51 in one of 300 such tests

    def test_a_ratio_of_one_pair_has_no_interval(self) -> None:
        found = ratio([3.0], [2.0])
        assert (found.value, found.interval, found.pairs) == (1.5, None, 1)

    def test_the_same_draws_at_every_call(self) -> None:
        above, below = [3.0, 4.0, 5.0, 4.5], [2.0, 2.5, 2.2, 2.1]
        assert ratio(above, below) == ratio(above, below)
        assert ratio(above, below, seed=1).value == ratio(above, below).value

    @pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 1.73])
    def test_a_power_law_is_found(self, exponent) -> None:
        found = growth([1, 2, 4, 8], [3.0 * size**exponent for size in (1, 2, 4, 8)])
        assert found.exponent == pytest.approx(exponent)
        assert found.interval == pytest.approx((exponent, exponent))
        assert found.last == pytest.approx(exponent)
        assert found.at(16) == pytest.approx(3.0 * 16**exponent)

    def test_the_interval_of_an_exponent_is_students(self) -> None:
        """By hand: x = 0, 1, 2, 3 doublings, y = 0, 1, 2, 4 of cost: slope 1.3, residuals .2 .1 .4 .3 -> error .173."""
        found = growth([1, 2, 4, 8], [1, 2, 4, 16])
        assert found.exponent == pytest.approx(1.3)
        assert found.interval == pytest.approx((1.3 - 4.303 * 0.17321, 1.3 + 4.303 * 0.17321), abs=1e-4)
        assert found.last == pytest.approx(2.0)

    def test_noise_about_a_power_law_stays_within_the_interval(self) -> None:
        rng, held = random.Random(0), 0
        for _ in range(100):
            costs = [size**1.5 * rng.lognormvariate(0, 0.1) for size in (1, 2, 4, 8, 16)]
            interval = growth([1, 2, 4, 8, 16], costs).interval
            assert interval is not None
            held += interval[0] <= 1.5 <= interval[1]
        assert held >= 89

    def test_two_sizes_have_a_line_and_no_interval(self) -> None:
        assert growth([2, 4], [1.0, 2.0]).interval is None
