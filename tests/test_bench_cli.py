"""``fastdllm bench`` as it is typed: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benches import TOY, shrink_square
from fastdllm.bench.shapes import parse_shape
from fastdllm.memory import parameters
from helpers import refused, run

SMALL = (
    "--shape", TOY, "--prompt-length", "12", "--gen-length", "16", "--block-length", "8", "--rounds", "2", "--runs",
    "2", "--dtype", "float32", "--threads", "1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_square() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink_square(patch)
        yield


def measured(tmp_path: Path, *more: str | Path) -> tuple[Any, dict[str, Any]]:
    path = tmp_path / "bench.json"
    done = run("bench", *SMALL, *more, "--json", path)
    assert done.exit_code == 0, done.output
    return done, json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Any, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench")
    picture = folder / "bench.png"
    return *measured(folder, "--tokens-per-pass", "3", "--plain", "--profile", "--top", "3", "--plot", picture), picture


class TestOneSetting:
    def test_the_file_says_what_everything_depends_on(self, whole) -> None:
        _, found, _ = whole
        assert found["command"].startswith("fastdllm bench --shape d=16,layers=2")
        assert (
            found["command"].split()[-6:-4] == ["--tokens-per-pass", "3.0"] or "--tokens-per-pass 3" in found["command"]
        )
        assert len(found["load_average"]["before"]) == len(found["load_average"]["after"]) == 3
        first = found["subjects"][0]
        assert first["model"]["parameters"] == parameters(parse_shape(TOY))
        assert (first["model"]["weights"], first["model"]["dtype"]) == (None, "float32")
        assert first["environment"].keys() >= {"torch", "hardware", "threads", "commit", "python"}
        asked = first["setting"]
        assert (asked["shape"], asked["threads"], asked["prompt_length"], asked["gen_length"]) == (TOY, 1, 12, 16)
        assert (asked["cache"].partition(":")[0], asked["stop_at_eos"]) == ("dual", False)
        assert asked["decoder"] == "Replay(tokens_per_pass=3.0, trace=None)"

    def test_passes_are_judged_by_the_machine(self, whole) -> None:
        _, found, _ = whole
        machine = found["machine"][0]
        for subject in found["subjects"]:
            for name, rows, count in (("full_pass", 28, 2), ("cached_pass", 8, 8)):
                made = subject[name]
                assert (made["rows"], made["slots"], made["reach"]) == (rows, 8, 28)
                assert made["network_ms"]["n"] == count
                limit = made["roofline"]
                flops, moved = made["flops"]["total"], made["bytes"]["total"]
                assert limit["compute_ms"] == pytest.approx(1e3 * flops / machine["peak_flops_per_second"])
                assert limit["memory_ms"] == pytest.approx(1e3 * moved / machine["read_bytes_per_second"])
                assert limit["roofline_ms"] == max(limit["compute_ms"], limit["memory_ms"])
                share = limit["roofline_ms"] / made["network_ms"]["median"]
                assert limit["fraction_of_roofline"]["network"] == pytest.approx(share)
                share = limit["roofline_ms"] / min(made["network_ms"]["values"])
                assert limit["fraction_of_roofline"]["fastest"] == pytest.approx(share)

    def test_generations_are_counted_whole(self, whole) -> None:
        _, found, _ = whole
        made, plain = (subject["generation"] for subject in found["subjects"])
        assert plain is None
        assert (made["extrapolated"], made["tokens"], made["passes"], made["timed_passes_per_run"]) == (False, 16, 6, 6)
        assert made["tokens_per_second"]["n"] == 2
        for rate, seconds in zip(made["tokens_per_second"]["values"], made["seconds"]["values"], strict=True):
            assert rate == pytest.approx(16 / seconds)
        assert sorted((kind["rows"], kind["passes"]) for kind in made["kinds"]) == [([8], 4), ([28], 2)]

    def test_plain_weights_are_compared_with(self, whole) -> None:
        done, found, _ = whole
        assert [subject["label"] for subject in found["subjects"]] == ["fastdllm", "plain"]
        told = [(one["speed_of"], one["over"], one["by"], one["pairs"]) for one in found["comparisons"]]
        assert told == [("fastdllm", "plain", by, 2) for by in ("full pass", "cached pass")]
        assert found["subjects"][0]["model"]["linear_layers"] == {"Linear": 15}
        assert "times as fast" in done.stdout

    def test_memory_is_told_apart(self, whole) -> None:
        _, found, _ = whole
        held = found["memory"]
        assert held["weights"] == parameters(parse_shape(TOY)) * 4
        assert held["kv_store"] == 2 * 2 * 16 * 29 * 4  # keys and values of 2 layers, 16 wide, with the spare slot
        needed = held["weights"] + held["kv_store"]
        assert held["over_weights_and_store"] == pytest.approx(held["generating_peak"] / needed - 1)

    def test_operators_are_named(self, whole) -> None:
        done, found, _ = whole
        for kind in ("full", "cached"):
            assert sum(one["share"] for one in found["profile"][kind]) == pytest.approx(1.0)
            assert {"aten::cat", "aten::copy_"} <= {one["name"] for one in found["profile"][kind]}
            assert f"operator, {kind} pass" in done.stdout
        assert "others" in done.stdout

    def test_the_picture_is_drawn(self, whole) -> None:
        done, _, picture = whole
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture.name) in done.stderr.replace("\n", "")

    def test_end_tokens_end_nothing_and_that_is_said(self, whole) -> None:
        assert "end tokens end nothing" in whole[0].stdout


def test_a_sample_of_passes_is_marked_wherever_its_speed_stands(tmp_path) -> None:
    done, found = measured(tmp_path, "--passes", "1", "--no-plain", "--no-memory", "--gen-length", "24")
    made = found["subjects"][0]["generation"]
    assert (made["extrapolated"], made["passes"], made["timed_passes_per_run"]) == (True, 24, 2)
    assert sum(kind["passes"] for kind in made["kinds"]) == 24
    assert "EXTRAPOLATED from 2 of 24 passes" in done.stdout.replace("\n", " ").replace("  ", " ")
    assert found["memory"] is None


def test_two_settings_take_turns(tmp_path) -> None:
    picture = tmp_path / "two.png"
    pair = ("dual/topk:k=2", "cache=none;tokens_per_pass=2;prompt_length=4")
    done, found = measured(tmp_path, "--compare", *pair, "--no-plain", "--no-memory", "--plot", picture)
    first, second = found["subjects"]
    assert (first["label"], first["asked"], second["asked"]) == ("A", *pair)
    assert (first["setting"]["prompt_length"], second["setting"]["prompt_length"]) == (12, 4)
    assert [subject["generation"]["passes"] for subject in (first, second)] == [8, 8]
    told = [(one["speed_of"], one["over"], one["by"]) for one in found["comparisons"]]
    assert told == [("A", "B", by) for by in ("full pass", "cached pass", "tokens/s")]
    rates = [subject["generation"]["tokens_per_second"]["median"] for subject in (first, second)]
    assert found["comparisons"][-1]["value"] == pytest.approx(rates[0] / rates[1])
    assert "--compare dual/topk:k=2 'cache=none;tokens_per_pass=2;prompt_length=4'" in found["command"]
    assert "A is" in done.stdout
    assert picture.exists()


def test_sizes_are_swept_and_their_growth_is_fitted(tmp_path) -> None:
    picture = tmp_path / "grown.png"
    more = ("--scaling", "--rounds", "1", "--runs", "1", "--no-plain", "--no-memory", "--tokens-per-pass", "4")
    done, found = measured(tmp_path, *more, "--plot", picture)
    axes = {axis["name"]: axis for axis in found["scaling"]}
    assert axes.keys() == {"prompt", "answer", "block", "batch", "model"}
    assert [point["size"] for point in axes["prompt"]["points"]] == [3, 6, 12, 24]
    assert [point["setting"]["prompt_length"] for point in axes["prompt"]["points"]] == [3, 6, 12, 24]
    for axis in axes.values():
        assert axis["growth"].keys() == {"full", "cached", "token"}
        for point in axis["points"]:
            assert point["seconds"]["token"] == pytest.approx(
                point["generation"]["seconds"]["median"] / point["generation"]["tokens"]
            )
    assert "grows with" in done.stdout
    assert (tmp_path / "grown-scaling.png").exists()


def test_a_prompt_is_as_long_as_the_model_allows(bare, tmp_path) -> None:
    path = tmp_path / "bench.json"
    options = ("--gen-length", "240", "--tokens-per-pass", "60", "--rounds", "1", "--runs", "1", "--no-memory")
    done = run("bench", bare, *options, "--json", path)
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["subjects"][0]["setting"]["prompt_length"] == 256 - 240


def test_a_checkpoint_with_its_trace(model, tmp_path) -> None:
    trace, path = tmp_path / "trace.jsonl", tmp_path / "bench.json"
    options = ("--gen-length", "24", "--block-length", "8", "--decoder", "topk:k=3")
    assert run("generate", "one two", "--model", model, *options, "--trace", trace).exit_code == 0
    done = run(
        "bench", model, "--trace", trace, "--gen-length", "24", "--block-length", "8", "--prompt-length", "9",
        "--rounds", "1", "--runs", "1", "--no-memory", "--json", path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    assert [subject["label"] for subject in found["subjects"]] == ["fastdllm"]
    assert len(found["subjects"][0]["model"]["weights"]) == 12
    assert found["subjects"][0]["generation"]["passes"] == 9
    assert "replay of a trace of 9 passes" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("tiny", "--shape", "220m"), "MODEL and --shape cannot be given together"),
        (("--shape", "3b"), "shape '3b' is not one of"),
        (("--shape", TOY, "--decoder", "topk:k=1", "--tokens-per-pass", "2"), "decoder and tokens_per_pass cannot"),
        (("--shape", TOY, "--tokens-per-pass", "0.5"), "tokens_per_pass=0.5 must be a number of 1 or more"),
        (("--shape", TOY, "--decoder", "threshold", "--passes", "2"), "is not known beforehand"),
        (("--shape", TOY, "--dtype", "int3"), "dtype='int3' is not one of"),
        (("--shape", TOY, "--cache", "triple"), "cache 'triple' is not one of"),
        (("--shape", TOY, "--compare", "dual/topk:k=1", "cash=none"), "setting 'cash=none'"),
        (("tiny", "--prompt-length", "5000"), "longer than the"),
        (("tiny", "--gen-length", "5000"), "prompt_length=0 with gen_length=5000 is longer than the"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, said) -> None:
    assert said in refused("bench", *options)
