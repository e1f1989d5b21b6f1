"""Weights and rows in 8 bits: close to the float network, row by row, and refused where that cannot be had."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastdllm
from fastdllm.arena.flops import Counter
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError
from fastdllm.loading import choose_dtype, fast_at
from fastdllm.memory import weight_bytes
from fastdllm.models.checkpoint import save_checkpoint
from fastdllm.models.packed import lay_out
from fastdllm.models.quantized import (
    LARGEST,
    ZERO,
    Int8Linear,
    Rows,
    int8_layout,
    quantization,
    round_rows,
    round_weight,
    torchao_layout,
)
from fastdllm.record import settings
from toys import FAMILIES, prompts_of, toy_engine, toy_model

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))
def test_rows_come_back_within_half_a_step(rows, width, dtype, seed):
    x = drawn(rows, width, seed=seed, dtype=dtype) * 10.0 ** (seed % 7 - 3)
    found, scale = round_rows(x)
    assert found.dtype == torch.uint8
    assert scale.dtype == dtype
    assert scale.shape == (rows, 1)
    back = (found.double() - ZERO) * scale.double()
    assert ((back - x.double()).abs() <= 0.501 * scale.double()).all()
    assert (found.int() - ZERO).abs().max() <= LARGEST


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 200), st.integers(0, 99))
def test_weights_come_back_within_half_a_step(outputs, inputs, piece, seed):
    weight = drawn(outputs, inputs, seed=seed) * torch.logspace(-3, 3, outputs)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdllm.models.quantized.PIECE", piece)
        found, scale = round_weight(weight)
    assert found.dtype == torch.int8
    assert ((found * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all()


def test_what_is_all_zeros_stays_so():
    layer = Int8Linear(torch.zeros(8, 16), None, Rows())
    assert torch.equal(layer(drawn(2, 16)), torch.zeros(2, 8))
    assert torch.equal(Int8Linear(drawn(8, 16), None, Rows())(torch.zeros(2, 16)), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 7, 96), (33, 96), (1, 200, 96), (2, 0, 96)])
def test_products_are_those_of_the_bytes(dtype, bias, shape):
    """Exactly the integers' product times both scales, but for the rounding of results."""
    plain = nn.Linear(96, 80, bias=bias, dtype=dtype).requires_grad_(False)
    x = drawn(*shape, dtype=dtype)
    found = Int8Linear(plain.weight, plain.bias, Rows())(x)
    rows, scale = round_rows(x.flatten(0, -2))
    weight, scales = round_weight(plain.weight)
    expected = ((rows.double() - ZERO) @ weight.double().T) * scales.double() * scale.double()
    expected = expected + (plain.bias.double() if bias else 0)
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected.view(found.shape), atol=step, rtol=2 * step)
    if found.numel():
        off = (found.double() - plain(x).double()).norm() / plain(x).double().norm()
        assert off < 0.03


def test_rows_are_rounded_once_for_the_products_that_share_them(monkeypatch):
    rounded = []
    monkeypatch.setattr("fastdllm.models.quantized.round_rows", lambda x: (rounded.append(x), round_rows(x))[1])
    model = toy_model()
    lay_out(model, int8_layout())
    model(torch.arange(6)[None], torch.arange(6)[None])
    assert len(rounded) == 4 * model.config.num_layers  # before q, k and v; out; gate and up; down
    rows = Rows()
    x = drawn(2, 8)
    assert rows(x) is rows(x)
    other = drawn(2, 8, seed=1)
    assert torch.equal(rows(other)[0], round_rows(other)[0])
    assert torch.equal(rows(x)[0], round_rows(x)[0])
    del other
    assert torch.equal(rows(drawn(2, 8, seed=2))[0], round_rows(drawn(2, 8, seed=2))[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_prompt_gets_does_not_depend_on_its_neighbours(family):
    engine = toy_engine(family, seed=1)
    lay_out(engine.model, int8_layout())
    prompts = prompts_of([11, 30, 2, 18], seed=4)
    options = {"gen_length": 24, "block_length": 8, "cache": "dual", "decoder": "threshold:threshold=0.5"}
    together = [(c.canvas, c.nfe) for c in engine.generate(prompts, **options)]
    assert [(c.canvas, c.nfe) for p in prompts for c in engine.generate([p], **options)] == together


def test_operations_are_counted_alike():
    counts = []
    for model in (toy_model(), toy_model()):
        if counts:
            lay_out(model, int8_layout())
        with Counter(model) as counter:
            model.logits(model(torch.zeros(2, 9, dtype=torch.long), torch.arange(9).expand(2, 9)))
        counts.append(counter.total)
    assert counts[0] == counts[1] > 0


def test_the_embedded_model_in_int8(tiny):
    """Its logits stay near those of float32 (docs/int8.md has what becomes of its answers)."""
    engine = fastdllm.load("tiny", dtype="int8", device="cpu")
    assert engine.precision == "int8"
    assert engine.dtype == (torch.bfloat16 if fast_at(torch.bfloat16, CPU) else torch.float32)
    assert settings(engine, GenerationConfig(), chat=True)["dtype"] == "int8"
    assert engine.model.head.weight is engine.model.embed.weight
    held = sum(layer.nbytes for layer in engine.model.modules() if isinstance(layer, Int8Linear))
    held += sum(parameter.nbytes for parameter in engine.model.parameters())
    said = weight_bytes(engine.config, engine.dtype.itemsize, quantized=True)
    assert said <= held <= 1.06 * said
    assert held < 0.6 * weight_bytes(engine.config, 2)
    ids = tiny.encode("Tom has 3 apples and buys 4 more.", chat=True)[0] + [tiny.config.mask_id] * 16
    tokens, places = torch.tensor(ids)[None], torch.arange(len(ids))[None]
    exact, found = (m.logits(m(tokens, places)).float().log_softmax(-1) for m in (tiny.model, engine.model))
    assert float((exact.exp() * (exact - found)).sum(-1).mean()) < 0.02


@pytest.mark.parametrize("name", ["int8", torch.int8])
def test_all_else_is_in_a_float_dtype(model, name, monkeypatch, tmp_path):
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("fastdllm.loading.fast_at", lambda *given, fast=fast: fast)
        assert choose_dtype(name, tmp_path, CPU) == dtype
        engine = fastdllm.load(model, dtype=name)
        assert {p.dtype for p in engine.model.parameters()} == {dtype}
        assert all(isinstance(layer, Int8Linear | nn.Embedding) for layer in linear_layers(engine.model))
        assert engine.generate("x", gen_length=8)[0].nfe > 0


def linear_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | Int8Linear)]


def test_kinds():
    assert [quantization(name) for name in ("int8", torch.int8, "float8", torch.float8_e4m3fn)] == [
        "int8", "int8", "float8", "float8"
    ]  # fmt: skip
    assert not any(quantization(name) for name in ("auto", "float32", torch.bfloat16, None, 8))


def test_refusals(model, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match=r"dtype='int4' is not one of auto, .*, int8, float8\."):
        fastdllm.load(model, dtype="int4")
    with pytest.raises(OptionError, match=r"packed=False is about float weights: leave it out with dtype='int8'\."):
        fastdllm.load(model, dtype="int8", packed=False)
    with pytest.raises(OptionError, match=r"dtype='int8' does not go with compile=True on cpu"):
        fastdllm.load(model, dtype="int8", compile=True)
    with pytest.raises(OptionError, match=r"dtype='float8' needs a GPU of compute capability 8\.9; this is cpu\."):
        fastdllm.load(model, dtype="float8", device="cpu")
    engine = fastdllm.load(model, dtype="int8", device="cpu")
    with pytest.raises(OptionError, match="load it in a float dtype to save it"):
        save_checkpoint(engine.model, tmp_path)
    with pytest.raises(OptionError, match="cannot be moved or cast"):
        engine.model.to(torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"dtype='int8' on a CPU needs a torch with oneDNN\."):
        fastdllm.load(model, dtype="int8", device="cpu")


def test_gpus_need_torchao_and_the_products(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(OptionError, match=r"dtype='float8' needs a GPU of compute capability 8\.9; this is an old GPU"):
        torchao_layout("float8", gpu)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(OptionError, match=r"dtype='int8' on a GPU needs torchao: pip install 'fastdllm\[quant\]'"):
        torchao_layout("int8", gpu)
