"""Two ways to compute attention agree, and the faster one is asked for once per shape, where that is worth it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastdllm
from fastdllm.arena.flops import Counter
from fastdllm.errors import OptionError
from fastdllm.models import attention
from fastdllm.models.attention import attend, matmul, sdpa, weights
from fastdllm.models.race import ROUNDS
from toys import FAMILIES, prompts_of, toy_engine, toy_model

BITS = {torch.float32: 2**-18, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before is not known here."""
    monkeypatch.setattr(attention, "_measured", {})


def tensors(batch, heads, groups, rows, length, width=16, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, rows, heads, width, generator=draw).to(dtype).transpose(1, 2)
    held = torch.randn(2, batch, groups, length + 1, width, generator=draw).to(dtype)
    return q, held[0, :, :, :length], held[1, :, :, :length]


def random_mask(batch, rows, length, seed):
    draw = torch.Generator().manual_seed(seed)
    visible = torch.rand(batch, 1, rows, length, generator=draw) < 0.5
    visible[..., 0] = True  # a row that sees nothing has no answer
    return visible


@given(
    st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.integers(1, 9), st.integers(1, 40),
    st.sampled_from(list(BITS)), st.sampled_from(["none", "columns", "rows"]), st.integers(0, 99),
)  # fmt: skip
def test_products_give_what_the_fused_kernel_gives(batch, heads, rows, length, dtype, masked, seed):
    q, k, v = tensors(batch, *heads, rows, length, dtype=dtype, seed=seed)
    visible = None if masked == "none" else random_mask(batch, rows if masked == "rows" else 1, length, seed)
    exact = sdpa(q.double(), k.double(), v.double(), visible)
    for mix in (sdpa, matmul):
        found = mix(q, k, v, visible)
        assert found.dtype == dtype
        assert found.shape == q.shape
        torch.testing.assert_close(found.double(), exact, atol=BITS[dtype], rtol=BITS[dtype])


def test_softmax_of_half_types_is_summed_in_float32():
    """1 + 4095 equal scores: summed in bfloat16, the sum would stop growing at 256."""
    q, k = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 16, dtype=torch.bfloat16)
    assert torch.equal(weights(q, k, None), torch.full((1, 1, 1, 1, 4096), 2**-12, dtype=torch.bfloat16))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "dual", "d2cache", "dllm"])
def test_answers_do_not_depend_on_how_attention_is_computed(family, cache):
    engine, answers = toy_engine(family), []
    for mixing in ("sdpa", "matmul", "auto"):
        engine.model.mixing = mixing
        found = engine.generate(
            prompts_of([9, 3, 14]), gen_length=16, block_length=8, cache=cache, decoder="threshold:threshold=0.5"
        )
        answers.append([(c.canvas, c.nfe) for c in found])
    assert answers[0] == answers[1] == answers[2]


def timed(monkeypatch: pytest.MonkeyPatch, slow: str) -> list[str]:
    """Calls of either implementation, of which ``slow`` takes longer on a clock that these calls alone move."""
    calls, now = list[str](), [0.0]

    def runs(name):
        own = attention.MIXES[name]

        def mix(*given):
            calls.append(name)
            now[0] += 2.0 if name == slow else 1.0
            return own(*given)

        return mix

    mixes = {name: runs(name) for name in ("sdpa", "matmul")}
    for name, mix in mixes.items():
        monkeypatch.setitem(attention.MIXES, name, mix)
    monkeypatch.setattr(attention, "sdpa", mixes["sdpa"])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return calls


@pytest.mark.parametrize(("slow", "fast"), [("sdpa", "matmul"), ("matmul", "sdpa")])
@torch.inference_mode()
def test_a_shape_is_measured_once(monkeypatch, slow, fast):
    calls = timed(monkeypatch, slow)
    q, k, v = tensors(1, 8, 8, 32, 600, width=64)
    attend(q, k, v, None)
    turns = ROUNDS + 1
    assert sorted(calls) == sorted(["sdpa", "matmul"] * turns + [fast])
    for rows, length in ((32, 600), (20, 520), (32, 1024)):  # of the same power of two
        calls.clear()
        attend(*tensors(1, 8, 8, rows, length, width=64), None)
        assert calls == [fast]
    others = [
        tensors(1, 8, 8, 32, 1025, width=64), tensors(1, 8, 8, 64, 600, width=64), tensors(2, 8, 8, 32, 600, width=64),
        tensors(1, 8, 2, 32, 600, width=64), tensors(1, 8, 8, 32, 600, width=64, dtype=torch.bfloat16),
    ]  # fmt: skip
    for other in others:
        calls.clear()
        attend(*other, None)
        assert len(calls) == 2 * turns + 1
    calls.clear()
    attend(q, k, v, torch.ones(1, 1, 1, 600, dtype=torch.bool))
    assert len(calls) == 2 * turns + 1


@torch.inference_mode()
def test_nothing_is_measured_where_it_does_not_pay(monkeypatch):
    monkeypatch.setattr(attention, "race", lambda *given: pytest.fail("measured"))
    attend(*tensors(1, 4, 4, 8, 100), None)  # little work
    attend(*tensors(1, 4, 4, attention.MOST_ROWS + 1, 1000), None)  # rows as in a full pass
    with torch.inference_mode(False), torch.enable_grad():
        attend(*tensors(1, 8, 8, 32, 600, width=64), None)  # training
    for mixing in ("sdpa", "matmul"):
        attend(*tensors(1, 8, 8, 32, 600, width=64), None, mixing)  # asked for by name
    with torch.device("meta"):
        attend(*(tensor.to("meta") for tensor in tensors(1, 8, 8, 32, 600, width=64)), None)  # no CPU
    assert not attention._measured


@torch.inference_mode()
def test_a_compiler_sees_the_fused_kernel_alone(monkeypatch):
    monkeypatch.setattr(attention, "race", lambda *given: pytest.fail("measured"))
    given = tensors(1, 8, 8, 32, 600, width=64)
    seen = torch._dynamo.explain(attend)(*given, None)
    assert seen.graph_break_count == 0
    assert "scaled_dot_product_attention" in seen.graphs[0].code
    torch._dynamo.reset()


@torch.inference_mode()
def test_counted_operations_are_those_of_the_pass(monkeypatch):
    """A race in the middle of a count would count as part of the pass."""
    model = toy_model(layers=2, hidden_size=256, max_length=1024, num_heads=4, num_kv_heads=4)
    tokens, places = torch.zeros(1, 600, dtype=torch.long), torch.arange(600)[None]
    counts = []
    for mixing in ("auto", "sdpa", "matmul"):
        model.mixing = mixing
        with Counter(model) as counter:
            model(tokens[:, :100], places[:, :100], None, WholeStore(600))
        counts.append(counter.total)
    assert counts[0] == counts[1] == counts[2] > 0
    assert not attention._measured
    model.mixing = "auto"
    model(tokens[:, :100], places[:, :100], None, WholeStore(600))
    assert len(attention._measured) == 1


class WholeStore:
    """Keys and values of a canvas of ``length`` slots, of which these are the first."""

    def __init__(self, length: int) -> None:
        self.length = length

    def exchange(self, layer, keys, values):
        pad = (0, 0, 0, self.length - keys.shape[2])
        return torch.nn.functional.pad(keys, pad), torch.nn.functional.pad(values, pad)


def test_override_at_load(model):
    assert fastdllm.load(model).model.mixing == "auto"
    assert fastdllm.load(model, attention="matmul").model.mixing == "matmul"
    with pytest.raises(OptionError, match=r"attention='flash' is not one of auto, sdpa, matmul, kernels\."):
        fastdllm.load(model, attention="flash")


def test_gradients_flow_through_norms_and_rotation():
    """The network is trained with the same code: what is done in place must not be what backward needs."""
    network = toy_model().requires_grad_(True)
    network.logits(network(torch.arange(8)[None], torch.arange(8)[None])).square().mean().backward()
    step = 1e-2
    for name in ("blocks.0.attention_norm.weight", "blocks.1.attention.q.weight", "blocks.0.feed_forward.up.weight"):
        parameter, found = network.get_parameter(name), network.get_parameter(name).grad
        assert found is not None
        losses = []
        for sign in (1, -1):
            other = toy_model().double()
            other.get_parameter(name).add_(sign * step * found.double() / found.norm())
            losses.append(other.logits(other(torch.arange(8)[None], torch.arange(8)[None])).square().mean())
        assert parameter.shape == found.shape
        torch.testing.assert_close(float(losses[0] - losses[1]) / (2 * step), float(found.norm()), rtol=2e-2, atol=0)
