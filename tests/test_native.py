"""Kernels of this machine: what torch computes, for a row the same bits in any company, and a word where they fail."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastdllm
from fastdllm import loading
from fastdllm.arena.flops import Counter
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.models import attention
from fastdllm.models.attention import KERNELS, sdpa
from fastdllm.models.checkpoint import save_checkpoint
from fastdllm.models.native import NativeLinear, NativeStack, is_native, native_layout, use_kernels
from fastdllm.models.packed import lay_out
from fastdllm.models.transformer import RMSNorm, Transformer, gated, rotary_angles, rotate
from fastdllm.native import build
from fastdllm.native.build import compiler, supports
from fastdllm.native.kernels import kernels_for
from fastdllm.record import environment
from toys import FAMILIES, prompts_of, toy_config, toy_model

SERVED = [dtype for dtype in (torch.float32, torch.bfloat16) if supports(dtype) and compiler()]
pytestmark = pytest.mark.skipif(not SERVED, reason="no kernels for this processor, or no compiler")
needs_pairs = pytest.mark.skipif(torch.bfloat16 not in SERVED, reason="no AVX-512 BF16")
NO_TILES = ("-mno-amx-bf16", "-mno-amx-tile")
WIDE = {"hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 160}
"""A toy whose heads are as wide as kernels want them; its vocabulary is not, so its head stays plain."""


@pytest.fixture(scope="module", autouse=True)
def _built(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Built here, not found where an earlier run left it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        build.library.cache_clear()
        kernels_for.cache_clear()
        for dtype in SERVED:
            kernels_for(dtype)


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def native_toy(family="llada", dtype=torch.float32, **changes) -> Transformer:
    model = toy_model(family, dtype=dtype, **(WIDE | changes))
    lay_out(model, native_layout(dtype))
    use_kernels(model)
    return model


def close(found: torch.Tensor, exact: torch.Tensor, steps: float = 4) -> None:
    """Within some units of the last place of the largest number."""
    unit = torch.finfo(found.dtype).eps * float(exact.abs().max())
    torch.testing.assert_close(found.double(), exact, atol=steps * unit, rtol=0)


# What they compute


@pytest.mark.parametrize("dtype", SERVED)
@pytest.mark.parametrize("shape", [(32, 32), (96, 64), (64, 352)])
def test_a_weight_comes_back_bit_by_bit(dtype, shape):
    kernels, weight = kernels_for(dtype), drawn(*shape, dtype=dtype)
    assert torch.equal(kernels.dense(kernels.panels(weight), shape[0]), weight)


@pytest.mark.parametrize("dtype", SERVED)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 16), (33,), (3, 40), (200,), (2, 0)])
def test_products_are_those_of_the_plain_layer(dtype, bias, shape):
    plain = nn.Linear(352, 96, bias=bias, dtype=dtype).requires_grad_(False)
    layer, x = NativeLinear(plain.weight, plain.bias), drawn(*shape, 352, dtype=dtype)
    found, exact = layer(x), F.linear(x.double(), plain.weight.double(), None if not bias else plain.bias.double())
    assert found.shape == (*shape, 96)
    assert found.dtype == dtype
    if found.numel():
        close(found, exact, 1 if dtype == torch.bfloat16 else 16)
    strided = drawn(352, *shape, dtype=dtype).movedim(0, -1)
    assert torch.equal(layer(strided), layer(strided.contiguous()))


CLOSE = {torch.float32: 2**-18, torch.bfloat16: 2**-6}
"""Of attention."""


@pytest.mark.parametrize("dtype", SERVED)
@settings(deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.integers(1, 40), st.integers(1, 200),
    st.sampled_from([32, 64, 128]), st.sampled_from(["none", "columns", "rows"]), st.integers(0, 99),
)  # fmt: skip
def test_attention_is_the_fused_kernels(dtype, batch, heads, rows, length, width, masked, seed):
    q = drawn(batch, rows, heads[0], width, dtype=dtype, seed=seed).transpose(1, 2)
    held = drawn(2, batch, heads[1], length + 1, width, dtype=dtype, seed=seed + 1)
    k, v, visible = held[0, :, :, :length], held[1, :, :, :length], None
    if masked != "none":
        shape = (batch, 1, rows if masked == "rows" else 1, length)
        visible = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        visible[..., -1] = True
    found = kernels_for(dtype).attend(q, k, v, visible)
    assert found.shape == q.shape
    exact = sdpa(q.double(), k.double(), v.double(), visible)
    torch.testing.assert_close(found.double(), exact, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", SERVED)
def test_attention_over_keys_an_odd_number_of_steps_apart(dtype):
    q, v = drawn(1, 2, 5, 32, dtype=dtype), drawn(1, 2, 70, 33, dtype=dtype)[..., :32]
    k = drawn(1, 2, 70, 33, dtype=dtype, seed=1)[..., :32]
    found, exact = kernels_for(dtype).attend(q, k, v, None), sdpa(q.double(), k.double(), v.double(), None)
    torch.testing.assert_close(found.double(), exact, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", SERVED)
def test_attention_to_far_and_large_scores(dtype):
    """The weight of a key goes to zero without underflow of the rest, and no score is too large."""
    q, v = drawn(1, 1, 2, 32, dtype=dtype), drawn(1, 1, 50, 32, dtype=dtype)
    k = drawn(1, 1, 50, 32, dtype=dtype, seed=1) * 300
    found, exact = kernels_for(dtype).attend(q, k, v, None), sdpa(q.double(), k.double(), v.double(), None)
    close = {torch.float32: 2**-10, torch.bfloat16: 2**-6}[dtype]  # a score of 2000 has few digits left
    torch.testing.assert_close(found.double(), exact, atol=close, rtol=close)


@pytest.mark.parametrize("dtype", SERVED)
def test_norms_rotation_and_gates_are_those_of_the_plain_network(dtype):
    kernels, x = kernels_for(dtype), drawn(2, 5, 96, dtype=dtype) * 3
    norm = RMSNorm(96, 1e-6).to(dtype).requires_grad_(False)
    norm.weight.data = drawn(96, dtype=dtype, seed=1)
    close(kernels.norm(x, norm.weight, 1e-6), norm(x).double(), 2)
    heads, (cos, sin) = drawn(2, 5, 3, 64, dtype=dtype), rotary_angles(torch.arange(10).view(2, 5), 64, 10000.0)
    close(kernels.rotate(heads, cos, sin), rotate(heads, cos, sin).double(), 2)
    gate = torch.cat([x.flatten(), torch.tensor([-1e4, -90.0, -0.0, 90.0, 1e4] + [0.0] * 11, dtype=dtype)])
    up = drawn(len(gate), dtype=dtype, seed=2)
    found = kernels.gated(gate, up)
    torch.testing.assert_close(found, gated(gate.clone(), up), rtol=32 * torch.finfo(dtype).eps, atol=1e-30)


@pytest.mark.parametrize("dtype", SERVED)
def test_what_is_no_number_is_not_hidden(dtype):
    q, v = drawn(1, 1, 2, 32, dtype=dtype), drawn(1, 1, 50, 32, dtype=dtype)
    k = drawn(1, 1, 50, 32, dtype=dtype, seed=1)
    k[0, 0, 7, 3] = float("nan")
    assert kernels_for(dtype).attend(q, k, v, None).isnan().all()


@pytest.mark.parametrize("dtype", SERVED)
def test_rows_have_the_same_bits_in_any_company(dtype):
    layer, x = NativeLinear(drawn(96, 352, dtype=dtype), None), drawn(200, 352, dtype=dtype, seed=1)
    for rows in (slice(0, 1), slice(3, 40), slice(150, 200)):
        assert torch.equal(layer(x)[rows], layer(x[rows]))
    q, k, v = (drawn(2, 3, 50, 32, dtype=dtype, seed=seed) for seed in range(3))
    attend, visible = kernels_for(dtype).attend, torch.arange(50).expand(2, 1, 1, 50) < 37
    shorter = attend(q[1:, :, 9:20], k[1:, :, :37], v[1:, :, :37], None)
    assert torch.equal(attend(q, k, v, visible)[1:, :, 9:20], shorter)


@pytest.mark.parametrize("dtype", SERVED)
def test_what_kernels_cannot_read_is_refused(dtype):
    """They are told addresses alone: a wrong dtype or shape would be memory of somebody else's."""
    layer, other = NativeLinear(drawn(64, 96, dtype=dtype), None), torch.float16
    with pytest.raises(OptionError, match=r"were given float16 on cpu: load the model in the dtype wanted"):
        layer(drawn(3, 96, dtype=other))
    with pytest.raises(AssertionError):
        layer(drawn(3, 64, dtype=dtype))
    with pytest.raises(OptionError, match="no backward pass"):
        layer(drawn(3, 96, dtype=dtype).requires_grad_())
    kernels, x = kernels_for(dtype), drawn(2, 5, 96, dtype=dtype)
    for wrong in (
        lambda: kernels.norm(x, drawn(64, dtype=dtype), 1e-6),
        lambda: kernels.gated(x, x[:1]),
        lambda: kernels.rotate(x.view(2, 5, 3, 32), torch.ones(2, 4, 1, 32), torch.ones(2, 5, 1, 32)),
    ):
        with pytest.raises((AssertionError, RuntimeError)):
            wrong()
    model = native_toy(dtype=dtype)
    with pytest.raises(OptionError, match="cannot be moved or cast"):
        model.to(other)
    with pytest.raises(OptionError, match="were given float16"):  # the embedding was cast before
        Engine(model).generate(prompts_of([9]), gen_length=8, block_length=8)


def test_autocast_is_refused():
    model = native_toy()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(OptionError, match="leave autocast out"):
        Engine(model).generate(prompts_of([9]), gen_length=8, block_length=8)


def test_a_network_with_kernels_can_be_copied():
    model = native_toy()
    options = {"gen_length": 8, "block_length": 8}
    expected = Engine(model).generate(prompts_of([9]), **options)[0].canvas
    other = copy.deepcopy(model)
    assert Engine(other).generate(prompts_of([9]), **options)[0].canvas == expected
    other.blocks[0].attention_norm.weight.data.zero_()
    assert Engine(model).generate(prompts_of([9]), **options)[0].canvas == expected


def test_a_weight_that_moves_is_found():
    """Else its old memory would be read, whoever has it by then."""
    model, tokens = native_toy(), torch.arange(12).view(1, 12)
    with torch.inference_mode():
        before = model(tokens, tokens)
        for norm in (model.blocks[0].attention_norm, model.blocks[1].feed_forward_norm):
            norm.weight.data = norm.weight.data * 2
        after = model(tokens, tokens)
        model.stack = None
        assert torch.equal(after, model(tokens, tokens))
        assert not torch.equal(before, after)


def test_hooks_on_parts_are_called():
    model, seen = native_toy(), []
    model.blocks[1].feed_forward.register_forward_hook(lambda part, given, out: seen.append(out.shape))
    with torch.inference_mode():
        model(torch.arange(12).view(1, 12), torch.arange(12).view(1, 12))
    assert seen == [(1, 12, 128)]


# In a network


@pytest.mark.parametrize("dtype", SERVED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_any_company(family, dtype):
    model = native_toy(family, dtype)
    prompts = prompts_of([30, 3, 61])
    options = {"gen_length": 24, "block_length": 8, "cache": "dual", "decoder": "threshold:threshold=0.6"}
    together = Engine(model).generate(prompts, **options)
    alone = [Engine(model).generate([prompt], **options)[0] for prompt in prompts]
    assert [(c.canvas, c.nfe) for c in together] == [(c.canvas, c.nfe) for c in alone]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "sliding", "dkv", "d2cache", "dllm"])
def test_tokens_are_those_of_the_plain_network(family, cache):
    plain, own = Engine(toy_model(family, **WIDE)), Engine(native_toy(family))
    assert is_native(own.model)
    for decoder in ("threshold:threshold=0.6", "topk:k=2"):
        options = {"gen_length": 24, "block_length": 8, "cache": cache, "decoder": decoder}
        found, expected = (engine.generate(prompts_of([30, 3]), **options) for engine in (own, plain))
        assert [(c.canvas, c.nfe) for c in found] == [(c.canvas, c.nfe) for c in expected]


@pytest.mark.parametrize("dtype", SERVED)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head_dim", [32, 96])
@torch.inference_mode()
def test_layers_in_one_call_have_the_bits_of_their_parts(family, dtype, head_dim):
    """Of whole canvases, and of rows in any order over those of a store, whose batch rows are not all at work."""
    model = native_toy(family, dtype, hidden_size=4 * head_dim)
    assert isinstance(model.stack, NativeStack)
    tokens, whole = torch.arange(2 * 300).view(2, 300) % 50, torch.arange(300).expand(2, 300)
    visible = torch.arange(300) < torch.tensor([[300], [211]])
    rows, places = torch.tensor([[4, 290, 17, 300], [200, 0, 1, 2]]), torch.tensor([2, 0])
    apart = torch.arange(4 * 300 * 2).view(2, 4, 300) % 3 > 0

    def leased(store):
        return store.lease([1, 0, 2]).bind(torch.tensor([0, 2]), rows[:, :3], 300)

    passes = {
        "whole": lambda own, store: own(tokens, whole, visible, None),
        "first": lambda own, store: own(tokens, whole, visible, store.bind(places, whole, 300, slice(0, 300))),
        "again": lambda own, store: own(tokens[:, :4], rows, visible, store.bind(places, rows, 300)),
        "short": lambda own, store: own(tokens[:, :4], rows, visible[:, :100], store.bind(places, rows, 100)),
        "apart": lambda own, store: own(tokens[:, :4], rows, apart, store.bind(places, rows, 300)),
        "leased": lambda own, store: own(tokens[:, :3], rows[:, :3], visible, leased(store)),
    }
    parts, stores = copy.deepcopy(model), [model.allocate(3, 300) for _ in range(2)]
    parts.stack = None
    for name, run in passes.items():
        found, expected = run(model, stores[0]), run(parts, stores[1])
        if name in ("again", "short", "apart"):  # one row is padding
            found, expected = found[:, :3], expected[:, :3]
        assert torch.equal(found, expected), name
        for held in ("keys", "values"):
            for own, other in zip(getattr(stores[0], held), getattr(stores[1], held), strict=True):
                assert torch.equal(own[:, :, :300], other[:, :, :300]), name


def test_layers_are_not_told_of_slots_that_are_not_there():
    model = native_toy(dtype=SERVED[0])
    store, tokens = model.allocate(2, 10), torch.zeros(1, 3, dtype=torch.long)
    for places, rows in (([2], [0, 1, 2]), ([0], [0, 1, 11]), ([0], [0, 1, -1])):
        bound = store.bind(torch.tensor(places), torch.tensor([rows]), 10)
        with torch.inference_mode(), pytest.raises(AssertionError):
            model(tokens, torch.tensor([[0, 1, 2]]), None, bound)


@pytest.mark.parametrize("dtype", SERVED)
def test_their_attention_is_not_raced(dtype, monkeypatch):
    """Else a clock would choose the bits."""
    monkeypatch.setattr(attention, "LEAST_WORK", 0)
    monkeypatch.setattr(attention, "race", lambda *ways: pytest.fail("raced"))
    options = {"gen_length": 8, "block_length": 8, "cache": "dual", "decoder": "topk:k=2"}
    model = native_toy(dtype=dtype)
    model.stack = None  # which asks nobody
    Engine(model).generate(prompts_of([30]), **options)


@pytest.mark.parametrize("dtype", SERVED)
@torch.inference_mode()
def test_logits_have_the_same_bits_in_any_company(dtype):
    model = native_toy("dream", dtype, vocab_size=64)
    tokens, positions = torch.arange(3 * 40).view(3, 40) % 50, torch.arange(40).expand(3, 40)
    visible = torch.arange(40) < torch.tensor([[40], [13], [32]])
    together = model.logits(model(tokens, positions, visible))
    for row, length in enumerate((40, 13, 32)):
        alone = model.logits(model(tokens[row : row + 1, :length], positions[:1, :length]))
        assert torch.equal(together[row : row + 1, :length], alone)


@pytest.mark.parametrize("dtype", SERVED)
def test_operations_are_counted_as_those_of_the_plain_network(dtype):
    options = {"gen_length": 16, "block_length": 8, "cache": "dual", "decoder": "topk:k=2"}
    counts = []
    for model in (toy_model(dtype=dtype, **WIDE), native_toy(dtype=dtype)):
        model.mixing = KERNELS if is_native(model) else "sdpa"
        engine = Engine(model)
        with Counter(model) as counter:
            counted = engine.generate(prompts_of([9]), **options)
        assert counted[0].canvas == engine.generate(prompts_of([9]), **options)[0].canvas
        counts.append(counter.total)
    assert counts[0] == counts[1]


# Loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_checkpoint(toy_model("dream", **WIDE), path)
    return path


def test_other_layouts_do_not_go_with_compile(folder):
    for packed in (True, False):
        with pytest.raises(OptionError, match=f"packed={packed} does not go with compile=True"):
            fastdllm.load(folder, compile=True, packed=packed, device="cpu")


def test_compile_gives_kernels_and_says_so(folder):
    engine = fastdllm.load(folder, compile=True, device="cpu")
    assert is_native(engine.model)
    assert environment(engine)["kernels"] is True
    assert not is_native(fastdllm.load(folder, device="cpu").model)  # too small for it to be the default
    options = {"gen_length": 16, "block_length": 8}
    found = engine.generate(prompts_of([9]), **options)
    assert found[0].canvas == fastdllm.load(folder, device="cpu").generate(prompts_of([9]), **options)[0].canvas


def test_large_models_have_them_by_default(folder, monkeypatch):
    monkeypatch.setattr(loading, "LARGE", 1)
    assert is_native(fastdllm.load(folder, device="cpu").model)
    for other in ({"packed": False}, {"packed": True}, {"dtype": "float16"}, {"dtype": "int8"}):
        assert not is_native(fastdllm.load(folder, device="cpu", **other).model)
    monkeypatch.setattr(loading, "compiler", lambda: None)
    assert not is_native(fastdllm.load(folder, device="cpu").model)


def test_a_saved_model_has_plain_weights(folder, tmp_path):
    engine = fastdllm.load(folder, compile=True, device="cpu")
    save_checkpoint(engine.model, tmp_path)
    plain, again = fastdllm.load(folder, device="cpu"), fastdllm.load(tmp_path, device="cpu")
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    with pytest.raises(OptionError, match="cannot be moved or cast"):
        engine.model.to(torch.float64)


def test_attention_of_kernels_needs_them(folder):
    with pytest.raises(OptionError, match=r"attention='kernels' needs kernels .* on a CPU with AVX-512, for bfloat16"):
        fastdllm.load(folder, attention="kernels", device="cpu")


# Building


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    kernels_for.cache_clear()
    yield tmp_path
    build.library.cache_clear()
    kernels_for.cache_clear()


def use_compiler(monkeypatch: pytest.MonkeyPatch, path: Path, script: str) -> None:
    """Have a shell script at ``path`` stand in for the compiler."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def test_what_was_built_is_found_again(nothing_built, monkeypatch, caplog):
    kernels_for(SERVED[0])
    assert caplog.messages == ["building kernels for this processor, once: some seconds"]
    (path,) = nothing_built.rglob("*.so")
    assert [*nothing_built.rglob("*")] == [path.parent, path]  # nothing else is left
    build.library.cache_clear()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("built twice"))
    build.library(SERVED[0])
    assert len(caplog.messages) == 1


def test_without_a_compiler_there_is_a_sentence_before_the_weights_are_read(nothing_built, folder, monkeypatch):
    monkeypatch.setattr("fastdllm.loading.load_weights", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(OptionError, match=r"need a C\+\+ compiler such as g\+\+, and none was found\."):
        fastdllm.load(folder, compile=True, device="cpu")


def test_a_compiler_that_fails(nothing_built, folder, monkeypatch):
    use_compiler(monkeypatch, nothing_built / "bad", "echo 'kernels.cpp:1: error: no such thing' >&2; exit 1")
    with pytest.raises(OptionError, match=r"bad cannot build the kernels of compile=True \(.*error: no such thing\)"):
        fastdllm.load(folder, compile=True, device="cpu")
    monkeypatch.setattr(loading, "LARGE", 1)
    with pytest.warns(RuntimeWarning, match="Weights are laid out for oneDNN instead"):
        assert not is_native(fastdllm.load(folder, device="cpu").model)


def test_a_compiler_that_hangs_is_given_up(nothing_built, folder, monkeypatch):
    use_compiler(monkeypatch, nothing_built / "slow", "exec sleep 60")
    monkeypatch.setattr(build, "PATIENCE", 0.1)
    with pytest.raises(OptionError, match=r"slow takes more than 0 s"):
        fastdllm.load(folder, compile=True, device="cpu")


def test_a_folder_that_cannot_be_written(nothing_built, folder, monkeypatch):
    (nothing_built / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(nothing_built / "file"))
    with pytest.raises(OptionError, match=r"cannot be kept or loaded \(.*Not a directory.*\)"):
        fastdllm.load(folder, compile=True, device="cpu")


def test_a_folder_that_others_can_write(nothing_built, folder):
    """What lies there is run."""
    (nothing_built / "fastdllm").mkdir(mode=0o755)
    (nothing_built / "fastdllm").chmod(0o777)
    with pytest.raises(OptionError, match=r"others than this user can write to .*set XDG_CACHE_HOME"):
        fastdllm.load(folder, compile=True, device="cpu")


def test_a_user_without_a_home(nothing_built, folder, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    with pytest.raises(OptionError, match=r"cannot be kept or loaded \(Could not determine home directory"):
        fastdllm.load(folder, compile=True, device="cpu")


def test_a_broken_library_is_built_anew(nothing_built):
    kernels_for(SERVED[0])
    (path,) = nothing_built.rglob("*.so")
    path.unlink()  # the process still has it mapped: it must not change
    path.write_bytes(b"no library")
    build.library.cache_clear()
    kernels_for.cache_clear()
    kernels_for(SERVED[0])
    assert path.stat().st_size > 1000


def test_a_compiler_whose_library_does_not_load(nothing_built, folder, monkeypatch):
    """As of one that calls another OpenMP runtime than torch's."""
    script = 'while [ "$1" != -o ]; do shift; done; echo nothing > "$2"'
    use_compiler(monkeypatch, nothing_built / "odd", script)
    with pytest.raises(OptionError, match=r"cannot be kept or loaded \(.*kernels\.so"):
        fastdllm.load(folder, compile=True, device="cpu")
    monkeypatch.setattr(loading, "LARGE", 1)
    with pytest.warns(RuntimeWarning, match="Weights are laid out for oneDNN instead"):
        assert not is_native(fastdllm.load(folder, device="cpu").model)


@pytest.mark.parametrize("wrong", ["", "  ", "g++ 'open", "/no/such/compiler"])
def test_a_compiler_that_is_no_command(monkeypatch, wrong):
    """The usual names are left."""
    monkeypatch.delenv("CXX", raising=False)
    usual = compiler()
    monkeypatch.setenv("CXX", wrong)
    assert compiler() == usual


@needs_pairs
def test_a_compiler_that_knows_no_pairs(nothing_built, monkeypatch):
    monkeypatch.setenv("CXX", " ".join([*compiler(), *NO_TILES, "-mno-avx512bf16"]))
    with pytest.raises(OptionError, match=r"needs a compiler that knows AVX-512 BF16, such as g\+\+ 11"):
        kernels_for(torch.bfloat16)
    kernels_for(torch.float32)


@needs_pairs
def test_without_tiles(nothing_built, monkeypatch):
    """As on processors that have AVX-512 BF16 alone, or with a compiler that does not know AMX."""
    monkeypatch.setenv("CXX", " ".join([*compiler(), *NO_TILES]))
    kernels, weight = kernels_for(torch.bfloat16), drawn(96, 352, dtype=torch.bfloat16)
    assert not kernels.tiles
    test_a_weight_comes_back_bit_by_bit(torch.bfloat16, (64, 352))
    for rows in (1, 7, 33, 200):
        x = drawn(rows, 352, dtype=torch.bfloat16, seed=1)
        close(kernels.linear(x, kernels.panels(weight), 96, None), x.double() @ weight.double().T, 1)
    test_attention_is_the_fused_kernels(torch.bfloat16)
    test_attention_to_far_and_large_scores(torch.bfloat16)
    test_what_is_no_number_is_not_hidden(torch.bfloat16)


def test_a_copy_for_another_order_of_weights_is_refused(monkeypatch):
    kernels = kernels_for(SERVED[0])
    monkeypatch.setattr(kernels, "tiles", not kernels.tiles)
    kept = pickle.dumps(kernels)
    monkeypatch.undo()
    with pytest.raises(OptionError, match="load it here instead"):
        pickle.loads(kept)
    assert pickle.loads(pickle.dumps(kernels)) is kernels


def test_kernels_share_the_threads_of_torch(nothing_built):
    """Another OpenMP runtime, as sklearn brings one, would bring another pool of threads onto the same cores."""
    code = (
        "import ctypes, torch\n"
        "try:\n import sklearn.metrics\nexcept ImportError:\n pass\n"
        "from fastdllm.native.build import _torch, library\n"
        f"for kernels in library({SERVED[0]}), _torch():\n"
        " print(ctypes.cast(kernels.omp_get_max_threads, ctypes.c_void_p).value)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert len(set(found)) == 1


def test_kernels_are_linked_with_no_runtime_but_that_of_torch(nothing_built, monkeypatch):
    """A flag of OpenMP would add the compiler's own, which stays unseen where both have the same name."""
    commands = list[list[str]]()
    run = build._run
    monkeypatch.setattr(build, "_run", lambda command: [commands.append(command), run(command)])
    kernels_for(SERVED[0])
    compiled, linked = commands
    assert "-fopenmp" in compiled
    assert "-fopenmp" not in linked
    assert str(build.runtime()) in linked


def test_processes_that_build_at_once(tmp_path):
    code = f"import torch; from fastdllm.native.kernels import kernels_for; kernels_for({SERVED[0]}); print('built')"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    together = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) for _ in range(3)]
    assert [process.communicate()[0] for process in together] == [b"built\n"] * 3


def test_kernels_of_another_dtype_are_refused():
    assert not supports(torch.float16)
    with pytest.raises(OptionError, match=r"there are no kernels for float16"):
        kernels_for(torch.float16)
    config = toy_config(**WIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loading.native_if_large(config, torch.float16, torch.device("cpu")) is None
    assert loading.native_if_large(config, torch.float32, torch.device("meta")) is None
